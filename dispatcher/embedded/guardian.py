"""Runs a server that can't outlive the process that started it.

    start   starts a server on a free port, in a temporary directory, and waits until it is ready

The processes form a chain. Each process notices the death of the previous one:

    this process ──pipe──> sh (the guardian, in a session of its own) ──> the server

This process need not do anything at its end: when it dies, even by SIGKILL, the kernel closes the pipe. Then the
guardian ends the server and removes the temporary directory. `PR_SET_PDEATHSIG` would not remove the directory,
and exists on Linux only. It would end the server too early: when the *thread* that started the server ends.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dispatcher.exceptions import EmbeddedError

__all__ = ["HOST", "POLL_SECONDS", "Guardian", "Program", "free_port", "last_plain_error", "start"]

HOST = "127.0.0.1"
POLL_SECONDS = 0.01
_PORT_ATTEMPTS = 10
# The guardian sends SIGKILL ten seconds after SIGTERM (100 naps in the script); we wait a little longer.
_STOP_SECONDS = 15.0

# $1 is the directory to remove at the end, or empty; the other arguments are the command line of the server.
# - The watcher is the part in braces. By default, a background job of a non-interactive shell reads /dev/null. So
#   the watcher gets the pipe by fd 3.
# - `read` returns in two cases: the Python process has died, which closes the pipe; or the Python process has
#   written a line. The line is needed if a fork of the Python process has a copy of the pipe: then the pipe stays
#   open.
# - KILL ends the watcher: if the Python process ignores TERM, the watcher ignores TERM too.
_GUARDIAN = r"""
scratch=$1; shift
exec 3<&0 </dev/null
"$@" >&2 3<&- &
server=$!
trap 'kill -TERM "$server"' TERM INT HUP
{
    read -r _
    kill -TERM "$server"
    naps=0
    while [ "$naps" -lt 100 ] && kill -0 "$server"; do sleep 0.1; naps=$((naps + 1)); done
    kill -KILL "$server"
} <&3 >/dev/null 2>&1 &
watcher=$!
exec 3<&-
echo "$server"
exec >&2
wait "$server"; code=$?
# A signal to the guardian itself interrupts the wait before the server is gone.
while [ "$code" -gt 128 ] && kill -0 "$server" 2>/dev/null; do wait "$server"; code=$?; done
kill -KILL "$watcher" 2>/dev/null
[ -z "$scratch" ] || rm -rf -- "$scratch"
exit "$code"
"""

_ERROR_WORDS = re.compile(r"error|cannot|not |fail|denied|illegal", re.IGNORECASE)
_ADDRESS_IN_USE = re.compile(r"address (already )?in use", re.IGNORECASE)
_REMEDIES = (
    (_ADDRESS_IN_USE, "stop the process that listens there, use another port, or omit the port to get a free one"),
    (re.compile(r"No space left"), "make room on the disk, or set TMPDIR to a directory on another disk"),
)


def last_plain_error(log: str, code: int) -> str:
    """Return the line that explains best why the server ended. The log is plain text."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    wrong = [line for line in lines if _ERROR_WORDS.search(line)]
    if wrong or lines:
        return (wrong or lines)[-1]
    return "Illegal instruction" if code == 128 + signal.SIGILL else "it logged nothing"


@dataclass(frozen=True, slots=True)
class Program:
    """A kind of server, and how to explain a failed start.

    Attributes:
        name: the name of the server in errors. The log file has this name, too.
        otherwise: the remedy for an unknown error.
        remedies: the first pattern that matches the error gives the remedy.
        last_error: takes the log and the exit code, and returns the line that explains the end best.
    """

    name: str
    otherwise: str
    remedies: Sequence[tuple[re.Pattern[str], str]] = ()
    last_error: Callable[[str, int], str] = last_plain_error

    def remedy(self, error: str) -> str:
        """The remedy for an error."""
        known = (*self.remedies, *_REMEDIES)
        return next((remedy for pattern, remedy in known if pattern.search(error)), self.otherwise)


class _PortTakenError(EmbeddedError):
    """Another process listens on the port."""


@dataclass(eq=False, slots=True)
class Guardian:
    """The shell that runs a server, and our end of the pipe that keeps the shell and the server alive.

    Attributes:
        pid: the process id of the server itself.
        port: the TCP port, on 127.0.0.1 only.
        directory: holds the log, and the server's data if it has any.
        temporary: whether the directory is removed at the end.
    """

    program: Program
    process: subprocess.Popen[bytes]
    pipe: IO[bytes]
    log: IO[bytes]
    pid: int
    port: int
    directory: Path
    temporary: bool

    @property
    def address(self) -> str:
        """The host and the port."""
        return f"{HOST}:{self.port}"

    def read_log(self) -> str:
        """The text that the server has printed so far."""
        # read() would move the file position, which the server shares.
        descriptor = self.log.fileno()
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode(errors="replace")

    def check_alive(self) -> None:
        """If the server has ended, raise an error with its last output."""
        code = self.process.poll()
        if code is None:
            return
        error = self.program.last_error(self.read_log(), code)
        kind = _PortTakenError if _ADDRESS_IN_USE.search(error) else EmbeddedError
        raise kind(
            f"{self.program.name} ended while starting on {self.address} (exit code {code}): {error}",
            remedy=self.program.remedy(error),
        )

    def stop(self) -> None:
        """End the server, remove its directory if that is temporary, and return. May be called twice."""
        if self not in _running:
            return
        # OSError: server and guardian have ended by themselves. ValueError: another thread closed the pipe.
        with suppress(OSError, ValueError):
            self.pipe.write(b"stop\n")
        self.pipe.close()
        self.log.close()
        try:
            code: int | None = self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            code = None
        if code is None or code < 0:
            # The guardian hangs or was killed: kill all processes of its session.
            with suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        if self.temporary:
            # Usually the guardian has already removed the directory.
            shutil.rmtree(self.directory, ignore_errors=True)
        _running.discard(self)


# The running servers. The set keeps a server alive if the caller keeps only its address, but no `Guardian`.
_running: set[Guardian] = set()


def _abandon_in_child() -> None:
    """Forget the servers of the parent: a fork must neither stop them nor keep them alive."""
    for guardian in _running:
        guardian.pipe.close()
    _running.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_abandon_in_child)


def start(
    program: Program,
    command: Callable[[int, Path], Sequence[str]],
    wait: Callable[[Guardian], None],
    *,
    port: int | None = None,
    directory: Path | None = None,
) -> Guardian:
    """Start a server and wait until it is ready.

    Args:
        command: takes the port and the directory, and returns the command line.
        wait: returns when the server is ready. It calls `check_alive` meanwhile, and raises an error if the
            server is not ready in time.
        port: the TCP port; a free one by default.
        directory: created if missing. By default, a temporary directory that is removed at the end.

    Raises:
        EmbeddedError: the server ended before it was ready (its last error is quoted), or the port is taken.
    """
    attempts = 1 if port else _PORT_ATTEMPTS
    while True:
        attempts -= 1
        guardian = _launch(program, command, port or free_port(), directory)
        try:
            wait(guardian)
        except _PortTakenError:
            guardian.stop()
            # Another process has taken the free port meanwhile: try another free port.
            if not attempts:
                raise
        except BaseException:
            guardian.stop()
            raise
        else:
            guardian.log.close()
            return guardian


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nothing uses at the moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _launch(
    program: Program, command: Callable[[int, Path], Sequence[str]], port: int, directory: Path | None
) -> Guardian:
    home = _prepared(program, directory)
    scratch = "" if directory else str(home)
    # This process opens the log. So the log contains errors of the server's loader too, and can still be read
    # after the guardian has removed the directory.
    log = _log_file(program, home).open("w+b", buffering=0)
    try:
        # S603: no shell parses the words of the command, sh gets them as "$@".
        process = subprocess.Popen(  # noqa: S603
            ["/bin/sh", "-c", _GUARDIAN, "mongoz-guardian", scratch, *command(port, home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            bufsize=0,
            start_new_session=True,
        )
    except OSError as error:
        log.close()
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)
        raise EmbeddedError(
            f"/bin/sh cannot be run: {error}", remedy="raise the limits of this user: see `ulimit -a`"
        ) from error
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdout as announced:
        # The line is empty if the shell itself was killed: `check_alive` reports that.
        pid = int(announced.readline() or 0)
    guardian = Guardian(program, process, process.stdin, log, pid, port, home, temporary=directory is None)
    _running.add(guardian)
    return guardian


def _log_file(program: Program, directory: Path) -> Path:
    return directory / f"{program.name}.log"


def _prepared(program: Program, directory: Path | None) -> Path:
    """Create the directory, and return it. An old log in it is kept, e.g. as `mongod.log.1`."""
    try:
        if directory is None:
            return Path(tempfile.mkdtemp(prefix="mongoz-")).resolve()
        directory.mkdir(parents=True, exist_ok=True)
        # The log is moved, not emptied: a server that runs in this directory may still write into it. A mongod
        # that finds another mongod there ends with the error DBPathInUse.
        log = _log_file(program, directory)
        with suppress(FileNotFoundError):
            log.replace(f"{log}.1")
        log.touch()
    except OSError as error:
        raise EmbeddedError(
            f"no directory for the data of {program.name}: {error}",
            remedy="name a directory that can be written to",
        ) from error
    return directory.resolve()
