"""Documents of the five collections of a dispatcher of format 1, captured from a real run."""

from pathlib import Path
from typing import Any

from bson.json_util import CANONICAL_JSON_OPTIONS, loads

__all__ = ["GROUP", "LETTERS", "PARKED", "captured"]

GROUP = "shop"
PARKED = "parked"
LETTERS = "dead_letters"

_DATA = Path(__file__).parent / "unit" / "data" / "held_by_format_1.json"


def captured() -> dict[str, list[dict[str, Any]]]:
    """The documents of each collection, by its name.

    They are a blocked lane with two followers, a retrying lane, a paused lane, a retry, and a dead letter.
    """
    found: dict[str, list[dict[str, Any]]] = loads(_DATA.read_text(), json_options=CANONICAL_JSON_OPTIONS)
    return found
