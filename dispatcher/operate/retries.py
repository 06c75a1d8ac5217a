"""Asking dispatchers to try dead letters again, and what came of it. See `parking/redelivery.py`."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from time import monotonic
from typing import Any, Final, Literal, NamedTuple

from dispatcher.core.state import Group
from dispatcher.exceptions import UnknownLetter

__all__ = ["Outcome", "outcomes", "request_retry"]

# Seconds between two looks at what became of letters.
_LOOK: Final = 0.2

# Unknown letters that a message lists.
_LISTED: Final = 5

# Letters in one command.
_SLICE: Final = 1_000


class Outcome(NamedTuple):
    """What became of one letter.

    Attributes:
        letter: its `_id`.
        result: `"delivered"`, `"failed"` again, `"refused"` (it can't be tried), or `"waiting"` (nothing yet).
        text: why, for people; empty if it was delivered.
    """

    letter: str
    result: Literal["delivered", "failed", "refused", "waiting"]
    text: str = ""


async def request_retry(
    group: Group,
    ids: Sequence[str] | None = None,
    *,
    receiver: str | None = None,
) -> dict[str, int]:
    """Ask the dispatchers of a group to try dead letters again, with fresh attempts.

    Args:
        group: of dispatchers, with the database of its state.
        ids: which letters; None for all.
        receiver: only those to a receiver of this name.

    Returns:
        Those that were asked for, and how often each was tried again before: `outcomes` takes it.

    Raises:
        UnknownLetter: one of `ids` is not there. Nothing is changed.
        PyMongoError: as the driver has it.
    """
    letters = group.state.dead_letters
    meant: dict[str, Any] = {"group": group.name}
    if receiver is not None:
        meant["receiver"] = receiver
    if ids is not None:
        meant["_id"] = {"$in": list(ids)}
    asked = {one["_id"]: int(one.get("retries", 0)) async for one in letters.find(meant, {"retries": True})}
    missing = [id_ for id_ in ids or () if id_ not in asked]
    if missing:
        listed = ", ".join(map(repr, missing[:_LISTED])) + (", ..." if len(missing) > _LISTED else "")
        raise UnknownLetter(
            f"Group {group.name!r} has no dead letter {listed}.",
            remedy="`dispatcher dead-letters list` lists them.",
        )
    request: list[dict[str, Any]] = [{"$set": {"retry_requested_at": "$$NOW"}}, {"$unset": ["retry_refused"]}]
    names = list(asked)
    for i in range(0, len(names), _SLICE):
        await letters.update_many({"_id": {"$in": names[i : i + _SLICE]}}, request)
    return asked


async def outcomes(group: Group, asked: Mapping[str, int], *, within: float) -> AsyncIterator[Outcome]:
    """What becomes of letters, as it becomes known.

    Args:
        group: of dispatchers, with the database of its state.
        asked: what `request_retry` returned.
        within: seconds to wait; what has no outcome by then is `"waiting"`.

    Raises:
        PyMongoError: as the driver has it.
    """
    letters = group.state.dead_letters
    pending = dict(asked)
    deadline = monotonic() + within
    fields = {"retry_requested_at": True, "retry_refused": True, "retries": True, "error.message": True}
    while pending:
        over = monotonic() >= deadline
        names = list(pending)
        for i in range(0, len(names), _SLICE):
            part = names[i : i + _SLICE]
            found = {one["_id"]: one async for one in letters.find({"_id": {"$in": part}}, fields)}
            for id_ in part:
                outcome = _outcome(id_, found.get(id_), pending[id_], over=over)
                if outcome is not None:
                    del pending[id_]
                    yield outcome
        if pending:
            await asyncio.sleep(_LOOK)


def _outcome(id_: str, letter: Mapping[str, Any] | None, retries: int, *, over: bool) -> Outcome | None:
    if letter is None:
        return Outcome(id_, "delivered")
    if "retry_refused" in letter:
        return Outcome(id_, "refused", letter["retry_refused"]["text"])
    if letter.get("retries", 0) > retries:
        return Outcome(id_, "failed", letter["error"]["message"])
    if not over:
        return None
    if "retry_requested_at" in letter:
        return Outcome(id_, "waiting", "No dispatcher has taken it yet. Is one running?")
    return Outcome(id_, "waiting", "It is parked: its attempts are not over, it waits behind others, or a pause.")
