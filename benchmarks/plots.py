"""Plots as SVG, without a library: bars of ratios, and lines over a logarithmic axis. Pure."""

from collections.abc import Sequence
from html import escape
from math import ceil, log10
from typing import Final, NamedTuple

from benchmarks.figures import Row

__all__ = ["Line", "bars", "lines"]

_WIDTH: Final = 720
_FONT: Final = "font-family='sans-serif' font-size='13'"
_COLOURS: Final = ("#1f6feb", "#d1242f", "#1a7f37")
_GREY: Final = "#8b949e"


class Line(NamedTuple):
    """One line of a plot.

    Attributes:
        name: the name in the legend.
        points: the points, as (x, y).
    """

    name: str
    points: Sequence[tuple[float, float]]


def bars(rows: Sequence[Row]) -> str:
    """A bar for each ratio with a verdict, divided by its target. A line marks the targets."""
    chosen = [(row, judged, judged.target) for row in rows if (judged := row.judged).target is not None]
    parts, right, most = [], 230, 2.0
    scale = (_WIDTH - right - 150) / most
    for i, (row, judged, target) in enumerate(chosen):
        assert target is not None
        share, y = judged.ratio / target.limit, 40 + i * 26
        better = ">=" if target.better == "higher" else "<="
        colour = _COLOURS[2] if judged.is_met else _COLOURS[1]
        of = "" if judged is row else "CPU "
        parts += [
            _text(right - 8, y + 13, f"{row.what}, {row.peer}", "end"),
            f"<rect x='{right}' y='{y}' width='{min(share, most) * scale:.1f}' height='18' fill='{colour}'/>",
            _text(
                right + min(share, most) * scale + 6,
                y + 13,
                f"{of}{judged.ratio:.2f}x ({better} {target.limit:g})",
            ),
        ]
    height = 52 + len(chosen) * 26
    at = right + scale
    parts += [
        f"<line x1='{at}' y1='30' x2='{at}' y2='{height - 12}' stroke='{_GREY}' stroke-dasharray='4 3'/>",
        _text(at, 22, "target", "middle"),
    ]
    return _svg(height, parts)


def lines(title: str, x_name: str, y_name: str, drawn: Sequence[Line]) -> str:
    """Lines over a logarithmic x axis; the y axis begins at zero."""
    left, right, top, bottom = 80, _WIDTH - 20, 44, 300
    xs = [x for line in drawn for x, _ in line.points]
    low, high = log10(min(xs)), log10(max(xs))
    most = _rounded(max(y for line in drawn for _, y in line.points))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (log10(x) - low) / (high - low or 1)
        return left + across * (right - left), bottom - y / most * (bottom - top)

    parts = [_text(left, 20, title)]
    for i in range(5):
        value = most * i / 4
        y = place(min(xs), value)[1]
        parts += [
            f"<line x1='{left}' y1='{y:.1f}' x2='{right}' y2='{y:.1f}' stroke='{_GREY}' stroke-opacity='0.3'/>",
            _text(left - 8, y + 4, f"{value:,.4g}", "end"),
        ]
    parts += [_text(place(x, 0)[0], bottom + 20, f"{x:,g}", "middle") for x in sorted(set(xs))]
    parts += [_text((left + right) / 2, bottom + 42, x_name, "middle"), _text(right, 20, y_name, "end")]
    for line, colour in zip(drawn, _COLOURS, strict=False):
        placed = [place(x, y) for x, y in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='2'/>")
        parts += [f"<circle cx='{x:.1f}' cy='{y:.1f}' r='4' fill='{colour}'/>" for x, y in placed]
        if len(drawn) > 1:
            x, y = placed[-1]
            parts.append(_text(x - 6, y - 8, line.name, "end"))
    return _svg(bottom + 56, parts)


def _rounded(value: float) -> float:
    """The next round number for the end of an axis."""
    if value <= 0:
        return 1.0
    unit = 10 ** int(log10(value) if value >= 1 else log10(value) - 1)
    return float(next(step * unit for step in (1, 2, 4, 5, 8, 10, 20) if step * unit >= value) or ceil(value))


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' fill='{_GREY}' {_FONT}>{escape(text)}</text>"


def _svg(height: float, parts: Sequence[str]) -> str:
    head = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {_WIDTH} {height:g}' role='img'>"
    return "\n".join([head, *parts, "</svg>"]) + "\n"
