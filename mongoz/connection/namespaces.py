"""Patterns of namespaces: parses the entries of `Meta.watch`, and matches namespaces with them.

A namespace is `"database.collection"`. The name of a database has no dot, the name of a collection may have
several. `*` matches any text; in the database part it matches any text without a dot. No I/O.

The ODM uses the patterns to check a namespace before it writes. The dispatcher makes the filter of its change
stream from the patterns.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final, NamedTuple

from bson import Regex

__all__ = ["NOT_WATCHABLE", "NamespacePattern", "WatchedNamespaces", "exact_match", "is_misread", "parse_pattern"]

NOT_WATCHABLE: Final = frozenset({"admin", "config", "local"})
"""The server's own databases: they have no change streams."""

_SYSTEM: Final = "system."
_MAX_BYTES: Final = 255
_MAX_DATABASE_BYTES: Final = 63
_NOT_IN_DATABASE: Final = frozenset('/\\. "$<>:|?\0')
_NOT_IN_COLLECTION: Final = frozenset("$\0")

# MongoDB can't parse a change stream's regular expression that contains one of these characters literally.
_NOT_IN_REGEX: Final = frozenset("'\x7f") | frozenset(map(chr, range(32)))

# Maximum number of namespaces in the cache of a document. A full cache is cleared.
_MAX_CACHED: Final = 10_000


class NamespacePattern(NamedTuple):
    """A pattern of namespaces.

    Attributes:
        database: a name, in which `*` matches any text.
        collection: a name, in which `*` matches any text; "" means the document's own collection.
    """

    database: str
    collection: str

    @property
    def is_literal(self) -> bool:
        """Whether it matches a single collection only."""
        return "*" not in self.database and "*" not in self.collection

    def within(self, collection: str) -> "NamespacePattern":
        """The pattern for a document whose own collection has this name."""
        return self if self.collection else self._replace(collection=collection)

    def database_regex(self, apart_from: Iterable[str] = ()) -> str:
        """The regular expression of its databases, anchored, for Python and for the server.

        Args:
            apart_from: databases that `*` does not match.
        """
        return _database_regex(self.database, frozenset(apart_from))

    @property
    def collection_regex(self) -> str:
        """The regular expression of its collections, for use with the option "s"."""
        # System collections have no changes to deliver, so a pattern never matches them.
        return f"^(?!system\\.){_as_regex(self.collection, '.*')}$"

    def matches_database(self, name: str, apart_from: Iterable[str] = ()) -> bool:
        """Whether it matches collections of this database."""
        if "*" in self.database:
            return bool(re.match(self.database_regex(apart_from), name))
        return self.database == name

    def matches(self, database: str, collection: str, apart_from: Iterable[str] = ()) -> bool:
        """Whether it matches this namespace."""
        if not self.matches_database(database, apart_from):
            return False
        if "*" in self.collection:
            return bool(re.match(self.collection_regex, collection, re.DOTALL))
        return self.collection == collection

    def __str__(self) -> str:
        return f"{self.database}.{self.collection}" if self.collection else self.database


@lru_cache(maxsize=1_000)
def _database_regex(database: str, apart_from: frozenset[str]) -> str:
    wanted = _as_regex(database, "[^.]*")
    unwanted = sorted(name for name in NOT_WATCHABLE | apart_from if re.fullmatch(wanted, name))
    without = f"(?!(?:{'|'.join(map(re.escape, unwanted))})$)" if unwanted and "*" in database else ""
    return f"^{without}{wanted}$"


@lru_cache(maxsize=1_000)
def _as_regex(text: str, anything: str) -> str:
    return anything.join(_escaped(part) for part in text.split("*"))


def _escaped(text: str) -> str:
    return "".join(f"\\x{ord(char):02x}" if char in _NOT_IN_REGEX else re.escape(char) for char in text)


def is_misread(name: str) -> bool:
    """Whether change streams misread the name of a database or collection as a regular expression.

    MongoDB builds a regular expression from each name and does not escape braces: `log{2024}` matches "lo" and
    then 2,024 times the letter g. A stream on a collection or database with this name misses all changes.
    """
    return "{" in name


def exact_match(name: str) -> Any:
    """The value for a change stream's `$match` that matches exactly this name of a database or collection.

    A regular expression costs the server two to three times as much as a string, so only misread names use it.
    """
    return Regex(f"^{_escaped(name)}$") if is_misread(name) else name


def parse_pattern(text: object) -> NamespacePattern:
    """Parse one entry of `Meta.watch`.

    Args:
        text: `"database.collection"`; or only `"database"`, which means the document's own collection in that
            database.

    Raises:
        ValueError: the entry can't be a namespace. The message is the rest of a sentence that begins with the
            entry.
    """
    if not isinstance(text, str):
        raise ValueError("is no string")  # noqa: TRY004 - one type of error for all reasons
    database, dot, collection = text.partition(".")
    _check_database(database)
    if dot:
        _check_collection(collection)
    if len(text.encode()) > _MAX_BYTES:
        raise ValueError(f"is longer than {_MAX_BYTES} bytes")
    return NamespacePattern(database, collection)


def _check_database(name: str) -> None:
    if not name:
        raise ValueError("names no database")
    bad = next((character for character in name if character in _NOT_IN_DATABASE), None)
    if bad is not None:
        raise ValueError(f"has {bad!r} in the name of its database, which MongoDB does not allow")
    if len(name.replace("*", "").encode()) > _MAX_DATABASE_BYTES:
        raise ValueError(f"has a database whose name is longer than {_MAX_DATABASE_BYTES} bytes")
    if name in NOT_WATCHABLE:
        raise ValueError(f"is in the server's own database {name!r}, which has no change stream")


def _check_collection(name: str) -> None:
    if not name:
        raise ValueError("names no collection after its dot")
    bad = next((character for character in name if character in _NOT_IN_COLLECTION), None)
    if bad is not None:
        raise ValueError(f"has {bad!r} in the name of its collection, which MongoDB does not allow")
    if name.startswith(".") or name.endswith("."):
        raise ValueError("has a collection whose name begins or ends with a dot, which MongoDB does not allow")
    if name.startswith(_SYSTEM):
        raise ValueError("is one of the server's own collections, which have no changes to deliver")


class WatchedNamespaces:
    """The namespaces of `Meta.watch`, for a document whose collection is known.

    Args:
        patterns: the parsed entries.
        collection: name of the document's own collection.
    """

    __slots__ = ("_cached", "patterns")

    def __init__(self, patterns: Iterable[NamespacePattern] = (), collection: str = "") -> None:
        self.patterns: tuple[NamespacePattern, ...] = tuple(
            dict.fromkeys(pattern.within(collection) for pattern in patterns)
        )
        self._cached: dict[tuple[str, str], bool] = {}

    def covers(self, database: str, collection: str) -> bool:
        """Whether one of the patterns matches this namespace. Every write asks this, so the answers are cached."""
        if not self.patterns:
            return False
        namespace = (database, collection)
        known = self._cached.get(namespace)
        if known is None:
            if len(self._cached) >= _MAX_CACHED:
                self._cached.clear()
            known = any(pattern.matches(database, collection) for pattern in self.patterns)
            self._cached[namespace] = known
        return known
