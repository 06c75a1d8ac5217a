"""What a declared field is: pydantic's FieldInfo, with what the ODM knows about it on top."""

import inspect
from collections.abc import Callable
from typing import Any, Final

from pydantic import Field
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mongoz.exceptions import FieldDefinitionError, nearest

__all__ = ["BaseField", "declare"]

# FieldInfo swallows arguments it does not know, so we look before it does.
_PYDANTIC_ARGUMENTS: Final = frozenset(inspect.signature(Field).parameters) - {"extra"}


class BaseField(FieldInfo):  # type: ignore[misc]  # final for type checkers; subclasses survive in model_fields
    """A field of a document; `Document.model_fields[name]` and `meta.fields[name]` are of this class.

    Attributes:
        null: None is a valid value.
        field_type: the Python type of a value that is not None.
        comment, owner, help_text, read_only: descriptions for people, kept as they were given.
        auto_now: set by every save and update.
        auto_now_add: set when the document is created.
    """

    # Set by `declare` after construction: FieldInfo's own __init__ takes pydantic's arguments only.
    null: bool
    field_type: Any
    comment: str | None
    owner: str | None
    help_text: str | None
    read_only: bool
    auto_now: bool
    auto_now_add: bool


def declare(  # noqa: PLR0913 - the shared arguments of all fields
    field_type: Any,
    *,
    default: Any = PydanticUndefined,
    null: bool = False,
    alias: str | None = None,
    title: str | None = None,
    description: str | None = None,
    comment: str | None = None,
    owner: str | None = None,
    help_text: str | None = None,
    read_only: bool = False,
    auto_now: bool = False,
    auto_now_add: bool = False,
    **pydantic_arguments: Any,
) -> BaseField:
    """A field of `field_type`. All factories end here.

    Args:
        field_type: the Python type of its values, annotations for pydantic included.
        default: a value, or a callable without arguments that makes one.
        null: accept None, and default to it.
        alias: the name under which it is stored, where that is not the attribute's.
        title: for JSON schemas.
        description: for JSON schemas.
        comment: for people.
        owner: for people.
        help_text: for people; the description where there is none.
        read_only: for people and JSON schemas.
        auto_now: set by every save and update.
        auto_now_add: set when the document is created.
        **pydantic_arguments: what `pydantic.Field` takes.

    Raises:
        FieldDefinitionError: an argument that no field has, or a required field that can't be set.
    """
    if default is PydanticUndefined and null:
        default = None
    factory: Callable[[], Any] | None = None
    if callable(default):
        factory, default = default, PydanticUndefined
    if factory is not None:
        pydantic_arguments["default_factory"] = factory
    elif default is not PydanticUndefined:
        pydantic_arguments["default"] = default
    if alias:
        pydantic_arguments |= {"alias": alias, "validation_alias": alias, "serialization_alias": alias}
    given = {key: value for key, value in pydantic_arguments.items() if value is not None or key == "default"}
    unknown = next((key for key in given if key not in _PYDANTIC_ARGUMENTS), None)
    if unknown:
        raise FieldDefinitionError(
            f"This field has no argument {unknown!r}.{nearest(unknown, _OUR_ARGUMENTS | _OF_SOME_FIELDS)}"
        )
    annotation = field_type | None if null else field_type
    field = BaseField(annotation=annotation, title=title, description=description or help_text, **given)
    field.null, field.field_type = null, field_type
    field.comment, field.owner, field.help_text, field.read_only = comment, owner, help_text, read_only
    field.auto_now, field.auto_now_add = auto_now, auto_now_add
    return field


# For the hint only: those that a factory takes of its own, or that people use of pydantic's.
_OF_SOME_FIELDS: Final = frozenset({"maximum", "minimum", "multiple_of", "max_length", "min_length", "pattern"})

_OUR_ARGUMENTS: Final = frozenset(inspect.signature(declare).parameters) - {
    "field_type",
    "pydantic_arguments",
}
