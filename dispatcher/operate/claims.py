"""Books of claims for operators: which processes write claims, and which claims are not done. See `mongoz/claims`.

MongoDB commands raise the `PyMongoError` of the driver.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from time import time
from typing import Any, Final

from pydantic import BaseModel, Field

from dispatcher.claims.store import ClaimStore
from dispatcher.core.oplog import clock_offset
from dispatcher.core.state import CLAIMS, Group
from dispatcher.core.state_checks import Misfit, StateReader, problem_of
from dispatcher.core.stats import in_utc
from dispatcher.exceptions import DispatcherError, NotFound
from dispatcher.operate.member_status import checked, members_of
from dispatcher.operate.status_model import BookStatus, ClaimsStatus, GroupStatus, MemberStatus, number

# Maximum number of books that a status counts, and maximum number that it shows.
_MOST_BOOKS: Final = 1_000
_SHOWN: Final = 20

# A status leaves out a book without open claims if its last beat is older than this, in seconds. No book
# has a longer timeout.
_RECENT: Final = 3_600.0

# The receivers are most of the bytes of a book, so they are not read.
_WITHOUT_RECEIVERS: Final = {"receivers": False}

# Maximum number of processes in a message.
_LISTED: Final = 5


async def read_books(group: Group, status: GroupStatus, reader: StateReader) -> list[BookStatus]:
    """The books that have not ended, and those that deliveries wait for. Books with waiting deliveries come first.

    Args:
        status: the status of the group, with its time and its members. If there are too many books, this
            function adds "claims" to `status.at_least`.
        reader: collects malformed documents.
    """
    waiting = _waiting(status.members)
    recent = {"beat_at": {"$gte": status.at - timedelta(seconds=_RECENT)}}
    either = [
        {"group": group.name, "_id": {"$in": list(waiting)}},
        {"group": group.name, "fenced_at": None, "$or": [recent, {"open": {"$ne": []}}]},
    ]
    finding = group.state.as_on_this_node(CLAIMS).find({"$or": either}, _WITHOUT_RECEIVERS)
    found = await finding.limit(_MOST_BOOKS).to_list()
    if len(found) == _MOST_BOOKS:
        status.at_least.append("claims")
    books = reader.each(CLAIMS, found, lambda one: _book(one, status.at, waiting))
    return sorted(books, key=lambda one: (-one.waiting, -one.open, not one.alive, -one.beat_at.timestamp()))


def _waiting(members: Iterable[MemberStatus]) -> Counter[str]:
    """The number of deliveries that wait for each book, as the live dispatchers report."""
    found: Counter[str] = Counter()
    for member in members:
        if not member.alive:
            continue
        for process, count in dict(member.claims.get("processes") or {}).items():
            found[process] += int(number(count))
    return found


def claims_of(status: GroupStatus, books: Sequence[BookStatus]) -> ClaimsStatus:
    """The claims of a group.

    Args:
        status: the status of the group, with its time, its members and its parked deliveries.
        books: the result of `read_books`.
    """
    begun = [one for one in books if one.fenced_at is None]
    parked = [one for one in status.parked if one.reason == "claimed"]
    ages = [(status.at - one.oldest_at).total_seconds() for one in parked if one.oldest_at is not None]
    ages += [number(one.claims.get("oldest_seconds")) for one in status.alive]
    return ClaimsStatus(
        processes=sum(one.alive for one in books),
        open=sum(one.open for one in begun),
        released=sum(one.released for one in begun),
        waiting=sum(int(number(one.claims.get("waiting"))) for one in status.alive),
        parked=sum(one.documents for one in parked),
        oldest_seconds=round(max(0.0, *ages), 3) if ages else 0.0,
        taken_over=sum(int(number(one.stats.get("taken_over"))) for one in status.alive),
        orphaned=sum(one.documents for one in status.parked if one.reason == "orphaned"),
        books=list(books[:_SHOWN]),
    )


async def server_time(group: Group) -> datetime:
    """The time by the server's clock."""
    return datetime.fromtimestamp(time() + await clock_offset(group.state.client), UTC)


async def books_of(group: Group, now: datetime, limit: int = 0) -> tuple[list[BookStatus], list[Misfit]]:
    """The books of a group, the one with the newest beat first.

    Args:
        now: the time by the server's clock.
        limit: the maximum number of books; 0 for all.

    Returns:
        The books, and the malformed documents.
    """
    found = group.state.claims.find({"group": group.name}, _WITHOUT_RECEIVERS).sort("beat_at", -1).limit(limit)
    waiting = _waiting(await members_of(group, now.timestamp()))
    reader = StateReader(group.state.name)
    return reader.each(CLAIMS, await found.to_list(), lambda one: _book(one, now, waiting)), reader.misfits


async def count_books(group: Group) -> int:
    """The number of books of a group."""
    return await group.state.claims.count_documents({"group": group.name})


async def resolve(group: Group, process: str, now: datetime) -> BookStatus:
    """Find a book by its id, or by the first characters of its id.

    Args:
        process: the id, or its first characters.
        now: the time by the server's clock.

    Raises:
        NotFound: no book has this id, or the ids of several books begin with these characters.
        DispatcherError: the document is malformed.
    """
    begins = {"$gte": process.lower(), "$lt": f"{process.lower()}\U0010ffff"}
    matching = group.state.claims.find({"_id": begins, "group": group.name}, _WITHOUT_RECEIVERS)
    found = await matching.sort("_id", 1).limit(_LISTED + 1).to_list() if process else []
    if not found:
        raise NotFound(
            f"Group {group.name!r} has no claims of a process {process!r}.",
            remedy="`dispatcher claims list` lists the processes. Its first column has their ids; the first "
            "characters of an id are enough if they are unique.",
        )
    if len(found) > 1:
        named = [f"{one['_id']} ({one.get('host')}, pid {one.get('pid')})" for one in found]
        listed = ", ".join(named[:_LISTED]) + (", ..." if len(named) > _LISTED else "")
        raise NotFound(
            f"The ids of several processes begin with {process!r}: {listed}.", remedy="Give more of the id."
        )
    try:
        return _book(found[0], now, {})
    except Exception as error:  # wrong types may raise any error
        raise _malformed(group, found[0]["_id"], problem_of(error)) from error


def _malformed(group: Group, process: Any, problem: str) -> DispatcherError:
    return DispatcherError(
        f"The document {process!r} in {group.state.name}.{CLAIMS} is malformed: {problem}.",
        remedy="Was it edited by hand? Delete it: dispatchers take its claims over after the timeout, and a "
        "process that is alive begins a new book.",
    )


async def release(group: Group, process: str) -> bool:
    """End a book by hand: dispatchers take over the claims that are not done. The process begins a new book.

    Args:
        process: the id of the book.

    Returns:
        False if the book had ended already.

    Raises:
        DispatcherError: the document is malformed, or gone.
    """
    store, incarnation = ClaimStore(group), bytes.fromhex(process)
    while True:
        state = (await store.read([incarnation]))[incarnation]
        if state is None:
            raise _malformed(group, process, "it is not a book of claims any more")
        if state.fenced:
            return False
        # If the process has written a beat meanwhile, the fence has no effect, and is tried again.
        if await store.fence(incarnation, state.beat, by="operator") is not None:
            return True


class _BookTypes(BaseModel):
    """The types of a book."""

    beat: int
    seconds: float = Field(gt=0)
    high: int
    open: list[int]
    released: list[int]


def _book(found: Mapping[str, Any], now: datetime, waiting: Mapping[str, int]) -> BookStatus:
    """Read a document.

    Args:
        now: the time by the server's clock.
        waiting: the number of deliveries that wait for each book.

    Raises:
        Exception: the document is malformed.
    """
    types = _BookTypes.model_validate(found)
    beat_at, fenced_at = in_utc(found.get("beat_at")), in_utc(found.get("fenced_at"))
    if beat_at is None:
        raise ValueError("beat_at is not a date")
    if fenced_at is None and found.get("fenced_at") is not None:
        raise ValueError("fenced_at is not a date")
    if len(types.open) % 2:
        raise ValueError("open has an odd number of elements")
    if len(bytes.fromhex(found["_id"])) != 8:
        raise ValueError("_id does not have 16 hexadecimal digits")
    silent = (now - beat_at).total_seconds()
    book = BookStatus(
        process=found["_id"],
        host=found.get("host"),
        pid=found.get("pid"),
        started_at=in_utc(found.get("started_at")),
        beat_at=beat_at,
        seconds=types.seconds,
        alive=fenced_at is None and silent < types.seconds,
        open=sum(last - first + 1 for first, last in zip(types.open[::2], types.open[1::2], strict=True)),
        released=len(types.released),
        fenced_at=fenced_at,
        fenced_by=found.get("fenced_by"),
        waiting=waiting.get(found["_id"], 0),
    )
    return checked(book)
