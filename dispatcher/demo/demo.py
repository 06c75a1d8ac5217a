"""The demo: its processes, and the count of their writes and deliveries."""

import json
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from queue import Empty, SimpleQueue
from typing import Any, Final, NamedTuple

from dispatcher.core.output.terminal import Terminal
from dispatcher.demo.ledger import Balance, Ledger
from dispatcher.demo.screen import Screen
from dispatcher.demo.shop import Effect, Shop, check_effects
from dispatcher.embedded.processes import Child, Line
from dispatcher.embedded.server import embedded_mongo
from dispatcher.exceptions import DemoFailed
from dispatcher.web.links import link_to, new_token

# Changes per second, slow enough to follow on the screen.
_RATE: Final = 40.0
_START_SECONDS: Final = 30.0
# A delivery that is not made within these seconds after the last write counts as lost.
_STRAGGLER_SECONDS: Final = 30.0
_LOG_LINES: Final = 15
# When a process begins to deliver or to publish, it logs one of these actions.
_WORKING: Final = frozenset({"lease.claimed", "relay.term"})


class ScheduledFault(NamedTuple):
    """A fault that the demo causes while changes are written.

    Attributes:
        at: the part of the writing time after which the fault happens, from 0 to 1.
    """

    at: float
    strike: Callable[[], None]


class Demo:
    """The processes of one demo, and their output. This class runs one dispatcher, which reads a change stream.

    Args:
        stop: set it to end the writing early.
        report: called with the summary. If it is not None, the live view goes to stderr.
    """

    def __init__(
        self,
        shop: Shop,
        seconds: float,
        stop: threading.Event,
        report: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self.shop = shop
        self._seconds = seconds
        self._stop = stop
        self._report = report
        self._ledger = Ledger(shop.owed())
        self.screen = Screen(Terminal(stderr=report is not None), self._ledger, seconds)
        self._feed: SimpleQueue[Line] = SimpleQueue()
        self._logs: defaultdict[Child, deque[str]] = defaultdict(lambda: deque(maxlen=_LOG_LINES))
        self._daemons: list[Child] = []
        self._working: set[Child] = set()
        self._ended: set[Child] = set()
        self._killed: list[str] = []
        self._token = new_token()
        self.running = ExitStack()

    def run(self) -> None:
        """Write, deliver, and print the summary.

        Raises:
            DemoFailed: a delivery was lost, a delivery was made without a write, the data of the shop is wrong, or
                a process of the demo ended too early.
            EmbeddedError: MongoDB can't be started.
        """
        with embedded_mongo() as server, self.running:
            self.screen.print_line(f"{server.notice}, on 127.0.0.1:{server.port}, in a temporary directory")
            self.start(server.url)
            if self._stop.is_set():
                self.screen.print_line("stopped before anything was written")
                return
            self._write_and_deliver(server.url)
            self._end()
            effects = check_effects(server.url, self._ledger)
        verdict = self._ledger.verdict()
        self.screen.summarize(verdict, effects, self._killed)
        if self._report is not None:
            self._report(self._summary(verdict, effects))
        _judge(verdict, effects, self._ledger)

    def start(self, url: str) -> None:
        """Start the processes that deliver, and wait until they work. `url` is the address of the server."""
        self.add("dispatcher", self.shop.dispatcher(url))
        self.wait_until_working()
        self.screen.print_line(
            f"the dispatcher serves {self.shop.package}; now a plain PyMongo client writes to the shop"
        )

    def faults(self) -> Sequence[ScheduledFault]:
        """The faults of the demo, in their order."""
        return ()

    def add(self, name: str, command: Sequence[str]) -> Child:
        """Start a process of the demo. If the process ends too early, the demo fails."""
        environment = {**self.shop.environment, "DISPATCHER_HTTP_TOKEN": self._token}
        child = Child(name, command, cwd=self.shop.directory, env=environment, into=self._feed)
        self._daemons.append(self.running.enter_context(child))
        return child

    def wait_until_working(self) -> None:
        """Wait until each process works: a dispatcher holds a partition, or a relay can publish.

        Raises:
            DemoFailed: a process does not start.
        """
        self._listen(lambda: self._working.issuperset(self._daemons) or self._over, _START_SECONDS)
        for child in self._daemons:
            if not self._stop.is_set() and (child not in self._working or child in self._ended):
                raise self._died(child, "did not start")

    def kill(self, child: Child) -> None:
        """End a process with SIGKILL. The demo goes on without it."""
        child.process.kill()
        self._daemons.remove(child)
        self._killed.append(child.name)

    @property
    def _over(self) -> bool:
        """Whether the demo can't go on: it is stopped, or a process has ended."""
        return self._stop.is_set() or not self._ended.isdisjoint(self._daemons)

    def _write_and_deliver(self, url: str) -> None:
        seconds, ledger = self._seconds, self._ledger
        command = self.shop.writer(url, seconds, _RATE)
        with (
            self.screen.live(),
            Child(
                "writer", command, cwd=self.shop.directory, env=self.shop.environment, into=self._feed
            ) as writer,
        ):
            began = time.monotonic()

            def over() -> bool:
                return self._over or writer in self._ended

            for fault in self.faults():
                self._listen(over, began + seconds * fault.at - time.monotonic())
                if not over():
                    fault.strike()
            self._listen(over, began + seconds + _START_SECONDS - time.monotonic())
            if writer not in self._ended and self._ended.isdisjoint(self._daemons):  # interrupted or stuck
                writer.process.terminate()
                self._listen(lambda: writer in self._ended, _STRAGGLER_SECONDS)
            self._must_run("ended while changes were written")
            if writer not in self._ended or writer.stop():
                raise self._died(writer, "failed")
            self._listen(
                lambda: not ledger.in_flight or not self._ended.isdisjoint(self._daemons), _STRAGGLER_SECONDS
            )
            self._must_run("ended before everything was delivered")

    def _end(self) -> None:
        """Stop the processes, and read their last output, which may report unexpected deliveries."""
        for child in self._daemons:
            code = child.stop()
            self._listen(lambda child=child: child in self._ended, _STRAGGLER_SECONDS)  # type: ignore[misc]
            if code:
                raise self._died(child, "did not stop cleanly")

    def _listen(self, until: Callable[[], bool], seconds: float) -> None:
        """Read the output of the processes, until a condition is true or the time is over."""
        deadline = time.monotonic() + seconds
        while not until() and time.monotonic() < deadline:
            with suppress(Empty):
                self._read_line(self._feed.get(timeout=0.05))
            self.screen.refresh()

    def _read_line(self, line: Line) -> None:
        if line.text is None:
            self._ended.add(line.child)
            return
        entry = _parsed(line.text)
        if entry.get("action") == "delivery.done":
            self.screen.show(self._ledger.add_delivery(entry))
        elif "operation" in entry and "action" not in entry:
            self._ledger.add_write(entry)
        elif entry.get("action") == "http.listening":
            address = link_to(entry["address"], self._token)
            self.screen.print_line(f"the dashboard of the {line.child.name}: {address}")
        else:
            self._logs[line.child].append(line.text)
            if entry.get("action") in _WORKING:
                self._working.add(line.child)

    def _must_run(self, otherwise: str) -> None:
        for child in self._daemons:
            if child in self._ended:
                raise self._died(child, otherwise)

    def _died(self, child: Child, what: str) -> DemoFailed:
        code = child.stop()
        log = "\n".join(f"  {line}" for line in self._logs[child])
        return DemoFailed(
            f"The {child.name} {what} (exit code {code}). Its last lines:\n{log or '  (none)'}",
            remedy="If you did not end it yourself, please report this with the lines above.",
        )

    def _summary(self, verdict: Balance, effects: list[Effect]) -> dict[str, Any]:
        """The summary for machines, with times in seconds."""
        ledger = self._ledger
        return {
            "written": ledger.written,
            "expected": ledger.expected,
            "delivered": ledger.delivered,
            "repeated": ledger.repeated,
            "unexpected": verdict.unexpected,
            "killed": self._killed,
            "lost": [one._asdict() for one in verdict.lost],
            "median": round(ledger.median, 6),
            "p99": round(ledger.p99, 6),
            "effects": [effect._asdict() for effect in effects],
        }


def _parsed(text: str) -> dict[str, Any]:
    """The content of a line of JSON; empty for other lines."""
    try:
        entry = json.loads(text)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def _judge(verdict: Balance, effects: list[Effect], ledger: Ledger) -> None:
    if verdict.lost:
        some = "; ".join(
            f"{one.operation} of {one.namespace} {one.key} to {one.receiver}" for one in verdict.lost[:3]
        )
        raise DemoFailed(f"{len(verdict.lost):,} of {ledger.expected:,} deliveries were lost: {some} ...")
    if verdict.unexpected:
        raise DemoFailed(f"{verdict.unexpected:,} deliveries were made without a write.")
    wrong = [f"{effect.name} ({effect.text})" for effect in effects if not effect.holds]
    if wrong:
        raise DemoFailed(f"Everything was delivered, but the data of the shop is wrong: {', '.join(wrong)}.")
