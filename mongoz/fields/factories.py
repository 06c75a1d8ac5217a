"""The factories of fields, for declarations in documents.

They are functions with capitalized names, so that a declaration reads like a type. For type checkers they return
the Python type of the value, so `name: str = String()` and `name = String()` are both correct. With `null=True`
they return Any, which fits every annotation.
"""

# ruff: noqa: N802 - see above

import decimal
import inspect
import uuid
from typing import Annotated, Any, Literal, TypeVar, Unpack, overload

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from mongoz.exceptions import FieldDefinitionError
from mongoz.fields.arguments import Lengths, Shared
from mongoz.fields.base import BaseField, declare
from mongoz.fields.decimals import DecimalRule
from mongoz.fields.email import EmailRule
from mongoz.fields.object_id import ObjectId
from mongoz.fields.rules import BytesRule, NotNone

__all__ = [
    "UUID",
    "Array",
    "ArrayList",
    "Binary",
    "Boolean",
    "Email",
    "Embed",
    "NullableObjectId",
    "Object",
    "String",
    "from_object_id",
]

T = TypeVar("T")


@overload
def String(*, null: Literal[True], **arguments: Unpack[Lengths]) -> Any: ...
@overload
def String(*, null: bool = False, **arguments: Unpack[Lengths]) -> str: ...
def String(*, max_length: int | None = None, min_length: int | None = None, **shared: Any) -> Any:
    """A `str`.

    Args:
        max_length: the largest number of characters.
        min_length: the smallest number of characters.
        **shared: the arguments of all fields, see `mongoz.fields.arguments.Shared`.

    Raises:
        FieldDefinitionError: arguments contradict each other.

    Examples:
        >>> name: str = mongoz.String(max_length=100)
    """
    return _text(str, max_length, min_length, shared)


@overload
def Email(*, null: Literal[True], **arguments: Unpack[Lengths]) -> Any: ...
@overload
def Email(*, null: bool = False, **arguments: Unpack[Lengths]) -> str: ...
def Email(*, max_length: int | None = None, min_length: int | None = None, **shared: Any) -> Any:
    """A `str` that is an e-mail address; arguments and errors as for `String`.

    New values are validated in full (without asking a name server). For loaded values an @-sign is enough,
    because the ODM validates values in full when it writes them.
    """
    return _text(Annotated[str, EmailRule()], max_length, min_length, shared)


def _text(type_: Any, max_length: int | None, min_length: int | None, shared: dict[str, Any]) -> Any:
    for name, length in (("max_length", max_length), ("min_length", min_length)):
        _check_length(name, length)
    if max_length is not None and min_length is not None and min_length > max_length:
        raise FieldDefinitionError(f"{min_length=} is above {max_length=}: no value could fit.")
    return declare(type_, max_length=max_length, min_length=min_length, **shared)


def _check_length(name: str, length: object) -> None:
    if length is not None and (not isinstance(length, int) or isinstance(length, bool) or length < 0):
        raise FieldDefinitionError(f"{name}={length!r}: a length must be an int of at least 0.")


@overload
def Boolean(*, null: Literal[True], **arguments: Unpack[Shared]) -> Any: ...
@overload
def Boolean(*, null: bool = False, **arguments: Unpack[Shared]) -> bool: ...
def Boolean(*, default: Any = PydanticUndefined, **shared: Any) -> Any:
    """A `bool`. The default is False; with `null=True` it is None."""
    if default is PydanticUndefined and not shared.get("null") and "default_factory" not in shared:
        default = False
    return declare(bool, default=default, **shared)


@overload
def UUID(*, null: Literal[True], **arguments: Unpack[Shared]) -> Any: ...
@overload
def UUID(*, null: bool = False, **arguments: Unpack[Shared]) -> uuid.UUID: ...
def UUID(**shared: Any) -> Any:
    """A `uuid.UUID`, stored in the standard representation."""
    return declare(uuid.UUID, **shared)


@overload
def Binary(*, max_length: int, null: Literal[True], **arguments: Unpack[Shared]) -> Any: ...
@overload
def Binary(*, max_length: int, null: bool = False, **arguments: Unpack[Shared]) -> bytes: ...
def Binary(*, max_length: int | None = None, **shared: Any) -> Any:
    """`bytes`; base64 in JSON.

    Args:
        max_length: the largest number of bytes; mandatory.
        **shared: the arguments of all fields, see `mongoz.fields.arguments.Shared`.

    Raises:
        FieldDefinitionError: `max_length` is missing.
    """
    if max_length is None:
        raise FieldDefinitionError("Binary() needs max_length=, the largest number of bytes.")
    _check_length("max_length", max_length)
    return declare(Annotated[bytes, BytesRule()], max_length=max_length, **shared)


def NullableObjectId(**shared: Unpack[Shared]) -> Any:
    """An `ObjectId` or None. The default is None."""
    arguments: dict[str, Any] = {**shared, "null": True}
    return declare(ObjectId, **arguments)


def Object(*, null: bool = False, **shared: Unpack[Shared]) -> Any:
    """A `dict`, or any other JSON-like value, including a string."""
    return declare(Any if null else Annotated[Any, NotNone()], null=null, **shared)


@overload
def Array(type_of: Any, *, null: Literal[True], **arguments: Unpack[Lengths]) -> Any: ...
@overload
def Array(type_of: type[T], *, null: bool = False, **arguments: Unpack[Lengths]) -> list[T]: ...
@overload
def Array(type_of: Any, *, null: bool = False, **arguments: Unpack[Lengths]) -> list[Any]: ...
def Array(type_of: Any, **shared: Any) -> Any:
    """A `list` with items of one type.

    Args:
        type_of: the type of the items: a Python type or an `EmbeddedDocument`.
        **shared: the arguments of all fields, see `mongoz.fields.arguments.Shared`.

    Raises:
        FieldDefinitionError: `type_of` is a field, not a type.
    """
    if isinstance(type_of, BaseField) or inspect.isfunction(type_of):
        raise FieldDefinitionError(
            f"Array() takes the Python type of its items, as in Array(str), not {type_of!r}."
        )
    if type_of is decimal.Decimal:
        type_of = Annotated[decimal.Decimal, DecimalRule()]
    return declare(list[type_of], **shared)


@overload
def ArrayList(*, null: Literal[True], **arguments: Unpack[Lengths]) -> Any: ...
@overload
def ArrayList(*, null: bool = False, **arguments: Unpack[Lengths]) -> list[Any]: ...
def ArrayList(**shared: Any) -> Any:
    """A `list` of anything, lists included."""
    return declare(list[Any], **shared)


@overload
def Embed(document: type[T], *, null: Literal[True], **arguments: Unpack[Shared]) -> Any: ...
@overload
def Embed(document: type[T], *, null: bool = False, **arguments: Unpack[Shared]) -> T: ...
def Embed(document: Any, **shared: Any) -> Any:
    """One `EmbeddedDocument` inside of the document.

    Args:
        document: the class of the embedded document.
        **shared: the arguments of all fields, see `mongoz.fields.arguments.Shared`.

    Raises:
        FieldDefinitionError: `document` is no EmbeddedDocument.
    """
    if not (isinstance(document, type) and issubclass(document, BaseModel) and hasattr(document, "__embedded__")):
        raise FieldDefinitionError(f"Embed() takes a subclass of mongoz.EmbeddedDocument, not {document!r}.")
    return declare(document, **shared)


def from_object_id(declaration: ObjectId) -> Any:
    """The field for an ObjectId that is assigned in a class body."""
    return declare(ObjectId, **declaration.field_options)
