"""Who keeps the event loop from turning: a thread looks, since nothing in the loop can.

Receivers share one loop. One that computes or waits without giving way stops all others, the change stream, and
whatever has to be renewed in time. While the loop turns this costs it a callback four times a second.
"""

import asyncio
import sys
import threading
import traceback
from time import monotonic
from types import FrameType, TracebackType
from typing import Any, Final, Self

from dispatcher.core.output.logs import get_logger
from dispatcher.core.output.throttle import Throttle
from dispatcher.delivery.invoker import Caller

__all__ = ["Watchdog"]

log = get_logger()

# Looks in the time after which the loop is blocked.
_LOOKS: Final = 4
_RARELY: Final = 0.25

# Frames of the stack that are told, the innermost ones.
_DEPTH: Final = 15

_CALL: Final = Caller.call.__code__


class Watchdog:
    """Names what blocks the event loop that it was made in.

    Args:
        block_after: seconds after which the loop is blocked.
    """

    def __init__(self, block_after: float) -> None:
        self._block_after = block_after
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
        pause = min(_RARELY, self._block_after / _LOOKS)
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
        """Whether the loop turns within some seconds, or nobody wants to know any more."""
        until = monotonic() + seconds
        while not self._stop.is_set() and (left := until - monotonic()) > 0:
            if turned.wait(min(left, _RARELY)):
                return True
        return self._stop.is_set()

    def _blocked(self, turned: threading.Event, asked: float) -> None:
        """Say who it is; and when it is over, how long it took."""
        frame = sys._current_frames().get(self._main)
        who, stack = _look_at(frame)
        name = who.get("receiver")
        del frame
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


def _look_at(frame: FrameType | None) -> tuple[dict[str, Any], str]:
    """The delivery that is at work in a stack, if one is, and the stack; that of the receiver, if there is one."""
    frames: list[FrameType] = []
    who: dict[str, Any] = {}
    while frame is not None:
        if frame.f_code is _CALL:
            delivery = frame.f_locals["delivery"]
            who = {"receiver": delivery.receiver, "signal": delivery.signal, "delivery_id": delivery.id}
            break
        frames.append(frame)
        frame = frame.f_back
    told = traceback.StackSummary.extract((one, one.f_lineno) for one in reversed(frames[:_DEPTH]))
    return who, "".join(told.format())
