"""The declared indexes of a document: in Meta, and by fields."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import pymongo
from pymongo import IndexModel

from mongoz.exceptions import ImproperlyConfigured, IndexError, InvalidKeyError
from mongoz.fields import BaseField
from mongoz.model.paths import resolve_path
from mongoz.model.shapes import shape_of

__all__ = ["Index", "IndexType", "indexes_in_meta", "indexes_of_fields", "merge_indexes"]


class IndexType:
    """Kinds of index keys, apart from ascending and descending."""

    GEO2D: Final = pymongo.GEO2D
    GEOSPHERE: Final = pymongo.GEOSPHERE
    HASHED: Final = pymongo.HASHED
    TEXT: Final = pymongo.TEXT


class Index(IndexModel):
    """An index of a document's collection, for `Meta.indexes`. It is a `pymongo.IndexModel` as well.

    Args:
        key: the field of an index with a single, ascending key.
        keys: all keys, as `(field, Order or IndexType)`; a name alone is ascending. Fields may be undeclared.
        name: the name on the server; by default the names of the fields, joined with "_".
        background: build the index in the background. Servers ignore this option since MongoDB 4.2.
        unique: refuse a second document with the same values.
        sparse: leave out documents that have none of the keys.
        **options: further options of `pymongo.IndexModel`, such as `expireAfterSeconds`, `collation` or
            `partialFilterExpression` (with stored names).

    Raises:
        IndexError: neither `key` nor `keys` is given, both are given, or a given key can't be a key of an index.

    Examples:
        >>> class Meta:
        ...     indexes = [
        ...         mongoz.Index("email", unique=True),
        ...         mongoz.Index(keys=[("year", mongoz.Order.DESCENDING), ("title", mongoz.IndexType.TEXT)]),
        ...     ]
    """

    def __init__(
        self,
        key: str | None = None,
        keys: Sequence[tuple[str, Any] | str] | None = None,
        name: str | None = None,
        background: bool = False,
        unique: bool = False,
        sparse: bool = False,
        **options: Any,
    ) -> None:
        self.key = key
        self.keys = _pairs(key, keys)
        self.name = name or "_".join(field for field, _ in self.keys)
        self.background, self.unique, self.sparse = background, unique, sparse
        flags = {"background": background, "unique": unique, "sparse": sparse}
        given = {flag: True for flag, value in flags.items() if value}  # the server would store a False, too
        super().__init__(self.keys, name=self.name, **given, **options)

    def for_document(self, document: Any) -> IndexModel:
        """The index for the driver, with the stored names of a document's fields."""
        options = {option: value for option, value in self.document.items() if option != "key"}
        return IndexModel([(_stored_path(document, field), kind) for field, kind in self.keys], **options)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Index):
            return NotImplemented
        return self.keys == other.keys and self.document == other.document

    def __hash__(self) -> int:
        return hash(self.name)


def _pairs(key: str | None, keys: Sequence[tuple[str, Any] | str] | None) -> list[tuple[str, Any]]:
    if (key is None) == (keys is None):
        raise IndexError(
            f"Index(key={key!r}, keys={keys!r}): an index has either one key, or a list of them; "
            "write Index('name') or Index(keys=[('name', Order.ASCENDING), ...])."
        )
    listed = [key] if keys is None else list(keys) if isinstance(keys, list | tuple) else []
    pairs = [(one, pymongo.ASCENDING) if isinstance(one, str) else one for one in listed]
    if not pairs or not all(_is_pair(pair) for pair in pairs):
        raise IndexError(
            f"Index(key={key!r}, keys={keys!r}): a key is the name of a field, and keys are a list of "
            "(field, Order or IndexType)."
        )
    return [(field, kind) for field, kind in pairs]  # type: ignore[misc]  # checked by _is_pair


def _is_pair(pair: object) -> bool:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        return False
    return isinstance(pair[0], str) and bool(pair[0]) and isinstance(pair[1], int | str)


def _stored_path(document: Any, field: str) -> str:
    try:
        return resolve_path(document, field).path
    except InvalidKeyError:  # an index may have a key that is not declared
        return field


def indexes_of_fields(
    fields: Mapping[str, Any], prefix: str = "", outer: tuple[type, ...] = ()
) -> list[tuple[Index, BaseField]]:
    """`(index, field)` for each field with `index` or `unique`, even inside of embedded documents.

    A unique field gets `field.index = True`. If an application sets it to False later, `check_indexes()` drops the
    index.

    Args:
        fields: name -> field.
        prefix: the dotted names of the enclosing fields, with a dot at the end.
        outer: the classes of the enclosing embedded documents. A class that contains itself is not entered again.
    """
    found: list[tuple[Index, BaseField]] = []
    for name, field in fields.items():
        # The server makes the index of _id itself, and allows no second one.
        if isinstance(field, BaseField) and (field.unique or field.index) and (prefix or name != "id"):
            field.index = True
            found.append((Index(f"{prefix}{name}", unique=field.unique, sparse=field.sparse), field))
        for model in shape_of(field.annotation).models:
            if model not in outer:
                found += indexes_of_fields(model.model_fields, f"{prefix}{name}.", (*outer, model))
    return found


def indexes_in_meta(document_name: str, option: object) -> list[Index]:
    """A copy of `Meta.indexes`.

    Raises:
        ImproperlyConfigured: `option` is no list or tuple.
        ValueError: an item is no Index.
    """
    if not isinstance(option, list | tuple):
        raise ImproperlyConfigured(
            f"Meta.indexes of {document_name} must be a list or a tuple of mongoz.Index, not {option!r}."
        )
    wrong = [item for item in option if not isinstance(item, Index)]
    if wrong:
        raise ValueError(f"Meta.indexes of {document_name} must contain mongoz.Index only, not {wrong[0]!r}.")
    return list(option)


def merge_indexes(document_name: str, own: Iterable[Index], inherited: Iterable[Index]) -> list[Index]:
    """All indexes of a document, its own first; an index that is inherited twice is listed once.

    Raises:
        IndexError: two different indexes have the same name, or the document itself lists a name twice.
    """
    found: dict[str, Index] = {}
    for index in own:
        if index.name in found:
            raise _same_name(document_name, index, found[index.name])
        found[index.name] = index
    for index in inherited:
        if found.setdefault(index.name, index) != index:
            raise _same_name(document_name, index, found[index.name])
    return list(found.values())


def _same_name(document_name: str, one: Index, other: Index) -> IndexError:
    return IndexError(
        f"{document_name} has two indexes named {one.name!r}: {other!r} and {one!r} (a field with index=True or "
        "unique=True has an index with the name of the field). Remove one index, or rename it with name=."
    )
