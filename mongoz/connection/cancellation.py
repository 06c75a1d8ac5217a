"""Units of work that a cancellation must not interrupt: a write or a commit, together with its receivers."""

import asyncio
from collections.abc import Awaitable, Coroutine, Generator
from contextvars import ContextVar
from typing import Any, Generic, TypeVar

__all__ = ["is_caller_cancelled", "uninterrupted"]

T = TypeVar("T")


def uninterrupted(unit: Coroutine[Any, Any, T]) -> Awaitable[T]:
    """Await a coroutine to its end, even if the caller is cancelled meanwhile; then raise the cancellation.

    Only the end of the event loop, which cancels every task, interrupts the coroutine.

    Args:
        unit: the coroutine. It runs in a task of its own, so that timeouts inside of it work.

    Raises:
        CancelledError: the caller was cancelled. If the unit raised an error, the error is the cause.
    """
    return _Uninterrupted(unit)


class _Uninterrupted(Generic[T]):
    """Lets a caller wait for the task of a unit. A cancellation of the caller does not cancel this task.

    If a task is cancelled while it waits for a future, it first asks this future to cancel. If the future refuses,
    the task waits until the future is done, and then raises CancelledError. For the caller, an object of this
    class is a future that always refuses. `asyncio.shield` would end the wait immediately, and takes more turns
    of the loop.
    """

    __slots__ = (
        "_asyncio_future_blocking", "_is_cancelled", "_outer", "_unit", "add_done_callback", "get_loop",
    )  # fmt: skip

    def __init__(self, unit: Coroutine[Any, Any, T]) -> None:
        self._unit = unit
        self._outer: _Uninterrupted[Any] | None = _current.get()
        self._is_cancelled = False

    def __await__(self) -> Generator[Any, None, T]:
        token = _current.set(self)  # for the task, which copies the context
        task = asyncio.get_running_loop().create_task(self._unit)
        _current.reset(token)
        # The rest of the interface of a future. By the last attribute, asyncio recognizes a future.
        self.add_done_callback, self.get_loop = task.add_done_callback, task.get_loop
        self._asyncio_future_blocking = True
        try:
            yield self
        except asyncio.CancelledError as cancelled:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise cancelled from error
            raise
        finally:
            # The task's context refers to this object, and the two methods refer to the task. Without the methods,
            # there is no reference cycle that waits for the garbage collector.
            del self.add_done_callback, self.get_loop
            self._is_cancelled = self._is_cancelled and not task.done()
        return task.result()

    def cancel(self, msg: object = None) -> bool:  # noqa: ARG002 - the signature of futures
        self._is_cancelled = True
        return False

    @property
    def is_caller_cancelled(self) -> bool:
        return self._is_cancelled or (self._outer is not None and self._outer.is_caller_cancelled)


_current: ContextVar[_Uninterrupted[Any] | None] = ContextVar("mongoz_unit", default=None)


def is_caller_cancelled() -> bool:
    """Whether this code runs in a unit whose caller was cancelled and still waits for the end of the unit."""
    unit = _current.get()
    return unit is not None and unit.is_caller_cancelled
