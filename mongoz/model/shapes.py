"""The shape of a field: the values that its annotation allows."""

import datetime
import inspect
import types
from collections import deque
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Final, Literal, NamedTuple, Union, get_args, get_origin
from uuid import UUID

import bson
from pydantic import BaseModel, RootModel

__all__ = ["OPEN", "FieldShape", "shape_of"]

_LISTS: Final = (list, tuple, set, frozenset, deque)
_CLOSED: Final = (
    str, int, float, bytes, datetime.date, datetime.time, datetime.timedelta, UUID, bson.ObjectId, Enum,
    Decimal, bson.Decimal128,
)  # fmt: skip


class FieldShape(NamedTuple):
    """The values that a field can hold.

    Attributes:
        scalars: the types of the field's values, or of the items if the field is a list.
        models: the classes of embedded documents among the values or items.
        depth: the number of nested lists around the items; 0 if the field is no list.
        open: the annotation does not restrict the content: a plain dict, for example.
    """

    scalars: frozenset[type] = frozenset()
    models: tuple[type[BaseModel], ...] = ()
    depth: int = 0
    open: bool = False

    def holds(self, *kinds: type) -> bool:
        """Whether its values or items can be of one of these types, or of a subclass."""
        return any(issubclass(scalar, kinds) for scalar in self.scalars)

    @property
    def may_be_text(self) -> bool:
        """Whether the field holds no lists, and can hold a string. A time of day is stored as a string, too."""
        return not self.depth and (self.open or self.holds(str, datetime.time))

    @property
    def is_text(self) -> bool:
        """Whether its values can only be strings."""
        return (
            self.may_be_text
            and not (self.open or self.models)
            and all(issubclass(scalar, str | datetime.time) for scalar in self.scalars)
        )

    @property
    def is_moment(self) -> bool:
        """Whether its values or items can only be dates or datetimes."""
        return (
            bool(self.scalars)
            and not (self.open or self.models)
            and all(issubclass(scalar, datetime.date) for scalar in self.scalars)
        )


OPEN: Final = FieldShape(open=True)
"""The shape without any restriction."""


def shape_of(annotation: Any, outer: frozenset[type] = frozenset()) -> FieldShape:  # noqa: PLR0911 - a table
    """The shape of a field with this annotation: X, X | None, list[X], Annotated[X, ...], Literal[...].

    Args:
        annotation: the annotation.
        outer: the root models around the annotation, because a root model may contain itself.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is None or annotation is types.NoneType:
        return FieldShape()
    if origin is Annotated:
        return shape_of(arguments[0], outer)
    if origin is Literal:
        return FieldShape(scalars=frozenset(map(type, arguments)))
    if origin in (Union, types.UnionType):
        return _merged(arguments, outer)
    if annotation in _LISTS or origin in _LISTS:
        items = _merged([kind for kind in arguments if kind is not Ellipsis], outer) if arguments else OPEN
        return items._replace(depth=items.depth + 1)
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        if not issubclass(annotation, RootModel):
            return FieldShape(models=(annotation,))
        root = annotation.model_fields.get("root")
        return OPEN if root is None or annotation in outer else shape_of(root.annotation, outer | {annotation})
    if inspect.isclass(annotation) and not origin and issubclass(annotation, _CLOSED):
        return FieldShape(scalars=frozenset({annotation}))
    return OPEN


def _merged(annotations: Any, outer: frozenset[type]) -> FieldShape:
    shapes = [shape_of(annotation, outer) for annotation in annotations]
    return FieldShape(
        scalars=frozenset().union(*(shape.scalars for shape in shapes)),
        models=tuple(model for shape in shapes for model in shape.models),
        depth=max((shape.depth for shape in shapes), default=0),
        open=any(shape.open for shape in shapes),
    )
