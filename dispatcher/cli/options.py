"""Flags that are made from the settings: name, default, help and environment variable have one source."""

from typing import Annotated, Any, Final

import typer
from pydantic import SecretStr, ValidationError
from typer.core import TyperGroup

from dispatcher.core.output.redaction import escaped, redacted
from dispatcher.settings import Settings

__all__ = ["App", "Commands", "Import", "Json", "Yes", "default", "flag", "make_settings"]

_UsageError: Final[Any] = typer.BadParameter.__mro__[1]  # of click, which typer brings along or not

# What values must do, by pydantic's names of errors.
_MUSTS: Final = {
    "greater_than": "be more than {gt}",
    "greater_than_equal": "be at least {ge}",
    "less_than": "be less than {lt}",
    "less_than_equal": "be at most {le}",
    "finite_number": "be a finite number",
    "int_type": "be a whole number",
    "int_parsing": "be a whole number",
    "int_parsing_size": "be a smaller number",
    "int_from_float": "be a whole number",
    "float_type": "be a number",
    "float_parsing": "be a number",
    "bool_type": "be true or false",
    "bool_parsing": "be true or false",
    "literal_error": "be one of {expected}",
    "string_pattern_mismatch": "match {pattern}",
}

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
        help="A module with receivers that APP does not import. Repeatable; in the variable, separate "
        "modules by spaces.",
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
        setting = str(error.errors()[0]["loc"][0])
        if Settings.model_fields[setting].annotation == SecretStr | None:  # has no flag, and is shown to nobody
            hint = f"DISPATCHER_{setting.upper()}"
            raise typer.BadParameter(_refusal(error, tell_value=False), param_hint=hint) from None
        name = "--" + setting.replace("_", "-")
        raise typer.BadParameter(_refusal(error), param_hint=name) from error


class Commands(TyperGroup):
    """The commands. What they say of a flag is in our words, and safe on a terminal."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that is named.

        Raises:
            typer.BadParameter: a flag can't be understood.
        """
        try:
            return super().invoke(ctx)
        except _UsageError as error:
            if isinstance(error.__cause__, ValidationError):
                error.message = _refusal(error.__cause__)
            error.message = escaped(redacted(error.message))
            raise


def _refusal(error: ValidationError, *, tell_value: bool = True) -> str:
    """What is wrong with a value, and what it must be."""
    first = error.errors()[0]
    if first["type"] in {"value_error", "assertion_error"}:
        text = first["msg"].partition(", ")[2]
        return f"{text[:1].upper()}{text[1:].rstrip('.')}."
    must = _MUSTS.get(first["type"])
    wanted = must.format(**first.get("ctx", {})) if must else f"fit: {first['msg']}"
    return f"It is {first['input']!r} and must {wanted}." if tell_value else f"It must {wanted}."
