"""What the commands print: results on stdout, errors on stderr."""

import json
import sys
from datetime import datetime
from typing import Any, Final

import typer

from dispatcher.core.output.terminal import Terminal, shown
from dispatcher.core.redaction import redacted
from dispatcher.exceptions import DispatcherError

__all__ = ["complain", "confirmed", "err", "out", "print_json"]

out = Terminal()
if not out.is_terminal:
    out.width = 250  # whoever reads a pipe wants whole names
err = Terminal(stderr=True, soft_wrap=True)

# Of an error of several lines the others are set in, so that none passes for a line of ours.
_SET_IN: Final = "\n  "


def complain(error: DispatcherError) -> None:
    """An error and its remedy, a line each."""
    err.print(shown("error:", "bold red"), shown(redacted(error.message), newline=_SET_IN))
    if error.remedy:
        err.print(shown("remedy:", "bold"), shown(redacted(error.remedy), newline=_SET_IN))


def confirmed(question: str, *, yes: bool) -> bool:
    """Whether an operator wants something that can't be undone.

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
