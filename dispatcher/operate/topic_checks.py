"""The checks of Kafka, for a dispatcher that reads a topic and for the relay that publishes to it."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Final, NamedTuple

from dispatcher.core.oplog import Oplog
from dispatcher.core.partitions import name_partitions
from dispatcher.core.resume_tokens import token_time
from dispatcher.core.state import Group, State
from dispatcher.core.stats import duration
from dispatcher.exceptions import DispatcherError, GroupTaken, PositionError, TopicError
from dispatcher.group.origin import TopicOrigin
from dispatcher.kafka.acceptance import LogPosition, resume
from dispatcher.kafka.config import KafkaConfig, config_of
from dispatcher.kafka.foreign import foreign_among, last_records
from dispatcher.kafka.looks import TopicWatch
from dispatcher.kafka.relay_state import RelayStore
from dispatcher.kafka.topics import (
    PARTITIONS,
    TopicFacts,
    TopicLayout,
    read_topic,
    require_prepared,
    weaknesses,
)
from dispatcher.operate.findings import Finding
from dispatcher.operate.member_status import members_of
from dispatcher.operate.server_checks import HEADROOM
from dispatcher.position.documents import Position, SavedPositions
from dispatcher.position.store import PositionStore
from dispatcher.settings import Settings
from dispatcher.stream.scope import Scope

# Maximum number of collections in a finding.
_MOST_NAMES: Final = 5


class TopicChecks(NamedTuple):
    """Checks of the topic that the settings name."""

    state: State
    settings: Settings

    # -- for the relay ---------------------------------------------------------------------------------------

    async def for_relay(
        self, oplog: Oplog | None, require_own: Callable[[KafkaConfig, TopicFacts], Awaitable[None]]
    ) -> AsyncIterator[Finding]:
        """The checks for a relay. An error ends the checks.

        Args:
            require_own: raises a `TopicError` if the topic belongs to another relay.
        """
        try:
            config = config_of(self.settings)
            facts = await read_topic(config.admin(), self.settings.kafka_topic)
            saved = await self._relays.load()
            known = None if saved is None else saved.topic
            if facts is None:
                yield self._missing(config, known)
                return
            yield _brokers(config, facts)
            require_prepared(facts, self.settings.partitions, known)
            await require_own(config, facts)
        except DispatcherError as error:
            yield failed(error)
            return
        for finding in self._topic(facts, oplog):
            yield finding
        publisher = await self._publisher()
        yield publisher or Finding("ok", "relay", f"No other relay publishes to {self.settings.kafka_topic!r}")

    def _missing(self, config: KafkaConfig, known: TopicLayout | None) -> Finding:
        topic, servers = self.settings.kafka_topic, config.servers
        if known is not None:
            return Finding(
                "error",
                "topic",
                f"The topic {topic!r} was deleted at {servers}. Its records are lost",
                "With --on-history-lost resume, the relay creates a new topic, and records a gap.",
            )
        count = self.settings.partitions or PARTITIONS
        return Finding(
            "ok", "topic", f"The topic {topic!r} does not exist yet: the relay creates it with {count} partitions"
        )

    # -- for a dispatcher --------------------------------------------------------------------------------------

    async def origin(self) -> TopicOrigin:
        """The topic as the source of a group.

        Raises:
            KafkaError: no broker answers, or a broker refuses the user.
            TopicError: the topic or the relay can't be used.
        """
        watch = TopicWatch(
            config_of(self.settings), self.settings.kafka_topic, self._relays, address=self.state.address
        )
        await watch.open()
        return TopicOrigin(watch)

    async def for_dispatcher(
        self, origin: TopicOrigin, scope: Scope, saved: SavedPositions, oplog: Oplog | None
    ) -> AsyncIterator[Finding]:
        """The checks for a dispatcher whose group has these positions."""
        facts = origin.watch.facts
        yield _brokers(config_of(self.settings), facts)
        for finding in self._topic(facts, oplog):
            yield finding
        yield await self._publisher() or self._idle(origin.watch, oplog)
        missing = list(origin.uncovered(scope, saved))
        for error in missing:
            yield failed(error)
        if not missing:
            yield Finding("ok", "relay", f"It publishes {names_in(scope)}")
        if not facts.is_of_development_broker:
            for finding in _positions(origin.watch, saved, oplog):
                yield finding
        async for finding in self._records(origin.watch):
            yield finding

    def _idle(self, watch: TopicWatch, oplog: Oplog | None) -> Finding:
        """The finding that no process publishes."""
        text = f"No relay publishes to {self.settings.kafka_topic!r} now. Changes wait in the oplog"
        if oplog is not None:
            headroom = oplog.headroom(float(token_time(watch.relay.position.token).time))
            text += f", which holds them for another {duration(headroom)}"
        return Finding("warning", "relay", text, "Start `dispatcher relay`.")

    async def _records(self, watch: TopicWatch) -> AsyncIterator[Finding]:
        """Look for records of other programs among the last records of the partitions."""
        if watch.facts.is_of_development_broker:  # such a broker does not know the end of a log
            return
        numbers = range(watch.layout.partitions)
        ends = await watch.offsets(numbers, end=True)
        last = {number: ends[number] - 1 for number in numbers if ends[number] > watch.newest(number).beginning}
        records = await last_records(config_of(self.settings), watch.topic, last)
        relay = await self._relays.load()
        found = list(foreign_among(watch.topic, records, 0 if relay is None else relay.term))
        for error in found:
            yield failed(error)
        if not found and records:
            yield Finding(
                "ok", "topic", f"The last records of its {len(records)} partitions are those of the relay"
            )

    # -- for both ----------------------------------------------------------------------------------------------

    @property
    def _relays(self) -> RelayStore:
        return RelayStore(self.state, self.settings.kafka_topic)

    def _topic(self, facts: TopicFacts, oplog: Oplog | None) -> Iterator[Finding]:
        """The findings about the topic itself."""
        yield Finding("ok", "topic", f"The topic {facts.layout.topic!r} has {facts.layout.partitions} partitions")
        for one in weaknesses(facts, None if oplog is None else oplog.window):
            yield Finding("warning", "topic", f"{one.text[0].upper()}{one.text[1:]}", one.remedy)

    async def _publisher(self) -> Finding | None:
        """The process that publishes to the topic; None if there is none."""
        topic = self.settings.kafka_topic
        group = Group(self.state, topic)
        held = (await PositionStore(group, "check").load()).positions.get(0)
        for one in await members_of(group):
            if held is not None and one.alive and one.id == held.owner:
                return Finding("ok", "relay", f"The process {one.pid} on {one.host} publishes to {topic!r}")
        return None


def names_in(scope: Scope) -> str:
    """The watched collections and patterns, for people."""
    names = [*map(".".join, scope.namespaces), *map(str, scope.patterns)]
    more = len(names) - _MOST_NAMES
    return ", ".join(names) if more <= 0 else f"{', '.join(names[:_MOST_NAMES])} and {more} more"


def _brokers(config: KafkaConfig, facts: TopicFacts) -> Finding:
    count = f"{facts.brokers} broker{'' if facts.brokers == 1 else 's'}"
    return Finding("ok", "kafka", f"{count} of the cluster {facts.layout.cluster!r} at {config.servers}")


def failed(error: DispatcherError) -> Finding:
    """The finding about an error, under the name of the part that is wrong."""
    topic = "kafka"
    if isinstance(error, GroupTaken):
        topic = "application"
    elif isinstance(error, TopicError):
        topic = "topic"
    elif isinstance(error, PositionError):
        topic = "position"
    return Finding.of(topic, error)


def _positions(watch: TopicWatch, saved: SavedPositions, oplog: Oplog | None) -> Iterator[Finding]:
    """The finding that says whether the log still holds the records after the positions of a group."""
    begun = [one for one in saved.positions.values() if one.token is not None]
    if not begun:
        yield Finding("ok", "position", "No position is saved: the first run delivers the changes after its start")
        return
    lost = [one for one in begun if _is_lost(watch, one)]
    oldest = min(float(token_time(one.token).time) for one in begun if one.token is not None)
    if lost:
        numbers = name_partitions(one.partition for one in lost)
        text = f"The topic does not hold all records after the position any more, in {numbers}"
        if oplog is not None and oplog.headroom(oldest) > 0:
            remedy = "Run a dispatcher now: it reads the missing changes from the oplog, which still holds them."
            yield Finding("warning", "position", text, remedy)
        else:
            yield Finding("error", "position", text, "See --on-history-lost in `dispatcher run --help`.")
        return
    age = 0.0 if oplog is None else max(0.0, oplog.ends - oldest)
    retention = watch.facts.retention
    if retention is None or oplog is None or retention == float("inf"):
        yield Finding("ok", "position", "The topic holds all records after the position")
        return
    text = f"It is {duration(age)} old, and the topic keeps records for {duration(retention)}"
    if retention - age < max(HEADROOM, 2 * age):
        yield Finding(
            "warning",
            "position",
            f"{text}: the retention is too short for the lag",
            "Run a dispatcher now, and raise retention.ms of the topic.",
        )
    else:
        yield Finding("ok", "position", text)


def _is_lost(watch: TopicWatch, position: Position) -> bool:
    """Returns whether the log has lost records after a position. Lost records that no reader needs don't count."""
    if position.place is None or position.token is None:
        return False
    look = watch.newest(position.partition)
    if position.place.topic_id != look.topic_id:
        return True
    place = LogPosition(*position.place[1:], token=position.token)
    if look.beginning <= place.offset:
        return False
    return resume(place, look.relay, look.beginning)[1:3] != place[1:3]
