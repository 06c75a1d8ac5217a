"""Makes docs/reference/status.md from the classes of the status: `python -m tools.status_reference`."""

import inspect
import re
import typing
from datetime import datetime
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union

from dispatcher.core.state_checks import Misfit
from dispatcher.operate import status_model as model

PAGE: Final = Path(__file__).parents[1] / "docs" / "reference" / "status.md"

_CLASSES: Final = (
    model.GroupStatus,
    model.Health,
    model.ReceiverHealth,
    model.MemberStatus,
    model.PartitionStatus,
    model.DeadLetterCount,
    model.ParkedCount,
    model.ClaimsStatus,
    model.BookStatus,
    model.Pause,
    model.GapStatus,
    Misfit,
    model.SourceStatus,
    model.RelayStatus,
    model.PublishedStatus,
    model.ReaderStatus,
)

_HEAD: Final = """# Status

`dispatcher status --json` prints the status of a group as one JSON object.
[`/status.json`](../how-to/monitoring.md) has the same object as `group`, and facts about the process that answers
as `process`. If the state can't be read, `group` is null, and `group_error` has the reason.

Times are in ISO 8601. The page is made from the code.
"""


def page() -> str:
    """The page in Markdown."""
    return "\n".join([_HEAD, *(_section(one) for one in _CLASSES)])


def _section(kind: Any) -> str:
    summary, _, attributes = inspect.cleandoc(kind.__doc__).partition("\n\nAttributes:\n")
    meanings = {name: _plain(text) for name, text in re.findall(_ATTRIBUTE, attributes)}
    if kind is model.GroupStatus:
        meanings |= {name: _plain(getattr(kind, name).__doc__) for name in _COMPUTED}
    hints = typing.get_type_hints(kind)
    for name in [name for name in meanings if name not in hints]:  # computed by a property
        hints[name] = typing.get_type_hints(getattr(kind, name).fget)["return"]
    # A field without a meaning is an error.
    rows = [f"| `{name}` | {_type_of(type_)} | {meanings[name]} |" for name, type_ in hints.items()]
    return "\n".join(
        [f"## {kind.__name__}", "", summary, "", "| field | type | meaning |", "|---|---|---|", *rows, ""]
    )


# An attribute in a docstring, with its continuation lines.
_ATTRIBUTE: Final = re.compile(r"^    (\w+): (.*(?:\n      .*)*)", re.MULTILINE)

_COMPUTED: Final = (
    "dead_letter_count",
    "headroom_seconds",
    "broker_lag",
    "delivery_lag_seconds",
    "broker_troubles",
)
_TYPES: Final = {str: "string", int: "number", float: "number", bool: "true or false", datetime: "time"}


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("None", "null").replace("docs/reference/state.md", "[State](state.md)")


def _type_of(type_: Any) -> str:
    """The type of a value in JSON."""
    if type_ in _TYPES:
        return _TYPES[type_]
    if type_ is NoneType:
        return "null"
    if type_ in _CLASSES:
        return f"[{type_.__name__}](#{type_.__name__.lower()})"
    parts = typing.get_args(type_)
    if typing.get_origin(type_) is list:
        return f"array of {_type_of(parts[0])}"
    if typing.get_origin(type_) in (Union, UnionType):
        return " or ".join(map(_type_of, parts))
    return "string" if typing.get_origin(type_) is Literal else "object"


if __name__ == "__main__":
    PAGE.write_text(page())
