"""`mongoz.Document`."""

from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict

from mongoz.connection import Collection
from mongoz.documents.construction import DocumentMetaclass
from mongoz.documents.meta import MetaInfo
from mongoz.fields import ObjectId
from mongoz.fields.base import declare
from mongoz.persistence import rows, writes
from mongoz.queries.managers import ObjectsDescriptor, QueryDescriptor
from mongoz.signals import Broadcaster

__all__ = ["Document"]


class _SignalsDescriptor:
    """Makes `signals` the same object as `meta.signals`, on the class and on instances."""

    def __get__(self, instance: Any, owner: type[Any]) -> Broadcaster:
        return owner.meta.signals  # type: ignore[no-any-return]


class _FieldsDescriptor:
    """Makes `model_fields` readable through instances as well; pydantic's own warns there."""

    def __get__(self, instance: Any, owner: type[Any]) -> dict[str, Any]:
        return owner.__pydantic_fields__  # type: ignore[no-any-return]


class Document(BaseModel, metaclass=DocumentMetaclass):
    """A document of a MongoDB collection: a pydantic model that knows where it lives.

    Example:
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
    __slots__ = ("_loaded",)

    model_config = ConfigDict(
        extra="allow", arbitrary_types_allowed=True, validate_assignment=True, populate_by_name=True
    )

    id: ObjectId | None = declare(ObjectId, null=True, alias="_id")  # type: ignore[assignment]  # a declaration

    meta: ClassVar[MetaInfo]
    Meta: ClassVar[Any]
    objects: ClassVar[ObjectsDescriptor] = ObjectsDescriptor()
    query: ClassVar[QueryDescriptor] = QueryDescriptor()

    signals: ClassVar[_SignalsDescriptor] = _SignalsDescriptor()
    model_fields: ClassVar[_FieldsDescriptor] = _FieldsDescriptor()

    if TYPE_CHECKING:
        _loaded: ClassVar[rows.Loaded]  # ClassVar: else type checkers take it for a parameter of __init__

        # Never at run time: pydantic would call it for every row that is loaded.
        def __init__(self, **values: Any) -> None: ...

    def __copy__(self) -> Self:
        copied = super().__copy__()
        object.__setattr__(copied, "_loaded", rows.loaded(self))
        return copied

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        copied = super().__deepcopy__(memo)
        object.__setattr__(copied, "_loaded", rows.loaded(self))  # nobody changes a snapshot, so it is shared
        return copied

    async def create(self, collection: Collection | None = None) -> Self:
        """Insert this instance as a new document.

        Fires `pre_save` and `post_save` with `created=True`.

        Args:
            collection: where to, if not into the document's own collection.

        Returns:
            The instance, with its new id.

        Raises:
            pydantic.ValidationError: it does not fit the model (any more).
            pymongo.errors.DuplicateKeyError: its id, or a unique value, exists already.
        """
        return await writes.create(self, collection)

    async def save(self, collection: Collection | None = None) -> Self:
        """Write what changed since the load; without an id, create.

        Only the top-level fields that changed are written, so that another client's concurrent change to
        other fields survives. Fires `pre_save` and `post_save`.

        Raises:
            DocumentNotFound: the document is gone.
            pydantic.ValidationError: it does not fit the model (any more).
        """
        return await writes.save(self, collection)

    async def update(self, **fields: Any) -> Self:
        """Change single fields, here and in the database, and write nothing else.

        Fires `pre_update` and `post_update`. If anything fails the instance is as it was before.

        Raises:
            InvalidKeyError: no such field, or the id.
            DocumentNotFound: the document is gone.
            pydantic.ValidationError: a value does not fit its field.
        """
        return await writes.update(self, fields)

    async def delete(self) -> int:
        """Delete the document; the instance keeps its values.

        Fires `pre_delete` and `post_delete`.

        Returns:
            1

        Raises:
            DocumentNotFound: it was gone already.
        """
        return await writes.delete(self)

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
        return f"{type(self).__name__}(id={self.__dict__.get('id')!r})"

    __str__ = __repr__
