"""How a document class comes to be: field declarations become pydantic fields, Meta becomes MetaInfo.

Defining a class does no I/O.
"""

import sys
import threading
from typing import TYPE_CHECKING, Any, dataclass_transform

from pydantic import BaseModel

from mongoz.documents.meta import MetaInfo
from mongoz.exceptions import ImproperlyConfigured
from mongoz.fields import BaseField, ObjectId
from mongoz.fields.factories import from_object_id
from mongoz.queries.expressions import FieldProxy

if TYPE_CHECKING:
    # The public spelling, type(BaseModel), is no class that a type checker can inherit from.
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)

__all__ = ["DocumentMetaclass", "ModelMetaclass", "declare_fields"]


class _Construction(threading.local):
    """Whether this thread is defining a class: `Document.field` must not answer meanwhile.

    Pydantic asks parents with hasattr whether a field would shadow something of theirs.
    """

    depth = 0


_construction = _Construction()


def declare_fields(namespace: dict[str, Any]) -> None:
    """Give every field factory of a class body the annotation that pydantic needs: the factory's type wins."""
    annotations = _annotations(namespace)
    declared: dict[str, Any] = {}
    for name, value in list(namespace.items()):
        if isinstance(value, ObjectId):
            namespace[name] = value = from_object_id(value)  # noqa: PLW2901 - the declaration it stands for
        if isinstance(value, BaseField):
            declared[name] = value.annotation
    namespace["__annotations__"] = _in_order(annotations, declared)


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
class DocumentMetaclass(ModelMetaclass):
    """Pydantic's metaclass, with Meta, signals and `Document.field`."""

    meta: MetaInfo

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **kwargs: Any) -> Any:
        """Make a document class, and register it.

        Raises:
            ImproperlyConfigured: Meta or a field can't be as it is declared.
        """
        parents = _parents(bases)
        meta = MetaInfo(name, namespace.pop("Meta", None), parents)
        declare_fields(namespace)
        _refuse_reserved_names(name, bases, namespace)
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

    def __getattr__(cls, name: str) -> Any:
        if not _construction.depth and name in cls.__dict__.get("__pydantic_fields__", ()):
            return FieldProxy(cls, name)
        return super().__getattr__(name)  # type: ignore[misc]  # pydantic hides it from type checkers


def _parents(bases: tuple[type, ...]) -> list[MetaInfo]:
    """The Meta of all documents above, nearest first."""
    found: dict[int, MetaInfo] = {}
    for base in bases:
        for cls in base.__mro__:
            if isinstance(cls, DocumentMetaclass):
                found.setdefault(id(cls.meta), cls.meta)
    return list(found.values())


def _refuse_reserved_names(name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> None:
    for field in namespace["__annotations__"]:
        for base in bases:
            root = next((cls for cls in reversed(base.__mro__) if isinstance(cls, DocumentMetaclass)), None)
            if root is not None and field not in root.meta.fields and _has(root, field):
                raise ImproperlyConfigured(
                    f"{name} can't have a field named {field!r}: that is an attribute of every document. "
                    "Name it otherwise, and store it under this name with alias=."
                )


def _has(root: type, name: str) -> bool:
    # Not hasattr: asking must not run any descriptor.
    classes = [*root.__mro__, *type(root).mro(type(root))]
    return any(name in vars(cls) for cls in classes if cls is not object)
