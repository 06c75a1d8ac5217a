"""Growth of cost: changes per second, milliseconds and megabytes over one quantity at a time."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from benchmarks.busy import Busy, Point, measure_busy
from benchmarks.workloads.shape import Shape

__all__ = ["DIMENSIONS", "Dimension", "Grown", "measure_growth"]


class Dimension(NamedTuple):
    """One quantity that grows.

    Attributes:
        key: stable name, for machines and files.
        title: the quantity in a few words, for people.
        axis: the unit of the quantity.
        says: the measurement, in a sentence.
        values: the measured values of the quantity.
        busy: makes the measurement for a value.
    """

    key: str
    title: str
    axis: str
    says: str
    values: Sequence[float]
    busy: Callable[[float], Busy]


class Grown(NamedTuple):
    """The results of a dimension: a point for each value."""

    dimension: Dimension
    points: list[Point]


DIMENSIONS: Final = (
    Dimension(
        "receivers",
        "Receivers of each change",
        "receivers",
        "One collection, inserts of 0.2 kB, receivers that do nothing. A change is decoded and "
        "hydrated once for all its receivers. Each receiver adds only its own call.",
        (1, 10, 100),
        lambda value: Busy(Shape(receivers=int(value)), changes=20_000 if value < 50 else 3_000),
    ),
    Dimension(
        "collections",
        "Watched collections",
        "collections",
        "One receiver for each collection, inserts spread evenly. One stream serves all collections. The "
        "server compares each change with the list of their names.",
        (1, 10, 100),
        lambda value: Busy(Shape(collections=int(value)), changes=20_000),
    ),
    Dimension(
        "size",
        "Size of a document",
        "kB",
        "Inserts. Decoding and copying grow with the bytes; everything else is constant.",
        (0.2, 2, 20),
        lambda value: Busy(padding=int(value * 1_000) - 60, changes=20_000 if value < 10 else 4_000),
    ),
    Dimension(
        "documents",
        "Distinct documents",
        "documents",
        "Updates of this number of documents, with post images, and a receiver that waits 1 ms. The "
        "changes of one document are delivered one after another, so changes of a single "
        "document are delivered only as fast as its receiver runs.",
        (1, 100, 100_000),
        lambda value: Busy(
            Shape(wait_ms=1), documents=int(value), changes=2_000 if value < 2 else 20_000, timed=False
        ),
    ),
    Dimension(
        "concurrency",
        "Concurrency",
        "deliveries in flight, at most",
        "A receiver that waits 10 ms, as if it called a service. Throughput is concurrency divided by "
        "waiting time, until the processor is busy.",
        (1, 10, 100, 1_000),
        lambda value: Busy(
            Shape(wait_ms=10), concurrency=int(value), changes=int(min(20_000, 300 * value)), timed=False
        ),
    ),
    Dimension(
        "waiting",
        "Dispatchers, receivers that wait",
        "dispatchers, each with a partition",
        "A receiver that waits 50 ms, concurrency 100 for each dispatcher, and a backlog. The "
        "processes wait at the same time, so their throughput adds up until the "
        "processor is busy.",
        (1, 2, 4),
        lambda value: Busy(
            Shape(wait_ms=50), dispatchers=int(value), changes=int(10_000 * value), timed=False, backlog=True
        ),
    ),
    Dimension(
        "computing",
        "Dispatchers, receivers that compute",
        "dispatchers, each with a partition",
        "A receiver that computes for 2 ms, and a backlog. A process computes on one core. More "
        "processes help as long as there are free cores, and the server needs cores too.",
        (1, 2, 4),
        lambda value: Busy(Shape(compute_ms=2), dispatchers=int(value), changes=4_000, timed=False, backlog=True),
    ),
)


def measure_growth(url: str, say: Callable[[str], None], *, quick: bool = False) -> list[Grown]:
    """Measure all dimensions.

    Args:
        url: the URL of a server for this run only.
        say: gets the progress.
        quick: a tenth of the changes.

    Raises:
        BenchmarkFailed: a process did not do what it should.
    """
    grown = []
    for dimension in DIMENSIONS:
        points = []
        for value in dimension.values:
            busy = dimension.busy(value)
            if quick:
                busy = _smaller(busy)
            point = measure_busy(url, busy)
            points.append(point)
            say(f"{dimension.key} {value:g}: {point.rate:,.0f} changes/s, {point.memory_mb:.0f} MB")
        grown.append(Grown(dimension, points))
    return grown


def _smaller(busy: Busy) -> Busy:
    return replace(busy, changes=max(200, busy.changes // 10), documents=min(busy.documents, 1_000))
