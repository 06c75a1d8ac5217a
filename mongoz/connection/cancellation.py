"""What must not be torn apart: a write, or a commit, and the receivers that are told of it."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context, ContextVar
from typing import Any, Generic, TypeVar

__all__ = ["is_given_up", "unbroken"]

T = TypeVar("T")


def unbroken(unit: Coroutine[Any, Any, T]) -> Awaitable[T]:
    """Await something to its end, even if the caller is cancelled meanwhile; then the cancellation goes on.

    Only the end of the event loop, which cancels every task, breaks it off.

    Args:
        unit: what to await; it runs in a task of its own, since timeouts inside of it must still work.

    Raises:
        CancelledError: the caller was cancelled. What the unit raised is its cause.
    """
    return _Held(unit)


class _Held(Generic[T]):
    """Waits for a task, and keeps cancellations from it.

    A task that is cancelled hands that on to what it waits for, and raises CancelledError afterwards if that
    refuses; this refuses. `asyncio.shield` would end the wait at once, and takes more turns of the event loop.
    """

    __slots__ = ("_asyncio_future_blocking", "_is_cancelled", "_outer", "_task", "_unit")

    def __init__(self, unit: Coroutine[Any, Any, T]) -> None:
        self._unit = unit
        self._outer: _Held[Any] | None = _current.get()
        self._is_cancelled = False

    def __await__(self) -> Generator[Any, None, T]:
        token = _current.set(self)  # for the task, which copies the context
        self._task = task = asyncio.get_running_loop().create_task(self._unit)
        _current.reset(token)
        self._asyncio_future_blocking = True  # what makes this a future, to asyncio
        try:
            yield self
        except asyncio.CancelledError as cancelled:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise cancelled from error
            raise
        return task.result()

    def add_done_callback(self, callback: Callable[[Any], object], *, context: Context | None = None) -> None:
        self._task.add_done_callback(callback, context=context)

    def cancel(self, msg: object = None) -> bool:  # noqa: ARG002 - as futures have it
        self._is_cancelled = True
        return False

    @property
    def is_given_up(self) -> bool:
        return (self._is_cancelled and not self._task.done()) or (
            self._outer is not None and self._outer.is_given_up
        )

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._task.get_loop()


_current: ContextVar[_Held[Any] | None] = ContextVar("mongoz_unit", default=None)


def is_given_up() -> bool:
    """Whether this runs inside of a unit whose caller was cancelled, and only waits for its end."""
    unit = _current.get()
    return unit is not None and unit.is_given_up
