"""The class methods of documents for the indexes of their collections."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from mongoz.connection import Collection
from mongoz.exceptions import InvalidKeyError, MongozException
from mongoz.model.meta import MetaInfo
from mongoz.persistence.indexing import (
    create_indexes,
    drop_index,
    index_names,
    list_indexes,
    match_indexes,
)
from mongoz.synonyms import nearest

__all__ = ["IndexOperations"]


class IndexOperations:
    """The class methods of documents for the indexes of their collections."""

    __slots__ = ()

    if TYPE_CHECKING:
        meta: ClassVar[MetaInfo]

    @classmethod
    async def create_index(cls, name: str, collection: Any = None) -> str:
        """Create one of the declared indexes.

        Args:
            name: the name of the index; the index of a field has the name of the field.
            collection: a `Collection` or the driver's collection; by default the document's own.

        Returns:
            The name.

        Raises:
            InvalidKeyError: no index of this name is declared.
            pymongo.errors.OperationFailure: the server refuses; for example, another index has this name.
        """
        target = _target(cls.meta, collection)
        index = next((index for index in cls.meta.indexes if index.name == name), None)
        if index is None:
            known = nearest(name, (index.name for index in cls.meta.indexes))
            raise InvalidKeyError(f"{cls.__name__} declares no index {name!r}.{known}")
        await create_indexes(cls.meta, [index], target)
        return index.name

    @classmethod
    async def create_indexes(cls, collection: Any = None) -> list[str]:
        """Create the indexes in `meta.indexes`; existing ones stay as they are.

        If `meta.fields[name].index` was set to False after the class was defined, the index of this field is
        created anyway. `check_indexes()` drops such an index.

        Args:
            collection: a `Collection` or the driver's collection; by default the document's own.

        Returns:
            The names of the indexes, in the order of `meta.indexes`. If none is declared, no command is sent.

        Raises:
            pymongo.errors.OperationFailure: the server refuses an index.
        """
        return await create_indexes(cls.meta, cls.meta.indexes, _target(cls.meta, collection))

    @classmethod
    async def drop_index(cls, name: str, collection: Any = None) -> str:
        """Drop an index, declared or not. A missing index is no error.

        Args:
            name: the name of the index.
            collection: a `Collection` or the driver's collection; by default the document's own.

        Returns:
            The name.
        """
        await drop_index(name, _target(cls.meta, collection))
        return name

    @classmethod
    async def drop_indexes(cls, force: bool = False, collection: Any = None) -> list[str]:
        """Drop the declared indexes that exist.

        Args:
            force: drop undeclared indexes too, except the index of `_id`.
            collection: a `Collection` or the driver's collection; by default the document's own.

        Returns:
            The names of the dropped indexes.
        """
        target = _target(cls.meta, collection)
        declared = {index.name for index in cls.meta.indexes}
        dropped = [name for name in await index_names(target) if force or name in declared]
        for name in dropped:
            await drop_index(name, target)
        return dropped

    @classmethod
    async def list_indexes(cls, collection: Any = None) -> list[dict[str, Any]]:
        """The indexes of the collection, as the server describes them: `name`, `key`, `unique`, ...

        The index of `_id` comes first. A collection that does not exist has none.

        Args:
            collection: a `Collection` or the driver's collection; by default the document's own.
        """
        return await list_indexes(_target(cls.meta, collection))

    @classmethod
    async def check_indexes(cls, force_drop: bool = False, collection: Any = None) -> None:
        """Make the indexes of the collection match the declared ones: create missing ones, drop undeclared ones.

        If `meta.fields[name].index` was set to False, the index of this field is dropped. Indexes that other
        documents of the registry declare for the same collection stay.

        Args:
            force_drop: drop and rebuild each index whose declaration has changed since the index was created. With
                False, the server refuses such a change.
            collection: a `Collection` or the driver's collection; by default the document's own.

        Raises:
            pymongo.errors.OperationFailure: the server refuses an index.
        """
        await match_indexes(cls.meta, _target(cls.meta, collection), force_drop=force_drop)

    @classmethod
    async def create_indexes_for_multiple_databases(
        cls, database_names: Sequence[str], collection: Any = None
    ) -> None:
        """Create the declared indexes in a collection, and in the collections of the same name in other databases.

        Args:
            database_names: the other databases.
            collection: a `Collection` or the driver's collection; by default the document's own.

        Raises:
            MongozException: `database_names` is no list or tuple of names.
            pymongo.errors.OperationFailure: the server refuses an index.
        """
        own = _target(cls.meta, collection)
        for target in dict.fromkeys([own, *_siblings(own, database_names)]):
            await cls.create_indexes(target)

    @classmethod
    async def drop_indexes_for_multiple_databases(
        cls, database_names: Sequence[str], collection: Any = None
    ) -> None:
        """Drop the declared indexes in other databases, from collections of the same name.

        Args:
            database_names: the databases. The document's own database is included only if it is in this list.
            collection: a `Collection` or the driver's collection, of which only the name is used; by default the
                document's own.

        Raises:
            MongozException: `database_names` is no list or tuple of names.
        """
        for target in _siblings(_target(cls.meta, collection), database_names):
            await cls.drop_indexes(collection=target)


def _target(meta: MetaInfo, collection: Any) -> Collection:
    own = meta.require_collection()
    return own if collection is None else meta.collection_for(collection)


def _siblings(own: Collection, database_names: object) -> list[Collection]:
    if not isinstance(database_names, list | tuple) or not all(isinstance(n, str) for n in database_names):
        raise MongozException(f"The databases must be a list or a tuple of names, not {database_names!r}.")
    return [own.sibling(name) for name in database_names]
