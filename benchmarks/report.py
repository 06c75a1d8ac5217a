"""The table for people, the JSON for machines."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.figures import Measured, Row
from benchmarks.plan import Plan

__all__ = ["FIGURES", "RESULTS", "as_json", "described", "figures_of", "place", "show", "store", "verdict_of"]

FIGURES: Final = ("ours", "theirs", "ratio", "min..max", "target", "CPU", "min..max", "CPU target", "verdict")
"""The columns with figures. CPU is the ratio of the processor times."""

RESULTS: Final = Path(__file__).parent / "results"

_FORMAT: Final = 4
_SHOWN: Final = ("pymongo", "pydantic")


def show(console: Console, rows: Sequence[Row], machine: dict[str, Any]) -> None:
    """Print the rows and the machine."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("", "against"):
        table.add_column(name, no_wrap=True)
    for name in FIGURES:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        style = "green" if row.judged.is_met else "red"
        table.add_row(row.what, row.peer, *figures_of(row), Text(verdict_of(row), style=style))
    console.print(table)
    for row in rows:
        console.print(described(row), style="dim", highlight=False, markup=False, soft_wrap=True)
    console.print(place(machine), style="dim", highlight=False, soft_wrap=True)


def place(machine: dict[str, Any]) -> str:
    """The machine, for people."""
    ours = ", ".join(f"{name} {machine[name]}" for name in ("pymongo", "pydantic", "uvloop", "mongoz-dispatcher"))
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['system']}",
        f"load {machine['load_before']} before, {machine['load_after']} after",
        f"MongoDB {machine['mongodb']}, Python {machine['python']}, {ours}",
    ]
    if machine["peers"]:
        peers = (_described(peer, versions) for peer, versions in machine["peers"].items())
        lines.append(f"peers: {'; '.join(peers)}")
    return "\n".join(lines)


def _described(peer: str, versions: dict[str, str]) -> str:
    beside = [f"{name} {versions[name]}" for name in _SHOWN if name in versions]
    return f"{peer} {versions[peer]}" + (f" with {', '.join(beside)}" if beside else "")


def figures_of(row: Row) -> list[str]:
    """The cells of `FIGURES` before the verdict."""
    cpu = row.cpu if isinstance(row.cpu, Measured) else None
    return [
        _quantity(row.ours, row.unit),
        _quantity(row.theirs, row.unit),
        *_ratio(row),
        *(_ratio(cpu) if cpu is not None else ("-", "", "")),
    ]


def _quantity(value: float, unit: str) -> str:
    return f"{value:,.0f}{unit}" if unit.startswith("/") else f"{value:,.2f} {unit}"


def _ratio(measured: Measured) -> tuple[str, str, str]:
    ratios, target = measured.ratios, measured.target
    limit = f"{'>=' if target.better == 'higher' else '<='} {target.limit:g}x" if target is not None else ""
    return f"{measured.ratio:.2f}x", f"{min(ratios):.2f}..{max(ratios):.2f}", limit


def verdict_of(row: Row) -> str:
    """Whether the target of `row.judged` is met, for people; empty without a target."""
    judged = row.judged
    if judged.target is None:
        return ""
    verdict = "met" if judged.is_met else f"missed {judged.target.missed_by(judged.ratio):.0%}"
    return verdict if judged is row or row.is_met in {True, None} else f"{verdict}, time missed"


def described(row: Row) -> str:
    """What a row measures, in a sentence, for people."""
    without = f". No CPU ratio: {row.cpu}" if isinstance(row.cpu, str) else ""
    return f"{row.what}, {row.peer}: {row.about}{without}"


def as_json(rows: Sequence[Row], machine: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """All results."""
    return {
        "format": _FORMAT,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine,
        "plan": asdict(plan),
        "rows": [
            {
                "key": row.key,
                "what": row.what,
                "about": row.about,
                "peer": row.peer,
                "unit": row.unit,
                **_as_json(row),
                "cpu": row.cpu if isinstance(row.cpu, str) else _as_json(row.cpu),
                "details": row.details,
            }
            for row in rows
        ],
    }


def _as_json(measured: Measured) -> dict[str, Any]:
    return {
        "ours": [pair.ours for pair in measured.pairs],
        "limit": [pair.peer for pair in measured.pairs],
        "ratios": measured.ratios,
        "ratio": measured.ratio,
        "target": measured.target and asdict(measured.target),
        "met": measured.is_met,
        "tolerated": measured.is_tolerated,
    }


def store(result: dict[str, Any], path: Path | None) -> Path:
    """Write the result to the given file, or to a new file in `RESULTS`."""
    path = path or RESULTS / f"{result['at'].replace(':', '')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return path
