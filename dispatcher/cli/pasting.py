"""Adds the application and the server of the running command to the commands in messages."""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from inspect import Parameter
from typing import Any, Final

from typer.models import ArgumentInfo

from dispatcher.core.redaction import redacted

FLAGS: Final[dict[str, Sequence[Parameter]]] = {}
"""The flags and arguments of each command, by its name, such as `"dead-letters list"`."""

# The flags that name the application, the server and the group, in the order in which they are printed.
_PLACE: Final = (
    *("app", "apps", "imports", "url", "state_database", "group", "deliver_everything"),
    *("kafka", "kafka_topic", "kafka_config"),
)

_COMMAND: Final = re.compile(r"`dispatcher ([^`]+)`")

# A command that ends with one of these flags is not completed: the text is about the flag.
_TOPICS: Final = ("--help", "--kafka", "--partitions")

# Printed instead of a URL that has a password. Shells replace this word by the URL.
_HIDDEN_URL: Final = "$DISPATCHER_URL"


class Completion:
    """Completes commands with the flags of the running command.

    Args:
        values: the values of these flags.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        apps = [*values.get("apps", ()), *([values["app"]] if values.get("app") else [])]
        self._values = {**values, "apps": apps, "app": apps[0] if len(apps) == 1 else None}

    def __call__(self, text: str, elsewhere: bool) -> str:
        """Complete all commands in a text, see `core.output.commands.completed`."""
        return _COMMAND.sub(lambda found: self._complete(found[0], found[1].split(" "), elsewhere), text)

    def _complete(self, as_written: str, words: list[str], elsewhere: bool) -> str:
        length = 2 if " ".join(words[:2]) in FLAGS else 1
        name, rest = " ".join(words[:length]), [word for word in words[length:] if word != "APP"]
        place = {flag.name: flag for flag in FLAGS.get(name, ()) if flag.name in _PLACE}
        if not place or words[-1] in _TOPICS or self._lacks(place):
            return as_written
        arguments, options = ["APP"] if "APP" in words else [], list[str]()
        for each in _PLACE:
            found = self._words(place[each], elsewhere) if each in place else []
            if found and not found[0].startswith("--"):
                arguments = found
            else:
                options += found
        return f"`{' '.join(['dispatcher', name, *arguments, *rest, *options])}`"

    def _lacks(self, place: Mapping[str, Parameter]) -> bool:
        """Whether the command in the message requires a flag that the running command does not have."""
        flags = (flag for name, flag in place.items() if name not in ("app", "apps"))
        return any(flag.default is Parameter.empty and not self._values.get(flag.name) for flag in flags)

    def _words(self, flag: Parameter, elsewhere: bool) -> list[str]:
        """The words of a flag or an argument, with the value that it has in the running command."""
        value, info = self._values.get(flag.name), flag.annotation.__metadata__[0]
        if value in (None, False, [], flag.default):
            return []
        texts = [str(one) for one in (value if isinstance(value, list) else [value])]
        if not elsewhere and os.environ.get(info.envvar, "").split() == texts:
            return []
        name = [] if isinstance(info, ArgumentInfo) else [_name_of(flag)]
        if value is True:
            return name
        return [word for text in texts for word in (*name, _in_shell(text))]


def _name_of(flag: Parameter) -> str:
    """The long form of a flag on the command line."""
    info = flag.annotation.__metadata__[0]
    given = (info.default, *(info.param_decls or ()))  # typer keeps the first name in `default`
    names = (name for name in given if isinstance(name, str) and name.startswith("--"))
    return next(names, f"--{flag.name.replace('_', '-')}")


def _in_shell(text: str) -> str:
    return _HIDDEN_URL if redacted(text) != text else shlex.quote(text)
