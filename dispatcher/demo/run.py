"""Runs the demo."""

import json
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Final

from dispatcher.core.output.terminal import Terminal
from dispatcher.demo.ledger import Balance, Ledger
from dispatcher.demo.screen import Screen
from dispatcher.demo.shop import Effect, Shop, check_effects, find_shop
from dispatcher.embedded.processes import Child, Line, stopped_by_signals
from dispatcher.embedded.server import embedded_mongo
from dispatcher.exceptions import DemoFailed
from dispatcher.web.links import link_to, new_token

# Changes per second, slow enough to follow on the screen.
_RATE: Final = 40.0
_START_SECONDS: Final = 30.0
# A delivery that is not made within these seconds after the last write counts as lost.
_STRAGGLER_SECONDS: Final = 15.0
_LOG_LINES: Final = 15


def demonstrate(seconds: float, report: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Let another client write, deliver its changes, show writes and deliveries, and count lost deliveries.

    SIGINT and SIGTERM end the writing early. All earlier writes count.

    Args:
        report: called with the summary. The live view then goes to stderr.

    Raises:
        ApplicationError: the sample application is missing, or can't be imported.
        DemoFailed: a delivery was lost, a delivery was made without a write, the data of the shop is wrong, or a
            process of the demo ended too early.
        EmbeddedError: MongoDB can't be started.
    """
    console = Terminal(stderr=report is not None)
    with stopped_by_signals() as stop:
        shop = find_shop()
        ledger = Ledger(shop.owed())
        _Demo(shop, ledger, Screen(console, ledger, seconds), stop, report).run(seconds)


class _Demo:
    """The processes of one demo, and their output."""

    def __init__(
        self,
        shop: Shop,
        ledger: Ledger,
        screen: Screen,
        stop: threading.Event,
        report: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self._shop = shop
        self._ledger = ledger
        self._screen = screen
        self._stop = stop
        self._report = report
        self._feed: SimpleQueue[Line] = SimpleQueue()
        self._logs: defaultdict[Child, deque[str]] = defaultdict(lambda: deque(maxlen=_LOG_LINES))
        self._ended: set[Child] = set()
        self._token = new_token()
        self._started = False

    def run(self, seconds: float) -> None:
        shop, screen, stop, environment = self._shop, self._screen, self._stop, self._shop.environment
        environment = {**environment, "DISPATCHER_HTTP_TOKEN": self._token}
        with embedded_mongo() as server:
            screen.print_line(f"MongoDB listens on 127.0.0.1:{server.port}, in a temporary directory")
            command = shop.dispatcher(server.url)
            with Child("dispatcher", command, cwd=shop.directory, env=environment, into=self._feed) as daemon:
                self._listen(lambda: self._started or daemon in self._ended or stop.is_set(), _START_SECONDS)
                if stop.is_set():
                    screen.print_line("stopped before anything was written")
                    return
                self._must_run(daemon, "did not start")
                screen.print_line(
                    f"the dispatcher serves {shop.package}; now a plain PyMongo client writes to the shop"
                )
                self._write_and_deliver(server.url, seconds, daemon)
                self._end(daemon)
            effects = check_effects(server.url, self._ledger)
        verdict = self._ledger.verdict()
        screen.summarize(verdict, effects)
        if self._report is not None:
            self._report(_summary(self._ledger, verdict, effects))
        _judge(verdict, effects, self._ledger)

    def _write_and_deliver(self, url: str, seconds: float, daemon: Child) -> None:
        shop, ledger = self._shop, self._ledger
        command = shop.writer(url, seconds, _RATE)
        with (
            self._screen.live(),
            Child("writer", command, cwd=shop.directory, env=shop.environment, into=self._feed) as writer,
        ):

            def over() -> bool:
                return writer in self._ended or daemon in self._ended

            self._listen(lambda: over() or self._stop.is_set(), seconds + _START_SECONDS)
            if not over():  # interrupted, or the writer hangs
                writer.process.terminate()
                self._listen(over, _STRAGGLER_SECONDS)
            self._must_run(daemon, "ended while changes were written")
            if writer not in self._ended or writer.stop():
                raise self._died(writer, "failed")
            self._listen(lambda: not ledger.in_flight or daemon in self._ended, _STRAGGLER_SECONDS)
            self._must_run(daemon, "ended before everything was delivered")

    def _end(self, daemon: Child) -> None:
        """Stop the dispatcher, and read its last output, which may report unexpected deliveries."""
        code = daemon.stop()
        self._listen(lambda: daemon in self._ended, _STRAGGLER_SECONDS)
        if code:
            raise self._died(daemon, "did not stop in order")

    def _listen(self, until: Callable[[], bool], seconds: float) -> None:
        """Read the output of the processes, until a condition holds or the time is over."""
        deadline = time.monotonic() + seconds
        while not until() and time.monotonic() < deadline:
            with suppress(Empty):
                self._read_line(self._feed.get(timeout=0.05))
            self._screen.refresh()

    def _read_line(self, line: Line) -> None:
        if line.text is None:
            self._ended.add(line.child)
            return
        entry = _parsed(line.text)
        if entry.get("action") == "delivery.done":
            self._screen.show(self._ledger.add_delivery(entry))
        elif "operation" in entry and "action" not in entry:
            self._ledger.add_write(entry)
        elif entry.get("action") == "http.listening":
            self._screen.print_line(f"the dashboard of the dispatcher: {link_to(entry['address'], self._token)}")
        else:
            self._logs[line.child].append(line.text)
            self._started = self._started or entry.get("action") == "dispatcher.started"

    def _must_run(self, child: Child, otherwise: str) -> None:
        if child in self._ended or not self._started:
            raise self._died(child, otherwise)

    def _died(self, child: Child, what: str) -> DemoFailed:
        code = child.stop()
        log = "\n".join(f"  {line}" for line in self._logs[child])
        return DemoFailed(
            f"The {child.name} {what} (exit code {code}). Its last lines:\n{log or '  (none)'}",
            remedy="If you did not end it yourself, please report this with the lines above.",
        )


def _parsed(text: str) -> dict[str, Any]:
    """The content of a line of JSON; empty for other lines."""
    try:
        entry = json.loads(text)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def _summary(ledger: Ledger, verdict: Balance, effects: list[Effect]) -> dict[str, Any]:
    """The summary for machines, with times in seconds."""
    return {
        "written": ledger.written,
        "expected": ledger.expected,
        "delivered": ledger.delivered,
        "repeated": ledger.repeated,
        "unexpected": verdict.unexpected,
        "lost": [one._asdict() for one in verdict.lost],
        "median": round(ledger.median, 6),
        "p99": round(ledger.p99, 6),
        "effects": [effect._asdict() for effect in effects],
    }


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
