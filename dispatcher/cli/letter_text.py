"""Prints dead letters."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from bson import ObjectId
from bson.errors import InvalidBSON
from bson.json_util import RELAXED_JSON_OPTIONS, dumps

from dispatcher.cli.output import out
from dispatcher.core.bson_elements import readable
from dispatcher.core.output.terminal import Grid, shown
from dispatcher.core.redaction import redacted
from dispatcher.operate.dead_letters import Outcome
from dispatcher.parking.record import short_id
from mongoz.stamps import context_of

_STYLES: Final = {"delivered": "green", "failed": "red", "refused": "red", "waiting": "yellow"}

# Maximum characters of an error in a list.
_SHORT: Final = 100


def print_list(letters: Iterable[dict[str, Any]]) -> None:
    """Print a line for each dead letter."""
    table = Grid("id", "given up", "receiver", "signal", "key", "reason", "error")
    for letter in letters:
        table.add_row(*_row(letter))
    out.print(table)


def _row(letter: dict[str, Any]) -> tuple[str, ...]:
    error = redacted(str((letter.get("error") or {}).get("message", ""))).splitlines() or [""]
    state = str(letter.get("reason"))
    if "retrying_since" in letter or "retry_requested_at" in letter:
        state += ", retry requested"
    elif letter.get("retries"):
        state += f", {letter['retries']} retries"
    return (
        short_id(letter["_id"]),
        _when(letter.get("last_attempt_at")),
        letter.get("receiver") or "(unreadable change)",
        letter.get("signal") or "",
        _brief(letter.get("key")),
        state,
        error[0][:_SHORT],
    )


def print_letter(letter: dict[str, Any], parts: Mapping[str, bytes]) -> None:
    """Print one dead letter in full.

    Args:
        letter: the document of the dead letter, without the large parts.
        parts: the documents of the change, as BSON.
    """
    decoded = {name: _decoded(data) for name, data in parts.items()}
    letter = {"id": short_id(letter["_id"]), **letter}
    error = letter.pop("error", None) or {}
    for name in ("parts", "files"):
        letter.pop(name, None)
    for name, value in letter.items():
        _print_fact(name, _brief(value))
    _print_fact("error", redacted(str(error.get("message", ""))))
    for name, value in decoded.items():
        text = value if isinstance(value, str) else dumps(value, json_options=RELAXED_JSON_OPTIONS, indent=2)
        out.print(shown(f"\n{name}", "bold", "\n"))
        out.print(shown(text, newline="\n"), soft_wrap=True)  # JSON escapes line breaks in its strings
    if trace := error.get("traceback"):
        out.print(shown("\ntraceback", "bold", "\n"))
        out.print(shown(redacted(trace).rstrip(), newline="\n  "), soft_wrap=True)


def _print_fact(name: str, value: str) -> None:
    out.print(shown(f"{name:>20}  ", "bold"), shown(value, newline=f"\n{'':22}"), sep="", soft_wrap=True)


def print_outcomes(found: Sequence[Outcome]) -> None:
    """Print a line for each outcome, and the count of each result."""
    table = Grid()
    for one in found:
        text = (one.text.splitlines() or [""])[0]
        table.add_row(shown(one.result, _STYLES[one.result]), short_id(one.letter), text[:_SHORT])
    out.print(table)
    counts = {result: sum(one.result == result for one in found) for result in _STYLES}
    out.print(", ".join(f"{count} {result}" for result, count in counts.items() if count) + ".")


def plain(letter: dict[str, Any], parts: Mapping[str, bytes] | None = None) -> dict[str, Any]:
    """A dead letter for JSON.

    Args:
        parts: the documents of the change, as BSON; None omits them.
    """
    fields = {name: _plain_value(value) for name, value in letter.items() if name not in ("parts", "files")}
    if "context" in fields:
        fields["context"] = dict(context_of(fields["context"]) or {})
    if parts is not None:
        fields["parts"] = {name: _plain_value(_decoded(data)) for name, data in parts.items()}
    return {"id": short_id(letter["_id"]), **fields}


def _plain_value(value: Any) -> Any:
    """Convert a value for JSON. A value without a JSON form becomes extended JSON."""
    return json.loads(dumps(value, json_options=RELAXED_JSON_OPTIONS))


def _decoded(data: bytes) -> Any:
    """Decode a document of the change. If Python can't represent its values, return its bytes as hex digits."""
    try:
        return readable(data, tz_aware=True)
    except (InvalidBSON, ValueError, OverflowError):
        return data.hex(" ")


def _brief(value: Any) -> str:
    if isinstance(value, datetime):
        return _when(value)
    if value is None or isinstance(value, str | int | float | ObjectId):
        return "" if value is None else str(value)
    return dumps(value, json_options=RELAXED_JSON_OPTIONS)


def _when(value: Any) -> str:
    return value.strftime("%Y-%m-%d %H:%M:%S") if isinstance(value, datetime) else ""
