"""The metaclass of documents: `Document.field` for queries, and managers in class bodies."""

from typing import TYPE_CHECKING, Any, ClassVar, dataclass_transform

from mongoz.model.metaclass import ModelMetaclass, is_defining_class
from mongoz.queries.expressions import FieldProxy
from mongoz.queries.managers import refuse_several_managers
from mongoz.queries.query import Query, method_named
from mongoz.synonyms import did_you_mean

__all__ = ["DocumentMetaclass"]


@dataclass_transform(kw_only_default=True, field_specifiers=())
class DocumentMetaclass(ModelMetaclass):
    """The metaclass of documents."""

    _not_fields: ClassVar = (Query,)

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **kwargs: Any) -> Any:
        """Make a document class, and register it.

        Raises:
            ImproperlyConfigured: Meta, a field or a manager is declared wrongly.
        """
        cls = super().__new__(mcs, name, bases, namespace, **kwargs)
        if cls.meta.abstract:
            refuse_several_managers(cls)
        return cls

    if not TYPE_CHECKING:  # else type checkers would accept any attribute

        def __getattr__(cls, name: str) -> Any:
            defining = is_defining_class()
            if not defining and name in cls.__dict__.get("__pydantic_fields__", ()):
                return FieldProxy(cls, name)
            try:
                return super().__getattr__(name)
            except AttributeError:
                if defining or name.startswith("_"):  # libraries look up such names on each class
                    raise
                hint = _hint(cls, name)
                raise AttributeError(f"{cls.__name__} has no attribute {name!r}.{hint}", name=name) from None


def _hint(cls: Any, name: str) -> str:
    """A hint for an unknown attribute of a document class: what the caller probably meant."""
    method = method_named(name)
    if method is not None:
        return f" Queries begin with a manager: {cls.__name__}.objects.{method}()."
    return did_you_mean(name, cls.__dict__.get("__pydantic_fields__", ()))
