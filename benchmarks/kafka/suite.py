"""Runs all measurements on one broker."""

from collections.abc import Callable
from typing import Any, Final

from pymongo import MongoClient

from benchmarks.figures import Row
from benchmarks.kafka.commands import measure_commands
from benchmarks.kafka.computing import measure_computing
from benchmarks.kafka.latency import measure_latency
from benchmarks.kafka.memory import measure_memory
from benchmarks.kafka.relay import measure_relay
from benchmarks.kafka.server_cpu import measure_server_cpu
from benchmarks.kafka.stage import Stage
from benchmarks.setting import Setting
from tests.kafka import server

__all__ = ["measure_kafka"]

_PARTS: Final[tuple[Callable[[Stage], list[Row]], ...]] = (
    measure_server_cpu,
    measure_relay,
    measure_latency,
    measure_computing,
    measure_commands,
    measure_memory,
)


def measure_kafka(setting: Setting) -> list[Row]:
    """Measure the rows, if Apache Kafka is there.

    Raises:
        BenchmarkFailed: a process did not do what it should.
    """
    if trouble := server.missing():
        setting.say(f"the rows about Kafka are left out: {trouble}")
        return []
    with server.running() as broker, MongoClient[dict[str, Any]](setting.url) as client:
        mongod = int(client.admin.command("serverStatus")["pid"])
        stage = Stage(setting, client, broker.address, mongod, broker.pid)
        return [row for measure in _PARTS for row in measure(stage)]
