"""Reads what a process must know of its group in order to share the partitions. One command reads one snapshot.

Every process does this about once a second, so the server leaves out the long fields: tokens and hashes of
finished changes, statistics, receivers.

MongoDB commands raise the `PyMongoError` of the driver.
"""

from collections import defaultdict
from typing import Any, Final, NamedTuple

from pymongo.read_concern import ReadConcern

from dispatcher.core.state import MEMBERS, POSITIONS, SESSIONS, Group
from dispatcher.core.state_checks import StateReader
from dispatcher.group.members import Member
from dispatcher.group.sessions import OpenSession
from dispatcher.position.documents import Layout, Ownership, read_layout
from dispatcher.position.store import documents_of

_IDENTITY: Final = ("host", "pid", "boot")

_FIELDS: Final = {
    POSITIONS: (
        *("partition", "partitions", "owner", "term", "beat", "lease_seconds", "version", "version_since"),
        *_IDENTITY,
        *("wanted", "application", "topic"),  # of the layout
    ),
    MEMBERS: ("beat", "lease_seconds", "leaving", "version", "started_at", "format", *_IDENTITY),
    SESSIONS: ("owner",),
}
"""The fields that are read, by collection."""

# A computed field of a position: whether it has a token.
_BEGUN: Final = "begun"

# The batch size. It is so large that the server sends all documents in one answer, up to 16 MB.
_MOST: Final = 1_000_000


class GroupView(NamedTuple):
    """A group at one moment.

    Attributes:
        layout: None if no dispatcher of the group ever ran, or if only versions without partitions ran.
        partitions: the partitions by number, without those whose positions were deleted.
        begun: whether the layout and the positions of all partitions are recorded.
        members: the members, dead or alive. The member that joined first comes first.
        sessions: the sessions that members have registered. If `members` lacks the owner of a session, the
            owner is dead.
    """

    layout: Layout | None
    partitions: dict[int, Ownership]
    begun: bool
    members: list[Member]
    sessions: list[OpenSession]


async def read_group(group: Group) -> GroupView:
    """Read a group. Malformed members and sessions are skipped.

    Raises:
        PositionError: the document of a position is malformed; the error names the field.
    """
    state, of_group = group.state, {"group": group.name}
    at_once = state.positions.with_options(read_concern=ReadConcern("snapshot"))
    pipeline = _rows(POSITIONS, documents_of(group.name), **{_BEGUN: {"$gt": ["$token", None]}})
    for name in (MEMBERS, SESSIONS):
        pipeline.append({"$unionWith": {"coll": name, "pipeline": _rows(name, of_group)}})
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    async for row in await at_once.aggregate(pipeline, batchSize=_MOST):
        ((name, document),) = row.items()
        found[name].append(document)
    layout, partitions = read_layout(found[POSITIONS], Ownership.read, group.name, state.name)
    begun = sum(bool(one.get(_BEGUN)) for one in found[POSITIONS] if one["_id"] != group.name)
    reader = StateReader(state.name)
    members = reader.each(MEMBERS, found[MEMBERS], Member.read)
    sessions = reader.each(SESSIONS, found[SESSIONS], OpenSession.read)
    reader.log()
    members.sort(key=lambda member: member.id)
    return GroupView(layout, partitions, layout is not None and begun == layout.partitions, members, sessions)


def _rows(collection: str, matching: dict[str, Any], **computed: Any) -> list[dict[str, Any]]:
    """The stages that read documents of a collection, as rows `{collection: document}`."""
    fields = {**dict.fromkeys(_FIELDS[collection], True), **computed}
    return [{"$match": matching}, {"$project": fields}, {"$replaceWith": {collection: "$$ROOT"}}]
