"""The participants of a run with writing processes, and the observation of all of them.

Writing processes decide by themselves what they write. They pause while dispatchers are behind, and go on until
all faults have ended.
"""

import heapq
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import psutil
import pymongo
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from dispatcher.exceptions import ExitCode
from tests.chaos.commits import CommitLog
from tests.chaos.links import Link, Links
from tests.chaos.parent_death import tied_to_parent
from tests.chaos.scenario import Plan
from tests.chaos.world import ChaosDaemon
from tests.chaos.writers_figures import (
    AUDIT,
    LONGEST_SECONDS,
    STARTED,
    Call,
    Fault,
    Fence,
    WritersEvidence,
    read_call,
)
from tests.ledger import IMAGES
from tests.support import ROOT, eventually_sync

__all__ = ["Fleet", "Writer"]

_APP: Final = "tests.chaos.writers_app:registry"
_GROUP: Final = "shop"
_PARTITIONS: Final = 3

_URL_OPTIONS: Final = "?directConnection=true&serverSelectionTimeoutMS=1000&socketTimeoutMS=3000"

# Writing processes pause while more writes than this are not delivered.
_AHEAD: Final = 300
# After this time without a call of a receiver, missing deliveries count as lost. Calls may take 20 seconds.
_PATIENCE_SECONDS: Final = LONGEST_SECONDS + 90.0
_MOST_DEATHS: Final = 5
# One write of the foreign client for this number of other writes.
_FOREIGN: Final = 10
_FOREIGN_SECONDS: Final = 0.3


class Writer:
    """A writing process and its links. Its successors use the same links.

    Attributes:
        data: the link for writes.
        state: the link for claims.
        has_fault: whether the process has a fault now.
    """

    def __init__(self, links: Links, port: int) -> None:
        self.data: Link = links.to(port)
        self.state: Link = links.to(port)
        self.has_fault = False
        self._log = Path()

    def start(self, log: Path, arguments: list[str], environment: dict[str, str]) -> None:
        """Starts the process, or its successor."""
        urls = {
            name: f"mongodb://127.0.0.1:{link.port}/{_URL_OPTIONS}"
            for name, link in (("WRITERS_URL", self.data), ("WRITERS_STATE_URL", self.state))
        }
        self._log = log
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [*tied_to_parent(), sys.executable, "-m", "tests.chaos.writers_client", *arguments],
                env={**os.environ, "PYTHONPATH": str(ROOT), **environment, **urls},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )

    @property
    def errors(self) -> str:
        """What the process wrote to stderr."""
        return self._log.read_text()

    @property
    def has_started(self) -> bool:
        """Whether the process handles signals."""
        return self.errors.startswith(STARTED)

    def cut(self, *, data: bool, state: bool, way: Any) -> None:
        """Cuts the connections for writes, for claims, or both."""
        for link in [self.data] * data + [self.state] * state:
            link.cut("", way=way)

    def mend(self) -> None:
        """Restores the connections."""
        self.data.mend()
        self.state.mend()


class Fleet:
    """All participants of one run. The context manager ends them.

    Args:
        plan: the size of the run.
        url: the URL of the server.
        port: the port of the server.
        links: makes the links.
        timeout: the timeout of the claims, in seconds.
        lease: the lease of the dispatchers, in seconds.
    """

    def __init__(self, plan: Plan, url: str, port: int, links: Links, *, timeout: float, lease: float) -> None:
        self.plan = plan
        self.chance = random.Random(plan.seed)
        self.timeout = timeout
        self.client: MongoClient[dict[str, Any]] = MongoClient(url)
        self.writers: list[Writer] = []
        self.dispatchers: list[ChaosDaemon] = []
        self._all_dispatchers: list[ChaosDaemon] = []
        self.writer_faults: list[Fault] = []
        self.dispatcher_faults: list[Fault] = []
        self.deaths: list[str] = []
        self.peak_mb = 0.0
        self._ledger = plan.directory / "ledger"
        self._ledger.touch()
        self._read = 0
        self._calls: list[Call] = []
        # Id of a delivery -> the receivers that got it.
        self._made: dict[str, set[str]] = defaultdict(set)
        self._audited: set[str] = set()
        self._ended_at: Any = None
        self._pause = plan.directory / "pause"
        self._environment = {
            "WRITERS_URL": url,
            "WRITERS_GROUP": _GROUP,
            "WRITERS_LEDGER": str(self._ledger),
            "DISPATCHER_STATE_DATABASE": f"{_GROUP}_state",
            "DISPATCHER_CLAIM_TIMEOUT": str(timeout),
            "DISPATCHER_PARTITIONS": str(_PARTITIONS),
            "DISPATCHER_LEASE": str(lease),
            "DISPATCHER_HTTP": "off",
        }
        self._links, self._port = links, port
        self._numbers = count(1)
        self._pids: dict[int, int] = {}
        self._starts: dict[int, int] = {}
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._is_over = False
        self._foreign = 0
        self._began = self._progress_at = time.monotonic()
        self._orders = self.client[_GROUP].create_collection("orders", **IMAGES)
        self._orders.create_index("place")
        self.log = CommitLog(self._orders)

    def start(self, *, writers: int, dispatchers: int) -> None:
        """Starts all participants. Writing processes begin when dispatchers have announced that they take over."""
        self.log.start()
        for _ in range(dispatchers):
            self.start_dispatcher().wait_started()
        positions = self.client[f"{_GROUP}_state"]["positions"]
        eventually_sync(lambda: positions.find_one({"claims": True}), what="the announcement of takeovers")
        for _ in range(writers):
            self.writers.append(Writer(self._links, self._port))
            self.start_writer(self.writers[-1])
        eventually_sync(lambda: all(writer.has_started for writer in self.writers), what="the processes write")
        self._progress_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in [one.process for one in (*self.writers, *self.dispatchers)]:
            process.kill()
            process.wait()
        self.log.stop()
        self.client.close()

    # -- processes -------------------------------------------------------------------------------------

    def start_writer(self, writer: Writer) -> None:
        """Starts a writing process."""
        number = next(self._numbers)
        arguments = [str(number), str(self.plan.seed), str(self.plan.size.documents), str(self._pause)]
        writer.start(self.plan.directory / f"writer-{number}.log", arguments, self._environment)
        self._pids[number] = writer.process.pid
        self._starts[writer.process.pid] = time.monotonic_ns()

    def start_dispatcher(self) -> ChaosDaemon:
        """Starts a dispatcher."""
        daemon = ChaosDaemon(_APP, cwd=self.plan.directory, **self._environment)
        self.dispatchers.append(daemon)
        self._all_dispatchers.append(daemon)
        return daemon

    def note_writer(self, kind: str, writer: Writer, seconds: float = 0.0) -> None:
        """Records the fault of a writing process."""
        now = time.monotonic_ns()
        self.writer_faults.append(Fault(kind, writer.process.pid, now, now + int(seconds * 1e9)))

    def note_dispatcher(self, kind: str, daemon: ChaosDaemon, seconds: float = 0.0) -> None:
        """Records the fault of a dispatcher."""
        now = time.monotonic_ns()
        self.dispatcher_faults.append(Fault(kind, daemon.process.pid, now, now + int(seconds * 1e9)))

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Calls `action` after this number of seconds, while the participants are observed."""
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._order), action))

    def replace(self, writer: Writer, code: int) -> None:
        """Starts the successor of a writing process that must have ended with this exit code."""
        if writer.process.poll() != code:
            self._note_death("writing process", writer.process.returncode, writer.errors)
        writer.process.kill()
        writer.process.wait()
        self.start_writer(writer)

    # -- observing -------------------------------------------------------------------------------------

    @property
    def written(self) -> int:
        """The number of writes so far."""
        return len(self.log.commits)

    def observe(self, seconds: float = 0.01) -> None:
        """Observes all participants for this time."""
        time.sleep(seconds)
        while self._later and self._later[0][0] <= time.monotonic():
            heapq.heappop(self._later)[2]()
        self._look_at_processes()
        self._read_ledger()
        if self._is_over or self.written > len(self._audited) + _AHEAD:
            self._pause.touch()
        else:
            self._pause.unlink(missing_ok=True)
            if self.written > self._foreign * _FOREIGN:
                self._write()

    def _look_at_processes(self) -> None:
        for writer in self.writers:
            if not writer.has_fault and writer.process.poll() is not None:
                self._note_death("writing process", writer.process.returncode, writer.errors)
                self.start_writer(writer)
        for daemon in list(self.dispatchers):
            if daemon.process.poll() is not None:
                self._note_death("dispatcher", daemon.process.returncode, daemon.log)
                self.dispatchers.remove(daemon)
                self.start_dispatcher()
                continue
            with suppress(psutil.NoSuchProcess):  # the process has just ended
                self.peak_mb = max(self.peak_mb, psutil.Process(daemon.process.pid).memory_info().rss / 1e6)

    def _note_death(self, what: str, code: int | None, words: str) -> None:
        lines = "\n".join(f"  {line}" for line in words.splitlines()[-20:])
        self.deaths.append(f"A {what} did not end as it should (exit code {code}). Its last words:\n{lines}")

    def _read_ledger(self) -> None:
        with self._ledger.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        if whole:
            self._read += len(whole)
            calls = [read_call(line) for line in whole.decode().splitlines()]
            self._audited.update(call.id for call in calls if call.receiver == AUDIT)
            for call in calls:
                self._made[call.id].add(call.receiver)
            self._calls += calls
            self._progress_at = time.monotonic()

    def _write(self) -> None:
        """Makes a write of a foreign client."""
        self._foreign += 1
        place = self.chance.randrange(self.plan.size.documents)
        # The transaction of a dead process may lock the document.
        with suppress(PyMongoError), pymongo.timeout(_FOREIGN_SECONDS):
            self._orders.update_one({"place": place}, {"$set": {"n": self._foreign}}, upsert=True)

    def observe_for(self, seconds: float) -> None:
        """Observes for some time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.observe()

    def until(self, condition: Callable[[], bool]) -> bool:
        """Observes until a condition is true. Returns False if nothing is delivered any more."""
        while not condition():
            hopeless = self.log.failure is not None or len(self.deaths) > _MOST_DEATHS
            if hopeless or time.monotonic() > self._progress_at + _PATIENCE_SECONDS:
                return False
            self.observe()
        return True

    # -- the course of a run -------------------------------------------------------------------------

    def break_at_random(self, fault: Callable[[], None], delay: float) -> None:
        """Injects the planned number of faults at random times; fewer if deliveries stop.

        Args:
            fault: begins a fault.
            delay: the maximum delay after a write, in seconds.
        """
        size = self.plan.size
        instants = sorted(self.chance.uniform(0.01, 0.97) * size.writes for _ in range(size.faults))
        for number, instant in enumerate(instants, 1):
            if not self.until(lambda instant=instant: self.written >= instant):  # type: ignore[misc]
                break
            self.observe_for(self.chance.uniform(0, delay))
            fault()
            if number % max(1, min(10, size.faults // 5)) == 0:
                self.plan.say(f"{number} of {size.faults} times, {self.written:,} of {size.writes:,} writes")
        self.until(lambda: self.written >= size.writes)

    def finish(self) -> None:
        """Ends all faults and writing processes, waits until all is delivered, and ends the dispatchers."""
        self.until(lambda: not self._later and all(writer.has_started for writer in self.writers))
        for writer in self.writers:
            self.note_writer("end of the run", writer)
            writer.has_fault = True
            writer.process.send_signal(signal.SIGTERM)
        self.until(lambda: all(writer.process.poll() is not None for writer in self.writers))
        for writer in self.writers:
            if writer.process.poll() != 0:
                self._note_death("writing process", writer.process.returncode, writer.errors)
        self._is_over, self._foreign = True, self._foreign + 1
        self._orders.insert_one({"place": -1, "n": self._foreign})
        self._ended_at = self.client.admin.command("ping")["operationTime"]
        self.until(lambda: any(commit.n == self._foreign for commit in self.log.commits[-100:]))
        self.until(self._is_complete)
        for daemon in self.dispatchers:
            self._terminate(daemon)
        self._read_ledger()

    def _is_complete(self) -> bool:
        """Whether all deliveries were made. Deliveries of the ODM's writes count only if they were claimed."""
        if len(self._audited) < self.written:
            return False
        if not all(commit.claimed <= self._made[commit.token] for commit in self.log.commits if commit.token):
            return False
        # Deliveries of foreign writes may wait behind claims. A delivery that waits is parked, or the position has
        # not passed its change.
        state = self.client[f"{_GROUP}_state"]
        behind = {"group": _GROUP, "partition": {"$exists": True}, "cluster_time": {"$lt": self._ended_at}}
        return state["held"].find_one() is None and state["positions"].find_one(behind) is None

    def _terminate(self, daemon: ChaosDaemon) -> None:
        """Sends SIGTERM, as soon as the dispatcher has installed its signal handlers."""
        with suppress(AssertionError, subprocess.TimeoutExpired):  # the dispatcher does not start, or does not end
            daemon.wait_started()
            daemon.terminate()
        if daemon.process.poll() != ExitCode.OK:
            self._note_death("dispatcher", daemon.process.returncode, daemon.log)

    @staticmethod
    def _times(daemon: ChaosDaemon, action: str) -> list[int]:
        """The times of the log lines with an action, as `time.monotonic_ns()`."""
        return [_monotonic(datetime.fromisoformat(line["timestamp"])) for line in daemon.lines(action)]

    def evidence(self) -> WritersEvidence:
        """The records at the end of the run."""
        claims = self.client[f"{_GROUP}_state"]["claims"]
        deaths = [*self.deaths]
        faults = sorted([*self.writer_faults, *self.dispatcher_faults], key=lambda fault: fault.began)
        lines = (f"{fault.began} {fault.ended} {fault.pid} {fault.kind}\n" for fault in faults)
        (self.plan.directory / "events").write_text("".join(lines))
        if self.log.failure is not None:
            deaths.append(f"The change stream of the test failed: {self.log.failure!r}")
        return WritersEvidence(
            timeout=self.timeout,
            commits=self.log.commits,
            calls=self._calls,
            writer_faults=self.writer_faults,
            dispatcher_faults=self.dispatcher_faults,
            late_answers=[
                Fault("an answer of the server came too late", daemon.process.pid, at, at)
                for daemon in self._all_dispatchers
                for action in ("lease.not_renewed", "lease.lost", "position.not_saved")
                for at in self._times(daemon, action)
            ],
            claims=sorted(at for daemon in self._all_dispatchers for at in self._times(daemon, "lease.claimed")),
            starts=self._starts,
            numbers=self._pids,
            fences={one["_id"]: _fence_of(one) for one in claims.find()},
            wanted=self.plan.size.faults,
            deaths=deaths,
            peak_mb=self.peak_mb,
            seconds=time.monotonic() - self._began,
        )


def _monotonic(at: datetime) -> int:
    """A time of this machine as `time.monotonic_ns()`."""
    return int((at.timestamp() - time.time() + time.monotonic()) * 1e9)


def _fence_of(book: dict[str, Any]) -> Fence:
    if "fenced_at" not in book:
        return Fence(book["pid"])
    # The server rounds down to milliseconds.
    return Fence(book["pid"], book["fenced_by"], _monotonic(book["fenced_at"].replace(tzinfo=UTC)) + 1_000_000)
