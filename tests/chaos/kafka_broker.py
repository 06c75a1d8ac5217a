"""An Apache Kafka that can be killed. Each client reaches it through a link of its own, and can be cut off.

client ──> link ──> listener of the broker, which advertises the address of the link

A proxy between the link and the listener of a relay can lose produce requests.
"""

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from confluent_kafka import TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
)

from tests.chaos.links import Link, Links
from tests.kafka.proxy import KafkaProxy, kafka_proxied
from tests.kafka.server import KafkaServer, running
from tests.support import PATIENCE, free_port

__all__ = ["Broker", "broker"]

_HOST: Final = "127.0.0.1"


class Broker:
    """One broker, which keeps its data when it is killed.

    Args:
        directory: for its data.
        ports: the ports of its listeners for the clients.
        links: the links of the clients, in the order of `ports`.
        proxies: the proxies that can lose produce requests, one per relay.
    """

    def __init__(
        self, directory: Path, ports: Sequence[int], links: Sequence[Link], proxies: Sequence[KafkaProxy]
    ) -> None:
        self.links = links
        self._proxies = proxies
        self._directory = directory
        self._port = free_port()
        self._listeners = {f"CLIENT{number}": port for number, port in enumerate(ports)}
        self._run = ExitStack()
        self._server: KafkaServer | None = None
        self._admin: AdminClient | None = None

    def start(self) -> None:
        """Starts the broker on its data."""
        ports = {
            "CLIENTS": self._port,
            **dict(zip(self._listeners, (one.port for one in self.links), strict=True)),
        }
        properties = {
            "advertised.listeners": ",".join(f"{name}://{_HOST}:{port}" for name, port in ports.items()),
            "listener.security.protocol.map": ",".join(f"{name}:PLAINTEXT" for name in (*ports, "CONTROLLER")),
        }
        self._server = self._run.enter_context(
            running(properties, port=self._port, directory=self._directory, listeners=self._listeners)
        )

    def kill(self) -> None:
        """Ends the broker with SIGKILL."""
        self.send_signal(signal.SIGKILL)
        self.end()

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process."""
        assert self._server is not None  # it has started
        os.kill(self._server.pid, number)

    def end(self) -> None:
        """Ends the broker, if it runs."""
        self._run.close()

    @property
    def lost(self) -> int:
        """The number of lost produce requests."""
        return sum(one.lost for one in self._proxies)

    def lose_produce_requests(self, count: int) -> None:
        """Loses the next produce requests of each relay."""
        for one in self._proxies:
            one.lose_produce_requests(count)

    def remove_records(self, topic: str, ends: Mapping[int, int]) -> None:
        """Removes the first records of partitions, as retention does.

        Args:
            ends: by partition, the offset of the first record that stays.
        """
        until = [TopicPartition(topic, number, offset) for number, offset in ends.items()]
        for done in self._client.delete_records(until, request_timeout=PATIENCE).values():
            done.result(PATIENCE)

    def configure(self, topic: str, **values: str) -> None:
        """Changes the configuration of a topic; in the names, underscores stand for dots."""
        entries = [
            ConfigEntry(name.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET)
            for name, value in values.items()
        ]
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=entries)
        for done in self._client.incremental_alter_configs([resource], request_timeout=PATIENCE).values():
            done.result(PATIENCE)

    @property
    def _client(self) -> AdminClient:
        if self._admin is None:
            self._admin = AdminClient({"bootstrap.servers": f"{_HOST}:{self._port}", "log_level": 0})
        return self._admin


@contextmanager
def broker(directory: Path, links: Links, *, relays: int, workers: int) -> Iterator[Broker]:
    """A broker that ends with the block.

    Args:
        directory: for its data.
        links: makes the links: first those of the relays, then those of the workers.
    """
    with ExitStack() as opening:
        ports = [free_port() for _ in range(relays + workers)]
        between = [free_port() for _ in range(relays)]
        proxies = [
            opening.enter_context(kafka_proxied(*both)) for both in zip(ports[:relays], between, strict=True)
        ]
        made = Broker(directory, ports, [links.to(port) for port in (*between, *ports[relays:])], proxies)
        opening.callback(made.end)
        made.start()
        yield made
