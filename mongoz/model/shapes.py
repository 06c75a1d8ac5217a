"""What the values of a field can be, as far as its annotation tells."""

import datetime
import inspect
import types
from collections import deque
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Final, Literal, NamedTuple, Union, get_args, get_origin
from uuid import UUID

import bson
from pydantic import BaseModel

__all__ = ["OPEN", "Shape", "shape_of"]

_LISTS: Final = (list, tuple, set, frozenset, deque)
_CLOSED: Final = (
    str, int, float, bytes, datetime.date, datetime.time, datetime.timedelta, UUID, bson.ObjectId, Enum,
    Decimal, bson.Decimal128,
)  # fmt: skip


class Shape(NamedTuple):
    """What a field can hold.

    Attributes:
        scalars: the types of its values, or of the items where it is a list.
        models: the embedded documents among them.
        depth: how many lists are around them.
        open: anything may be in there: a plain dict, or an annotation that tells nothing.
    """

    scalars: frozenset[type] = frozenset()
    models: tuple[type[BaseModel], ...] = ()
    depth: int = 0
    open: bool = False

    def holds(self, *kinds: type) -> bool:
        """Whether one of these types, or a subclass, is among its values or items."""
        return any(issubclass(scalar, kinds) for scalar in self.scalars)

    @property
    def may_be_text(self) -> bool:
        """Whether a value, not an item of a list, can be stored as a string (a time of day is)."""
        return not self.depth and (self.open or self.holds(str, datetime.time))

    @property
    def is_text(self) -> bool:
        """Whether its values are strings and nothing else."""
        return (
            self.may_be_text
            and not (self.open or self.models)
            and all(issubclass(scalar, str | datetime.time) for scalar in self.scalars)
        )

    @property
    def is_moment(self) -> bool:
        """Whether its values, or items, are dates or datetimes and nothing else."""
        return (
            bool(self.scalars)
            and not (self.open or self.models)
            and all(issubclass(scalar, datetime.date) for scalar in self.scalars)
        )


OPEN: Final = Shape(open=True)
"""Nothing is known."""


def shape_of(annotation: Any) -> Shape:  # noqa: PLR0911 - a table, one line per kind
    """The shape of a field with this annotation: X, X | None, list[X], Annotated[X, ...], Literal[...]."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is None or annotation is types.NoneType:
        return Shape()
    if origin is Annotated:
        return shape_of(arguments[0])
    if origin is Literal:
        return Shape(scalars=frozenset(map(type, arguments)))
    if origin in (Union, types.UnionType):
        return _merged(arguments)
    if annotation in _LISTS or origin in _LISTS:
        items = _merged([kind for kind in arguments if kind is not Ellipsis]) if arguments else OPEN
        return items._replace(depth=items.depth + 1)
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return Shape(models=(annotation,))
    if inspect.isclass(annotation) and not origin and issubclass(annotation, _CLOSED):
        return Shape(scalars=frozenset({annotation}))
    return OPEN


def _merged(annotations: Any) -> Shape:
    shapes = [shape_of(annotation) for annotation in annotations]
    return Shape(
        scalars=frozenset().union(*(shape.scalars for shape in shapes)),
        models=tuple(model for shape in shapes for model in shape.models),
        depth=max((shape.depth for shape in shapes), default=0),
        open=any(shape.open for shape in shapes),
    )
