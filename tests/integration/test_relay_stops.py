"""SIGTERM ends a relay cleanly at any moment: while it starts, with a full queue, without brokers."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from dispatcher.embedded.broker import EmbeddedBroker
from dispatcher.embedded.server import EmbeddedMongo
from dispatcher.exceptions import ExitCode
from tests.integration.relaying import RelayProcess, accepted
from tests.integration.test_relay_processes import client, process  # noqa: F401 - fixtures
from tests.integration.test_relay_zombies import events_read, silent
from tests.support import eventually_sync

pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")

pytestmark = pytest.mark.slow


@pytest.fixture
def start(
    mongo: EmbeddedMongo,
    broker: EmbeddedBroker,
    database: str,
    name: str,
    tmp_path: Path,
) -> Iterator[Callable[[], RelayProcess]]:
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(process(tmp_path, mongo, database, broker.address, name))


def test_sigterm_during_the_start_ends_a_relay_cleanly(
    start: Callable[[], RelayProcess], mongo: EmbeddedMongo
) -> None:
    for action in ("topic.created", "topic.weak", "relay.started", "relay.term"):
        relay = start()
        eventually_sync(lambda relay=relay, action=action: action in relay.log)
        assert relay.terminate() == ExitCode.OK, relay.log
        assert relay.lines("relay.stopped"), relay.log


def test_sigterm_while_no_broker_answers_ends_a_relay_cleanly(
    start: Callable[[], RelayProcess], broker: EmbeddedBroker
) -> None:
    first = start()
    first.wait_started()
    assert first.terminate() == ExitCode.OK
    with silent(broker):
        relay = start()
        eventually_sync(lambda: relay_is_asking(relay))
        assert relay.terminate() == ExitCode.OK, relay.log


def relay_is_asking(relay: RelayProcess) -> bool:
    """Whether a process asks for a broker: then the process has threads of the Kafka client."""
    tasks = Path(f"/proc/{relay.process.pid}/task")
    return any((one / "comm").read_text().startswith("rdk:") for one in tasks.iterdir())


def test_sigterm_with_a_full_queue_ends_a_relay_cleanly_and_loses_nothing(
    start: Callable[[], RelayProcess],
    broker: EmbeddedBroker,
    client: MongoClient[Any],  # noqa: F811
    database: str,
    name: str,
) -> None:
    orders, state = client[database]["orders"], client[f"{database}_state"]
    relay = start()
    eventually_sync(lambda: relay.lines("relay.term"))
    orders.insert_one({"_id": -1})
    eventually_sync(lambda: events_read(state, relay) == 1)
    os.kill(broker.pid, signal.SIGSTOP)
    try:
        orders.insert_many([{"_id": i, "text": "x" * 20_000} for i in range(200)])
        eventually_sync(lambda: events_read(state, relay) > 50)
        relay.process.send_signal(signal.SIGTERM)
        eventually_sync(lambda: relay.lines("dispatcher.stopping"))
    finally:
        os.kill(broker.pid, signal.SIGCONT)
    assert relay.process.wait(90) == ExitCode.OK, relay.log
    second = start()
    second.wait_started()
    with orders.watch() as stream:
        orders.insert_one({"_id": 200})
        token = next(stream)["_id"]["_data"]
    eventually_sync(lambda: state["relays"].find_one({"_id": f"mongoz.{name}"})["token"] >= token)
    assert second.terminate() == ExitCode.OK
    read = accepted(broker.address, f"mongoz.{name}")
    assert sorted(one.event["documentKey"]["_id"] for one in read) == list(range(-1, 201))
