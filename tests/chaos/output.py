"""Reports, for people and for machines."""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tests.chaos.scenario import Report, Scenario, Size

__all__ = ["as_json", "show"]

_MOST_NOTES = 3


def show(console: Console, report: Report) -> None:
    """Prints the figures and the errors."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("figure")
    table.add_column("", justify="right")
    table.add_column("must be")
    for figure in report.figures:
        number = f"{figure.value:,.1f} {figure.unit}" if figure.unit else f"{figure.value:,}"
        if figure.holds:
            table.add_row(figure.name, number, figure.must)
        else:
            table.add_row(figure.name, number, f"{figure.must} <- WRONG", style="bold red")
    console.print(table)
    for note in report.notes[:_MOST_NOTES]:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    if (more := len(report.notes) - _MOST_NOTES) > 0:
        console.print(f"and {more} more of that kind")


def as_json(scenario: Scenario, size: Size, seed: int, report: Report) -> dict[str, Any]:
    """One object per run."""
    return {
        "scenario": scenario.name,
        "seed": seed,
        "size": size._asdict(),
        "holds": report.holds,
        "figures": [{**figure._asdict(), "holds": figure.holds} for figure in report.figures],
        "notes": list(report.notes),
    }
