"""What people write on a command line: moments, and keys of documents."""

import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import typer
from bson import ObjectId
from bson.json_util import loads

__all__ = ["keys", "moment"]

_UNITS: Final = {"s": 1, "min": 60, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_AGO: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|m|h|d|w)(?:\s+ago)?")


def moment(text: str, option: str) -> datetime:
    """A moment: `now`, how long ago (`90s`, `15min`, `2h`, `7d`), or a date as ISO 8601 has it, in UTC.

    Args:
        text: what was written.
        option: where, for the message.

    Raises:
        typer.BadParameter: it is none.
    """
    text = text.strip()
    if text == "now":
        return datetime.now(UTC)
    ago = _AGO.fullmatch(text)
    try:
        if ago is not None:
            return datetime.now(UTC) - timedelta(seconds=float(ago[1]) * _UNITS[ago[2]])
        read = datetime.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(
            f"{text!r} is no time. Write how long ago, like 90s, 15min, 2h or 7d, or a date like "
            "2026-01-31T12:00:00Z.",
            param_hint=option,
        ) from error
    return read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)


def keys(text: str) -> Sequence[Any]:
    """What a document's `_id` may be that is written like this: text, an ObjectId, a number, extended JSON."""
    found: list[Any] = [text]
    if ObjectId.is_valid(text):
        found.append(ObjectId(text))
    with suppress(ValueError, TypeError):
        found.append(loads(text))
    return found
