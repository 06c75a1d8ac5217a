"""Places in documents: the type and the rules of the value at a stored, dotted path."""

import dataclasses
import datetime
import decimal
import types
from collections import abc, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from functools import cached_property, lru_cache, partial
from typing import Annotated, Any, Final, NotRequired, Required, Union, get_args, get_origin, get_type_hints

import annotated_types
from pydantic import BaseModel, ConfigDict, Strict, TypeAdapter, ValidationError, create_model
from pydantic_core import InitErrorDetails, PydanticCustomError
from typing_extensions import is_typeddict

from mongoz.exceptions import InvalidKeyError
from mongoz.fields.class_cache import cached_per_class
from mongoz.fields.decimals import DecimalRule
from mongoz.fields.rules import NotNone
from mongoz.fields.storability import is_open, resolve_alias
from mongoz.fields.storage import SCALARS, stored, stored_names, stored_values
from mongoz.fields.stored_schema import from_stored, validator_of
from mongoz.persistence.operations.operation import ALL_ITEMS
from mongoz.persistence.rows.invariants import has_invariants, has_validator_of
from mongoz.persistence.rows.validation import validate_values

__all__ = ["FieldPlace", "is_model", "kinds_of", "place_at", "rules_of"]

_LISTS: Final = (list, tuple, set, frozenset, deque, abc.Sequence, abc.MutableSequence)
_MAPPINGS: Final = (dict, abc.Mapping, abc.MutableMapping)
_SCALARS: Final[tuple[Any, ...]] = (*SCALARS, Enum, decimal.Decimal, datetime.timedelta)


@dataclasses.dataclass(frozen=True)
class FieldPlace:
    """A place in a document.

    Attributes:
        document: the class.
        names: the steps of the path, with the attribute names of the models instead of stored names.
        annotation: the type of the value, with its rules.
        model: the innermost model, whose settings apply.
        attribute: the attribute of that model, if the value is one of its fields; else None.
        is_required: the model requires a value at this place.
        is_checked: `annotation` does not contain all rules for the value. Other rules come from a validator
            method, or from a list, mapping or embedded document around the value.
        is_item: the place is in a list.
        incomplete: stored paths of the enclosing embedded documents that require fields outside of this path. If
            such a document does not exist, an operator would create it without these fields.
        nullable: stored paths of the enclosing values that can be None. Nothing can be changed inside of None.
    """

    document: Any
    names: tuple[str, ...]
    annotation: Any
    model: Any
    attribute: str | None = None
    is_required: bool = False
    is_checked: bool = False
    is_item: bool = False
    incomplete: tuple[str, ...] = ()
    nullable: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ".".join((self.document.__name__, *self.names))

    def validated(self, value: Any) -> Any:
        """The value, validated by the model.

        Raises:
            pydantic.ValidationError: the value does not fit.
        """
        if len(self.names) == 1:
            return validate_values(self.document, {self.names[0]: value})[self.names[0]]
        try:
            if self._has_validator:  # it may change the value
                blank = self.model.model_construct()
                self.model.__pydantic_validator__.validate_assignment(blank, self.attribute, value)
                return blank.__dict__[self.attribute]
            if self.annotation is Any:
                return value
            return self._validated_alone(value)
        except ValidationError as error:
            lines = [
                InitErrorDetails(
                    type=PydanticCustomError(line["type"], line["msg"]),
                    loc=(*self.names, *line["loc"][1:]),
                    input=line["input"],
                )
                for line in error.errors(include_url=False)
            ]
            raise ValidationError.from_exception_data(self.document.__name__, lines) from None

    def validated_items(self, items: list[Any]) -> Any:
        """Items for the list, validated by the model.

        Rules about the whole list, its length for example, are checked on the resulting list instead.

        Raises:
            pydantic.ValidationError: an item does not fit.
        """
        try:
            return self.validated(items)
        except ValidationError:
            kinds = tuple(kinds_of(self.annotation))
            alone = dataclasses.replace(self, annotation=Union[kinds])  # noqa: UP007 - a tuple
            try:
                return alone._validated_alone(items)
            except ValidationError:
                pass
            raise

    def stored(self, value: Any) -> Any:
        """The stored form of the value at this place."""
        if len(self.names) == 1:
            return stored_values(self.document, {self.names[0]: value}).popitem()[1]
        return stored(value, declared=not is_open(self.annotation))

    @cached_property
    def _has_validator(self) -> bool:
        """Whether a method of the model validates the value, and needs no other fields."""
        return (
            self.attribute is not None
            and has_validator_of(self.model, self.attribute)
            and not (has_invariants(self.model) or self.model.model_config.get("frozen"))
        )

    def _validated_alone(self, value: Any) -> Any:
        name = self.attribute or "value"
        return getattr(self._value_model.__pydantic_validator__.validate_python({name: value}), name)

    @cached_property
    def _value_model(self) -> Any:
        """A model whose only field is this value."""
        config: Any = {name: value for name, value in self.model.model_config.items() if name in _SETTINGS}
        fields: Any = {self.attribute or "value": (self.annotation, ...)}  # errors may name the field
        return create_model("Alone", __config__=config, **fields)


_SETTINGS: Final = {
    "arbitrary_types_allowed", "strict", "str_strip_whitespace", "str_to_lower", "str_to_upper", "str_min_length",
    "str_max_length", "allow_inf_nan", "coerce_numbers_to_str", "use_enum_values", "regex_engine",
}  # fmt: skip


def place_at(document: Any, path: str) -> FieldPlace:
    """The place at a path.

    Args:
        document: the class.
        path: stored names, indexes of lists and keys of mappings, with dots between them.

    Raises:
        InvalidKeyError: the document can't have a value at this path.
    """
    return _places(document)(path)


@cached_per_class
def _places(document: Any) -> Callable[[str], FieldPlace]:
    return lru_cache(maxsize=1024)(partial(_find_place, document))


def _find_place(document: Any, path: str) -> FieldPlace:
    places = [FieldPlace(document, (), document, document)]
    steps = path.split(".")
    for number, step in enumerate(steps):
        before = ".".join(steps[:number])
        inner_places = [inner for place in places for inner in _next_places(place, step, before)]
        if not inner_places:
            raise InvalidKeyError(f"{places[0]} can't have {step!r} inside of it, so {path!r} can't be updated.")
        places = inner_places
    annotations = [place.annotation for place in places]
    return dataclasses.replace(
        places[0],
        annotation=Any if Any in annotations else Union[tuple(annotations)],  # noqa: UP007 - a tuple
        is_required=all(place.is_required for place in places),
        is_checked=any(place.is_checked for place in places),
        is_item=any(place.is_item for place in places),
        incomplete=tuple({path: None for place in places for path in place.incomplete}),
        nullable=tuple({path: None for place in places for path in place.nullable}),
    )


def _next_places(place: FieldPlace, step: str, before: str) -> Iterator[FieldPlace]:
    """The places after the next step.

    Args:
        place: the place so far.
        step: the next step.
        before: the path so far.
    """
    checked = place.is_checked or bool(before and rules_of(place.annotation))
    kinds = kinds_of(place.annotation)
    if before and {types.NoneType, None, Any} & set(kinds):
        place = dataclasses.replace(place, nullable=(*place.nullable, before))
    for kind in kinds:
        origin = get_origin(kind) or kind
        reached = partial(
            dataclasses.replace, place, names=(*place.names, step), attribute=None, is_required=False
        )
        if kind in (Any, object):
            yield reached(annotation=Any, is_checked=checked)
        elif is_model(kind):
            inner = _field(place, kind, step, checked or bool(before and has_invariants(kind)))
            others = [name for name, field in kind.model_fields.items() if field.is_required()]
            needs_others = bool(before and set(others) - {inner.names[-1]})
            yield dataclasses.replace(inner, incomplete=(*place.incomplete, before)) if needs_others else inner
        elif origin in _MAPPINGS:
            keys, values = get_args(kind) or (Any, Any)
            if step != ALL_ITEMS and _is_key(keys, step):
                yield reached(annotation=values, is_checked=checked)
        elif origin in _LISTS and (step == ALL_ITEMS or step.isdecimal()):
            for item in _items(kind, step):
                yield reached(annotation=item, is_checked=checked, is_item=True)
        elif is_typeddict(origin) or dataclasses.is_dataclass(origin):
            hints = get_type_hints(origin, include_extras=True)
            yield reached(annotation=_without_qualifier(hints.get(step, Any)), is_checked=checked)
        elif not (isinstance(origin, type) and issubclass(origin, _SCALARS)):
            yield reached(annotation=Any, is_checked=checked)


def _field(place: FieldPlace, model: Any, alias: str, checked: bool) -> FieldPlace:
    name = next((name for name, stored_as in stored_names(model).items() if stored_as == alias), None)
    names = (*place.names, name or alias)
    if name is None:
        return dataclasses.replace(
            place, names=names, annotation=Any, model=model, attribute=None, is_checked=checked
        )
    field = model.model_fields[name]
    annotation = field.annotation
    for rule in field.metadata:
        annotation = Annotated[annotation, rule]
    return dataclasses.replace(
        place,
        names=names,
        annotation=annotation,
        model=model,
        attribute=name,
        is_required=field.is_required(),
        is_checked=checked or has_validator_of(model, name),
    )


def _without_qualifier(hint: Any) -> Any:
    """The type of a typed dict's key, without `Required[...]` or `NotRequired[...]` around it."""
    return get_args(hint)[0] if get_origin(hint) in (Required, NotRequired) else hint


def _is_key(keys: Any, step: str) -> bool:
    """Whether a mapping can have a key with this stored form."""
    if keys in (Any, str):
        return True
    adapter = TypeAdapter(dict[keys, Any], config=ConfigDict(arbitrary_types_allowed=True))
    try:
        validator_of(from_stored(adapter.core_schema)).validate_python({step: None})
    except ValidationError:
        return False
    return True


def _items(kind: Any, step: str) -> Sequence[Any]:
    """The types of a list's item at an index, or of all items. Empty if the list can't have an item there."""
    arguments = get_args(kind)
    if get_origin(kind) is tuple and Ellipsis not in arguments:
        return arguments if step == ALL_ITEMS else arguments[int(step) : int(step) + 1]
    return arguments[:1] or (Any,)


def is_model(kind: Any) -> bool:
    """Whether a type is the class of an embedded document."""
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def kinds_of(annotation: Any) -> list[Any]:
    """The types that a value may have: the members of a union, or the annotation itself."""
    annotation = resolve_alias(annotation)
    if get_origin(annotation) is Annotated:
        return kinds_of(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [kind for member in get_args(annotation) for kind in kinds_of(member)]
    return [annotation]


def rules_of(annotation: Any) -> list[Any]:
    """The rules of an annotation about the value itself, not about its content."""
    annotation = resolve_alias(annotation)
    if get_origin(annotation) is Annotated:
        inner, *rules = get_args(annotation)
        return [*rules_of(inner), *_single_rules(rules)]
    if get_origin(annotation) in (Union, types.UnionType):
        return [rule for member in get_args(annotation) for rule in rules_of(member)]
    return []


def _single_rules(rules: Iterable[Any]) -> list[Any]:
    """Split groups of rules into single rules, and leave out rules that operations can't break."""
    found: list[Any] = []
    for rule in rules:
        if isinstance(rule, NotNone | Strict):
            continue
        if isinstance(rule, DecimalRule):
            found += _decimal_rules(rule)
        elif isinstance(rule, annotated_types.GroupedMetadata):
            found += _single_rules(rule)
        elif hasattr(rule, "metadata"):  # pydantic's Field() inside of an annotation
            found += _single_rules(rule.metadata)
        else:
            found.append(rule)
    return found


def _decimal_rules(rule: DecimalRule) -> list[Any]:
    whole = 10 ** (rule.max_digits - (rule.decimal_places or 0))
    rules: list[Any] = [annotated_types.Gt(-whole), annotated_types.Lt(whole)]
    if rule.minimum is not None:
        rules.append(annotated_types.Ge(rule.minimum))
    if rule.maximum is not None:
        rules.append(annotated_types.Le(rule.maximum))
    return [*rules, rule.multiple_of] if rule.multiple_of is not None else rules
