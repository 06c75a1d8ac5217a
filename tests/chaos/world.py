"""All that takes part in a run: clients that write, daemons that deliver, and looking at everything.

The writers are held back so that they are never far ahead of the deliveries: the faults are spread over all of the
writing, however fast the machine is. An instant is a number of writes that were delivered, and a random time after
that was so, which is long enough to meet some of the daemons while they start.
"""

import random
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from types import TracebackType
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
from tests.chaos.leash import on_a_leash
from tests.chaos.scenario import Plan
from tests.ledger import COLLECTION, IMAGES, Ledger, Writer
from tests.support import Daemon

__all__ = ["LeashedDaemon", "World"]

APP = "tests.chaos.app:registry"

_DATABASE = "chaos"
# Writes that are not delivered yet, and writes behind the next fault: at most, and of all.
_AHEAD = 500
_AHEAD_SHARE = 0.05
_DELAY_SECONDS = 0.6
# Without any delivery for so long, nothing more will come, and what is missing is lost.
_PATIENCE_SECONDS = 90.0
_START_SECONDS = 60.0
_STOP_SECONDS = 60.0
_MOST_DEATHS = 5
# Some deliveries are still open when the position is saved the next few times: one that passes them is found out
# by a kill at any instant, and not only within the few milliseconds after a save.
_SLOW_RECEIVERS = {"LEDGER_SLOWNESS": "0.004", "LEDGER_STRAGGLERS": "0.01", "DISPATCHER_SAVE_INTERVAL": "0.1"}
_NO_PORT = {"DISPATCHER_HTTP": "off"}
_OWN_SHARE = 0.25
_DELETES = 0.05


class LeashedDaemon(Daemon):
    """One that dies with us."""

    launcher = on_a_leash()


class World:
    """Everything of one run. As a context manager, it is all gone at the end.

    Args:
        plan: how much.
        url: of the server, for the clients.
        daemons: how many there are to be.
        daemon_url: the same for the daemons, if they reach it in another way.
        crash: the exit code of daemons that a fault has ended.
        app: what they serve.
        **settings: environment variables of the daemons.
    """

    def __init__(
        self,
        plan: Plan,
        url: str,
        *,
        daemons: int = 1,
        daemon_url: str | None = None,
        crash: int | None = None,
        app: str = APP,
        **settings: str,
    ) -> None:
        self.plan = plan
        self.chance = random.Random(plan.seed)
        self.daemons: list[LeashedDaemon] = []
        self.everybody: list[LeashedDaemon] = []
        self.events: list[Event] = []
        self.delivered: dict[str, set[Write]] = defaultdict(set)
        self.doomed: dict[str, set[Write]] = {}
        self.deaths: list[str] = []
        self.ledger = Ledger(plan.directory / "ledger", url, _DATABASE)
        self.client: MongoClient[dict[str, Any]] = MongoClient(url)
        self.peak_mb = 0.0
        self._count = daemons
        self._crash = crash
        self._app = app
        self._environment = {**self.ledger.environment, **_SLOW_RECEIVERS, **_NO_PORT, **settings}
        self._daemon_url = {} if daemon_url is None else {"DISPATCHER_URL": daemon_url}
        self._counted = self._effects = 0
        self.other_work: Callable[[], int] = lambda: 0
        """Grows while daemons get on with what is not in the ledger."""
        self._other_work = 0
        self._ahead = min(_AHEAD, 20 + plan.size.writes * _AHEAD_SHARE)
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
        """Daemons that are started from now on have these environment variables as well."""
        self._environment.update(settings)

    def start_daemon(self, **settings: str) -> LeashedDaemon:
        """One more."""
        environment = {**self._environment, **self._daemon_url, **settings}
        daemon = LeashedDaemon(self._app, cwd=self.plan.directory, **environment)
        self.daemons.append(daemon)
        self.everybody.append(daemon)
        return daemon

    def kill(self, daemon: LeashedDaemon, kind: str = "kill", *, successor: bool = True) -> None:
        """SIGKILL; another one is started instead."""
        self.note(kind, daemon)
        daemon.kill()
        self.daemons.remove(daemon)
        if successor:
            self.start_daemon()
        self._progress_at = time.monotonic()

    def send_away(self, daemon: LeashedDaemon) -> None:
        """SIGTERM."""
        self.daemons.remove(daemon)
        self._terminate(daemon)

    def note(self, kind: str, daemon: LeashedDaemon | None = None) -> None:
        """Something is broken now."""
        self.events.append(Event(time.monotonic_ns(), kind, daemon.process.pid if daemon else None))

    def note_death(self, daemon: LeashedDaemon, what: str) -> None:
        """A daemon did what it should not."""
        words = "\n".join(f"  {line}" for line in daemon.log.splitlines()[-20:])
        self.deaths.append(f"A daemon {what} (exit code {daemon.process.poll()}). Its last words:\n{words}")

    def leases_lost(self, apart_from: Collection[int | None]) -> int:
        """How many leases daemons have lost, but for those with these process ids.

        On a machine that has too much to do, a process may be late without anybody stopping it.
        """
        others = (daemon for daemon in self.everybody if daemon.process.pid not in apart_from)
        return sum(len(daemon.lines("lease.lost")) for daemon in others)

    def _end_daemons(self) -> None:
        for daemon in self.daemons:
            daemon.kill()

    # -- looking -------------------------------------------------------------------------------------

    def look(self, seconds: float) -> None:
        """Look at everything, for so long; if a daemon ended by itself, start another one."""
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

    def ended(self, daemon: LeashedDaemon) -> None:
        """A daemon ended by itself, which it should not, but for a fault."""
        if daemon.process.returncode == self._crash:
            self.note("crash", daemon)
        else:
            self.note_death(daemon, "ended by itself")
        self.daemons.remove(daemon)
        self.start_daemon()

    def _measure(self, daemon: LeashedDaemon) -> None:
        try:
            process = self._resources.setdefault(daemon.process.pid, psutil.Process(daemon.process.pid))
            self.peak_mb = max(self.peak_mb, process.memory_info().rss / 1e6)
        except psutil.NoSuchProcess:
            pass  # it ended this moment

    def look_for(self, seconds: float) -> None:
        """Look for some time."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.look(min(left, 0.01))

    def until(self, condition: Callable[[], bool], patience: float = _PATIENCE_SECONDS) -> bool:
        """Look until something is so; False if nothing is delivered any more for so many seconds."""
        while not condition():
            hopeless = self.writer.failure is not None or len(self.deaths) > _MOST_DEATHS
            if hopeless or time.monotonic() > self._progress_at + patience:
                return False
            self.look(0.01)
        return True

    # -- the course of a run -------------------------------------------------------------------------

    def break_at_random(self, fault: Callable[[], None], delay: float = _DELAY_SECONDS) -> None:
        """Break something at random instants, as often as planned; less often if nothing goes on any more.

        Args:
            fault: does it; returns when the next one may come.
            delay: seconds behind a delivery, at most.
        """
        size = self.plan.size
        instants = sorted(self.chance.uniform(0.01, 0.97) * size.writes for _ in range(size.faults))
        for number, instant in enumerate(instants, 1):
            self._next = instant
            if not self.until(lambda: len(self.delivered[PLAIN]) >= self._next):
                break
            self.look_for(self.chance.uniform(0, delay))
            fault()
            if number % max(1, min(10, size.faults // 5)) == 0:
                done = f"{len(self.delivered[PLAIN]):,} of {size.writes:,} writes delivered"
                self.plan.say(f"{number} of {size.faults} times, {done}")
        self._next = float("inf")

    def finish(self, doomed: Callable[[str, Write], bool] | None = None) -> None:
        """Wait until everything is delivered, and let the daemons stop in order.

        Args:
            doomed: tells whether a receiver never takes a write; then it must become a dead letter instead.
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

    def _terminate(self, daemon: LeashedDaemon) -> None:
        """SIGTERM; if it was started only just now, when it has its handlers."""
        daemon.wait_started(within=_START_SECONDS)
        try:
            if daemon.terminate(within=_STOP_SECONDS) != ExitCode.OK:
                self.note_death(daemon, "did not end in order")
        except subprocess.TimeoutExpired:
            self.note_death(daemon, "did not end")
            daemon.kill()

    def books(self) -> Mapping[str, list[int]]:
        """What the transactional receiver has left."""
        books = self.database.get_collection("books", read_concern=ReadConcern("majority"))
        return {book["_id"]: book["ns"] for book in books.find()}

    def _letters(self) -> Mapping[str, set[Write]]:
        """The writes that became dead letters, by receiver."""
        found = defaultdict(set)
        for letter in self.dead_letters.find({"namespace.coll": COLLECTION}):
            deleted = letter["operation"] == "delete"
            row = bson.decode(letter["parts"]["before" if deleted else "document"])
            found[letter["receiver"].rpartition(".")[2]].add((row["name"], row["n"] + deleted))
        return found

    def evidence(self) -> Evidence:
        """What is known, at the end."""
        self.write_events()
        deaths = [*self.deaths]
        if self.writer.failure is not None:
            deaths.append(f"The writer failed: {self.writer.failure!r}")
        return Evidence(
            foreign=self.writer.orders(self._foreign),
            own=self.writer.orders(self._own),
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
        """Leave a note of what was broken when, beside the ledger."""
        lines = (f"{event.at} {event.pid or '-'} {event.kind}\n" for event in self.events)
        (self.plan.directory / "events").write_text("".join(lines))

    @property
    def database(self) -> Database[dict[str, Any]]:
        """Of the application."""
        return self.client[_DATABASE]

    @property
    def dead_letters(self) -> MongoCollection[dict[str, Any]]:
        """Of the dispatchers."""
        state = self.client[f"{_DATABASE}_state"]
        return state.get_collection("held", codec_options=CODEC_OPTIONS)
