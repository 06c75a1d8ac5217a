"""Assignments for the processes of a measurement, as environment variables."""

import os
from dataclasses import asdict, dataclass
from typing import Literal, Self

__all__ = ["GROUP", "Assignment", "MeterKind"]

MeterKind = Literal["pace", "arrivals"]

GROUP = "bench"
"""The group of the dispatchers."""

_PREFIX = "BENCH_"


@dataclass(frozen=True, slots=True)
class Assignment:
    """One measurement.

    Attributes:
        url: the URL of the server.
        database: the database for the writes.
        expected: the number of changes after which the measurement is complete.
        meter: the kind of the meter.
    """

    url: str
    database: str
    expected: int
    meter: MeterKind

    @property
    def environment(self) -> dict[str, str]:
        """Our environment with the assignment, and without settings that would affect the run."""
        left_out = (
            "DISPATCHER_",
            "PYTHONDONTWRITEBYTECODE",  # with this variable, each process would compile all modules
        )
        kept = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
        own = {f"{_PREFIX}{name.upper()}": str(value) for name, value in asdict(self).items()}
        return kept | own | {"SHOP_MONGODB_URL": self.url}  # for the example application

    @classmethod
    def received(cls) -> Self:
        """The assignment of this process."""
        meter = os.environ[f"{_PREFIX}METER"]
        return cls(
            os.environ[f"{_PREFIX}URL"],
            os.environ[f"{_PREFIX}DATABASE"],
            int(os.environ[f"{_PREFIX}EXPECTED"]),
            "pace" if meter == "pace" else "arrivals",
        )
