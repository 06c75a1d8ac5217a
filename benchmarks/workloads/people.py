"""The documents: (str, e-mail, int, list of str, datetime), as a client without mongoz writes them."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

__all__ = ["COLLECTION", "CREATED", "ODM_DATABASE", "people", "person"]

COLLECTION: Final = "people"
ODM_DATABASE: Final = "odm"
"""The database for measurements of the ODM. `COLLECTION` is filled before, and `CREATED` gets new documents."""
CREATED: Final = "created"

_EPOCH: Final = datetime(2024, 1, 1, tzinfo=UTC)
_TAGS: Final = ("red", "green", "blue", "cyan", "magenta", "yellow", "black")


def person(number: int) -> dict[str, Any]:
    """The document with this number."""
    return {
        "name": f"Person Number {number}",
        "email": f"person.{number}@example.org",
        "number": number,
        "tags": [_TAGS[(number + i) % len(_TAGS)] for i in range(3)],
        "joined_at": _EPOCH + timedelta(seconds=number),
    }


def people(count: int, *, at_once: int = 1_000) -> Iterator[list[dict[str, Any]]]:
    """The first `count` documents, in portions."""
    for start in range(0, count, at_once):
        yield [person(number) for number in range(start, min(start + at_once, count))]
