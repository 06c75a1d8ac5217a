"""Parses times and points in the change stream."""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

import typer
from bson import Timestamp

from dispatcher.core.resume_tokens import token_at, token_time

_UNITS: Final = {"s": 1, "min": 60, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_AGO: Final = re.compile(r"-?(\d+(?:\.\d+)?)\s*(s|min|m|h|d|w)(?:\s+ago)?")
_TIMESTAMP: Final = re.compile(r"(?:Timestamp\()?(\d{1,10}),\s*(\d{1,10})\)?")
_TOKEN: Final = re.compile(r"82(?:[0-9A-Fa-f]{2}){8,}(?:\.(?:[0-9A-Fa-f]{2})+)?")


def moment(text: str, option: str) -> datetime:
    """Parse a time: `now`, a duration ago (`90s`, `15min`, `2h`, `7d`), or a date in ISO 8601 (UTC by default)."""
    try:
        return _moment(text.strip())
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(
            f"{text!r} is not a time. Write a duration ago, such as 90s, 15min, 2h or 7d, or a date such as "
            "2026-01-31T12:00:00Z.",
            param_hint=option,
        ) from error


def _moment(text: str) -> datetime:
    if text == "now":
        return datetime.now(UTC)
    if ago := _AGO.fullmatch(text):
        return datetime.now(UTC) - timedelta(seconds=float(ago[1]) * _UNITS[ago[2]])
    read = datetime.fromisoformat(text)
    return read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)


def point(text: str, option: str) -> Timestamp:
    """Convert a time, a resume token or the text of a cluster time to a cluster time."""
    text = text.strip()
    try:
        if _TOKEN.fullmatch(text):
            return token_time(text.upper())
        if pair := _TIMESTAMP.fullmatch(text):
            return Timestamp(int(pair[1]), int(pair[2]))
        return Timestamp(max(1, int(_moment(text).timestamp())), 0)
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(
            f"{text!r} is not a point in time. Write a date such as 2026-01-31T12:00:00Z, a duration ago such as "
            "2h, 30min or 7d, a resume token, or a cluster time such as 1767225600,1.",
            param_hint=option,
        ) from error


def token(text: str, option: str) -> str:
    """Read a resume token. For a time, return a text that sorts before the tokens of all changes at that time."""
    if _TOKEN.fullmatch(text.strip()):
        return text.strip().upper()
    return token_at(point(text, option))
