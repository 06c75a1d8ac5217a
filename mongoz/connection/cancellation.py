"""Units of work that a cancellation must not interrupt: a write or a commit, together with its receivers."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context, ContextVar
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
    """Waits for a task, and does not pass cancellations on to the task.

    A cancelled task cancels the future that it waits for. If that future refuses, the task raises
    CancelledError after the wait. This future refuses. `asyncio.shield` would end the wait at once, and takes more
    turns of the loop.
    """

    __slots__ = ("_asyncio_future_blocking", "_is_cancelled", "_outer", "_task", "_unit")

    def __init__(self, unit: Coroutine[Any, Any, T]) -> None:
        self._unit = unit
        self._outer: _Uninterrupted[Any] | None = _current.get()
        self._is_cancelled = False

    def __await__(self) -> Generator[Any, None, T]:
        token = _current.set(self)  # for the task, which copies the context
        self._task = task = asyncio.get_running_loop().create_task(self._unit)
        _current.reset(token)
        self._asyncio_future_blocking = True  # by this attribute asyncio recognizes a future
        try:
            yield self
        except asyncio.CancelledError as cancelled:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise cancelled from error
            raise
        return task.result()

    def add_done_callback(self, callback: Callable[[Any], object], *, context: Context | None = None) -> None:
        self._task.add_done_callback(callback, context=context)

    def cancel(self, msg: object = None) -> bool:  # noqa: ARG002 - the signature of futures
        self._is_cancelled = True
        return False

    @property
    def is_caller_cancelled(self) -> bool:
        return (self._is_cancelled and not self._task.done()) or (
            self._outer is not None and self._outer.is_caller_cancelled
        )

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._task.get_loop()


_current: ContextVar[_Uninterrupted[Any] | None] = ContextVar("mongoz_unit", default=None)


def is_caller_cancelled() -> bool:
    """Whether this code runs in a unit whose caller was cancelled and still waits for the end of the unit."""
    unit = _current.get()
    return unit is not None and unit.is_caller_cancelled
