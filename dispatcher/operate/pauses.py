"""Pauses: an operator writes them to the state, and running dispatchers read them once a second.

The query that reads the pauses also finds requested retries of dead letters (see `parking/retry_requests.py`), and
backfills that wait for the dispatchers (see `runs/live_backfill.py`).

The collection `controls` has one document for each pause: docs/reference/state.md lists its fields.

A paused receiver is not called. Its deliveries are parked, and run in order after it is resumed. A pause applies
to all documents and signals to which the receiver is connected. A pause under a former name of the receiver
applies too: so a pause stays valid if a release renames the receiver. If everything is paused, nothing is read,
and the position stays.

MongoDB commands raise the `PyMongoError` of the driver.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from typing import Any, Final

from pymongo.errors import PyMongoError

from dispatcher.core.driver_errors import in_short
from dispatcher.core.output.logs import log
from dispatcher.core.state import CONTROLS, HELD, OPEN_BACKFILL, Group
from dispatcher.core.state_checks import StateReader, receiver_paused
from dispatcher.group.known_receivers import require_receiver
from dispatcher.operate.status_model import Pause
from dispatcher.parking.retry_requests import RetryRequests

_EVERYTHING: Final = "*"

# Seconds between two reads.
_LOOK: Final = 1.0


async def pauses(group: Group) -> list[Pause]:
    """The pauses of a group."""
    found = group.state.controls.find(_matching(group), sort=[("_id", 1)])
    return _sound_pauses(group, await found.to_list())


def _matching(group: Group) -> dict[str, Any]:
    return {"group": group.name, "kind": "pause"}


def _sound_pauses(group: Group, found: Iterable[Mapping[str, Any]]) -> list[Pause]:
    """Read documents of pauses. Malformed ones are skipped."""
    reader = StateReader(group.state.name)
    paused = reader.each(CONTROLS, found, _paused)
    reader.log()
    return paused


def _paused(found: Mapping[str, Any]) -> Pause:
    return Pause(receiver_paused(found), found.get("since"), str(found.get("by", "")))


async def pause(
    group: Group,
    receiver: str | None = None,
    *,
    by: str = "",
    known: Collection[str] = (),
) -> bool:
    """Pause a receiver of a group. Running dispatchers apply the pause within some seconds.

    Args:
        receiver: its name; None for everything.
        known: names of receivers that are known to exist.

    Returns:
        False if the receiver was paused already.
    """
    if receiver is not None:
        await require_receiver(group, receiver, known=known)
    if await group.state.controls.find_one(await _named(group, receiver), {"_id": True}):
        return False
    name = _EVERYTHING if receiver is None else receiver
    fields = {"group": group.name, "kind": "pause", "receiver_name": receiver, "receiver": name, "by": by}
    values = {"$literal": fields}
    written = {"$replaceWith": {"$mergeObjects": [values, {"_id": "$_id", "since": "$$NOW"}]}}
    await group.state.controls.update_one({"_id": f"{group.name}:pause:{name}"}, [written], upsert=True)
    return True


async def resume(
    group: Group,
    receiver: str | None = None,
    *,
    known: Collection[str] = (),
) -> bool:
    """Resume a receiver of a group, or everything. A resume of everything keeps the pauses of single receivers.

    Args:
        receiver: its name; None for everything.

    Returns:
        False if the receiver was not paused.
    """
    named = await _named(group, receiver)
    if (await group.state.controls.delete_many(named)).deleted_count:
        return True
    if receiver is not None:
        await require_receiver(group, receiver, known=known)
    return False


async def _named(group: Group, receiver: str | None) -> dict[str, Any]:
    """A filter for the pauses of a receiver, under its present and its former names."""
    names = {receiver}
    if receiver is not None:
        found = group.state.members.find({"group": group.name, "receivers.name": receiver}, {"receivers": True})
        async for member in found:
            listed = member["receivers"]
            known = [one for one in listed if isinstance(one, Mapping)] if isinstance(listed, list) else []
            formerly = [one.get("formerly") for one in known if one.get("name") == receiver]
            names.update(n for some in formerly if isinstance(some, list) for n in some if isinstance(n, str))
    return {"group": group.name, "kind": "pause", "receiver_name": {"$in": list(names)}}


class Pauses:
    """The pauses that a dispatcher read last.

    Attributes:
        retries: is told when retries of dead letters are requested.
        listeners: called after a change of the pauses.
        on_backfill: called after each read that finds an unfinished backfill of the dispatchers.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self.retries = RetryRequests(group)
        self.address = group.state.address
        self.receivers: frozenset[str] = frozenset()
        self.everything = False
        self.listeners: set[Callable[[], None]] = set()
        self.on_backfill: set[Callable[[], None]] = set()

    async def look(self) -> None:
        """Read the pauses, and find out whether retries are requested and whether backfills wait."""
        rows, requested, backfills = await self._read()
        found = {one.receiver: one for one in _sound_pauses(self._group, rows)}
        before = {*self.receivers, *([None] if self.everything else [])}
        self.everything = None in found
        self.receivers = frozenset(name for name in found if name is not None)
        if before != found.keys():
            _log_changes(before, found)
            for listener in list(self.listeners):
                listener()
        if requested:
            self.retries.note()
        if backfills:
            for wake in list(self.on_backfill):
                wake()

    async def _read(self) -> tuple[list[Mapping[str, Any]], bool, bool]:
        """The documents of the pauses, whether retries are requested, and whether backfills wait."""
        wanted = {"$or": [_matching(self._group), {"group": self._group.name, **OPEN_BACKFILL}]}
        of_pause = {"$cond": [{"$eq": ["$kind", "pause"]}, {CONTROLS: "$$ROOT"}, {"backfill": "$run"}]}
        stages: list[dict[str, Any]] = [{"$match": wanted}, {"$replaceWith": of_pause}]
        rows = await self._group.state.controls.aggregate([*stages, *self.retries.exist()])
        found = await rows.to_list()
        paused = [row[CONTROLS] for row in found if CONTROLS in row]
        return paused, any(HELD in row for row in found), any("backfill" in row for row in found)

    async def watch(self) -> None:
        """Call `look` once a second, for ever. While the state can't be read, the last known pauses apply."""
        failing = False
        while True:
            await asyncio.sleep(_LOOK)
            try:
                await self.look()
                failing = False
            except PyMongoError as error:
                if not failing:
                    log.warning(
                        "the pauses can't be read; the last known pauses apply",
                        action="controls.unavailable",
                        error=in_short(error),
                    )
                failing = True


def _log_changes(before: Set[str | None], now: Mapping[str | None, Pause]) -> None:
    for receiver in sorted(now.keys() - before, key=str):
        log.warning(
            "everything is paused" if receiver is None else "a receiver is paused",
            action="dispatcher.paused",
            receiver=receiver,
            since=str(now[receiver].since),
            by=now[receiver].by,
        )
    for receiver in sorted(before - now.keys(), key=str):
        log.info(
            "the pause of everything has ended" if receiver is None else "a receiver is resumed",
            action="dispatcher.resumed",
            receiver=receiver,
        )
