"""A long backlog: receivers that are slow, one that refuses, and one that is paused, so that all of its is parked.

Nothing may be lost or repeated, and the memory of the daemon must not depend on how much there is.
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
from tests.chaos.world import LeashedDaemon

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

# The memory of the last part of a phase must not be much more than that of the first one.
_GROWTH: Final = 1.15
_PART: Final = 0.25


class Backlog:
    """A daemon, and what it has to work off.

    Args:
        plan: how much.
        url: of the server.
        client: for the same.
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

    def _start(self) -> LeashedDaemon:
        for receiver in _RECEIVERS:
            path = self._plan.directory / receiver
            if not path.exists():
                path.write_bytes(bytes(self._writes))
        daemon = LeashedDaemon(_APP, cwd=self._plan.directory, **self._environment)
        daemon.wait_started(within=60)
        return daemon

    def command(self, *arguments: str) -> None:
        """Have the operator say something."""
        where = ["--url", self._environment["BACKLOG_URL"], "--state-database", _STATE, "--group", _DATABASE]
        subprocess.run(
            [sys.executable, "-m", "dispatcher", *arguments, *where], check=True, stdout=subprocess.DEVNULL
        )

    def write(self) -> None:
        """Write everything while nobody listens."""
        self.daemon.terminate(within=60)
        things = self._client[_DATABASE].things
        for start in range(0, self._writes, _BATCH):
            numbers = range(start, min(start + _BATCH, self._writes))
            things.insert_many([{"number": number, "text": "x" * 100} for number in numbers], ordered=False)
        self.daemon = self._start()

    def counted(self, receiver: str) -> bytes:
        """How often a receiver has got each write."""
        return (self._plan.directory / receiver).read_bytes()

    def watch(self, receiver: str, done: Callable[[], bool]) -> list[float]:
        """Look until a receiver has everything; the daemon's memory, in MB."""
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
        """Whether what was parked is delivered."""
        return self._have_all("late") and not self.parked

    def _have_all(self, *receivers: str) -> bool:
        return all(0 not in self.counted(receiver) for receiver in receivers)

    @property
    def parked(self) -> int:
        """Deliveries that wait in MongoDB."""
        return self._client[_STATE].parked.count_documents({})


def run(plan: Plan) -> Report:
    """Write it, have it read, have it worked off."""
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
    notes = [] if code == 0 else [f"The daemon ended with {code}. Its last words:\n{log[-2000:]}"]
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
        Figure("ended other than it should", int(code != 0), most=0),
    ]


def _phase(what: str, writes: int, memory: list[float], seconds: float) -> list[Figure]:
    part = max(1, round(len(memory) * _PART))
    # The first part has the time in which everything is made that is used from then on.
    first, last = fmean(memory[part : 2 * part] or memory), fmean(memory[-part:])
    return [
        Figure(f"{what} in", seconds, "s"),
        Figure("  writes per second", round(writes / seconds)),
        Figure("  peak memory of the daemon", max(memory), "MB", most=MEMORY_MB),
        Figure("  last quarter to second one", round(last / first, 3), most=_GROWTH),
    ]


SCENARIO = Scenario(
    name="backlog",
    title="a long backlog for receivers that are slow, or refuse, and one whose deliveries are all parked",
    faults="faults",
    full=Size(writes=1_000_000, documents=1_000_000, faults=1),
    short=Size(writes=20_000, documents=20_000, faults=1),
    run=run,
    says="{writes:,} writes",
)
