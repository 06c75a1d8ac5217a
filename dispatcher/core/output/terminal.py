"""Prints values on a terminal. Many come from users, so rich and the terminal must not interpret them."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from dispatcher.core.redaction import escaped


class Terminal(Console):
    """A console that escapes control characters. It has no markup, no emoji codes and no highlighting."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The printed segments. rich has separate segments for its control codes."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else escaped(text, "\n"), style, control)


class Grid(Table):
    """Columns without lines between them. Control characters and line breaks of a string are escaped."""

    def __init__(self, *headings: str) -> None:
        super().__init__(*headings, box=None, pad_edge=False, show_header=bool(headings))
        for column in self.columns:
            column.overflow = "fold"

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """Add a row."""
        super().add_row(*(shown(cell) if isinstance(cell, str) else cell for cell in cells), **options)


def shown(value: object, style: str = "", newline: str = r"\n") -> Text:
    """A value with its control characters escaped."""
    return Text(escaped(str(value), newline), style)
