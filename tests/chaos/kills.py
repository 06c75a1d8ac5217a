"""One daemon, killed with SIGKILL at random instants, while a foreign client and the application itself write.

The writers are held back so that they are never far ahead of the deliveries: the kills are spread over all of the
writing, however fast the machine is. An instant is a number of writes that were delivered, and a random time after
that was so, which is long enough to meet some of the daemons while they start.
"""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
from pymongo import MongoClient

from dispatcher.embedded import embedded_mongo
from dispatcher.exceptions import ExitCode
from tests.chaos.figures import Evidence
from tests.ledger import APP, COLLECTION, IMAGES, ForeignClient, Ledger, Write, Writer
from tests.support import ROOT, Daemon

__all__ = ["Plan", "run"]

_DATABASE = "chaos"
_AHEAD = 500
_DELAY_SECONDS = 0.6
# Without any delivery for so long, nothing more will come, and what is missing is lost.
_PATIENCE_SECONDS = 60.0
# Some deliveries are still open when the position is saved the next few times: one that passes them is found out
# by a kill at any instant, and not only within the few milliseconds after a save.
_SLOW_RECEIVERS = {"LEDGER_SLOWNESS": "0.004", "LEDGER_STRAGGLERS": "0.01", "DISPATCHER_SAVE_INTERVAL": "0.1"}
_OWN_SHARE = 0.25


class Plan(NamedTuple):
    """The size of a run, and its seed."""

    kills: int
    writes: int
    documents: int
    seed: int


class OwnClient:
    """Hands writes to the process of the application."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def __call__(self, writes: Sequence[Write]) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        rows = [(str(write.id), write.name, write.n, write.kind) for write in writes]
        print(json.dumps(rows), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer == "done\n", f"the application ended: {self._process.wait()}"


@contextmanager
def _application(ledger: Ledger) -> Iterator[OwnClient]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.own"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **ledger.environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield OwnClient(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()  # which ends it
            process.wait()


class Run:
    """One run: a writer, one daemon after another, and looking at both."""

    def __init__(self, writer: Writer, ledger: Ledger, start: Callable[[], Daemon]) -> None:
        self._writer = writer
        self._ledger = ledger
        self._start = start
        self._counted = 0
        self._progress_at = time.monotonic()
        self.delivered: set[tuple[str, int]] = set()
        self.deaths: list[str] = []
        self.peak_mb = 0.0
        self.daemon = start()

    def look(self, seconds: float) -> None:
        """Look at everything, for so long; if the daemon ended by itself, start another one."""
        try:
            self.peak_mb = max(self.peak_mb, psutil.Process(self.daemon.process.pid).memory_info().rss / 1e6)
            self.daemon.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
        else:
            self._note_death("ended by itself")
            self.daemon = self._start()
        entries = self._ledger()
        if len(entries) > self._counted:
            self.delivered.update(entry.write for entry in entries[self._counted :])
            self._counted, self._progress_at = len(entries), time.monotonic()
        self._writer.allow(len(self.delivered) + _AHEAD)

    def until(self, condition: Callable[[], bool]) -> bool:
        """Look until something is so; False if nothing is delivered any more."""
        while not condition():
            if self._writer.failure is not None or time.monotonic() > self._progress_at + _PATIENCE_SECONDS:
                return False
            self.look(0.01)
        return True

    def kill(self) -> None:
        """SIGKILL, and the next daemon."""
        self.daemon.kill()
        self.daemon = self._start()
        self._progress_at = time.monotonic()

    def end(self) -> None:
        """Let the last daemon stop in order; if it was started only just now, when it has its handlers."""
        self.daemon.wait_started()
        try:
            if self.daemon.terminate() != ExitCode.OK:
                self._note_death("did not end in order")
        except subprocess.TimeoutExpired:
            self._note_death("did not end")
            self.daemon.kill()

    def _note_death(self, what: str) -> None:
        words = "\n".join(f"  {line}" for line in self.daemon.log.splitlines()[-20:])
        self.deaths.append(f"A daemon {what} (exit code {self.daemon.process.poll()}). Its last words:\n{words}")


def run(plan: Plan, directory: Path, say: Callable[[str], None]) -> Evidence:
    """Write, kill, count.

    Args:
        plan: how much.
        directory: for the ledger and the daemons' logs.
        say: told about the progress.
    """
    began = time.monotonic()
    with embedded_mongo() as server, MongoClient(server.url) as client:
        collection = client[_DATABASE].create_collection(COLLECTION, **IMAGES)
        ledger = Ledger(directory / "ledger", server.url, _DATABASE)
        settings = {**ledger.environment, **_SLOW_RECEIVERS}
        with _application(ledger) as own:
            foreign = ForeignClient(collection)
            writer = Writer(
                {foreign: 1 - _OWN_SHARE, own: _OWN_SHARE},
                documents=plan.documents,
                writes=plan.writes,
                seed=plan.seed,
            )
            writer.allow(0)
            trial = Run(writer, ledger, lambda: Daemon(APP, cwd=directory, **settings))
            try:
                trial.daemon.wait_started()
                writer.start()
                kills = _kill_at_random(plan, trial, say)
                trial.until(lambda: not writer.is_alive() and trial.delivered >= writer.written)
                trial.end()
            finally:
                trial.daemon.kill()
                if writer.is_alive():
                    writer.stop()
        return Evidence(
            foreign=writer.orders(foreign),
            own=writer.orders(own),
            entries=ledger(),
            kills=kills,
            deaths=trial.deaths + ([f"The writer failed: {writer.failure!r}"] if writer.failure else []),
            peak_mb=trial.peak_mb,
            seconds=time.monotonic() - began,
        )


def _kill_at_random(plan: Plan, trial: Run, say: Callable[[str], None]) -> int:
    """Carry the kills out; how many there were, which is less if nothing goes on any more."""
    chance = random.Random(plan.seed)
    instants = sorted(chance.uniform(0.01, 0.97) * plan.writes for _ in range(plan.kills))
    for kill, instant in enumerate(instants):
        if not trial.until(lambda instant=instant: len(trial.delivered) >= instant):
            return kill
        deadline = time.monotonic() + chance.uniform(0, _DELAY_SECONDS)
        while (left := deadline - time.monotonic()) > 0:
            trial.look(min(left, 0.01))
        trial.kill()
        if (kill + 1) % 10 == 0:
            say(f"{kill + 1} of {plan.kills} kills, {len(trial.delivered):,} of {plan.writes:,} writes delivered")
    return plan.kills
