"""Starts the processes of `--processes`, watches them, and starts them again.

This module imports no application.
"""

import asyncio
import signal
import sys
import tempfile
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Final

from dispatcher.core.output.logs import log
from dispatcher.core.tasks import end
from dispatcher.exceptions import CannotListen, ExitCode
from dispatcher.runtime import main_loop
from dispatcher.settings import Settings
from dispatcher.supervise.child import SupervisedProcess
from dispatcher.supervise.lifeline import Role
from dispatcher.web.server import HttpServer, listen, url_of

_ENDS_ALL: Final = frozenset(
    {
        ExitCode.USAGE,
        ExitCode.APPLICATION,
        ExitCode.NOTHING_TO_DELIVER,
        ExitCode.NOT_A_REPLICA_SET,
        ExitCode.ACCESS_DENIED,
        ExitCode.SERVER,
        ExitCode.POSITION,
        ExitCode.HISTORY_LOST,
        ExitCode.GROUP_TAKEN,
        ExitCode.CANNOT_LISTEN,
        ExitCode.NOT_INSTALLED,
    }
)
"""Exit codes of errors that a restart of one process does not repair."""

# A process has a time limit for an orderly end. The supervisor waits this many seconds longer, and then has the
# same number of seconds for its own end.
_SPARE: Final = 2.0


def is_restarted(code: int, *, joined: bool) -> bool:
    """Whether a process that ended by itself is started again.

    Args:
        code: its exit code.
        joined: whether a process of this supervisor has ever joined the group. If not, the start has failed.
    """
    return code not in _ENDS_ALL and (joined or code == ExitCode.OK)


def supervise(processes: int, settings: Settings, *, within: float) -> int:
    """Run the command of this process in several processes, until a signal stops them.

    Args:
        within: seconds in which a process ends after the signal.

    Returns:
        The first nonzero exit code of a process; 0 if there is none.

    Raises:
        CannotListen: the address for HTTP can't be used.
    """
    # A parent process may have ignored SIGCHLD. Then every exit code would appear as 0.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    listening = listen(settings.http)
    with nullcontext("") if listening is None else _directory() as directory:
        roles = [
            Role(
                name=name,
                path=directory and str(Path(directory) / name),
                url=url_of(listening),
                terminal=sys.stderr.isatty(),
            )
            for name in map(str, range(1, processes + 1))
        ]
        supervisor = Supervisor(roles, patience=within + _SPARE)
        web = HttpServer(listening, url_of(listening), partial(_front, roles))
        main_loop.run(partial(web.beside, supervisor.run), within=within + 2 * _SPARE)
    return supervisor.code


def _directory() -> "tempfile.TemporaryDirectory[str]":
    """A private directory for the Unix sockets of the processes."""
    try:
        return tempfile.TemporaryDirectory(prefix="dispatcher-", ignore_cleanup_errors=True)
    except OSError as error:
        raise CannotListen(
            f"The processes have no directory for their sockets: {error.strerror or error}",
            remedy="Set TMPDIR to a writable directory, or use --http off.",
        ) from error


def _front(roles: list[Role], hosts: "tuple[str, ...] | None") -> object:
    from dispatcher.supervise.front import make_front  # noqa: PLC0415 - loaded late, as in `HttpServer`

    return make_front({role.name: role.path for role in roles}, hosts)


class Supervisor:
    """Several processes that run the same command.

    The first process starts alone, so that an error of the start appears once. When the first process has joined
    the group, the other processes start.

    Attributes:
        code: the first nonzero exit code.
    """

    def __init__(self, roles: list[Role], *, patience: float) -> None:
        self.code = int(ExitCode.OK)
        self._joined = asyncio.Event()
        self._stop: asyncio.Event | None = None
        self._processes = [
            SupervisedProcess(
                role,
                [sys.executable, *sys.orig_argv[1:]],
                patience=patience,
                on_join=self._note_join,
                on_end=self._note_end,
            )
            for role in roles
        ]

    async def run(self, stop: asyncio.Event) -> None:
        """Run the processes until all have ended. They end when `stop` is set, or when one of them can't work."""
        self._stop = stop
        first, *others = self._processes
        keeping = [asyncio.create_task(self._keep(first), name="process-1")]
        waiting = [asyncio.create_task(one.wait(), name="wait") for one in (self._joined, stop)]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        await end(waiting)
        keeping += [asyncio.create_task(self._keep(one), name=f"process-{one.role.name}") for one in others]
        await asyncio.gather(*keeping)

    async def _keep(self, process: SupervisedProcess) -> None:
        assert self._stop is not None
        await process.keep(self._stop)
        self.code = self.code or process.code
        self._stop.set()

    def _note_end(self, code: int) -> bool:
        return is_restarted(code, joined=self._joined.is_set())

    def _note_join(self, partitions: int) -> None:
        """Start the other processes, and warn once if some of them have nothing to do."""
        if self._joined.is_set():
            return
        self._joined.set()
        processes = len(self._processes)
        if partitions < processes:
            log.warning(
                "the group has fewer partitions than this supervisor has processes, so some processes are hot "
                "standbys",
                action="processes.spare",
                partitions=partitions,
                processes=processes,
                remedy=f"start the dispatcher once with --partitions {processes}, or use fewer processes",
            )
