"""The scope of a stream: the watched collections, and the partition of their documents."""

import re
from collections.abc import Iterable
from hashlib import sha256
from typing import Any, Final, NamedTuple, Protocol

from bson import Regex, json_util

from dispatcher.core.events import Namespace
from dispatcher.core.partitions import HASH, belongs, hash_of
from mongoz.connection.namespaces import NamespacePattern, exact_match, is_misread

_DOCUMENT_OPERATIONS: Final = ["insert", "update", "replace", "delete"]


class Subscriptions(Protocol):
    """The collections to which receivers listen."""

    apart_from: str

    @property
    def namespaces(self) -> tuple[Namespace, ...]:
        """The collections that are known by name."""

    @property
    def patterns(self) -> tuple[NamespacePattern, ...]:
        """The patterns of further collections."""


def scope_of(subscriptions: Subscriptions) -> "Scope":
    """The narrowest scope with these collections."""
    return Scope.of(subscriptions.namespaces, subscriptions.patterns, subscriptions.apart_from)


class Scope(NamedTuple):
    """The watched collections, and the partition of their documents.

    Attributes:
        database: a single database, or None for the whole deployment.
        namespaces: the collections, sorted.
        patterns: patterns for the names of further collections, sorted.
        apart_from: a database that patterns do not match, even if its name fits.
        hashed: whether each event of a document ends with the hash of the document's key, as the field HASH. The
            stream has the same events with and without the hash.
    """

    database: str | None
    namespaces: tuple[Namespace, ...]
    patterns: tuple[NamespacePattern, ...] = ()
    apart_from: str = ""
    partition: int = 0
    partitions: int = 1
    hashed: bool = False

    @classmethod
    def of(
        cls, namespaces: Iterable[Namespace], patterns: Iterable[NamespacePattern] = (), apart_from: str = ""
    ) -> "Scope":
        """The narrowest scope that holds these collections.

        Args:
            apart_from: the database of the dispatcher's state. If it were watched, the stream would contain an
                event for every saved position.
        """
        ordered, alike = tuple(sorted(set(namespaces))), tuple(sorted(set(patterns)))
        databases = {database for database, _ in ordered} | {pattern.database for pattern in alike}
        single = databases.pop() if len(databases) == 1 else None
        narrow = single is not None and "*" not in single and not is_misread(single)
        return cls(single if narrow else None, ordered, alike, apart_from)

    def part(self, partition: int, partitions: int) -> "Scope":
        """The scope of one partition, by the hash of the document's key."""
        return self._replace(partition=partition, partitions=partitions)

    def covers(self, namespace: Namespace) -> bool:
        """Returns whether a collection is watched."""
        apart_from = (self.apart_from,)
        return namespace in self.namespaces or any(one.matches(*namespace, apart_from) for one in self.patterns)

    def concerns(self, operation: str, namespace: Namespace) -> bool:
        """Returns whether an event of this operation and collection is in the scope. Every rename is in it."""
        if operation == "dropDatabase":
            database = namespace[0]
            named = any(database == one for one, _ in self.namespaces)
            return named or any(one.matches_database(database, (self.apart_from,)) for one in self.patterns)
        return operation == "rename" or self.covers(namespace)

    def pipeline(self) -> list[dict[str, Any]]:
        """The stages after `$changeStream`, by which the server filters."""
        has_key = {"$ne": [{"$type": "$documentKey"}, "missing"]}
        hash_ = {"$cond": [has_key, hash_of("$documentKey._id"), "$$REMOVE"]}
        hashes = [{"$set": {HASH: hash_}}] if self.hashed else []
        return [self._watched(), *self._partitioned(), *hashes]

    def _partitioned(self) -> list[dict[str, Any]]:
        """The stages that select one partition. All changes of a document are in the same partition.

        Events of whole collections are in the first partition. Every stream gets its own invalidate event.
        """
        if self.partitions == 1:
            return []
        elsewhere: dict[str, Any] = {"operationType": "invalidate"}
        if self.partition == 0:
            elsewhere = {"operationType": {"$nin": _DOCUMENT_OPERATIONS}}
        here = belongs(hash_of("$documentKey._id"), self.partition, self.partitions)
        ours = {"operationType": {"$in": _DOCUMENT_OPERATIONS}, "$expr": here}
        return [{"$match": {"$or": [elsewhere, ours]}}]

    def _watched(self) -> dict[str, Any]:
        named = [(exact_match(db), exact_match(coll)) for db, coll in self.namespaces]
        named += [self._as_filter(pattern) for pattern in self.patterns]
        watched = [{"ns.db": db, "ns.coll": coll} for db, coll in named]
        targets = [{"to.db": db, "to.coll": coll} for db, coll in named]
        names = {db for db, _ in named if isinstance(db, str)}
        expressions = {db.pattern for db, _ in named if isinstance(db, Regex)}
        databases = [*sorted(names), *map(Regex, sorted(expressions))]
        return {
            "$match": {
                "$or": [
                    {"operationType": {"$in": [*_DOCUMENT_OPERATIONS, "drop", "rename"]}, "$or": watched},
                    {"operationType": "rename", "$or": targets},
                    {"operationType": "dropDatabase", "ns.db": {"$in": databases}},
                    {"operationType": "invalidate"},
                ]
            }
        }

    def _as_filter(self, pattern: NamespacePattern) -> tuple[Any, Any]:
        """The values with which the server compares the database and the collection of a change."""
        database, collection = pattern.database, pattern.collection
        return (
            Regex(pattern.database_regex((self.apart_from,))) if "*" in database else exact_match(database),
            Regex(pattern.collection_regex, re.DOTALL) if "*" in collection else exact_match(collection),
        )

    @property
    def fingerprint(self) -> str:
        """A hash of scope and pipeline: a token is valid only for the same scope and pipeline."""
        pipeline = self._replace(hashed=False).pipeline()
        text = json_util.dumps({"database": self.database, "pipeline": pipeline, "version": 1})
        return sha256(text.encode()).hexdigest()[:16]
