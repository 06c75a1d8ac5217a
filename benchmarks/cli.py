"""`python -m benchmarks`: measure, print, judge."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.backlog import measure_backlog
from benchmarks.contestants import BenchmarkFailed
from benchmarks.figures import Row
from benchmarks.latency import measure_latency
from benchmarks.machine import describe_machine
from benchmarks.plan import QUICK, WHOLE, Plan
from benchmarks.report import as_json, show, store
from dispatcher.embedded import embedded_mongo
from dispatcher.exceptions import EmbeddedError

__all__ = ["main"]

_SUITES = (measure_backlog, measure_latency)

_EXIT_MISSED, _EXIT_FAILED = 1, 2

_TOLERANCES = """\
--check is generous, as CI machines are noisy: it fails for a throughput below 0.5 of the bare loop's (target 0.8),
and for latencies above 2 times (median, target 1.2) and 6 times (p99, target 2) the bare loop's.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks; returns the exit code."""
    options = _parser().parse_args(arguments)
    console, stderr = Console(), Console(stderr=True, style="dim", highlight=False)
    try:
        rows, machine, plan = _measure(options, stderr)
    except (BenchmarkFailed, EmbeddedError) as error:
        Console(stderr=True).print(f"error: {error}", markup=False, soft_wrap=True)
        return _EXIT_FAILED
    show(console, rows, machine)
    path = store(as_json(rows, machine, plan), options.json)
    console.print(f"written to {path}", style="dim", highlight=False, soft_wrap=True)
    return _judged(rows, console) if options.check else 0


def _measure(options: argparse.Namespace, stderr: Console) -> tuple[list[Row], dict[str, Any], Plan]:
    plan = _plan(options)
    with embedded_mongo() as server:
        machine = describe_machine(server.url)
        rows = [row for suite in _SUITES for row in suite(server.url, plan, stderr.print)]
    return rows, machine | {"load_after": round(os.getloadavg()[0], 2)}, plan


def _judged(rows: Sequence[Row], console: Console) -> int:
    beyond = [row for row in rows if not row.target.tolerates(row.ratio)]
    for row in beyond:
        console.print(
            f"{row.key}: {row.ratio:.2f} is beyond {row.target.tolerated:g}, which --check tolerates", style="red"
        )
    return _EXIT_MISSED if beyond else 0


def _plan(options: argparse.Namespace) -> Plan:
    plan = QUICK if options.quick else WHOLE
    given = {name: getattr(options, name) for name in ("rounds", "changes", "writes") if getattr(options, name)}
    return replace(plan, **given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the dispatcher against a bare PyMongo loop, in pairs, on an embedded MongoDB.",
        epilog=_TOLERANCES,
    )
    parser.add_argument("--quick", action="store_true", help="small numbers: ratios in about half a minute")
    parser.add_argument(
        "--check", action="store_true", help="exit 1 if a median ratio is far beyond its target (see below)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there, not among the results")
    parser.add_argument("--rounds", type=_positive, help="pairs of measurements per row")
    parser.add_argument("--changes", type=_positive, help="length of the backlog")
    parser.add_argument("--writes", type=_positive, help="writes that are timed, per side and round")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number
