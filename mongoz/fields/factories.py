"""The field factories that documents are declared with.

They are functions with capitalized names: a declaration reads like the type it stands for, and editors
see the Python type of the value from the annotation beside it.
"""

import datetime
import uuid
from typing import Annotated, Any

from annotated_types import MultipleOf
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from mongoz.exceptions import FieldDefinitionError
from mongoz.fields.base import BaseField, declare
from mongoz.fields.email import EmailRule
from mongoz.fields.object_id import ObjectId

__all__ = [
    "UUID",
    "Array",
    "Boolean",
    "Date",
    "DateTime",
    "Double",
    "Email",
    "Embed",
    "Integer",
    "Object",
    "String",
    "from_object_id",
    "utc_now",
]


def utc_now() -> datetime.datetime:
    """Now in naive UTC, in whole milliseconds: what MongoDB keeps of an instant."""
    now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def _today() -> datetime.date:
    return utc_now().date()


def String(*, max_length: int | None = None, min_length: int | None = None, **shared: Any) -> Any:  # noqa: N802 - see the module
    """A `str`.

    Args:
        max_length: in characters.
        min_length: in characters.
        **shared: what all fields take, see `declare`; `pattern` as in pydantic.

    Example:
        >>> name: str = mongoz.String(max_length=100)
    """
    return declare(str, max_length=max_length, min_length=min_length, **shared)


def Email(*, max_length: int | None = None, min_length: int | None = None, **shared: Any) -> Any:  # noqa: N802
    """A `str` that is an e-mail address; arguments as for `String`.

    New values are checked in full (without asking a name server); what is loaded from the database was
    checked when it was written and is only looked at.
    """
    return declare(Annotated[str, EmailRule()], max_length=max_length, min_length=min_length, **shared)


def _number(
    type_: type,
    minimum: float | None,
    maximum: float | None,
    multiple_of: float | None,
    shared: dict[str, Any],
) -> BaseField:
    if minimum is not None and maximum is not None and minimum > maximum:
        raise FieldDefinitionError(f"minimum={minimum!r} is above maximum={maximum!r}: no value could fit.")
    annotation: Any = type_ if multiple_of is None else Annotated[type_, MultipleOf(multiple_of)]
    return declare(annotation, ge=minimum, le=maximum, **shared)


def Integer(  # noqa: N802
    *, minimum: int | None = None, maximum: int | None = None, multiple_of: int | None = None, **shared: Any
) -> Any:
    """An `int`.

    Args:
        minimum: the smallest value allowed.
        maximum: the largest value allowed.
        multiple_of: every value is a multiple of it.
        **shared: what all fields take, see `declare`.

    Raises:
        FieldDefinitionError: minimum is above maximum.
    """
    return _number(int, minimum, maximum, multiple_of, shared)


def Double(  # noqa: N802
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    multiple_of: float | None = None,
    **shared: Any,
) -> Any:
    """A `float`; arguments and errors as for `Integer`."""
    return _number(float, minimum, maximum, multiple_of, shared)


def Boolean(*, default: Any = False, **shared: Any) -> Any:  # noqa: N802
    """A `bool`; False unless something else is given."""
    if shared.get("null") and default is False:
        default = PydanticUndefined
    return declare(bool, default=default, **shared)


def _moment(type_: type, now: Any, auto_now: bool, auto_now_add: bool, shared: dict[str, Any]) -> BaseField:
    if auto_now and auto_now_add:
        raise FieldDefinitionError(
            "auto_now and auto_now_add exclude each other; auto_now sets at creation as well."
        )
    if auto_now or auto_now_add:
        shared.setdefault("default", now)
    return declare(type_, auto_now=auto_now, auto_now_add=auto_now_add, **shared)


def DateTime(*, auto_now: bool = False, auto_now_add: bool = False, **shared: Any) -> Any:  # noqa: N802
    """A `datetime`, naive UTC, stored in milliseconds.

    Args:
        auto_now: set to now by every save and update.
        auto_now_add: set to now when the document is created. An explicit value is accepted by both.
        **shared: what all fields take, see `declare`.

    Raises:
        FieldDefinitionError: both auto_now and auto_now_add.
    """
    return _moment(datetime.datetime, utc_now, auto_now, auto_now_add, shared)


def Date(*, auto_now: bool = False, auto_now_add: bool = False, **shared: Any) -> Any:  # noqa: N802
    """A `date`, stored as midnight UTC; arguments and errors as for `DateTime`."""
    return _moment(datetime.date, _today, auto_now, auto_now_add, shared)


def UUID(**shared: Any) -> Any:  # noqa: N802
    """A `uuid.UUID`, stored in the standard representation."""
    return declare(uuid.UUID, **shared)


def Object(**shared: Any) -> Any:  # noqa: N802
    """A `dict`, or any JSON-like value as it is."""
    return declare(Any, **shared)


def Array(type_of: Any, **shared: Any) -> Any:  # noqa: N802
    """A `list` whose items are of one type.

    Args:
        type_of: the type of the items: a Python type or an `EmbeddedDocument`.
        **shared: what all fields take, see `declare`.
    """
    return declare(list[type_of], **shared)


def Embed(document: Any, **shared: Any) -> Any:  # noqa: N802
    """One `EmbeddedDocument` inside the document.

    Args:
        document: its class.
        **shared: what all fields take, see `declare`.

    Raises:
        FieldDefinitionError: `document` is no EmbeddedDocument.
    """
    if not (isinstance(document, type) and issubclass(document, BaseModel) and hasattr(document, "__embedded__")):
        raise FieldDefinitionError(f"Embed() takes a subclass of mongoz.EmbeddedDocument, not {document!r}.")
    return declare(document, **shared)


def from_object_id(declaration: ObjectId) -> BaseField:
    """The field that an ObjectId assigned in a class body declares."""
    return declare(ObjectId, **declaration.field_options)
