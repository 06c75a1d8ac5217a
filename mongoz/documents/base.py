"""`mongoz.Document`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import ConfigDict

from mongoz.connection import Collection
from mongoz.documents.index_operations import IndexOperations
from mongoz.documents.metaclass import DocumentMetaclass
from mongoz.model.base import Model
from mongoz.model.reserved import without_stamps
from mongoz.persistence.bulk.insert import insert_many
from mongoz.persistence.delete import delete_instance
from mongoz.persistence.insert import insert_instance
from mongoz.persistence.refresh import refresh_instance
from mongoz.persistence.rows.hydration import hydrate
from mongoz.persistence.save import save_instance
from mongoz.persistence.target import resolve_target
from mongoz.persistence.update import update_instance
from mongoz.queries.managers import Manager, ObjectsDescriptor, QueryDescriptor, QuerySet
from mongoz.queries.query import Query
from mongoz.queries.update_operators import UpdateOperator, resolve_update

__all__ = ["Document"]


class Document(IndexOperations, Model, metaclass=DocumentMetaclass):
    """A document of a MongoDB collection: a pydantic model that can be read and written.

    Examples:
        >>> class User(mongoz.Document):
        ...     name: str = mongoz.String(max_length=100)
        ...     email: str = mongoz.Email()
        ...
        ...     class Meta:
        ...         registry = registry
        ...         database = "shop"
        >>> user = await User.objects.create(name="Ada", email="ada@example.org")
        >>> await user.update(name="Ada Lovelace")
    """

    __slots__ = ()

    model_config = ConfigDict(ignored_types=(Query,))  # managers are no fields

    objects: ClassVar[ObjectsDescriptor] = Manager()
    query: ClassVar[QueryDescriptor] = QuerySet()

    if TYPE_CHECKING:
        # For type checkers only: at run time pydantic would call it for every loaded row.
        def __init__(self, **values: Any) -> None: ...

    async def create(self, collection: Any = None, session: Any = None) -> Self:
        """Insert this instance as a new document.

        Fires `pre_save` and `post_save` with `created=True`.

        Args:
            collection: a `Collection` or the driver's collection; by default the document's own.
            session: the driver's session; None joins the transaction of the task, if it is in one.

        Returns:
            The instance, with its new id.

        Raises:
            pydantic.ValidationError: the instance does not fit the model.
            pymongo.errors.DuplicateKeyError: the id or a unique value of the instance exists already.
        """
        return await insert_instance(self, collection, session)

    async def save(self, collection: Any = None, session: Any = None) -> Self:
        """Write the changes since the instance was loaded or last saved. An instance without an id is inserted.

        Writes only the top-level fields that changed, so that a concurrent change of other fields survives. Fires
        `pre_save` and `post_save`.

        Args:
            collection: a `Collection` or the driver's collection; by default the collection of the instance.
            session: the driver's session; None joins the transaction of the task, if it is in one.

        Raises:
            DocumentNotFound: the document does not exist any more.
            pydantic.ValidationError: the instance does not fit the model.
        """
        return await save_instance(self, collection, session)

    async def update(self, *operations: UpdateOperator, **fields: Any) -> Self:
        """Change some fields, on the instance and in the database, and write nothing else.

        Fires `pre_update` and `post_update`. If anything fails, the instance keeps its old values.

        Args:
            *operations: changes that the server computes: `U.inc(age=1)`, `U.push("tags", "new")`.
            **fields: new values, even of a part of a field: `**{"address.city": "Lyon"}`. `session` is the
                driver's session, unless the document has a field of that name.

        Raises:
            InvalidKeyError: a field does not exist or is the id, or two changes overlap.
            DocumentNotFound: the document does not exist any more.
            pydantic.ValidationError: a value does not fit its field, or the model; nothing is written.
            WriteConflict: other clients change the document faster than it can be read, validated and written.

        Examples:
            >>> await user.update(U.inc(logins=1), last_seen=now)
        """
        session = None if "session" in self.meta.fields else fields.pop("session", None)
        values, resolved = resolve_update(self.meta.document, operations, fields)
        return await update_instance(self, values, resolved, session)

    async def delete(self, session: Any = None) -> int:
        """Delete the document; the instance keeps its values.

        Fires `pre_delete` and `post_delete`.

        Args:
            session: the driver's session; None joins the transaction of the task, if it is in one.

        Returns:
            Always 1.

        Raises:
            DocumentNotFound: the document does not exist any more.
        """
        return await delete_instance(self, session)

    async def refresh(self, session: Any = None) -> Self:
        """Load the document again from its collection. Unsaved changes of the instance are lost.

        Raises:
            DocumentNotFound: the document does not exist any more.
        """
        return await refresh_instance(self, session)

    @classmethod
    async def create_many(cls, models: Iterable[Self], collection: Any = None, session: Any = None) -> list[Self]:
        """Insert many instances, in one command or in batches.

        One command is enough if no receiver of this process runs and no stamp is needed. Fires `pre_save` and
        `post_save` for each instance.

        Args:
            models: instances of this document.
            collection: a `Collection` or the driver's collection; by default the document's own.
            session: the driver's session; None joins the transaction of the task, if it is in one.

        Returns:
            The same instances in their order, with their ids.

        Raises:
            TypeError: an item is no instance of this document; nothing is written.
            ValueError: an instance is listed twice; nothing is written.
            pymongo.errors.BulkWriteError: the server refused an instance. The instances before the refused
                instance were inserted, except in a transaction. The instances after it were not.
        """
        return await insert_many(cls, models, collection, session)

    @classmethod
    async def bulk_write(cls, requests: Sequence[Any], ordered: bool = True, session: Any = None) -> Any:
        """Send the driver's own requests (`InsertOne`, `UpdateMany`, ...) unchanged.

        Nothing is validated and no signal fires in process; a dispatcher delivers these writes like all others.

        Returns:
            The driver's `BulkWriteResult`.
        """
        target = await resolve_target(cls, None, session)
        return await target.driver_collection.bulk_write(requests, ordered=ordered, session=target.session)

    @classmethod
    async def aggregate(cls, pipeline: Sequence[Mapping[str, Any]], session: Any = None) -> list[dict[str, Any]]:
        """Run an aggregation pipeline unchanged; returns the rows as dicts.

        Origin stamps are removed, at any depth.
        """
        target = await resolve_target(cls, None, session)
        cursor = await target.adapter.aggregate(target.driver_collection, pipeline, session=target.session)
        return [without_stamps(row) async for row in cursor]

    @classmethod
    async def get_document_by_id(cls, id: Any) -> Self:
        """The document with this id.

        Args:
            id: an ObjectId or its 24 hexadecimal digits. If the ids of the document have another type, a value of
                this type.

        Raises:
            InvalidKeyError: the ids of the document are ObjectIds, and `id` is neither an ObjectId nor 24 digits.
            DocumentNotFound: there is no such document.
        """
        return await cls.objects.get_document_by_id(id)

    @classmethod
    def from_row(cls, row: dict[str, Any], collection: Collection | None = None) -> Self:
        """Make an instance from a row of the database.

        The origin stamp is removed from the row, and the instance keeps the row: don't change the row afterwards.

        Raises:
            pydantic.ValidationError: the row violates the model. The message has the collection, `_id` and field.
        """
        return hydrate(cls, row, collection)

    @classmethod
    def get_collection(cls) -> Collection:
        """The document's own collection.

        Raises:
            AbstractDocumentError: the document is abstract.
            ImproperlyConfigured: the document has no registry.
        """
        return cls.meta.require_collection()
