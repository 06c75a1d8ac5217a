"""What a run comes to, and what it must come to. Pure."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tests.ledger import Entry, disorder

__all__ = ["Evidence", "Figure", "figures", "show"]

Orders = Mapping[str, Sequence[int]]

_MEMORY_MB = 150
_STALL_SECONDS = 30


class Evidence(NamedTuple):
    """What is known after a run.

    Attributes:
        foreign: the writes of the foreign client, by document, in the order of their commits.
        own: the same for the application's own writes.
        entries: every call of a receiver, in order.
        kills: how often the daemon was killed.
        deaths: of processes that ended, or had to be ended, in another way than they should, in words.
        peak_mb: the largest resident memory that a daemon was seen with.
        seconds: how long it took.
    """

    foreign: Orders
    own: Orders
    entries: Sequence[Entry]
    kills: int
    deaths: Sequence[str]
    peak_mb: float
    seconds: float


class Figure(NamedTuple):
    """A number with a name, and what it must be if that matters."""

    name: str
    value: float
    unit: str = ""
    most: float | None = None

    @property
    def holds(self) -> bool:
        """Whether it is what it must be."""
        return self.most is None or self.value <= self.most


def figures(evidence: Evidence) -> list[Figure]:
    """Count."""
    by_origin: dict[str, list[Entry]] = defaultdict(list)
    for entry in evidence.entries:
        by_origin[entry.origin].append(entry)
    stream, process = by_origin["stream"], by_origin["process"]
    foreign, own = _writes(evidence.foreign), _writes(evidence.own)
    delivered, ran = {entry.write for entry in stream}, {entry.write for entry in process}
    return [
        Figure("writes of a foreign client", len(foreign)),
        Figure("writes of the application", len(own)),
        Figure("kills", evidence.kills),
        Figure("deliveries by the daemon", len(stream)),
        Figure("deliveries in process", len(process)),
        Figure("lost", len((foreign - delivered) | (own - ran)), most=0),
        Figure("delivered by both", len(delivered & ran), most=0),
        Figure("delivered by the wrong one", len((delivered & own) | (ran & foreign)), most=0),
        Figure("never written", len((delivered | ran) - foreign - own), most=0),
        Figure("out of order", len(disorder(stream, evidence.foreign)), most=0),
        Figure("out of order in process", len(disorder(process, evidence.own)), most=0),
        Figure("repeated by the daemon", len(stream) - len(delivered)),
        Figure("repeated in process", len(process) - len(ran), most=0),
        Figure("repeated with another id", _renamed(evidence.entries), most=0),
        Figure("ended other than it should", len(evidence.deaths), most=0),
        Figure("longest stall", _longest_stall(stream), "s", most=_STALL_SECONDS),
        Figure("peak memory of a daemon", evidence.peak_mb, "MB", most=_MEMORY_MB),
        Figure("took", evidence.seconds, "s"),
    ]


def _writes(orders: Orders) -> set[tuple[str, int]]:
    return {(name, n) for name, order in orders.items() for n in order}


def _renamed(entries: Sequence[Entry]) -> int:
    """Writes whose deliveries had several ids, and ids that several writes had."""
    ids, writes = defaultdict(set), defaultdict(set)
    for entry in entries:
        ids[entry.write].add(entry.delivery)
        writes[entry.delivery].add(entry.write)
    return sum(len(found) > 1 for found in (*ids.values(), *writes.values()))


def _longest_stall(entries: Sequence[Entry]) -> float:
    """Seconds between two deliveries; the writers are always ahead, so that there was something to deliver."""
    times = sorted(entry.at for entry in entries)
    return max((later - earlier for earlier, later in pairwise(times)), default=0) / 1e9


def show(console: Console, counted: Sequence[Figure], entries: Sequence[Entry]) -> None:
    """Print the figures."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("figure")
    table.add_column("", justify="right")
    table.add_column("must be")
    for figure in counted:
        number = f"{figure.value:,.1f} {figure.unit}" if figure.unit else f"{figure.value:,}"
        must = "" if figure.most is None else f"{'at most ' if figure.most else ''}{figure.most:g} {figure.unit}"
        if figure.holds:
            table.add_row(figure.name, number, must)
        else:
            table.add_row(figure.name, number, f"{must} <- WRONG", style="bold red")
    console.print(table)
    signals = ", ".join(f"{count:,} {signal}" for signal, count in Counter(e.signal for e in entries).items())
    console.print(f"deliveries: {signals}", style="dim", highlight=False, soft_wrap=True)
