"""`python -m tests.chaos`: kill the daemon while clients write, print the figures, judge them."""

import argparse
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tests.chaos.figures import figures, show
from tests.chaos.kills import Plan, run


def parse(arguments: Sequence[str] | None = None) -> Plan:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=40, help="SIGKILLs at random instants")
    parser.add_argument("--writes", type=int, default=20_000, help="by a foreign client and by the application")
    parser.add_argument("--documents", type=int, default=200, help="that are written to")
    parser.add_argument(
        "--seed", type=int, help="of a run that is to be repeated: the same writes, kills after as many deliveries"
    )
    options = parser.parse_args(arguments)
    seed = random.randrange(10**6) if options.seed is None else options.seed
    return Plan(options.kills, options.writes, options.documents, seed)


def main() -> int:
    plan = parse()
    console, stderr = Console(), Console(stderr=True, style="dim", highlight=False)
    size = f"{plan.writes:,} writes on {plan.documents} documents, {plan.kills} kills"
    console.print(f"seed {plan.seed}: {size}", highlight=False)
    with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
        evidence = run(plan, Path(directory), stderr.print)
    counted = figures(evidence)
    show(console, counted, evidence.entries)
    for death in evidence.deaths:
        console.print(death, markup=False, highlight=False, soft_wrap=True)
    wrong = [figure for figure in counted if not figure.holds]
    if wrong or evidence.kills < plan.kills:
        again = f"python -m tests.chaos --seed {plan.seed} --kills {plan.kills} --writes {plan.writes}"
        console.print(f"WRONG; again with: {again} --documents {plan.documents}", style="bold red", soft_wrap=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
