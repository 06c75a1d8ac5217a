"""Measures sides in turns: worker processes measure one portion at a time.

A round consists of portions. In each portion every side has one turn, in an order that changes. So a disturbance
that is longer than a portion affects all sides of a round alike. A shorter disturbance, such as a flush of the
server's journal, does not count, because the result of a side in a round is the median of its turns. Before the
first round each side has a turn that does not count.
"""

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import NamedTuple

from benchmarks.figures import Measured, Pair, Row, Target
from benchmarks.setting import Setting
from benchmarks.workers import Turn, Worker

__all__ = ["Comparison", "Side", "measured_rows"]


class Side(NamedTuple):
    """A side: an operation and the environment that runs it.

    Attributes:
        module: the name of the module in `workloads.sides`.
        operation: the name of the operation of this module.
        peer: the name of the environment; empty for ours.
    """

    module: str
    operation: str
    peer: str = ""


class Comparison(NamedTuple):
    """A planned row: two sides, and the target of their ratio.

    Attributes:
        key: stable name, for machines.
        what: the measured thing in a few words, for people.
        about: the measured thing in a sentence, for people.
        peer: the other side, for people.
        ours: our side.
        theirs: the other side.
        unit: `"/s"` to compare rates, `"us"` to compare times. Times are those of one document, write or signal.
        target: the target for the ratio; None without a target.
        cpu_target: the target for the ratio of the processor times of the processes; None without a target.
    """

    key: str
    what: str
    about: str
    peer: str
    ours: Side
    theirs: Side
    unit: str
    target: Target | None = None
    cpu_target: Target | None = None


def measured_rows(setting: Setting, comparisons: Sequence[Comparison], *, portions: int, count: int) -> list[Row]:
    """Measure the sides of all comparisons together.

    Args:
        setting: the arguments of the run. If it has no peers, comparisons with peers are left out.
        comparisons: the planned rows.
        portions: turns of each side in a round.
        count: operations in a turn.

    Raises:
        BenchmarkFailed: a side did not do what it should.
    """
    chosen = [one for one in comparisons if setting.peers is not None or not one.theirs.peer]
    sides = list(dict.fromkeys(side for one in chosen for side in (one.ours, one.theirs)))
    rounds: list[dict[Side, Turn]] = []
    with _workers(setting, sides) as workers:
        for side in sides:
            workers[side.module].measure(side.operation, count)
        for i in range(setting.plan.rounds):
            rounds.append(_round(sides, workers, portions, count))
            ratios = ", ".join(f"{one.key} {_cpu_pair(one, rounds[-1], count).ratio:.2f}" for one in chosen)
            setting.say(f"round {i + 1} of {setting.plan.rounds}: CPU {ratios}")
    return [_row(one, rounds, count) for one in chosen]


@contextmanager
def _workers(setting: Setting, sides: Sequence[Side]) -> Iterator[dict[str, Worker]]:
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for side in sides:
            if side.module not in workers:
                python = sys.executable
                if side.peer:
                    assert setting.peers is not None  # without peers, the rows of this side are left out
                    python = setting.peers.python(side.peer)
                workers[side.module] = stack.enter_context(Worker(python, side.module, setting.url))
        for worker in workers.values():
            worker.wait_ready()
        yield workers


def _round(sides: Sequence[Side], workers: dict[str, Worker], portions: int, count: int) -> dict[Side, Turn]:
    turns: dict[Side, list[Turn]] = defaultdict(list)
    for i in range(portions):
        start = i % len(sides)
        order = [*sides[start:], *sides[:start]]
        for side in order if i % 2 == 0 else reversed(order):
            turns[side].append(workers[side.module].measure(side.operation, count))
    return {side: Turn(*map(median, zip(*taken, strict=True))) for side, taken in turns.items()}


def _pair(comparison: Comparison, turns: dict[Side, Turn], times: int) -> Pair:
    ours, theirs = turns[comparison.ours].seconds, turns[comparison.theirs].seconds
    if comparison.unit == "/s":
        return Pair(times / ours, times / theirs)
    return Pair(ours / times * 1e6, theirs / times * 1e6)


def _cpu_pair(comparison: Comparison, turns: dict[Side, Turn], times: int) -> Pair:
    """Microseconds of processor time of the processes for one operation."""
    ours, theirs = turns[comparison.ours], turns[comparison.theirs]
    return Pair(ours.cpu_seconds / times * 1e6, theirs.cpu_seconds / times * 1e6)


def _row(comparison: Comparison, rounds: Sequence[dict[Side, Turn]], times: int) -> Row:
    return Row(
        key=comparison.key,
        what=comparison.what,
        about=comparison.about,
        peer=comparison.peer,
        unit=comparison.unit,
        pairs=[_pair(comparison, turns, times) for turns in rounds],
        target=comparison.target,
        cpu=Measured(
            pairs=[_cpu_pair(comparison, turns, times) for turns in rounds], target=comparison.cpu_target
        ),
    )
