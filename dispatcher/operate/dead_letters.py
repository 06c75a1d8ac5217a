"""Dead letters for operators: find, read, retry and drop them. Old ones are dropped automatically.

MongoDB commands raise the `PyMongoError` of the driver.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any, Final, Literal, NamedTuple

from pymongo.errors import PyMongoError

from dispatcher.core.error_text import text_of
from dispatcher.core.keys import keys_named
from dispatcher.core.output.logs import log
from dispatcher.core.state import HELD, Group
from dispatcher.core.state_checks import Misfit, StateReader, letter, problem_of
from dispatcher.core.stats import Stats
from dispatcher.exceptions import MalformedLetter, UnknownLetter, UnknownReceiver
from dispatcher.operate.status_model import MemberStatus
from dispatcher.parking.files import Files
from dispatcher.parking.letters import LETTERS
from dispatcher.parking.record import short_id

# Fields that only dispatchers need. Lists also omit the long fields.
_INTERNAL: Final = dict.fromkeys(("short_id", "hash", "lane", "by", "parked_at", "due_at"), False)
_SHORT: Final = {**_INTERNAL, "parts": False, "files": False, "error.traceback": False}

# The attributes of a filter that are fields of a dead letter.
_FIELDS: Final = (("receiver", "receiver"), ("signal", "signal"), ("reason", "reason"), ("error", "error.type"))

# Maximum number of dead letters in a message.
_LISTED: Final = 5

# Maximum number of dead letters in one command.
_SLICE: Final = 1_000

IDLE: Final = {name: {"$exists": False} for name in ("retry_requested_at", "retrying_since", "lane")}
"""Matches dead letters that are not being retried."""

REQUEST: Final[list[dict[str, Any]]] = [
    {"$set": {"retry_requested_at": "$$NOW"}},
    {"$unset": ["retry_refused"]},
]
"""The update that requests a retry."""

# Seconds between two reads of the outcomes of retries, and between two searches for old dead letters.
_LOOK: Final = 0.2
_BETWEEN: Final = 3_600.0


class Wanted(NamedTuple):
    """A filter of letters. A letter must match all attributes that are set.

    Attributes:
        receiver: the name of the receiver; an empty text selects changes that could not be decoded.
        error: the type of the error; an empty text selects letters without an error.
        since: the last attempt ended at this time or later.
        until: the last attempt ended before this time.
        keys: values that the `_id` of the document may have; empty for any value.
        text: the `_id` of the document as text, or the first characters of the letter's id or short id.
    """

    receiver: str | None = None
    signal: str | None = None
    reason: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    keys: Sequence[Any] = ()
    ids: Sequence[str] | None = None
    error: str | None = None
    text: str | None = None

    def query(self, group: str) -> dict[str, Any]:
        """The filter for find()."""
        query: dict[str, Any] = {"group": group, **LETTERS}
        for name, field in _FIELDS:
            if (value := getattr(self, name)) is not None:
                query[field] = value or None
        if self.since is not None or self.until is not None:
            query["last_attempt_at"] = {
                **({"$gte": self.since} if self.since is not None else {}),
                **({"$lt": self.until} if self.until is not None else {}),
            }
        if self.keys:
            query["key"] = {"$in": list(self.keys)}
        if self.ids is not None:
            query["_id"] = {"$in": list(self.ids)}
        if self.text is not None:
            begins = _begins(self.text)
            query["$or"] = [{"short_id": begins}, {"_id": begins}, {"key": {"$in": keys_named(self.text)}}]
        return query


class Dropped(NamedTuple):
    """The result of dropping letters.

    Attributes:
        kept: ids of letters that stay, because they are being retried.
    """

    dropped: list[str]
    kept: list[str]


class Outcome(NamedTuple):
    """The outcome of the retry of one letter.

    Attributes:
        result: `"delivered"`, `"failed"` again, `"refused"` (no retry is possible), or `"waiting"` (no result
            yet).
        text: the reason, for people; empty if the letter was delivered.
    """

    letter: str
    result: Literal["delivered", "failed", "refused", "waiting"]
    text: str = ""


async def letters_of(group: Group, wanted: Wanted, limit: int = 0) -> tuple[list[dict[str, Any]], list[Misfit]]:
    """Letters without their parts and tracebacks, the newest first.

    Args:
        limit: the maximum number of letters; 0 for all.

    Returns:
        The letters, and the malformed documents.
    """
    found = group.state.held.find(wanted.query(group.name), _SHORT)
    newest = [("last_attempt_at", -1), ("token", -1), ("_id", -1)]  # many letters can fail within a millisecond
    reader = StateReader(group.state.name)
    letters = reader.each(HELD, await found.sort(newest).limit(limit).to_list(None), letter)
    return letters, reader.misfits


async def ids_of(group: Group, wanted: Wanted) -> list[str]:
    """The ids of letters, in the order of their changes."""
    found = group.state.held.find(wanted.query(group.name), {"_id": True})
    return [one["_id"] async for one in found.sort([("token", 1), ("_id", 1)]) if isinstance(one["_id"], str)]


async def resolve(group: Group, texts: Iterable[str]) -> list[str]:
    """Resolve texts to ids of letters. A text is an id, a short id, or a unique beginning of an id.

    Raises:
        UnknownLetter: a text matches no letter, or several letters.
    """
    ids: dict[str, None] = {}
    for text in texts:
        found = await _beginning_with(group, text) if text else {}
        exact = [id_ for id_ in found if text in (id_, short_id(id_))]
        if not found:
            raise _unknown(group, repr(text))
        if len(exact or found) > 1:
            named = [f"{short_id(id_)} ({receiver or 'unreadable change'})" for id_, receiver in found.items()]
            listed = ", ".join(named[:_LISTED]) + (", ..." if len(named) > _LISTED else "")
            raise UnknownLetter(
                f"Several dead letters begin with {text!r}: {listed}.", remedy="Name one by its short id."
            )
        ids[next(iter(exact or found))] = None
    return list(ids)


def _unknown(group: Group, named: str) -> UnknownLetter:
    return UnknownLetter(
        f"Group {group.name!r} has no dead letter {named}.",
        remedy="`dispatcher dead-letters list` lists the dead letters.",
    )


async def _beginning_with(group: Group, text: str) -> dict[str, str | None]:
    """The first letters whose id or short id begins with a text, and their receivers."""
    letters, begins = group.state.held, _begins(text)
    either = {"$or": [{"group": group.name, **LETTERS, name: begins} for name in ("short_id", "_id")]}
    found = letters.find(either, {"receiver": True}).limit(_LISTED + 1)
    return {one["_id"]: one.get("receiver") async for one in found}


def _begins(text: str) -> dict[str, str]:
    """Matches texts with this beginning. This is a range, because a pattern would not use the indexes."""
    return {"$gte": text, "$lt": f"{text}\U0010ffff"}


async def read(group: Group, id_: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """A letter, and its parts: BSON by name, see `parking/record.py`."""
    found = await group.state.held.find_one({"group": group.name, **LETTERS, "_id": id_}, _INTERNAL)
    if found is None:
        raise _unknown(group, repr(id_))
    try:
        parts = await Files(group.state).read(letter(found))
    except (ValueError, KeyError) as error:
        raise MalformedLetter(
            f"The dead letter {id_!r} in {group.state.name}.{HELD} is malformed: {problem_of(error)}.",
            remedy="Was it edited by hand? Fix it, or drop it with `dispatcher dead-letters drop ID`.",
        ) from error
    return found, parts


async def without_receiver(
    group: Group, ids: Sequence[str], members: Iterable[MemberStatus]
) -> UnknownReceiver | None:
    """Return an error if no dispatcher has the receivers of some letters; None if all letters can be retried.

    Args:
        members: the dispatchers that are alive.
    """
    known = {
        id_ for member in members for one in member.receivers for id_ in (one["id"], *one.get("former_ids", ()))
    }
    letters = group.state.held
    gone: dict[str, int] = {}
    for i in range(0, len(ids), _SLICE):
        missing = {"_id": {"$in": list(ids[i : i + _SLICE])}, "receiver_id": {"$nin": [None, *known]}}
        async for one in letters.find(missing, {"receiver": True, "signal": True, "document": True}):
            named = f"{one['receiver']} ({one['signal']} of {one['document']})"
            gone[named] = gone.get(named, 0) + 1
    if not gone:
        return None
    listed = "; ".join(f"{count} to {name}" for name, count in list(gone.items())[:_LISTED])
    return UnknownReceiver(
        f"No dispatcher of group {group.name!r} has the receivers of these dead letters: {listed}. "
        "Nothing was changed.",
        remedy="Connect a receiver that has this name, or has it in `formerly`. Or drop the dead letters.",
    )


async def drop(group: Group, ids: Sequence[str], *, until: datetime | None = None) -> Dropped:
    """Drop letters. Letters that are being retried stay, because their outcome is not known yet.

    Args:
        until: drop only letters whose last attempt ended before this time. (If a retry failed after the ids were
            read, the letter has a later last attempt, and is kept.)
    """
    letters, files = group.state.held, Files(group.state)
    done = Dropped([], [])
    for i in range(0, len(ids), _SLICE):
        these = {"group": group.name, **LETTERS, "_id": {"$in": list(ids[i : i + _SLICE])}}
        found = await letters.find(these, {"files": True}).to_list()
        await letters.delete_many({**Wanted(until=until).query(group.name), **these, **IDLE})
        left = {one["_id"] async for one in letters.find(these, {"_id": True})}
        for one in found:
            (done.kept if one["_id"] in left else done.dropped).append(one["_id"])
            if one["_id"] not in left:
                await files.delete(one)
    return done


async def drop_old(group: Group, *, days: float, stats: Stats) -> None:
    """Drop old dead letters now and every hour, for ever. Any process may do it. Failures are only logged.

    Args:
        days: the number of days to keep dead letters after their last attempt; 0 keeps them for ever.
    """
    while days:
        before = datetime.now(UTC) + timedelta(seconds=stats.clock_offset) - timedelta(days=days)
        try:
            old = await ids_of(group, Wanted(until=before))
            gone = (await drop(group, old, until=before)).dropped
        except PyMongoError as error:
            log.info(
                "old dead letters could not be removed", action="dead_letter.not_expired", error=text_of(error)
            )
        else:
            if gone:
                log.info("old dead letters were removed", action="dead_letter.expired", count=len(gone), days=days)
        await asyncio.sleep(_BETWEEN)


async def request_retry(
    group: Group,
    ids: Sequence[str] | None = None,
) -> dict[str, int]:
    """Ask the dispatchers of a group to retry dead letters. The attempts are counted anew.

    Args:
        ids: the letters; None for all.

    Returns:
        The ids of the requested letters, each with its number of earlier retries, for `outcomes`.

    Raises:
        UnknownLetter: one of `ids` does not exist. Nothing is changed.
    """
    letters = group.state.held
    selected: dict[str, Any] = {"group": group.name, **LETTERS}
    if ids is not None:
        selected["_id"] = {"$in": list(ids)}
    requested = {one["_id"]: int(one.get("retries", 0)) async for one in letters.find(selected, {"retries": True})}
    missing = [id_ for id_ in ids or () if id_ not in requested]
    if missing:
        listed = ", ".join(map(repr, missing[:_LISTED])) + (", ..." if len(missing) > _LISTED else "")
        raise _unknown(group, listed)
    names = list(requested)
    for i in range(0, len(names), _SLICE):
        await letters.update_many({"_id": {"$in": names[i : i + _SLICE]}}, REQUEST)
    return requested


async def outcomes(group: Group, requested: Mapping[str, int], *, within: float) -> AsyncIterator[Outcome]:
    """Yield the outcome of each letter as soon as it is known.

    Args:
        requested: the result of `request_retry`.
        within: seconds to wait; a letter without an outcome by then is `"waiting"`.
    """
    letters = group.state.held
    pending = dict(requested)
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
        return Outcome(id_, "waiting", "No dispatcher has started the retry yet. Is one running?")
    return Outcome(id_, "waiting", "It is parked: an attempt, an earlier delivery or a pause must end first.")
