"""Finds the receivers that are new in a group, and names the command that delivers the missed changes.

The application may have a new receiver before the dispatchers have it. Meanwhile the dispatchers finish changes
without calling this receiver. So the layout lists the receivers of the last start. When a dispatcher first starts
with a receiver that is not in this list, it logs the command that delivers the changes which this receiver may
have missed.

MongoDB commands raise the `PyMongoError` of the driver.
"""

import shlex
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from bson.timestamp import Timestamp

from dispatcher.core.oplog import look_at_oplog
from dispatcher.core.output.logs import log
from dispatcher.core.resume_tokens import token_time
from dispatcher.core.state import Group
from dispatcher.group.view import GroupView, read_group
from dispatcher.position.store import PositionStore
from mongoz.signals.receivers import Receiver

# If the oplog begins too late for a replay, the replay begins this many seconds after the beginning of the oplog:
# the server may delete the oldest changes before the replay begins.
_MARGIN: Final = 60


class NewReceivers(NamedTuple):
    """The receivers of this process that the layout did not list.

    Attributes:
        names: their names, sorted.
        since: the server's time at which the earlier list was recorded. Changes before this time are not
            considered.
    """

    names: tuple[str, ...]
    since: datetime


async def note_receivers(group: Group, receivers: Iterable[Receiver]) -> NewReceivers | None:
    """Record the receivers of this process in the layout.

    Returns:
        The receivers that the layout did not list, under their present or former ids. None if there are no
        such receivers, if the layout listed no receivers at all, or if another process has changed the list
        meanwhile.
    """
    present = list(receivers)
    ids = sorted({one.id.hex() for one in present})
    found = await group.state.positions.find_one({"_id": group.name}, {"receivers": True, "receivers_at": True})
    before, since = (found or {}).get("receivers"), (found or {}).get("receivers_at")
    if before == ids:
        return None
    as_read = {"_id": group.name, "receivers": before}
    change = {"$set": {"receivers": ids}, "$currentDate": {"receivers_at": True}}
    recorded = (await group.state.positions.update_one(as_read, change)).matched_count
    if not recorded or not isinstance(before, list) or not isinstance(since, datetime):
        return None
    known = {one for one in before if isinstance(one, str)}
    new = {one.name for one in present if known.isdisjoint(id_.hex() for id_ in one.ids)}
    return NewReceivers(tuple(sorted(new)), since.replace(tzinfo=UTC)) if new else None


async def name_new_receivers(group: Group, receivers: Iterable[Receiver], version: str) -> None:
    """Record the receivers of this process. Log the new ones, and the command that delivers the missed changes.

    Call this before the process gets the lease of a partition.

    Args:
        version: the version of the application that this process runs.
    """
    new = await note_receivers(group, receivers)
    if new is None:
        return
    until = None if _runs_another(await read_group(group), version) else await _finished_until(group)
    command = await _command(group, new, until)
    begin = "When the processes of the earlier version have ended, this" if until is None else "This"
    log.warning(
        "receivers are new: changes that the dispatchers finished before this start are not delivered to them",
        action="receivers.new",
        receivers=list(new.names),
        until=None if until is None else until.as_datetime().isoformat(),
        remedy=f"{begin} command delivers the missed changes: `{command}`. If the application was deployed with "
        "these receivers later than --since, set --since to the time of the deployment.",
    )


def _runs_another(seen: GroupView, version: str) -> bool:
    """Returns whether a process with another version of the application may hold a partition."""
    return any(one.version != version and not one.identity.is_dead for one in seen.members)


async def _finished_until(group: Group) -> Timestamp | None:
    """The time of the last change that the group has finished; None if no position is saved."""
    positions = (await PositionStore(group).load()).positions.values()
    return max((token_time(max(one.token, one.until)) for one in positions if one.token is not None), default=None)


async def _command(group: Group, new: NewReceivers, until: Timestamp | None) -> str:
    """Make the command that delivers the missed changes.

    The replay begins at `new.since`. If the oplog begins later, the replay begins shortly after the beginning of
    the oplog.
    """
    since = new.since
    oplog = await look_at_oplog(group.state.client)
    if oplog is not None and oplog.begins > since.timestamp():
        since = datetime.fromtimestamp(min(oplog.begins + _MARGIN, oplog.ends), UTC)
    arguments: list[Any] = ["dispatcher", "replay", "APP", "--missed"]
    arguments += ["--since", since.strftime("%Y-%m-%dT%H:%M:%SZ")]
    if until is not None:
        arguments += ["--until", f"{until.time},{until.inc}"]
    for name in new.names:
        arguments += ["--receiver", name]
    return shlex.join(arguments)
