"""Samples, ratios and targets. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from statistics import median
from typing import Any, Literal, NamedTuple

__all__ = ["Pair", "Row", "Target", "quantile"]


@dataclass(frozen=True, slots=True)
class Target:
    """The target for a ratio of our figure to the peer's.

    Attributes:
        limit: the design's target.
        tolerated: the limit of `--check`, far beyond the target: a regression by a factor must fail a build, and a
            busy shared machine must not.
        better: `"higher"` for a rate, `"lower"` for a time.
    """

    limit: float
    tolerated: float
    better: Literal["higher", "lower"]

    def met_by(self, ratio: float) -> bool:
        """Whether a ratio is within the target."""
        return ratio >= self.limit if self.better == "higher" else ratio <= self.limit

    def tolerates(self, ratio: float) -> bool:
        """Whether `--check` lets a ratio pass."""
        return ratio >= self.tolerated if self.better == "higher" else ratio <= self.tolerated

    def missed_by(self, ratio: float) -> float:
        """The share by which the target is missed; negative if it is met."""
        return 1 - ratio / self.limit if self.better == "higher" else ratio / self.limit - 1


class Pair(NamedTuple):
    """The result of one round, in the unit of its row."""

    ours: float
    peer: float

    @property
    def ratio(self) -> float:
        """Our result divided by the peer's."""
        return self.ours / self.peer


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        key: stable name, for machines.
        what: the measured thing in a few words, for people.
        about: the measured thing in a sentence, for people.
        peer: the other side.
        unit: the unit of the samples.
        pairs: the results, one pair for each round.
        target: the target for the median of the ratios; None for a row without a target.
        details: further results by name, for the JSON.
    """

    key: str
    what: str
    about: str
    peer: str
    unit: str
    pairs: Sequence[Pair]
    target: Target | None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def ratios(self) -> list[float]:
        """The ratio of each round."""
        return [pair.ratio for pair in self.pairs]

    @property
    def ratio(self) -> float:
        """The median of the ratios. The two sides of a round run close together, under the same conditions."""
        return median(self.ratios)

    @property
    def ours(self) -> float:
        """The median of our samples."""
        return median(pair.ours for pair in self.pairs)

    @property
    def theirs(self) -> float:
        """The median of the peer's samples."""
        return median(pair.peer for pair in self.pairs)


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that is at least as large as this share of the values."""
    ordered = sorted(values)
    return ordered[max(0, ceil(share * len(ordered)) - 1)]
