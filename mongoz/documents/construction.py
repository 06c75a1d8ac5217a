"""How a document class comes to be: field declarations become pydantic fields, Meta becomes MetaInfo.

Defining a class does no I/O.
"""

import copy
import inspect
import re
import sys
import threading
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Final, dataclass_transform, get_origin

from pydantic import BaseModel, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mongoz import fields
from mongoz.documents.meta import MetaInfo
from mongoz.exceptions import FieldDefinitionError, ImproperlyConfigured
from mongoz.fields import BaseField, ObjectId
from mongoz.fields.base import store_as
from mongoz.fields.choices import invalid_choice
from mongoz.fields.class_cache import compiled, forget_compiled
from mongoz.fields.factories import from_object_id
from mongoz.fields.storability import check_storable
from mongoz.model.reserved import refuse_stamp
from mongoz.queries.expressions import FieldProxy
from mongoz.queries.managers import detach_managers
from mongoz.queries.query import method_named
from mongoz.stamps import FIELD
from mongoz.synonyms import did_you_mean

if TYPE_CHECKING:
    # The public spelling, type(BaseModel), is no class that a type checker can inherit from.
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)

__all__ = ["DocumentMetaclass", "FieldsMetaclass", "ModelMetaclass"]


_FACTORIES: Final = frozenset(
    factory for name in fields.__all__ if inspect.isfunction(factory := getattr(fields, name))
)


class _Construction(threading.local):
    """Whether this thread is defining a class: `Document.field` must not answer meanwhile.

    Pydantic asks parents with hasattr whether a field would shadow something of theirs.
    """

    depth = 0


_construction = _Construction()


class FieldsMetaclass(ModelMetaclass):
    """Pydantic's metaclass, for class bodies with field factories."""

    _stored_as: ClassVar[Mapping[str, str]] = {}
    """Fields that are stored under another name, unless they say otherwise when an application redeclares them."""

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **kwargs: Any) -> Any:
        """Make a model whose fields are all ours.

        Raises:
            ImproperlyConfigured: a field has the name of an attribute that the base class has.
            FieldDefinitionError: the arguments of an ObjectId contradict each other, or a factory is not called.
        """
        _declare_fields(name, namespace)
        for field_name, alias in mcs._stored_as.items():
            _store_as(field_name, alias, bases, namespace)
        detach_managers(namespace)
        _refuse_reserved_names(name, bases, namespace["__annotations__"])
        _add_display_methods(bases, namespace)
        cls: Any = super().__new__(mcs, name, bases, namespace, **kwargs)
        if not cls.__pydantic_complete__:
            # Pydantic looked for local names in our frame instead of that of the class statement.
            cls.model_rebuild(raise_errors=False, _types_namespace={**_names_around(), name: cls})
        fields = cls.__dict__["__pydantic_fields__"]
        for field_name, field in fields.items():
            fields[field_name] = own = BaseField.of(field)
            own.bind(cls, field_name)
            if cls.__pydantic_complete__:  # else names in its annotations are not defined yet
                check_storable(name, field_name, own.annotation, own.metadata)
        if any(isinstance(value, cached_property) for base in cls.__mro__ for value in vars(base).values()):
            _keep_cached_properties_apart(cls)
        return cls

    if not TYPE_CHECKING:  # to type checkers it would hide the parameters of the constructor

        def __call__(cls, *args: Any, **kwargs: Any) -> Any:  # noqa: D102 - the constructor
            # Not an __init__: pydantic would call that for every row that is loaded.
            if FIELD in kwargs and isinstance(cls, DocumentMetaclass):
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
            if name.startswith("__"):  # pydantic builds it anew, or somebody gives it an __init__
                forget_compiled()


def _keep_cached_properties_apart(cls: Any) -> None:
    """Have assignments leave cached properties where they are: pydantic takes them for undeclared keys."""
    assign = cls.__setattr__
    if getattr(assign, "_keeps_cached_properties", False):
        return

    def __setattr__(self: Any, name: str, value: Any) -> None:  # noqa: N807 - it becomes one
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

    __setattr__._keeps_cached_properties = True  # type: ignore[attr-defined]
    cls.__setattr__ = __setattr__


@compiled
def _constructor(cls: Any) -> Callable[[dict[str, Any]], Any] | None:
    """What pydantic's own `__init__` comes to, if a class has no other: getting there is a quarter of the cost."""
    if cls.__pydantic_custom_init__ or cls.__new__ is not object.__new__ or not cls.__pydantic_complete__:
        return None
    make: Callable[[dict[str, Any]], Any] = cls.__pydantic_validator__.validate_python
    return make


def _names_around() -> dict[str, Any]:
    """The local names where the class is being defined."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith("mongoz.documents."):
        frame = frame.f_back
    return dict(frame.f_locals) if frame is not None else {}


def _declare_fields(document_name: str, namespace: dict[str, Any]) -> None:
    """Give every field factory of a class body the annotation that pydantic needs: the factory's type wins."""
    annotations = _annotations(namespace)
    declared: dict[str, Any] = {}
    for name, value in list(namespace.items()):
        if isinstance(value, ObjectId):
            namespace[name] = value = from_object_id(value)  # noqa: PLW2901 - the declaration it stands for
        if isinstance(value, BaseField):
            declared[name] = value.annotation
        elif value is ObjectId or (inspect.isfunction(value) and value in _FACTORIES):
            raise FieldDefinitionError(
                f"{document_name}.{name} is the factory of a field and no field; call it: "
                f"{name} = {value.__name__}()."
            )
    namespace["__annotations__"] = _in_order(annotations, declared)


def _store_as(name: str, alias: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> None:
    """Give a field an alias, unless it has one; however it is declared, by the class body or by a base class."""
    value, annotations = namespace.get(name, PydanticUndefined), namespace["__annotations__"]
    if name not in annotations:
        inherited = (base.__pydantic_fields__.get(name) for base in bases if issubclass(base, BaseModel))
        field = next((found for found in inherited if found is not None), None)
        if field is None or field.alias is not None:
            return
        annotations[name], value = field.annotation, copy.copy(field)
    if not isinstance(value, FieldInfo):
        value = Field() if value is PydanticUndefined else Field(value)
    namespace[name] = value
    store_as(value, alias)


def _add_display_methods(bases: tuple[type, ...], namespace: dict[str, Any]) -> None:
    """A `get_<field>_display` for each field with choices, unless there is one already."""
    for name, field in list(namespace.items()):
        method = f"get_{name}_display"
        if isinstance(field, BaseField) and field.labels is not None and not _defined(method, bases, namespace):
            namespace[method] = _display(name, namespace["__qualname__"], namespace["__module__"])


def _defined(method: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> bool:
    return method in namespace or any(method in vars(cls) for base in bases for cls in base.__mro__)


def _display(name: str, qualname: str, module: str) -> Callable[[Any], Any]:
    def display(self: Any) -> Any:
        field, value = type(self).__pydantic_fields__[name], getattr(self, name)
        if field.labels is None:  # declared again without choices
            return None if value is None else str(value)
        return field.labels.label(value)

    display.__name__ = f"get_{name}_display"
    display.__qualname__ = f"{qualname}.{display.__name__}"
    display.__module__ = module
    display.__doc__ = f"The label of `{name}`; the value itself if it is none of the choices, None for None."
    return display


def _in_order(annotations: dict[str, Any], declared: dict[str, Any]) -> dict[str, Any]:
    """Both together, in the order of the class body, where `name: str` leaves a trace in the first only."""
    merged: dict[str, Any] = {}
    waiting = iter(declared.items())
    for name, annotation in annotations.items():
        if name in declared and name not in merged:
            for earlier, its_annotation in waiting:
                merged[earlier] = its_annotation
                if earlier == name:
                    break
        merged.setdefault(name, annotation)
    merged.update(waiting)
    return merged


def _annotations(namespace: dict[str, Any]) -> dict[str, Any]:
    if sys.version_info >= (3, 14):  # the body has a function instead of a dict
        import annotationlib  # noqa: PLC0415 - new there

        function = annotationlib.get_annotate_from_class_namespace(namespace)
        if function is not None:
            for key in ("__annotate__", "__annotate_func__"):
                namespace.pop(key, None)
            return dict(annotationlib.call_annotate_function(function, annotationlib.Format.FORWARDREF))
    return dict(namespace.get("__annotations__", {}))


@dataclass_transform(kw_only_default=True, field_specifiers=())
class DocumentMetaclass(FieldsMetaclass):
    """The metaclass of documents: fields, Meta, signals and `Document.field`."""

    _stored_as: ClassVar = {"id": "_id"}

    meta: MetaInfo

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **kwargs: Any) -> Any:
        """Make a document class, and register it.

        Raises:
            ImproperlyConfigured: Meta or a field can't be as it is declared.
        """
        parents = _parents(bases)
        meta = MetaInfo(name, namespace.pop("Meta", None), parents)
        _construction.depth += 1
        try:
            cls: Any = super().__new__(mcs, name, bases, namespace, **kwargs)
        finally:
            _construction.depth -= 1
        fields = cls.__dict__["__pydantic_fields__"]
        meta.settle(cls, fields, parents)
        cls.meta = meta
        cls.Meta = meta
        if not meta.abstract and meta.registry is not None:
            meta.registry.register(cls)
        return cls

    if not TYPE_CHECKING:  # else type checkers would take any name for an attribute

        def __getattr__(cls, name: str) -> Any:
            if not _construction.depth and name in cls.__dict__.get("__pydantic_fields__", ()):
                return FieldProxy(cls, name)
            try:
                return super().__getattr__(name)
            except AttributeError:
                if _construction.depth or name.startswith("_"):  # what libraries ask everything for
                    raise
                hint = _hint(cls, name)
                raise AttributeError(f"{cls.__name__} has no attribute {name!r}.{hint}", name=name) from None


def _hint(cls: Any, name: str) -> str:
    """What may be meant by an attribute that a document class does not have."""
    method = method_named(name)
    if method is not None:
        return f" Queries begin with a manager: {cls.__name__}.objects.{method}()."
    return did_you_mean(name, cls.__dict__.get("__pydantic_fields__", ()))


def _parents(bases: tuple[type, ...]) -> list[MetaInfo]:
    """The Meta of all documents above, nearest first."""
    found: dict[int, MetaInfo] = {}
    for base in bases:
        for cls in base.__mro__:
            if isinstance(cls, DocumentMetaclass):
                found.setdefault(id(cls.meta), cls.meta)
    return list(found.values())


def _refuse_reserved_names(name: str, bases: tuple[type, ...], annotations: dict[str, Any]) -> None:
    """Compare with Document, or EmbeddedDocument: what an application's own base class has is its own affair."""
    for base in bases:
        root: Any = next((cls for cls in reversed(base.__mro__) if isinstance(cls, FieldsMetaclass)), None)
        for field, annotation in annotations.items() if root else ():
            if field not in root.__pydantic_fields__ and _has(root, field) and not _is_class_var(annotation):
                raise ImproperlyConfigured(
                    f"{name} can't have a field named {field!r}: that is an attribute of every {root.__name__}. "
                    "Name it otherwise, and store it under this name with alias=."
                )


def _is_class_var(annotation: Any) -> bool:
    text = getattr(annotation, "__forward_arg__", annotation)
    if isinstance(text, str):
        return re.match(r"(\w+\.)*ClassVar\b", text) is not None
    return annotation is ClassVar or get_origin(annotation) is ClassVar


def _has(root: type, name: str) -> bool:
    # Not hasattr: asking must not run any descriptor.
    classes = list(root.__mro__)
    if isinstance(root, DocumentMetaclass):  # then Document.field must not find something of the metaclass
        classes += inspect.getmro(type(root))
    return any(name in vars(cls) for cls in classes if cls is not object)
