"""The rate of delivering a backlog.

Two sides are compared: a daemon, and a bare loop over a change stream. The position of the daemon is saved, the
backlog is written, and then the sides deliver the backlog in turns. Each time the daemon finds the same saved
position, and the bare loop starts after the token in it. Each side measures the time inside its process, from the
first to the last change that reaches the user's code. It does not include starting Python, imports, connecting,
and fetching the first batch of 1,000 changes. This batch is a large part of a short backlog, and the wait for it
is not measured. So a short backlog favours the side that waits longer for the server. The first side changes from
round to round.

The second row has the same measurement, while all cores except one compute something else.
"""

from functools import partial
from typing import Any

from pymongo import MongoClient
from pymongo.collection import Collection

from benchmarks.contestants import BenchmarkFailed, bare_loop, daemon
from benchmarks.figures import Measured, Pair, Row, Target
from benchmarks.plan import Plan
from benchmarks.processes import other_cores_busy
from benchmarks.setting import Setting
from benchmarks.workloads.environment import Assignment
from benchmarks.workloads.people import COLLECTION, people
from dispatcher.core.state import POSITIONS

__all__ = ["measure_backlog"]

_TARGET = Target(limit=0.8, tolerated=0.5, better="higher")

# The limit of `--check` is wide. A small or busy processor cache costs our side more than the loop, and a short
# backlog favours the loop.
_CPU = Target(limit=2.0, tolerated=6.0, better="lower")

_DATABASE, _STATE = "backlog", "backlog_state"

Measurement = dict[str, Any]


def measure_backlog(setting: Setting) -> list[Row]:
    """Measure the rows.

    Raises:
        BenchmarkFailed: a process did not do what it should.
    """
    url, plan = setting.url, setting.plan
    assignment = Assignment(url, _DATABASE, plan.changes, "pace")
    with MongoClient[dict[str, Any]](url) as client:
        positions = client[_STATE][POSITIONS]
        position = _saved_position(assignment, positions)
        setting.say(f"writing a backlog of {plan.changes:,} inserts")
        for portion in people(plan.changes):
            client[_DATABASE][COLLECTION].insert_many(portion)
        turns = partial(_turns, setting, assignment, positions, position)
        quiet = turns("backlog", plan.rounds)
        with other_cores_busy():
            busy = turns("backlog, busy", plan.long_rounds)
    return [
        _row(plan, "backlog", "backlog", "", quiet),
        _row(plan, "backlog_busy", "backlog, busy", ", while another process computes on each other core", busy),
    ]


def _turns(
    setting: Setting,
    assignment: Assignment,
    positions: Collection[dict[str, Any]],
    position: dict[str, Any],
    name: str,
    rounds: int,
) -> list[tuple[Measurement, Measurement]]:
    """Let both sides deliver the backlog in turns."""
    turns = []
    for i in range(rounds):
        taken: dict[bool, Measurement] = {}
        for ours_now in (True, False) if i % 2 == 0 else (False, True):
            if ours_now:
                taken[ours_now] = _our_turn(assignment, positions, position)
            else:
                taken[ours_now] = _their_turn(assignment, position["token"])
        ours, theirs = taken[True], taken[False]
        turns.append((ours, theirs))
        rates = " and ".join(f"{setting.plan.changes / one['seconds']:,.0f}" for one in (ours, theirs))
        cpu = ours["cpu_seconds"] / theirs["cpu_seconds"]
        setting.say(f"{name}, round {i + 1} of {rounds}: {rates} changes/s, CPU {cpu:.2f}")
    return turns


def _saved_position(assignment: Assignment, positions: Collection[dict[str, Any]]) -> dict[str, Any]:
    """The position that the daemon saves at its first start, before it logs the start."""
    with daemon(assignment, _STATE) as process:
        process.wait_ready()
        process.kill()
    position = positions.find_one({"token": {"$exists": True}})
    if position is None:
        raise BenchmarkFailed("The dispatcher saved no position.")
    return position


def _our_turn(
    assignment: Assignment, positions: Collection[dict[str, Any]], position: dict[str, Any]
) -> Measurement:
    positions.replace_one(
        {"_id": position["_id"]}, position | {"owner": None}
    )  # without an owner, so the daemon does not wait for a lease
    with daemon(assignment, _STATE) as process:
        measured = process.measured()
        (stopped,) = (line for line in process.end() if line.get("action") == "dispatcher.stopped")
    saved = positions.find_one({"_id": position["_id"]})
    if saved is None or saved["token"] <= position["token"] or stopped["delivered"] != assignment.expected:
        raise BenchmarkFailed(f"The dispatcher did not do its work: {stopped}, position {saved}")
    return measured | {"saves": stopped["saves"]}


def _their_turn(assignment: Assignment, token: str) -> Measurement:
    with bare_loop(assignment, token) as process:
        return process.measured()


def _row(plan: Plan, key: str, what: str, when: str, turns: list[tuple[Measurement, Measurement]]) -> Row:
    def rate(measured: Measurement) -> float:
        return (plan.changes - 1) / float(measured["seconds"])

    def cpu(measured: Measurement) -> float:
        return float(measured["cpu_seconds"]) / plan.changes * 1e6

    return Row(
        key=key,
        what=what,
        about=f"changes per second out of a backlog of {plan.changes:,} inserts, first to last call{when}",
        peer="a bare PyMongo loop",
        unit="/s",
        pairs=[Pair(rate(ours), rate(theirs)) for ours, theirs in turns],
        target=_TARGET,
        cpu=Measured(pairs=[Pair(cpu(ours), cpu(theirs)) for ours, theirs in turns], target=_CPU),
        details={"changes": plan.changes, "turns": turns},
    )
