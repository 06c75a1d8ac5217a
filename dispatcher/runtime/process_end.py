"""Ends the process in time, even if receivers or the driver leave threads or tasks behind.

Python waits for non-daemon threads, and an event loop waits for tasks and generators. Both wait without a limit.
So a daemon thread enforces a deadline. After the deadline it logs the remaining threads and tasks, and ends the
process.
"""

import asyncio
import os
import sys
import threading
import traceback
from pathlib import Path
from queue import Empty, SimpleQueue
from time import monotonic
from types import FrameType
from typing import Any, Final, NamedTuple

import dispatcher
from dispatcher.core.output.logs import log
from dispatcher.core.output.writer import finish
from dispatcher.exceptions import ExitCode

PATIENCE: Final = 5.0
"""Seconds that the process waits at its end for remaining threads and tasks."""

# Time limit of the last log line in seconds: the reader of stderr may be gone.
_LOG_PATIENCE: Final = 1.0

# Maximum number of threads in the log line, and maximum number of tasks in it.
_MOST: Final = 20


class _RequestedEnd(NamedTuple):
    until: float
    code: int
    loop: asyncio.AbstractEventLoop | None


class Deadline:
    """Ends this process if an orderly end takes too long. Only the latest call of `order` counts."""

    def __init__(self) -> None:
        self._orders: SimpleQueue[_RequestedEnd | None] = SimpleQueue()  # signal handlers may use it
        threading.Thread(target=self._watch, name="dispatcher-deadline", daemon=True).start()

    def order(self, seconds: float, code: int, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """End the process after some seconds, unless `lift` or another `order` is called before that.

        Args:
            seconds: counted from now.
            code: the exit code.
            loop: its tasks are logged; None to log no tasks.
        """
        self._orders.put(_RequestedEnd(monotonic() + seconds, code, loop))

    def lift(self) -> None:
        """Cancel the order: this deadline does not end the process any more."""
        self._orders.put(None)

    def _watch(self) -> None:
        order = self._orders.get()
        try:
            while order is not None:
                order = self._orders.get(timeout=max(0.0, order.until - monotonic()))
        except Empty:
            assert order is not None
            _end(order)


def _end(order: _RequestedEnd) -> None:
    logging = threading.Thread(target=_log_remaining, args=(order.loop,), daemon=True)
    logging.start()
    logging.join(_LOG_PATIENCE)
    os._exit(order.code)


def _log_remaining(loop: asyncio.AbstractEventLoop | None) -> None:
    frames = sys._current_frames()
    main = threading.main_thread()
    threads = [
        f"{one.name} at {_place(frames.get(one.ident or 0))}"
        for one in threading.enumerate()
        if one is not main and not one.daemon
    ]
    log.error(
        "the process did not end in time and is killed; these threads and tasks still run",
        action="dispatcher.left_behind",
        threads=threads[:_MOST],
        tasks=_tasks_of(loop)[:_MOST],
        main=_place(frames.get(main.ident or 0)),
        remedy="make threads daemons, and don't suppress the cancellation of tasks",
    )
    finish()


def _tasks_of(loop: asyncio.AbstractEventLoop | None) -> list[str]:
    if loop is None or loop.is_closed():
        return []
    try:
        return [f"{one.get_name()} at {_place_of_task(one)}" for one in asyncio.all_tasks(loop)]
    except RuntimeError:  # the set of tasks changed meanwhile
        return []


def _place_of_task(task: asyncio.Task[Any]) -> str:
    stack = task.get_stack(limit=1)
    return _place(stack[0] if stack else None)


def _place(frame: FrameType | None) -> str:
    """The place of the application's innermost frame; if it has no frame, the place of the innermost frame."""
    if frame is None:
        return "nowhere"
    stack = traceback.extract_stack(frame)
    known = (*(f"{Path(one).parent}{os.sep}" for one in (threading.__file__, dispatcher.__file__)), "<")
    one = next((f for f in reversed(stack) if not f.filename.startswith(known)), stack[-1])
    return f"{one.filename}:{one.lineno} in {one.name}"


def leave_in_time(code: object) -> None:
    """End this process in time, even if non-daemon threads still run.

    Args:
        code: the code of a SystemExit.
    """
    main = threading.main_thread()
    if any(not one.daemon for one in threading.enumerate() if one is not main):
        number = code if isinstance(code, int) else ExitCode.OK if code is None else ExitCode.FAILED
        Deadline().order(PATIENCE, number)
