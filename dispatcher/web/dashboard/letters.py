"""Reads dead letters for the dashboard: groups of them, a page of the list, and a single one in full.

MongoDB commands raise the `PyMongoError` of the driver.
"""

import asyncio
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final

from bson import ObjectId
from bson.errors import InvalidBSON
from bson.json_util import RELAXED_JSON_OPTIONS, dumps

from dispatcher.core.bson_elements import readable
from dispatcher.core.redaction import redacted
from dispatcher.core.state import HELD, READING, Group
from dispatcher.core.state_checks import StateReader, letter, problem_of
from dispatcher.exceptions import MalformedLetter
from dispatcher.operate.dead_letters import Wanted
from dispatcher.operate.letter_groups import groups_of
from dispatcher.parking.files import Files
from dispatcher.parking.letters import LETTERS
from dispatcher.parking.record import short_id

LETTERS_PER_PAGE: Final = 10

# Maximum bytes of a part of a dead letter, such as its document, that the dashboard shows as text. The conversion
# of a larger part would block the event loop.
_LONGEST_PART: Final = 100_000

# Maximum characters of a text in the list.
_LONGEST_LINE: Final = 300

# Maximum milliseconds of a query.
_PATIENCE_MS: Final = 5_000

_READING: Final = READING.with_options(tz_aware=True)

_LISTED: Final = {
    "receiver": True,
    "signal": True,
    "document": True,
    "namespace": True,
    "key": True,
    "reason": True,
    "error.type": True,
    "error.message": True,
    "attempts": True,
    "retries": True,
    "last_attempt_at": True,
    "retry_requested_at": True,
    "retrying_since": True,
    "retry_refused": True,
}
_NEWEST_FIRST: Final = [("last_attempt_at", -1), ("_id", -1)]


class NoSuchPage(ValueError):
    """The cursor of a page is malformed."""


class Letterbox:
    """Reads the dead letters of a group."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._letters = group.state.held.with_options(codec_options=_READING)
        self._files = Files(group.state)
        self._of_group = {"group": group.name, **LETTERS}

    async def groups(self, wanted: Wanted) -> dict[str, Any]:
        """Dead letters by receiver and error, the largest group first."""
        found = await groups_of(self._group, wanted)
        groups = [
            {
                **asdict(one),
                "newest_at": _iso(one.newest_at),
                "message": _line(redacted(one.message or "")),
            }
            for one in found.groups
        ]
        return {"groups": groups, "complete": found.complete, "misfits": [one._asdict() for one in found.misfits]}

    async def page(self, selected: Wanted, before: str | None) -> dict[str, Any]:
        """One page of dead letters, the newest first, and the cursor of the next page.

        Args:
            before: `next` of the previous page; None for the first page.

        Raises:
            NoSuchPage: `before` is malformed.
        """
        wanted = [selected.query(self._group.name)]
        if before is not None:
            at, id_ = _place(before)
            older = [{"last_attempt_at": {"$lt": at}}, {"last_attempt_at": at, "_id": {"$lt": id_}}]
            wanted.append({"$or": older})
        cursor = self._letters.find({"$and": wanted}, _LISTED).sort(_NEWEST_FIRST).limit(LETTERS_PER_PAGE + 1)
        found = await cursor.max_time_ms(_PATIENCE_MS).to_list()
        page, more = found[:LETTERS_PER_PAGE], len(found) > LETTERS_PER_PAGE
        reader = StateReader(self._letters.database.name)
        listed = reader.each(HELD, page, lambda one: _listed(letter(one)))
        reader.log()
        return {
            "letters": listed,
            "misfits": [one._asdict() for one in reader.misfits],
            "next": _mark(page[-1]) if more else None,
        }

    async def letter(self, id_: str) -> dict[str, Any] | None:
        """One dead letter with its parts as text; None if no dead letter has this id."""
        found = await self._letters.find_one({**self._of_group, "_id": id_})
        if found is None:
            return None
        try:
            letter(found)
        except ValueError as error:
            raise MalformedLetter(f"The dead letter is malformed: {problem_of(error)}.") from error
        parts = {str(name): bytes(data) for name, data in found.pop("parts", {}).items()}
        sizes = {name: len(data) for name, data in parts.items()} | await self._files.sizes(found)
        return await asyncio.to_thread(_in_full, found, parts, sizes)


def _listed(letter: dict[str, Any]) -> dict[str, Any]:
    error = letter.get("error") or {}
    return {
        "id": letter["_id"],
        "short_id": short_id(letter["_id"]),
        "receiver": letter.get("receiver"),
        "signal": letter.get("signal"),
        "document": letter.get("document"),
        "namespace": _namespace(letter),
        "key": _line(letter["key"]) if "key" in letter else None,
        "reason": letter.get("reason"),
        "error_type": _line(error.get("type", "")),
        "error_message": _line(redacted(str(error.get("message", "")))),
        "attempts": letter.get("attempts", 0),
        "retries": letter.get("retries", 0),
        "last_attempt_at": _iso(letter.get("last_attempt_at")),
        "retrying": "retry_requested_at" in letter or "retrying_since" in letter,
        "retry_refused": (letter.get("retry_refused") or {}).get("text"),
    }


def _in_full(letter: dict[str, Any], parts: dict[str, bytes], sizes: dict[str, int]) -> dict[str, Any]:
    error = letter.get("error") or {}
    shown = {name: _text(data) for name, data in parts.items() if len(data) <= _LONGEST_PART}
    return {
        **_listed(letter),
        "error_message": redacted(str(error.get("message", ""))),
        "traceback": redacted(str(error.get("traceback", ""))),
        "first_attempt_at": _iso(letter.get("first_attempt_at")),
        "wall_time": _iso(letter.get("wall_time")),
        "operation": letter.get("operation"),
        "delivery_id": letter.get("delivery_id"),
        "term": letter.get("term"),
        "image": letter.get("image"),
        "update_fields": [str(name) for name in letter.get("update_fields") or ()],
        "parts": [{"name": name, "text": shown.get(name), "size": size} for name, size in sizes.items()],
    }


def _text(data: bytes) -> str:
    """A part as text. If the part is not BSON, the text shows its bytes."""
    try:
        return dumps(
            readable(data, tz_aware=True), json_options=RELAXED_JSON_OPTIONS, indent=2, ensure_ascii=False
        )
    except (InvalidBSON, ValueError, OverflowError):
        return data.hex(" ")


def _line(value: Any) -> str:
    if isinstance(value, str | ObjectId | int):
        text = str(value)
    else:
        text = dumps(value, json_options=RELAXED_JSON_OPTIONS, ensure_ascii=False)
    return text if len(text) <= _LONGEST_LINE else f"{text[:_LONGEST_LINE]}..."


def _namespace(letter: dict[str, Any]) -> str | None:
    namespace = letter.get("namespace")
    return None if not namespace else f"{namespace.get('db')}.{namespace.get('coll')}"


def _iso(moment: Any) -> str | None:
    return moment.isoformat() if isinstance(moment, datetime) else None


def _mark(letter: dict[str, Any]) -> str:
    at = letter.get("last_attempt_at")
    millis = round(at.timestamp() * 1000) if isinstance(at, datetime) else 0
    return f"{millis}~{letter['_id']}"


def _place(mark: str) -> tuple[datetime, str]:
    millis, tilde, id_ = mark.partition("~")
    try:
        if not tilde:
            raise ValueError("no ~")
        return datetime.fromtimestamp(int(millis) / 1000, UTC), id_
    except (ValueError, OverflowError, OSError) as error:
        raise NoSuchPage(f"{mark[:50]!r} is not the cursor of a page. Use `next` of the previous page.") from error
