"""One process of a supervisor: it is started, watched, and started again."""

import asyncio
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import IO, Any, Final

from dispatcher.core.output.logs import log
from dispatcher.core.tasks import end
from dispatcher.exceptions import ExitCode
from dispatcher.supervise.lifeline import Role

# Seconds before a process is started again: the first pause, and the longest one. After a process has worked for
# _STEADY seconds, the next pause is as short as the first one.
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 30.0
_STEADY: Final = 60.0

# Maximum seconds to wait for the last lines of a process that has ended. The streams do not end if another
# process keeps them open.
_LAST_LINES: Final = 1.0

# Maximum bytes of the message of a process to its supervisor. The process sends one message: the number of
# partitions.
_LONGEST_MESSAGE: Final = 10

# Bytes after which a line is written in several parts.
_LONGEST_LINE: Final = 1_000_000


class Backoff:
    """The pauses before a process is started again. While it ends soon after each start, the pauses double."""

    def __init__(self) -> None:
        self._next = _FIRST_PAUSE

    def pause_after(self, seconds: float) -> float:
        """The pause after a process that has run for some seconds."""
        pause = _FIRST_PAUSE if seconds >= _STEADY else self._next
        self._next = min(2 * pause, _LONGEST_PAUSE)
        return pause


class SupervisedProcess:
    """One process, which runs until the supervisor stops.

    Args:
        command: the command that starts the process.
        patience: seconds after which a stopping process is killed.
        on_join: called with the number of partitions when the process has joined its group.
        on_end: called with the exit code when the process ends by itself; returns whether to start it again.

    Attributes:
        code: the exit code of its last end. As in a shell, it is 128 plus the number of the signal if a signal
            ended the process. An end does not count if `on_end` decides that the process is started again.
    """

    def __init__(
        self,
        role: Role,
        command: list[str],
        *,
        patience: float,
        on_join: Callable[[int], None],
        on_end: Callable[[int], bool],
    ) -> None:
        self.role = role
        self.code = 0
        self._command = command
        self._patience = patience
        self._on_join = on_join
        self._on_end = on_end

    async def keep(self, stop: asyncio.Event) -> None:
        """Run the process until `stop` is set and the process has ended. If it ends by itself, start it again."""
        backoff = Backoff()
        while not stop.is_set():
            began = monotonic()
            returned = await self._live(stop)
            if stop.is_set() and returned == -signal.SIGTERM:  # the process could not handle SIGTERM yet
                returned = ExitCode.OK
            code = 128 - returned if returned < 0 else returned
            how = _described(self.role.name, returned)
            if stop.is_set():
                self.code = code
                if code:
                    log.error("a process did not stop cleanly", action="process.not_stopped", **how)
                return
            if not self._on_end(code):
                self.code = code
                log.error("a process can't work; all processes end", action="process.failed", **how)
                return
            pause = backoff.pause_after(monotonic() - began)
            log.error(
                "a process ended by itself; it is started again", action="process.ended", again_in=pause, **how
            )
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await stop.wait()

    async def _live(self, stop: asyncio.Event) -> int:
        """Run the process once. Returns its exit code, or the negative number of the signal that ended it."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with ours:
            try:
                child = self._start(theirs)
            except OSError as error:
                name = self.role.name
                log.error("a process can't start", action="process.not_started", process=name, error=repr(error))
                return ExitCode.CRASHED
            log.info("a process is started", action="process.started", process=self.role.name, pid=child.pid)
            ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            threading.Thread(
                target=_follow, args=(child, ended), name=f"follow-{self.role.name}", daemon=True
            ).start()
            tasks = [
                asyncio.create_task(self._note_join(ours), name="note-join"),
                asyncio.create_task(self._pass_on(stop, ours, child), name="pass-on-stop"),
            ]
            try:
                return await ended
            finally:
                await end(tasks)

    def _start(self, lifeline: socket.socket) -> "subprocess.Popen[bytes]":
        """Start the process in its own session: Ctrl-C on the terminal reaches only the supervisor."""
        with lifeline:
            return subprocess.Popen(  # noqa: S603 - our own command, and no shell
                self._command,
                env=self.role.environment(),
                stdin=lifeline.fileno(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )

    async def _note_join(self, lifeline: socket.socket) -> None:
        if told := await asyncio.get_running_loop().sock_recv(lifeline, _LONGEST_MESSAGE):
            self._on_join(int(told))

    async def _pass_on(
        self, stop: asyncio.Event, lifeline: socket.socket, child: "subprocess.Popen[bytes]"
    ) -> None:
        """Tell the process to stop. Kill it if it does not end in time."""
        await stop.wait()
        with suppress(OSError):
            await asyncio.get_running_loop().sock_sendall(lifeline, b".")
        await asyncio.sleep(self._patience)
        child.kill()


def _described(name: str, returned: int) -> dict[str, Any]:
    """The fields of a log line about the end of a process: its name, and its exit code or signal."""
    return {"process": name, **({"exit_code": returned} if returned >= 0 else {"signal": _signal_of(returned)})}


def _signal_of(returned: int) -> str:
    with suppress(ValueError):  # a real-time signal has no name
        return signal.Signals(-returned).name
    return str(-returned)


def _follow(child: "subprocess.Popen[bytes]", ended: "asyncio.Future[int]") -> None:
    """Pass on the lines of a process, and wait for its end. Runs in a thread."""
    pumps = [
        threading.Thread(target=_pump, args=streams, name="pump", daemon=True)
        for streams in ((child.stdout, sys.stdout), (child.stderr, sys.stderr))
    ]
    for pump in pumps:
        pump.start()
    returned = child.wait()
    until = monotonic() + _LAST_LINES
    for pump in pumps:
        pump.join(max(0.0, until - monotonic()))
    with suppress(RuntimeError):  # the loop is closed
        ended.get_loop().call_soon_threadsafe(_settle, ended, returned)


def _settle(ended: "asyncio.Future[int]", returned: int) -> None:
    if not ended.done():
        ended.set_result(returned)


def _pump(stream: IO[bytes], into: Any) -> None:
    """Write whole lines, so that lines of several processes never mix."""
    with stream:
        for line in iter(partial(stream.readline, _LONGEST_LINE), b""):
            into.buffer.write(line if line.endswith(b"\n") else line + b"\n")
