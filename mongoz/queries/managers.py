"""`Document.objects`, `Document.query`, and the managers that applications write: spellings of the one engine."""

from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from mongoz.exceptions import ImproperlyConfigured
from mongoz.queries.expressions import Condition
from mongoz.queries.query import Query

if TYPE_CHECKING:
    from mongoz.documents.base import Document

__all__ = [
    "Manager",
    "ObjectsDescriptor",
    "QueryDescriptor",
    "QuerySet",
    "QuerySetManager",
    "detach_managers",
    "refuse_several_managers",
]

D = TypeVar("D", bound="Document")


class Manager(Query[D]):
    """What `Document.objects` is; subclass it, and assign an instance in the body of a document.

    Examples:
        >>> class Adults(mongoz.Manager):
        ...     def get_queryset(self):
        ...         return super().get_queryset().filter(age__gte=18)
        >>> class User(mongoz.Document):
        ...     age: int = mongoz.Integer()
        ...     adults: ClassVar[Adults] = Adults()
        >>> await User.adults.count()
    """


class QuerySet(Query[D]):
    """What `Document.query(...)` is; calling it again adds conditions."""

    def __call__(self, *conditions: Condition) -> Self:
        """Only documents for which all of these hold: expressions, or MongoDB queries as dicts.

        Examples:
            >>> await User.query(User.age >= 18, {"name": {"$exists": True}})
        """
        return self.query(*conditions) if conditions else self


class QuerySetManager(QuerySet[D]):
    """A queryset to subclass: `get_queryset` says where it starts. Assign an instance in the body of a document.

    Examples:
        >>> class Active(mongoz.QuerySetManager):
        ...     def get_queryset(self):
        ...         return super().get_queryset().filter(is_active=True)
        >>> class User(mongoz.Document):
        ...     is_active: bool = mongoz.Boolean(default=True)
        ...     active: ClassVar[Active] = Active()
        >>> await User.active.filter(name="Ada")
    """


class ObjectsDescriptor(Protocol):
    """The type of `Document.objects`: any manager may stand there."""

    def __get__(self, instance: object, owner: type[D]) -> Manager[D]: ...


class QueryDescriptor(Protocol):
    """The type of `Document.query`."""

    def __get__(self, instance: object, owner: type[D]) -> QuerySet[D]: ...


def detach_managers(namespace: dict[str, Any]) -> None:
    """Take the annotations of managers out of a class body: however they are annotated, they are no fields."""
    for name, value in namespace.items():
        if isinstance(value, Query):
            namespace["__annotations__"].pop(name, None)


def refuse_several_managers(document: type) -> None:
    """Check what an abstract document may have.

    Raises:
        ImproperlyConfigured: its class body has more than one Manager.
    """
    names = [name for name, value in vars(document).items() if isinstance(value, Manager)]
    if len(names) > 1:
        raise ImproperlyConfigured(
            f"{document.__name__} is abstract and has {len(names)} managers: {', '.join(names)}. An abstract "
            "document may have one; make the others QuerySetManagers, or move them to a concrete document."
        )
