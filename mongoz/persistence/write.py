"""Sending one write, and telling its receivers."""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from pymongo.errors import ConnectionFailure, PyMongoError, ServerSelectionTimeoutError

from mongoz.connection.cancellation import unbroken
from mongoz.connection.elections import as_passing, is_of_connection
from mongoz.connection.retry import find_out
from mongoz.persistence.origin import Origin
from mongoz.persistence.outcome.lookup import fence, is_unknown, written_row
from mongoz.persistence.outcome.refusals import explain_refusal, explain_unstorable
from mongoz.persistence.rows.copies import independent_copy
from mongoz.persistence.target import Target
from mongoz.signals.post_signals import Firing

if TYPE_CHECKING:
    from mongoz.documents.base import Document

__all__ = ["Write", "note", "raise_after", "send_and_tell"]

Row = Any


class Write(NamedTuple):
    """One write of one document.

    Attributes:
        target: where it goes.
        firing: whom this process tells.
        origin: its token, and its stamp if it has one.
        instance: the document.
        id: its `_id`.
        send: sends it, in the session that it is given; returns what the server made of the document, where that
            is more than what was sent.
        settle: has an instance know that it was written; takes it and what `send` returned, returns what
            receivers are told, as a new dict.
        inserts: it is an insert.
    """

    target: Target
    firing: Firing
    origin: Origin
    instance: "Document"
    id: Any
    send: Callable[[Any], Awaitable[Any]]
    settle: Callable[["Document", Any], dict[str, Any]]
    inserts: bool = False

    def settle_and_tell(self, row: Row) -> Awaitable[None]:
        """Run the receivers, or have them run after the commit. To be awaited in either case."""
        keywords = self.settle(self.instance, row)
        return self.target.fire(self.firing, self.instance.meta.document, self.origin.token, keywords)


def send_and_tell(write: Write) -> Awaitable[None]:
    """Send a write; then run its receivers: one unit, which no cancellation tears apart. To be awaited.

    Raises:
        PyMongoError: as the driver has it. If its outcome is unknown, and it has a stamp, the receivers have run
            if it stands; where even that can't be found out now, they run when it can.
        Exception: what the receivers raised.
    """
    if not write.firing.receivers or write.target.in_transaction:
        return _plainly(write)
    return unbroken(_plainly(write) if write.origin.stamp is None else _surely(write))


async def _plainly(write: Write) -> None:
    target = write.target
    try:
        row = await write.send(target.session)
    except PyMongoError as error:
        if write.origin.stamp is not None:
            explain_refusal(error)
        raise
    except Exception as error:
        explain_unstorable(error, write.instance)
        raise
    await write.settle_and_tell(row)


async def _surely(write: Write) -> None:
    session = await write.target.lent_session()
    try:
        row = await write.send(session)
    except BaseException as raised:
        error = await as_passing(raised, write.target.client)
        async with AsyncExitStack() as held:
            if session is not write.target.session:
                held.push_async_callback(session.end_session)
            row = await _found_out(write, session, error, held)
        await raise_after(write.settle_and_tell(row), error)
    else:
        await write.target.give_back(session)
        await write.settle_and_tell(row)


async def _found_out(write: Write, session: Any, error: BaseException, held: AsyncExitStack) -> Row:
    """What the server made of a write that raised an error, if it stands all the same.

    Raises:
        BaseException: the error; it does not stand, or that is not known.
    """
    # The first was never sent: after a first attempt the driver raises that one's error.
    if isinstance(error, ServerSelectionTimeoutError) or not isinstance(error, PyMongoError):
        explain_unstorable(error, write.instance)
        raise error
    if not is_unknown(error):
        explain_refusal(error)
        raise error
    sent_in = session if isinstance(error, ConnectionFailure) or is_of_connection(error) else None
    try:
        found = await _look_up(write, sent_in)
    except PyMongoError:
        note(error)
        _tell_later(write, sent_in, held)
        raise error from None
    if found is None:
        raise error
    return found


def _tell_later(write: Write, session: Any, held: AsyncExitStack) -> None:
    """Have the receivers run once it is known that the write stands.

    They get the instance as it is now: the caller, who has the error, puts his back, or tries again with it.
    """
    copied = write._replace(instance=independent_copy(write.instance))
    write.target.registry._later(_tell_when_known(copied, session, held.pop_all()))


async def _look_up(write: Write, session: Any = None) -> Row | None:
    assert write.origin.stamp is not None
    if session is not None:
        await fence(write.target, session, write.id)
    return await written_row(write.target, write.id, write.origin.stamp, inserted=write.inserts)


async def _tell_when_known(write: Write, session: Any, held: AsyncExitStack) -> None:
    async with held:
        row = await find_out(partial(_look_up, write, session))
    if row is not None:
        await write.settle_and_tell(row)


def note(error: PyMongoError) -> None:
    """Say in an error that its outcome is open, and what will be done about it."""
    error.add_note(
        "Whether it was written could not be found out yet. If it was, its receivers run as soon as that is known."
    )


async def raise_after(told: Awaitable[None], failure: BaseException | None) -> None:
    """Await the receivers of a write that stands; then raise the error that its answer was, if it was one."""
    try:
        await told
    except Exception as raised:
        if failure is None:
            raise
        failure.add_note(f"And a receiver raised {raised!r}.")
    if failure is not None:
        failure.add_note("It was written all the same, and its receivers have run.")
        raise failure
