"""The profile `kafka` of the compose file: its broker, relay and workers deliver the changes of the writer.

The tests need no container engine. Apache Kafka runs with the properties of the file. The commands of the services
run with the environment of their services, except for addresses.
"""

import re
import signal
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from pymongo import MongoClient

from dispatcher.embedded.guardian import free_port
from dispatcher.embedded.server import EmbeddedMongo, embedded_mongo
from tests.acceptance.test_compose import ROOT, SERVICES, URL, environment, running
from tests.conftest import need_kafka
from tests.kafka.server import KafkaServer
from tests.kafka.server import running as running_kafka
from tests.support import PATIENCE, eventually_sync

KAFKA = SERVICES["kafka"]
HOST_PORT = "${KAFKA_PORT:-9094}"
# These properties depend on the machine. tests/kafka/server.py sets them.
PLACES = {
    *("KAFKA_LISTENERS", "KAFKA_ADVERTISED_LISTENERS", "KAFKA_LOG_DIRS", "KAFKA_CONTROLLER_QUORUM_VOTERS"),
    *("KAFKA_LISTENER_SECURITY_PROTOCOL_MAP", "KAFKA_CONTROLLER_LISTENER_NAMES"),
}


def listeners(variable: str) -> dict[str, str]:
    """The address of each listener."""
    return dict(one.split("://") for one in KAFKA["environment"][variable].split(","))


def test_the_broker_has_the_version_that_tests_use():
    pom = ET.parse(ROOT / "tests" / "kafka" / "pom.xml").getroot()
    (version,) = {
        one.findtext("{*}version") for one in pom.iter() if one.findtext("{*}groupId") == "org.apache.kafka"
    }
    assert KAFKA["image"] == f"apache/kafka:{version}"


def test_clients_find_the_broker():
    assert listeners("KAFKA_LISTENERS") == {"CLIENTS": ":9092", "CONTROLLER": ":9093", "HOST": ":9094"}
    assert listeners("KAFKA_ADVERTISED_LISTENERS") == {
        "CLIENTS": f"{KAFKA['hostname']}:9092",
        "HOST": f"127.0.0.1:{HOST_PORT}",
    }
    assert KAFKA["ports"] == [f"127.0.0.1:{HOST_PORT}:9094"]
    assert KAFKA["environment"]["KAFKA_CONTROLLER_QUORUM_VOTERS"] == f"1@{KAFKA['hostname']}:9093"
    assert KAFKA["environment"]["KAFKA_LOG_DIRS"] in KAFKA["volumes"][0]
    for name in ("relay", "worker"):
        assert SERVICES[name]["environment"]["DISPATCHER_KAFKA"] == f"{KAFKA['hostname']}:9092"


def test_topics_are_not_created_by_a_request():
    assert KAFKA["environment"]["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"


def test_a_service_starts_when_the_services_that_it_needs_are_healthy():
    needed = {name: SERVICES[name]["depends_on"] for name in ("relay", "worker")}
    assert {name: set(one) for name, one in needed.items()} == {"relay": {"mongo", "kafka"}, "worker": {"relay"}}
    assert all(one["condition"] == "service_healthy" for each in needed.values() for one in each.values())


def test_workers_can_be_scaled():
    (port,) = SERVICES["worker"]["ports"]
    first, last = re.search(r":-(\d+)-(\d+)}:8787$", port).groups()
    assert int(last) - int(first) >= SERVICES["worker"]["deploy"]["replicas"] > 1


def test_the_image_has_the_client_of_kafka():
    assert "'.[kafka]'" in (ROOT / "Dockerfile").read_text()


# -- the commands ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kafka() -> Iterator[KafkaServer]:
    need_kafka()
    properties = {
        name.removeprefix("KAFKA_").lower().replace("_", "."): value
        for name, value in KAFKA["environment"].items()
        if name not in PLACES
    }
    with running_kafka(properties) as server:
        yield server


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedMongo]:
    """A server for this test only, because the services have the group and the database of the example."""
    with embedded_mongo() as running_server:
        yield running_server


class Services:
    """Starts services of the file."""

    def __init__(self, stack: ExitStack, server: EmbeddedMongo, kafka: KafkaServer, directory: Path) -> None:
        self._stack = stack
        self._server = server
        self._kafka = kafka
        self._directory = directory
        self.ports: dict[str, int] = {}

    def variables(self, service: str, name: str) -> dict[str, str]:
        self.ports[name] = free_port()
        values = environment(service, self._server)
        values["DISPATCHER_HTTP"] = f"127.0.0.1:{self.ports[name]}"
        if "DISPATCHER_KAFKA" in values:
            values["DISPATCHER_KAFKA"] = self._kafka.address
        return values

    def start(self, service: str, name: str) -> subprocess.Popen[bytes]:
        log = self._directory / name
        command = running(SERVICES[service]["command"], self.variables(service, name), log)
        process = self._stack.enter_context(command)
        check = [
            one.replace(":8787/", f":{self.ports[name]}/") for one in SERVICES["relay"]["healthcheck"]["test"][1:]
        ]

        def healthy() -> bool:
            assert process.poll() is None, log.read_text()
            return subprocess.run(check, stderr=subprocess.DEVNULL, check=False).returncode == 0

        eventually_sync(healthy, what=f"{name} is healthy")
        return process

    def call(self, service: str, *command: str) -> str:
        """Returns what the command writes to stderr."""
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=self.variables(service, service),
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stderr
        return done.stderr


@pytest.mark.slow
def test_a_relay_and_workers_deliver_and_the_group_can_go_back_to_a_dispatcher(
    server: EmbeddedMongo, kafka: KafkaServer, tmp_path: Path
):
    """The steps of docs/how-to/compose.md, from the dispatcher to workers and back."""
    written = 0

    def write() -> None:
        nonlocal written
        words = [word.replace(URL, server.url) for word in SERVICES["writer"]["command"]]
        words[words.index("--seconds") + 1] = "2"
        written += int(re.search(r"(\d+) changes written", services.call("writer", *words))[1])
        with MongoClient(server.url) as client:
            audit_trail = client.shop.audit_trail
            eventually_sync(lambda: audit_trail.count_documents({}) >= written, what="all changes are delivered")
            assert audit_trail.count_documents({}) == written

    switch = ("dispatcher", "position", "switch", "examples.shop.app:registry", "--yes")
    with ExitStack() as stack:
        services = Services(stack, server, kafka, tmp_path)
        dispatcher = services.start("dispatcher", "dispatcher")
        write()
        relay = services.start("relay", "relay")
        write()  # so the position of the group passes the start of the relay
        dispatcher.send_signal(signal.SIGTERM)
        assert dispatcher.wait(PATIENCE) == 0
        services.call("worker", *switch)
        workers = [services.start("worker", name) for name in ("first", "second")]
        write()
        workers[0].kill()
        write()
        workers[1].send_signal(signal.SIGTERM)
        assert workers[1].wait(PATIENCE) == 0
        services.call("dispatcher", *switch)
        services.call(
            "dispatcher", "dispatcher", "setup", "examples.shop.app:registry", "--no-images", "--partitions", "1"
        )
        services.start("dispatcher", "later")
        write()
        relay.send_signal(signal.SIGTERM)
        assert relay.wait(PATIENCE) == 0
    with MongoClient(server.url) as client:
        assert client.mongoz_dispatcher.positions.count_documents({"_id": {"$regex": "^default:[0-9]+$"}}) == 1
