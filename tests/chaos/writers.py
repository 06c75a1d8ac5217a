"""Web-like processes write and call receivers, and some of them die. Two dispatchers take over their deliveries.

Writing processes are killed, stopped, terminated, and cut off from the data, from the state of the dispatchers, or
from both. Dispatchers are killed and stopped.

A process that is stopped for longer than the timeout of its claims may begin at most one delivery that a
dispatcher has taken over: if it was stopped between the check of its claims and the call of the receiver.
"""

import signal
import time
from collections.abc import Callable
from typing import Final

from dispatcher.embedded.server import embedded_mongo
from tests.chaos.links import links
from tests.chaos.scenario import Plan, Report, Scenario, Size
from tests.chaos.writers_figures import writers_figures
from tests.chaos.writers_fleet import Fleet, Writer

__all__ = ["SCENARIO"]

_WRITERS: Final = 4
_DISPATCHERS: Final = 2
_LEASE_SECONDS: Final = 3.0
_TIMEOUT_SECONDS: Final = 5.0
_DELAY_SECONDS: Final = 0.3

# After a fault, a process has this time to write before its next fault.
_START_SECONDS: Final = 2.0
_END_SECONDS: Final = 60.0

# The server ends the transactions of dead processes after this number of seconds; by default after a minute.
_PARAMETERS: Final = ("--setParameter", "transactionLifetimeLimitSeconds=5")


class Faults:
    """Injects faults. A writing process has at most one fault at a time."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._chance = fleet.chance
        self._faults: dict[str, Callable[[str], None]] = {
            "killed": lambda kind: self._kill(self._writer(), kind),
            "killed while cut off": self._cut_and_kill,
            "stopped for a moment": lambda kind: self._stop(self._writer(), kind, 0.1, 0.5),
            "stopped for longer than the timeout": lambda kind: self._stop(self._writer(), kind, 1.2, 2.5),
            "terminated": self._terminate,
            "cut off from the data": lambda kind: self._cut(self._writer(), kind, data=True),
            "cut off from the state": lambda kind: self._cut(self._writer(), kind, state=True),
            "cut off from everything": lambda kind: self._cut(self._writer(), kind, data=True, state=True),
            "dispatcher killed": lambda kind: self._kill_dispatchers(kind, 1),
            "both dispatchers killed": lambda kind: self._kill_dispatchers(kind, 2),
            "dispatcher stopped": self._stop_dispatcher,
        }
        self._next: list[str] = []

    def fault(self) -> None:
        """Begins one fault; all kinds are equally frequent."""
        if not self._next:
            self._next = self._chance.sample(list(self._faults), len(self._faults))
        kind = self._next.pop()
        self._faults[kind](kind)

    # -- writing processes -------------------------------------------------------------------------------

    def _writer(self) -> Writer:
        """A writing process without a fault."""

        def free() -> list[Writer]:
            return [writer for writer in self._fleet.writers if not writer.has_fault]

        self._fleet.until(lambda: bool(free()))
        writer = self._chance.choice(free())
        writer.has_fault = True
        return writer

    def _end(self, writer: Writer) -> None:
        """Notes the end of a fault, some time after the process runs again."""

        def end() -> None:
            if writer.has_started or writer.process.poll() is not None:
                writer.has_fault = False
            else:
                self._fleet.after(0.1, end)

        self._fleet.after(_START_SECONDS, end)

    def _timeouts(self, least: float, most: float) -> float:
        return self._chance.uniform(least, most) * _TIMEOUT_SECONDS

    def _kill(self, writer: Writer, kind: str) -> None:
        self._fleet.note_writer(kind, writer)
        writer.process.kill()
        writer.process.wait()
        writer.mend()
        self._fleet.replace(writer, -signal.SIGKILL)
        self._end(writer)

    def _cut_and_kill(self, kind: str) -> None:
        writer, seconds = self._writer(), self._timeouts(0.2, 1.5)
        self._fleet.note_writer("cut off from the state", writer, seconds)
        writer.cut(data=False, state=True, way=self._way())
        self._fleet.after(seconds, lambda: self._kill(writer, kind))

    def _stop(self, writer: Writer, kind: str, least: float, most: float) -> None:
        seconds = self._timeouts(least, most)
        self._fleet.note_writer(kind, writer, seconds)
        writer.process.send_signal(signal.SIGSTOP)

        def resume() -> None:
            writer.process.send_signal(signal.SIGCONT)
            self._end(writer)

        self._fleet.after(seconds, resume)

    def _terminate(self, kind: str) -> None:
        writer, deadline = self._writer(), time.monotonic() + _END_SECONDS
        self._fleet.note_writer(kind, writer)
        writer.process.send_signal(signal.SIGTERM)

        def replace() -> None:
            if writer.process.poll() is None and time.monotonic() < deadline:
                self._fleet.after(0.1, replace)
                return
            self._fleet.replace(writer, 0)
            self._end(writer)

        replace()

    def _way(self) -> str:
        return self._chance.choice(("reset", "silence"))

    def _cut(self, writer: Writer, kind: str, *, data: bool = False, state: bool = False) -> None:
        seconds = self._timeouts(0.1, 2.5)
        self._fleet.note_writer(kind, writer, seconds)
        writer.cut(data=data, state=state, way=self._way())

        def mend() -> None:
            writer.mend()
            self._end(writer)

        self._fleet.after(seconds, mend)

    # -- dispatchers -------------------------------------------------------------------------------------

    def _kill_dispatchers(self, kind: str, number: int) -> None:
        for daemon in self._chance.sample(self._fleet.dispatchers, number):
            self._fleet.note_dispatcher(kind, daemon)
            self._fleet.dispatchers.remove(daemon)
            daemon.kill()
            self._fleet.start_dispatcher()

    def _stop_dispatcher(self, kind: str) -> None:
        daemon = self._chance.choice(self._fleet.dispatchers)
        seconds = self._chance.uniform(0.2, 2.5) * _LEASE_SECONDS
        self._fleet.note_dispatcher(kind, daemon, seconds)
        daemon.process.send_signal(signal.SIGSTOP)
        self._fleet.after(seconds, lambda: daemon.process.send_signal(signal.SIGCONT))


def run(plan: Plan) -> Report:
    """Lets processes write, injects faults, and counts."""
    with (
        links() as made,
        embedded_mongo(extra_args=_PARAMETERS) as server,
        Fleet(plan, server.url, server.port, made, timeout=_TIMEOUT_SECONDS, lease=_LEASE_SECONDS) as fleet,
    ):
        fleet.start(writers=_WRITERS, dispatchers=_DISPATCHERS)
        fleet.break_at_random(Faults(fleet).fault, _DELAY_SECONDS)
        fleet.finish()
        evidence = fleet.evidence()
    return Report(writers_figures(evidence), evidence.deaths)


SCENARIO = Scenario(
    name="writers",
    title="writing processes with claims, and two dispatchers: kills, suspensions, stops, cut connections",
    faults="faults",
    full=Size(writes=100_000, documents=1_000, faults=300),
    short=Size(writes=2_000, documents=200, faults=11),
    run=run,
    says="{writes:,} writes, {faults:,} {of}",
)
