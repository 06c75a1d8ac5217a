"""Looks at a topic and at the relay's saved position every two seconds.

No message tells a reader that the topic was deleted, that a new topic has its name, or that records were removed
from a quiet partition.
"""

import asyncio
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Final, NamedTuple

from pymongo.errors import PyMongoError

from dispatcher.core.driver_errors import in_short, raise_if_fatal
from dispatcher.core.output.logs import log
from dispatcher.core.resume_tokens import token_time
from dispatcher.core.retry import pause_after
from dispatcher.exceptions import DispatcherError, KafkaError, TopicError
from dispatcher.kafka.acceptance import LogPosition
from dispatcher.kafka.admin import Admin
from dispatcher.kafka.config import KafkaConfig
from dispatcher.kafka.coverage import interrupted
from dispatcher.kafka.relay_state import RelayState, RelayStore
from dispatcher.kafka.topics import (
    TopicFacts,
    TopicLayout,
    read_offsets,
    read_topic,
    require_layout,
    require_usable,
)
from dispatcher.stream.scope import Scope

# Seconds between two looks.
_EVERY: Final = 2.0

# Seconds without a successful look after which the topic counts as unreachable.
_SILENCE: Final = 5.0


class Look(NamedTuple):
    """The topic and the relay's position at one moment, for one partition.

    Attributes:
        topic_id: distinguishes the topic from an earlier one with the same name.
        beginning: the offset of the first record that the log holds. It was read before `relay`.
        term: the highest term that was given to a relay.
        relay: the relay's saved position.
    """

    topic_id: str
    beginning: int
    term: int
    relay: LogPosition


class _TopicLook(NamedTuple):
    """A `Look` at all partitions.

    Attributes:
        asked: the time before the first request, by the monotonic clock.
    """

    asked: float
    facts: TopicFacts
    beginnings: Sequence[int]
    relay: RelayState


class _NotNow(TopicError):
    """The topic can't be used at this moment, because an operator or the relay is changing it."""


def _may_pass(error: DispatcherError) -> bool:
    """Returns whether a later look may succeed: the brokers can't answer now, or the topic is being changed."""
    if isinstance(error, TopicError):
        return isinstance(error, _NotNow) or error.__cause__ is not None
    return isinstance(error, KafkaError)


def _ignore() -> None:
    """Do nothing."""


class TopicWatch:
    """Looks at one topic.

    Args:
        relay: the state of the relay.
        address: the address of the server with the state, for messages.
        on_failure: called when the topic can't be used any more.
    """

    def __init__(
        self,
        config: KafkaConfig,
        topic: str,
        relay: RelayStore,
        *,
        address: str,
        on_failure: Callable[[], None] = _ignore,
    ) -> None:
        self._config = config
        self.topic = topic
        self._relay = relay
        self._address = address
        self._on_failure = on_failure
        self._admin: Admin | None = None
        self._looking = asyncio.Lock()
        self._scope: Scope | None = None
        self._newest: _TopicLook | None = None
        self._failure: DispatcherError | None = None
        self._trouble = ""

    async def open(self) -> None:
        """Connect to the brokers, and check the topic.

        Raises:
            KafkaError: no broker answers, or it refuses the user.
            TopicError: the topic or the relay can't be used.
        """
        self._admin = self._config.admin()
        self._newest = await self._look()

    def keep_covered(self, scope: Scope) -> None:
        """Require that the relay continues to publish these collections. If not, the topic counts as unusable."""
        self._scope = scope

    @property
    def facts(self) -> TopicFacts:
        """The topic at the last look."""
        assert self._newest is not None  # it is open
        return self._newest.facts

    @property
    def layout(self) -> TopicLayout:
        """The layout of the topic at the last look."""
        return self.facts.layout

    @property
    def relay(self) -> RelayState:
        """The state of the relay at the last look."""
        assert self._newest is not None  # it is open
        return self._newest.relay

    @property
    def connected(self) -> bool:
        """Returns whether the brokers and the server answer."""
        return self._newest is not None and monotonic() - self._newest.asked < _SILENCE

    @property
    def trouble(self) -> str:
        """The reason why the topic can't be used now; empty if it can be used."""
        if self._failure is not None:
            return self._failure.message
        if self.connected:
            return ""
        return self._trouble or f"no answer about the topic {self.topic!r} for more than {_SILENCE:.0f} s"

    @property
    def retention(self) -> float | None:
        """Seconds for which the topic keeps a record; None if this time is unknown or has no limit."""
        return None if self._newest is None else self._newest.facts.retention_limit

    def lag(self, partition: int, topic_id: str, offset: int) -> int | None:
        """The number of records between an offset and the relay's position; None if the number is unknown."""
        if self._newest is None or self._newest.facts.layout.id != topic_id:
            return None
        return max(0, self._newest.relay.position.marks[partition].offset - offset)

    def newest(self, partition: int) -> Look:
        """The last look at a partition.

        Raises:
            DispatcherError: the topic can't be used any more.
        """
        self.require_usable()
        assert self._newest is not None  # it is open
        _, facts, beginnings, relay = self._newest
        return Look(facts.layout.id, beginnings[partition], relay.term, relay.position.of(partition))

    def require_usable(self) -> None:
        """Raise the error that has made the topic unusable, if there is one."""
        if self._failure is not None:
            raise self._failure

    async def look(self, partition: int) -> Look:
        """Wait for a look that begins after this call, and return it."""
        now, failures = monotonic(), 0
        while self._failure is None and self._newest is not None and self._newest.asked < now:
            async with self._looking:
                if self._newest.asked < now:
                    failures = await self._try_to_look(failures)
            if failures:
                await asyncio.sleep(pause_after(failures))
        return self.newest(partition)

    async def run(self) -> None:
        """Look regularly. Runs until the topic can't be used any more."""
        failures = 0
        while self._failure is None:
            await asyncio.sleep(max(_EVERY, pause_after(failures)))
            async with self._looking:
                failures = await self._try_to_look(failures)

    async def _try_to_look(self, failures: int) -> int:
        """Look once. Returns the number of failed looks in sequence."""
        try:
            before, self._newest = self._newest, await self._look()
            assert before is not None  # it is open
            known = before.facts.layout.partitions
            if known != self._newest.facts.layout.partitions:
                raise self._other_number(known)
            self._require_covered(before.relay, self._newest.relay)
        except DispatcherError as error:
            if not _may_pass(error):
                self._fail(error)
                return failures
            trouble = error.message
        except PyMongoError as error:
            try:
                raise_if_fatal(error, self._address)
            except DispatcherError as fatal:
                self._fail(fatal)
                return failures
            trouble = in_short(error)
        else:
            if failures:
                log.info("the topic can be read again", action="topic.seen", topic=self.topic, failures=failures)
            self._trouble = ""
            return 0
        self._trouble = trouble
        log.warning(
            "the topic or the relay's position can't be read now, trying again",
            action="topic.not_seen",
            topic=self.topic,
            error=trouble,
            failures=failures + 1,
        )
        return failures + 1

    def _require_covered(self, before: RelayState, now: RelayState) -> None:
        """Require that the relay has published the collections without an interruption."""
        names = [] if self._scope is None else interrupted(self._scope, before, now)
        if names:
            raise TopicError(
                f"The relay has not published all changes of {', '.join(names)} to the topic {self.topic!r} since "
                f"{token_time(before.position.token).as_datetime().isoformat()}.",
                remedy="Start `dispatcher relay` with this application too. To deliver the changes that the topic "
                "lacks, let the group read from change streams for a while: `dispatcher position switch`.",
            )

    def _fail(self, error: DispatcherError) -> None:
        self._failure = error
        self._on_failure()

    async def _look(self) -> _TopicLook:
        """Read the topic, then the beginnings of its partitions, then the relay's position."""
        asked, admin = monotonic(), self._admin
        assert admin is not None  # it is open
        facts = await read_topic(admin, self.topic)
        if facts is None:
            raise _NotNow(
                f"The topic {self.topic!r} does not exist at {self._config.servers}.",
                remedy="Start `dispatcher relay`, which creates it. Is --kafka-topic the topic of the relay?",
            )
        require_usable(facts, "READ")
        partitions = facts.layout.partitions
        beginnings = await self.offsets(range(partitions))
        relay = await self._relay.load()
        if relay is None:
            raise self._no_relay()
        if relay.topic.cluster != facts.layout.cluster:
            require_layout(facts, relay.topic)
        if relay.topic.id != facts.layout.id:
            raise _NotNow(
                f"The topic {self.topic!r} has the id {facts.layout.id}, and the relay publishes to an earlier "
                f"one with the id {relay.topic.id}.",
                remedy="Look at the log of the relay: it must continue with this topic.",
            )
        if relay.topic.partitions != partitions:
            raise self._other_number(relay.topic.partitions)
        return _TopicLook(asked, facts, beginnings, relay)

    async def offsets(
        self, partitions: Sequence[int], *, since: float | None = None, end: bool = False
    ) -> list[int]:
        """The offset of the first record in each partition; with `end`, the offset after the last one.

        With `since`, only records that were appended since this time count. See `topics.read_offsets`.

        Raises:
            KafkaError: no broker answers, or it refuses the request.
        """
        assert self._admin is not None  # it is open
        return await read_offsets(self._admin, self.topic, partitions, since=since, end=end)

    def _no_relay(self) -> TopicError:
        return TopicError(
            f"No relay has saved a position for the topic {self.topic!r} in the state at {self._address}.",
            remedy="Start `dispatcher relay` first, with the same --kafka and the same state database.",
        )

    def _other_number(self, known: int) -> TopicError:
        return TopicError(
            f"The topic {self.topic!r} has another number of partitions than {known}: documents would change "
            "their partition, and their order would break.",
            remedy="The number of partitions of a topic can't be changed. Use another topic for another number.",
        )
