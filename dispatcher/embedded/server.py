"""A private, real mongod for development and tests. It can't outlive the process that started it.

start_embedded   starts a mongod on a free port, in a temporary directory, and waits for its election
embedded_mongo   start_embedded as a context manager
"""

import json
import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dispatcher.embedded.binary import checked, find_mongod, require_posix
from dispatcher.embedded.guardian import HOST, POLL_SECONDS, Guardian, Program, last_plain_error, start
from dispatcher.exceptions import EmbeddedError

if TYPE_CHECKING:
    from pymongo import MongoClient

__all__ = ["EmbeddedMongo", "embedded_mongo", "start_embedded"]

# The logger of the standard library. This module also runs in the tests of applications: there, structlog would
# write to stdout, which another program may read.
_log = logging.getLogger(__name__)

_REPLICA_SET = "rs0"

_REMEDIES = (
    (re.compile(r"libcurl"), "apt-get install libcurl4 (or your system's package of libcurl)"),
    (re.compile(r"lib(crypto|ssl)"), "this mongod was built for another OpenSSL: set MONGOZ_MONGOD"),
    (re.compile(r"shared librar|Library not loaded|GLIBC"), "install the library, or set MONGOZ_MONGOD"),
    (re.compile(r"DBPathInUse"), "stop the mongod that uses this directory, or name another directory"),
    (re.compile(r"Illegal instruction"), "this mongod needs a newer CPU, with AVX: use another machine"),
    (re.compile(r"unrecognised option|[Uu]nknown.*parameter"), "check extra_args; MongoDB 6.0+ is needed"),
)


def _last_error(log: str, code: int) -> str:
    """Return the line of the log that explains best why mongod ended."""
    lines = [line.strip() for line in log.splitlines()]
    structured = (error for line in reversed(lines) if (error := _structured_error(line)))
    plain = "\n".join(line for line in lines if not line.startswith("{"))
    return next(structured, None) or last_plain_error(plain, code)


def _structured_error(line: str) -> str:
    """Return the text of a JSON log line of severity error or fatal, else an empty text."""
    try:
        entry = json.loads(line)
        # The last fatal error only says that mongod aborts.
        if entry["s"] not in ("E", "F") or "aborting after" in entry["msg"]:
            return ""
        error = entry.get("attr", {}).get("error", "")
    except (ValueError, LookupError, TypeError):
        # The line comes from the loader or from the option parser, or mongod did not finish the line.
        return ""
    detail = error.get("errmsg", error) if isinstance(error, dict) else error
    return f"{entry['msg']}: {detail}" if detail else str(entry["msg"])


_MONGOD = Program(
    name="mongod",
    otherwise="run this mongod by hand with --version to see whether it works here at all",
    remedies=_REMEDIES,
    last_error=_last_error,
)


@dataclass(frozen=True, eq=False, slots=True)
class EmbeddedMongo:
    """A running private mongod.

    Attributes:
        url: for clients, e.g. `mongodb://127.0.0.1:41234/?replicaSet=rs0`.
        port: the TCP port, on 127.0.0.1 only.
        directory: holds its data and its `mongod.log`. A temporary directory is removed when mongod ends, even if
            mongod is killed. Pass a directory to start again on the same data.
        pid: the process id of mongod itself, e.g. to send it a SIGSTOP in a test.
        version: the version of mongod, e.g. `"6.0.5"`.
        notice: says that this server is for development only, with its version and its licence.
    """

    url: str
    port: int
    directory: Path
    pid: int
    version: str
    notice: str
    _guardian: Guardian = field(repr=False)

    def stop(self) -> None:
        """End mongod, remove its directory if that is temporary, and return. May be called twice."""
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

    mongod ends when `stop()` is called, or when this process ends, even if this process crashes. Ctrl-C does not
    reach mongod. This function blocks: from a running event loop, call it in a thread.

    Args:
        port: the TCP port; a free one by default.
        directory: keeps the data between runs; created if missing. A replica set of an earlier run is changed to
            the port of this run. By default, a temporary directory that is removed at the end.
        replica_set: True for a replica set of one node, named `rs0`; False for a standalone server, which has no
            change streams.
        mongod: the binary; `find_mongod()` by default.
        extra_args: more arguments for mongod, e.g. `("--setParameter", "enableTestCommands=1")`. `--logpath` is
            not allowed, because this function reads the log to find out whether mongod listens.
        timeout: seconds within which mongod must accept writes.

    Raises:
        EmbeddedError: there is no usable mongod, mongod ended before it was ready (the message has its last
            error), the port is taken, or mongod did not become primary in time.

    Examples:
        >>> server = start_embedded(directory=Path(".mongo"))
        >>> server.url
        'mongodb://127.0.0.1:41234/?replicaSet=rs0'
        >>> server.stop()
    """
    require_posix("mongod", "MongoDB and start a replica set yourself")
    binary = find_mongod() if mongod is None else checked(mongod, "mongod")
    deadline = time.monotonic() + timeout

    def command(port: int, directory: Path) -> list[str]:
        return [str(binary), *_arguments(port, directory, replica_set), *extra_args]

    build: dict[str, Any] = {}

    def wait(guardian: Guardian) -> None:
        _wait_until_listening(guardian, deadline)
        build.update(_wait_until_primary(guardian, deadline, replica_set))

    guardian = start(_MONGOD, command, wait, port=port, directory=directory)
    query = f"?replicaSet={_REPLICA_SET}" if replica_set else ""
    url, notice = f"mongodb://{guardian.address}/{query}", _notice(build)
    _log.info("embedded %s, at %s", notice, guardian.address)
    return EmbeddedMongo(
        url, guardian.port, guardian.directory, guardian.pid, build["version"], notice, _guardian=guardian
    )


def _notice(build: Mapping[str, Any]) -> str:
    """The version and the licence of a mongod, from its answer to `buildInfo`."""
    enterprise = "enterprise" in build.get("modules", ())
    licence = "commercial licence" if enterprise else "licence SSPL"
    return f"MongoDB {build['version']} ({licence}): for development only"


def _arguments(port: int, directory: Path, replica_set: bool) -> list[str]:
    arguments = ["--port", str(port), "--bind_ip", HOST, "--nounixsocket", "--dbpath", str(directory)]
    # With 0.25 GB, an update of a document of 9 MB with images sometimes took minutes. The cause is not proven.
    arguments += ["--quiet", "--wiredTigerCacheSizeGB", "1"]
    # By default the journal is preallocated in files of 100 MB. With this option the journal takes 9 MB instead of
    # 301 MB, and the recovery is faster.
    arguments += ["--wiredTigerEngineConfigString", "log=(file_max=8MB,prealloc=false)"]
    arguments += ["--setParameter", "diagnosticDataCollectionEnabled=false"]
    # By default a stopping primary waits 15 seconds for a successor, and there is none.
    arguments += ["--setParameter", "shutdownTimeoutMillisForSignaledShutdown=0"]
    return arguments + (["--replSet", _REPLICA_SET] if replica_set else [])


def _wait_until_listening(guardian: Guardian, deadline: float) -> None:
    """Wait until the log says that mongod listens.

    A client that connects too early waits half a second before it tries again. And a connection would not prove
    that our mongod listens on the port: another process could have taken the port first.
    """
    # All versions log these words. Versions before 4.4 write them in lower case.
    while "waiting for connections" not in guardian.read_log().lower():
        guardian.check_alive()
        if time.monotonic() > deadline:
            raise _too_late(guardian, "it does not listen yet")
        time.sleep(POLL_SECONDS)


def _wait_until_primary(guardian: Guardian, deadline: float, replica_set: bool) -> dict[str, Any]:
    """Wait until mongod accepts writes. Returns its answer to `buildInfo`."""
    # PLC0415: the import of pymongo takes a tenth of a second, and `find_mongod` does not need pymongo.
    from pymongo import MongoClient  # noqa: PLC0415
    from pymongo.errors import PyMongoError  # noqa: PLC0415

    # Each step has a time limit, so that a hanging mongod can't delay us beyond the deadline.
    with MongoClient[dict[str, Any]](
        HOST,
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
                    return client.server_info()
                # A member of a set reports the set's name. A new node or a node with a changed port reports none.
                if replica_set and "setName" not in hello:
                    _configure(client, guardian)
            except PyMongoError as error:
                trouble = str(error)
            guardian.check_alive()
            if time.monotonic() > deadline:
                raise _too_late(guardian, trouble)
            time.sleep(POLL_SECONDS)


def _configure(client: "MongoClient[dict[str, Any]]", guardian: Guardian) -> None:
    """Make the node a replica set with one member. In the set of an earlier run, change the member's address."""
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


def _too_late(guardian: Guardian, trouble: str) -> EmbeddedError:
    return EmbeddedError(
        f"mongod on {guardian.address} was not ready for writes in time: {trouble}",
        remedy="if the machine is very busy, allow a longer timeout; otherwise pass a `directory`, and read "
        "its mongod.log",
    )
