"""A timer with several times: it fires at the earliest one."""

import asyncio
from collections.abc import Callable
from time import monotonic


class EarliestTimer:
    """Calls a function once, at the earliest of the times that were set.

    Args:
        call: the function. The event loop calls it.
    """

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self._at = 0.0  # kept here: on uvloop, a handle without a delay does not know its time
        self._handle: asyncio.Handle | None = None

    def set(self, at: float) -> None:
        """Set the timer, unless it is already set to an earlier time.

        Args:
            at: the time, by the monotonic clock. If it is in the past, the timer fires immediately.
        """
        if self._handle is not None:
            if self._at <= at:
                return
            self._handle.cancel()
        self._at = at
        self._handle = asyncio.get_running_loop().call_later(max(0.0, at - monotonic()), self._fire)

    def cancel(self) -> None:
        """Forget all times."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _fire(self) -> None:
        self._handle = None
        self._call()
