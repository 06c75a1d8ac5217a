"""The time from the start of `dispatcher run` to the call of its first receiver.

The change already waits: it was written after the saved position. All modules are in the interpreter's cache, as
at each start except the first.
"""

import time
from statistics import median
from typing import Any

from pymongo import MongoClient

from benchmarks.contestants import bare_loop, daemon
from benchmarks.figures import Pair, Row, Target
from benchmarks.setting import Setting
from benchmarks.workloads.environment import Assignment
from benchmarks.workloads.people import COLLECTION, person
from dispatcher.core.state import POSITIONS

__all__ = ["measure_start"]

_DATABASE, _STATE = "start", "start_state"
_LIMIT_SECONDS = 1.5
_TARGET = Target(limit=1.0, tolerated=3.0, better="lower")


def measure_start(setting: Setting) -> list[Row]:
    """Measure the row.

    Raises:
        BenchmarkFailed: a process did not do what it should.
    """
    assignment = Assignment(setting.url, _DATABASE, 1, "arrivals")
    pairs, theirs = [], []
    with MongoClient[dict[str, Any]](setting.url) as client:
        with daemon(assignment, _STATE) as process:
            process.wait_ready()
            process.kill()
        positions = client[_STATE][POSITIONS]
        before = positions.find_one({"token": {"$exists": True}})
        assert before is not None
        client[_DATABASE][COLLECTION].insert_one(person(0))
        for _ in range(setting.plan.rounds):
            positions.update_one({"_id": before["_id"]}, {"$set": before | {"owner": None}})
            began = time.monotonic_ns()
            with daemon(assignment, _STATE) as process:
                pairs.append(Pair((process.measured()["arrived"][0] - began) / 1e9, _LIMIT_SECONDS))
            began = time.monotonic_ns()
            with bare_loop(assignment, before["token"]) as process:
                theirs.append(round((process.measured()["arrived"][0] - began) / 1e9, 3))
    setting.say(f"start: {median(pair.ours for pair in pairs):.2f} s, the bare loop {median(theirs):.2f} s")
    return [
        Row(
            key="start",
            what="start",
            about="seconds from starting `dispatcher run` to its first delivery, of a change that waited for it",
            peer="the limit",
            unit="s",
            pairs=pairs,
            target=_TARGET,
            details={"bare_loop_seconds": theirs},
        )
    ]
