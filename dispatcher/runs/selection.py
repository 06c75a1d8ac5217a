"""Selects the documents of a backfill: by its filter, and also by the hash of `_id` if the backfill is divided.

MongoDB commands raise the `PyMongoError` of the driver.
"""

from collections.abc import Mapping
from typing import Any

from bson import json_util
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure

from dispatcher.core.driver_errors import fatal
from dispatcher.core.events import Namespace
from dispatcher.core.partitions import belongs, hash_of
from dispatcher.exceptions import AccessDenied, FilterRefused


def shares_of(asked: Mapping[str, Any]) -> list[list[int]]:
    """Return the shares to which a run is limited. A share is a pair: its number, and how many shares there are.

    Args:
        asked: the request of the run.
    """
    own = [[asked["partition"], asked["partitions"]]] if asked.get("partitions") is not None else []
    return [*asked.get("within", ()), *own]


def selected(asked: Mapping[str, Any]) -> dict[str, Any]:
    """A filter for the documents of a run.

    Args:
        asked: the request of the run.
    """
    conditions = [
        {"$expr": belongs(hash_of("$_id"), part, parts)} for part, parts in shares_of(asked) if parts != 1
    ]
    where = asked.get("where")
    if where is not None:
        conditions.append(filter_of(where))
    return {"$and": conditions} if conditions else {}


def filter_of(text: str) -> dict[str, Any]:
    """Convert a text to a filter.

    Args:
        text: extended JSON of MongoDB.

    Raises:
        ValueError: the text is no JSON, or no object.
    """
    try:
        found = json_util.loads(text)
    except (ValueError, TypeError) as error:
        raise ValueError(f"it is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"it is no JSON object, but {type(found).__name__}")  # noqa: TRY004 - the text is wrong
    return found


async def require_filter(client: AsyncMongoClient[Any], namespace: Namespace, text: str, address: str) -> None:
    """Require that the server accepts a filter for the documents of a backfill. No document is read.

    Args:
        text: the filter, as extended JSON.

    Raises:
        FilterRefused: the server rejects the filter; the error has the server's reason.
    """
    database, collection = namespace
    find = {"find": collection, "filter": filter_of(text), "sort": {"_id": 1}, "hint": {"_id": 1}}
    try:
        await client[database].command({"explain": find, "verbosity": "queryPlanner"})
    except OperationFailure as error:
        verdict = fatal(error, address)
        if isinstance(verdict, AccessDenied):
            raise verdict from error
        reason = str((error.details or {}).get("errmsg", error)).rstrip(".")
        raise FilterRefused(
            f"--where {text} is no filter that {address} accepts for {database}.{collection}: {reason}.",
            remedy="Write a filter that find() accepts, as JSON, without $text and $near: "
            """'{"status": "new", "n": {"$gt": 5}}'.""",
        ) from error
