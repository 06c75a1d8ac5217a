"""Reads the processes of a group from the state database.

MongoDB commands raise the `PyMongoError` of the driver.
"""

from dataclasses import asdict
from functools import cache
from time import time
from typing import Any, Final, TypeVar

from pydantic import BaseModel, TypeAdapter

from dispatcher.core.identity import Identity
from dispatcher.core.oplog import clock_offset
from dispatcher.core.state import MEMBERS, Group
from dispatcher.core.state_checks import StateReader
from dispatcher.core.stats import in_utc, seconds_of
from dispatcher.operate.status_model import MemberStatus

# A member counts as dead if its last heartbeat is older than this number of lease times. The second value is the
# lease time, in seconds, of a member that does not report one.
_SILENCE: Final = 1.5
_LEASE: Final = 10.0

T = TypeVar("T")


async def members_of(group: Group, now: float | None = None) -> list[MemberStatus]:
    """The processes of a group, live and dead, the oldest first.

    Args:
        now: the time by the server's clock, in seconds since 1970; None asks the server.
    """
    if now is None:
        now = time() + await clock_offset(group.state.client)
    return await read_members(group, now, StateReader(group.state.name))


async def read_members(group: Group, now: float, reader: StateReader) -> list[MemberStatus]:
    """Read the processes of a group, as `members_of` does.

    Args:
        reader: collects malformed documents.
    """
    found = group.state.as_on_this_node(MEMBERS).find({"group": group.name}).sort("_id", 1)
    return reader.each(MEMBERS, await found.to_list(), lambda one: _member(one, now))


def _member(found: dict[str, Any], now: float) -> MemberStatus:
    seen = seconds_of(found.get("seen_at"))
    if seen is None:
        raise ValueError("seen_at is not a date")
    silence = now - seen
    silent = silence >= _SILENCE * float(found.get("lease_seconds") or _LEASE)
    member = MemberStatus(
        id=str(found["_id"]),
        host=str(found.get("host")),
        pid=found.get("pid", 0),
        version=str(found.get("version")),
        application=found.get("application"),
        started_at=in_utc(found.get("started_at")),
        seen_seconds=max(0.0, silence),
        alive=not silent and not Identity.read(found).is_dead,
        partitions=sorted(found.get("partitions") or ()),
        receivers=list(found.get("receivers") or ()),
        stats=dict(found.get("stats") or {}),
        http=found.get("http"),
    )
    _StatsTypes.model_validate(member.stats)
    for receiver in member.receivers:
        _ReceiverTypes.model_validate(receiver)
    return checked(member)


@cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def checked(made: T) -> T:
    """Check the types of the values in an object of a dataclass, and return the object."""
    kind: Any = type(made)
    checked: T = _adapter(kind).validate_python(asdict(made))  # type: ignore[call-overload]
    return checked


class _ClaimsTypes(BaseModel):
    """The types of a member's report on claims."""

    waiting: int = 0
    oldest_seconds: float = 0.0
    processes: dict[str, int] = {}


class _StatsTypes(BaseModel):
    """The types of a member's statistics."""

    per_second: dict[str, float] = {}
    relay: dict[str, float] = {}
    trouble: str | None = None
    partitions: dict[str, dict[str, float | None]] = {}
    receivers: list[dict[str, Any]] = []
    claims: _ClaimsTypes | None = None


class _ReceiverTypes(BaseModel):
    """The types of a member's entry for a receiver."""

    id: str
    name: str
    signal: str
    formerly: list[str] | None = None
    concurrency: int | None = None
    rate: str | None = None
    batch: int | None = None
