"""Prints docs/reference/cli.md from the commands.

python -m dispatcher.cli.reference > docs/reference/cli.md
"""

import inspect
from collections.abc import Iterator
from enum import Enum
from typing import Any, Final

import typer

_HEAD: Final = """\
# Command line

`dispatcher` and `python -m dispatcher` are the same. `dispatcher COMMAND --help` shows the flags of a command.

| option | meaning |
|---|---|
| `--version` | show the version |
| `--help`, `-h` | show the help |
| `--install-completion` | turn on completion of commands and flags in new shells: bash, zsh, fish, PowerShell |
| `--show-completion` | print what `--install-completion` would install |

APP is `package.module:registry`. The working directory is importable. APP can also be in the variable
`DISPATCHER_APP`. Results go to stdout. An error goes to stderr: one line for the error, and one for
the remedy. Each kind of error has an [exit code](exit-codes.md). Only terminals get colours and progress bars.

Some commands can't be undone, so they ask first: `position set`, `position reset`, `position switch`,
`dead-letters drop`, `claims release`, and `replay` without `--receiver`. `--yes` (`-y`) skips the question.
Without a terminal, these commands need `--yes`, and otherwise exit with 2. If you answer no, they
change nothing, and exit with 1.
"""

# Pages with more about a command.
_SEE: Final = {
    "run": "[The dispatcher](../guide/dispatcher.md)",
    "setup": "[Setting up](../how-to/setup.md)",
    "check": "[Checking](../how-to/check.md)",
    "dev": "[Development](../how-to/development.md)",
    "claims list": "[Claims of dead or hanging processes](../how-to/claims.md)",
    "claims release": "[Claims of dead or hanging processes](../how-to/claims.md#release)",
}


def page() -> str:
    """The text of the page."""
    from dispatcher.cli import app

    sections = [_section(path, command) for path, command in _commands(typer.main.get_command(app))]
    return "\n".join([_HEAD, *sections])


def _commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    children = getattr(command, "commands", None)
    if not children:
        yield path, command
        return
    for name, child in children.items():
        yield from _commands(child, (*path, name))


def _section(path: tuple[str, ...], command: Any) -> str:
    name = " ".join(path)
    text = inspect.cleandoc(command.help or "")
    if name in _SEE:
        text += f"\n\nMore: {_SEE[name]}."
    rows = [_row(parameter) for parameter in command.params if "--help" not in parameter.opts]
    table = "| argument or flag | variable | default | meaning |\n|---|---|---|---|\n" + "".join(rows)
    return f"## dispatcher {name}\n\n{text}\n\n{table}" if rows else f"## dispatcher {name}\n\n{text}\n"


def _row(parameter: Any) -> str:
    name = ", ".join(f"`{opt}`" for opt in parameter.opts)
    if parameter.param_type_name == "argument":
        name = f"{(parameter.metavar or parameter.name).upper()}{'...' if parameter.nargs < 0 else ''}"
        name = name if parameter.required else f"[{name}]"
    variable = f"`{parameter.envvar}`" if parameter.envvar else ""
    meaning = " ".join((parameter.help or "").split()).replace("|", "\\|")
    return f"| {name} | {variable} | {_default(parameter)} | {meaning} |\n"


def _default(parameter: Any) -> str:
    value = parameter.default
    if isinstance(value, Enum):
        value = value.value
    if value is None or value is False or value in ([], (), ""):
        return ""
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{value}`" if isinstance(value, str | int) else ""


if __name__ == "__main__":
    print(page(), end="")  # noqa: T201 - the command prints the page
