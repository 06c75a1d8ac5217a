"""Runs commands in the process of the test. That is faster than a process for each command."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from typer.testing import CliRunner

from dispatcher.cli import app
from dispatcher.exceptions import DispatcherError

__all__ = ["Dispatcher", "Ran", "run_command"]


class Ran(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    error: str

    @property
    def json(self) -> Any:
        assert self.out, self.error
        return json.loads(self.out)


Dispatcher = Callable[..., Ran]


def run_command(*arguments: str, **options: Any) -> Ran:
    """Runs a command in this process. A `DispatcherError` becomes an exit code and a text, as in `main`."""
    result = CliRunner().invoke(app, arguments, **options)
    error = result.exception
    if isinstance(error, DispatcherError):
        return Ran(error.exit_code, result.stdout, f"{error.message} {error.remedy}")
    assert error is None or isinstance(error, SystemExit), result.exc_info
    return Ran(result.exit_code, result.stdout, result.stderr)
