"""Creates, drops and lists indexes on the server."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from pymongo.errors import OperationFailure

from mongoz.connection import Collection
from mongoz.connection.transactions import join_transaction
from mongoz.model.indexes import Index
from mongoz.model.meta import MetaInfo

__all__ = ["create_indexes", "drop_index", "ensure_indexes", "index_names", "list_indexes", "match_indexes"]

_INDEX_OF_ID: Final = "_id_"  # the server made it, and it can't be dropped
_NOT_FOUND: Final = frozenset({26, 27})  # NamespaceNotFound, IndexNotFound
_CONFLICTS: Final = frozenset({85, 86})  # IndexOptionsConflict, IndexKeySpecsConflict
_TIMED_OUT: Final = 50  # MaxTimeMSExpired

# The server builds an index after the end of all transactions that use the collection. Without a time limit, a
# caller inside of such a transaction would wait for ever.
_TIMEOUT_IN_TRANSACTION: Final = {"maxTimeMS": 5_000}


async def ensure_indexes(meta: MetaInfo, target: Collection, session: Any = None) -> None:
    """Create the declared indexes in a collection, unless this process did so before.

    The indexes are built outside of transactions, before the write.

    Args:
        meta: the meta of the document.
        target: the collection that is written next.
        session: the session of the write, if the caller gave one.

    Raises:
        pymongo.errors.OperationFailure: the server refuses an index.
    """
    deployment = target.database.deployment
    key = (meta.document, target.database.name, target.name)
    if key in deployment.indexed:  # two tasks may both go on: the server makes each index only once
        return
    in_transaction = join_transaction(deployment, session).session is not None
    options = _TIMEOUT_IN_TRANSACTION if in_transaction else {}
    await create_indexes(meta, meta.wanted_indexes(), target, **options)
    deployment.indexed.add(key)


async def create_indexes(
    meta: MetaInfo, indexes: Sequence[Index], target: Collection, **options: Any
) -> list[str]:
    """Create indexes of a document; returns their names.

    Raises:
        pymongo.errors.OperationFailure: the server refuses an index; a note names the indexes and the remedy.
    """
    if not indexes:
        return []
    models = [index.for_document(meta.document) for index in indexes]
    with _explained(meta, indexes, target):
        return list(await target.driver_collection.create_indexes(models, **options))


async def drop_index(name: str, target: Collection) -> None:
    """Drop an index, if it exists."""
    try:
        await target.driver_collection.drop_index(name)
    except OperationFailure as error:
        if error.code not in _NOT_FOUND:
            raise


async def list_indexes(target: Collection) -> list[dict[str, Any]]:
    """The indexes of a collection, as the server describes them."""
    adapter = target.database.deployment.adapter
    return [dict(row) async for row in await adapter.list_indexes(target.driver_collection)]


async def index_names(target: Collection) -> list[str]:
    """The names of the indexes of a collection, without the index of `_id`."""
    return [row["name"] for row in await list_indexes(target) if row["name"] != _INDEX_OF_ID]


async def match_indexes(meta: MetaInfo, target: Collection, *, force_drop: bool) -> None:
    """Make the indexes of a collection match the declared ones; see `Document.check_indexes`."""
    wanted = meta.wanted_indexes()
    keep = {index.name for index in [*wanted, *_indexes_of_neighbours(meta, target)]}
    for name in await index_names(target):
        if name not in keep:
            await drop_index(name, target)
    if force_drop:
        await _rebuild(meta, wanted, target)
    else:
        await create_indexes(meta, wanted, target)


def _indexes_of_neighbours(meta: MetaInfo, target: Collection) -> list[Index]:
    """The indexes that other documents of the registry declare for the same collection.

    A class that is defined again, in a notebook for example, replaces the earlier one.
    """
    documents: tuple[Any, ...] = () if meta.registry is None else meta.registry.all_documents
    latest = {(document.__module__, document.__qualname__): document for document in documents}
    latest.pop((meta.document.__module__, meta.document.__qualname__), None)
    return [
        index
        for document in latest.values()
        if document.meta.collection in (meta.collection, target)
        for index in document.meta.wanted_indexes()
    ]


async def _rebuild(meta: MetaInfo, indexes: Sequence[Index], target: Collection) -> None:
    for index in indexes:
        try:
            await create_indexes(meta, [index], target)
        except OperationFailure as error:
            if error.code not in _CONFLICTS:
                raise
            await drop_index(index.name, target)
            await create_indexes(meta, [index], target)


@contextmanager
def _explained(meta: MetaInfo, indexes: Sequence[Index], target: Collection) -> Iterator[None]:
    """Add the indexes and the remedy to an error of the server."""
    try:
        yield
    except OperationFailure as error:
        names = ", ".join(index.name for index in indexes)
        remedy = _remedy(meta, error.code)
        error.add_note(
            f"The indexes of {meta.document.__name__} in {target.namespace} could not be created: {names}.{remedy}"
        )
        raise


def _remedy(meta: MetaInfo, code: int | None) -> str:
    document = meta.document
    if code in _CONFLICTS:
        found: dict[Any, str] = {}
        for index in meta.wanted_indexes():
            keys = tuple(index.for_document(document).document["key"].items())
            if keys in found:
                return f" {found[keys]!r} and {index.name!r} have the same keys; remove one of them."
            found[keys] = index.name
        return f" An index can't be changed: {document.__name__}.check_indexes(force_drop=True) rebuilds it."
    if code == _TIMED_OUT:
        return (
            " An index can't be built while a transaction uses the collection; before the transaction, call "
            f"{document.__name__}.create_indexes() or registry.document_checks()."
        )
    return ""
