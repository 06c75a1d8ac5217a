"""`python -m tests.chaos [SCENARIO ...]`: injects faults while clients write; prints and judges the figures."""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.chaos import (
    backlog,
    dispatchers,
    failovers,
    hostile,
    kafka,
    kills,
    model,
    network,
    receivers,
    reconnects,
    writers,
)
from tests.chaos.output import as_json, show
from tests.chaos.scenario import Plan, Scenario, Size

SCENARIOS: dict[str, Scenario] = {
    module.SCENARIO.name: module.SCENARIO
    for module in (
        *(kills, dispatchers, failovers, network, receivers, writers),
        *(hostile, model, backlog, reconnects, kafka),
    )
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    lines = (f"  {one.name:<12} {one.title}" for one in SCENARIOS.values())
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description=__doc__,
        epilog="scenarios, all of them by default:\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="see below")
    parser.add_argument("--seed", type=int, help="the seed of an earlier run, to repeat it")
    parser.add_argument("--short", action="store_true", help="use the short sizes: some minutes for all")
    parser.add_argument("--scale", type=float, default=1.0, help="multiply all sizes by this factor")
    parser.add_argument("--writes", type=int, help="replace the scenario's number of writes")
    parser.add_argument("--documents", type=int, help="replace its number of documents")
    parser.add_argument("--faults", type=int, help="replace its number of faults")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep the ledger and the daemons' logs in this directory"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.scenarios if name not in SCENARIOS]
    if unknown:
        parser.error(f"there is no scenario {unknown[0]!r}; the scenarios are: {', '.join(SCENARIOS)}")
    return options


def why_skipped(scenario: Scenario, options: argparse.Namespace) -> str:
    """What a scenario lacks on this machine. Empty if it must run anyway: in CI, or because it was asked for."""
    return "" if options.scenarios or os.environ.get("CI") else scenario.missing()


def size_of(scenario: Scenario, options: argparse.Namespace) -> Size:
    size = (scenario.short if options.short else scenario.full).scaled(options.scale)
    given = {name: value for name in Size._fields if (value := getattr(options, name)) is not None}
    return size._replace(**given)


@contextmanager
def place(scenario: Scenario, keep: Path | None) -> Iterator[Path]:
    """An empty directory."""
    if keep is not None:
        directory = keep / scenario.name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        yield Path(name)


def run(
    scenario: Scenario, size: Size, seed: int, console: Console, stderr: Console, keep: Path | None
) -> dict[str, Any]:
    """Runs one scenario; returns its figures."""
    what = scenario.says.format(**size._asdict(), of=scenario.faults)
    console.print(f"[bold]{scenario.name}[/bold]: {scenario.title}", highlight=False)
    console.print(f"seed {seed}: {what}", highlight=False, soft_wrap=True)
    with place(scenario, keep) as directory:
        report = scenario.run(Plan(size, seed, directory.resolve(), stderr.print))
    show(console, report)
    if not report.holds:
        sizes = " ".join(f"--{name} {value}" for name, value in size._asdict().items())
        again = f"python -m tests.chaos {scenario.name} --seed {seed} {sizes}"
        console.print(f"WRONG; again with: {again}", style="bold red", soft_wrap=True)
    return as_json(scenario, size, seed, report)


def main() -> int:
    options = parse()
    console, stderr = Console(), Console(stderr=True, style="dim", highlight=False)
    results = []
    for name in options.scenarios or SCENARIOS:
        if trouble := why_skipped(SCENARIOS[name], options):
            console.print(f"[bold]{name}[/bold]: skipped. {trouble}", highlight=False, soft_wrap=True)
            continue
        seed = random.randrange(10**6) if options.seed is None else options.seed
        size = size_of(SCENARIOS[name], options)
        results.append(run(SCENARIOS[name], size, seed, console, stderr, options.keep))
        if options.json is not None:  # after each scenario, in case a later one hangs
            options.json.write_text(json.dumps(results, indent=2) + "\n")
    wrong = [result["scenario"] for result in results if not result["holds"]]
    if wrong:
        console.print(f"outside of their limits: {', '.join(wrong)}", style="bold red")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
