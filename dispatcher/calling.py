"""Calling a receiver once: it ends in time, and whatever it does to its task is nothing to the worker."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import monotonic
from typing import Any, Final

from mongoz.signals import Delivery

__all__ = ["Caller"]

# Seconds after which a receiver that hangs on is cancelled once more.
_CANCEL_AGAIN: Final = 1.0

# Seconds between two looks at the deadlines: at most, and at least.
_RARELY: Final = 1.0
_OFTEN: Final = 0.01


class Caller:
    """Calls receivers, and cancels those that take too long.

    Args:
        cutting: whether deliveries in flight are being cancelled because the process ends.
        timeout: seconds that most receivers may take.
    """

    def __init__(self, cutting: Callable[[], bool], timeout: float) -> None:
        self._cutting = cutting
        self._shortest = timeout
        # Who is in a receiver, and until when it may be. A timer per delivery would cost more than a delivery.
        self._deadlines: dict[asyncio.Task[Any], float] = {}
        self._overdue: Counter[asyncio.Task[Any]] = Counter()
        self._sooner = asyncio.Event()

    def expect(self, timeout: float) -> None:
        """Be prepared for a receiver that may only take so many seconds."""
        if timeout < self._shortest:
            self._shortest = timeout
            self._sooner.set()

    async def watch(self) -> None:
        """Cancel the receivers that hang. Runs for ever, beside the workers."""
        while True:
            self._sooner.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(min(_RARELY, max(_OFTEN, self._shortest / 10))):
                    await self._sooner.wait()
            now = monotonic()
            for task, deadline in list(self._deadlines.items()):
                if deadline < now:
                    self._deadlines[task] = now + _CANCEL_AGAIN  # some cancellations get lost, see `cancelling`
                    self._overdue[task] += 1
                    task.cancel()

    async def call(
        self,
        function: Callable[..., Awaitable[Any]],
        sender: Any,
        delivery: Delivery,
        keywords: dict[str, Any],
        timeout: float,  # noqa: ASYNC109 - a timer per call would cost more than the call
    ) -> BaseException | None:
        """Call a receiver once; what it raised, if it did.

        Raises:
            CancelledError: the process ends, and the grace period is over. Whatever else a receiver raises, or
                does to the task it runs in, it has merely failed.
        """
        task = asyncio.current_task()
        assert task is not None
        self._deadlines[task] = monotonic() + timeout
        try:
            await function(sender=sender, delivery=delivery, **keywords)
        except BaseException as error:
            del self._deadlines[task]
            if self._cutting() and isinstance(error, asyncio.CancelledError):
                raise
            late = await self._settle(task)
            if late and isinstance(error, asyncio.CancelledError):
                return TimeoutError(f"it took longer than {timeout:g} s")
            return error
        del self._deadlines[task]
        if task.cancelling():
            await self._settle(task)
        return None

    async def _settle(self, task: asyncio.Task[Any]) -> bool:
        """Clear the worker of cancellations that were meant for the receiver; whether it was late."""
        late = self._overdue.pop(task, 0) > 0
        if task.cancelling() and not self._cutting():
            while task.cancelling():
                task.uncancel()
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0)  # takes one that was asked for and is still to come
        return late
