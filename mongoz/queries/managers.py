"""Managers and querysets: the subclasses of `Query` for `Document.objects`, `Document.query` and applications."""

from typing import Protocol, Self, TypeVar

from mongoz.exceptions import ImproperlyConfigured
from mongoz.model.base import Model
from mongoz.queries.expressions import Condition
from mongoz.queries.query import Query

__all__ = [
    "Manager",
    "ObjectsDescriptor",
    "QueryDescriptor",
    "QuerySet",
    "QuerySetManager",
    "refuse_several_managers",
]

D = TypeVar("D", bound=Model)


class Manager(Query[D]):
    """The class of `Document.objects`. Subclass it, and assign an instance in the body of a document.

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
    """The class of `Document.query(...)`. Calling it adds conditions."""

    def __call__(self, *conditions: Condition) -> Self:
        """Keep only documents that match all conditions: expressions, or MongoDB queries as dicts.

        Examples:
            >>> await User.query(User.age >= 18, {"name": {"$exists": True}})
        """
        return self.query(*conditions) if conditions else self


class QuerySetManager(QuerySet[D]):
    """A queryset to subclass. Its queries start from `get_queryset`. Assign an instance in the body of a document.

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
    """The type of `Document.objects`, which applications may replace by any manager."""

    def __get__(self, instance: object, owner: type[D]) -> Manager[D]: ...


class QueryDescriptor(Protocol):
    """The type of `Document.query`."""

    def __get__(self, instance: object, owner: type[D]) -> QuerySet[D]: ...


def refuse_several_managers(document: type) -> None:
    """Refuse an abstract document with several managers.

    Raises:
        ImproperlyConfigured: the class body has more than one Manager.
    """
    names = [name for name, value in vars(document).items() if isinstance(value, Manager)]
    if len(names) > 1:
        raise ImproperlyConfigured(
            f"{document.__name__} is abstract and has {len(names)} managers: {', '.join(names)}. An abstract "
            "document may have one; make the others QuerySetManagers, or move them to a concrete document."
        )
