"""Three private mongods that are reached only through links, so each of them can be cut off.

The members have the addresses of the links. The source port of a connection shows who made the connection: the
member whose process has a connection from this port, otherwise a client.
"""

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import psutil
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from dispatcher.embedded.binary import find_mongod
from tests.chaos.links import Link, Links, Way
from tests.chaos.parent_death import tied_to_parent
from tests.support import free_port

__all__ = ["Member", "ReplicaSet", "replica_set"]

_HOST: Final = "127.0.0.1"
_NAME: Final = "chaos"
_CLIENT: Final = "client"
_SETTINGS: Final = {"electionTimeoutMillis": 1_000, "heartbeatIntervalMillis": 500, "heartbeatTimeoutSecs": 2}
_PARAMETERS: Final = {
    "diagnosticDataCollectionEnabled": "false",
    "shutdownTimeoutMillisForSignaledShutdown": "0",
}
_PATIENCE_SECONDS: Final = 60.0


class Member:
    """One mongod and its link."""

    def __init__(self, number: int, directory: Path, links: Links, who: Callable[[int], str]) -> None:
        self.number = number
        self.name = f"member {number}"
        self._port = free_port()
        self._directory = directory / f"member-{number}"
        self._directory.mkdir()
        self.link: Link = links.to(self._port, who)
        self.address = f"{_HOST}:{self.link.port}"
        # The client of the test, which does not use the link.
        self.client: MongoClient[dict[str, Any]] = MongoClient(
            _HOST,
            self._port,
            directConnection=True,
            serverSelectionTimeoutMS=2_000,
            socketTimeoutMS=10_000,
            connectTimeoutMS=1_000,
            heartbeatFrequencyMS=500,
        )
        self.process = self.start()

    def start(self) -> "subprocess.Popen[bytes]":
        """Starts the mongod on its data."""
        arguments = ["--port", str(self._port), "--bind_ip", _HOST, "--nounixsocket", "--quiet"]
        arguments += ["--dbpath", str(self._directory), "--logpath", f"{self._directory}.log", "--logappend"]
        arguments += ["--replSet", _NAME, "--wiredTigerCacheSizeGB", "0.25", "--oplogSize", "200"]
        arguments += ["--wiredTigerEngineConfigString", "log=(file_max=8MB,prealloc=false)"]
        for name, value in _PARAMETERS.items():
            arguments += ["--setParameter", f"{name}={value}"]
        self.process = subprocess.Popen(
            [*tied_to_parent(), str(find_mongod()), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return self.process

    def kill(self) -> None:
        """Ends the mongod with SIGKILL."""
        self.process.kill()
        self.process.wait()

    def has_open(self, port: int) -> bool:
        """Whether the process of this member has a connection with this local port."""
        with contextlib.suppress(psutil.Error):
            connections = psutil.Process(self.process.pid).net_connections("tcp4")
            return any(one.laddr.port == port and one.raddr for one in connections)
        return False

    def hello(self) -> dict[str, Any]:
        """The answer of the mongod to `hello`; empty if it does not answer."""
        try:
            return dict(self.client.admin.command("hello"))
        except PyMongoError:
            return {}


class ReplicaSet:
    """Three members.

    Args:
        directory: for their data and logs.
        links: makes the links.
    """

    def __init__(self, directory: Path, links: Links) -> None:
        self.members: list[Member] = []
        for number in range(3):
            self.members.append(Member(number, directory, links, self._who))
        self.url = f"mongodb://{','.join(member.address for member in self.members)}/?replicaSet={_NAME}"

    def _who(self, port: int) -> str:
        return next((member.name for member in self.members if member.has_open(port)), _CLIENT)

    def initiate(self) -> None:
        """Initiates the set."""
        members = [{"_id": member.number, "host": member.address} for member in self.members]
        config = {"_id": _NAME, "version": 1, "members": members, "settings": _SETTINGS}
        _insist(lambda: self.members[0].client.admin.command("replSetInitiate", config))
        self.wait_until_whole()

    def primary(self) -> Member:
        """Waits for a primary that at least two of the three members agree on."""
        return _eventually(self._primary, "no primary")

    def _primary(self) -> Member | None:
        hellos = [member.hello() for member in self.members]
        for member, hello in zip(self.members, hellos, strict=True):
            followers = sum(other.get("primary") == member.address for other in hellos)
            if hello.get("isWritablePrimary") and followers >= 2:
                return member
        return None

    def elections(self) -> int:
        """The number of elections so far."""
        return int(self.primary().client.admin.command("replSetGetStatus")["term"])

    def wait_until_whole(self) -> None:
        """Waits for a primary and two secondaries."""
        _eventually(self._is_whole, "not all members are there")

    def _is_whole(self) -> bool:
        hellos = [member.hello() for member in self.members]
        return (
            sum(bool(hello.get("isWritablePrimary")) for hello in hellos) == 1
            and sum(bool(hello.get("secondary")) for hello in hellos) == 2
        )

    def cut_off(self, member: Member, way: Way, *, clients: bool) -> None:
        """Cuts the links between a member and the others.

        Args:
            member: the member.
            way: the kind of cut.
            clients: whether clients are cut off as well.
        """
        others = [other for other in self.members if other is not member]
        for other in others:
            other.link.cut(member.name, way=way)
        member.link.cut(*(other.name for other in others), *([_CLIENT] if clients else []), way=way)

    def mend(self) -> None:
        """Restores all links."""
        for member in self.members:
            member.link.mend()

    def end(self) -> None:
        """Ends all members."""
        for member in self.members:
            member.kill()
            member.client.close()


def _insist(command: Callable[[], Any]) -> None:
    """Runs a command as soon as the server answers."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            command()
        except PyMongoError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def _eventually(condition: Callable[[], Any], otherwise: str) -> Any:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{otherwise} within {_PATIENCE_SECONDS:g} s"
        time.sleep(0.05)
    return value


@contextlib.contextmanager
def replica_set(directory: Path, links: Links) -> Iterator[ReplicaSet]:
    """A replica set that ends with the block."""
    place = directory / "replica-set"
    place.mkdir()
    made = ReplicaSet(place, links)
    try:
        made.initiate()
        yield made
    finally:
        made.end()
        shutil.rmtree(place, ignore_errors=True)
