"""Find out what blocks the event loop, from a thread: nothing in a blocked loop can.

All receivers share one loop. A receiver that computes, or waits without `await`, stops all others, the change
stream, and the renewal of leases. While the loop turns, this costs it a callback four times a second.
"""

import asyncio
import sys
import threading
import traceback
from collections.abc import Callable
from time import monotonic
from types import FrameType, TracebackType
from typing import Any, Final, Self

from dispatcher.core.output.logs import log
from dispatcher.core.output.throttle import Throttle
from dispatcher.delivery import invoker
from mongoz.signals import Delivery

# Checks in the time after which the loop is blocked, and the seconds between two checks, at most.
_CHECKS: Final = 4
_RARELY: Final = 0.25

# Innermost frames of the stack that are logged.
_DEPTH: Final = 15


class Watchdog:
    """Logs what blocks the running event loop.

    Args:
        block_after: seconds after which the loop is blocked.
        delivery_in: the delivery whose receiver runs in a task, if one does. Another thread asks.
    """

    def __init__(self, block_after: float, delivery_in: Callable[["asyncio.Task[Any]"], Delivery | None]) -> None:
        self._block_after = block_after
        self._delivery_in = delivery_in
        self._loop = asyncio.get_running_loop()
        self._main = threading.get_ident()
        self._stop = threading.Event()
        self._turned = threading.Event()
        self._throttle = Throttle()
        self._thread = threading.Thread(target=self._watch, name="dispatcher-watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._turned.set()
        self._thread.join()

    def _watch(self) -> None:
        pause = min(_RARELY, self._block_after / _CHECKS)
        while not self._stop.wait(pause):
            turned = self._turned = threading.Event()
            asked = monotonic()
            try:
                self._loop.call_soon_threadsafe(turned.set)
            except RuntimeError:  # it is closed
                return
            if not self._has_turned(turned, self._block_after):
                self._blocked(turned, asked)

    def _has_turned(self, turned: threading.Event, seconds: float) -> bool:
        """Whether the loop turns within some seconds, or the watchdog stops."""
        until = monotonic() + seconds
        while not self._stop.is_set() and (left := until - monotonic()) > 0:
            if turned.wait(min(left, _RARELY)):
                return True
        return self._stop.is_set()

    def _blocked(self, turned: threading.Event, asked: float) -> None:
        """Log the receiver and its stack; later, how long it took."""
        who, stack = self._receiver(), _stack(sys._current_frames().get(self._main))
        name = who.get("receiver")
        further = self._throttle.due(name)
        if further is not None:
            log.error(
                "a receiver blocks the event loop: nothing else is done meanwhile"
                if name
                else "the event loop is blocked: nothing else is done meanwhile",
                action="loop.blocked",
                **who,
                seconds=round(monotonic() - asked, 3),
                stack=stack,
                further=further,
                remedy="await what waits, and give what computes to asyncio.to_thread",
            )
        while not self._has_turned(turned, _RARELY):
            pass
        if further is not None and not self._stop.is_set():
            log.info(
                "the event loop turns again", action="loop.turns", seconds=round(monotonic() - asked, 3), **who
            )

    def _receiver(self) -> dict[str, str]:
        """The receiver that runs at this moment, if one does."""
        task = asyncio.current_task(self._loop)
        delivery = None if task is None else self._delivery_in(task)
        if delivery is None:
            return {}
        return {"receiver": delivery.receiver, "signal": delivery.signal, "delivery_id": delivery.id}


def _stack(frame: FrameType | None) -> str:
    """The innermost frames, as text; only those of the receiver, if one runs."""
    frames: list[FrameType] = []
    while frame is not None and frame.f_globals.get("__name__") != invoker.__name__:
        frames.append(frame)
        frame = frame.f_back
    told = traceback.StackSummary.extract((one, one.f_lineno) for one in reversed(frames[:_DEPTH]))
    return "".join(told.format())
