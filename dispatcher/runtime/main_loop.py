"""Runs the event loop until a signal stops it. Receivers can't end it.

Receivers share the process and its loop. A task that raises SystemExit, a call of `loop.stop()`, a library's
signal handler or the cancellation of all tasks would end the process, or disturb its orderly end. This module
refuses or logs each of them, and the loop continues.
"""

import asyncio
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final

from dispatcher.core.file_descriptors import require_descriptors
from dispatcher.core.output.logs import log
from dispatcher.core.output.writer import write_at_once
from dispatcher.core.tasks import end, guarded
from dispatcher.delivery.fork_guard import Threads, watch_forks
from dispatcher.exceptions import Cancelled, DispatcherError, ExitCode
from dispatcher.runtime.gc_tuning import collecting
from dispatcher.runtime.process_end import PATIENCE, Deadline

Service = Callable[[asyncio.Event], Coroutine[Any, Any, None]]

# Seconds between two checks of the signal handlers.
_LOOK: Final = 1.0

# SIGHUP often arrives together with SIGTERM, and several times, so it does not count as the second signal.
_STOPPING: Final = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP") if hasattr(signal, name)
)
_FORCING: Final = frozenset(_STOPPING) - {getattr(signal, "SIGHUP", None)}


def run(service: Service, loop: str = "auto", *, within: float | None = None, forceable: bool = True) -> None:
    """Run a service until SIGINT, SIGTERM, SIGQUIT or SIGHUP. A second signal, except SIGHUP, ends the process.

    Args:
        service: called with an event. It runs until a signal sets this event.
        loop: `"auto"` uses uvloop, except on Windows.
        within: maximum seconds from the signal to the end of the process; None for no limit.
        forceable: whether a second signal, except SIGHUP, ends the process immediately. False for a process of
            a supervisor: this process may get a signal from the supervisor, and the same signal from elsewhere.

    Raises:
        DispatcherError: the service raised it, the process can't open enough files, or a thread cancelled the
            tasks of the dispatcher.
    """
    require_descriptors()
    deadline = Deadline()
    runner = asyncio.Runner(loop_factory=_loop_class(loop))
    turning: Any = runner.get_loop()
    turning.set_task_factory(guarded)
    watch_forks(turning)
    try:
        _turn(turning, _main(service, deadline, within, forceable))
    except asyncio.CancelledError as error:
        raise Cancelled(
            "A receiver or a library started a thread, and this thread cancelled the dispatcher's own tasks. "
            "Nothing is lost.",
            remedy="Don't cancel asyncio.all_tasks() in a thread. "
            "After a restart, the dispatcher continues where it stopped.",
        ) from error
    finally:
        turning.ending = True
        with suppress(SystemExit, KeyboardInterrupt):  # from tasks that are cancelled now
            runner.close()
        watch_forks(None)
        deadline.lift()


async def _main(service: Service, deadline: Deadline, within: float | None, forceable: bool) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_log_failure)
    threading.excepthook = _log_thread
    threads = Threads(thread_name_prefix="dispatcher-thread")
    loop.set_default_executor(threads)
    stop = asyncio.Event()
    signals = _Signals(stop, deadline, within, forceable)
    watching = asyncio.create_task(signals.watch(), name="watch-signals")
    code = ExitCode.CRASHED
    try:
        async with collecting():
            await service(stop)
        code = ExitCode.OK
    except DispatcherError as error:
        code = error.exit_code
        raise
    finally:
        deadline.order(PATIENCE, code, loop)
        await end([watching])
        threads.shutdown(wait=False, cancel_futures=True)


def _turn(loop: Any, main: Coroutine[Any, Any, None]) -> None:
    """Run a loop until a coroutine is done, even if other code stops the loop."""
    task = loop.create_task(main, name="main")
    while True:
        try:
            loop.run_until_complete(task)
        except (SystemExit, KeyboardInterrupt) as error:
            if task.done():
                raise
            log.error(
                "a task raised an exception that ends processes; the process continues",
                action="loop.exit_refused",
                error=repr(error),
                place=_place_of(error),
                remedy="raise an Exception instead",
            )
        except RuntimeError:
            if task.done():
                raise
            log.error(
                "the event loop was stopped, and continues",
                action="loop.stop_refused",
                place=loop.stopped_at,
                remedy="don't call loop.stop() in a receiver",
            )
        else:
            return


def _place_of(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""


def _loop_class(loop: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """Make an event loop class that records the place of the last `stop()`."""
    base: Any = asyncio.SelectorEventLoop
    if sys.platform == "win32":
        base = asyncio.ProactorEventLoop
    elif loop == "auto":
        import uvloop  # noqa: PLC0415 - not installed on Windows

        base = uvloop.Loop

    class Loop(base):  # type: ignore[misc]
        __module__ = base.__module__  # logs show it
        stopped_at = ""
        ending = False

        def stop(self) -> None:
            caller = sys._getframe(1)
            self.stopped_at = f"{caller.f_code.co_filename}:{caller.f_lineno} in {caller.f_code.co_name}"
            super().stop()

        async def shutdown_default_executor(self, *args: Any) -> None:
            """Refuse the shutdown before the end of the loop: the driver looks up host names in the executor."""
            if not self.ending:
                raise RuntimeError("The executor of the event loop belongs to the dispatcher: don't shut it down.")
            await super().shutdown_default_executor(*args)

    return Loop


def _log_failure(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an error in a task or callback whose result is not awaited."""
    error = context.get("exception")
    what = context.get("task") or context.get("future") or context.get("handle")
    log.error(
        f"error in a background task or callback: {context.get('message', 'no message')}",
        action="loop.failed",
        what=repr(what),
        exc_info=error if isinstance(error, BaseException) else None,
    )


def _log_thread(failure: threading.ExceptHookArgs) -> None:
    if failure.exc_type is not SystemExit:
        log.error(
            "a thread failed",
            action="thread.failed",
            thread=failure.thread.name if failure.thread else "",
            exc_info=failure.exc_value,
        )


class _Signals:
    """Sets an event when a signal asks the process to end."""

    def __init__(self, stop: asyncio.Event, deadline: Deadline, within: float | None, forceable: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = stop
        self._deadline = deadline
        self._within = within
        self._forceable = forceable
        self._seen: list[int] = []
        # If SIGHUP is ignored, for example by nohup, the process must outlive the terminal.
        self._ours = [one for one in _STOPPING if signal.getsignal(one) is not signal.SIG_IGN or one in _FORCING]
        self._install()

    def _install(self) -> list[str]:
        """Install our signal handlers. Returns the names of the signals that had other handlers."""
        taken = [number for number in self._ours if signal.getsignal(number) != self._on_signal]
        for number in taken:
            signal.signal(number, self._on_signal)
        return [signal.Signals(number).name for number in taken]

    async def watch(self) -> None:
        """Replace signal handlers of libraries by ours. Runs for ever."""
        while True:
            await asyncio.sleep(_LOOK)
            if taken := self._install():
                log.warning(
                    "a receiver or a library has replaced the dispatcher's signal handlers; they are restored",
                    action="signals.taken_back",
                    signals=taken,
                    remedy="don't call signal.signal() in a receiver",
                )

    def _on_signal(self, number: int, _frame: Any) -> None:
        """Handle a signal without a log line: a handler may interrupt the logger itself."""
        if number in _FORCING and self._forceable:
            self._seen.append(number)
        if len(self._seen) > 1:
            write_at_once(b"forced to stop\n")
            os._exit(ExitCode.FORCED)
        if self._within is not None:
            self._deadline.order(self._within, ExitCode.FORCED, self._loop)
        self._loop.call_soon_threadsafe(self._begin_to_stop, signal.Signals(number).name)

    def _begin_to_stop(self, name: str) -> None:
        hint = "; a second signal ends the process immediately" if self._forceable else ""
        if not self._stop.is_set():
            log.info(f"stopping{hint}", action="dispatcher.stopping", signal=name)
        self._stop.set()
