"""Prints the page docs/reference/cli.md, which is made from the commands themselves.

python -m dispatcher.cli.reference > docs/reference/cli.md
"""

import inspect
import re
from collections.abc import Iterator
from enum import Enum
from typing import Any, Final

import typer

from dispatcher import exceptions
from dispatcher.exceptions import DispatcherError, ExitCode

__all__ = ["page"]

_HEAD: Final = """\
# Command line

`dispatcher` and `python -m dispatcher` are the same. `dispatcher COMMAND --help` shows the flags of a command.

| option | meaning |
|---|---|
| `--version` | show the version |
| `--help`, `-h` | show the help |
| `--install-completion`, `--show-completion` | completion for your shell: bash, zsh, fish, PowerShell |

APP is `package.module:registry`. The working directory is importable. Where a command takes APP, it may stand in
`DISPATCHER_APP` instead. Results go to stdout, errors to stderr: one line, and a second one with the remedy.
Colours and progress bars are for terminals.
"""

_EXIT_CODES: Final = """\
## Exit codes

What to do about each is in [The dispatcher](../guide/dispatcher.md#exit-codes).

| code | name | when |
|---|---|---|
"""

# Where there is more to say of a command than its help does.
_SEE: Final = {
    "run": "[The dispatcher](../guide/dispatcher.md)",
    "setup": "[Setting up](../guide/dispatcher.md#setting-up)",
    "check": "[Checking](../how-to/check.md)",
    "dev": "[Development](../how-to/development.md)",
}


def page() -> str:
    """The page."""
    from dispatcher.cli import app  # noqa: PLC0415 - it imports all commands

    sections = [_section(path, command) for path, command in _commands(typer.main.get_command(app))]
    codes = "".join(f"| {code.value} | `{code.name}` | {_meaning(code)} |\n" for code in ExitCode)
    return "\n".join([_HEAD, *sections, _EXIT_CODES + codes])


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
    named = (parameter.metavar or parameter.name) if parameter.param_type_name == "argument" else ""
    name = named.upper() if named else ", ".join(f"`{opt}`" for opt in parameter.opts)
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


def _meaning(code: ExitCode) -> str:
    """What a code says of itself; of the others, what the exceptions that lead to it do."""
    found = re.search(rf'^    {code.name} = \d+\n    """(.*?)"""', inspect.getsource(ExitCode), re.M | re.S)
    if found:
        return _sentence(found[1])
    kinds = (
        kind for kind in vars(exceptions).values() if inspect.isclass(kind) and issubclass(kind, DispatcherError)
    )
    for kind in kinds:
        if "exit_code" in vars(kind) and kind.exit_code is code and kind is not DispatcherError:
            return _sentence(kind.__doc__ or "")
    return ""


def _sentence(text: str) -> str:
    first = " ".join(text.partition("\n\n")[0].split())
    return first.rstrip(".").replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")  # noqa: T201 - that is what it does
