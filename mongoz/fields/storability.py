"""Checks at the definition of a class whether values of its annotations can be stored and read back."""

import collections
import dataclasses
import datetime
import decimal
import fractions
import ipaddress
import pathlib
import re
import types
import typing
import uuid
import zoneinfo
from collections import abc
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin

import bson
from bson.datetime_ms import DatetimeMS
from pydantic import (
    AnyUrl,
    BaseModel,
    ImportString,
    NameEmail,
    PostgresDsn,
    RootModel,
    Secret,
    SecretBytes,
    SecretStr,
)
from pydantic.types import EncodedBytes, EncodedStr
from typing_extensions import is_typeddict

from mongoz.exceptions import FieldDefinitionError

__all__ = ["IP_ADDRESSES", "URLS", "check_storable", "holds_mappings", "is_open", "resolve_alias"]

IP_ADDRESSES: Final = (
    ipaddress.IPv4Address, ipaddress.IPv6Address, ipaddress.IPv4Interface, ipaddress.IPv6Interface,
    ipaddress.IPv4Network, ipaddress.IPv6Network,
)  # fmt: skip
URLS: Final = (AnyUrl.__base__ or AnyUrl, PostgresDsn.__base__ or PostgresDsn)
"""The base classes of pydantic's URL types: one for URLs with a single host, one for URLs with several hosts."""

# Types -> the kinds of BSON values that they are stored as. The first match counts.
_STORED_AS: Final[tuple[tuple[tuple[Any, ...], tuple[str, ...]], ...]] = (
    ((types.NoneType,), ("null",)),
    ((bool,), ("bool",)),
    ((bson.Int64, int), ("int",)),
    ((float,), ("double",)),
    ((bson.Code,), ("code",)),
    ((str,), ("string",)),
    ((bson.Binary,), ("binary",)),
    ((bytes, SecretBytes), ("binary",)),
    ((datetime.datetime, datetime.date, DatetimeMS), ("date",)),
    ((datetime.timedelta,), ("int", "double")),
    ((decimal.Decimal, bson.Decimal128), ("decimal",)),
    ((uuid.UUID,), ("uuid",)),
    ((bson.ObjectId,), ("objectId",)),
    ((re.Pattern, bson.Regex), ("regex",)),
    ((bson.Timestamp,), ("timestamp",)),
    ((bson.DBRef,), ("dbRef",)),
    ((bson.MinKey,), ("minKey",)),
    ((bson.MaxKey,), ("maxKey",)),
    ((datetime.time, complex, fractions.Fraction, zoneinfo.ZoneInfo, NameEmail, SecretStr), ("string",)),
    ((pathlib.PurePath, *IP_ADDRESSES, *URLS), ("string",)),
)

_LISTS: Final = (list, tuple, set, frozenset, collections.deque)
_SEQUENCES: Final = (abc.Sequence, abc.MutableSequence, abc.Set, abc.MutableSet)
_MAPPINGS: Final = (dict, abc.Mapping, abc.MutableMapping)
_ENUM_VALUES: Final = (str, int, float, bool, bytes, types.NoneType, uuid.UUID, bson.ObjectId)
_KEYS: Final = (
    str, int, float, bool, Enum, uuid.UUID, decimal.Decimal, datetime.date, datetime.time, datetime.timedelta,
    bson.ObjectId, pathlib.PurePath, *IP_ADDRESSES, *URLS,
)  # fmt: skip
_NO_DATA: Final = (abc.Iterator, abc.Generator, abc.Iterable, abc.Callable, abc.AsyncIterable, abc.Awaitable, type)

_REMEDY: Final = (
    "Use a type that MongoDB has, or keep the value in a private attribute (its name starts with '_')."
)

Kinds = dict[str, str]
"""Kind of BSON value -> the type that is stored as this kind, for messages."""


class _NotStorable(Exception):
    """The reason why values of an annotation can't be stored."""


def is_open(annotation: Any) -> bool:
    """Whether an annotation does not restrict the content of a value."""
    # Lists and mappings without arguments are open: list, but not list[int].
    return any(
        each in (Any, object, *_LISTS, *_MAPPINGS) or isinstance(each, TypeVar)
        for each in _all_inside(annotation, set())
    )


def holds_mappings(annotation: Any) -> bool:
    """Whether the values of an annotation may be or contain mappings."""
    kinds = (get_origin(each) or each for each in _all_inside(annotation, set()))
    return any(isinstance(kind, type) and issubclass(kind, _MAPPINGS) for kind in kinds)


def _all_inside(annotation: Any, seen: set[int]) -> Iterator[Any]:
    """The annotation and the annotations inside of it. An alias that contains itself is followed once."""
    resolved = resolve_alias(annotation)
    if resolved is not annotation:
        if id(annotation) in seen:
            return
        seen.add(id(annotation))
    yield resolved
    if get_origin(resolved) is not Literal:
        for argument in get_args(resolved):
            yield from _all_inside(argument, seen)


def check_storable(owner: str, name: str, annotation: Any, metadata: Iterable[Any] = ()) -> None:
    """Refuse a field whose values can't be stored, or would be read back as other values.

    Args:
        owner: the name of the class.
        name: the name of the field.
        annotation: the type of the field.
        metadata: the other arguments of `Annotated`.

    Raises:
        FieldDefinitionError: the message contains the field, the reason and the remedy.
    """
    try:
        _AnnotationWalk().kinds_of(Annotated[(annotation, *metadata)] if metadata else annotation)
    except _NotStorable as refused:
        raise FieldDefinitionError(f"{owner}.{name} can't be stored: {refused}") from None


class _AnnotationWalk:
    """A walk through an annotation and the models in it."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def kinds_of(self, annotation: Any) -> Kinds:
        """The kinds of BSON values that the values of an annotation are stored as.

        Raises:
            _NotStorable: its values can't be stored.
        """
        resolved = resolve_alias(annotation)
        if resolved is annotation:
            return self._of_type(annotation)
        if id(annotation) in self._seen:  # the alias contains itself
            return {}
        self._seen.add(id(annotation))
        try:
            return self._of_type(resolved)
        finally:
            self._seen.remove(id(annotation))

    def _of_type(self, annotation: Any) -> Kinds:  # noqa: PLR0911 - a table, one line per kind
        if get_origin(annotation) is Annotated:
            bare, *metadata = get_args(annotation)
            _refuse_encoded(metadata)
            return self.kinds_of(bare)
        origin, arguments = get_origin(annotation), get_args(annotation)
        if origin in (Union, types.UnionType):
            return self._of_union(arguments)
        if origin is Literal:
            return self._of_literal(arguments)
        if annotation in (Any, object) or isinstance(annotation, TypeVar | str | typing.ForwardRef):
            return {}
        if annotation is None:
            return {"null": "None"}
        kind = origin or annotation
        if kind in _NO_DATA or kind is ImportString or not isinstance(kind, type):
            raise _NotStorable(f"{_label(annotation)} is no data. {_REMEDY}")
        if issubclass(kind, _MAPPINGS) and not is_typeddict(kind):
            return self._of_mapping(kind, arguments)
        if issubclass(kind, _LISTS) or kind in _SEQUENCES:
            return self._of_list(kind, arguments)
        if issubclass(kind, Enum):
            return _of_enum(kind)
        if issubclass(kind, Secret):
            return self._of_secret(arguments)
        if kind is re.Pattern and bytes in arguments:
            raise _NotStorable("MongoDB has no patterns of bytes. Use re.Pattern[str].")
        return self._of_model(kind) or _of_scalar(kind)

    def _of_union(self, members: Iterable[Any]) -> Kinds:
        merged: Kinds = {}
        for member in members:
            for kind, label in self.kinds_of(member).items():
                other = merged.setdefault(kind, label)
                if other != label:
                    raise _NotStorable(
                        f"values of {other} and of {label} are both stored as {kind}, and read back as one of "
                        "the two. Use one of them only."
                    )
        return merged

    def _of_literal(self, values: Iterable[Any]) -> Kinds:
        for value in values:
            if isinstance(value, Enum):
                _of_enum(type(value))
            elif not isinstance(value, _ENUM_VALUES):
                raise _NotStorable(f"MongoDB has no type for {value!r}. {_REMEDY}")
        return {}

    def _of_mapping(self, kind: type, arguments: tuple[Any, ...]) -> Kinds:
        if kind is collections.Counter:
            arguments = (*arguments, int)
        if arguments:
            self._check_keys(arguments[0])
            self.kinds_of(arguments[1])
        return {"object": "dict"}

    def _check_keys(self, annotation: Any) -> None:
        bare = resolve_alias(annotation)
        if get_origin(bare) is Annotated:
            bare = get_args(bare)[0]
        if get_origin(bare) in (Union, types.UnionType):
            for member in get_args(bare):
                self._check_keys(member)
            others = [member for member in get_args(bare) if member is not str]
            if len(others) != len(get_args(bare)) or len(others) > 1:
                raise _NotStorable(
                    f"keys are stored as strings, so keys of {_label(bare)} can't be told apart. Use one type for "
                    "keys."
                )
            return
        if bare in (Any, object) or isinstance(bare, TypeVar) or get_origin(bare) is Literal:
            return
        if not (isinstance(bare, type) and issubclass(bare, _KEYS)):
            raise _NotStorable(f"a key of type {_label(bare)} has no form as a string. Use a list of pairs.")

    def _of_list(self, kind: type, arguments: tuple[Any, ...]) -> Kinds:
        if hasattr(kind, "_fields"):  # a named tuple
            arguments = tuple(_hints(kind).values())
        for argument in arguments:
            if argument is not Ellipsis and argument != ():
                self.kinds_of(argument)
        return {"array": kind.__name__}

    def _of_secret(self, arguments: tuple[Any, ...]) -> Kinds:
        inner = self.kinds_of(arguments[0]) if arguments else {}
        return {kind: f"Secret[{label}]" for kind, label in inner.items()}

    def _of_model(self, kind: type) -> Kinds:
        """The kinds of a class with fields; empty for other classes."""
        if issubclass(kind, BaseModel):
            fields = {name: (field.annotation, field.metadata) for name, field in kind.__pydantic_fields__.items()}
        elif dataclasses.is_dataclass(kind) or is_typeddict(kind):
            fields = {name: (hint, []) for name, hint in _hints(kind).items()}
        else:
            return {}
        if id(kind) not in self._seen:
            self._seen.add(id(kind))
            for name, (annotation, metadata) in fields.items():
                try:
                    self.kinds_of(Annotated[(annotation, *metadata)] if metadata else annotation)
                except _NotStorable as refused:
                    raise _NotStorable(f"in {kind.__name__}.{name}: {refused}") from None
        return {"object": "a model"}


def resolve_alias(annotation: Any) -> Any:
    """The annotation, with `NewType`, `type` aliases and root models replaced by their types."""
    while True:
        if hasattr(annotation, "__supertype__"):
            annotation = annotation.__supertype__
        elif type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__
        elif isinstance(annotation, type) and issubclass(annotation, RootModel) and annotation.__pydantic_fields__:
            annotation = annotation.__pydantic_fields__["root"].annotation
        elif get_origin(annotation) in (typing.Final, typing.Required, typing.NotRequired):
            annotation = get_args(annotation)[0]
        else:
            return annotation


def _refuse_encoded(metadata: Iterable[Any]) -> None:
    for each in metadata:
        if isinstance(each, EncodedBytes | EncodedStr):
            raise _NotStorable(
                "its values are stored decoded, and would be decoded again at each read. Use bytes, or "
                "mongoz.Binary()."
            )
        if each is ImportString:
            raise _NotStorable(f"the imported object is no data. {_REMEDY}")


def _of_enum(kind: type[Enum]) -> Kinds:
    for member in kind:
        if not isinstance(member.value, _ENUM_VALUES):
            raise _NotStorable(
                f"{kind.__name__}.{member.name} has the value {member.value!r}, which is read back as another "
                "value. Use strings or numbers as the values of its members."
            )
    mixed_in = next((base for base in (str, int, float, bytes) if issubclass(kind, base)), None)
    if mixed_in is not None:  # its members equal their values
        return {}
    return {each: kind.__name__ for member in kind for each in _of_scalar(type(member.value))}


def _of_scalar(kind: type) -> Kinds:
    for scalars, stored_as in _STORED_AS:
        if issubclass(kind, scalars):
            base = next((scalar for scalar in scalars if kind is scalar), None)
            label = "str" if issubclass(kind, str) else (base or kind).__name__
            return dict.fromkeys(stored_as, label)
    if hasattr(kind, "__get_pydantic_core_schema__"):
        return {}  # an application's own type, which pydantic validates
    raise _NotStorable(f"MongoDB has no type for {_label(kind)}. {_REMEDY}")


def _hints(kind: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind, include_extras=True)
    except (NameError, TypeError):  # names that are not defined yet
        return {}


def _label(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)
