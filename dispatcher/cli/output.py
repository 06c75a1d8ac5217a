"""Prints the output of commands: results on stdout, errors on stderr."""

import json
import sys
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import typer

from dispatcher.core.output.terminal import Terminal, shown
from dispatcher.core.redaction import redacted
from dispatcher.exceptions import DispatcherError, ExitCode

if TYPE_CHECKING:
    from dispatcher.core.state_checks import Misfit

out = Terminal()
if not out.is_terminal:
    out.width = 250  # a pipe gets whole names
err = Terminal(stderr=True, soft_wrap=True)

# Later lines of an error are indented, so that none of them looks like a line of the dispatcher.
_SET_IN: Final = "\n  "


def complain(error: DispatcherError) -> None:
    """Print an error and its remedy on one line each."""
    err.print(shown("error:", "bold red"), shown(redacted(error.message), newline=_SET_IN))
    if error.remedy:
        err.print(shown("remedy:", "bold"), shown(redacted(error.remedy), newline=_SET_IN))


def name_malformed(misfits: "Iterable[Misfit]") -> None:
    """Print one line for each malformed document of the state. The result does not contain these documents."""
    for one in misfits:
        err.print(shown(f"The document {one.id} in {one.collection} is malformed: {one.problem}. {one.remedy}"))


def confirm(question: str | Callable[[], str], *, yes: bool) -> None:
    """Ask an operator before a command that can't be undone. If the answer is no, the command ends.

    Args:
        question: the question, or a function that makes it. The function is called only if someone can answer.
        yes: the flag `--yes`: do not ask.

    Raises:
        typer.BadParameter: stdin is not a terminal.
        typer.Exit: the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter(
            "This command can't be undone, so it asks first, but stdin is not a terminal. Give --yes to run it "
            "without the question.",
            param_hint="--yes",
        )
    if not typer.confirm(question if isinstance(question, str) else question(), err=True):
        err.print("Nothing was changed.")
        raise typer.Exit(ExitCode.FAILED)


def print_json(value: Any) -> None:
    """Print one JSON document on one line, for machines."""
    print(json.dumps(value, default=_plain))  # noqa: T201 - rich would wrap it


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
