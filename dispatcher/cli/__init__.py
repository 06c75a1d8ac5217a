"""The command line: flags and environment become settings, errors become one line and an exit code."""

import os
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Final

import typer

from dispatcher.cli import (
    check,
    claims,
    develop,
    explain,
    letters,
    pausing,
    position,
    receivers,
    relay,
    replay,
    run,
    setup,
    status,
)
from dispatcher.cli.options import Commands, command
from dispatcher.cli.output import complain, err
from dispatcher.cli.secret_files import read_secret_files
from dispatcher.core.error_text import trace_of
from dispatcher.core.file_descriptors import lack_in
from dispatcher.core.output.streams import restore_streams
from dispatcher.core.output.terminal import shown
from dispatcher.exceptions import DispatcherError, ExitCode

__all__ = ["app", "main"]

app = typer.Typer(
    name="dispatcher",
    cls=Commands,
    help="Delivers mongoz signals for the writes of other clients: another service, a shell or a migration.\n\n"
    "`dispatcher COMMAND --help` describes a command. `dispatcher demo` shows a dispatcher at work.\n\n"
    "Example: `dispatcher run shop.models:registry --import shop.receivers`",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_COMMANDS: Final[Mapping[str, Callable[..., None]]] = {
    "run": run.run,
    "relay": relay.relay,
    "check": check.check,
    "setup": setup.setup,
    "dev": develop.dev,
    "demo": develop.demo,
    "receivers": receivers.receivers,
    "status": status.status,
    "pause": pausing.pause,
    "resume": pausing.resume,
    "replay": replay.replay,
    "backfill": replay.backfill,
    "explain": explain.explain,
}
_GROUPS: Final[Mapping[tuple[str, str], Mapping[str, Callable[..., None]]]] = {
    ("position", "Show or move the position. All changes up to it are delivered."): {
        "show": position.show,
        "set": position.move,
        "reset": position.reset,
        "switch": position.switch,
    },
    ("dead-letters", "Show, retry or drop dead letters: deliveries that failed for good."): {
        "list": letters.list_,
        "show": letters.show,
        "retry": letters.retry,
        "drop": letters.drop,
    },
    ("claims", "Show or release claims: deliveries that the writing processes make themselves."): {
        "list": claims.list_,
        "release": claims.release,
    },
}


def _add(commands: Mapping[str, Callable[..., None]], to: typer.Typer, group: str = "") -> None:
    for name, function in commands.items():
        to.command(name)(command(f"{group} {name}".strip(), function))


_add(_COMMANDS, app)
for (_name, _help), _commands in _GROUPS.items():
    app.add_typer(_group := typer.Typer(help=_help, no_args_is_help=True), name=_name)
    _add(_commands, _group, _name)


def _version(wanted: bool) -> None:
    if wanted:
        from mongoz import __version__

        typer.echo(f"mongoz-dispatcher {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),  # noqa: ARG001 - read by its callback
) -> None:
    """Options of all commands."""
    read_secret_files(os.environ)


def main() -> None:
    """The console script."""
    try:
        _command_line()
    except SystemExit as ending:
        if threading.active_count() > 1:
            from dispatcher.runtime.process_end import leave_in_time

            leave_in_time(ending.code)
        raise
    finally:
        restore_streams()


def _command_line() -> None:
    try:
        _run()
    except Exception as error:
        restore_streams()
        known = lack_in(error) or error
        if isinstance(known, DispatcherError):
            complain(known)
            sys.exit(known.exit_code)
        err.print(shown(trace_of(error).rstrip(), newline="\n  "))
        complain(
            DispatcherError(
                "The dispatcher has a bug, which raised the exception above. No change is lost.",
                remedy="Report it with the traceback. After a restart the dispatcher continues where it stopped.",
            )
        )
        sys.exit(ExitCode.CRASHED)


def _run() -> None:
    try:
        app()
    finally:
        if sys.__stdout__ is not None:
            sys.__stdout__.flush()  # at exit, the interpreter hides errors of its own flush
