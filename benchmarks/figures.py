"""Samples, ratios and targets. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from statistics import median
from typing import Any, Literal, NamedTuple

__all__ = ["Pair", "Row", "Target", "quantile"]


@dataclass(frozen=True, slots=True)
class Target:
    """What a ratio of ours to the peer's must be.

    Attributes:
        limit: the design's target.
        tolerated: where `--check` draws the line, far beyond the target: a shared machine that does three other
            things at once must not turn a build red, a regression by a factor must.
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
        """By which part of itself the target is missed; negative if it is met."""
        return 1 - ratio / self.limit if self.better == "higher" else ratio / self.limit - 1


class Pair(NamedTuple):
    """What one round measured, in the unit of its row."""

    ours: float
    peer: float

    @property
    def ratio(self) -> float:
        """Ours to the peer's."""
        return self.ours / self.peer


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        key: stable name, for machines.
        what: for people, in a few words.
        about: for people, in a sentence.
        peer: what ours is compared with.
        unit: of the samples.
        pairs: one per round.
        target: for the median of the ratios; None where the design sets none, and the row informs.
        details: whatever else was measured, by name; goes into the JSON as it is.
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
        """One per round."""
        return [pair.ratio for pair in self.pairs]

    @property
    def ratio(self) -> float:
        """The median of the ratios: the two sides of a round ran close together, under the same conditions."""
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
    """The smallest value that at least this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, ceil(share * len(ordered)) - 1)]
