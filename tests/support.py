"""Shared helpers: waiting for conditions, a dispatcher inside of the test, a dispatcher process."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar
from unittest import mock

import psutil
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

from dispatcher.core.state import Group, State
from dispatcher.core.stats import Stats
from dispatcher.runtime.service import Service
from dispatcher.settings import Settings
from mongoz import Registry
from mongoz.persistence.bulk import delete as bulk_deleting
from mongoz.persistence.bulk import update as bulk_updating

ROOT = Path(__file__).parent.parent

PATIENCE = 90.0
"""Seconds after which a test counts as hanging. A working test waits for a second, or longer on a busy machine."""


def group_of(client: AsyncMongoClient[Any], database: str, name: str | None = None) -> Group:
    """The group of a test's application, or another group in the same state database."""
    return Group(State(client, f"{database}_state"), database if name is None else name)


async def eventually(condition: Callable[[], Any], *, within: float = PATIENCE, what: object = "") -> Any:
    """Waits until a condition is true; fails after the deadline with the text that `what` has then."""
    deadline = time.monotonic() + within
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {within} s: {what or condition}"
        await asyncio.sleep(0.005)
    return value


def eventually_sync(condition: Callable[[], Any], *, within: float = PATIENCE, what: object = "") -> Any:
    """Like `eventually`, outside of an event loop."""
    deadline = time.monotonic() + within
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {within} s: {what or condition}"
        time.sleep(0.01)
    return value


@contextlib.contextmanager
def without_transactions() -> Iterator[None]:
    """Bulk writes behave as on a server without transactions."""

    async def refuse(*args: Any) -> None:
        raise OperationFailure("Transaction numbers are only allowed on a replica set member or mongos", 20)

    with (
        mock.patch.object(bulk_updating, "run_private_transaction_once", refuse),
        mock.patch.object(bulk_deleting, "run_private_transaction", refuse),
    ):
        yield


class SentCommands(CommandListener):
    """The names of the commands that a client sends, in order."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def clear(self) -> None:
        """Forgets all commands so far."""
        self.names.clear()

    def started(self, event: CommandStartedEvent) -> None:
        """Records a command."""
        self.names.append(event.command_name)

    def succeeded(self, event: CommandSucceededEvent) -> None:
        """Does nothing."""

    def failed(self, event: CommandFailedEvent) -> None:
        """Does nothing."""


class Runnable(Protocol):
    """A service of a dispatcher or of a relay."""

    stats: Stats

    async def run(self, stop: asyncio.Event) -> None:
        """Runs until `stop` is set."""


S = TypeVar("S", bound=Runnable)


class Running(Generic[S]):
    """A dispatcher or a relay inside of the test."""

    def __init__(self, service: S) -> None:
        self.service = service
        self.stats = service.stats
        self._stop = asyncio.Event()
        self.task = asyncio.create_task(service.run(self._stop))

    async def stop(self) -> None:
        """Stops the service as SIGTERM does."""
        self._stop.set()
        await self.task


def settings_for(registry: Registry, **changes: Any) -> Settings:
    """Settings for fast tests, with the group's own state database."""
    defaults = {
        "save_interval": 0.05,
        "idle_save_interval": 0.1,
        "connect_timeout": 5.0,
        "grace": 1.0,  # a failing test must not wait for its receivers
        "state_database": f"{registry.dispatched or 'plain'}_state",
    }
    return Settings(**{**defaults, **changes})


@contextlib.asynccontextmanager
async def dispatching(registry: Registry, **changes: Any) -> AsyncIterator[Running[Service]]:
    """A started dispatcher: writes inside of the block are delivered."""
    running = Running(Service(registry, settings_for(registry, **changes)))
    source_opened = asyncio.create_task(eventually(lambda: running.service.ready, what="the dispatcher reads"))
    done, _ = await asyncio.wait([running.task, source_opened], return_when=asyncio.FIRST_COMPLETED)
    if running.task in done:
        source_opened.cancel()
        await running.task
    try:
        yield running
    finally:
        if not running.task.done():
            await running.stop()


class Daemon:
    """`dispatcher run` as a process.

    Attributes:
        launcher: a program with arguments that runs the command, or empty.
        command: the command of `dispatcher`.
        started: the action of the log line that the process writes when it works.
    """

    launcher: Sequence[str] = ()
    command = "run"
    started = "dispatcher.started"

    def __init__(self, app: str, *arguments: str, cwd: Path, **environment: str) -> None:
        self.log_path = cwd / f"daemon-{time.monotonic_ns()}.log"
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *self.launcher,
                    sys.executable,
                    "-W",
                    "error",
                    # PyMongo leaves its socket to the garbage collector after a cancelled connect.
                    "-W",
                    "ignore:unclosed <socket:ResourceWarning",
                    # uvloop hangs if this warning is an error.
                    "-W",
                    "ignore:unclosed resource <TCPTransport:ResourceWarning",
                    "-m",
                    "dispatcher",
                    self.command,
                    app,
                    "--log-format",
                    "json",
                    *arguments,
                ],
                cwd=cwd,
                env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def __str__(self) -> str:
        return self.log

    @property
    def log(self) -> str:
        """The output of the process on stderr so far."""
        return self.log_path.read_text()

    def lines(self, action: str) -> list[dict[str, Any]]:
        """The log lines of the process with this action."""
        entries = [
            json.loads(line) for line in self.log.splitlines() if line.startswith("{") and line.endswith("}")
        ]
        return [entry for entry in entries if entry["action"] == action]

    def wait_started(self, *, within: float = PATIENCE) -> None:
        """Waits until the daemon has started. From then on, it delivers all writes."""
        eventually_sync(
            lambda: self.lines(self.started) or self.process.poll() is not None,
            within=within,
            what=self,
        )
        assert self.process.poll() is None, self.log

    def terminate(self, *, within: float = PATIENCE) -> int:
        """Sends SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within)

    def kill(self) -> None:
        """Sends SIGKILL."""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def daemon(app: str, *arguments: str, cwd: Path, **environment: str) -> Iterator[Daemon]:
    """A daemon that ends with the block."""
    running = Daemon(app, *arguments, cwd=cwd, **environment)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.kill()


def free_port() -> int:
    """A port of this machine at which no process listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def processes_marked(mark: str) -> list[psutil.Process]:
    """The running processes that have this mark in their environment, as `TEST_FAMILY`. Children inherit it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("TEST_FAMILY") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
