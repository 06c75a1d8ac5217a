"""Flags that are made from the settings: name, default, help and environment variable have one source."""

from typing import Annotated, Any

import typer
from pydantic import SecretStr, ValidationError

from dispatcher.settings import Settings

__all__ = ["App", "Import", "Json", "Yes", "default", "flag", "make_settings"]

App = Annotated[
    str,
    typer.Argument(
        metavar="APP",
        help="The registry to serve, as package.module:registry. The working directory is importable.",
        envvar="DISPATCHER_APP",
        show_default=False,
    ),
]

Import = Annotated[
    list[str],
    typer.Option(
        "--import",
        metavar="MODULE",
        help="A module with receivers that APP itself does not import. Repeatable.",
        envvar="DISPATCHER_IMPORT",
        show_default=False,
    ),
]

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def flag(name: str) -> Any:
    """The flag of one setting."""
    return typer.Option(
        f"--{name.replace('_', '-')}",
        help=Settings.model_fields[name].description,
        envvar=f"DISPATCHER_{name.upper()}",
        show_envvar=True,
    )


def default(name: str) -> Any:
    """The default of one setting."""
    return Settings.model_fields[name].default


def make_settings(**values: Any) -> Settings:
    """Settings of what the flags said.

    Raises:
        typer.BadParameter: a value is out of range; names its flag.
    """
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        setting = str(first["loc"][0])
        if Settings.model_fields[setting].annotation == SecretStr | None:  # has no flag, and is shown to nobody
            hint = f"DISPATCHER_{setting.upper()}"
            raise typer.BadParameter(f"{first['msg']}.", param_hint=hint) from None
        name = "--" + setting.replace("_", "-")
        raise typer.BadParameter(f"{first['msg']}, not {first['input']!r}.", param_hint=name) from error
