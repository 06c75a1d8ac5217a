"""Reads the books of writing processes while claims wait for them. One watch serves all partitions of a process.

A watch reads books again and again only while claims wait. When changes are read, it also reads the books of their
claims, unless it has read these books before. In a backlog this decides most claims: the books say that the claims
are done.
"""

import asyncio
from collections.abc import Collection, Iterable
from functools import partial
from typing import Final, Protocol

from bson import Timestamp
from pymongo.errors import PyMongoError

from dispatcher.claims.store import ClaimStore
from dispatcher.claims.verdict import ClaimVerdict, Sightings, verdict_of
from dispatcher.core.driver_errors import in_short
from dispatcher.core.events import Change
from dispatcher.core.lease import now
from dispatcher.core.output.logs import log
from dispatcher.core.retry import retry
from dispatcher.core.tasks import end
from mongoz.claims.document import BookState, NamedReceiver
from mongoz.stamps import Claim

# Seconds between two reads of the books that claims wait for.
_PACE: Final = 1.0

# Seconds between two reads while a decision is urgent.
_URGENT_PACE: Final = 0.25

_EARLIEST: Final = Timestamp(0, 0)

# Maximum number of books in memory that no claim waits for.
_MOST_REMEMBERED: Final = 10_000


class FollowedClaims(Protocol):
    """The claims of one partition that wait for a decision."""

    @property
    def incarnations(self) -> Collection[bytes]:
        """The ids of the books that the claims wait for."""

    @property
    def is_urgent(self) -> bool:
        """Whether unclaimed deliveries wait behind claims, or too many deliveries wait in memory."""

    def decide(self) -> None:
        """Decide about the claims, after the books were read again."""


class ClaimWatch:
    """The books of the writing processes, as far as this process has read them.

    Args:
        timeout: seconds after which a process without a beat counts as dead. If the process has a longer timeout,
            the longer one applies.
    """

    def __init__(self, store: ClaimStore, timeout: float) -> None:
        self._store = store
        self._states: dict[bytes, BookState | None] = {}
        self._named: dict[bytes, frozenset[bytes]] = {}
        self._sightings = Sightings(timeout)
        self._dead: set[bytes] = set()
        self._waiting: list[FollowedClaims] = []
        self._task: asyncio.Task[None] | None = None
        self._is_announced = False

    async def announce(self) -> None:
        """Tell writing processes that this group takes over claims."""
        self._is_announced = self._is_announced or await self._store.announce()

    # -- decisions -------------------------------------------------------------------------------------------

    async def load(self, changes: Iterable[Change]) -> None:
        """Read the unknown books of the claims in some changes."""
        unknown: set[bytes] = set()
        since = _EARLIEST
        for change in changes:
            claim = None if change.origin is None else change.origin.claim
            if claim is not None and self._is_unknown(claim):
                unknown.add(claim.incarnation)
                since = max(since, change.cluster_time)
        if not unknown:
            return
        if len(self._states) >= _MOST_REMEMBERED:
            for forgotten in self._states.keys() - self._needed():
                del self._states[forgotten]
                self._named.pop(forgotten, None)
                self._sightings.forget(forgotten)
                self._dead.discard(forgotten)
        report = partial(log.warning, "claims can't be read now, trying again", action="claims.not_read")
        read = partial(self._store.read, unknown, since)
        self._note(await retry(read, report, address=self._store.address))

    def _is_unknown(self, claim: Claim) -> bool:
        """Whether the book of a claim must be read.

        A beat names a receiver before any claim lists this receiver. So if a known book does not name a claimed
        receiver, the book was read too early, and must be read again.
        """
        incarnation = claim.incarnation
        if incarnation not in self._states:
            return True
        return self._states[incarnation] is not None and not claim.receivers <= self._named[incarnation]

    def verdict(self, claim: Claim) -> ClaimVerdict:
        """Decide about a claim, by the last read of its book."""
        state = self._states.get(claim.incarnation)
        return verdict_of(state, claim.number, is_dead=claim.incarnation in self._dead)

    def named(self, claim: Claim) -> frozenset[bytes]:
        """The claimed receivers that the book of the process names; all of them if the book is missing."""
        if self._states.get(claim.incarnation) is None:
            return claim.receivers
        return claim.receivers & self._named[claim.incarnation]

    def receivers_of(self, claim: Claim) -> tuple[NamedReceiver, ...]:
        """The claimed receivers, as the book of the process names them; empty if the book is missing."""
        state = self._states.get(claim.incarnation)
        if state is None:
            return ()
        return tuple(one for one in state.receivers if not claim.receivers.isdisjoint(one.ids))

    # -- following -------------------------------------------------------------------------------------------

    def add(self, waiting: FollowedClaims) -> None:
        """From now on, read the books that some claims wait for."""
        self._waiting.append(waiting)

    async def discard(self, waiting: FollowedClaims) -> None:
        """Undo `add`."""
        self._waiting.remove(waiting)
        if not self._waiting and self._task is not None:
            await end([self._task])

    def wake(self) -> None:
        """Begin to read the books regularly, because a claim waits."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._follow(), name="watch-claims")

    def _needed(self) -> set[bytes]:
        return {incarnation for waiting in self._waiting for incarnation in waiting.incarnations}

    async def _follow(self) -> None:
        """Read the books regularly, until no claim waits."""
        while True:
            await self._pause()
            if not (needed := self._needed()):
                return
            try:
                await self._look(needed)
            except PyMongoError as error:  # if the error is permanent, the next save of the position raises it
                log.warning(
                    "claims can't be read now, trying again", action="claims.not_read", error=in_short(error)
                )
                continue
            for waiting in list(self._waiting):
                waiting.decide()

    async def _pause(self) -> None:
        """Wait until the next read is due."""
        for _ in range(round(_PACE / _URGENT_PACE)):
            await asyncio.sleep(_URGENT_PACE)
            if any(waiting.is_urgent for waiting in self._waiting):
                return

    async def _look(self, needed: set[bytes]) -> None:
        """Read books again, and fence those whose process is dead."""
        self._note(await self._store.read(needed))
        for incarnation in needed:
            state = self._states[incarnation]
            if (state is not None and state.fenced) or not self._sightings.is_silent(incarnation, now()):
                continue
            if state is None:
                self._dead.add(incarnation)
            elif (fenced := await self._store.fence(incarnation, state.beat)) is not None:
                self._note({incarnation: fenced})
                log.warning(
                    "a writing process has stopped; its unfinished deliveries are taken over",
                    action="claims.fenced",
                    process=incarnation.hex(),
                )

    def _note(self, states: dict[bytes, BookState | None]) -> None:
        at = now()
        for incarnation, state in states.items():
            self._states[incarnation] = state
            self._sightings.note(incarnation, state, at)
            if state is not None:
                self._named[incarnation] = frozenset(id_ for one in state.receivers for id_ in one.ids)
                self._dead.discard(incarnation)
