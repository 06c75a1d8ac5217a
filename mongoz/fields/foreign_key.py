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
    """The ObjectId of another document. An instance of that document is accepted too, and its id is used.

    For type checkers the type is Any: an application may assign an instance, but always reads an ObjectId.

    Args:
        refer_to: the document's class, its dotted path (`"shop.models.Producer"`), or the name of a class in the
            same registry or module. A name is looked up at the first use, so the class may be defined later.
        null: True makes None a valid value, and the default.
        **shared: the arguments of all fields, see `mongoz.fields.arguments.Shared`.

    Raises:
        FieldDefinitionError: `refer_to` is no document class, dotted path or name.

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


class ForeignKeyField(BaseField):  # type: ignore[misc]  # for the same reason as BaseField
    """A field that `ForeignKey` declares.

    Attributes:
        refer_to: the declared document, path or name.
    """

    refer_to: Any = None
    _resolved: Any = None

    @property
    def to(self) -> Any:
        """The referenced document class, looked up at the first use.

        Raises:
            FieldDefinitionError: there is no such class.
        """
        if self._resolved is None:
            self._resolved = self.refer_to if isinstance(self.refer_to, type) else self._look_up(self.refer_to)
        return self._resolved

    def bind(self, document: Any, name: str) -> None:
        """Set the class and the name of this field.

        `refer_to` is looked up again for each class: in a subclass, the same name may mean another document.
        """
        super().bind(document, name)
        self._resolved = None

    def _look_up(self, path: str) -> Any:
        try:
            found = pkgutil.resolve_name(path) if "." in path else self._find_by_name(path)
        except (ImportError, AttributeError, ValueError) as error:
            raise self._no_document(str(error)) from error
        if not _is_document(found):
            raise self._no_document(f"it is {found!r}, which is no document")
        return found

    def _find_by_name(self, name: str) -> Any:
        """The class with this name: in the registry, or else in the module of the field's class."""
        registry = getattr(getattr(self.document, "meta", None), "registry", None)
        if registry is not None and name in registry.documents:
            return registry.documents[name]
        module = sys.modules.get(getattr(self.document, "__module__", ""))
        if not hasattr(module, name):
            raise AttributeError("neither the registry nor the module has this name")
        return getattr(module, name)

    def _no_document(self, reason: str) -> FieldDefinitionError:
        owner = getattr(self.document, "__name__", "a document")
        return FieldDefinitionError(
            f"{owner}.{self.name} refers to {self.refer_to!r}, which can't be found: {reason}. "
            "Give the class, its dotted path, or the name of a document of the same registry."
        )


class _Reference(NamedTuple):
    """The rule that makes pydantic replace an instance by its id."""

    refer_to: Any

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._id_of, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return handler(schema)

    def _id_of(self, value: Any) -> Any:
        if type(value) is BsonObjectId or not _is_document(type(value)):
            return value
        document = type(value).meta.document
        if not self._accepts(document):
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

    def _accepts(self, document: type) -> bool:
        if isinstance(self.refer_to, type):
            return issubclass(document, self.refer_to)
        # Only the name is compared, because the class may not be importable yet.
        name = self.refer_to.rpartition(".")[2]
        return any(cls.__name__ == name for cls in document.__mro__)


def _is_document(given: object) -> bool:
    return isinstance(given, type) and issubclass(given, BaseModel) and hasattr(given, "meta")


def _is_dotted(given: object) -> bool:
    return isinstance(given, str) and all(part.isidentifier() for part in given.split("."))
