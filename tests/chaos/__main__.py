"""`python -m tests.chaos [SCENARIO ...]`: break things while clients write; print the figures, and judge them."""

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.chaos import backlog, dispatchers, failovers, hostile, kills, model, network, receivers, reconnects
from tests.chaos.output import as_json, show
from tests.chaos.scenario import Plan, Scenario, Size

SCENARIOS: dict[str, Scenario] = {
    module.SCENARIO.name: module.SCENARIO
    for module in (kills, dispatchers, failovers, network, receivers, hostile, model, backlog, reconnects)
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
    parser.add_argument("--seed", type=int, help="of a run that is to be repeated")
    parser.add_argument("--short", action="store_true", help="the sizes that CI runs: five minutes for all")
    parser.add_argument("--scale", type=float, default=1.0, help="so much more, or less, of everything")
    parser.add_argument("--writes", type=int, help="instead of the scenario's own number")
    parser.add_argument("--documents", type=int, help="likewise")
    parser.add_argument("--faults", type=int, help="likewise")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave the ledger and the daemons' logs there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.scenarios if name not in SCENARIOS]
    if unknown:
        parser.error(f"there is no scenario {unknown[0]!r}; there are: {', '.join(SCENARIOS)}")
    return options


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
    """One scenario; its figures."""
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
        seed = random.randrange(10**6) if options.seed is None else options.seed
        size = size_of(SCENARIOS[name], options)
        results.append(run(SCENARIOS[name], size, seed, console, stderr, options.keep))
        if options.json is not None:  # each time, in case that a later one does not come to an end
            options.json.write_text(json.dumps(results, indent=2) + "\n")
    wrong = [result["scenario"] for result in results if not result["holds"]]
    if wrong:
        console.print(f"not as it must be: {', '.join(wrong)}", style="bold red")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
