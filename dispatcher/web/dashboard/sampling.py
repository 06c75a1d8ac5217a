"""Keeps the history of a group: asks its members' reports now and then, more often while somebody looks."""

import asyncio
import os
import socket
from contextlib import suppress
from time import monotonic, time
from typing import Any, Final

from pymongo.errors import PyMongoError

from dispatcher.operate.observer import Observer
from dispatcher.operate.status import members_of
from dispatcher.operate.status_model import MemberStatus
from dispatcher.web.dashboard.history import History
from mongoz import __version__

__all__ = ["Sampler", "is_me", "myself"]

# Seconds between two points of the plots: while somebody looks, and while nobody does.
_LOOKED_AT: Final = 2.0
_UNSEEN: Final = 10.0

# Seconds after which somebody who did not ask again has gone.
_GONE: Final = 10.0

# Seconds that the server may take; without its answer there is a point of this process alone.
_PATIENCE: Final = 2.0


class Sampler:
    """Adds to a history as long as it runs.

    Args:
        observer: of the process.

    Attributes:
        history: of the group.
    """

    def __init__(self, observer: Observer) -> None:
        self.history = History()
        self._observer = observer
        self._asked = -_GONE
        self._wake = asyncio.Event()

    def looked_at(self) -> None:
        """Note that somebody looks."""
        if monotonic() - self._asked > _GONE:
            self._wake.set()
        self._asked = monotonic()

    async def run(self) -> None:
        """For ever."""
        while True:
            await self._sample()
            self._wake.clear()
            seconds = _LOOKED_AT if monotonic() - self._asked < _GONE else _UNSEEN
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), seconds)

    async def _sample(self) -> None:
        members = await self._members()
        now = self._now()
        reports: dict[str, tuple[float, Any]] = {
            one.id: (now - one.seen_seconds, one.stats) for one in members if one.alive and not is_me(one)
        }
        reports["myself"] = (now, self._observer.stats_document())  # what is stored of us is some seconds old
        self.history.note(now, reports)

    def _now(self) -> float:
        return time() + self._observer.stats.clock_offset

    async def _members(self) -> list[MemberStatus]:
        observer = self._observer
        if observer.group is None:
            return []
        try:
            async with asyncio.timeout(_PATIENCE):
                return await members_of(observer.group, self._now())
        except (PyMongoError, TimeoutError):
            return []


def is_me(member: MemberStatus) -> bool:
    """Whether a member is this process."""
    return (member.host, member.pid) == (socket.gethostname(), os.getpid())


def myself(observer: Observer) -> MemberStatus:
    """This process, as a member that the state does not know yet, or can't be asked for."""
    shot = observer.snapshot()
    return MemberStatus(
        id="myself",
        host=socket.gethostname(),
        pid=os.getpid(),
        version=__version__,
        application=None,
        started_at=None,
        seen_seconds=0.0,
        alive=True,
        partitions=sorted(shot.pipelines),
        receivers=[],
        stats=observer.stats_document(),
        http=observer.http,
    )
