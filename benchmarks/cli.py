"""`python -m benchmarks`: measure, print, judge."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from benchmarks.backlog import measure_backlog
from benchmarks.batch import measure_batch
from benchmarks.claims import measure_claims
from benchmarks.contestants import BenchmarkFailed
from benchmarks.figures import Row
from benchmarks.four import measure_four
from benchmarks.growth import measure_growth
from benchmarks.kafka.suite import measure_kafka
from benchmarks.latency import measure_latency
from benchmarks.limits import measure_limits
from benchmarks.load import measure_load
from benchmarks.machine import describe_machine
from benchmarks.memory import measure_memory
from benchmarks.pages import PAGES, write_growth, write_results
from benchmarks.peers import Peers, existing_peers, set_up_peers
from benchmarks.plan import QUICK, WHOLE, Plan
from benchmarks.report import as_json, show, store
from benchmarks.setting import Setting
from benchmarks.shared import measure_shared
from benchmarks.signals import measure_signals
from benchmarks.start import measure_start
from benchmarks.writes import measure_writes
from dispatcher.embedded.server import embedded_mongo
from dispatcher.exceptions import EmbeddedError

__all__ = ["main"]

_SUITES: dict[str, Callable[[Setting], list[Row]]] = {
    "load": measure_load,
    "writes": measure_writes,
    "signals": measure_signals,
    "backlog": measure_backlog,
    "latency": measure_latency,
    "start": measure_start,
    "four": measure_four,
    "shared": measure_shared,
    "memory": measure_memory,
    "claims": measure_claims,
    "batch": measure_batch,
    "limits": measure_limits,
    "kafka": measure_kafka,
}

_SIZES = {
    "rounds": "pairs of measurements per row",
    "long_rounds": "the same for measurements that start many processes",
    "documents": "number of loaded documents",
    "loads": "loads of all documents, per side and round",
    "operations": "single creates, saves and updates, per side and round",
    "sends": "sent signals, per side and round",
    "changes": "length of the backlog",
    "long": "changes of the backlog for memory, and claimed writes for the memory of their process",
    "claimed": "writes with claims and without, per side and round",
    "waits": "changes for one and for four dispatchers with a waiting receiver",
    "writes": "writes timed for latency, per side and round",
    "indexed": "changes that are indexed in batches, and one by one",
    "burst": "changes in a burst for a receiver with a limit",
    "large": "events of 5 MB for a batch receiver",
    "computed": "changes for one and for two workers on Kafka with a computing receiver",
    "members": "members of the group on Kafka whose commands are counted",
    "partitions": "partitions of this group",
    "counted": "seconds for which its commands are counted",
}

_GROWTH = "growth"

_EXIT_MISSED, _EXIT_FAILED = 1, 2

_EPILOG = """\
The peers (Motor, Beanie, MongoEngine, Django and blinker) get an environment each, in .venv-bench, from the first
run that needs them. --quick measures the peers only if their environments exist already, or with --peers.

--check fails if a ratio is far beyond its target. It compares processor times where they have a target, because
a busy machine hardly changes them: they may be 1.3 times the target. The JSON has each limit as "tolerated". It is
null for times that only a quiet machine can reach.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks; returns the exit code."""
    options = _parser().parse_args(arguments)
    # A file or a pipe has no width, so the output is as wide as the table.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    stderr = Console(stderr=True, style="dim", highlight=False, soft_wrap=True)
    try:
        return _grow(options, stderr) if _GROWTH in options.suites else _run(options, console, stderr)
    except (BenchmarkFailed, EmbeddedError) as error:
        _report(error)
        return _EXIT_FAILED


def _report(error: Exception) -> None:
    Console(stderr=True).print(f"error: {error}", markup=False, soft_wrap=True)


def _run(options: argparse.Namespace, console: Console, stderr: Console) -> int:
    measured = _measure(options, stderr)
    rows, machine = measured.rows, measured.machine
    show(console, rows, machine)
    if machine["peers"] is None:
        console.print("rows against peers are left out; --peers has them", style="dim", highlight=False)
    result = as_json(rows, machine, measured.plan)
    is_whole = not (options.quick or options.suites)
    if pages := options.pages or (PAGES if is_whole else None):
        write_results(rows, result, pages)
    path = store(result, options.json)
    console.print(f"written to {path}", style="dim", highlight=False, soft_wrap=True)
    if is_whole:
        _grow(options, stderr)
    if measured.failed:
        console.print(f"failed: {', '.join(measured.failed)}", style="red")
        return _EXIT_FAILED
    return _judged(rows, console) if options.check else 0


class _Run(NamedTuple):
    """The results of a run, and the names of the suites that failed."""

    rows: list[Row]
    machine: dict[str, Any]
    plan: Plan
    failed: list[str]


def _measure(options: argparse.Namespace, stderr: Console) -> _Run:
    plan, peers = _plan(options), _peers(options, stderr)
    rows, failed = list[Row](), list[str]()
    with embedded_mongo() as server:
        machine = describe_machine(server.url) | {"peers": peers and peers.versions}
        setting = Setting(server.url, plan, peers, stderr.print)
        for name in options.suites or _SUITES:
            stderr.print(f"{name}:")
            began = time.monotonic()
            try:
                rows += _SUITES[name](setting)
            except BenchmarkFailed as error:  # keep the rows of the other suites: they took minutes
                _report(error)
                failed.append(name)
            stderr.print(f"{name} took {time.monotonic() - began:.0f} s")
    return _Run(rows, machine | {"load_after": round(os.getloadavg()[0], 2)}, plan, failed)


def _grow(options: argparse.Namespace, stderr: Console) -> int:
    with embedded_mongo() as server:
        machine = describe_machine(server.url) | {"peers": None}
        grown = measure_growth(server.url, stderr.print, quick=options.quick)
    machine |= {"load_after": round(os.getloadavg()[0], 2)}
    directory = options.pages or PAGES
    write_growth(grown, machine, datetime.now(UTC).isoformat(timespec="seconds"), directory)
    stderr.print(f"written to {directory}", soft_wrap=True)
    return 0


def _peers(options: argparse.Namespace, stderr: Console) -> Peers | None:
    if options.peers is None and options.quick:
        return existing_peers()
    return None if options.peers is False else set_up_peers(stderr.print)


def _judged(rows: Sequence[Row], console: Console) -> int:
    beyond = [row for row in rows if row.judged.is_tolerated is False]
    for row in beyond:
        judged = row.judged
        assert judged.target is not None
        assert judged.target.tolerated is not None
        of = "" if judged is row else " of processor time"
        limit = f"{judged.target.tolerated:g}, which --check tolerates"
        console.print(f"{row.key}: {judged.ratio:.2f}{of} is beyond {limit}", style="red")
    return _EXIT_MISSED if beyond else 0


def _plan(options: argparse.Namespace) -> Plan:
    plan = QUICK if options.quick else WHOLE
    given = {name: value for name in _SIZES if (value := getattr(options, name))}
    return replace(plan, **given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the ODM and the dispatcher against others, in pairs, on an embedded MongoDB.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "suites",
        nargs="*",
        type=_suite,
        metavar="SUITE",
        help=f"any of {', '.join(_SUITES)}; by default all, and {_GROWTH}. {_GROWTH} plots the growth of cost, "
        "and stands alone",
    )
    parser.add_argument("--quick", action="store_true", help="small sizes: ratios in about two minutes")
    parser.add_argument(
        "--check", action="store_true", help="exit 1 if a median ratio is far beyond its target (see below)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result to this file")
    parser.add_argument(
        "--pages",
        type=Path,
        nargs="?",
        const=PAGES,
        metavar="DIRECTORY",
        help="also write the table and the plots as pages, as a run of all suites does; by default to "
        "docs/benchmarks",
    )
    parser.add_argument(
        "--peers",
        action=argparse.BooleanOptionalAction,
        help="also measure other ODMs and signals; installs them if needed",
    )
    for name, what in _SIZES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=_positive, metavar="N", help=what)
    return parser


def _suite(text: str) -> str:
    if text not in {*_SUITES, _GROWTH}:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join((*_SUITES, _GROWTH))}")
    return text


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number
