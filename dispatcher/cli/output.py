"""What the commands print: results on stdout, errors on stderr."""

import json
from typing import Any

from rich.console import Console

from dispatcher.exceptions import DispatcherError

__all__ = ["complain", "out", "print_json"]

out = Console(highlight=False)
if not out.is_terminal:
    out.width = 250  # whoever reads a pipe wants whole names
_err = Console(stderr=True, highlight=False, soft_wrap=True)


def complain(error: DispatcherError) -> None:
    """An error and its remedy, a line each."""
    _err.print("[bold red]error:[/]", end=" ")
    _err.print(error.message, markup=False)
    if error.remedy:
        _err.print("[bold]remedy:[/]", end=" ")
        _err.print(error.remedy, markup=False)


def print_json(value: Any) -> None:
    """One JSON document on a line, for machines."""
    print(json.dumps(value, default=str))  # noqa: T201 - rich would wrap it
