"""Reads secret settings from files, as orchestrators mount them."""

from collections.abc import MutableMapping
from pathlib import Path
from typing import Final

import typer

SECRETS: Final = ("DISPATCHER_URL", "DISPATCHER_HTTP_TOKEN")
"""Variables whose value a file can hold."""

_FILE: Final = "_FILE"


def read_secret_files(environment: MutableMapping[str, str]) -> None:
    """Replace each variable `<NAME>_FILE` by `<NAME>`, with the text of the file, without final line breaks.

    Raises:
        typer.BadParameter: both variables are set, or the file can't be read.
    """
    for name in SECRETS:
        variable = f"{name}{_FILE}"
        path = environment.get(variable)
        if not path:
            continue
        if environment.get(name):
            raise typer.BadParameter(f"{name} is set, too. Unset one of them.", param_hint=variable)
        try:
            environment[name] = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
        except OSError as error:
            raise typer.BadParameter(f"{path} can't be read: {error.strerror}.", param_hint=variable) from None
        except ValueError:
            raise typer.BadParameter(f"{path} is not text in UTF-8.", param_hint=variable) from None
        del environment[variable]  # otherwise a child process would get both variables
