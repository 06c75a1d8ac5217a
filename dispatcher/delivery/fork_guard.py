"""Ends a process that a receiver has forked, as soon as the forked process returns to the dispatcher's code.

Otherwise the forked process would continue as a second dispatcher, on the sockets of the first one.
"""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeVar

from dispatcher.core.output.writer import write_at_once
from dispatcher.exceptions import ExitCode

_MESSAGE: Final = (
    b"a receiver forked a process, which returned to the code of the dispatcher and was ended; "
    b"remedy: end forked processes with os._exit(), or use asyncio.create_subprocess_exec()\n"
)

T = TypeVar("T")


class _Process:
    """The state of this process.

    Attributes:
        forked: whether this process is a child that a receiver has forked.
        loop: a forked process ends when it returns to this loop. With None, forked processes are not ended.
    """

    forked = False
    loop: asyncio.AbstractEventLoop | None = None

    def on_fork(self) -> None:
        """Record a fork, in the child. The child may run until the next turn of the loop."""
        if self.loop is not None:
            self.forked = True
            self.loop.call_soon(leave_if_forked)


this_process: Final = _Process()

if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=this_process.on_fork)


def watch_forks(loop: asyncio.AbstractEventLoop | None) -> None:
    """From now on, end forked processes when they return to `loop`. With None, do not end them any more."""
    this_process.loop = loop


def leave_if_forked(error: BaseException | None = None) -> None:
    """End this process if a receiver has forked it. If `error` is a SystemExit, its code is the exit code."""
    if not this_process.forked:
        return
    if isinstance(error, SystemExit):
        os._exit(error.code if isinstance(error.code, int) else bool(error.code))
    write_at_once(_MESSAGE)
    os._exit(ExitCode.CRASHED)


class Threads(ThreadPoolExecutor):
    """The loop's thread pool. If a function in a thread forks, the new process ends when the function ends."""

    def submit(self, function: Callable[..., T], /, *args: Any, **keywords: Any) -> Future[T]:
        """Call a function in a thread."""
        return super().submit(_run, function, args, keywords)


def _run(function: Callable[..., T], args: tuple[Any, ...], keywords: dict[str, Any]) -> T:
    try:
        result = function(*args, **keywords)
    except BaseException as error:
        leave_if_forked(error)
        raise
    leave_if_forked()
    return result
