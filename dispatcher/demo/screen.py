"""The screen of the demo: a live view on a terminal, otherwise plain lines."""

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Final

from rich.box import ROUNDED, SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dispatcher.demo.ledger import Balance, Ledger, ShownDelivery
from dispatcher.demo.shop import Effect

_COLOURS: Final = {"insert": "green", "update": "yellow", "replace": "cyan", "delete": "red"}
_REFRESH_SECONDS: Final = 0.1
# Lines of the live view that show no delivery: counters, the head of the table, the progress bar, the cursor.
_FRAME_LINES: Final = 11


class Screen:
    """Shows one demo."""

    def __init__(self, console: Console, ledger: Ledger, seconds: float) -> None:
        self._console = console
        self._ledger = ledger
        self._seconds = seconds
        self._latest: deque[ShownDelivery] = deque(maxlen=max(3, console.height - _FRAME_LINES))
        self._live: Live | None = None
        self._began = self._refreshed = time.monotonic()

    def print_line(self, text: str) -> None:
        """Print a line above the live view."""
        self._console.print(Text(text, style="dim"), soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a line about a fault that the demo causes."""
        self._console.print(Text(text, style="bold yellow"), soft_wrap=True)

    @contextmanager
    def live(self) -> Iterator[None]:
        """Show deliveries during the `with` block."""
        self._began = time.monotonic()
        if not self._console.is_terminal:
            yield
            return
        # rich must not refresh the view itself: its thread would read the ledger while the ledger changes.
        view = Live(console=self._console, auto_refresh=False, get_renderable=self._view, transient=True)
        with view:
            self._live = view
            try:
                yield
            finally:
                self._live = None

    def show(self, delivered: ShownDelivery) -> None:
        """Show a delivery."""
        self._latest.append(delivered)
        if self._live is None:
            self._console.print(_plain(delivered), soft_wrap=True)

    def refresh(self) -> None:
        """Draw the live view again, at most ten times a second."""
        now = time.monotonic()
        if self._live is not None and now - self._refreshed >= _REFRESH_SECONDS:
            self._refreshed = now
            self._live.refresh()

    def summarize(self, verdict: Balance, effects: Sequence[Effect], killed: Sequence[str]) -> None:
        """Print the summary. `killed` are the names of the processes that the demo has killed."""
        ledger = self._ledger
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold", no_wrap=True)
        table.add_column()
        kinds: Counter[str] = Counter()
        for (_, operation), count in ledger.operations.items():
            kinds[operation] += count
        table.add_row("changes written", Text.assemble(f"{ledger.written:,}  ", *_kinds(kinds)))
        table.add_row("deliveries expected", f"{ledger.expected:,}")
        table.add_row("deliveries made", f"{ledger.delivered:,}, {ledger.repeated} of them repeated")
        if killed:
            table.add_row("killed meanwhile", ", ".join(killed))
        if verdict.unexpected:
            table.add_row("unexpected", Text(f"{verdict.unexpected:,} deliveries", style="red"))
        table.add_row("commit to receiver", f"median {_ms(ledger.median)}, p99 {_ms(ledger.p99)}")
        for effect in effects:
            mark = Text(" ok", style="green") if effect.holds else Text(" WRONG", style="bold red")
            table.add_row(effect.name, Text.assemble(effect.text, mark))
        table.add_row("lost", Text(f"{len(verdict.lost):,}", style="bold red" if verdict.lost else "bold green"))
        if self._console.is_terminal:
            self._console.print(_table(list(self._latest)[-10:]))
        self._console.print(Panel(table, box=ROUNDED, title="summary", title_align="left", expand=False))
        line = Text(
            f"{ledger.written:,} changes written by a client without mongoz, "
            f"{ledger.delivered:,} of {ledger.expected:,} deliveries made, "
        )
        self._console.print(line.append(f"lost {len(verdict.lost):,}", "bold"), soft_wrap=True)

    def _view(self) -> RenderableType:
        ledger = self._ledger
        counters = Table.grid(expand=True, padding=(0, 1))
        for _ in range(5):
            counters.add_column(ratio=1)
        counters.add_row(
            _counter("written", f"{ledger.written:,}", "white"),
            _counter("delivered", f"{ledger.delivered:,}", "green"),
            _counter("in flight", f"{ledger.in_flight:,}", "yellow" if ledger.in_flight else "green"),
            _counter("median", _ms(ledger.median), "cyan"),
            _counter("p99", _ms(ledger.p99), "cyan"),
        )
        passed = time.monotonic() - self._began
        progress = Table.grid(expand=True, padding=(0, 1))
        progress.add_column(ratio=1)
        progress.add_column(justify="right", width=24)
        label = f"{passed:.0f} of {self._seconds:.0f} s, Ctrl-C ends"
        progress.add_row(ProgressBar(total=self._seconds, completed=min(passed, self._seconds)), label)
        return Group(counters, _table(self._latest, self._latest.maxlen), progress)


def _counter(name: str, value: str, style: str) -> Panel:
    return Panel(Text(value, style=f"bold {style}", justify="center"), title=name, box=ROUNDED, border_style="dim")


def _table(deliveries: Sequence[ShownDelivery], height: int | None = None) -> Table:
    table = Table(box=SIMPLE_HEAD, expand=True, padding=(0, 1), header_style="bold dim")
    table.add_column("delivered", no_wrap=True)
    table.add_column("change", no_wrap=True, min_width=7)
    table.add_column("document", no_wrap=True, ratio=2)
    table.add_column("receiver", no_wrap=True, ratio=1)
    table.add_column("after", no_wrap=True, justify="right", min_width=9)
    for one in deliveries:
        colour = _COLOURS[one.operation]
        table.add_row(
            Text(_clock(one.at), style="dim"),
            Text(one.operation, style=colour),
            Text.assemble(one.namespace, " ", (one.key, "dim")),
            Text(one.receiver, style=f"bold {colour}"),
            _ms(one.seconds),
        )
    # The view has its full height from the start, so that it does not move.
    for _ in range((height or 0) - len(deliveries)):
        table.add_row()
    return table


def _plain(one: ShownDelivery) -> str:
    place = f"{one.namespace} {one.key}"
    return f"{_clock(one.at)}  {one.operation:<8} {place:<38} {one.receiver:<16} {_ms(one.seconds):>9}"


def _kinds(kinds: Counter[str]) -> Iterator[str | tuple[str, str]]:
    for operation, colour in _COLOURS.items():
        yield (f"{operation} ", colour)
        yield f"{kinds[operation]:,}  "


def _clock(at: datetime) -> str:
    return at.astimezone().strftime("%H:%M:%S.%f")[:-3]


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.1f} ms"
