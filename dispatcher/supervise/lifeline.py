"""Connects a supervised process to its supervisor.

The stdin of the process is one end of a socket pair. The supervisor sends a byte to stop the process. If the
supervisor ends, even by SIGKILL, the socket closes and the process ends as well.
"""

import asyncio
import json
import os
import shutil
import signal
import socket
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from time import sleep
from typing import Final, NamedTuple, Protocol

from dispatcher.core.tasks import end
from dispatcher.exceptions import ExitCode
from dispatcher.position.documents import Layout

_VARIABLE: Final = "_DISPATCHER_ROLE"

# Seconds between two checks whether the process has joined its group.
_LOOK: Final = 0.05


class Role(NamedTuple):
    """The role of a process of a supervisor.

    Attributes:
        name: its name in logs and metrics: `"1"`, `"2"` and so on.
        path: the path of the Unix socket at which it answers HTTP; empty for `--http off`.
        url: the address at which the supervisor answers HTTP for all its processes.
        terminal: whether stderr of the supervisor is a terminal.
    """

    name: str
    path: str
    url: str
    terminal: bool

    @classmethod
    def of_this_process(cls) -> "Role | None":
        """The role of this process; None if it has no supervisor. Processes that it starts have no role."""
        text = os.environ.pop(_VARIABLE, None)
        return None if text is None else cls(**json.loads(text))

    def environment(self) -> dict[str, str]:
        """The environment of a process with this role."""
        return {**os.environ, _VARIABLE: json.dumps(self._asdict())}


class _HasLayout(Protocol):
    @property
    def layout(self) -> Layout | None:
        """The layout of the group; None before the start."""


class Lifeline:
    """The connection to the supervisor. It arrives as stdin; then stdin becomes the null device.

    Args:
        path: the path of the Unix socket of this process.
        within: seconds that this process gets for an orderly end after the supervisor has ended.
    """

    def __init__(self, path: str, within: float) -> None:
        self._path = path
        self._within = within
        self._socket = socket.socket(fileno=os.dup(0))
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.close(null)
        threading.Thread(target=self._watch, name="dispatcher-lifeline", daemon=True).start()

    def _watch(self) -> None:
        if self._read():
            os.kill(os.getpid(), signal.SIGTERM)
            # Normally this process ends while it waits here. The wait ends only if the supervisor is killed first.
            self._read()
            self._remove_directory()
        else:
            self._remove_directory()  # before SIGTERM, which ends a starting process immediately
            os.kill(os.getpid(), signal.SIGTERM)
            sleep(self._within)
        os._exit(ExitCode.FORCED)

    def _remove_directory(self) -> None:
        """Remove the directory of the sockets: the supervisor can't do it any more."""
        if self._path:
            shutil.rmtree(Path(self._path).parent, ignore_errors=True)

    def _read(self) -> bytes:
        """Wait for a byte from the supervisor. Returns no byte if the supervisor has ended."""
        try:
            return self._socket.recv(1)
        except ConnectionError:
            return b""

    async def beside(
        self, dispatcher: _HasLayout, run: Callable[[asyncio.Event], Awaitable[None]], stop: asyncio.Event
    ) -> None:
        """Run the dispatcher, and tell the supervisor when the dispatcher has joined its group."""
        telling = asyncio.create_task(self._tell_joined(dispatcher), name="tell-joined")
        try:
            await run(stop)
        finally:
            await end([telling])

    async def _tell_joined(self, dispatcher: _HasLayout) -> None:
        while (layout := dispatcher.layout) is None:  # noqa: ASYNC110 - nothing else waits for this
            await asyncio.sleep(_LOOK)
        with suppress(ConnectionError):
            self._socket.send(b"%d" % (layout.wanted or layout.partitions))
