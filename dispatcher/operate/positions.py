"""Moves the positions of a group by hand, back or forward.

All partitions move in one transaction, which also records the gaps. Each move begins a new term, so a process that
holds a partition loses it.

MongoDB commands raise the `PyMongoError` of the driver.
"""

from datetime import UTC, datetime
from typing import NamedTuple

from bson.timestamp import Timestamp
from pymongo.asynchronous.client_session import AsyncClientSession

from dispatcher.core.oplog import look_at_oplog
from dispatcher.core.resume_tokens import token_at, token_time
from dispatcher.core.state import POSITIONS, Group
from dispatcher.core.stats import Stats
from dispatcher.exceptions import HistoryLost, NotFound, PositionError, StillRunning
from dispatcher.group.origin import ChangeOrigin
from dispatcher.operate.member_status import members_of
from dispatcher.position.documents import Position, SavedPositions
from dispatcher.position.gaps import Gap, Gaps
from dispatcher.position.store import PositionStore
from dispatcher.stream.cursor import Cursors


def _readable(token: str) -> str:
    return token_time(token).as_datetime().isoformat()


class MovedPosition(NamedTuple):
    """The move of the position of one partition.

    Attributes:
        before: cluster time of the old position; None if there was none.
        after: cluster time of the new position; None if the next start records a new position.
        gap: the skipped changes, for people; None if there are none.
    """

    partition: int
    before: Timestamp | None
    after: Timestamp | None
    gap: str | None


class Mover:
    """Moves the positions of one group."""

    def __init__(self, group: Group) -> None:
        self._state = group.state
        self._group = group
        self._address = group.state.address
        self._store = PositionStore(group)

    async def now(self) -> str:
        """Return a token for this moment. With it as position, all earlier writes count as finished."""
        time = await self._time()
        return token_at(Timestamp(time.time, time.inc + 1))

    async def require_held(self, token: str) -> None:
        """Require that the stream can begin at a token.

        Args:
            token: a resume token, or only the beginning that all tokens of one time have, see `token_at`.

        Raises:
            HistoryLost: the oplog does not reach back to the token.
            PositionError: the token is in the future.
        """
        time, now = token_time(token), await self._time()
        if time.time > now.time:
            raise PositionError(
                f"{time.as_datetime().isoformat()} is in the future: at {self._address} it is "
                f"{now.as_datetime().isoformat()}. Nothing was changed.",
                remedy="Choose an earlier time. `--at now` skips all changes until now.",
            )
        # A change stream on any collection shows how far back the oplog reaches. The user of this connection may
        # read the positions, so the stream is on the positions.
        cursors = Cursors(self._state.client, self._state.name, [{"$match": {"ns.coll": POSITIONS}}], 1)
        if not await cursors.reaches_back_to(min(time, now)):
            raise await self._too_far_back(time)

    async def move(self, token: str | None, *, force: bool) -> list[MovedPosition]:
        """Let all partitions continue after a token, or begin anew.

        Args:
            token: all changes up to the token count as finished, and no later change. With None, only the changes
                after the next start of a dispatcher are delivered, as after the first start of a group.
            force: move the positions even if a dispatcher is alive. This dispatcher starts no deliveries after
                the end of its lease, and other processes wait for this end.

        Raises:
            NotFound: no position is saved.
            PositionError: a saved position is malformed.
            StillRunning: a dispatcher of the group is alive, or wrote a position at the same time.
        """
        saved = await self._stopped(force=force)
        return await self._write(saved, token, force=force)

    async def switch(self, origin: ChangeOrigin) -> int:
        """Let the group read from another source. It continues at its position, and keeps finished changes.

        Returns:
            The number of partitions.

        Raises:
            NotFound: no position is saved.
            PositionError: a saved position is malformed, or the group can't continue with this source.
            StillRunning: a dispatcher of the group is alive, or started just now.
        """
        saved = await self._stopped(force=False)
        layout, name = saved.layout, self._group.name
        assert layout is not None  # `_stopped` has checked it
        source = "change streams" if origin.topic is None else str(origin.topic)
        if layout.topic == origin.topic:
            raise PositionError(f"The group {name!r} reads from {source} already. Nothing was changed.")
        tokens = [one.token for one in saved.positions.values() if one.token is not None]
        facts = any(one.inherited for one in saved.positions.values())
        if facts or layout.wanted is not None or len(tokens) < layout.partitions:
            raise PositionError(
                f"The number of partitions of the group {name!r} changes, or a position was reset. Nothing was "
                "changed.",
                remedy="Start a dispatcher with the earlier source, and stop it when `dispatcher status` shows no "
                "lag.",
            )
        partitions = origin.partitions or layout.partitions
        if partitions % layout.partitions:
            raise PositionError(
                f"The group {name!r} has {layout.partitions} partitions, and {source} has {partitions}, which is "
                "not a multiple. Nothing was changed.",
                remedy="Divide the work first: start a dispatcher with --partitions 1, and stop it when "
                "`dispatcher status` shows no lag.",
            )
        if min(tokens) < origin.since:
            raise PositionError(
                f"The relay publishes all changes to {source} since {_readable(origin.since)}, and the group "
                f"{name!r} has delivered the changes until {_readable(min(tokens))} only. Nothing was changed.",
                remedy="Let its dispatchers deliver the changes until then from change streams, then stop them.",
            )
        if not await self._store.switch(saved, origin.topic, partitions):
            raise self._changed()
        return partitions

    async def _stopped(self, *, force: bool) -> SavedPositions:
        """The positions of the group, while no dispatcher is alive."""
        alive = [one for one in await members_of(self._group) if one.alive]
        if alive and not force:
            names = ", ".join(f"{one.host}, pid {one.pid}" for one in alive)
            raise StillRunning(
                f"{len(alive)} dispatcher{'s are' if len(alive) > 1 else ' is'} alive in the group "
                f"{self._group.name!r}: "
                f"{names}. Nothing was changed.",
                remedy="Stop all dispatchers of the group first. With --force they lose their partitions, and "
                "continue at the new position when their leases have ended.",
            )
        saved = await self._store.load()
        if saved.layout is None:
            raise NotFound(
                f"The group {self._group.name!r} has no position.",
                remedy="`dispatcher setup APP` records the first one.",
            )
        return saved

    async def _write(self, saved: SavedPositions, token: str | None, *, force: bool) -> list[MovedPosition]:
        assert saved.layout is not None  # move() has checked it
        partitions = saved.layout.partitions
        positions = [one for _, one in sorted(saved.positions.items())]
        done = [self._moved(position, partitions, token) for position in positions]

        async def note(session: AsyncClientSession) -> None:
            for position, one in zip(positions, done, strict=True):
                if one.gap is not None:
                    gaps = Gaps(self._group, Stats(), position.partition)
                    key = f"{position.partition}/{partitions}:{position.term}:{position.token}"
                    gap = Gap("position_set", key, one.gap, None, one.before, one.after)
                    await gaps.note(gap, session)

        if not await self._store.move(saved, token, force=force, also=note):
            raise self._changed()
        return done

    def _changed(self) -> StillRunning:
        return StillRunning(
            f"A dispatcher of the group {self._group.name!r} saved a position at the same time. Nothing was "
            "changed.",
            remedy="Try again.",
        )

    def _moved(self, position: Position, partitions: int, token: str | None) -> MovedPosition:
        before = None if position.token is None else token_time(position.token)
        after = None if token is None else token_time(token)
        if position.token is None or before is None or (token is not None and token <= position.token):
            return MovedPosition(position.partition, before, after, None)
        until = "the next start of a dispatcher" if after is None else after.as_datetime().isoformat()
        which = f"partition {position.partition}" if partitions > 1 else "the group"
        text = (
            f"the position of {which} was moved by hand: the changes from {before.as_datetime().isoformat()} to "
            f"{until} are not delivered"
        )
        return MovedPosition(position.partition, before, after, text)

    async def _time(self) -> Timestamp:
        """The cluster time of the newest write on the server."""
        answer = await self._state.client.admin.command("ping")
        time: Timestamp = answer["operationTime"]
        return time

    async def _too_far_back(self, time: Timestamp) -> HistoryLost:
        oplog = await look_at_oplog(self._state.client)
        reach = "" if oplog is None else f": it begins {datetime.fromtimestamp(oplog.begins, UTC).isoformat()}"
        return HistoryLost(
            f"The oplog at {self._address} does not reach back to {time.as_datetime().isoformat()}{reach}. "
            "Nothing was changed.",
            remedy="Choose a later time. For older changes, `dispatcher backfill` delivers the current documents.",
        )
