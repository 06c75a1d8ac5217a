"""Inspects the watched collections on the server: their names, their images, their validators.

MongoDB commands raise the `PyMongoError` of the driver.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from bson import ObjectId
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure

from dispatcher.core.driver_errors import Kind, kind_of
from dispatcher.core.events import Namespace
from dispatcher.stream.scope import Scope
from mongoz.stamps import FIELD, Call, Stamp

# Limits for the test of a validator: number of documents that are read, and milliseconds. The result is only for a
# warning.
_SAMPLE: Final = 20
_PATIENCE_MS: Final = 1_000


class WatchedCollection(NamedTuple):
    """One watched collection.

    Attributes:
        kind: `"collection"`, `"view"`, `"timeseries"`; "" if it does not exist.
        options: the present options of the collection; empty if it does not exist.
        is_named: whether it is watched by its name, not by a pattern.
    """

    namespace: Namespace
    kind: str
    options: Mapping[str, Any]
    is_named: bool

    @property
    def name(self) -> str:
        """`"database.collection"`."""
        return ".".join(self.namespace)

    @property
    def has_images(self) -> bool:
        """Returns whether the server keeps pre and post images for this collection."""
        return bool(self.options.get("changeStreamPreAndPostImages", {}).get("enabled"))

    async def refuses_stamp(self, client: AsyncMongoClient[Any], group: str) -> bool:
        """Returns whether the validator refuses documents with the ODM's reserved field.

        The server takes a document that satisfies the validator, adds a stamp, and validates the document again,
        without a write. If none of the first documents satisfies the validator, the schema in `$jsonSchema`
        decides. Without a schema, the result is False.
        """
        validator = self.options.get("validator")
        if not validator or self.options.get("validationAction") == "warn":
            return False
        if self.options.get("validationLevel") == "off":
            return False
        stamp = Stamp(group, Call.SAVED, ObjectId(), bytes(8)).pack()
        database, collection = self.namespace
        cursor = await client[database][collection].aggregate(
            [
                {"$limit": _SAMPLE},
                {"$match": validator},
                {"$limit": 1},
                {"$set": {FIELD: stamp}},
                {"$facet": {"tried": [{"$count": "n"}], "passed": [{"$match": validator}, {"$count": "n"}]}},
            ],
            maxTimeMS=_PATIENCE_MS,
        )
        (answer,) = await cursor.to_list(None)
        return not answer["passed"] if answer["tried"] else _forbids_stamp(validator.get("$jsonSchema"))


def _forbids_stamp(schema: Any) -> bool:
    """Returns whether a schema allows declared properties only, and the reserved field is not among them."""
    return (
        isinstance(schema, Mapping)
        and schema.get("additionalProperties") is False
        and FIELD not in schema.get("properties", {})
        and not schema.get("patternProperties")
    )


async def watched_collections(client: AsyncMongoClient[Any], scope: Scope) -> list[WatchedCollection]:
    """The collections of a scope: those listed by name, and the existing ones that match a pattern.

    Raises:
        PyMongoError: a command fails; with code 13 if the user may not list collections.
    """
    named: dict[str, set[str]] = defaultdict(set)
    for database, collection in scope.namespaces:
        named[database].add(collection)
    watched = []
    for database in sorted(named.keys() | await _matching_databases(client, scope)):
        found = await _collections(client, database, named[database], scope)
        names = sorted(named[database] | found.keys())
        for name in names:
            kind, options = found.get(name, ("", {}))
            watched.append(WatchedCollection((database, name), kind, options, name in named[database]))
    return watched


async def _matching_databases(client: AsyncMongoClient[Any], scope: Scope) -> set[str]:
    """The databases in which a pattern may match collections."""
    exact = {pattern.database for pattern in scope.patterns if "*" not in pattern.database}
    alike = [pattern for pattern in scope.patterns if "*" in pattern.database]
    if not alike:
        return exact
    names = await client.list_database_names()
    apart_from = (scope.apart_from,)
    return exact | {name for name in names if any(one.matches_database(name, apart_from) for one in alike)}


async def _collections(
    client: AsyncMongoClient[Any], database: str, named: Iterable[str], scope: Scope
) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """The kinds and options of the existing watched collections of a database, by name."""
    # A database may have thousands of collections. Without patterns, ask for the named ones only.
    wanted = None if scope.patterns else {"name": {"$in": sorted(named)}}
    return {
        entry["name"]: (entry["type"], entry.get("options", {}))
        async for entry in await client[database].list_collections(filter=wanted)
        if scope.covers((database, entry["name"]))
    }


async def collections_of(client: AsyncMongoClient[Any], scope: Scope) -> list[Namespace]:
    """The existing watched collections, sorted, without views and time series.

    If the user may not list collections, and the scope has no patterns, the result is the whole scope.
    """
    try:
        watched = await watched_collections(client, scope)
    except OperationFailure as error:
        if kind_of(error) is not Kind.NO_ACCESS or scope.patterns:
            raise
        return list(scope.namespaces)  # the user may not list the existing collections
    return sorted(one.namespace for one in watched if one.kind == "collection")
