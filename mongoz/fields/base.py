"""The class of declared fields: pydantic's FieldInfo, with the attributes of the ODM."""

import inspect
import re
from collections.abc import Callable
from types import NoneType
from typing import Annotated, Any, Final, Self, get_args, get_origin

from pydantic import Field
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, SchemaError, SchemaValidator, core_schema

from mongoz.exceptions import FieldDefinitionError
from mongoz.fields.choices import Choices
from mongoz.fields.rules import PatternRule
from mongoz.synonyms import OF_ARGUMENTS, nearest

__all__ = ["BaseField", "declare", "set_stored_alias"]

# FieldInfo ignores unknown arguments. So `declare` checks the names of all arguments before it makes a FieldInfo.
_PYDANTIC_ARGUMENTS: Final = frozenset(inspect.signature(Field).parameters) - {"extra"}

_LENGTHS: Final = frozenset({"max_length", "min_length"})

# For the hint "Did you mean ...?" only: arguments that some of the factories have, and frequent arguments of
# pydantic.
_OF_SOME_FIELDS: Final = _LENGTHS | {
    "maximum",
    "minimum",
    "multiple_of",
    "title",
    "description",
    "alias",
    "default",
}


class BaseField(FieldInfo):  # type: ignore[misc]  # FieldInfo is @final, but pydantic keeps subclasses
    """A field of a document; `Document.model_fields[name]` and `meta.fields[name]` are of this class.

    Attributes:
        name: the declared name; by default the name of the attribute.
        document: the class that has the field. For an inherited field, this is the subclass.
        null: None is a valid value.
        field_type: the Python type of a value that is not None.
        unique, index, sparse: the declared arguments about the index of the field.
        choices: the declared choices.
        labels: the choices as an object that finds the label of a value; None without choices.
        comment, owner, help_text, read_only: the declared descriptions.
        auto_now: every save and update sets the field to now.
        auto_now_add: creating the document sets the field to now.
    """

    # The __init__ of FieldInfo accepts pydantic's arguments only; other attributes are set after it.
    name: str | None = None
    document: Any = None
    null: bool = False
    field_type: Any = None
    unique: bool = False
    index: bool = False
    sparse: bool = False
    choices: tuple[Any, ...] | None = None
    labels: Choices | None = None
    comment: str | None = None
    owner: str | None = None
    help_text: str | None = None
    read_only: bool = False
    auto_now: bool = False
    auto_now_add: bool = False

    @classmethod
    def of(cls, info: FieldInfo) -> Self:
        """Convert a field of pydantic's class to this class."""
        if isinstance(info, cls):
            return info
        field = cls.__new__(cls)
        for slot in FieldInfo.__slots__:
            setattr(field, slot, getattr(info, slot))
        field.field_type = info.annotation
        field.null = info.annotation is Any or NoneType in get_args(info.annotation)
        return field

    def bind(self, document: Any, name: str) -> None:
        """Set the class and the name of this field."""
        self.document = document
        self.name = self.name or name


def set_stored_alias(field: FieldInfo, name: str, stored_name: str) -> None:
    """Give a field a stored name. Dumps and schemas still contain the name of the attribute.

    A field with another alias stays unchanged.

    Args:
        field: the field; it is changed.
        name: the name of the attribute.
        stored_name: the name in the database.
    """
    if field.alias in (None, stored_name):
        names = {"alias": stored_name, "validation_alias": stored_name, "serialization_alias": name}
        changes = {**names, "alias_priority": 2}  # so that no alias_generator replaces the names
        for key, value in changes.items():
            setattr(field, key, value)
            field._attributes_set[key] = value  # pydantic reads these when it copies a field


# Arguments that become attributes of the field.
_ATTRIBUTES: Final = frozenset({"name", "unique", "index", "sparse", "comment", "owner", "help_text", "read_only"})

_ODM_OPTIONS: Final = _ATTRIBUTES | {"null", "choices", "pattern"}

# Arguments that pydantic gets in another form, or not at all.
_TRANSLATED: Final = _ODM_OPTIONS | {"default", "alias"}


def declare(field_type: Any, *, kind: type[BaseField] = BaseField, **arguments: Any) -> Any:
    """Make a field. All factories call this.

    Args:
        field_type: the Python type of the field's values, with annotations for pydantic.
        kind: the class of the field.
        **arguments: `null`, and the arguments of `mongoz.fields.arguments.Shared` and `pydantic.Field`. An
            argument of pydantic that is None counts as left out.

    Raises:
        FieldDefinitionError: an argument is unknown, or two arguments contradict each other.
    """
    _check_names(arguments, field_type)
    choices = _choices(arguments.get("choices"))
    default = arguments.get("default", PydanticUndefined)
    null = bool(arguments.get("null")) or default is None
    if null and default is PydanticUndefined and "default_factory" not in arguments:
        default = None
    field_type, constraint = _with_pattern(field_type, arguments.get("pattern"))
    given = {key: value for key, value in arguments.items() if key not in _TRANSLATED and value is not None}
    given |= _default(default, choices) | _alias(arguments.get("alias")) | constraint
    given.setdefault("description", arguments.get("help_text"))
    if arguments.get("read_only"):
        given.setdefault("json_schema_extra", {"readOnly": True})
    # The rules are separated from the type: otherwise pydantic makes a FieldInfo instead of a `kind`.
    bare, *rules = get_args(field_type) if get_origin(field_type) is Annotated else (field_type,)
    try:
        field = kind(annotation=field_type | None if null else bare, **given)
    except (TypeError, ValueError) as error:
        raise FieldDefinitionError(f"This field can't be declared: {error}.") from error
    field.null, field.field_type = null, bare
    field.metadata = [*([] if null else rules), *field.metadata]
    if choices is not None:
        field.choices, field.labels = choices.declared, choices
        field.metadata.append(choices)  # last, so that it wraps all other rules
    for name in _ATTRIBUTES & arguments.keys():
        setattr(field, name, arguments[name])
    return field


def _check_names(arguments: dict[str, Any], field_type: Any) -> None:
    bare = _bare(field_type)
    known = (_ODM_OPTIONS | _PYDANTIC_ARGUMENTS) - (frozenset() if hasattr(bare, "__len__") else _LENGTHS)
    unknown = next((name for name, value in arguments.items() if value is not None and name not in known), None)
    if unknown:
        raise FieldDefinitionError(
            f"This field has no argument {unknown!r}."
            f"{nearest(unknown, _ODM_OPTIONS | _OF_SOME_FIELDS, OF_ARGUMENTS)}"
        )


def _bare(field_type: Any) -> Any:
    """The type without the rules in its annotation, and without type arguments: `list` for `list[int]`."""
    if get_origin(field_type) is Annotated:
        return _bare(get_args(field_type)[0])
    return get_origin(field_type) or field_type


def _choices(declared: Any) -> Choices | None:
    choices = None if declared is None else Choices(declared)
    return choices if choices and choices.pairs else None


def _default(default: Any, choices: Choices | None) -> dict[str, Any]:
    if default is PydanticUndefined:
        return {}
    if callable(default):
        _check_factory(default)
        return {"default_factory": default}
    if choices and default is not None and default not in choices:
        raise FieldDefinitionError(f"The default {default!r} is not among the choices.")
    return {"default": default}


def _check_factory(factory: Callable[[], Any]) -> None:
    try:
        signature = inspect.signature(factory)
    except ValueError:  # some built-in types have no signature
        return
    try:
        signature.bind()
    except TypeError as error:
        raise FieldDefinitionError(
            f"The default {factory!r} can't be called without arguments: {error}."
        ) from None


def _alias(alias: str | None) -> dict[str, Any]:
    return {"alias": alias, "validation_alias": alias, "serialization_alias": alias} if alias else {}


def _with_pattern(field_type: Any, pattern: str | re.Pattern[str] | None) -> tuple[Any, dict[str, Any]]:
    """Returns the type, and pydantic's constraint. Types other than strings get a rule, and no constraint."""
    if pattern is None:
        return field_type, {}
    try:
        compiled = re.compile(pattern)
    except (re.error, TypeError) as error:
        raise FieldDefinitionError(f"The pattern {pattern!r} is no regular expression: {error}.") from None
    if _bare(field_type) is not str:
        return Annotated[field_type, PatternRule(compiled)], {}
    try:
        SchemaValidator(core_schema.str_schema(pattern=pattern))
    except SchemaError:  # pydantic's own engine is faster, but supports no look-around and no back-references
        return field_type, {"pattern": compiled}
    return field_type, {"pattern": pattern}
