"""`Nullable`: an annotation for nullable fields. Type checkers then accept the fields in expressions."""

from typing import TYPE_CHECKING, Any, Generic, Optional, Protocol, TypeVar, overload

__all__ = ["Nullable", "StandsFor"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class StandsFor(Protocol[T_co]):
    """For type checkers: an object that fields of type T accept. A reference accepts a document."""

    def __stands_for__(self) -> T_co: ...


class Nullable(Generic[T]):
    """`Nullable[int]` is `int | None`, and type checkers accept `User.age > 3`.

    Type checkers take `User.age` for the value of an instance. With `age: int | None`, they refuse to compare it,
    because None has no order. With `Nullable[ObjectId]`, they accept a document for a reference.

    Examples:
        >>> class User(mongoz.Document):
        ...     age: mongoz.Nullable[int] = mongoz.Integer(null=True)
        ...     team: mongoz.Nullable[mongoz.ObjectId] = mongoz.ForeignKey("Team", null=True)
        >>> await User.query(User.age > 3)
    """

    if TYPE_CHECKING:

        @overload
        def __get__(self, instance: None, owner: Any) -> T | Any: ...
        @overload
        def __get__(self, instance: object, owner: Any) -> T | None: ...
        def __get__(self, instance: object, owner: Any) -> Any: ...
        def __set__(self, instance: object, value: T | StandsFor[T] | None) -> None: ...

    else:

        def __class_getitem__(cls, kind: Any) -> Any:
            return Optional[kind]  # noqa: UP045 - the kind may be the name of a class
