"""Dead letters for operators: find, read and drop them. `operate/retries.py` asks for another attempt."""

import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from dispatcher.core.state import DEAD_LETTERS, Group
from dispatcher.core.state_checks import Misfit, Sound, letter, problem_of
from dispatcher.exceptions import MalformedLetter, UnknownLetter, UnknownReceiver
from dispatcher.operate.status_model import MemberStatus
from dispatcher.parking.record import Parts, short_id

__all__ = ["Dropped", "Wanted", "drop", "ids_of", "letters_of", "read", "resolve", "without_receiver"]

# What a list shows: all but what is long.
_SHORT: Final = {"parts": False, "chunked": False, "error.traceback": False, "short_id": False}

# Letters that a message lists.
_LISTED: Final = 5

# Letters in one command.
_SLICE: Final = 1_000

# A letter is tried again, or will be.
_UNDER_WAY: Final = ("retry_requested_at", "retrying_since")


class Wanted(NamedTuple):
    """Which letters are meant: those to which all of this applies.

    Attributes:
        receiver: its name.
        signal: its name.
        reason: why they were given up.
        since: the last attempt ended then, or later.
        until: it ended before.
        keys: values that the `_id` of the document may have.
        ids: of the letters.
    """

    receiver: str | None = None
    signal: str | None = None
    reason: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    keys: Sequence[Any] = ()
    ids: Sequence[str] | None = None

    def query(self, group: str) -> dict[str, Any]:
        """As find() takes it."""
        query: dict[str, Any] = {"group": group}
        for name in ("receiver", "signal", "reason"):
            if (value := getattr(self, name)) is not None:
                query[name] = value
        if self.since is not None or self.until is not None:
            query["last_attempt_at"] = {
                **({"$gte": self.since} if self.since is not None else {}),
                **({"$lt": self.until} if self.until is not None else {}),
            }
        if self.keys:
            query["key"] = {"$in": list(self.keys)}
        if self.ids is not None:
            query["_id"] = {"$in": list(self.ids)}
        return query


class Dropped(NamedTuple):
    """What was forgotten.

    Attributes:
        dropped: ids of the letters that are gone.
        kept: ids of those that stay, because they are being tried again.
    """

    dropped: list[str]
    kept: list[str]


async def letters_of(group: Group, wanted: Wanted, limit: int = 0) -> tuple[list[dict[str, Any]], list[Misfit]]:
    """Letters without their parts and tracebacks, the newest first.

    Args:
        group: of dispatchers, with the database of its state.
        wanted: which.
        limit: how many at most; 0 for all.

    Returns:
        The letters, and those that make no sense.

    Raises:
        PyMongoError: as the driver has it.
    """
    found = group.state.dead_letters.find(wanted.query(group.name), _SHORT)
    newest = [("last_attempt_at", -1), ("token", -1), ("_id", -1)]  # many may have failed within a millisecond
    sound = Sound(group.state.name)
    letters = sound.each(DEAD_LETTERS, await found.sort(newest).limit(limit).to_list(None), letter)
    return letters, sound.misfits


async def ids_of(group: Group, wanted: Wanted) -> list[str]:
    """The ids of letters, the oldest changes first.

    Raises:
        PyMongoError: as the driver has it.
    """
    found = group.state.dead_letters.find(wanted.query(group.name), {"_id": True})
    return [one["_id"] async for one in found.sort([("token", 1), ("_id", 1)]) if isinstance(one["_id"], str)]


async def resolve(group: Group, texts: Iterable[str]) -> list[str]:
    """The ids of letters that are named by their ids, short or whole, or by what only one of them begins with.

    Raises:
        UnknownLetter: there is none, or there are several.
        PyMongoError: as the driver has it.
    """
    ids: dict[str, None] = {}
    for text in texts:
        found = await _beginning_with(group, text) if text else {}
        exact = [id_ for id_ in found if text in (id_, short_id(id_))]
        if not found:
            raise UnknownLetter(
                f"Group {group.name!r} has no dead letter {text!r}.",
                remedy="`dispatcher dead-letters list` lists them.",
            )
        if len(exact or found) > 1:
            named = [f"{short_id(id_)} ({receiver or 'unreadable change'})" for id_, receiver in found.items()]
            listed = ", ".join(named[:_LISTED]) + (", ..." if len(named) > _LISTED else "")
            raise UnknownLetter(
                f"Several dead letters begin with {text!r}: {listed}.", remedy="Name one by its short id."
            )
        ids[next(iter(exact or found))] = None
    return list(ids)


async def _beginning_with(group: Group, text: str) -> dict[str, str | None]:
    """Letters whose id, short or whole, begins so, and their receivers: some of them if there are many."""
    letters = group.state.dead_letters
    pattern = {"$regex": f"^{re.escape(text)}"}
    either = {"group": group.name, "$or": [{"short_id": pattern}, {"_id": pattern}]}
    found = {
        one["_id"]: one.get("receiver")
        async for one in letters.find(either, {"receiver": True}).limit(_LISTED + 1)
    }
    # Earlier versions did not write the short id down.
    old = letters.find({"group": group.name, "short_id": {"$exists": False}}, {"receiver": True})
    async for one in old:
        if isinstance(one["_id"], str) and short_id(one["_id"]).startswith(text):
            found[one["_id"]] = one.get("receiver")
    return found


async def read(group: Group, id_: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """A letter and its parts.

    Raises:
        UnknownLetter: there is none.
        PyMongoError: as the driver has it.
    """
    found = await group.state.dead_letters.find_one({"group": group.name, "_id": id_}, {"short_id": False})
    if found is None:
        raise UnknownLetter(
            f"Group {group.name!r} has no dead letter {id_!r}.",
            remedy="`dispatcher dead-letters list` lists them.",
        )
    try:
        parts = await Parts(group.state.dead_letter_chunks).read(letter(found))
    except (ValueError, KeyError) as error:
        raise MalformedLetter(
            f"The dead letter {id_!r} in {group.state.name}.{DEAD_LETTERS} makes no sense: {problem_of(error)}.",
            remedy="Was it edited by hand? Mend it, or forget it with `dispatcher dead-letters drop ID`.",
        ) from error
    return found, parts


async def without_receiver(
    group: Group, ids: Sequence[str], members: Iterable[MemberStatus]
) -> UnknownReceiver | None:
    """What to say if some letters are to receivers that no dispatcher has any more; None if all can be tried.

    Args:
        group: of dispatchers, with the database of its state.
        ids: of the letters.
        members: the dispatchers that are alive.

    Raises:
        PyMongoError: as the driver has it.
    """
    known = {
        id_ for member in members for one in member.receivers for id_ in (one["id"], *one.get("former_ids", ()))
    }
    letters = group.state.dead_letters
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
        f"No dispatcher of group {group.name!r} has the receivers of these letters any more: {listed}. "
        "Nothing was changed.",
        remedy="Connect one with this name, or with formerly= this name; or drop the letters.",
    )


async def drop(group: Group, ids: Sequence[str]) -> Dropped:
    """Forget letters; those that are being tried again stay, since what becomes of them is not known yet.

    Raises:
        PyMongoError: as the driver has it.
    """
    letters, parts = group.state.dead_letters, Parts(group.state.dead_letter_chunks)
    done = Dropped([], [])
    idle = {name: {"$exists": False} for name in _UNDER_WAY}
    for i in range(0, len(ids), _SLICE):
        these = {"group": group.name, "_id": {"$in": list(ids[i : i + _SLICE])}}
        found = {one["_id"]: bool(one.get("chunked")) async for one in letters.find(these, {"chunked": True})}
        await letters.delete_many({**these, **idle})
        left = {one["_id"] async for one in letters.find(these, {"_id": True})}
        for id_, chunked in found.items():
            (done.kept if id_ in left else done.dropped).append(id_)
            if chunked and id_ not in left:
                await parts.drop(id_)
    return done
