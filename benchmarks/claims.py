"""The cost of claims, for a dispatcher and for a process that writes much.

One process creates documents at a steady rate, and its receiver runs in this process. One side of the comparison
writes with claims, and the other side without claims. The dispatcher reads these changes and has nothing to
deliver. Another client makes one change before these writes and one change after them. At each of these two
changes, the dispatcher reports its processor time. Both sides use the same dispatcher in turns. The measured time
includes the decisions about the last claims.

The memory is measured in a process that writes without a pause, after each tenth of its documents.
"""

import time
from typing import Any

from pymongo import MongoClient

from benchmarks.contestants import BenchmarkFailed, Contestant, claiming_writer, daemon
from benchmarks.figures import Pair, Row, Target
from benchmarks.memory import growth_row
from benchmarks.setting import Setting
from benchmarks.workloads.environment import Assignment
from benchmarks.workloads.shape import CLAIMED, CLAIMS_STATE

__all__ = ["measure_claims"]

_CPU = Target(limit=1.3, tolerated=3.0, better="lower")
_BEATS = Target(limit=1.0, tolerated=1.1, better="lower")

_DATABASE = "claims"
_RATE = 1_000.0
_MOST_BEATS = 2.0
_PATIENCE_SECONDS = 900.0

# Seconds after the last write: by then, the dispatcher has decided about all claims.
_SETTLED = 3.0

Measured = dict[str, Any]


def measure_claims(setting: Setting) -> list[Row]:
    """Measure the rows.

    Raises:
        BenchmarkFailed: a process did not do what it should.
    """
    assignment = Assignment(setting.url, _DATABASE, setting.plan.claimed, "pace")
    sides: dict[bool, list[Measured]] = {True: [], False: []}
    with MongoClient[dict[str, Any]](setting.url) as client:
        client[_DATABASE].create_collection(CLAIMED)
        with daemon(assignment, CLAIMS_STATE, app="benchmarks.workloads.claiming") as process:
            process.wait_ready()
            reports = _Reports(client, process)
            for i in range(setting.plan.long_rounds):
                for claims in (True, False) if i % 2 == 0 else (False, True):
                    sides[claims].append(_turn(assignment, reports, claims=claims))
                cpu = " and ".join(f"{one[-1]['dispatcher_us']:.1f}" for one in sides.values())
                beats = sides[True][-1]["beats_per_second"]
                setting.say(f"claims, round {i + 1} of {setting.plan.long_rounds}: {cpu} us, {beats:.2f} beats/s")
        memory = _memory(setting)
        for name in (_DATABASE, CLAIMS_STATE):
            client.drop_database(name)
    of = f"{setting.plan.long:,} claimed writes"
    growth = growth_row("claims_memory_growth", "memory of a writer, growth", of, memory["memory_mb"])
    return [*_rows(sides[True], sides[False]), growth]


class _Reports:
    """Asks the dispatcher for its processor time, with changes by another client."""

    def __init__(self, client: MongoClient[dict[str, Any]], process: Contestant) -> None:
        self._items = client[_DATABASE][CLAIMED]
        self._process = process
        self._asked = 0

    def cpu_seconds(self) -> float:
        """The processor time of the dispatcher so far."""
        self._asked -= 1
        self._items.insert_one({"number": self._asked})
        return float(self._process.measured()["cpu_seconds"])


def _turn(assignment: Assignment, reports: _Reports, *, claims: bool) -> Measured:
    before = reports.cpu_seconds()
    with claiming_writer(assignment, rate=_RATE, claims=claims) as writer:
        measured = writer.measured(_PATIENCE_SECONDS)
    if measured["unclaimed"] or (claims and not measured["beats"]):
        raise BenchmarkFailed(f"The writer did not claim its writes: {measured}")
    time.sleep(_SETTLED)
    dispatcher = reports.cpu_seconds() - before
    return measured | {
        "dispatcher_us": dispatcher / assignment.expected * 1e6,
        "beats_per_second": measured["beats"] / measured["seconds"],
    }


def _memory(setting: Setting) -> Measured:
    assignment = Assignment(setting.url, _DATABASE, setting.plan.long, "pace")
    with claiming_writer(assignment, rate=None, claims=True) as writer:
        measured = writer.measured(_PATIENCE_SECONDS)
    setting.say(f"claims: memory of the writer after each tenth {measured['memory_mb']}")
    return measured


def _rows(claimed: list[Measured], unclaimed: list[Measured]) -> list[Row]:
    return [
        Row(
            key="claims_dispatcher",
            what="own changes, claimed",
            about=f"microseconds of a dispatcher's processor time per own change, at {_RATE:,.0f} writes/s",
            peer="own changes, unclaimed",
            unit="us CPU",
            pairs=[Pair(a["dispatcher_us"], b["dispatcher_us"]) for a, b in zip(claimed, unclaimed, strict=True)],
            target=_CPU,
            cpu="the row is about a processor time itself",
            details={"claimed": claimed, "unclaimed": unclaimed},
        ),
        Row(
            key="claims_beats",
            what="beats",
            about=f"beats per second of a process at {_RATE:,.0f} writes/s",
            peer="the limit",
            unit="/s",
            pairs=[Pair(one["beats_per_second"], _MOST_BEATS) for one in claimed],
            target=_BEATS,
            cpu="the row counts writes",
        ),
    ]
