"""Counts dead letters by receiver and error, and retries or drops many dead letters in steps.

An action on many dead letters is a sequence of steps, so that a caller can show the progress, and stop. All steps
select dead letters whose last attempt ended before the action began. So dead letters that fail again
meanwhile are left out.

MongoDB commands raise the `PyMongoError` of the driver.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

from pymongo.errors import ExecutionTimeout

from dispatcher.core.state import HELD, Group
from dispatcher.core.state_checks import Misfit, StateReader
from dispatcher.core.stats import in_utc
from dispatcher.operate.dead_letters import IDLE, REQUEST, Wanted, drop
from dispatcher.operate.member_status import checked
from dispatcher.parking.letters import REQUESTED

STEP: Final = 1_000
"""Maximum number of dead letters in one step."""

# Maximum number of groups, and maximum number of characters of a message.
_MOST_GROUPS: Final = 200
_LONGEST_MESSAGE: Final = 1_000

# Maximum milliseconds for grouping all dead letters. If it takes longer, only the newest `_COUNTED` dead letters
# are grouped.
_PATIENCE_MS: Final = 1_000
_COUNTED: Final = 1_000

# Maximum milliseconds of other queries.
_LONGEST_MS: Final = 5_000

# Matches dead letters that are being retried, or whose retry is requested.
_IN_RETRY: Final = {"$or": [{name: {"$exists": True}} for name in ("retry_requested_at", "retrying_since")]}


@dataclass
class LetterGroup:
    """The dead letters of one receiver with one kind of error.

    Attributes:
        receiver: its name; None for changes that could not be decoded.
        error: the type of the error, `module.qualname`.
        reason: why the deliveries failed permanently, see `reason` in docs/reference/state.md.
        retrying: the number of these dead letters that are being retried, or whose retry is requested.
        newest_at: the end of the last attempt of the newest dead letter.
        message: the error of this attempt.
    """

    receiver: str | None
    error: str | None
    reason: str
    count: int
    retrying: int
    newest_at: datetime | None
    message: str | None


class LetterGroups(NamedTuple):
    """Groups of dead letters, the largest first.

    Attributes:
        complete: whether all dead letters are counted; otherwise only the newest ones are counted.
    """

    groups: list[LetterGroup]
    complete: bool
    misfits: list[Misfit]


class ActionStep(NamedTuple):
    """The result of one step.

    Attributes:
        changed: the number of dead letters that the step changed.
        more: whether another step may change more of them.
    """

    changed: int
    more: bool


class Retried(NamedTuple):
    """The state of a retry of many dead letters.

    Attributes:
        left: the number of dead letters without an outcome.
        failed: the number of dead letters that failed again.
        refused: the number of dead letters that can't be retried.
    """

    left: int
    failed: int
    refused: int


async def groups_of(group: Group, wanted: Wanted) -> LetterGroups:
    """Group dead letters by receiver, error and reason."""
    letters = group.state.held
    match: list[dict[str, Any]] = [{"$match": wanted.query(group.name)}]
    grouping: list[dict[str, Any]] = [{"$group": _BY_ERROR}, {"$sort": {"count": -1, "_id": 1}}]
    complete = True
    try:
        cursor = await letters.aggregate([*match, *grouping, {"$limit": _MOST_GROUPS}], maxTimeMS=_PATIENCE_MS)
        found = await cursor.to_list()
    except ExecutionTimeout:
        complete = False
        newest: list[dict[str, Any]] = [{"$sort": {"last_attempt_at": -1}}, {"$limit": _COUNTED}]
        found = await (await letters.aggregate([*match, *newest, *grouping], maxTimeMS=_LONGEST_MS)).to_list()
    reader = StateReader(group.state.name)
    return LetterGroups(reader.each(HELD, found, _group_of), complete, reader.misfits)


_EXISTING: Final = [
    {"$ne": [{"$type": f"${name}"}, "missing"]} for name in ("retry_requested_at", "retrying_since")
]

_BY_ERROR: Final[dict[str, Any]] = {
    "_id": {"receiver": "$receiver", "error": "$error.type", "reason": "$reason"},
    "count": {"$sum": 1},
    "retrying": {"$sum": {"$cond": [{"$or": _EXISTING}, 1, 0]}},
    "newest": {
        "$top": {
            "sortBy": {"last_attempt_at": -1},
            "output": {"at": "$last_attempt_at", "message": "$error.message"},
        }
    },
}


def _group_of(found: dict[str, Any]) -> LetterGroup:
    key, newest = found["_id"], found["newest"]
    message = newest.get("message")
    return checked(
        LetterGroup(
            receiver=key.get("receiver"),
            error=key.get("error"),
            reason=key["reason"],
            count=found["count"],
            retrying=found["retrying"],
            newest_at=in_utc(newest.get("at")),
            message=message[:_LONGEST_MESSAGE] if isinstance(message, str) else message,
        )
    )


async def request_retries(group: Group, wanted: Wanted, began: datetime) -> ActionStep:
    """Ask the dispatchers to retry the next dead letters, the oldest failures first."""
    untried = {"retry_refused.at": {"$not": {"$gte": began}}}
    ids = await _next(group, wanted, began, untried)
    await group.state.held.update_many({"_id": {"$in": ids}, **IDLE}, REQUEST)
    return ActionStep(len(ids), len(ids) == STEP)


async def withdraw_retries(group: Group, wanted: Wanted) -> int:
    """Withdraw requests for retries that have not begun. Returns the number of withdrawn requests."""
    requested = {**wanted.query(group.name), **REQUESTED}
    result = await group.state.held.update_many(requested, {"$unset": {"retry_requested_at": ""}})
    return result.modified_count


async def drop_some(group: Group, wanted: Wanted, began: datetime) -> ActionStep:
    """Drop the next dead letters, the oldest failures first. Dead letters that are being retried stay."""
    ids = await _next(group, wanted, began, {})
    done = await drop(group, ids, until=began)
    return ActionStep(len(done.dropped), len(ids) == STEP)


async def retried(group: Group, wanted: Wanted, began: datetime) -> Retried:
    """The state of a retry of many dead letters.

    A dead letter that failed again may have another error or reason now. So `failed` counts the dead letters of
    the same receiver that failed again since `began`, whatever their error and reason.

    Args:
        began: the time at which the retry began, by the server's clock.
    """
    held = group.state.held
    query, again = wanted.query(group.name), wanted._replace(error=None, reason=None, since=began, until=None)
    left = await held.count_documents({"$and": [query, _IN_RETRY]}, maxTimeMS=_LONGEST_MS)
    failed = await held.count_documents({**again.query(group.name), "retries": {"$gt": 0}}, maxTimeMS=_LONGEST_MS)
    refused = await held.count_documents({**query, "retry_refused.at": {"$gte": began}}, maxTimeMS=_LONGEST_MS)
    return Retried(left, failed, refused)


async def _next(group: Group, wanted: Wanted, began: datetime, further: dict[str, Any]) -> list[Any]:
    """The `_id`s of the next dead letters for an action. `began` is the time at which the action began."""
    until = began if wanted.until is None else min(began, wanted.until)
    query = {**wanted._replace(until=until).query(group.name), **IDLE, **further}
    found = group.state.held.find(query, {"_id": True}).sort("last_attempt_at", 1).limit(STEP)
    return [one["_id"] async for one in found.max_time_ms(_LONGEST_MS)]
