"""Sends one write, and fires its `post_*` signal."""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final, NamedTuple

from pydantic import ValidationError
from pymongo.errors import ConnectionFailure, OperationFailure, PyMongoError, ServerSelectionTimeoutError

from mongoz.connection.cancellation import uninterrupted
from mongoz.connection.elections import as_transient, is_connection_error
from mongoz.connection.retry import ask_until_answered
from mongoz.exceptions import DocumentNotFound
from mongoz.model.base import Model
from mongoz.persistence.errors import NotWritten
from mongoz.persistence.origin import Origin
from mongoz.persistence.outcome.lookup import fence_session, find_written_row, is_outcome_unknown
from mongoz.persistence.outcome.refusals import explain_refusal, explain_unstorable
from mongoz.persistence.rows.copies import independent_copy
from mongoz.persistence.target import WriteTarget
from mongoz.signals.post_signals import Firing

__all__ = ["Write", "fire_if_written", "note_unknown_outcome", "raise_after_firing", "write_and_fire"]

Row = Any
Send = Callable[[Any], Awaitable[Row]]

# Errors after which the write certainly did not take effect: nothing was sent, or the server answered that nothing
# matched. A ServerSelectionTimeoutError shows that the write was never sent. If a first attempt had been sent, the
# driver would raise the error of that attempt.
_NOT_WRITTEN: Final = (ServerSelectionTimeoutError, NotWritten, DocumentNotFound, ValidationError)


class Write(NamedTuple):
    """One write of one document.

    Attributes:
        target: the target.
        firing: the receivers of this process.
        origin: the token of the write, and the stamp and the claim if the write has them.
        instance: the instance.
        id: the `_id` of the document.
        settle: updates the state of the instance with the fields that the server computed; returns the keywords
            of the receivers as a new dict.
        inserts: the command is an insert.
    """

    target: WriteTarget
    firing: Firing
    origin: Origin
    instance: Model
    id: Any
    settle: Callable[[Model, Any], dict[str, Any]]
    inserts: bool = False

    @property
    def runs_unclaimed(self) -> bool:
        """Whether there are receivers that dispatchers don't take over."""
        claim = self.origin.claim
        return claim is None or any(receiver not in claim.covered for receiver in self.firing.receivers)

    def settle_and_fire(self, row: Row) -> Awaitable[None]:
        """Run the receivers, or schedule them for the commit. The caller awaits the result in either case."""
        keywords = self.settle(self.instance, row)
        return self.target.fire(
            self.firing, self.instance.meta.document, self.origin.token, keywords, self.origin.claim
        )


def write_and_fire(write: Write, send: Send) -> Awaitable[None]:
    """Send a write, then run its receivers. The caller awaits the result.

    The write and its receivers are one unit, which a cancellation does not interrupt.

    Args:
        write: the write.
        send: sends the command in the given session; returns the fields that the server computed.

    Raises:
        PyMongoError: the driver's error. If a stamped write took effect nevertheless, its receivers have run. If
            its outcome is unknown, they run later, as soon as it is known that the write took effect.
        Exception: a receiver raised it.
    """
    if not write.firing.receivers or write.target.in_transaction:
        return _write_simply(write, send)
    write_it = _write_simply if write.origin.stamp is None else _write_stamped
    return uninterrupted(write_it(write, send))


async def _write_simply(write: Write, send: Send) -> None:
    target = write.target
    try:
        row = await send(target.session)
    except _NOT_WRITTEN:
        write.origin.undone()
        raise
    except PyMongoError as error:
        if write.origin.stamp is not None:
            explain_refusal(error)
        raise
    except Exception as error:
        explain_unstorable(error, write.instance)
        raise
    await write.settle_and_fire(row)


async def _write_stamped(write: Write, send: Send) -> None:
    """Write in a session of its own, so that an unknown outcome can be looked up."""
    try:
        session = await write.target.take_session()
        try:
            row = await send(session)
        except BaseException as error:
            await fire_if_written(write, session, error)
        else:
            if not write.target.give_back_session(session):
                await session.end_session()
            await write.settle_and_fire(row)
    finally:
        write.origin.leave()


async def fire_if_written(write: Write, session: Any, raised: BaseException) -> None:
    """Look up whether a stamped write took effect despite an error. If so, run its receivers.

    Args:
        write: the write.
        session: the session of the write, from `take_session`. This call ends it.
        raised: the error.

    Raises:
        BaseException: the error, in every case.
    """
    error = await as_transient(raised, write.target.client)
    async with AsyncExitStack() as held:
        if session is not write.target.session:
            held.push_async_callback(session.end_session)
        row = await _look_up_outcome(write, session, error, held)
    await raise_after_firing(write.settle_and_fire(row), error)


async def _look_up_outcome(write: Write, session: Any, error: BaseException, held: AsyncExitStack) -> Row:
    """Look up whether a write that raised an error took effect.

    Returns the fields that the server computed in the write.

    Raises:
        BaseException: the same error, if the write did not take effect, or if its outcome is unknown.
    """
    if isinstance(error, _NOT_WRITTEN):
        write.origin.undone()
        raise error
    if not isinstance(error, PyMongoError):
        explain_unstorable(error, write.instance)
        raise error
    if not is_outcome_unknown(error):
        if isinstance(error, OperationFailure):
            write.origin.undone()
        explain_refusal(error)
        raise error
    fenced = session if isinstance(error, ConnectionFailure) or is_connection_error(error) else None
    try:
        found = await _look_up(write, fenced)
    except PyMongoError:
        note_unknown_outcome(error)
        write.origin.leave()
        if write.runs_unclaimed:
            _fire_in_background(write, fenced, held)
        raise error from None
    if found is None:
        # The caller leaves the claimed receivers to dispatchers: if the write took effect although the lookup
        # did not find it, dispatchers see it in the stream.
        raise error
    return found


def _fire_in_background(write: Write, session: Any, held: AsyncExitStack) -> None:
    """Run the receivers when it is known that the write took effect.

    The receivers get a copy of the instance: the caller has got the error, and may change the instance or write it
    again.
    """
    copied = write._replace(instance=independent_copy(write.instance))
    write.target.deployment.run_in_background(_fire_when_known(copied, session, held.pop_all()))


async def _look_up(write: Write, session: Any = None) -> Row | None:
    assert write.origin.stamp is not None
    if session is not None:
        await fence_session(write.target, session, write.id)
    return await find_written_row(write.target, write.id, write.origin.stamp, inserted=write.inserts)


async def _fire_when_known(write: Write, session: Any, held: AsyncExitStack) -> None:
    async with held:
        row = await ask_until_answered(partial(_look_up, write, session))
    if row is not None:
        await write.settle_and_fire(row)


def note_unknown_outcome(error: PyMongoError) -> None:
    """Add a note to the error of a write: its outcome is unknown, and receivers may run later."""
    error.add_note(
        "It is not known yet whether the write took effect. If it did, its receivers run when mongoz knows this."
    )


async def raise_after_firing(fired: Awaitable[None], failure: BaseException | None) -> None:
    """Await the receivers of a write that took effect; then raise the error that the write raised, if any."""
    try:
        await fired
    except Exception as raised:
        if failure is None:
            raise
        failure.add_note(f"A receiver raised {raised!r}.")
    if failure is not None:
        failure.add_note("The write took effect despite this error, and its receivers have run.")
        raise failure
