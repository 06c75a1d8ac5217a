"""What a scenario is: something to break, in some size, and what came of it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.chaos.figures import Figure

__all__ = ["Plan", "Report", "Scenario", "Size"]


class Size(NamedTuple):
    """How much.

    Attributes:
        writes: at least.
        documents: that are written to.
        faults: how often something is broken.
    """

    writes: int
    documents: int
    faults: int

    def scaled(self, factor: float) -> "Size":
        """Of everything so much more, or less; but something of everything."""
        return Size(*(max(1, round(number * factor)) for number in self))


class Plan(NamedTuple):
    """One run.

    Attributes:
        size: how much.
        seed: of all that is left to chance; the same one leads to the same writes and the same faults, after as
            many deliveries.
        directory: for the ledger and the logs; it is there, and empty.
        say: told about the progress.
    """

    size: Size
    seed: int
    directory: Path
    say: Callable[[str], None]


class Report(NamedTuple):
    """What came of a run.

    Attributes:
        figures: what was counted.
        notes: what went wrong, in words.
    """

    figures: Sequence[Figure]
    notes: Sequence[str] = ()

    @property
    def holds(self) -> bool:
        """Whether every figure is what it must be."""
        return all(figure.holds for figure in self.figures)


class Scenario(NamedTuple):
    """Something to break.

    Attributes:
        name: on the command line.
        title: a sentence for people, without a dot.
        faults: what is counted as one, in the plural.
        full: the size of `make chaos`.
        short: the size of the selection that CI runs.
        run: carries a plan out.
        says: a size, in words.
    """

    name: str
    title: str
    faults: str
    full: Size
    short: Size
    run: Callable[[Plan], Report]
    says: str = "{writes:,} writes on {documents:,} documents, {faults:,} {of}"
