"""Embedded documents that were loaded in part, by `only("address.city")`."""

import dataclasses
import types
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Annotated, Any, Final, Union, get_args, get_origin

from pydantic import BaseModel, Discriminator, GetCoreSchemaHandler, RootModel
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema
from typing_extensions import is_typeddict

from mongoz.fields.class_cache import cached_per_class
from mongoz.fields.email import LOADING
from mongoz.fields.storage import stored_names
from mongoz.fields.stored_schema import from_stored, validator_of
from mongoz.model.dump import as_json
from mongoz.model.partial import fill_in_defaults, make_partial_class
from mongoz.model.paths import resolve_path

__all__ = ["class_of_parts", "divisible_path", "holds_parts", "is_part", "tags_on_the_way"]

_Paths = frozenset[str]
"""Stored, dotted names of the loaded parts, relative to the document or embedded document."""


def class_of_parts(document: Any, paths: _Paths) -> Any:
    """The class of partial rows whose embedded documents contain only the parts at these paths."""
    return _cached_class(document, document.__pydantic_validator__, paths)


def _class_of_part(model: Any, paths: _Paths) -> Any:
    return _cached_class(model, model.__pydantic_validator__, paths, True)


@lru_cache(maxsize=1000)  # a process may make any number of different queries
def _cached_class(document: Any, _validator: Any, paths: _Paths, is_inner: bool = False) -> Any:
    """The class for the loaded parts of a document, or (`is_inner`) of an embedded document.

    If pydantic rebuilds the document's class, that class has a new `_validator`, so a new class of parts is made.
    """
    methods = {"__whole__": document, "__getattr__": _not_loaded, "__reduce__": _reduce_part}
    return _make_class_of_parts(document, paths, **(methods if is_inner else {}))


def _make_class_of_parts(document: Any, paths: _Paths, **more: Any) -> Any:
    inner = _by_first_step(paths)

    def convert(alias: str, annotation: Any) -> Any:
        return _in_parts(annotation, inner[alias]) if alias in inner else annotation

    return make_partial_class(document, convert, __parts__=paths, **more)


def _by_first_step(paths: _Paths) -> dict[str, _Paths]:
    """First step -> what follows it in each path. A first step whose whole value is loaded is left out."""
    found: dict[str, set[str]] = {}
    for path in paths:
        first, _, rest = path.partition(".")
        found.setdefault(first, set()).add(rest)
    return {first: frozenset(rests) for first, rests in found.items() if "" not in rests}


def tags_on_the_way(document: Any, path: str) -> set[str]:
    """The stored paths of the discriminators that a path passes. The discriminator of a part tells its class."""
    steps = path.split(".")
    found = set()
    for number in range(1, len(steps)):
        outer = resolve_path(document, ".".join(steps[:number]))
        for tag in _discriminators(outer.field):
            aliases = {stored_names(model).get(tag, tag) for model in outer.shape.models}
            found |= {f"{outer.path}.{alias}" for alias in aliases}
    return found


def _discriminators(declared: Any) -> set[str]:
    """The discriminators in a field, or in an annotation."""
    found = {tag} if isinstance(tag := getattr(declared, "discriminator", None), str) else set()
    if isinstance(declared, FieldInfo):
        return found.union(*map(_discriminators, (declared.annotation, *declared.metadata)))
    return found.union(*map(_discriminators, get_args(declared)))


def divisible_path(document: Any, path: str) -> str:
    """The stored path, cut off after the first value that can only be loaded as a whole."""
    steps = path.split(".")
    for number in range(1, len(steps)):
        outer = ".".join(steps[:number])
        if _is_indivisible(resolve_path(document, outer).field):
            return outer
    return path


def _is_indivisible(declared: Any) -> bool:
    """Whether values can't be loaded in part: a function chooses their class, or the class is no ordinary model.

    Args:
        declared: a field, an annotation, or a part of its metadata.
    """
    if isinstance(declared, FieldInfo):
        return any(map(_is_indivisible, (declared.annotation, declared.discriminator, *declared.metadata)))
    if isinstance(declared, Discriminator):
        return callable(declared.discriminator)
    kind = get_origin(declared) or declared
    if dataclasses.is_dataclass(kind) or is_typeddict(kind) or hasattr(kind, "_fields"):  # the last: a named tuple
        return True
    if isinstance(kind, type) and issubclass(kind, RootModel):
        return True
    return any(map(_is_indivisible, get_args(declared)))


def is_part(value: Any) -> bool:
    """Whether a value is an embedded document that was loaded in part."""
    return isinstance(value, BaseModel) and hasattr(type(value), "__whole__")


def holds_parts(value: Any) -> bool:
    """Whether a value is or contains an embedded document that was loaded in part."""
    if isinstance(value, BaseModel):
        return is_part(value) or any(map(holds_parts, value.__dict__.values()))
    if isinstance(value, Mapping):
        return any(map(holds_parts, value.values()))
    return isinstance(value, list | tuple | set | frozenset) and any(map(holds_parts, value))


class _LoadsParts:
    """The rule of an embedded document in a class of parts: a row contains only some fields of this document.

    An assigned value must have all fields.
    """

    def __init__(self, paths: _Paths) -> None:
        self._paths = paths

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def load(value: Any, validate: Any, info: core_schema.ValidationInfo[Any]) -> Any:
            if info.context is LOADING and isinstance(value, Mapping):
                return _part_loader(_class_of_part(source, self._paths))(value)
            return validate(value)

        # In a union, pydantic's own serializers warn about missing fields.
        dump = core_schema.plain_serializer_function_ser_schema(_dump, info_arg=True)
        return core_schema.with_info_wrap_validator_function(load, handler(source), serialization=dump)


def _dump(value: BaseModel, info: core_schema.SerializationInfo) -> dict[str, Any]:
    same = {name: getattr(info, name) for name in _SAME_OPTIONS}
    return value.model_dump(**same, fallback=as_json)


_SAME_OPTIONS: Final = (
    "mode", "include", "exclude", "by_alias", "exclude_unset", "exclude_defaults", "exclude_none", "round_trip",
)  # fmt: skip


@cached_per_class
def _part_loader(part_class: Any) -> Callable[[Any], Any]:
    """The function that makes a part from its stored form."""
    validate = validator_of(from_stored(part_class.__pydantic_core_schema__)).validate_python
    whole = {path for path in part_class.__parts__ if "." not in path}
    wanted = [name for name, alias in stored_names(part_class).items() if alias in whole]

    def load(value: Any) -> Any:
        part = validate(value, context=LOADING, by_alias=True, by_name=False)
        fill_in_defaults(part, [name for name in wanted if name not in part.__dict__])
        return part

    return load


def _not_loaded(part: Any, name: str) -> Any:
    if name in type(part).__pydantic_fields__:
        raise AttributeError(
            f"{type(part).__name__}.{name} was not loaded: only() chose other parts. Add this part to only(), "
            "or await refresh() of the document."
        )
    return BaseModel.__getattr__(part, name)  # type: ignore[attr-defined]  # type checkers don't see it


def _reduce_part(part: Any) -> tuple[Any, ...]:
    # Pickle can't import the class of a part.
    return _make_blank, (type(part).__whole__, type(part).__parts__), part.__getstate__()


def _make_blank(model: Any, paths: _Paths) -> Any:
    kind = _class_of_part(model, paths)
    return kind.__new__(kind)


def _in_parts(annotation: Any, paths: _Paths) -> Any:
    """The annotation of a value that is loaded in part."""
    if isinstance(annotation, type) and not get_args(annotation) and issubclass(annotation, BaseModel):
        return Annotated[annotation, _LoadsParts(paths)]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return Annotated[(_in_parts(arguments[0], paths), *arguments[1:])]
    if origin in (Union, types.UnionType):
        return Union[tuple(_in_parts(kind, paths) for kind in arguments)]  # noqa: UP007 - a tuple
    if isinstance(origin, type) and issubclass(origin, Mapping) and len(arguments) == 2:
        # The first steps are keys of the mapping. All its values have one type, so what follows any of the keys
        # applies to each value.
        rests = frozenset().union(*_by_first_step(paths).values())
        return origin[arguments[0], _in_parts(arguments[1], rests) if rests else arguments[1]]  # type: ignore[index]
    if isinstance(origin, type) and issubclass(origin, list | tuple | set | frozenset):
        converted = tuple(kind if kind is ... else _in_parts(kind, paths) for kind in arguments)
        return origin[converted]  # type: ignore[index]  # `origin` is generic here
    return annotation
