"""Sending one write, and telling its receivers."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pymongo.errors import ConnectionFailure, PyMongoError

from mongoz.persistence.origin import Origin
from mongoz.persistence.outcomes import UNKNOWN, fence, find_out, written_row
from mongoz.persistence.refusals import explain_refusal
from mongoz.persistence.targets import Target
from mongoz.signals.firing import Firing

if TYPE_CHECKING:
    from mongoz.documents.base import Document

__all__ = ["Write", "note", "raise_after", "send_and_tell"]

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Write:
    """One write of one document.

    Attributes:
        target: where it goes.
        firing: whom this process tells.
        origin: its token, and its stamp if it has one.
        instance: the document.
        id: its `_id`.
        send: sends it, in the session that it is given; returns what the server made of the document, as far as
            it was asked.
        settle: has the instance know that it was written; takes what `send` returned, returns what receivers
            are told.
        inserts: it is an insert.
    """

    target: Target
    firing: Firing
    origin: Origin
    instance: "Document"
    id: Any
    send: Callable[[Any], Awaitable[Row]]
    settle: Callable[[Row], dict[str, Any]]
    inserts: bool = False

    async def tell(self, keywords: dict[str, Any]) -> None:
        """Run the receivers, or have them run after the commit."""
        document = type(self.instance).meta.document
        await self.target.fire(self.firing, document, self.origin.token, instance=self.instance, **keywords)


async def send_and_tell(write: Write) -> None:
    """Send a write; then run its receivers: one unit, which no cancellation tears apart.

    Raises:
        PyMongoError: as the driver has it. If its outcome is unknown, and it has a stamp, the receivers have run
            if it stands; where even that can't be found out now, they run when it can.
        Exception: what the receivers raised.
    """
    target = write.target
    if write.origin.stamp is None or not write.firing.receivers or target.in_transaction:
        await target.as_unit(write.firing, _plainly(write))
    else:
        await target.as_unit(write.firing, _surely(write))


async def _plainly(write: Write) -> None:
    try:
        row = await write.send(write.target.session)
    except PyMongoError as error:
        if write.origin.stamp is not None:
            explain_refusal(error)
        raise
    if write.target.transaction is not None and write.origin.stamp is not None:
        write.target.transaction.prove_by(partial(_is_written, write))
    await write.tell(write.settle(row))


async def _is_written(write: Write) -> bool:
    return await _look_up(write) is not None


async def _surely(write: Write) -> None:
    failure: PyMongoError | None = None
    async with write.target.own_session() as session:
        try:
            row = await write.send(session)
        except UNKNOWN as error:
            failure = error
            look = partial(_look_up, write, session if isinstance(error, ConnectionFailure) else None)
            try:
                found = await look()
            except PyMongoError:
                note(error)
                # Without the session, which ends with this block.
                write.target.registry._later(_tell_when_known(write))
                raise error from None
            if found is None:
                raise
            row = found
        except PyMongoError as error:
            explain_refusal(error)
            raise
    await raise_after(write.tell(write.settle(row)), failure)


async def _look_up(write: Write, session: Any = None) -> Row | None:
    assert write.origin.stamp is not None
    if session is not None:
        await fence(write.target, session, write.id)
    return await written_row(write.target, write.id, write.origin.stamp, inserted=write.inserts)


async def _tell_when_known(write: Write) -> None:
    row = await find_out(partial(_look_up, write))
    if row is not None:
        await write.tell(write.settle(row))


def note(error: PyMongoError) -> None:
    """Say in an error that its outcome is open, and what will be done about it."""
    error.add_note(
        "Whether it was written could not be found out yet. If it was, its receivers run as soon as that is known."
    )


async def raise_after(told: Awaitable[None], failure: PyMongoError | None) -> None:
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
