"""Converts the body of a class with field factories to a body that pydantic understands."""

import copy
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Final, get_origin

from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mongoz import fields
from mongoz.exceptions import FieldDefinitionError, ImproperlyConfigured
from mongoz.fields import BaseField, ObjectId
from mongoz.fields.base import set_stored_alias
from mongoz.fields.factories import from_object_id

__all__ = [
    "add_display_methods",
    "declare_fields",
    "refuse_reserved_names",
    "set_stored_name",
    "surrounding_names",
]

_FACTORIES: Final = frozenset(
    factory for name in fields.__all__ if inspect.isfunction(factory := getattr(fields, name))
)


def surrounding_names() -> dict[str, Any]:
    """The local variables of the function or module that contains the class statement."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith(
        ("mongoz.documents.", "mongoz.model.")
    ):
        frame = frame.f_back
    return dict(frame.f_locals) if frame is not None else {}


def declare_fields(document_name: str, body: dict[str, Any], not_fields: tuple[type, ...]) -> None:
    """Annotate each field from a factory with the type of the factory. This replaces any other annotation.

    Args:
        document_name: the name of the class.
        body: the class body, which is changed.
        not_fields: types of values that never become fields, even if they are annotated.

    Raises:
        FieldDefinitionError: a factory is not called, or the arguments of an ObjectId contradict each other.
    """
    annotations = _annotations(body)
    declared: dict[str, Any] = {}
    for name, value in list(body.items()):
        if isinstance(value, ObjectId):
            body[name] = value = from_object_id(value)  # noqa: PLW2901 - the field that it declares
        if isinstance(value, BaseField):
            declared[name] = value.annotation
        elif isinstance(value, not_fields):
            annotations.pop(name, None)
        elif value is ObjectId or (inspect.isfunction(value) and value in _FACTORIES):
            raise FieldDefinitionError(
                f"{document_name}.{name} is a field factory, not a field. Call it: {name} = {value.__name__}()."
            )
    body["__annotations__"] = _merge_in_order(annotations, declared)


def set_stored_name(name: str, stored_name: str, bases: tuple[type, ...], body: dict[str, Any]) -> None:
    """Give a field a stored name unless it has an alias. The class body or a base class declares the field."""
    value, annotations = body.get(name, PydanticUndefined), body["__annotations__"]
    if name not in annotations:
        inherited = (base.__pydantic_fields__.get(name) for base in bases if issubclass(base, BaseModel))
        field = next((found for found in inherited if found is not None), None)
        if field is None or field.validation_alias is not None:
            return
        annotations[name], value = field.annotation, copy.copy(field)
    if not isinstance(value, FieldInfo):
        value = Field() if value is PydanticUndefined else Field(value)
    body[name] = value
    set_stored_alias(value, name, stored_name)


def add_display_methods(bases: tuple[type, ...], body: dict[str, Any]) -> None:
    """Add `get_<field>_display` for each field with choices, unless the class has a method of that name."""
    for name, field in list(body.items()):
        method = f"get_{name}_display"
        if isinstance(field, BaseField) and field.labels is not None and not _is_defined(method, bases, body):
            body[method] = _display_method(name, body["__qualname__"], body["__module__"])


def _is_defined(method: str, bases: tuple[type, ...], body: dict[str, Any]) -> bool:
    return method in body or any(method in vars(cls) for base in bases for cls in base.__mro__)


def _display_method(name: str, qualname: str, module: str) -> Callable[[Any], Any]:
    def display(self: Any) -> Any:
        field, value = type(self).__pydantic_fields__[name], getattr(self, name)
        if field.labels is None:  # a subclass declares the field without choices
            return None if value is None else str(value)
        return field.labels.label(value)

    display.__name__ = f"get_{name}_display"
    display.__qualname__ = f"{qualname}.{display.__name__}"
    display.__module__ = module
    display.__doc__ = f"The label of `{name}`; the value itself if it is none of the choices, None for None."
    return display


def _merge_in_order(annotations: dict[str, Any], declared: dict[str, Any]) -> dict[str, Any]:
    """Merge both dicts in the order of the class body. A field without a factory is in `annotations` only."""
    merged: dict[str, Any] = {}
    remaining = iter(declared.items())
    for name, annotation in annotations.items():
        if name in declared and name not in merged:
            for earlier, its_annotation in remaining:
                merged[earlier] = its_annotation
                if earlier == name:
                    break
        merged.setdefault(name, annotation)
    merged.update(remaining)
    return merged


def _annotations(body: dict[str, Any]) -> dict[str, Any]:
    if sys.version_info >= (3, 14):  # here the class body has a function that makes the annotations
        import annotationlib  # noqa: PLC0415 - does not exist before 3.14

        function = annotationlib.get_annotate_from_class_namespace(body)
        if function is not None:
            for key in ("__annotate__", "__annotate_func__"):
                body.pop(key, None)
            return dict(annotationlib.call_annotate_function(function, annotationlib.Format.FORWARDREF))
    return dict(body.get("__annotations__", {}))


def refuse_reserved_names(
    name: str, bases: tuple[type, ...], annotations: dict[str, Any], metaclass: type
) -> None:
    """Refuse fields that have the name of an attribute of Document or EmbeddedDocument.

    A field may have the name of an attribute that only an application's own base class defines.

    Raises:
        ImproperlyConfigured: there is such a field. The message gives its name.
    """
    for base in bases:
        classes: Iterator[Any] = (cls for cls in base.__mro__ if cls.__module__.startswith("mongoz."))
        root: Any = next((cls for cls in classes if isinstance(cls, metaclass)), None)
        if root is None:
            continue
        for field, annotation in annotations.items():
            if field not in root.__pydantic_fields__ and _has(root, field) and not _is_class_var(annotation):
                raise ImproperlyConfigured(
                    f"{name} can't have a field named {field!r}: that is an attribute of every {root.__name__}. "
                    f"Give the field another name; with alias={field!r} it is stored as {field!r}."
                )


def _is_class_var(annotation: Any) -> bool:
    text = getattr(annotation, "__forward_arg__", annotation)
    if isinstance(text, str):
        return re.match(r"(\w+\.)*ClassVar\b", text) is not None
    return annotation is ClassVar or get_origin(annotation) is ClassVar


def _has(root: Any, name: str) -> bool:
    # hasattr would run descriptors.
    classes = list(root.__mro__)
    if hasattr(root, "meta"):  # `Document.<name>` would find an attribute of the metaclass, not the field
        classes += inspect.getmro(type(root))
    return any(name in vars(cls) for cls in classes if cls is not object)
