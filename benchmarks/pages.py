"""Writes the pages of a run: the table, the plots, and the growth of cost."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.figures import Row
from benchmarks.growth import Grown
from benchmarks.plots import Line, bars, lines
from benchmarks.report import FIGURES, described, figures_of, place, verdict_of

__all__ = ["PAGES", "write_growth", "write_results"]

PAGES: Final = Path(__file__).parent.parent / "docs" / "benchmarks"

_HEAD: Final = "<!-- Written by `make bench`; a change by hand is lost with the next run. -->\n"


class _Page(NamedTuple):
    """A page with a table of ratios.

    Attributes:
        name: the name of the files.
        plot: the name of the plot.
        prefix: the page has the rows whose keys begin with this text. Rows of earlier pages are left out.
    """

    name: str
    plot: str
    title: str
    intro: str
    prefix: str


_INTRO: Final = (
    "Both sides of a row were measured in turns, in one run, on one machine. Each round has a ratio. "
    "The column ratio has the median of the rounds, and min..max has the smallest and the largest ratio. "
    "CPU is our processor time divided by the processor time of the other side, for the same work, without the "
    "database. Other processes on the machine hardly change it. So the verdict is about CPU if CPU has a target. "
    '"time missed" says that the column ratio missed its own target in this run.'
)
_KAFKA: Final = _Page(
    "kafka",
    "kafka-ratios",
    "Measured on Kafka",
    f"{_INTRO} mongod, one broker of Apache Kafka, the relay and the dispatchers share the cores of this machine. "
    '`make bench ARGS="kafka --pages"` measures this page again.',
    "kafka_",
)
_RESULTS: Final = _Page("results", "ratios", "Measured", f"{_INTRO} `make bench` measures all pages again.", "")


def write_results(rows: Sequence[Row], result: dict[str, Any], directory: Path = PAGES) -> None:
    """Write the tables of ratios, their plots, and the JSON. Rows about Kafka have their own page."""
    directory.mkdir(parents=True, exist_ok=True)
    left = list(rows)
    for page in (_KAFKA, _RESULTS):
        chosen = [row for row in left if row.key.startswith(page.prefix)]
        left = [row for row in left if row not in chosen]
        if chosen:
            _write_page(page, chosen, result, directory)


def _write_page(page: _Page, rows: Sequence[Row], result: dict[str, Any], directory: Path) -> None:
    cells = [f"| {' | '.join((row.what, row.peer, *figures_of(row), verdict_of(row)))} |" for row in rows]
    about = [f"- {described(row)}" for row in rows]
    text = [
        _HEAD,
        f"# {page.title}\n",
        f"{page.intro}\n",
        f"| | against | {' | '.join(FIGURES)} |",
        f"| --- | --- {'| ---: ' * len(FIGURES)}|",
        *cells,
        f"\n![each ratio divided by its target]({page.plot}.svg)\n",
        "## Rows\n",
        *about,
        "\n## Where\n",
        *_where(result["machine"], result["at"]),
        f"Size of the run: {', '.join(f'{name} {value:,g}' for name, value in result['plan'].items())}.",
    ]
    keys = {row.key for row in rows}
    own = result | {"rows": [one for one in result["rows"] if one["key"] in keys]}
    (directory / f"{page.name}.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    (directory / f"{page.plot}.svg").write_text(bars(rows), encoding="utf-8")
    (directory / f"{page.name}.json").write_text(json.dumps(own, indent=1) + "\n", encoding="utf-8")


def write_growth(grown: Sequence[Grown], machine: dict[str, Any], at: str, directory: Path = PAGES) -> None:
    """Write a section with plots for each dimension, and the JSON."""
    directory.mkdir(parents=True, exist_ok=True)
    text = [
        _HEAD,
        "# How cost grows\n",
        "In each table one quantity grows, and everything else stays the same. Each figure was measured once. "
        "The column µs CPU has the microseconds of processor time of the dispatchers for each change.\n",
    ]
    for one in grown:
        text += [
            f"## {one.dimension.title}\n",
            f"{one.dimension.says}\n",
            *_table(one),
            "",
            *_plots(one, directory),
        ]
    text += ["## Where\n", *_where(machine, at)]
    (directory / "growth.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    result = {
        "at": at,
        "machine": machine,
        "dimensions": {
            one.dimension.key: [
                {"value": value, **point._asdict()}
                for value, point in zip(one.dimension.values, one.points, strict=True)
            ]
            for one in grown
        },
    }
    (directory / "growth.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _table(one: Grown) -> list[str]:
    timed = any(point.p50 is not None for point in one.points)
    text = [
        f"| {one.dimension.axis} | changes/s | {'p50 ms | p99 ms | ' if timed else ''}µs CPU | MB |",
        "| ---: | ---: | " + ("---: | ---: | " if timed else "") + "---: | ---: |",
    ]
    for value, point in zip(one.dimension.values, one.points, strict=True):
        latency = f"{point.p50 or 0:.2f} | {point.p99 or 0:.2f} | " if timed else ""
        text.append(f"| {value:,g} | {point.rate:,.0f} | {latency}{point.cpu_us:,.1f} | {point.memory_mb:.0f} |")
    return text


def _plots(one: Grown, directory: Path) -> list[str]:
    key, values = one.dimension.key, one.dimension.values
    drawn = {"rate": lines(one.dimension.title, one.dimension.axis, "changes/s", [_line(values, one, "rate")])}
    if any(point.p50 is not None for point in one.points):
        both = [_line(values, one, name) for name in ("p50", "p99")]
        drawn["latency"] = lines(one.dimension.title, one.dimension.axis, "milliseconds", both)
    text = []
    for what, svg in drawn.items():
        (directory / f"growth-{key}-{what}.svg").write_text(svg, encoding="utf-8")
        text.append(f"![{one.dimension.title}: {what}](growth-{key}-{what}.svg)\n")
    return text


def _line(values: Sequence[float], one: Grown, name: str) -> Line:
    return Line(name, [(value, getattr(p, name)) for value, p in zip(values, one.points, strict=True)])


def _where(machine: dict[str, Any], at: str) -> list[str]:
    return [f"{at}\n", *(f"{line}\n" for line in place(machine).splitlines())]
