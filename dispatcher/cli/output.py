"""What the commands print: results on stdout, errors on stderr."""

import json
import sys
from datetime import datetime
from typing import Any

import typer
from rich.console import Console

from dispatcher.exceptions import DispatcherError
from dispatcher.redacting import redacted

__all__ = ["complain", "confirmed", "err", "out", "print_json"]

out = Console(highlight=False)
if not out.is_terminal:
    out.width = 250  # whoever reads a pipe wants whole names
err = Console(stderr=True, highlight=False, soft_wrap=True)


def complain(error: DispatcherError) -> None:
    """An error and its remedy, a line each."""
    err.print("[bold red]error:[/]", end=" ")
    err.print(redacted(error.message), markup=False)
    if error.remedy:
        err.print("[bold]remedy:[/]", end=" ")
        err.print(redacted(error.remedy), markup=False)


def confirmed(question: str, *, yes: bool) -> bool:
    """Whether an operator wants something that can't be undone.

    Args:
        question: what to ask.
        yes: it was said already.

    Raises:
        typer.BadParameter: nobody is there to be asked.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        raise typer.BadParameter(
            "It can't be undone, and nobody is there to be asked: confirm it.", param_hint="--yes"
        )
    return typer.confirm(question, err=True)


def print_json(value: Any) -> None:
    """One JSON document on a line, for machines."""
    print(json.dumps(value, default=_plain))  # noqa: T201 - rich would wrap it


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
