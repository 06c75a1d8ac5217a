"""References to other documents."""

# ruff: noqa: N802 - as in mongoz.fields.factories

import pkgutil
import sys
from typing import Annotated, Any, NamedTuple, Unpack

from bson import ObjectId as BsonObjectId
from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from mongoz.exceptions import FieldDefinitionError
from mongoz.fields.arguments import Shared
from mongoz.fields.base import BaseField, declare
from mongoz.fields.object_id import ObjectId

__all__ = ["ForeignKey", "ForeignKeyField"]


def ForeignKey(refer_to: Any, *, null: bool = False, **shared: Unpack[Shared]) -> Any:
    """The ObjectId of another document; an instance of it is accepted and stands for its id.

    Type checkers take the field for Any, since an instance may be assigned where an ObjectId is read.

    Args:
        refer_to: the document's class, its dotted path (`"shop.models.Producer"`), or the name of a class of the
            same registry or module. A name is looked up when it is needed, so it may be defined later.
        null: None is a valid value, and the default.
        **shared: what all fields take, see `mongoz.fields.arguments.Shared`.

    Raises:
        FieldDefinitionError: `refer_to` is none of these.

    Examples:
        >>> class Movie(mongoz.Document):
        ...     producer: mongoz.ObjectId = mongoz.ForeignKey(Producer)
        >>> movie = await Movie.objects.create(producer=producer)
        >>> movie.producer == producer.id
        True
    """
    if not _is_document(refer_to) and not _is_dotted(refer_to):
        raise FieldDefinitionError(
            f"ForeignKey() takes a document's class, its dotted path or its name, not {refer_to!r}."
        )
    field = declare(Annotated[ObjectId, _Reference(refer_to)], kind=ForeignKeyField, null=null, **shared)
    field.refer_to = refer_to
    return field


class ForeignKeyField(BaseField):  # type: ignore[misc]  # as BaseField itself
    """What `ForeignKey` declares.

    Attributes:
        refer_to: as it was declared.
    """

    refer_to: Any = None
    _resolved: Any = None

    @property
    def to(self) -> Any:
        """The document class that it refers to, looked up when it is first asked for.

        Raises:
            FieldDefinitionError: there is no such class.
        """
        if self._resolved is None:
            self._resolved = self.refer_to if isinstance(self.refer_to, type) else self._look_up(self.refer_to)
        return self._resolved

    def bind(self, document: Any, name: str) -> None:
        """Note which class has this field, under which name; another class may mean another document by a name."""
        super().bind(document, name)
        self._resolved = None

    def _look_up(self, path: str) -> Any:
        try:
            found = pkgutil.resolve_name(path) if "." in path else self._neighbour(path)
        except (ImportError, AttributeError, ValueError) as error:
            raise self._no_document(str(error)) from error
        if not _is_document(found):
            raise self._no_document(f"that is {found!r}, and no document")
        return found

    def _neighbour(self, name: str) -> Any:
        """A class named without a path: of the registry, or else of the module that the field's class is in."""
        registry = getattr(getattr(self.document, "meta", None), "registry", None)
        if registry is not None and name in registry.documents:
            return registry.documents[name]
        module = sys.modules.get(getattr(self.document, "__module__", ""))
        if not hasattr(module, name):
            raise AttributeError("neither the registry nor the module knows this name")
        return getattr(module, name)

    def _no_document(self, reason: str) -> FieldDefinitionError:
        owner = getattr(self.document, "__name__", "a document")
        return FieldDefinitionError(
            f"{owner}.{self.name} refers to {self.refer_to!r}, which can't be found: {reason}. "
            "Give the class, its dotted path, or the name of a document of the same registry."
        )


class _Reference(NamedTuple):
    """Makes pydantic take the id of an instance."""

    refer_to: Any

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._id_of, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return handler(schema)

    def _id_of(self, value: Any) -> Any:
        if type(value) is BsonObjectId or not _is_document(type(value)):
            return value
        document = type(value).meta.document
        if not self._means(document):
            raise PydanticCustomError(
                "wrong_document",
                "Input should be a {expected} or its ObjectId, not a {given}",
                {"expected": getattr(self.refer_to, "__name__", self.refer_to), "given": document.__name__},
            )
        if value.id is None:
            raise PydanticCustomError(
                "unsaved_document", "This {given} has no id yet: save it first", {"given": document.__name__}
            )
        return value.id

    def _means(self, document: type) -> bool:
        if isinstance(self.refer_to, type):
            return issubclass(document, self.refer_to)
        # By name, since what it stands for may not be importable yet.
        name = self.refer_to.rpartition(".")[2]
        return any(cls.__name__ == name for cls in document.__mro__)


def _is_document(what: object) -> bool:
    return isinstance(what, type) and issubclass(what, BaseModel) and hasattr(what, "meta")


def _is_dotted(what: object) -> bool:
    return isinstance(what, str) and all(part.isidentifier() for part in what.split("."))
