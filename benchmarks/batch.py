"""Batch receivers: an index that is kept by bulk writes, against one that is kept by single writes.

Each change is written into another collection of the same server. The receiver with `batch=500` calls
`bulk_write` once for up to 500 changes. The other receiver calls `replace_one` once for each change, in 100
deliveries at the same time. All changes wait before the measurement. They wait in the change stream, or they are
parked, because the receiver was paused when the dispatcher read them. The time is measured from the first call of
the receiver to the last. This takes minutes, so there is one round.

Further rows: what a slow batch receiver does to the latency of a plain one, and the memory for large events.
"""

from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, Final

from pymongo import MongoClient

from benchmarks.busy import Busy, Heard, cpu_of, measure_busy
from benchmarks.contestants import busy_daemon
from benchmarks.figures import Pair, Row, Target
from benchmarks.memory import growth_row
from benchmarks.processes import memory_mb
from benchmarks.setting import Setting
from benchmarks.workloads.environment import Assignment
from benchmarks.workloads.shape import COLLECTION_PREFIX, Shape

__all__ = ["measure_batch"]

_SIZE: Final = 500
_RATE: Final = Target(limit=5.0, tolerated=2.5, better="higher")
_CPU: Final = Target.cost(0.2)
_BESIDE: Final = Target(limit=1.1, tolerated=None, better="lower")
_LARGE: Final = 5_000_000
_DATABASE, _STATE = "batch", "batch_state"


def measure_batch(setting: Setting) -> list[Row]:
    """Measure the rows.

    Raises:
        BenchmarkFailed: a process did not do what it should.
    """
    one_by_one = Busy(Shape(indexes=True), changes=setting.plan.indexed, timed=False, backlog=True)
    parked = replace(one_by_one, backlog=False, parked=True)
    return [
        _index_row(setting, "batch", "batches", "wait in the change stream", one_by_one),
        _index_row(setting, "batch_parked", "batches, parked", "are parked", parked),
        _beside_row(setting),
        _memory_row(setting),
    ]


def _index_row(setting: Setting, key: str, what: str, where: str, one_by_one: Busy) -> Row:
    batches = replace(one_by_one, shape=replace(one_by_one.shape, batch=_SIZE))
    ours, peer = measure_busy(setting.url, batches), measure_busy(setting.url, one_by_one)
    setting.say(f"{what}: {ours.rate:,.0f} and {peer.rate:,.0f} changes/s")
    return Row(
        key=key,
        what=what,
        about=f"changes per second that a receiver with batch={_SIZE} writes into a collection, "
        f"out of {one_by_one.changes:,} that {where}",
        peer="one by one",
        unit="/s",
        pairs=[Pair(ours.rate, peer.rate)],
        target=_RATE,
        cpu=cpu_of([(ours, peer)], _CPU),
    )


def _beside_row(setting: Setting) -> Row:
    pairs, rounds = [], setting.plan.long_rounds
    for i in range(rounds):
        beside, alone = (
            measure_busy(setting.url, Busy(Shape(beside=beside), changes=1_000)) for beside in ("slow batch", "")
        )
        assert beside.p50 is not None
        assert alone.p50 is not None
        pairs.append(Pair(beside.p50, alone.p50))
        setting.say(f"beside batches, round {i + 1} of {rounds}: {beside.p50:.2f} and {alone.p50:.2f} ms")
    return Row(
        key="batch_beside",
        what="plain beside batches",
        about="milliseconds from a write to a plain receiver, median at 100 writes/s, beside a batch receiver "
        "that takes 500 ms for a batch",
        peer="alone",
        unit="ms",
        pairs=pairs,
        target=_BESIDE,
        cpu="both sides wait for the server most of this time",
    )


def _memory_row(setting: Setting) -> Row:
    """Writes large documents, and measures the memory of the dispatcher after each tenth of them."""
    changes = setting.plan.large
    assignment = Assignment(setting.url, _DATABASE, changes, "arrivals")
    tenths: list[float] = []
    with MongoClient[dict[str, Any]](setting.url) as client, ExitStack() as stack:
        process = stack.enter_context(busy_daemon(assignment, _STATE, Shape(batch=_SIZE)))
        process.wait_ready()
        heard, large = Heard([process]), "x" * _LARGE
        for number in range(changes):
            client[_DATABASE][f"{COLLECTION_PREFIX}0"].insert_one({"number": number, "text": large})
            if (number + 1) * 10 // changes > len(tenths):
                heard.wait("Delivering the large documents", partial(_has_heard, heard, number + 1))
                tenths.append(round(memory_mb(process.pid), 1))
        peak = memory_mb(process.pid, "VmHWM")
        for name in (_DATABASE, _STATE):
            client.drop_database(name)
    setting.say(f"batches: {peak:.0f} MB at most with large events; after each tenth {tenths}")
    of = f"{changes:,} events of {_LARGE / 1e6:g} MB for a receiver with batch={_SIZE} (peak: {peak:.0f} MB)"
    return growth_row("batch_memory_growth", "memory, large batches, growth", of, tenths)


def _has_heard(heard: Heard, count: int) -> bool:
    return heard.count >= count
