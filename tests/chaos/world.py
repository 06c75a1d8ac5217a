"""The participants of a run: clients that write, daemons that deliver, and the observation of both.

The writers are throttled to stay close to the deliveries, so the faults are spread over all writes on any
machine. A fault comes after a random number of delivered writes, and after a random delay. Some faults meet
daemons that are still starting.
"""

import random
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from types import MappingProxyType, TracebackType
from typing import Any, Self

import bson
import psutil
from pymongo import MongoClient
from pymongo.collection import Collection as MongoCollection
from pymongo.database import Database
from pymongo.read_concern import ReadConcern

from dispatcher.core.state import CODEC_OPTIONS
from dispatcher.exceptions import ExitCode
from tests.chaos.clients import SteadyClient, application
from tests.chaos.figures import PLAIN, TRANSACTIONAL, Event, Evidence, Write
from tests.chaos.parent_death import tied_to_parent
from tests.chaos.scenario import Plan
from tests.ledger import COLLECTION, IMAGES, Ledger, Writer
from tests.support import Daemon

__all__ = ["ChaosDaemon", "World"]

APP = "tests.chaos.app:registry"

_DATABASE = "chaos"
# The writer may be ahead of the deliveries, and of the next fault, by this number of writes.
_AHEAD = 500
# In a small run, it may be ahead only by about this share of all writes.
_AHEAD_SHARE = 0.05
_DELAY_SECONDS = 0.6
# After this time without a delivery, missing deliveries count as lost.
_PATIENCE_SECONDS = 90.0
_START_SECONDS = 60.0
_STOP_SECONDS = 60.0
_MOST_DEATHS = 5
# Some deliveries stay open during the next saves of the position. If a saved position passed an open delivery, a
# kill at any time would show this error, not only a kill within the few milliseconds after a save.
_SLOW_RECEIVERS = {"LEDGER_SLOWNESS": "0.004", "LEDGER_STRAGGLERS": "0.01", "DISPATCHER_SAVE_INTERVAL": "0.1"}
_NO_PORT = {"DISPATCHER_HTTP": "off"}
_OWN_SHARE = 0.25
_DELETES = 0.05


class ChaosDaemon(Daemon):
    """A daemon that dies with this process.

    Attributes:
        settings: its own environment variables. A successor has the same ones.
    """

    launcher = tied_to_parent()
    settings: Mapping[str, str] = MappingProxyType({})


class World:
    """All participants of one run. The context manager ends them.

    Args:
        plan: the size of the run.
        url: the URL of the server, for the clients.
        daemons: the number of daemons.
        daemon_url: the URL for the daemons, if they use another one.
        ahead: the number of writes by which the writer may be ahead of the deliveries and of the next fault. By
            default, it depends on the size.
        crashes: expected exit codes of daemons that end by themselves -> the kind of the recorded event.
        app: the application of the daemons.
        **settings: environment variables of the daemons.
    """

    def __init__(
        self,
        plan: Plan,
        url: str,
        *,
        daemons: int = 1,
        daemon_url: str | None = None,
        ahead: int | None = None,
        crashes: Mapping[int, str] = MappingProxyType({}),
        app: str = APP,
        **settings: str,
    ) -> None:
        self.plan = plan
        self.chance = random.Random(plan.seed)
        self.daemons: list[ChaosDaemon] = []
        self.all_daemons: list[ChaosDaemon] = []
        self.events: list[Event] = []
        self.delivered: dict[str, set[Write]] = defaultdict(set)
        self.doomed: dict[str, set[Write]] = {}
        self.deaths: list[str] = []
        self.ledger = Ledger(plan.directory / "ledger", url, _DATABASE)
        self.client: MongoClient[dict[str, Any]] = MongoClient(url)
        self.peak_mb = 0.0
        self._count = daemons
        self._crashes = crashes
        self._app = app
        self._environment = {**self.ledger.environment, **_SLOW_RECEIVERS, **_NO_PORT, **settings}
        self._daemon_url = {} if daemon_url is None else {"DISPATCHER_URL": daemon_url}
        self._counted = self._effects = 0
        self.other_work: Callable[[], int] = lambda: 0
        """Returns a number that grows while daemons do work that is not in the ledger."""
        self._other_work = 0
        self._ahead = min(_AHEAD, 20 + plan.size.writes * _AHEAD_SHARE) if ahead is None else ahead
        self._next = float("inf")
        self._began = self._progress_at = time.monotonic()
        self._resources: dict[int, psutil.Process] = {}
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as opening:
            opening.callback(self._end_daemons)
            opening.enter_context(self.client)
            self._foreign = SteadyClient(self.database.create_collection(COLLECTION, **IMAGES))
            self.database.create_collection("books")
            self._own = opening.enter_context(application(self._environment))
            size, seed = self.plan.size, self.plan.seed
            self.writer = Writer(
                {self._foreign: 1 - _OWN_SHARE, self._own: _OWN_SHARE},
                documents=size.documents,
                writes=size.writes,
                seed=seed,
                deletes=_DELETES,
            )
            self.writer.allow(0)
            for _ in range(self._count):
                self.start_daemon().wait_started(within=_START_SECONDS)
            self.writer.start()
            opening.callback(self._stop_writer)
            self._progress_at = time.monotonic()
            self._open = opening.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def _stop_writer(self) -> None:
        if self.writer.is_alive():
            self.writer.stop()

    # -- daemons -------------------------------------------------------------------------------------

    def configure(self, **settings: str) -> None:
        """Adds environment variables for daemons started later."""
        self._environment.update(settings)

    def start_daemon(self, kind: type[ChaosDaemon] = ChaosDaemon, **settings: str) -> ChaosDaemon:
        """Starts one more daemon."""
        environment = {**self._environment, **self._daemon_url, **settings}
        daemon = kind(self._app, cwd=self.plan.directory, **environment)
        daemon.settings = settings
        self.daemons.append(daemon)
        self.all_daemons.append(daemon)
        return daemon

    def kill(self, daemon: ChaosDaemon, kind: str = "kill", *, successor: bool = True) -> None:
        """Sends SIGKILL, and starts a successor."""
        self.note(kind, daemon)
        daemon.kill()
        self.daemons.remove(daemon)
        if successor:
            self.start_daemon(type(daemon), **daemon.settings)
        self._progress_at = time.monotonic()

    def suspend(self, daemon: ChaosDaemon, kind: str, seconds: float) -> None:
        """Sends SIGSTOP, and SIGCONT after this time."""
        self.note(kind, daemon)
        daemon.process.send_signal(signal.SIGSTOP)
        self.observe_for(seconds)
        daemon.process.send_signal(signal.SIGCONT)

    def request_stop(self, daemon: ChaosDaemon) -> None:
        """Ends a daemon with SIGTERM."""
        self.daemons.remove(daemon)
        self._terminate(daemon)

    def note(self, kind: str, daemon: ChaosDaemon | None = None) -> None:
        """Records a fault."""
        self.events.append(Event(time.monotonic_ns(), kind, daemon.process.pid if daemon else None))

    def note_death(self, daemon: ChaosDaemon, what: str) -> None:
        """Records an unexpected end of a daemon."""
        words = "\n".join(f"  {line}" for line in daemon.log.splitlines()[-20:])
        self.deaths.append(f"A daemon {what} (exit code {daemon.process.poll()}). Its last words:\n{words}")

    def leases_ended(self, apart_from: Collection[int | None]) -> int:
        """How often leases of daemons were lost, or not renewed in time, except of daemons with these process ids.

        On a busy machine a process may be late without a fault.
        """
        others = [daemon for daemon in self.all_daemons if daemon.process.pid not in apart_from]
        lost = [line for daemon in others for line in daemon.lines("lease.lost")]
        failed = [line for daemon in others for line in daemon.lines("lease.not_renewed")]
        return len(lost) + sum(line["runs_out_in"] <= 0 for line in failed)

    def _end_daemons(self) -> None:
        for daemon in self.daemons:
            daemon.kill()

    # -- observing -------------------------------------------------------------------------------------

    def observe(self, seconds: float) -> None:
        """Observes all participants for this time; replaces a daemon that ended by itself."""
        time.sleep(seconds)
        for daemon in list(self.daemons):
            if daemon.process.poll() is None:
                self._measure(daemon)
            else:
                self.ended(daemon)
        entries = self.ledger()
        if len(entries) > self._counted:
            for entry in entries[self._counted :]:
                self.delivered[entry.receiver].add(entry.write)
            self._counted, self._progress_at = len(entries), time.monotonic()
        other = self.other_work()
        if other > self._other_work:
            self._other_work, self._progress_at = other, time.monotonic()
        self.writer.allow(min(len(self.delivered[PLAIN]), self._next) + self._ahead)

    def ended(self, daemon: ChaosDaemon) -> None:
        """Handles a daemon that ended by itself; only a fault may cause this."""
        kind = self._crashes.get(daemon.process.returncode)
        if kind is None:
            self.note_death(daemon, "ended by itself")
        else:
            self.note(kind, daemon)
        self.daemons.remove(daemon)
        self.start_daemon(type(daemon), **daemon.settings)

    def _measure(self, daemon: ChaosDaemon) -> None:
        try:
            process = self._resources.setdefault(daemon.process.pid, psutil.Process(daemon.process.pid))
            self.peak_mb = max(self.peak_mb, process.memory_info().rss / 1e6)
        except psutil.NoSuchProcess:
            pass  # the daemon has just ended

    def observe_for(self, seconds: float) -> None:
        """Observes for some time."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.observe(min(left, 0.01))

    def until(self, condition: Callable[[], bool], patience: float = _PATIENCE_SECONDS) -> bool:
        """Observes until a condition is true.

        Returns False after this number of seconds without a delivery, or if the writer or many daemons failed.
        """
        while not condition():
            hopeless = self.writer.failure is not None or len(self.deaths) > _MOST_DEATHS
            if hopeless or time.monotonic() > self._progress_at + patience:
                return False
            self.observe(0.01)
        return True

    def release_writer(self) -> None:
        """Lets the writer go on during the present fault. The writer still stays close to the deliveries."""
        self._next = float("inf")

    # -- the course of a run -------------------------------------------------------------------------

    def break_at_random(self, fault: Callable[[], None], delay: float = _DELAY_SECONDS) -> None:
        """Injects the planned number of faults at random times; fewer if deliveries stop.

        Args:
            fault: injects a fault; returns when the next one is allowed.
            delay: the maximum delay after a delivery, in seconds.
        """
        size = self.plan.size
        self._progress_at = time.monotonic()  # on a busy machine, the start of many processes takes minutes
        instants = sorted(self.chance.uniform(0.01, 0.97) * size.writes for _ in range(size.faults))
        for number, instant in enumerate(instants, 1):
            self._next = instant
            if not self.until(lambda: len(self.delivered[PLAIN]) >= self._next):
                break
            self.observe_for(self.chance.uniform(0, delay))
            fault()
            if number % max(1, min(10, size.faults // 5)) == 0:
                done = f"{len(self.delivered[PLAIN]):,} of {size.writes:,} writes delivered"
                self.plan.say(f"{number} of {size.faults} times, {done}")
        self._next = float("inf")

    def finish(self, doomed: Callable[[str, Write], bool] | None = None) -> None:
        """Waits until everything is delivered, then stops the daemons.

        Args:
            doomed: whether a receiver always refuses a write. This write must become a dead letter.
        """
        self.until(lambda: not self.writer.is_alive())
        if doomed is not None:
            foreign = {(name, n) for name, order in self.writer.orders(self._foreign).items() for n in order}
            self.doomed[PLAIN] = {write for write in foreign if doomed(PLAIN, write)}
            self.doomed[TRANSACTIONAL] = {write for write in self.writer.written if doomed(TRANSACTIONAL, write)}
        self.until(self._is_complete)
        for daemon in self.daemons:
            self._terminate(daemon)

    def _is_complete(self) -> bool:
        written, doomed = self.writer.written, self.doomed
        if not all(done >= written - doomed.get(receiver, set()) for receiver, done in self.delivered.items()):
            return False
        effects = sum(map(len, self.books().values())) + sum(map(len, self._letters().values()))
        if effects > self._effects:
            self._effects, self._progress_at = effects, time.monotonic()
        return effects >= len(written) + len(doomed.get(PLAIN, ()))

    def _terminate(self, daemon: ChaosDaemon) -> None:
        """Sends SIGTERM, as soon as the daemon has installed its signal handlers."""
        try:
            daemon.wait_started(within=_START_SECONDS)
            if daemon.terminate(within=_STOP_SECONDS) != ExitCode.OK:
                self.note_death(daemon, "did not end cleanly")
        except AssertionError:
            self.note_death(daemon, "did not start, or ended by itself")
            daemon.kill()
        except subprocess.TimeoutExpired:
            self.note_death(daemon, "did not end")
            daemon.kill()

    def books(self) -> Mapping[str, list[int]]:
        """The effects of the transactional receiver."""
        books = self.database.get_collection("books", read_concern=ReadConcern("majority"))
        return {book["_id"]: book["ns"] for book in books.find()}

    def _letters(self) -> Mapping[str, set[Write]]:
        """The writes that became dead letters, by receiver."""
        found = defaultdict(set)
        for letter in self.held.find({"state": "dead", "namespace.coll": COLLECTION}):
            deleted = letter["operation"] == "delete"
            row = bson.decode(letter["parts"]["before" if deleted else "document"])
            found[letter["receiver"].rpartition(".")[2]].add((row["name"], row["n"] + deleted))
        return found

    def evidence(self) -> Evidence:
        """The records at the end of the run."""
        self.write_events()
        deaths = [*self.deaths]
        if self.writer.failure is not None:
            deaths.append(f"The writer failed: {self.writer.failure!r}")
        return Evidence(
            foreign=self.writer.orders(self._foreign),
            own=self.writer.orders(self._own),
            durations=self._own.seconds,
            entries=self.ledger(),
            books=self.books(),
            letters=self._letters(),
            doomed=self.doomed,
            events=self.events,
            wanted=self.plan.size.faults,
            deaths=deaths,
            peak_mb=self.peak_mb,
            seconds=time.monotonic() - self._began,
        )

    def write_events(self) -> None:
        """Writes the faults with their times to a file beside the ledger."""
        lines = (f"{event.at} {event.pid or '-'} {event.kind}\n" for event in self.events)
        (self.plan.directory / "events").write_text("".join(lines))

    @property
    def database(self) -> Database[dict[str, Any]]:
        """The database of the application."""
        return self.client[_DATABASE]

    @property
    def state(self) -> Database[dict[str, Any]]:
        """The database with the state of the dispatchers."""
        return self.client[f"{_DATABASE}_state"]

    @property
    def held(self) -> MongoCollection[dict[str, Any]]:
        """The parked deliveries and dead letters of the dispatchers."""
        return self.state.get_collection("held", codec_options=CODEC_OPTIONS)
