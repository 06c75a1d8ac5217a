"""`mongoz.Document`."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import ConfigDict

from mongoz.connection import Collection
from mongoz.documents.construction import DocumentMetaclass
from mongoz.documents.meta import MetaInfo
from mongoz.documents.proxies import ProxyDescriptor
from mongoz.fields import ObjectId
from mongoz.fields.base import declare
from mongoz.model.attachments import attach, attached
from mongoz.model.dumping import Dumping
from mongoz.model.partial import not_loaded
from mongoz.model.reserved import refuse_attribute, without_stamps
from mongoz.persistence import delete as deleting
from mongoz.persistence import pickling, writes
from mongoz.persistence.bulk import insert as bulk
from mongoz.persistence.indexing import IndexOperations
from mongoz.persistence.refresh import refresh
from mongoz.persistence.rows import hydration as rows
from mongoz.persistence.target import aim
from mongoz.queries.managers import Manager, ObjectsDescriptor, QueryDescriptor, QuerySet
from mongoz.queries.query import Query
from mongoz.queries.update_operators import Change, resolve_all
from mongoz.signals import Broadcaster
from mongoz.synonyms import OF_INSTANCES

__all__ = ["Document"]


class _SignalsDescriptor:
    """Makes `signals` the same object as `meta.signals`, on the class and on instances."""

    def __get__(self, instance: Any, owner: type[Any]) -> Broadcaster:
        return owner.meta.signals  # type: ignore[no-any-return]


class _FieldsDescriptor:
    """Makes `model_fields` readable through instances as well; pydantic's own warns there."""

    def __get__(self, instance: Any, owner: type[Any]) -> dict[str, Any]:
        return owner.__pydantic_fields__  # type: ignore[no-any-return]


class Document(IndexOperations, Dumping, metaclass=DocumentMetaclass):
    """A document of a MongoDB collection: a pydantic model that knows where it lives.

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

    # What the instance remembers of the database. A slot, and not annotated: that would make it one of pydantic's
    # private attributes, which cost a third of the time that loading takes.
    __slots__ = ("_attached", "_loaded")

    model_config = ConfigDict(
        extra="allow",
        arbitrary_types_allowed=True,
        validate_assignment=True,
        populate_by_name=True,
        loc_by_alias=False,  # errors name fields
        ignored_types=(Query,),  # managers, which are no fields
    )

    id: ObjectId | None = declare(ObjectId, null=True, alias="_id")

    meta: ClassVar[MetaInfo]
    Meta: ClassVar[Any]
    objects: ClassVar[ObjectsDescriptor] = Manager()
    query: ClassVar[QueryDescriptor] = QuerySet()
    proxy_document: ClassVar[Any] = ProxyDescriptor()

    signals: ClassVar[_SignalsDescriptor] = _SignalsDescriptor()
    _mongoz = property(None, refuse_attribute)
    model_fields: ClassVar[_FieldsDescriptor] = _FieldsDescriptor()

    if TYPE_CHECKING:
        _loaded: ClassVar[rows.Loaded]  # ClassVar: else type checkers take it for a parameter of __init__

        # Never at run time: pydantic would call it for every row that is loaded.
        def __init__(self, **values: Any) -> None: ...

    if not TYPE_CHECKING:  # else type checkers would take any name for an attribute

        def __getattr__(self, name: str) -> Any:
            # Only for what the usual lookup does not find: this costs the fields nothing.
            found = attached(self)
            if name in found:
                return found[name]
            if name in type(self).__pydantic_fields__:
                raise not_loaded(self, name)
            try:
                return super().__getattr__(name)
            except AttributeError as error:
                if name not in OF_INSTANCES:
                    raise
                hint = f"Did you mean {OF_INSTANCES[name]!r}?"
                raise AttributeError(f"{error}. {hint}", name=name, obj=self) from None

    def __copy__(self) -> Self:
        copied = super().__copy__()
        object.__setattr__(copied, "_loaded", rows.loaded(self))
        attach(copied, attached(self))
        return copied

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        copied = super().__deepcopy__(memo)
        object.__setattr__(copied, "_loaded", rows.loaded(self))  # nobody changes a snapshot, so it is shared
        attach(copied, copy.deepcopy(attached(self), memo))
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        return pickling.reduced(self)

    def __getstate__(self) -> dict[Any, Any]:
        return {**super().__getstate__(), **pickling.memory_of(self)}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        pickling.give_memory(self, state)

    async def create(self, collection: Any = None, session: Any = None) -> Self:
        """Insert this instance as a new document.

        Fires `pre_save` and `post_save` with `created=True`.

        Args:
            collection: where to, if not into the document's own collection: ours or the driver's.
            session: the driver's session; None joins the transaction of the task, if it is in one.

        Returns:
            The instance, with its new id.

        Raises:
            pydantic.ValidationError: it does not fit the model (any more).
            pymongo.errors.DuplicateKeyError: its id, or a unique value, exists already.
        """
        return await writes.create(self, collection, session)

    async def save(self, collection: Any = None, session: Any = None) -> Self:
        """Write what changed since the load; without an id, create.

        Only the top-level fields that changed are written, so that another client's concurrent change to
        other fields survives. Fires `pre_save` and `post_save`.

        Args:
            collection: where to, if not to where it came from: ours or the driver's.
            session: the driver's session; None joins the transaction of the task, if it is in one.

        Raises:
            DocumentNotFound: the document is gone.
            pydantic.ValidationError: it does not fit the model (any more).
        """
        return await writes.save(self, collection, session)

    async def update(self, *operations: Change, **fields: Any) -> Self:
        """Change single fields, here and in the database, and write nothing else.

        Fires `pre_update` and `post_update`. If anything fails the instance is as it was before.

        Args:
            *operations: changes that the server computes: `U.inc(age=1)`, `U.push("tags", "new")`.
            **fields: new values; and `session`, unless the document has a field of that name.

        Raises:
            InvalidKeyError: no such field, or the id.
            DocumentNotFound: the document is gone.
            pydantic.ValidationError: a value does not fit its field, or the model; nothing is written.
            WriteConflict: others change it faster than it can be read, validated and written.

        Examples:
            >>> await user.update(U.inc(logins=1), last_seen=now)
        """
        session = None if "session" in self.meta.fields else fields.pop("session", None)
        return await writes.update(self, fields, resolve_all(self.meta.document, operations), session)

    async def delete(self, session: Any = None) -> int:
        """Delete the document; the instance keeps its values.

        Fires `pre_delete` and `post_delete`.

        Args:
            session: the driver's session; None joins the transaction of the task, if it is in one.

        Returns:
            1

        Raises:
            DocumentNotFound: it was gone already.
        """
        return await deleting.delete(self, session)

    async def refresh(self, session: Any = None) -> Self:
        """Load the document again, from where it came from; what was changed here and not saved is lost.

        Raises:
            DocumentNotFound: it is gone.
        """
        return await refresh(self, session)

    @classmethod
    async def create_many(cls, models: Iterable[Self], collection: Any = None, session: Any = None) -> list[Self]:
        """Insert many instances: in one command where no receiver is connected, else in bounded batches.

        Fires `pre_save` and `post_save` for each.

        Args:
            models: instances of this document.
            collection: where to, if not into the document's own collection: ours or the driver's.
            session: the driver's session; None joins the transaction of the task, if it is in one.

        Returns:
            The same instances in their order, with their ids.

        Raises:
            TypeError: something else than an instance of this document; nothing is written.
            ValueError: the same instance comes twice; nothing is written.
            pymongo.errors.BulkWriteError: some could not be inserted. Those with an id were.
        """
        return await bulk.create_many(cls, models, collection, session)

    @classmethod
    async def bulk_write(cls, requests: Sequence[Any], ordered: bool = True, session: Any = None) -> Any:
        """Send the driver's own requests (`InsertOne`, `UpdateMany`, ...), as they are.

        Nothing is validated and nothing fires in process; a dispatcher delivers these writes like anybody's.

        Returns:
            The driver's `BulkWriteResult`.
        """
        target = await aim(cls, None, session)
        return await target.driver.bulk_write(requests, ordered=ordered, session=target.session)

    @classmethod
    async def aggregate(cls, pipeline: Sequence[Mapping[str, Any]], session: Any = None) -> list[dict[str, Any]]:
        """Run an aggregation pipeline as it is; returns what the server answers, as dicts.

        Origin stamps are taken out of it, at whatever depth.
        """
        target = await aim(cls, None, session)
        cursor = await target.driver_seam.aggregate(target.driver, pipeline, session=target.session)
        return [without_stamps(row) async for row in cursor]

    @classmethod
    async def get_document_by_id(cls, id: Any) -> Self:
        """The document with this id.

        Args:
            id: an ObjectId or its 24 hexadecimal digits.

        Raises:
            InvalidKeyError: a string that is no ObjectId.
            DocumentNotFound: there is none.
        """
        return await cls.objects.get_document_by_id(id)

    @classmethod
    def from_row(cls, row: dict[str, Any], collection: Collection | None = None) -> Self:
        """The instance that a row of the database stands for. The row is taken over, and changed.

        Raises:
            pydantic.ValidationError: the row violates the model; names collection, `_id` and field.
        """
        return rows.hydrate(cls, row, collection)

    @classmethod
    def get_collection(cls) -> Collection:
        """Where it lives.

        Raises:
            AbstractDocumentError: the document is abstract.
            ImproperlyConfigured: it has no registry.
        """
        return cls.meta.require_collection()

    @classmethod
    def get_instance_name(cls) -> str:
        """The lowercased name of the class."""
        return cls.__name__.lower()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(id={self.__dict__.get('id')})"

    __str__ = __repr__
