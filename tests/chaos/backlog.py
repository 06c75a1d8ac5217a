"""A long backlog with a slow, a failing and a paused receiver. The deliveries of the paused receiver are parked.

No delivery may be lost or repeated, and the memory of the daemon must not depend on the length of the backlog.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from statistics import fmean
from typing import Any, Final

import psutil
from pymongo import MongoClient

from dispatcher.embedded.server import embedded_mongo
from tests.chaos.figures import MEMORY_MB, Figure
from tests.chaos.scenario import Plan, Report, Scenario, Size
from tests.chaos.world import ChaosDaemon

__all__ = ["SCENARIO"]

_APP: Final = "tests.chaos.backlog_app:registry"
_DATABASE: Final = "backlog"
_STATE: Final = "backlog_state"
_RECEIVERS: Final = ("slow", "picky", "late")
_SLOWNESS: Final = "0.01"
_BATCH: Final = 10_000
_LOOK: Final = 0.5
_PATIENCE: Final = 120.0  # seconds without progress
_OPLOG: Final = ("--oplogSize", "4000")

# The memory in the last part of a phase must not be much higher than in the second part.
_GROWTH: Final = 1.15
_PART: Final = 0.25


class Backlog:
    """A daemon and its backlog.

    Args:
        plan: the size of the run.
        url: the URL of the server.
        client: a client of the same server.
    """

    def __init__(self, plan: Plan, url: str, client: MongoClient[Any]) -> None:
        self._plan = plan
        self._client = client
        self._writes = plan.size.writes
        self._environment = {
            "BACKLOG_URL": url,
            "BACKLOG_DIRECTORY": str(plan.directory),
            "BACKLOG_SLOWNESS": _SLOWNESS,
            "DISPATCHER_STATE_DATABASE": _STATE,
            "DISPATCHER_HTTP": "off",
        }
        self.daemon = self._start()

    def _start(self) -> ChaosDaemon:
        for receiver in _RECEIVERS:
            path = self._plan.directory / receiver
            if not path.exists():
                path.write_bytes(bytes(self._writes))
        daemon = ChaosDaemon(_APP, cwd=self._plan.directory, **self._environment)
        daemon.wait_started(within=60)
        return daemon

    def command(self, *arguments: str) -> None:
        """Runs a command of an operator."""
        where = ["--url", self._environment["BACKLOG_URL"], "--state-database", _STATE, "--group", _DATABASE]
        subprocess.run(
            [sys.executable, "-m", "dispatcher", *arguments, *where], check=True, stdout=subprocess.DEVNULL
        )

    def write(self) -> None:
        """Writes the backlog while no dispatcher runs."""
        self.daemon.terminate(within=60)
        things = self._client[_DATABASE].things
        for start in range(0, self._writes, _BATCH):
            numbers = range(start, min(start + _BATCH, self._writes))
            things.insert_many([{"number": number, "text": "x" * 100} for number in numbers], ordered=False)
        self.daemon = self._start()

    def counted(self, receiver: str) -> bytes:
        """A byte for each write: how often the receiver got it."""
        return (self._plan.directory / receiver).read_bytes()

    def watch(self, receiver: str, done: Callable[[], bool]) -> list[float]:
        """Waits until `done`, or until a receiver gets nothing for long.

        Returns:
            Samples of the memory of the daemon in MB.
        """
        process, seen = psutil.Process(self.daemon.process.pid), []
        before, progress = -1, time.monotonic()
        while not done() and self.daemon.process.poll() is None:
            seen.append(process.memory_info().rss / 1e6)
            got = self._writes - self.counted(receiver).count(0)
            if got > before:
                before, progress = got, time.monotonic()
            if time.monotonic() - progress > _PATIENCE:
                break
            if len(seen) % 40 == 0:
                self._plan.say(f"{receiver}: {got:,} of {self._writes:,}, {seen[-1]:.0f} MB")
            time.sleep(_LOOK)
        return seen

    def is_read(self) -> bool:
        """Whether everything is delivered or parked."""
        return self._have_all("slow", "picky") and self.parked >= self._writes

    def is_worked_off(self) -> bool:
        """Whether all parked deliveries are made."""
        return self._have_all("late") and not self.parked

    def _have_all(self, *receivers: str) -> bool:
        return all(0 not in self.counted(receiver) for receiver in receivers)

    @property
    def parked(self) -> int:
        """The number of parked deliveries."""
        return self._client[_STATE].held.count_documents({})


def run(plan: Plan) -> Report:
    """Writes the backlog, waits until it is read, then until all parked deliveries are made."""
    with embedded_mongo(extra_args=_OPLOG) as server, MongoClient(server.url) as client:
        backlog = Backlog(plan, server.url, client)
        try:
            backlog.command("pause", "late")
            backlog.write()
            began = time.monotonic()
            reading = backlog.watch("slow", backlog.is_read)
            read, parked = time.monotonic() - began, backlog.parked
            backlog.command("resume", "late")
            began = time.monotonic()
            working = backlog.watch("late", backlog.is_worked_off)
            worked = time.monotonic() - began
            code = backlog.daemon.terminate(within=60)
        finally:
            backlog.daemon.kill()
        log = backlog.daemon.log
        counts = {receiver: backlog.counted(receiver) for receiver in _RECEIVERS}
    notes = [] if code == 0 else [f"The daemon ended with {code}. The end of its log:\n{log[-2000:]}"]
    return Report(_figures(plan, counts, parked, (reading, read), (working, worked), code), notes)


def _figures(
    plan: Plan,
    counts: dict[str, bytes],
    parked: int,
    reading: tuple[list[float], float],
    working: tuple[list[float], float],
    code: int,
) -> list[Figure]:
    writes = plan.size.writes
    return [
        Figure("writes", writes),
        Figure("lost", sum(got.count(0) for got in counts.values()), most=0),
        Figure("repeated", sum(len(got) - got.count(0) - got.count(1) for got in counts.values()), most=0),
        Figure("parked, of one receiver", parked, least=writes, most=writes),
        *_phase("read", writes, *reading),
        *_phase("worked off", writes, *working),
        Figure("unexpected ends of processes", int(code != 0), most=0),
    ]


def _phase(what: str, writes: int, memory: list[float], seconds: float) -> list[Figure]:
    part = max(1, round(len(memory) * _PART))
    # The first part includes the creation of all long-lived objects.
    first, last = fmean(memory[part : 2 * part] or memory), fmean(memory[-part:])
    return [
        Figure(f"{what} in", seconds, "s"),
        Figure("  writes per second", round(writes / seconds)),
        Figure("  peak memory of the daemon", max(memory), "MB", most=MEMORY_MB),
        Figure("  last quarter divided by second quarter", round(last / first, 3), most=_GROWTH),
    ]


SCENARIO = Scenario(
    name="backlog",
    title="a long backlog with a slow, a failing and a paused receiver",
    faults="faults",
    full=Size(writes=1_000_000, documents=1_000_000, faults=1),
    short=Size(writes=20_000, documents=20_000, faults=1),
    run=run,
    says="{writes:,} writes",
)
