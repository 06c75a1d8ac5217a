"""The metaclasses of models: field declarations become pydantic fields, `class Meta` becomes a MetaInfo.

Defining a class does no I/O.
"""

import threading
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, dataclass_transform

from pydantic import BaseModel, ValidationError

from mongoz.fields import BaseField
from mongoz.fields.choices import invalid_choice
from mongoz.fields.class_cache import cached_per_class, clear_class_caches
from mongoz.fields.storability import check_storable
from mongoz.model.class_body import (
    add_display_methods,
    declare_fields,
    refuse_reserved_names,
    set_stored_name,
    surrounding_names,
)
from mongoz.model.meta import MetaInfo
from mongoz.model.reserved import refuse_stamp
from mongoz.stamps import FIELD

if TYPE_CHECKING:
    # Type checkers can't inherit from the public spelling, type(BaseModel).
    from pydantic._internal._model_construction import ModelMetaclass as PydanticMetaclass
else:
    PydanticMetaclass = type(BaseModel)

__all__ = ["FieldsMetaclass", "ModelMetaclass", "is_defining_class"]


class _Construction(threading.local):
    """The number of nested class definitions that this thread executes at present."""

    depth = 0


_construction = _Construction()


def is_defining_class() -> bool:
    """Whether this thread is defining a class. Meanwhile `Document.field` must raise an AttributeError.

    Pydantic uses hasattr to check whether a field would shadow an attribute of a base class.
    """
    return _construction.depth > 0


class FieldsMetaclass(PydanticMetaclass):
    """Pydantic's metaclass, for class bodies with field factories."""

    _stored_names: ClassVar[Mapping[str, str]] = {}
    """Name of a field -> its stored name. If an application declares an alias for the field, the alias wins."""

    _not_fields: ClassVar[tuple[type, ...]] = ()
    """Types of values that never become fields, even if they are annotated."""

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **kwargs: Any) -> Any:
        """Make a model whose fields are all of the class `BaseField`.

        Raises:
            ImproperlyConfigured: a field has the name of an attribute of the base class.
            FieldDefinitionError: the arguments of an ObjectId contradict each other, or a factory is not called.
        """
        declare_fields(name, namespace, mcs._not_fields)
        for field_name, alias in mcs._stored_names.items():
            set_stored_name(field_name, alias, bases, namespace)
        refuse_reserved_names(name, bases, namespace["__annotations__"], FieldsMetaclass)
        add_display_methods(bases, namespace)
        cls: Any = super().__new__(mcs, name, bases, namespace, **kwargs)
        if not cls.__pydantic_complete__:
            # Pydantic looked for local names in the frame of this method, not in the frame of the class statement.
            cls.model_rebuild(raise_errors=False, _types_namespace={**surrounding_names(), name: cls})
        fields = cls.__dict__["__pydantic_fields__"]
        for field_name, field in fields.items():
            fields[field_name] = own = BaseField.of(field)
            own.bind(cls, field_name)
            if cls.__pydantic_complete__:  # else names in its annotations are not defined yet
                check_storable(name, field_name, own.annotation, own.metadata)
        if any(isinstance(value, cached_property) for base in cls.__mro__ for value in vars(base).values()):
            _protect_cached_properties(cls)
        return cls

    if not TYPE_CHECKING:  # else type checkers would not see the parameters of the constructor

        def __call__(cls, *args: Any, **kwargs: Any) -> Any:  # noqa: D102 - the constructor
            # This is no __init__, because pydantic would call __init__ for every loaded row.
            if FIELD in kwargs and isinstance(cls, ModelMetaclass):
                refuse_stamp(cls, kwargs)
            try:
                make = None if args else _constructor(cls)
                return super().__call__(*args, **kwargs) if make is None else make(kwargs)
            except ValidationError as error:
                message = invalid_choice(error)
                if message is None:
                    raise
                raise ValueError(message) from None

        def __setattr__(cls, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            # Cached values of a class may be wrong after pydantic rebuilds it, or the application replaces its
            # __init__. Both set dunder names. A class of parts (see `mongoz/model/parts.py`) gets dunder names
            # only while it is made. That changes no other class, so the cached values are kept.
            if name.startswith("__") and "__parts__" not in cls.__dict__:
                clear_class_caches()


def _protect_cached_properties(cls: Any) -> None:
    """Keep the values of cached properties when an attribute is set. Pydantic would make them undeclared keys."""
    assign = cls.__setattr__
    if getattr(assign, "keeps_cached_properties", False):
        return

    def __setattr__(self: Any, name: str, value: Any) -> None:  # noqa: N807 - it becomes the method
        fields, extra = type(self).__pydantic_fields__, self.__pydantic_extra__
        cached = {key: kept for key, kept in self.__dict__.items() if key not in fields}
        undeclared = {key: extra[key] for key in cached if key in extra} if extra else {}
        assign(self, name, value)
        for key, kept in cached.items():
            if key != name and key not in self.__dict__:
                (self.__pydantic_extra__ or {}).pop(key, None)
                self.__dict__[key] = kept
        if undeclared:
            self.__pydantic_extra__.update(undeclared)

    __setattr__.keeps_cached_properties = True  # type: ignore[attr-defined]
    cls.__setattr__ = __setattr__


@cached_per_class
def _constructor(cls: Any) -> Callable[[dict[str, Any]], Any] | None:
    """The function that pydantic's `__init__` calls; None if the class has its own constructor, or is incomplete.

    A direct call of this function saves a quarter of the time of making an instance.
    """
    if cls.__pydantic_custom_init__ or cls.__new__ is not object.__new__ or not cls.__pydantic_complete__:
        return None
    make: Callable[[dict[str, Any]], Any] = cls.__pydantic_validator__.validate_python
    return make


@dataclass_transform(kw_only_default=True, field_specifiers=())
class ModelMetaclass(FieldsMetaclass):
    """The metaclass of models with a `Meta`."""

    _stored_names: ClassVar = {"id": "_id"}

    meta: MetaInfo

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **kwargs: Any) -> Any:
        """Make a document class, and register it.

        Raises:
            ImproperlyConfigured: Meta or a field is declared wrongly.
        """
        parents = _parents(bases)
        meta = MetaInfo(name, namespace.pop("Meta", None), parents)
        _construction.depth += 1
        try:
            cls: Any = super().__new__(mcs, name, bases, namespace, **kwargs)
        finally:
            _construction.depth -= 1
        meta.settle(cls, cls.__dict__["__pydantic_fields__"], parents)
        cls.meta = meta
        cls.Meta = meta
        if not meta.abstract and meta.registry is not None:
            meta.registry.register(cls)
        return cls


def _parents(bases: tuple[type, ...]) -> list[MetaInfo]:
    """The Meta of all base documents, nearest first."""
    found: dict[int, MetaInfo] = {}
    for base in bases:
        for cls in base.__mro__:
            if isinstance(cls, ModelMetaclass):
                found.setdefault(id(cls.meta), cls.meta)
    return list(found.values())
