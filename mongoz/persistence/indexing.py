"""Indexes on the server: creating, dropping, listing and checking them."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Final

from pymongo.errors import OperationFailure

from mongoz.connection import Collection
from mongoz.connection.transactions import join
from mongoz.exceptions import InvalidKeyError, MongozException
from mongoz.model.indexes import Index
from mongoz.persistence.target import as_collection
from mongoz.synonyms import nearest

if TYPE_CHECKING:
    from mongoz.documents.meta import MetaInfo

__all__ = ["IndexOperations", "ensure"]

_OF_ID: Final = "_id_"  # the server's own, which can't be dropped
_NOT_THERE: Final = frozenset({26, 27})  # NamespaceNotFound, IndexNotFound
_CONFLICTS: Final = frozenset({85, 86})  # IndexOptionsConflict, IndexKeySpecsConflict
_TOO_LATE: Final = 50  # MaxTimeMSExpired

# The building of an index waits for transactions that use the collection; for that of the caller, in vain.
_PATIENCE_IN_TRANSACTIONS: Final = {"maxTimeMS": 5_000}


class IndexOperations:
    """What a document class does about the indexes of its collection."""

    __slots__ = ()

    if TYPE_CHECKING:
        meta: ClassVar[MetaInfo]

    @classmethod
    async def create_index(cls, name: str, collection: Any = None) -> str:
        """Create one of the declared indexes.

        Args:
            name: its name; that of an index which a field has is the field's.
            collection: where, if not on the document's own collection: ours or the driver's.

        Returns:
            The name.

        Raises:
            InvalidKeyError: none of that name is declared.
            pymongo.errors.OperationFailure: the server refuses, for one because there is another of that name.
        """
        target = _target(cls, collection)
        index = next((index for index in cls.meta.indexes if index.name == name), None)
        if index is None:
            known = nearest(name, (index.name for index in cls.meta.indexes))
            raise InvalidKeyError(f"{cls.__name__} declares no index {name!r}.{known}")
        await _create(cls, [index], target)
        return index.name

    @classmethod
    async def create_indexes(cls, collection: Any = None) -> list[str]:
        """Create the declared indexes; those that exist already stay as they are.

        Args:
            collection: where, if not on the document's own collection: ours or the driver's.

        Returns:
            Their names in order. Without any the server is not asked.

        Raises:
            pymongo.errors.OperationFailure: the server refuses one.
        """
        return await _create(cls, cls.meta.wanted_indexes(), _target(cls, collection))

    @classmethod
    async def drop_index(cls, name: str, collection: Any = None) -> str:
        """Drop an index, declared or not. One that is not there is no error.

        Args:
            name: its name.
            collection: from where, if not from the document's own collection: ours or the driver's.

        Returns:
            The name.
        """
        await _drop(name, _target(cls, collection))
        return name

    @classmethod
    async def drop_indexes(cls, force: bool = False, collection: Any = None) -> list[str]:
        """Drop the declared indexes, those that are there.

        Args:
            force: drop all indexes of the collection, also those that are not declared (but that of `_id`).
            collection: from where, if not from the document's own collection: ours or the driver's.

        Returns:
            The names of those that were dropped.
        """
        target = _target(cls, collection)
        declared = {index.name for index in cls.meta.indexes}
        dropped = [name for name in await _names(target) if force or name in declared]
        for name in dropped:
            await _drop(name, target)
        return dropped

    @classmethod
    async def list_indexes(cls, collection: Any = None) -> list[dict[str, Any]]:
        """The indexes that the collection has, as the server describes them: `name`, `key`, `unique`, ...

        That of `_id` comes first. A collection that does not exist has none.

        Args:
            collection: which, if not the document's own: ours or the driver's.
        """
        return await _rows(_target(cls, collection))

    @classmethod
    async def check_indexes(cls, force_drop: bool = False, collection: Any = None) -> None:
        """Make the collection's indexes those that are declared: create what is missing, drop the others.

        An index that a field had is dropped once `meta.fields[name].index` is False. Where several documents
        share a collection, `registry.document_checks()` considers them together.

        Args:
            force_drop: also drop and rebuild an index that has changed since it was created; without this the
                server refuses to change it.
            collection: which, if not the document's own: ours or the driver's.

        Raises:
            pymongo.errors.OperationFailure: the server refuses one.
        """
        await _check([cls], _target(cls, collection), force_drop)

    @classmethod
    async def _check_indexes_with(cls, others: Iterable[type["IndexOperations"]]) -> None:
        """`check_indexes` for several documents in one collection: what one declares the next must not drop."""
        await _check([cls, *others], _target(cls, None), force_drop=False)

    @classmethod
    async def create_indexes_for_multiple_databases(
        cls, database_names: Sequence[str], collection: Any = None
    ) -> None:
        """Create the declared indexes in the document's own database and in others, on collections of one name.

        Args:
            database_names: the others.
            collection: instead of the document's own collection: ours or the driver's.

        Raises:
            MongozException: no list or tuple of names.
            pymongo.errors.OperationFailure: the server refuses one.
        """
        own = _target(cls, collection)
        for target in dict.fromkeys([own, *_elsewhere(own, database_names)]):
            await cls.create_indexes(target)

    @classmethod
    async def drop_indexes_for_multiple_databases(
        cls, database_names: Sequence[str], collection: Any = None
    ) -> None:
        """Drop the declared indexes in these databases, from collections of the same name.

        Args:
            database_names: in which; the document's own only if it is among them.
            collection: whose name, instead of the document's own collection: ours or the driver's.

        Raises:
            MongozException: no list or tuple of names.
        """
        for target in _elsewhere(_target(cls, collection), database_names):
            await cls.drop_indexes(collection=target)


async def ensure(document: type[IndexOperations], target: Collection, session: Any = None) -> None:
    """Create the declared indexes unless this process did so before. Several tasks may: the server has them once.

    Never inside of a transaction: an index is built outside, before the write.
    """
    registry = target.database._registry
    if (document, target) in registry._indexed:
        return
    in_transaction = join(registry, session).session is not None
    options = _PATIENCE_IN_TRANSACTIONS if in_transaction else {}
    await _create(document, document.meta.wanted_indexes(), target, **options)
    registry._indexed.add((document, target))


def _target(document: type[IndexOperations], collection: Any) -> Collection:
    own = document.meta.require_collection()
    return own if collection is None else as_collection(document.meta.document, collection)


def _elsewhere(own: Collection, database_names: object) -> list[Collection]:
    if not isinstance(database_names, list | tuple) or not all(isinstance(n, str) for n in database_names):
        raise MongozException(f"The databases must be a list or a tuple of names, not {database_names!r}.")
    registry = own.database._registry
    return [registry.get_database(name).get_collection(own.name) for name in database_names]


async def _create(
    document: type[IndexOperations], indexes: Sequence[Index], target: Collection, **options: Any
) -> list[str]:
    if not indexes:
        return []
    models = [index.for_document(document) for index in indexes]
    with _explained(document, indexes, target):
        return list(await target._collection.create_indexes(models, **options))


async def _drop(name: str, target: Collection) -> None:
    try:
        await target._collection.drop_index(name)
    except OperationFailure as error:
        if error.code not in _NOT_THERE:
            raise


async def _rows(target: Collection) -> list[dict[str, Any]]:
    driver = target.database._registry._driver
    return [dict(row) async for row in await driver.list_indexes(target._collection)]


async def _names(target: Collection) -> list[str]:
    return [row["name"] for row in await _rows(target) if row["name"] != _OF_ID]


async def _check(documents: Sequence[type[IndexOperations]], target: Collection, force_drop: bool) -> None:
    wanted = {document: document.meta.wanted_indexes() for document in documents}
    keep = {index.name for indexes in wanted.values() for index in indexes}
    for name in await _names(target):
        if name not in keep:
            await _drop(name, target)
    for document, indexes in wanted.items():
        if force_drop:
            await _rebuild(document, indexes, target)
        else:
            await _create(document, indexes, target)


async def _rebuild(document: type[IndexOperations], indexes: Sequence[Index], target: Collection) -> None:
    for index in indexes:
        try:
            await _create(document, [index], target)
        except OperationFailure as error:
            if error.code not in _CONFLICTS:
                raise
            await _drop(index.name, target)
            await _create(document, [index], target)


@contextmanager
def _explained(document: type[IndexOperations], indexes: Sequence[Index], target: Collection) -> Iterator[None]:
    """Add to the server's refusal what it was about."""
    try:
        yield
    except OperationFailure as error:
        names = ", ".join(index.name for index in indexes)
        remedy = _remedy(document, error.code)
        error.add_note(
            f"This was about the indexes of {document.__name__} in {target.namespace}: {names}.{remedy}"
        )
        raise


def _remedy(document: type[IndexOperations], code: int | None) -> str:
    if code in _CONFLICTS:
        found: dict[Any, str] = {}
        for index in document.meta.wanted_indexes():
            keys = tuple(index.for_document(document).document["key"].items())
            if keys in found:
                return f" {found[keys]!r} and {index.name!r} have the same keys; remove one of them."
            found[keys] = index.name
        return f" An index can't be changed: {document.__name__}.check_indexes(force_drop=True) rebuilds it."
    if code == _TOO_LATE:
        return (
            " It can't be built while a transaction uses the collection; have it built before, with "
            f"{document.__name__}.create_indexes() or registry.document_checks()."
        )
    return ""
