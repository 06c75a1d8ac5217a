"""`Nullable`: the annotation of nullable fields that type checkers accept in expressions."""

from typing import TYPE_CHECKING, Any, Generic, Optional, TypeVar, overload

__all__ = ["Nullable"]

T = TypeVar("T")


class Nullable(Generic[T]):
    """`Nullable[int]` is `int | None`, and type checkers accept `User.age > 3`.

    Type checkers take `User.age` for the value of an instance. With `age: int | None`, they refuse to compare it,
    since None has no order.

    Examples:
        >>> class User(mongoz.Document):
        ...     age: mongoz.Nullable[int] = mongoz.Integer(null=True)
        >>> await User.query(User.age > 3)
    """

    if TYPE_CHECKING:

        @overload
        def __get__(self, instance: None, owner: Any) -> Any: ...
        @overload
        def __get__(self, instance: object, owner: Any) -> T | None: ...
        def __get__(self, instance: object, owner: Any) -> Any: ...
        def __set__(self, instance: object, value: T | None) -> None: ...

    else:

        def __class_getitem__(cls, kind: Any) -> Any:
            return Optional[kind]  # noqa: UP045 - the kind may be the name of a class
