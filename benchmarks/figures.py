"""Samples, ratios and targets. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from statistics import median
from typing import Any, Literal, NamedTuple

__all__ = ["Measured", "Pair", "Row", "Target", "quantile"]


@dataclass(frozen=True, slots=True)
class Target:
    """The target for a ratio of our figure to the peer's.

    Attributes:
        limit: the design's target.
        tolerated: the limit of `--check`, which is wider than the target. A regression must fail a build, and the
            load of a shared machine must not. None for a time that depends on the load: `--check` lets each ratio
            pass.
        better: `"higher"` for a rate, `"lower"` for a time.
    """

    limit: float
    tolerated: float | None
    better: Literal["higher", "lower"]

    @classmethod
    def cost(cls, limit: float) -> "Target":
        """A target for processor times. Other processes hardly change these times, so the tolerance is small."""
        return cls(limit, limit * 1.3, "lower")

    def met_by(self, ratio: float) -> bool:
        """Whether a ratio is within the target."""
        return ratio >= self.limit if self.better == "higher" else ratio <= self.limit

    def tolerates(self, ratio: float) -> bool:
        """Whether `--check` lets a ratio pass."""
        if self.tolerated is None:
            return True
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One quantity of both sides.

    Attributes:
        pairs: the results, one pair for each round.
        target: the target for the median of the ratios; None without a target.
    """

    pairs: Sequence[Pair]
    target: Target | None = None

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

    @property
    def is_met(self) -> bool | None:
        """Whether the ratio is within the target; None without a target."""
        return None if self.target is None else self.target.met_by(self.ratio)

    @property
    def is_tolerated(self) -> bool | None:
        """Whether `--check` lets the ratio pass; None without a target."""
        return None if self.target is None else self.target.tolerates(self.ratio)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row(Measured):
    """One line of the table: what a user notices, and the processor time that it costs.

    Attributes:
        key: stable name, for machines.
        what: the measured thing in a few words, for people.
        about: the measured thing in a sentence, for people.
        peer: the other side.
        unit: the unit of the samples.
        cpu: the processor time of the measured processes, of both sides for the same work; or the reason why a
            comparison of processor times says nothing about this row.
        details: further results by name, for the JSON.
    """

    key: str
    what: str
    about: str
    peer: str
    unit: str
    cpu: Measured | str
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def judged(self) -> Measured:
        """The quantity of the verdict: the processor time if that has a target, otherwise the row itself.

        The measurement of a processor time needs no quiet machine.
        """
        return self.cpu if isinstance(self.cpu, Measured) and self.cpu.target is not None else self


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that is at least as large as this share of the values."""
    ordered = sorted(values)
    return ordered[max(0, ceil(share * len(ordered)) - 1)]
