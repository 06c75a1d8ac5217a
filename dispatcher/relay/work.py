"""The work of a relay while it holds its lease: reads the change stream, and publishes the events to the topic.

The work is divided into terms. Each term has its own producer, and begins at the saved position. A term ends if
a record is not acknowledged, or if the lease can't be renewed in time.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from time import monotonic, time
from typing import Final

from dispatcher.core.lease import Lease
from dispatcher.core.output.logs import log
from dispatcher.core.resume_tokens import token_time
from dispatcher.core.retry import pause_after, retry
from dispatcher.core.stats import Gauges, Lag, TopicGauges
from dispatcher.core.tasks import Interrupted, end
from dispatcher.exceptions import KafkaError, TopicError
from dispatcher.kafka.relay_state import NO_RECORD, RelayPosition, RelayState, RelayStore
from dispatcher.kafka.topics import TopicFacts, prepared_topic
from dispatcher.position.documents import Position
from dispatcher.position.gaps import Gap, Gaps
from dispatcher.position.store import PositionStore
from dispatcher.relay.parts import RelayParts
from dispatcher.relay.saver import PositionSaver
from dispatcher.relay.term import Term, TermStart
from dispatcher.stream.change_stream import ChangeStreamSource
from mongoz.signals.options import Retry

# Pauses between requests to the brokers. They are short, because each request waits some seconds for an answer.
_ASK_AGAIN: Final = Retry(base=0.1, cap=1.0)

# Seconds for the last save, after the grace period.
_SAVE_PATIENCE = 10.0


class RelayWork:
    """The work of the holder of the lease.

    Args:
        store: the store of the group's position. Operators see the relay's position there, and may move it.
        position: the position of the group when this process got the lease. It has a token.
    """

    def __init__(self, parts: RelayParts, store: PositionStore, lease: Lease, position: Position) -> None:
        self._parts = parts
        self._store = store
        self._lease = lease
        self._moved_to = position.token if position.fingerprint == "" else None
        assert position.token is not None
        self._claimed_at = self._reached = position.token
        self._relays = RelayStore(parts.group.state, parts.topic)
        self._term: Term | None = None
        self._saver: PositionSaver | None = None
        self._lag = Lag()
        self._began = monotonic()
        self._trouble = ""

    # -- terms ---------------------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> None:
        """Publish until `stop` is set or the lease is lost."""
        stopped = asyncio.create_task(stop.wait(), name="wait-for-stop")
        lost = asyncio.create_task(self._lease.lost.wait(), name="wait-for-loss")
        working = asyncio.create_task(self._publish_in_terms(stop), name="publish")
        try:
            await asyncio.wait([working, stopped, lost], return_when=asyncio.FIRST_COMPLETED)
            if stopped.done() and self._term is not None:
                patience = self._parts.settings.grace + _SAVE_PATIENCE
                await asyncio.wait([working, lost], timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end([working, stopped, lost])
        if not working.cancelled():
            working.result()

    async def _publish_in_terms(self, stop: asyncio.Event) -> None:
        failures, before, cause = 0, None, "lease"
        while not stop.is_set():
            try:
                await self._lease.held()
            except Interrupted:
                return
            term = await self._next_term(before, cause)
            if term is None:  # another process has begun a term; this process has the lease, so it takes over
                before, cause = None, "replaced"
                continue
            saver = PositionSaver(self._parts, self._relays, self._store, self._lease, term.number, term.ledger)
            self._term, self._saver = term, saver
            try:
                await term.run(stop, saver)
            finally:
                self._term, self._reached = None, term.ledger.token
            before = term
            failures = 0 if term.has_moved else failures + 1
            cause = "topic" if term.has_lost_topic else "error" if term.failure else "lease"
            if term.failure:
                self._trouble = term.failure
                log.warning(
                    "a record was not acknowledged; the relay publishes again from its position, in a new term",
                    action="relay.term_failed",
                    term=term.number,
                    error=term.failure,
                    failures=failures,
                )
                await asyncio.sleep(pause_after(failures))

    async def _next_term(self, before: Term | None, cause: str) -> Term | None:
        """Begin a term. Returns None if another process has begun a term after `before`.

        Args:
            before: the previous term, if this process began it; otherwise None.
            cause: the cause of the term, see `RelayFigures`.
        """
        parts, address = self._parts, self._parts.group.state.address
        report = partial(
            log.warning, "the state of the relay can't be read now, trying again", action="relay.state_not_read"
        )
        saved = await retry(self._relays.load, report, address=address)
        facts = await self._prepare(saved)
        source = ChangeStreamSource(
            parts.watching,
            parts.scope,
            batch_size=parts.settings.batch_size,
            address=address,
            stats=parts.stats,
        )
        nothing = (NO_RECORD,) * facts.layout.partitions
        if saved is None:
            first = RelayPosition(self._claimed_at, "", nothing)
            since = dict.fromkeys(parts.names, self._claimed_at)
            await retry(partial(self._relays.begin, facts.layout, first, since), report, address=address)
            saved = await retry(self._relays.load, report, address=address)
            assert saved is not None  # only an operator can delete it
        since = await self._since(saved, source, report)
        position = None if before is None else before.ledger.position
        if saved.topic.id != facts.layout.id:
            position = (position or saved.position)._replace(marks=nothing)
            await self._record_lost_topic(facts, position.token)
        mine = None if before is None else before.number
        taking = partial(self._relays.take_term, facts.layout, since, term=mine, position=position)
        state = await retry(taking, report, address=address)
        if state is None:
            return None
        await retry(
            partial(self._relays.note_retention, state.term, facts.retention_limit), report, address=address
        )
        parts.figures.term = state.term
        parts.figures.terms[cause] += 1
        log.info(
            "a term of the relay begins",
            action="relay.term",
            topic=parts.topic,
            term=state.term,
            cause=cause,
            partitions=facts.layout.partitions,
            position=token_time(state.position.token).as_datetime().isoformat(),
        )
        return Term(parts, self._lease, TermStart(source, facts, state, self._move(state)), self._lag)

    async def _record_lost_topic(self, facts: TopicFacts, token: str) -> None:
        """Record a gap: the records of an earlier topic are lost. Readers of the topic notice the loss."""
        until = token_time(token)
        text = (
            f"the topic {self._parts.topic!r} was deleted and created again: the changes up to "
            f"{until.as_datetime().isoformat()} are lost for dispatchers that had not read them"
        )
        gaps = Gaps(self._parts.group, self._parts.stats)
        await gaps.record(Gap("history_lost", facts.layout.id, text, None, None, until, "resume"))

    def _move(self, state: RelayState) -> str | None:
        """The token to which an operator has moved the relay's position; None if it was not moved forward."""
        token, self._moved_to = self._moved_to, None
        if token is not None and token < state.position.token:
            log.warning(
                "the position of a relay can't be moved back: its readers have read the events already",
                action="relay.not_moved",
                remedy="Move the position of a group of dispatchers, or use `dispatcher replay`.",
            )
        return token if token is not None and token > state.position.token else None

    async def _prepare(self, saved: RelayState | None) -> TopicFacts:
        """Prepare the topic. While no broker answers, try again."""
        parts, failures = self._parts, 0
        while True:
            try:
                facts = await prepared_topic(
                    parts.config,
                    parts.topic,
                    parts.partitions,
                    None if saved is None else saved.topic,
                    continues=parts.settings.on_history_lost != "fail",
                )
            except TopicError:
                raise
            except KafkaError as error:
                failures += 1
                self._trouble = error.message
                log.warning(error.message, action="kafka.not_reached", remedy=error.remedy, failures=failures)
            else:
                return facts
            await asyncio.sleep(pause_after(failures, _ASK_AGAIN))

    async def _since(
        self, saved: RelayState, source: ChangeStreamSource, report: Callable[..., object]
    ) -> dict[str, str]:
        """The token since which each collection is published.

        For a new collection, the token is later than the tokens of all published events: readers drop an event
        if its token is earlier than the token of an event before it.
        """
        names = self._parts.names
        since = {name: saved.since[name] for name in names if name in saved.since}
        if len(since) < len(names):
            token = await retry(source.token_now, report, address=self._parts.group.state.address)
            since.update((name, token) for name in names if name not in since)
        return since

    # -- figures -------------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Returns whether the change stream is open."""
        return self._term is not None and self._term.connected

    @property
    def position(self) -> str:
        """The token of the position."""
        return self._reached if self._term is None else self._term.ledger.token

    @property
    def trouble(self) -> str:
        """The reason why the topic can't be used now; empty if it can be used."""
        term = self._term
        if term is None:
            return self._trouble
        return term.trouble if term.has_moved else self._trouble or term.trouble

    def gauges(self) -> Gauges:
        """The current gauges."""
        moment, server_now = monotonic(), time() + self._parts.stats.clock_offset
        ledger = None if self._term is None else self._term.ledger
        oldest = None if ledger is None else ledger.oldest
        queued = 0 if ledger is None else ledger.records
        waiting_since = None if oldest is None else float(token_time(oldest).time)
        position_seconds = float(token_time(self.position).time)
        lag = self._lag.seconds(moment, server_now, waiting_since)
        if self._term is None:  # nothing is read
            lag = max(lag, server_now - position_seconds)
        return Gauges(
            connected=self.connected,
            in_flight=0,
            queued=queued,
            queued_bytes=0 if ledger is None else ledger.size,
            lag_seconds=lag,
            lag_changes=self._lag.changes(moment, server_now, queued),
            position_seconds=position_seconds,
            saved_seconds=self._began if self._saver is None else self._saver.saved_seconds,
            silent_seconds=0.0 if self._term is None else self._lag.silent(moment),
            waiting_seconds=0.0 if waiting_since is None else max(0.0, server_now - waiting_since),
            topic=TopicGauges(trouble=self.trouble),
        )
