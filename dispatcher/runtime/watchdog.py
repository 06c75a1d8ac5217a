"""Detects a blocked event loop. A thread does this, because no task of a blocked loop can run.

All receivers share one loop. A receiver that computes, or waits without `await`, stops all other receivers, the
change stream, and the renewal of leases. By default, the check costs a running loop four callbacks a second.
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

# Number of checks within `block_after`, and the maximum number of seconds between two checks.
_CHECKS: Final = 4
_RARELY: Final = 0.25

# Number of innermost stack frames in the log.
_DEPTH: Final = 15


class Watchdog:
    """Logs the receiver that blocks the running event loop.

    Args:
        block_after: if the loop runs no callback for this number of seconds, it counts as blocked.
        delivery_in: returns the delivery whose receiver runs in a task; None if there is none. It is called in
            another thread.
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
            since = monotonic()
            try:
                self._loop.call_soon_threadsafe(turned.set)
            except RuntimeError:  # the loop is closed
                return
            if not self._has_turned(turned, self._block_after):
                self._blocked(turned, since)

    def _has_turned(self, turned: threading.Event, seconds: float) -> bool:
        """Whether the loop runs a callback within some seconds, or the watchdog stops."""
        until = monotonic() + seconds
        while not self._stop.is_set() and (left := until - monotonic()) > 0:
            if turned.wait(min(left, _RARELY)):
                return True
        return self._stop.is_set()

    def _blocked(self, turned: threading.Event, since: float) -> None:
        """Log the receiver and its stack. When the loop runs again, log the duration."""
        fields, stack = self._receiver(), _stack(sys._current_frames().get(self._main))
        name = fields.get("receiver")
        further = self._throttle.due(name)
        if further is not None:
            log.error(
                "a receiver blocks the event loop; nothing else runs meanwhile"
                if name
                else "the event loop is blocked; nothing else runs meanwhile",
                action="loop.blocked",
                **fields,
                seconds=round(monotonic() - since, 3),
                stack=stack,
                further=further,
                remedy="use `await` for I/O, and asyncio.to_thread for long computations",
            )
        while not self._has_turned(turned, _RARELY):
            pass
        if further is not None and not self._stop.is_set():
            log.info(
                "the event loop runs again", action="loop.turns", seconds=round(monotonic() - since, 3), **fields
            )

    def _receiver(self) -> dict[str, str]:
        """The log fields of the receiver that runs now; empty if no receiver runs."""
        task = asyncio.current_task(self._loop)
        delivery = None if task is None else self._delivery_in(task)
        if delivery is None:
            return {}
        return {"receiver": delivery.receiver, "signal": delivery.signal, "delivery_id": delivery.id}


def _stack(frame: FrameType | None) -> str:
    """The innermost frames, as text. If a receiver runs, the text has only the frames of the receiver."""
    frames: list[FrameType] = []
    while frame is not None and frame.f_globals.get("__name__") != invoker.__name__:
        frames.append(frame)
        frame = frame.f_back
    summary = traceback.StackSummary.extract((one, one.f_lineno) for one in reversed(frames[:_DEPTH]))
    return "".join(summary.format())
