"""The time from the start of `dispatcher run` to the call of its first receiver; and the cost of some commands.

The change already waits: it was written after the saved position. All modules are in the interpreter's cache, as
at each start except the first.
"""

import json
import resource
import subprocess
import sys
import time
from statistics import median
from typing import Any, Final, NamedTuple

from pymongo import MongoClient

from benchmarks.contestants import BenchmarkFailed, bare_loop, daemon
from benchmarks.figures import Measured, Pair, Row, Target
from benchmarks.setting import Setting
from benchmarks.workloads.environment import GROUP, Assignment
from benchmarks.workloads.people import COLLECTION, person
from dispatcher.core.state import POSITIONS

__all__ = ["measure_start"]

_DATABASE, _STATE = "start", "start_state"
_LIMIT_SECONDS = 1.5
_TARGET = Target(limit=1.0, tolerated=3.0, better="lower")
_CPU = Target(limit=1.0, tolerated=2.0, better="lower")  # the ratio depends on the machine


class _Command(NamedTuple):
    """A command whose processor time has a limit.

    Attributes:
        limit: seconds.
        arguments: for the Python interpreter. `URL` stands for the URL of the server.
        reports: whether the command reports its processor time; otherwise that of the whole process counts.
    """

    key: str
    what: str
    about: str
    limit: float
    arguments: tuple[str, ...]
    reports: bool = False


_COSTS: Final = (
    _Command("help", "dispatcher --help", "`dispatcher --help`", 0.5, ("-m", "dispatcher", "--help")),
    _Command(
        "status",
        "dispatcher status",
        "`dispatcher status` of a group with one stopped process",
        0.7,
        ("-m", "dispatcher", "status", "--group", GROUP, "--state-database", _STATE, "--url", "URL"),
    ),
    _Command(
        "first_query",
        "first query",
        "the first query of a process, after the import of mongoz, including the connection to the server",
        0.3,
        ("-m", "benchmarks.workloads.first_query", "URL"),
        reports=True,
    ),
)


def measure_start(setting: Setting) -> list[Row]:
    """Measure the rows.

    Raises:
        BenchmarkFailed: a process did not do what it should.
    """
    assignment = Assignment(setting.url, _DATABASE, 1, "arrivals")
    pairs, cpu, theirs = [], [], []
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
                measured = process.measured()
            pairs.append(Pair((measured["arrived"][0] - began) / 1e9, _LIMIT_SECONDS))
            cpu.append(Pair(measured["cpu_seconds"], _LIMIT_SECONDS))
            began = time.monotonic_ns()
            with bare_loop(assignment, before["token"]) as process:
                theirs.append(round((process.measured()["arrived"][0] - began) / 1e9, 3))
    setting.say(f"start: {median(pair.ours for pair in pairs):.2f} s, the bare loop {median(theirs):.2f} s")
    return [
        Row(
            key="start",
            what="start",
            about="seconds from starting `dispatcher run` to its first delivery; the change was written before "
            "the start",
            peer="the limit",
            unit="s",
            pairs=pairs,
            target=_TARGET,
            cpu=Measured(pairs=cpu, target=_CPU),
            details={"bare_loop_seconds": theirs},
        ),
        *(_cost(setting, one) for one in _COSTS),
    ]


def _cost(setting: Setting, command: _Command) -> Row:
    took = [_run(setting, command) for _ in range(setting.plan.rounds)]
    setting.say(f"{command.what}: {median(took):.2f} s CPU")
    return Row(
        key=f"cost_{command.key}",
        what=command.what,
        about=f"seconds of processor time for {command.about}",
        peer="the limit",
        unit="s CPU",
        pairs=[Pair(seconds, command.limit) for seconds in took],
        target=_CPU,
        cpu="the row is about a processor time itself",
    )


def _run(setting: Setting, command: _Command) -> float:
    """Run a command. Returns the processor time that it reports, or else that of its process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *(setting.url if one == "URL" else one for one in command.arguments)],
        env=Assignment(setting.url, _DATABASE, 0, "pace").environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BenchmarkFailed(f"{command.what} ended with exit code {done.returncode}: {done.stderr[-1000:]}")
    if command.reports:
        return float(json.loads(done.stdout)["cpu_seconds"])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
