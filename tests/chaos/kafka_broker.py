"""An Apache Kafka that clients reach only through a link and a proxy. So it can be killed and cut off.

client ──> link, which knows the clients ──> proxy, which knows the requests ──> broker
"""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
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
        link: between the clients and the broker.
        proxy: behind the link.
        port: of the broker itself.
        directory: for its data.

    Attributes:
        address: for clients.
    """

    def __init__(self, link: Link, proxy: KafkaProxy, port: int, directory: Path) -> None:
        self.link = link
        self.proxy = proxy
        self.address = f"{_HOST}:{link.port}"
        self._port = port
        self._directory = directory
        self._run = ExitStack()
        self._server: KafkaServer | None = None
        self._admin: AdminClient | None = None

    def start(self) -> None:
        """Starts it on its data."""
        advertised = {"advertised.listeners": f"CLIENTS://{self.address}"}
        self._server = self._run.enter_context(running(advertised, port=self._port, directory=self._directory))

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)
        self.end()

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process."""
        assert self._server is not None  # it has started
        os.kill(self._server.pid, number)

    def end(self) -> None:
        """Ends it, if it runs."""
        self._run.close()

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
            self._admin = AdminClient({"bootstrap.servers": self.address, "log_level": 0})
        return self._admin


@contextmanager
def broker(directory: Path, links: Links, who: Callable[[int], str]) -> Iterator[Broker]:
    """A broker that ends with the block.

    Args:
        directory: for its data.
        links: makes the link.
        who: returns the name of a client by its local port, see `Link`.
    """
    port, own_port = free_port(), free_port()
    with kafka_proxied(port, own_port) as proxy:
        made = Broker(links.to(own_port, who), proxy, port, directory)
        try:
            made.start()
            yield made
        finally:
            made.end()
