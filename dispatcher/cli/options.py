"""Flags that commands share. The flag of a setting takes its name, type, default and help from `Settings`."""

from collections.abc import Callable, Sequence
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, Final, NamedTuple, get_type_hints

import typer
from pydantic import SecretStr, ValidationError
from typer.core import TyperGroup

from dispatcher.cli.pasting import FLAGS, Completion
from dispatcher.core.output.commands import completed, completing
from dispatcher.core.redaction import escaped, redacted
from dispatcher.exceptions import DispatcherError
from dispatcher.settings import Settings

_UsageError: Final[Any] = typer.BadParameter.__mro__[1]  # UsageError of click, or of the copy that typer contains

# The requirement that a value does not meet, by the type of pydantic's error.
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
    ),
]

Apps = Annotated[
    list[str],
    typer.Argument(
        metavar="APP",
        help="The registries, each as package.module:registry. The working directory is importable. In the "
        "environment variable, separate registries by spaces.",
        envvar="DISPATCHER_APP",
    ),
]

Import = Annotated[
    list[str],
    typer.Option(
        "--import",
        metavar="MODULE",
        help="A module with receivers that APP does not import. Repeatable; in the environment variable, "
        "separate modules by spaces.",
        envvar="DISPATCHER_IMPORT",
    ),
]

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask. Without a terminal, this flag is required.")]


AppArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="APP",
        help="The registry of the dispatchers: package.module:registry. Or name the server with --url.",
        envvar="DISPATCHER_APP",
    ),
]

AppOption = Annotated[
    str | None,
    typer.Option(
        "--app",
        help="The registry of the dispatchers: package.module:registry. Or name the server with --url.",
        envvar="DISPATCHER_APP",
    ),
]

GroupName = Annotated[
    str | None,
    typer.Option(
        "--group",
        help="The group of dispatchers. By default the group of APP, or the only group in the state.",
        envvar="DISPATCHER_GROUP",
    ),
]


class Flags(NamedTuple):
    """Annotates a parameter of a command. Several flags take the place of this parameter.

    Attributes:
        make: gets the values of the flags by name, and returns the value of the parameter.
    """

    make: Callable[..., Any]
    flags: Sequence[Parameter]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _setting(name: str, **default: Any) -> Parameter:
    """The flag of one setting. `default` can replace the default of the setting."""
    field = Settings.model_fields[name]
    option = typer.Option(_flag(name), help=field.description, envvar=Settings.variable_of(name))
    kind = Annotated[field.annotation, option]  # type: ignore[name-defined]  # known at run time only
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default.get(name, field.default), annotation=kind)


WITH_FLAG: Final = tuple(name for name in Settings.model_fields if name != "http_token")
"""The settings that have a flag: all except the secret one, because every user of a machine can see command
lines."""


def settings_of(*names: str, **defaults: Any) -> Flags:
    """Flags for these settings. The annotated parameter gets their values as a `Settings`.

    Args:
        names: the names of the settings.
        defaults: other defaults for some flags, by name. Without one, a flag has the default of its setting.
    """
    return Flags(make_settings, [_setting(name, **defaults) for name in names])


def fields_of(kind: type[Any], **annotations: Any) -> Flags:
    """A flag for each field of a NamedTuple. The annotated parameter gets their values as an instance.

    Args:
        kind: the class. A field without a typer option gets the flag of the setting with the same name.
        annotations: annotations that replace those of the class, by the name of the field.
    """
    kinds = {**get_type_hints(kind, include_extras=True), **annotations}
    flags = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=each)
        if hasattr(each, "__metadata__")
        else _setting(name)
        for name, each in kinds.items()
    ]
    return Flags(kind, flags)


def command(name: str, function: Callable[..., None]) -> Callable[..., None]:
    """Make a function for typer: flags replace each parameter that is annotated with `Flags`.

    Args:
        name: the full name of the command, such as `"dead-letters list"`.
    """
    bundles: dict[str, Flags] = {}
    flags: list[Parameter] = []
    for one in signature(function).parameters.values():
        found = [each for each in getattr(one.annotation, "__metadata__", ()) if isinstance(each, Flags)]
        bundles.update((one.name, each) for each in found)
        flags += found[0].flags if found else [one.replace(kind=Parameter.KEYWORD_ONLY)]

    def run(**given: Any) -> None:
        values = dict(given)
        made = {
            name: bundle.make(**{flag.name: values.pop(flag.name) for flag in bundle.flags})
            for name, bundle in bundles.items()
        }
        with completing(Completion(given)):
            try:
                function(**values, **made)
            except DispatcherError as error:
                error.remedy = completed(error.remedy)
                raise

    FLAGS[name] = flags
    run.__doc__ = function.__doc__
    run.__signature__ = Signature(flags)  # type: ignore[attr-defined]  # typer reads it
    return run


class GroupFlags(NamedTuple):
    """The flags that name a group."""

    app: AppOption
    url: str | None
    state_database: str
    group: GroupName


OfGroup = Annotated[GroupFlags, fields_of(GroupFlags)]
OfGroupOfApp = Annotated[GroupFlags, fields_of(GroupFlags, app=AppArgument)]


def make_settings(**values: Any) -> Settings:
    """Make settings from the values of flags.

    Raises:
        typer.BadParameter: a value is invalid; the error names its flag.
    """
    try:
        return Settings(**values)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        if Settings.model_fields[name].annotation == SecretStr | None:  # this setting has no flag
            hint = Settings.variable_of(name)
            raise typer.BadParameter(_refusal(error, show_value=False), param_hint=hint) from None
        raise typer.BadParameter(_refusal(error), param_hint=_flag(name)) from error


class Commands(TyperGroup):
    """The commands. Errors about flags are in plain words, and safe to print on a terminal."""

    def invoke(self, ctx: Any) -> Any:
        """Run the named command."""
        try:
            return super().invoke(ctx)
        except _UsageError as error:
            if isinstance(error.__cause__, ValidationError):
                error.message = _refusal(error.__cause__)
            error.message = escaped(redacted(error.message))
            raise


def _refusal(error: ValidationError, *, show_value: bool = True) -> str:
    """The text about an invalid value: the value and the requirement."""
    first = error.errors()[0]
    if first["type"] in {"value_error", "assertion_error"}:
        text = first["msg"].partition(", ")[2]
        return f"{text[:1].upper()}{text[1:].rstrip('.')}."
    must = _MUSTS.get(first["type"])
    wanted = must.format(**first.get("ctx", {})) if must else f"fit: {first['msg']}"
    return f"It is {first['input']!r} and must {wanted}." if show_value else f"It must {wanted}."
