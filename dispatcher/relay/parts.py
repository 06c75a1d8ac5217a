"""The objects that the work of a relay gets from its process."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from pymongo import AsyncMongoClient

from dispatcher.core.state import Group
from dispatcher.core.stats import RelayFigures, Stats
from dispatcher.kafka.config import KafkaConfig
from dispatcher.kafka.topics import WeaknessLog
from dispatcher.settings import Settings
from dispatcher.stream.scope import Scope


class RelayParts(NamedTuple):
    """The deployment, the brokers and the settings of a relay.

    Attributes:
        group: the relay as a group of one partition. The group has the name of the topic.
        watching: the client for change streams, opened for the running loop.
        scope: the published collections. It is `hashed`: events of documents have the hash that decides the
            partition.
        names: the published collections and patterns, by their names in the state.
        partitions: the requested number of partitions of the topic. None keeps the number of an existing topic,
            and gives a new topic the default number.
        weaknesses: logs the weaknesses of the topic.
    """

    group: Group
    watching: AsyncMongoClient[Any]
    scope: Scope
    names: Sequence[str]
    config: KafkaConfig
    partitions: int | None
    settings: Settings
    stats: Stats
    weaknesses: WeaknessLog

    @property
    def figures(self) -> RelayFigures:
        """The figures of the relay."""
        assert self.stats.relay is not None  # `RelayService` has set them
        return self.stats.relay

    @property
    def topic(self) -> str:
        """The name of the topic."""
        return self.group.name
