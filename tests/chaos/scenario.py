"""Scenarios: faults, sizes and reports."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.chaos.figures import Figure

__all__ = ["Plan", "Report", "Scenario", "Size"]


class Size(NamedTuple):
    """The size of a run.

    Attributes:
        writes: the minimum number of writes.
        documents: the number of written documents.
        faults: the number of faults.
    """

    writes: int
    documents: int
    faults: int

    def scaled(self, factor: float) -> "Size":
        """The size multiplied by a factor; at least one of everything."""
        return Size(*(max(1, round(number * factor)) for number in self))


class Plan(NamedTuple):
    """One run.

    Attributes:
        size: the size of the run.
        seed: the seed of the random choices: the writes, the faults, and the number of deliveries or writes before
            each fault.
        directory: for the ledger and the logs; it exists and is empty.
        say: gets the progress.
    """

    size: Size
    seed: int
    directory: Path
    say: Callable[[str], None]


class Report(NamedTuple):
    """The report of a run.

    Attributes:
        figures: the counted figures.
        notes: the errors, in words.
    """

    figures: Sequence[Figure]
    notes: Sequence[str] = ()

    @property
    def holds(self) -> bool:
        """Whether every figure is within its limits."""
        return all(figure.holds for figure in self.figures)


class Scenario(NamedTuple):
    """A kind of fault and its sizes.

    Attributes:
        name: on the command line.
        title: for people, in a few words.
        faults: the name of its faults, in the plural.
        full: the size of `make chaos`.
        short: the size with `--short`. CI scales it down.
        run: runs a plan.
        says: describes a size in words; a template for `str.format`.
        missing: tells what is missing on this machine, with the command that installs it; empty if all is there.
    """

    name: str
    title: str
    faults: str
    full: Size
    short: Size
    run: Callable[[Plan], Report]
    says: str = "{writes:,} writes on {documents:,} documents, {faults:,} {of}"
    missing: Callable[[], str] = str
