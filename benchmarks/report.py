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

from benchmarks.figures import Row
from benchmarks.plan import Plan

__all__ = ["RESULTS", "as_json", "place", "quantity", "show", "store", "target_of", "verdict_of"]

RESULTS: Final = Path(__file__).parent / "results"

_FORMAT: Final = 3
_SHOWN: Final = ("pymongo", "pydantic")


def show(console: Console, rows: Sequence[Row], machine: dict[str, Any]) -> None:
    """Print the rows and the machine."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("", "against"):
        table.add_column(name, no_wrap=True)
    for name in ("ours", "theirs", "ratio", "min..max", "target", "verdict"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.what,
            row.peer,
            quantity(row.ours, row.unit),
            quantity(row.theirs, row.unit),
            f"{row.ratio:.2f}x",
            f"{min(row.ratios):.2f}..{max(row.ratios):.2f}",
            target_of(row),
            _verdict(row),
        )
    console.print(table)
    for row in rows:
        console.print(
            f"{row.what}, {row.peer}: {row.about}", style="dim", highlight=False, markup=False, soft_wrap=True
        )
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


def quantity(value: float, unit: str) -> str:
    """A sample, for people."""
    return f"{value:,.0f}{unit}" if unit.startswith("/") else f"{value:,.2f} {unit}"


def target_of(row: Row) -> str:
    """The target of a row, for people; empty if it has none."""
    if row.target is None:
        return ""
    return f"{'>=' if row.target.better == 'higher' else '<='} {row.target.limit:g}x"


def verdict_of(row: Row) -> str:
    """Whether the target is met, for people."""
    if row.target is None:
        return ""
    return "met" if row.target.met_by(row.ratio) else f"missed {row.target.missed_by(row.ratio):.0%}"


def _verdict(row: Row) -> Text:
    return Text(verdict_of(row), style="green" if row.target and row.target.met_by(row.ratio) else "red")


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
                "ours": [pair.ours for pair in row.pairs],
                "limit": [pair.peer for pair in row.pairs],
                "ratios": row.ratios,
                "ratio": row.ratio,
                "target": row.target and asdict(row.target),
                "met": row.target and row.target.met_by(row.ratio),
                "tolerated": row.target and row.target.tolerates(row.ratio),
                "details": row.details,
            }
            for row in rows
        ],
    }


def store(result: dict[str, Any], path: Path | None) -> Path:
    """Write the result to the given file, or to a new file in `RESULTS`."""
    path = path or RESULTS / f"{result['at'].replace(':', '')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return path
