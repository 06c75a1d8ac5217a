"""Measures a busy application: changes per second, latency, processor time and memory."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple

from bson import ObjectId
from pymongo import AsyncMongoClient, MongoClient, UpdateOne
from pymongo.database import Database

from benchmarks.contestants import BenchmarkFailed, Contestant, busy_daemon
from benchmarks.figures import Measured, Pair, Target, quantile
from benchmarks.workloads.environment import GROUP, Assignment
from benchmarks.workloads.shape import COLLECTION_PREFIX, COUNTERS, RECEIVER_PREFIX, Shape
from dispatcher.core.state import HELD, POSITIONS, Group, State
from dispatcher.operate.pauses import pause, resume

__all__ = ["Busy", "Heard", "Point", "cpu_of", "measure_busy"]

_DATABASE, _STATE = "busy", "busy_state"
_PATIENCE_SECONDS, _PATIENCE_FOR_ALL = 90.0, 900.0  # for one condition, and for all changes
_AT_ONCE = 1_000
_FIRST = f"{RECEIVER_PREFIX}1"
_TIMED, _RATE = 200, 100.0  # the number of timed writes, and writes per second


@dataclass(frozen=True, slots=True)
class Busy:
    """One measurement.

    Attributes:
        shape: the shape of the application.
        changes: the number of writes, as fast as possible.
        padding: additional characters in each document.
        documents: the number of updated documents; 0 inserts a new document for each change.
        concurrency: the maximum number of deliveries that each dispatcher makes at the same time.
        dispatchers: the number of dispatcher processes, and of partitions.
        timed: whether the latency is measured too.
        backlog: whether all changes are written before the first delivery.
        parked: whether the first receiver is paused until all its deliveries are parked.
    """

    shape: Shape = field(default_factory=Shape)
    changes: int = 5_000
    padding: int = 100
    documents: int = 0
    concurrency: int = 100
    dispatchers: int = 1
    timed: bool = True
    backlog: bool = False
    parked: bool = False


class Point(NamedTuple):
    """The result of a measurement.

    Attributes:
        rate: changes per second.
        p50, p99: milliseconds from sending a write to the end of its last receiver, at 100 writes/s; None if not
            measured.
        memory_mb: the maximum memory of the largest process.
        cpu_us: microseconds of processor time of all processes for each change.
    """

    rate: float
    p50: float | None
    p99: float | None
    memory_mb: float
    cpu_us: float


def cpu_of(points: Sequence[tuple[Point, Point]], target: Target | None = None) -> Measured:
    """The processor times of pairs of measurements."""
    return Measured(pairs=[Pair(ours.cpu_us, peer.cpu_us) for ours, peer in points], target=target)


class Heard:
    """The reports of the processes so far."""

    def __init__(self, processes: list[Contestant]) -> None:
        self._processes = processes
        self._spreads: dict[int, dict[str, Any]] = {}
        self.arrived: dict[int, int] = {}
        self.memory_mb = 0.0

    @property
    def count(self) -> int:
        """The number of delivered changes."""
        return sum(spread["count"] for spread in self._spreads.values())

    @property
    def pids(self) -> list[int]:
        """The process ids of the processes that have delivered."""
        return [*self._spreads]

    @property
    def last(self) -> int:
        """When the last change arrived, in nanoseconds of the monotonic clock."""
        return max(int(spread["last"]) for spread in self._spreads.values())

    @property
    def seconds(self) -> float:
        """Seconds from the first change to the last."""
        spreads = self._spreads.values()
        return float(max(s["last"] for s in spreads) - min(s["first"] for s in spreads)) / 1e9

    @property
    def cpu_seconds(self) -> float:
        """The processor time of all processes since their first changes."""
        return float(sum(spread["cpu_seconds"] for spread in self._spreads.values()))

    def wait(self, what: str, is_over: Callable[[], bool], patience: float = _PATIENCE_SECONDS) -> None:
        """Read reports until a condition holds, for at most this number of seconds.

        Raises:
            BenchmarkFailed: the condition does not hold in time.
        """
        deadline = time.monotonic() + patience
        while not is_over():
            if time.monotonic() > deadline:
                raise BenchmarkFailed(f"{what} did not happen within {patience:g} s ({self.count} changes).")
            time.sleep(0.05)
            for process in self._processes:
                for said in process.news():
                    if "spread" in said:
                        self._spreads[said["spread"]["pid"]] = said["spread"]
                        self.memory_mb = max(self.memory_mb, said["spread"]["rss_mb"])
                        self.arrived |= {int(number): at for number, at in said["arrived"].items()}


def measure_busy(url: str, busy: Busy) -> Point:
    """Start the processes, write, and collect the reports.

    Raises:
        BenchmarkFailed: a process did not do what it should.
    """
    assignment = Assignment(url, _DATABASE, busy.changes, "arrivals")
    with MongoClient[dict[str, Any]](url) as client, ExitStack() as stack:
        for name in (_DATABASE, _STATE):
            client.drop_database(name)
        database = client[_DATABASE]
        _prepare(database, busy)
        if busy.backlog:
            asyncio.run(_with_state(url, pause))
        if busy.parked:
            asyncio.run(_with_state(url, _pause_receivers))
        flags = ("--concurrency", str(busy.concurrency), "--partitions", str(busy.dispatchers))
        processes = [
            stack.enter_context(busy_daemon(assignment, _STATE, busy.shape, flags=flags))
            for _ in range(busy.dispatchers)
        ]
        heard = Heard(processes)
        positions = client[_STATE][POSITIONS]
        shared = {"partition": {"$exists": True}, "token": {"$exists": True}}
        heard.wait(
            "Sharing the partitions",
            lambda: len({p.get("owner") for p in positions.find(shared)} - {None}) == busy.dispatchers,
        )
        _write(database, busy)
        if busy.backlog:
            if heard.count:
                raise BenchmarkFailed("The dispatchers deliver, though they are paused.")
            asyncio.run(_with_state(url, resume))
        if busy.parked:
            held = client[_STATE][HELD]
            is_parked = lambda: held.estimated_document_count() >= busy.changes  # noqa: E731 - a condition
            heard.wait("Parking all deliveries", is_parked, _PATIENCE_FOR_ALL)
            asyncio.run(_with_state(url, _resume_receivers))
        heard.wait("Delivering all changes", lambda: heard.count >= busy.changes, _PATIENCE_FOR_ALL)
        rate, cpu_us = busy.changes / heard.seconds, heard.cpu_seconds / busy.changes * 1e6
        latencies = _timed(database, busy, heard) if busy.timed else []
    return Point(
        rate,
        quantile(latencies, 0.5) if latencies else None,
        quantile(latencies, 0.99) if latencies else None,
        heard.memory_mb,
        cpu_us,
    )


async def _pause_receivers(group: Group) -> bool:
    return await pause(group, _FIRST, known=[_FIRST])


async def _resume_receivers(group: Group) -> bool:
    return await resume(group, _FIRST, known=[_FIRST])


async def _with_state(url: str, do: Callable[[Group], Awaitable[bool]]) -> None:
    """Pause or resume the group, or its first receiver."""
    async with AsyncMongoClient[Any](url) as client:
        await do(Group(State(client, _STATE), GROUP))


def _prepare(database: Database[dict[str, Any]], busy: Busy) -> None:
    for index in range(busy.shape.collections):
        database.create_collection(_name(index), changeStreamPreAndPostImages={"enabled": True})
    if busy.shape.counters:
        database[COUNTERS].insert_many([{"name": str(n), "count": 0} for n in range(busy.shape.counters)])
    for start in range(0, busy.documents, _AT_ONCE):
        ids = range(start, min(start + _AT_ONCE, busy.documents))
        database[_name(0)].insert_many([{"_id": _id(number), **_row(0, busy)} for number in ids])


def _write(database: Database[dict[str, Any]], busy: Busy) -> None:
    """Write all changes as fast as one client can."""
    random = Random(1)
    for start in range(0, busy.changes, _AT_ONCE):
        numbers = range(start, min(start + _AT_ONCE, busy.changes))
        if busy.documents:
            requests = [
                UpdateOne({"_id": _id(random.randrange(busy.documents))}, {"$set": {"number": number + 1}})
                for number in numbers
            ]
            database[_name(0)].bulk_write(requests)
            continue
        for index in range(busy.shape.collections):
            rows = [_row(number, busy) for number in numbers if number % busy.shape.collections == index]
            if rows:
                database[_name(index)].insert_many(rows)


def _timed(database: Database[dict[str, Any]], busy: Busy, heard: Heard) -> list[float]:
    """The latencies of single writes, in milliseconds. The field `number` of their documents is negative."""
    random, sent = Random(2), dict[int, int]()
    due = time.monotonic()
    for number in range(-_TIMED, 0):
        due += random.expovariate(_RATE)
        time.sleep(max(0.0, due - time.monotonic()))
        sent[number] = time.monotonic_ns()
        database[_name(number % busy.shape.collections)].insert_one(_row(number, busy))
    heard.wait("Delivering the timed writes", lambda: heard.arrived.keys() >= sent.keys())
    return [(heard.arrived[number] - at) / 1e6 for number, at in sent.items()]


def _row(number: int, busy: Busy) -> dict[str, Any]:
    return {"number": number, "text": "x" * busy.padding}


def _id(number: int) -> ObjectId:
    return ObjectId(number.to_bytes(12, "big"))


def _name(index: int) -> str:
    return f"{COLLECTION_PREFIX}{index}"
