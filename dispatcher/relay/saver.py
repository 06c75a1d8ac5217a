"""Saves the position of a term."""

import asyncio
from time import monotonic
from typing import Final

from pymongo.errors import PyMongoError

from dispatcher.core.driver_errors import in_short, raise_if_fatal
from dispatcher.core.lease import Lease
from dispatcher.core.output.logs import log
from dispatcher.core.output.throttle import Throttle
from dispatcher.core.ticks import next_tick, wait_for_tick
from dispatcher.kafka.relay_state import RelayStore
from dispatcher.position.store import PositionStore
from dispatcher.relay.ledger import RecordLedger
from dispatcher.relay.parts import RelayParts

# Seconds for the last save.
_PATIENCE = 5.0


_throttle: Final = Throttle()


class PositionSaver:
    """Saves the position of one term, as long as no other term has begun.

    Args:
        relays: the state of the relay.
        store: saves the position also as the position of the relay's group, so that operators see it.

    Attributes:
        saved_seconds: when the saved position was last up to date, by the monotonic clock.
    """

    def __init__(
        self,
        parts: RelayParts,
        relays: RelayStore,
        store: PositionStore,
        lease: Lease,
        term: int,
        ledger: RecordLedger,
    ) -> None:
        self._parts = parts
        self._relays = relays
        self._store = store
        self._lease = lease
        self._term = term
        self._ledger = ledger
        self._saved = ""
        self._replaced = False
        self.saved_seconds = monotonic()

    async def save_regularly(self, ending: asyncio.Event) -> None:
        """Save regularly, until `ending` is set or another term has begun.

        The position is saved at each tick of `save_interval`. While nothing is read, it is only saved about every
        `idle_save_interval`.
        """
        settings, clock, stats = self._parts.settings, asyncio.get_running_loop().time, self._parts.stats
        read, idle_until = stats.read, 0.0
        while await wait_for_tick(settings.save_interval, unless=ending):
            self._warn_of_others()
            if stats.read == read and self._ledger.is_empty and clock() < idle_until:
                continue
            if self._ledger.is_empty:
                read = stats.read
            idle_until = next_tick(settings.idle_save_interval, clock())
            if not await self.save():
                return

    def _warn_of_others(self) -> None:
        """If other producers write to the topic, log this, at most once a minute."""
        mixed = self._ledger.mixed
        if not mixed or (further := _throttle.due(self._parts.topic)) is None:
            return
        log.warning(
            "another producer writes to the topic of this relay; a replaced relay may do so for a moment",
            action="topic.mixed",
            topic=self._parts.topic,
            partitions=sorted(mixed),
            further=further,
            remedy="If this lasts, find the producer: another program, or a relay with another state. Let it "
            "write to another topic.",
        )
        mixed.clear()

    async def save_at_the_end(self) -> None:
        """Save once more, unless another process has taken over."""
        if self._lease.lost.is_set() or self._replaced:
            return
        try:
            async with asyncio.timeout(_PATIENCE):
                await self.save()
        except TimeoutError:
            log.warning("the position was not saved at the end", action="position.not_saved")

    async def save(self) -> bool:
        """Save the position. Returns False if another term has begun."""
        position = self._ledger.position
        if position.token == self._saved:
            self.saved_seconds = monotonic()
            return True
        try:
            if not await self._relays.save(self._term, position):
                log.warning("another term has begun, so this one ends", action="relay.replaced", term=self._term)
                self._replaced = True
                return False
            if not await self._store.save(self._lease, position.token, position.fingerprint, b"", ""):
                self._lease.lose()
                return False
        except PyMongoError as error:
            raise_if_fatal(error, self._parts.group.state.address)
            log.warning(
                "the position could not be saved, trying again later",
                action="position.not_saved",
                error=in_short(error),
            )
            return True
        self._saved = position.token
        self.saved_seconds = monotonic()
        self._parts.stats.saves += 1
        return True
