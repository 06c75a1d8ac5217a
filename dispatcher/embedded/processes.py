"""Subprocesses of `demo` and `dev`. They end when this process ends, even if it crashes."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from dispatcher.exceptions import ExitCode

__all__ = ["Child", "Line", "stopped_by_signals"]

# Reads a pipe that closes when this process dies, and then ends the child with the process id $1.
_WATCHER = 'read -r _; kill -TERM "$1"; naps=0; while [ $naps -lt 50 ] && kill -0 "$1"; do sleep 0.1; '
_WATCHER += 'naps=$((naps + 1)); done; kill -KILL "$1"'


class Line(NamedTuple):
    """A line of a child's output. `text` is None at the end of the output."""

    child: "Child"
    text: str | None


class Child:
    """A running subprocess. Used as a context manager, it is stopped at the end of the block.

    It has its own session: Ctrl-C reaches only this process, which then stops its children cleanly. If this
    process is killed, the child ends too.

    Args:
        into: a queue for the lines of the child's stdout and stderr. By default, the lines go to our stdout and
            stderr.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        into: "SimpleQueue[Line] | None" = None,
    ) -> None:
        self.name = name
        self.process = subprocess.Popen(  # noqa: S603 - our own interpreter, and no shell
            command,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=None if into is None else subprocess.PIPE,
            stderr=None if into is None else subprocess.STDOUT,
            start_new_session=True,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        self._watcher = subprocess.Popen(  # noqa: S603 - likewise; the script is a constant
            ["/bin/sh", "-c", _WATCHER, "dispatcher-watcher", str(self.process.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        if into is not None:
            threading.Thread(target=self._read, args=(into,), name=f"read-{name}", daemon=True).start()

    def _read(self, into: "SimpleQueue[Line]") -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                into.put(Line(self, line.rstrip("\n")))
        into.put(Line(self, None))

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def exit_code(self) -> int | None:
        """The exit code: None while the child runs; negative if a signal ended it."""
        return self.process.poll()

    def stop(self, grace: float = 10.0) -> int:
        """End the child with SIGTERM; after `grace` seconds, if it still runs, with SIGKILL. May be called twice.

        Returns:
            Its exit code.
        """
        with suppress(subprocess.TimeoutExpired):
            self.process.terminate()
            self.process.wait(grace)
        self.process.kill()
        code = self.process.wait()
        # The watcher ends last: it is needed if this process is killed while the child ends.
        self._watcher.kill()
        self._watcher.communicate()
        return code


@contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """Yields an event that the first SIGINT or SIGTERM sets. A second signal ends the process immediately.

    Children and the embedded MongoDB end after a second signal too, because of their watchers.
    """
    stop = threading.Event()
    signals: list[int] = []

    def on_signal(number: int, _frame: Any) -> None:
        signals.append(number)
        if len(signals) > 1:
            os._exit(ExitCode.FORCED)
        # A handler runs in the main thread. If this thread is inside of `stop.wait`, it may hold the lock of the
        # event. Then `stop.set` in the handler would wait for ever.
        threading.Thread(target=stop.set, name="stop", daemon=True).start()

    earlier = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
