"""Which further namespaces hold a document: what `Meta.watch` may say, and matching by it.

A namespace is `"database.collection"`; a database's name has no dot, a collection's may have several. `*` stands
for anything, in the database part for anything but a dot. Everything here is pure: the ODM asks before it writes,
the dispatcher makes the filter of its change stream from it.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final, NamedTuple

from bson import Regex

__all__ = ["NOT_WATCHABLE", "NamespacePattern", "Watch", "is_misread", "parse_pattern", "watched_as"]

NOT_WATCHABLE: Final = frozenset({"admin", "config", "local"})
"""The server's own databases: no change stream tells of them."""

_SYSTEM: Final = "system."
_MOST_BYTES: Final = 255
_MOST_BYTES_OF_A_DATABASE: Final = 63
_NOT_IN_A_DATABASE: Final = frozenset('/\\. "$<>:|?\0')
_NOT_IN_A_COLLECTION: Final = frozenset("$\0")

# MongoDB fails to parse a change stream's regular expression that contains one of these literally.
_NOT_IN_A_REGEX: Final = frozenset("'\x7f") | frozenset(map(chr, range(32)))

# Answers that a document remembers about namespaces; applications with more tenants than that ask again.
_MOST_REMEMBERED: Final = 10_000


class NamespacePattern(NamedTuple):
    """One namespace, or all those that look alike.

    Attributes:
        database: its name, `*` for anything in it.
        collection: its name, `*` for anything in it; "" for the name of the document's own collection.
    """

    database: str
    collection: str

    @property
    def is_literal(self) -> bool:
        """Whether it names a single collection."""
        return "*" not in self.database and "*" not in self.collection

    def within(self, collection: str) -> "NamespacePattern":
        """The same, of a document whose own collection has this name."""
        return self if self.collection else self._replace(collection=collection)

    def database_regex(self, apart_from: Iterable[str] = ()) -> str:
        """What the names of its databases look like, anchored, for Python and for the server.

        Args:
            apart_from: databases that are only meant by who names them: not matched by a `*`.
        """
        return _database_regex(self.database, frozenset(apart_from))

    @property
    def collection_regex(self) -> str:
        """What the names of its collections look like; to be used with the option "s"."""
        # System collections have no changes that anybody could deliver; a pattern never means them.
        return f"^(?!system\\.){_as_regex(self.collection, '.*')}$"

    def matches_database(self, name: str, apart_from: Iterable[str] = ()) -> bool:
        """Whether it stands for collections of this database."""
        if "*" in self.database:
            return bool(re.match(self.database_regex(apart_from), name))
        return self.database == name

    def matches(self, database: str, collection: str, apart_from: Iterable[str] = ()) -> bool:
        """Whether it stands for this namespace."""
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
    return "".join(f"\\x{ord(char):02x}" if char in _NOT_IN_A_REGEX else re.escape(char) for char in text)


def is_misread(name: str) -> bool:
    """Whether change streams take the name of a database or collection for a regular expression.

    MongoDB builds one from each name that a stream asks for, and does not escape braces: `log{2024}` matches
    2,024 times the letter g. A stream on such a collection or database misses all its changes.
    """
    return "{" in name


def watched_as(name: str) -> Any:
    """What a change stream's `$match` compares a database's or collection's name with, to find exactly this name.

    A regular expression costs the server two to three times as much as a string, so only a misread name gets one.
    """
    return Regex(f"^{_escaped(name)}$") if is_misread(name) else name


def parse_pattern(text: object) -> NamespacePattern:
    """Read one entry of `Meta.watch`.

    Args:
        text: `"database.collection"`, or a database alone, which means the document's own collection in it.

    Raises:
        ValueError: it can't be a namespace; says why, in words that continue the entry.
    """
    if not isinstance(text, str):
        raise ValueError("is no string")  # noqa: TRY004 - one error for all that can be wrong with it
    database, dot, collection = text.partition(".")
    _check_database(database)
    if dot:
        _check_collection(collection)
    if len(text.encode()) > _MOST_BYTES:
        raise ValueError(f"is longer than {_MOST_BYTES} bytes")
    return NamespacePattern(database, collection)


def _check_database(name: str) -> None:
    if not name:
        raise ValueError("names no database")
    bad = next((character for character in name if character in _NOT_IN_A_DATABASE), None)
    if bad is not None:
        raise ValueError(f"has {bad!r} in the name of its database, which MongoDB does not allow")
    if len(name.replace("*", "").encode()) > _MOST_BYTES_OF_A_DATABASE:
        raise ValueError(f"has a database whose name is longer than {_MOST_BYTES_OF_A_DATABASE} bytes")
    if name in NOT_WATCHABLE:
        raise ValueError(f"is in the server's own database {name!r}, which has no change stream")


def _check_collection(name: str) -> None:
    if not name:
        raise ValueError("names no collection behind its dot")
    bad = next((character for character in name if character in _NOT_IN_A_COLLECTION), None)
    if bad is not None:
        raise ValueError(f"has {bad!r} in the name of its collection, which MongoDB does not allow")
    if name.startswith(".") or name.endswith("."):
        raise ValueError("has a collection whose name begins or ends with a dot, which MongoDB does not allow")
    if name.startswith(_SYSTEM):
        raise ValueError("is one of the server's own collections, which have no changes to deliver")


class Watch:
    """The namespaces of `Meta.watch`, of a document whose collection is known.

    Args:
        patterns: as parsed.
        collection: name of the document's own collection.
    """

    __slots__ = ("_known", "patterns")

    def __init__(self, patterns: Iterable[NamespacePattern] = (), collection: str = "") -> None:
        self.patterns: tuple[NamespacePattern, ...] = tuple(
            dict.fromkeys(pattern.within(collection) for pattern in patterns)
        )
        self._known: dict[tuple[str, str], bool] = {}

    def covers(self, database: str, collection: str) -> bool:
        """Whether one of them stands for this namespace. Remembered: writes ask again and again."""
        if not self.patterns:
            return False
        namespace = (database, collection)
        known = self._known.get(namespace)
        if known is None:
            if len(self._known) >= _MOST_REMEMBERED:
                self._known.clear()
            known = any(pattern.matches(database, collection) for pattern in self.patterns)
            self._known[namespace] = known
        return known
