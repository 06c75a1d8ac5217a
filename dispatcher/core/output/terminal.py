"""What is shown to people. Users choose many of the values: neither rich nor the terminal obeys them."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from dispatcher.core.redaction import escaped

__all__ = ["Grid", "Terminal", "shown"]


class Terminal(Console):
    """A console without markup, codes of emojis and highlighting, on which control characters are escaped."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What is printed, piece by piece; control codes of rich itself are pieces of their own."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else escaped(text, "\n"), style, control)


class Grid(Table):
    """Columns without lines between them. A cell that is a string is shown as it is, on one line."""

    def __init__(self, *headings: str) -> None:
        super().__init__(*headings, box=None, pad_edge=False, show_header=bool(headings))
        for column in self.columns:
            column.overflow = "fold"

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """Add a row."""
        super().add_row(*(shown(cell) if isinstance(cell, str) else cell for cell in cells), **options)


def shown(value: object, style: str = "", newline: str = r"\n") -> Text:
    """A value as it is, but for control characters.

    Args:
        value: any.
        style: of rich.
        newline: what stands for a line break, see `escaped`.
    """
    return Text(escaped(str(value), newline), style)
