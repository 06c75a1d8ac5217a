"""Runs Apache Kafka: one node, or a cluster of several nodes. By default, the data is in a temporary directory.

No server can outlive the process that started it.

`make kafka` fetches Apache Kafka. Apache Kafka needs Java 17.
"""

import re
import shutil
import subprocess
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from dispatcher.embedded.broker import wait_until_answering
from dispatcher.embedded.guardian import HOST, Guardian, Program, free_port, last_plain_error, start
from dispatcher.exceptions import EmbeddedError
from tests.support import PATIENCE, ROOT

_HERE = Path(__file__).parent
_FETCHED = ROOT / ".kafka"
_LIBRARIES = _FETCHED / "lib"
_FORMATTED = _FETCHED / "formatted"
_JAVA = (
    *("java", "-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
    *("-cp", f"{_LIBRARIES}/*", f"-Dlog4j2.configurationFile={_HERE / 'log4j2.properties'}"),
)

_CLUSTER = re.compile(r"(?m)^cluster\.id=(.*)")


def _last_error(log: str, code: int) -> str:
    exceptions = [line for line in log.splitlines() if "Exception: " in line]
    return last_plain_error("\n".join(exceptions) or log, code)


_KAFKA = Program(name="kafka", otherwise="make kafka", last_error=_last_error)


class KafkaServer(NamedTuple):
    """A running Apache Kafka.

    Attributes:
        address: for clients, as `bootstrap.servers`.
        cluster_id: each cluster has an id of its own.
        pid: the process id of the Java process, e.g. to send it a SIGSTOP.
    """

    address: str
    cluster_id: str
    pid: int


def missing() -> str:
    """What is missing for a start, and the command that installs it; empty if nothing is missing."""
    if shutil.which("java") is None:
        return "java is not installed: apt-get install default-jre-headless"
    return "" if _FORMATTED.is_dir() else "Apache Kafka is not there: make kafka"


@contextmanager
def running(
    properties: Mapping[str, object] | None = None,
    *,
    client: Mapping[str, str] | None = None,
    port: int | None = None,
    directory: Path | None = None,
    listeners: Mapping[str, int] = MappingProxyType({}),
    node: "Node | None" = None,
) -> Iterator[KafkaServer]:
    """Run an Apache Kafka during a `with` block. A topic must be created before it is used.

    Args:
        properties: the properties of the broker, e.g. `{"message.max.bytes": 100_000}`. The listener of clients is
            `CLIENTS`.
        client: the properties of librdkafka that a client needs to connect.
        port: the port of the listener `CLIENTS`; a free port by default.
        directory: keeps the data between runs. By default, a temporary directory that is removed at the end.
        listeners: the ports of further listeners, by name. `properties` must name the protocol of each.
        node: describes this server as a node of a cluster (see `running_cluster`); None for a single server.
    """
    if trouble := missing():
        raise EmbeddedError("Apache Kafka can't be started", remedy=trouble)
    cluster_id = _cluster_in(directory) or _new_id()
    if node is not None:
        cluster_id = node.cluster_id
        properties = {**node.properties, **(properties or {})}
    deadline = time.monotonic() + PATIENCE

    def command(port: int, directory: Path) -> list[str]:
        _prepare(directory, {"CLIENTS": port, **listeners}, cluster_id, properties or {})
        return [*_JAVA, "kafka.Kafka", str(directory / "server.properties")]

    def wait(guardian: Guardian) -> None:
        wait_until_answering(guardian, cluster_id, deadline, client or {})

    guardian = start(_KAFKA, command, wait, port=port, directory=directory)
    try:
        yield KafkaServer(guardian.address, cluster_id, guardian.pid)
    finally:
        guardian.stop()


class Node(NamedTuple):
    """A node of a cluster. The first node is also the controller.

    Attributes:
        number: from 1.
        controller: the port of the controller.
    """

    number: int
    cluster_id: str
    controller: int

    @property
    def properties(self) -> dict[str, object]:
        """The properties of the server of this node."""
        voters = {"controller.quorum.voters": f"1@{HOST}:{self.controller}", "node.id": self.number}
        return voters if self.number == 1 else {**voters, "process.roles": "broker"}


@contextmanager
def running_cluster(nodes: int = 3) -> Iterator[list[KafkaServer]]:
    """Run a cluster during a `with` block.

    A test may kill each node but the first one, which is the controller.
    """
    cluster_id, controller = _new_id(), free_port()
    with ExitStack() as stack:
        yield [
            stack.enter_context(running(node=Node(number, cluster_id, controller)))
            for number in range(1, nodes + 1)
        ]


def _new_id() -> str:
    return urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")


def _cluster_in(directory: Path | None) -> str | None:
    """The id of the cluster whose data a directory holds; None without data."""
    meta = None if directory is None else directory / "data" / "meta.properties"
    if meta is None or not meta.exists():
        return None
    found = _CLUSTER.search(meta.read_text())
    return None if found is None else found[1]


def _prepare(
    directory: Path, listeners: Mapping[str, int], cluster_id: str, properties: Mapping[str, object]
) -> None:
    """Write the properties of a server.

    A new server also gets a copy of the formatted storage, with its cluster id, its node id and a new
    directory id.
    """
    data = directory / "data"
    if _cluster_in(directory) is None:
        shutil.copytree(_FORMATTED, data)
        meta = data / "meta.properties"
        text = _CLUSTER.sub(f"cluster.id={cluster_id}", meta.read_text())
        number = properties.get("node.id", 1)
        text = re.sub(r"(?m)^node\.id=.*", f"node.id={number}", text)
        meta.write_text(re.sub(r"(?m)^directory\.id=.*", f"directory.id={_new_id()}", text))
    voters = str(properties.get("controller.quorum.voters", f"1@{HOST}:{free_port()}"))
    controller = {} if properties.get("process.roles") == "broker" else {"CONTROLLER": voters.rpartition(":")[2]}
    ports: dict[str, object] = {**listeners, **controller}
    own = {
        "log.dirs": data,
        "listeners": ",".join(f"{name}://{HOST}:{port}" for name, port in ports.items()),
        "controller.quorum.voters": voters,
        **properties,
    }
    lines = [(_HERE / "server.properties").read_text(), *(f"{key}={value}\n" for key, value in own.items())]
    (directory / "server.properties").write_text("".join(lines))


def format_storage() -> None:
    """Make the empty storage. Each server gets a copy of it, so a start takes one Java process, not two."""
    shutil.rmtree(_FORMATTED, ignore_errors=True)
    configuration = _FETCHED / "format.properties"
    ports = f"listeners=CLIENTS://{HOST}:9092,CONTROLLER://{HOST}:9093\ncontroller.quorum.voters=1@{HOST}:9093\n"
    template = (_HERE / "server.properties").read_text()
    configuration.write_text(f"{template}{ports}log.dirs={_FORMATTED}\n")
    command = [
        *_JAVA,
        "kafka.tools.StorageTool",
        "format",
        "-t",
        "AAAAAAAAAAAAAAAAAAAAAA",
        "-c",
        str(configuration),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    format_storage()
