"""Moves the positions of a group by hand, back or forward.

All partitions move in one transaction, which also records the gaps. Each move begins a new term, so a process that
holds a partition loses it.

The new position of a group that reads from a topic must be in the topic, or at least in the oplog. The position of
a relay can only move forward, and the relay itself records the gap.

MongoDB commands raise the `PyMongoError` of the driver.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, NamedTuple

from bson.timestamp import Timestamp
from pymongo.asynchronous.client_session import AsyncClientSession

from dispatcher.core.events import LogPlace
from dispatcher.core.oplog import look_at_oplog, time_of_newest_write
from dispatcher.core.resume_tokens import token_at, token_time
from dispatcher.core.state import POSITIONS, Group
from dispatcher.core.stats import Stats
from dispatcher.exceptions import HistoryLost, NotFound, PositionError, StillRunning
from dispatcher.group.origin import ChangeOrigin
from dispatcher.kafka.log import topic_of
from dispatcher.kafka.merged import places_at
from dispatcher.kafka.relay_state import RelayState, RelayStore
from dispatcher.operate.member_status import members_of
from dispatcher.position.documents import Position, SavedPositions, Topic
from dispatcher.position.gaps import Gap, Gaps
from dispatcher.position.store import PositionStore
from dispatcher.settings import Settings
from dispatcher.stream.cursor import Cursors

# The second half of a remedy, for commands with the flag --force.
_FORCED = (
    " With --force they lose their partitions, and continue at the new position when their leases have ended."
)


def _readable(token: str) -> str:
    return token_time(token).as_datetime().isoformat()


class MovedPosition(NamedTuple):
    """The move of the position of one partition.

    Attributes:
        before: cluster time of the old position; None if there was none.
        after: cluster time of the new position; None if the next start records a new position.
        gap: the skipped changes, for people; None if there are none, or if a relay will record them.
    """

    partition: int
    before: Timestamp | None
    after: Timestamp | None
    gap: str | None


class TopicStatus(NamedTuple):
    """The topic of a group, for `position show`.

    Attributes:
        relay: the state of the relay; None if no relay has saved a position.
        is_own: whether the group is the relay of the topic.
    """

    topic: str
    relay: RelayState | None
    is_own: bool

    def of_partition(self, number: int, document: Mapping[str, Any]) -> dict[str, Any]:
        """The place of a partition in the topic, and the position of the relay.

        Args:
            document: the document of the position.
        """
        relay = None if self.relay is None else self.relay.position
        until = None if relay is None else _readable(relay.token)
        if self.is_own:
            term = None if self.relay is None else self.relay.term
            return {"topic": self.topic, "relay_term": term, "relay_up_to": until}
        place = document.get("log") or {}
        marks = () if relay is None else relay.marks
        mark = marks[number] if number < len(marks) else None
        return {
            "topic": self.topic,
            "offset": place.get("offset"),
            "record_term": place.get("term"),
            "record_number": place.get("number"),
            "relay_up_to": until,
            "relay_offset": None if mark is None else mark.offset,
            "relay_term": None if mark is None else mark.term,
            "relay_number": None if mark is None else mark.number,
        }


async def topic_status(group: Group) -> TopicStatus | None:
    """The topic from which a group reads, or to which a relay publishes; None for change streams.

    Raises:
        PositionError: the state of the relay is malformed.
    """
    relay = await RelayStore(group.state, group.name).load()
    if relay is not None:
        return TopicStatus(group.name, relay, is_own=True)
    match await group.state.positions.find_one({"_id": group.name}):
        case {"topic": {"name": str(name)}}:
            return TopicStatus(name, await RelayStore(group.state, name).load(), is_own=False)
    return None


class Mover:
    """Moves the positions of one group."""

    def __init__(self, group: Group) -> None:
        self._state = group.state
        self._group = group
        self._address = group.state.address
        self._store = PositionStore(group)

    async def now(self) -> str:
        """Return a token for this moment. If it is the position, all earlier writes count as finished."""
        time = await time_of_newest_write(self._state.client)
        return token_at(Timestamp(time.time, time.inc + 1))

    async def require_held(self, token: str) -> None:
        """Require that the stream can begin at a token.

        Args:
            token: a resume token, or the beginning of one, which contains only the time: see `token_at`.

        Raises:
            HistoryLost: the oplog does not reach back to the token.
            PositionError: the token is in the future.
        """
        await self._require_past(token)
        await self._require_in_oplog(token)

    async def _require_past(self, token: str) -> None:
        time, now = token_time(token), await time_of_newest_write(self._state.client)
        if time.time > now.time:
            raise PositionError(
                f"{time.as_datetime().isoformat()} is in the future: at {self._address} it is "
                f"{now.as_datetime().isoformat()}. Nothing was changed.",
                remedy="Choose an earlier time. `--at now` skips all changes until now.",
            )

    async def _require_in_oplog(self, token: str, in_topic: str = "") -> None:
        """Require that the oplog reaches back to a token.

        Args:
            in_topic: why the topic does not reach back to the token; empty without a topic.
        """
        # A change stream on any collection shows how far back the oplog reaches. The user of this connection may
        # read the positions, so the stream is on the positions.
        cursors = Cursors(self._state.client, self._state.name, [{"$match": {"ns.coll": POSITIONS}}], 1)
        time = token_time(token)
        if not await cursors.reaches_back_to(min(time, await time_of_newest_write(self._state.client))):
            raise await self._too_far_back(time, in_topic)

    async def set(self, token: str | None, settings: Settings, *, force: bool) -> list[MovedPosition]:
        """Let all partitions continue after a token.

        Args:
            token: a resume token, or the beginning of one, as in `require_held`; None means the present time.
            settings: the settings with the brokers of the topic.
            force: as in `move`.

        Raises:
            HistoryLost: neither the source of the group nor the oplog reaches back to the token.
            PositionError: the token is in the future, or the group is a relay and has published later changes.
            KafkaError: the topic can't be read.
        """
        layout = (await self._store.load()).layout
        topic = None if layout is None else layout.topic
        await self._require_unpublished(token)
        if token is None:
            token = await self.now()
            places = {} if topic is None else await self._places_now(topic)
        elif topic is None:
            await self.require_held(token)
            places = {}
        else:
            places = await self._places(topic, token, settings)
        return await self.move(token, force=force, places=places)

    async def move(
        self, token: str | None, *, force: bool, places: Mapping[int, LogPlace] = MappingProxyType({})
    ) -> list[MovedPosition]:
        """Let all partitions continue after a token, or begin anew.

        Args:
            token: all changes up to the token count as finished, and all later changes do not. With None, only the
                changes after the next start of a dispatcher are delivered, as after the first start of a group.
            force: move the positions even if a dispatcher is alive. This dispatcher starts no deliveries after
                the end of its lease, and other processes wait for this end.
            places: for a topic, the known places of the token, by partition.

        Raises:
            NotFound: no position is saved.
            PositionError: a saved position is malformed.
            StillRunning: a dispatcher of the group is alive, or wrote a position at the same time.
        """
        saved = await self._stopped(force=force)
        return await self._write(saved, token, force=force, places=places)

    async def _require_unpublished(self, token: str | None) -> None:
        """Refuse to move the position of a relay back.

        Raises:
            PositionError: this group is a relay, and has published changes after the token.
        """
        relay = await RelayStore(self._state, self._group.name).load()
        if token is None or relay is None or token > relay.position.token:
            return
        raise PositionError(
            f"{self._group.name!r} is a relay, and it has published the changes until "
            f"{_readable(relay.position.token)}. Its position can't be moved back: its readers have read the "
            "changes. Nothing was changed.",
            remedy="Move the position of the group of dispatchers instead, or use `dispatcher replay`.",
        )

    async def _places_now(self, topic: Topic) -> dict[int, LogPlace]:
        """The places of the relay's position: all later changes are in the topic."""
        relay = await RelayStore(self._state, topic.name).load()
        if relay is None:
            return {}  # the next start of a dispatcher fails, and names the remedy
        marks = enumerate(relay.position.marks)
        return {number: LogPlace(relay.topic.id, *mark) for number, mark in marks}

    async def _places(self, topic: Topic, token: str, settings: Settings) -> dict[int, LogPlace]:
        """The places of a token in a topic; empty if only the oplog reaches back to the token.

        Raises:
            HistoryLost: neither the topic nor the oplog reaches back to the token.
        """
        await self._require_past(token)
        log = topic_of(self._group, settings.model_copy(update={"kafka_topic": topic.name}))
        if log is None:
            raise PositionError(
                f"The group {self._group.name!r} reads from {topic}, so its new position must be looked up in "
                "this topic. Nothing was changed.",
                remedy="Name the brokers with --kafka.",
            )
        async with log.opened():
            found = Topic(log.watch.layout.cluster, topic.name)
            if found != topic:
                raise PositionError(
                    f"The group {self._group.name!r} reads from {topic}, and --kafka names {found}. Nothing was "
                    "changed.",
                    remedy="Name the brokers of that cluster.",
                )
            since = min(log.watch.relay.since.values(), default="")
            if token < since:
                raise HistoryLost(
                    f"The relay publishes changes to {topic} only since {_readable(since)}. Nothing was changed.",
                    remedy="Choose a later time. `dispatcher replay` without --kafka delivers earlier changes "
                    "from the oplog.",
                )
            try:
                return dict(enumerate(await places_at(log, token)))
            except HistoryLost as lost:
                await self._require_in_oplog(token, lost.message)
                return {}

    async def switch(self, origin: ChangeOrigin) -> int:
        """Let the group read from another source. It continues at its position. Finished changes stay finished.

        Returns:
            The number of partitions.

        Raises:
            NotFound: no position is saved.
            PositionError: a saved position is malformed, or the group can't continue with this source.
            StillRunning: a dispatcher of the group is alive, or started just now.
        """
        saved = await self._stopped()
        layout, name = saved.layout, self._group.name
        assert layout is not None  # `_stopped` has checked it
        source = "change streams" if origin.topic is None else str(origin.topic)
        if layout.topic == origin.topic:
            raise PositionError(f"The group {name!r} reads from {source} already. Nothing was changed.")
        tokens = [one.token for one in saved.positions.values() if one.token is not None]
        facts = any(one.inherited for one in saved.positions.values())
        if facts or layout.wanted is not None or len(tokens) < layout.partitions:
            raise PositionError(
                f"The group {name!r} does not have its new number of partitions yet, or a position was reset. "
                "Nothing was changed.",
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
                f"{name!r} has delivered the changes only until {_readable(min(tokens))}. Nothing was changed.",
                remedy="Let the dispatchers of the group deliver all earlier changes from change streams. Then "
                "stop them.",
            )
        if not await self._store.switch(saved, origin.topic, partitions):
            raise self._changed()
        return partitions

    async def _stopped(self, *, force: bool | None = None) -> SavedPositions:
        """The positions of the group, while no dispatcher is alive.

        Args:
            force: whether living dispatchers are allowed; None if the command has no such flag.

        Raises:
            StillRunning: a dispatcher is alive.
            NotFound: the group has no position.
        """
        alive = [one for one in await members_of(self._group) if one.alive]
        if alive and not force:
            names = ", ".join(f"{one.host}, pid {one.pid}" for one in alive)
            raise StillRunning(
                f"{len(alive)} dispatcher{'s are' if len(alive) > 1 else ' is'} alive in the group "
                f"{self._group.name!r}: "
                f"{names}. Nothing was changed.",
                remedy="Stop all dispatchers of the group first." + ("" if force is None else _FORCED),
            )
        saved = await self._store.load()
        if saved.layout is None:
            raise NotFound(
                f"The group {self._group.name!r} has no position.",
                remedy="`dispatcher setup APP` records the first one.",
            )
        return saved

    async def _write(
        self, saved: SavedPositions, token: str | None, *, force: bool, places: Mapping[int, LogPlace]
    ) -> list[MovedPosition]:
        assert saved.layout is not None  # move() has checked it
        partitions = saved.layout.partitions
        positions = [one for _, one in sorted(saved.positions.items())]
        is_relay = await RelayStore(self._state, self._group.name).load() is not None
        done = [self._moved(position, partitions, token, is_relay=is_relay) for position in positions]

        async def note(session: AsyncClientSession) -> None:
            for position, one in zip(positions, done, strict=True):
                if one.gap is not None:
                    gaps = Gaps(self._group, Stats(), position.partition)
                    key = f"{position.partition}/{partitions}:{position.term}:{position.token}"
                    gap = Gap("position_set", key, one.gap, None, one.before, one.after)
                    await gaps.note(gap, session)

        if not await self._store.move(saved, token, force=force, also=note, places=places):
            raise self._changed()
        return done

    def _changed(self) -> StillRunning:
        return StillRunning(
            f"A dispatcher of the group {self._group.name!r} saved a position at the same time. Nothing was "
            "changed.",
            remedy="Try again.",
        )

    def _moved(self, position: Position, partitions: int, token: str | None, *, is_relay: bool) -> MovedPosition:
        before = None if position.token is None else token_time(position.token)
        after = None if token is None else token_time(token)
        back = position.token is None or (token is not None and token <= position.token)
        if back or before is None or is_relay:
            return MovedPosition(position.partition, before, after, None)
        until = "the next start of a dispatcher" if after is None else after.as_datetime().isoformat()
        which = f"partition {position.partition}" if partitions > 1 else "the group"
        text = (
            f"the position of {which} was moved by hand: the changes from {before.as_datetime().isoformat()} to "
            f"{until} are not delivered"
        )
        return MovedPosition(position.partition, before, after, text)

    async def _too_far_back(self, time: Timestamp, in_topic: str) -> HistoryLost:
        oplog = await look_at_oplog(self._state.client)
        reach = "" if oplog is None else f": it begins {datetime.fromtimestamp(oplog.begins, UTC).isoformat()}"
        text = f"The oplog at {self._address} does not reach back to {time.as_datetime().isoformat()}{reach}."
        return HistoryLost(
            f"{in_topic} {text} Nothing was changed.".lstrip(),
            remedy="Choose a later time. For older changes, `dispatcher backfill` delivers the current documents.",
        )
