"""A private, real mongod for development and tests. It can't outlive the process that started it.

    start_embedded   starts a mongod on a free port, in a temporary directory, and waits for its election
    embedded_mongo   start_embedded as a context manager

The chain of processes. Each process notices the death of the previous one:

    this process ──pipe──> sh (the guardian, in a session of its own) ──> mongod

This process need not act at its end: when it dies, even by SIGKILL, the kernel closes the pipe. Then the
guardian ends mongod and removes the temporary directory. `PR_SET_PDEATHSIG` would not remove the directory, and
exists on Linux only. It would end mongod too early: when the *thread* that started mongod ends.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dispatcher.embedded.binary import checked, find_mongod, require_posix
from dispatcher.exceptions import EmbeddedError

if TYPE_CHECKING:
    from pymongo import MongoClient

__all__ = ["EmbeddedMongo", "embedded_mongo", "start_embedded"]

_HOST = "127.0.0.1"
_REPLICA_SET = "rs0"
_PORT_ATTEMPTS = 10
_POLL_SECONDS = 0.01
# The guardian sends SIGKILL ten seconds after SIGTERM (100 naps in the script); we wait a little longer.
_STOP_SECONDS = 15.0

# $1 is the directory to remove at the end, or empty; the rest is the command line of mongod.
# - A background job of a non-interactive shell reads /dev/null by default: hence fd 3.
# - `read` returns in two cases: this process has died, which closes the pipe, or this process asks for the end
#   with a line. The line is needed if a fork of this process has a copy of the pipe: the pipe then stays open.
# - The watcher is ended by KILL: it could have inherited an ignored TERM, e.g. from a parent under `nohup`.
_GUARDIAN = r"""
scratch=$1; shift
exec 3<&0 </dev/null
"$@" >&2 3<&- &
mongod=$!
trap 'kill -TERM "$mongod"' TERM INT HUP
{
    read -r _
    kill -TERM "$mongod"
    naps=0
    while [ "$naps" -lt 100 ] && kill -0 "$mongod"; do sleep 0.1; naps=$((naps + 1)); done
    kill -KILL "$mongod"
} <&3 >/dev/null 2>&1 &
watcher=$!
exec 3<&-
echo "$mongod"
exec >&2
wait "$mongod"; code=$?
# A signal to the guardian itself interrupts the wait before mongod is gone.
while [ "$code" -gt 128 ] && kill -0 "$mongod" 2>/dev/null; do wait "$mongod"; code=$?; done
kill -KILL "$watcher" 2>/dev/null
[ -z "$scratch" ] || rm -rf -- "$scratch"
exit "$code"
"""

_ERROR_WORDS = re.compile(r"error|cannot|not |fail|denied|illegal", re.IGNORECASE)
_ADDRESS_IN_USE = re.compile(r"address already in use", re.IGNORECASE)
# The first match in the output of a mongod that ended early gives the remedy.
_REMEDIES = (
    (re.compile(r"libcurl"), "apt-get install libcurl4 (or your system's package of libcurl)"),
    (re.compile(r"lib(crypto|ssl)"), "this mongod was built for another OpenSSL: set MONGOZ_MONGOD"),
    (re.compile(r"shared librar|Library not loaded|GLIBC"), "install the library, or set MONGOZ_MONGOD"),
    (_ADDRESS_IN_USE, "stop the process that listens there, or name another port, or no port to get a free one"),
    (re.compile(r"DBPathInUse"), "stop the mongod that uses this directory, or name another directory"),
    (re.compile(r"Illegal instruction"), "this mongod needs a newer CPU, with AVX: use another machine"),
    (re.compile(r"unrecognised option|[Uu]nknown.*parameter"), "check extra_args; MongoDB 6.0+ is needed"),
    (re.compile(r"No space left"), "make room on the disk, or set TMPDIR to another one"),
)


@dataclass(frozen=True, eq=False, slots=True)
class EmbeddedMongo:
    """A running private mongod.

    Attributes:
        url: for clients, e.g. `mongodb://127.0.0.1:41234/?replicaSet=rs0`.
        port: the TCP port, on 127.0.0.1 only.
        directory: holds its data and its `mongod.log`. A temporary directory is removed when mongod ends, even if
            it is killed. Pass a directory to start again on the same data.
        pid: of mongod itself, e.g. to send it a SIGSTOP in a test.
    """

    url: str
    port: int
    directory: Path
    pid: int
    _guardian: "_Guardian" = field(repr=False)

    def stop(self) -> None:
        """End mongod, and remove its directory if that is temporary. Returns afterwards. May be called twice."""
        self._guardian.stop()


@contextmanager
def embedded_mongo(
    *,
    port: int | None = None,
    directory: Path | None = None,
    replica_set: bool = True,
    mongod: Path | None = None,
    extra_args: Sequence[str] = (),
    timeout: float = 15.0,
) -> Iterator[EmbeddedMongo]:
    """Run a private mongod during a `with` block. For the arguments see `start_embedded`.

    Raises:
        EmbeddedError: see `start_embedded`.

    Examples:
        >>> with embedded_mongo() as server:
        ...     client = AsyncMongoClient(server.url)
    """
    server = start_embedded(
        port=port,
        directory=directory,
        replica_set=replica_set,
        mongod=mongod,
        extra_args=extra_args,
        timeout=timeout,
    )
    try:
        yield server
    finally:
        server.stop()


def start_embedded(
    *,
    port: int | None = None,
    directory: Path | None = None,
    replica_set: bool = True,
    mongod: Path | None = None,
    extra_args: Sequence[str] = (),
    timeout: float = 15.0,
) -> EmbeddedMongo:
    """Start a private mongod and wait until it accepts writes, which takes less than a second.

    mongod ends when `stop()` is called, or when this process ends, even if it crashes. Ctrl-C does not reach it.
    This function blocks: from a running event loop, call it in a thread.

    Args:
        port: the TCP port; a free one by default.
        directory: keeps the data between runs; created if missing. If it holds a replica set, this set is moved to
            this run's port. By default, a temporary directory that is removed at the end.
        replica_set: a replica set of one node, `rs0`. False: a standalone, without change streams.
        mongod: the binary; `find_mongod()` by default.
        extra_args: more arguments for mongod, e.g. `("--setParameter", "enableTestCommands=1")`. `--logpath`
            is not allowed: this function reads in the log when mongod listens.
        timeout: seconds until it must accept writes.

    Raises:
        EmbeddedError: there is no usable mongod, mongod ended at once (the message has its last error), the port
            is taken, or mongod did not become primary in time.

    Examples:
        >>> server = start_embedded(directory=Path(".mongo"))
        >>> server.url
        'mongodb://127.0.0.1:41234/?replicaSet=rs0'
        >>> server.stop()
    """
    require_posix()
    binary = find_mongod() if mongod is None else checked(mongod, "mongod")
    deadline = time.monotonic() + timeout
    attempts = 1 if port else _PORT_ATTEMPTS
    while True:
        attempts -= 1
        guardian = _launch(binary, port or _free_port(), directory, replica_set, extra_args)
        try:
            _wait_until_listening(guardian, deadline)
            _wait_until_primary(guardian, deadline)
        except _PortTakenError:
            guardian.stop()
            # Another process has taken the free port meanwhile: try the next port.
            if not attempts:
                raise
        except BaseException:
            guardian.stop()
            raise
        else:
            return guardian.handle()


class _PortTakenError(EmbeddedError):
    """Another process listens on the port."""


@dataclass(eq=False, slots=True)
class _Guardian:
    """The shell that runs mongod, and our end of the pipe that keeps both alive."""

    process: subprocess.Popen[bytes]
    pipe: IO[bytes]
    log: IO[bytes]
    pid: int
    port: int
    directory: Path
    temporary: bool
    replica_set: bool

    @property
    def address(self) -> str:
        return f"{_HOST}:{self.port}"

    def handle(self) -> EmbeddedMongo:
        """Return the public object for a server that is ready."""
        self.log.close()
        query = f"?replicaSet={_REPLICA_SET}" if self.replica_set else ""
        return EmbeddedMongo(f"mongodb://{self.address}/{query}", self.port, self.directory, self.pid, self)

    def read_log(self) -> str:
        # read() would move the file position, which mongod shares.
        descriptor = self.log.fileno()
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode(errors="replace")

    def check_alive(self) -> None:
        """Raise an error with mongod's last output, if it has ended."""
        code = self.process.poll()
        if code is None:
            return
        reason = _last_error(self.read_log(), code)
        remedy = next((remedy for pattern, remedy in _REMEDIES if pattern.search(reason)), "")
        kind = _PortTakenError if _ADDRESS_IN_USE.search(reason) else EmbeddedError
        raise kind(
            f"mongod ended while starting on {self.address} (exit code {code}): {reason}",
            remedy=remedy or "run this mongod by hand with --version to see whether it works here at all",
        )

    def stop(self) -> None:
        if self not in _running:
            return
        # OSError: mongod and the guardian have ended by themselves. ValueError: another thread closed the pipe.
        with suppress(OSError, ValueError):
            self.pipe.write(b"stop\n")
        self.pipe.close()
        self.log.close()
        try:
            code: int | None = self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            code = None
        if code is None or code < 0:
            # The guardian hangs or was killed: kill the rest of its session.
            with suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        if self.temporary:
            # Usually the guardian has already removed it.
            shutil.rmtree(self.directory, ignore_errors=True)
        _running.discard(self)


# The running servers. The set keeps a server alive if the caller keeps only its URL and not the handle.
_running: set[_Guardian] = set()


def _abandon_in_child() -> None:
    """Forget the servers of the parent: a fork must neither stop them nor keep them alive."""
    for guardian in _running:
        guardian.pipe.close()
    _running.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_abandon_in_child)


# -- launching ---------------------------------------------------------------------------------------


def _launch(
    binary: Path, port: int, directory: Path | None, replica_set: bool, extra_args: Sequence[str]
) -> _Guardian:
    data = _prepared(directory)
    scratch = "" if directory else str(data)
    command = ["/bin/sh", "-c", _GUARDIAN, "mongoz-guardian", scratch, str(binary)]
    command += [*_arguments(port, data, replica_set), *extra_args]
    # This process opens the log. So the log contains errors of mongod's loader too, and can still be read after
    # the guardian has removed the directory.
    log = (data / "mongod.log").open("w+b", buffering=0)
    try:
        # S603: no shell parses the words of mongod, sh gets them as "$@".
        process = subprocess.Popen(  # noqa: S603
            command,
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
    guardian = _Guardian(process, process.stdin, log, pid, port, data, directory is None, replica_set)
    _running.add(guardian)
    return guardian


def _arguments(port: int, directory: Path, replica_set: bool) -> list[str]:
    arguments = ["--port", str(port), "--bind_ip", _HOST, "--nounixsocket", "--dbpath", str(directory)]
    arguments += ["--quiet", "--wiredTigerCacheSizeGB", "0.25"]
    # By default the journal is preallocated in files of 100 MB. This option makes it 9 MB instead of 301 MB, and
    # the recovery faster.
    arguments += ["--wiredTigerEngineConfigString", "log=(file_max=8MB,prealloc=false)"]
    arguments += ["--setParameter", "diagnosticDataCollectionEnabled=false"]
    # By default a stopping primary waits 15 seconds for a successor, and there is none.
    arguments += ["--setParameter", "shutdownTimeoutMillisForSignaledShutdown=0"]
    return arguments + (["--replSet", _REPLICA_SET] if replica_set else [])


def _prepared(directory: Path | None) -> Path:
    """Create the directory for the data, and return it. An old log in it is kept as `mongod.log.1`."""
    try:
        if directory is None:
            return Path(tempfile.mkdtemp(prefix="mongoz-")).resolve()
        directory.mkdir(parents=True, exist_ok=True)
        # The log is moved, not emptied: a mongod that runs in this directory may still write into it. In this case
        # the new mongod ends with the error DBPathInUse.
        with suppress(FileNotFoundError):
            (directory / "mongod.log").replace(directory / "mongod.log.1")
        (directory / "mongod.log").touch()
    except OSError as error:
        raise EmbeddedError(
            f"no directory for the data of mongod: {error}", remedy="name a directory that can be written to"
        ) from error
    return directory.resolve()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_listening(guardian: _Guardian, deadline: float) -> None:
    """Wait until the log says that mongod listens.

    A client that connects too early waits half a second before it tries again. And a connection to the port
    would not prove that our mongod has it: another process could have taken it first.
    """
    # All versions log these words; before 4.4 with other capitals.
    while "waiting for connections" not in guardian.read_log().lower():
        guardian.check_alive()
        if time.monotonic() > deadline:
            raise _too_late(guardian, "it does not listen yet")
        time.sleep(_POLL_SECONDS)


def _wait_until_primary(guardian: _Guardian, deadline: float) -> None:
    # PLC0415: pymongo takes a tenth of a second to import, which `find_mongod` does not need.
    from pymongo import MongoClient  # noqa: PLC0415
    from pymongo.errors import PyMongoError  # noqa: PLC0415

    # Each step has a time limit, so that a hanging mongod can't delay us beyond the deadline.
    with MongoClient[dict[str, Any]](
        _HOST,
        guardian.port,
        directConnection=True,
        retryReads=False,
        serverSelectionTimeoutMS=1000,
        connectTimeoutMS=1000,
        socketTimeoutMS=2000,
    ) as client:
        while True:
            trouble = "it was not elected"
            try:
                hello = client.admin.command("hello")
                if hello["isWritablePrimary"]:
                    return
                # A member of a set reports the set's name. A new node or a node with a changed port reports none.
                if guardian.replica_set and "setName" not in hello:
                    _configure(client, guardian)
            except PyMongoError as error:
                trouble = str(error)
            guardian.check_alive()
            if time.monotonic() > deadline:
                raise _too_late(guardian, trouble)
            time.sleep(_POLL_SECONDS)


def _configure(client: "MongoClient[dict[str, Any]]", guardian: _Guardian) -> None:
    """Make the node a replica set with one member. A replica set in its directory gets the new address."""
    # PLC0415: see `_wait_until_primary`.
    from pymongo.errors import OperationFailure  # noqa: PLC0415

    address = guardian.address
    initial = {
        "_id": _REPLICA_SET,
        "version": 1,
        "members": [{"_id": 0, "host": address}],
        "settings": {"electionTimeoutMillis": 1000, "heartbeatIntervalMillis": 500},
        # Temporary data need no journal. With the journal, each drop of a database takes 100 ms longer.
        "writeConcernMajorityJournalDefault": not guardian.temporary,
    }
    try:
        client.admin.command("replSetInitiate", initial)
    except OperationFailure as error:
        if error.code != 23:  # AlreadyInitialized
            raise
        config = client.admin.command("replSetGetConfig")["config"]
        if [each["host"] for each in config["members"]] == [address]:
            return
        config["version"] += 1
        config["members"] = [{**config["members"][0], "host": address}]
        # Only a primary accepts a change without force, and a node that is not a member can't be primary.
        client.admin.command("replSetReconfig", config, force=True)


def _too_late(guardian: _Guardian, trouble: str) -> EmbeddedError:
    return EmbeddedError(
        f"mongod on {guardian.address} was not ready for writes in time: {trouble}",
        remedy="if the machine is very busy, allow a longer timeout; otherwise pass a `directory`, and read "
        "its mongod.log",
    )


def _last_error(log: str, code: int) -> str:
    """Return the line of the log that explains best why mongod ended."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for line in reversed(lines):
        if error := _structured_error(line):
            return error
    plain = [line for line in lines if not line.startswith("{")]
    wrong = [line for line in plain if _ERROR_WORDS.search(line)]
    if wrong or plain:
        return (wrong or plain)[-1]
    return "Illegal instruction" if code == 128 + signal.SIGILL else "it logged nothing"


def _structured_error(line: str) -> str:
    """Return the text of a JSON log line of severity error or fatal, else an empty text."""
    try:
        entry = json.loads(line)
        # The last fatal error only says that mongod aborts.
        if entry["s"] not in ("E", "F") or "aborting after" in entry["msg"]:
            return ""
        error = entry.get("attr", {}).get("error", "")
    except (ValueError, LookupError, TypeError):
        # A line of the loader or of the option parser, or one that mongod did not finish.
        return ""
    detail = error.get("errmsg", error) if isinstance(error, dict) else error
    return f"{entry['msg']}: {detail}" if detail else str(entry["msg"])
