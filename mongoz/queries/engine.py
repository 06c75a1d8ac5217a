"""The one lazy query engine: an immutable plan, builders that derive new ones, terminals that run them."""

from collections.abc import AsyncIterator, Generator, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from mongoz.exceptions import (
    DocumentNotFound,
    InvalidKeyError,
    InvalidObjectIdError,
    MultipleDocumentsReturned,
)
from mongoz.fields.object_id import parse_object_id
from mongoz.queries.expressions import Expression, FieldProxy, Order, SortExpression
from mongoz.queries.lookups import conditions
from mongoz.queries.paths import resolve
from mongoz.settings import settings

if TYPE_CHECKING:
    from mongoz.documents.base import Document

__all__ = ["Plan", "Query"]

D = TypeVar("D", bound="Document")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a query asks for. Never changed; builders make new ones."""

    conditions: tuple[Mapping[str, Any], ...] = ()
    order: tuple[tuple[str, int], ...] = ()
    limit: int = 0
    skip: int = 0

    @property
    def filter(self) -> dict[str, Any]:
        """All conditions as one MongoDB filter."""
        if not self.conditions:
            return {}
        if len(self.conditions) == 1:
            return dict(self.conditions[0])
        return {"$and": [dict(condition) for condition in self.conditions]}


class Query(Generic[D]):
    """A lazy query over one document class. Awaiting it is `all()`; `async for` streams.

    Every builder returns a new query, so one can be kept and refined many times:

        >>> adults = User.objects.filter(age__gte=18)
        >>> await adults.count()
        >>> await adults.sort("name").limit(10)
    """

    def __init__(self, document: type[D], plan: Plan | None = None) -> None:
        self._document = document
        self._plan = plan or Plan()

    def _derive(self, **changes: Any) -> Self:
        return type(self)(self._document, replace(self._plan, **changes))

    # Builders

    def filter(self, **lookups: Any) -> Self:
        """Only documents for which all of these hold: `name="Ada"`, `age__gte=18`, `**{"address.city": "Bonn"}`.

        Raises:
            InvalidKeyError: no such field.
            OperatorInvalid: no such lookup.
        """
        return self._derive(conditions=self._plan.conditions + conditions(self._document, lookups))

    def where_all(self, expressions: Iterable[Expression | Mapping[Any, Any]]) -> Self:
        """Only documents for which all of these hold: expressions, or MongoDB queries as dicts."""
        more = [e.compile() if isinstance(e, Expression) else _by_name(e) for e in expressions]
        return self._derive(conditions=(*self._plan.conditions, *more))

    def sort(self, key: Any = None, direction: int = Order.ASCENDING, /, **lookups: Any) -> Self:
        """Order by a key; calls append, and the first key is the primary one.

        Args:
            key: a field's name, `Document.field`, a SortExpression, or a list of `(key, direction)`.
            direction: `Order.ASCENDING` (1) or `Order.DESCENDING` (-1).
            **lookups: `name__asc=True`, `age__desc=True`.

        Raises:
            InvalidKeyError: no such field, or no such direction.
        """
        keys = [] if key is None else [_sort_key(item) for item in _as_list(key, direction)]
        for name in lookups:
            path, _, way = name.rpartition(settings.lookup_prefix)
            if way not in ("asc", "desc"):
                raise InvalidKeyError(f"sort() takes name__asc or name__desc, not {name!r}.")
            keys.append((path, Order.ASCENDING if way == "asc" else Order.DESCENDING))
        order = [(resolve(self._document, str(name)).path, way) for name, way in keys]
        for stored_name, sense in order:
            if sense not in (Order.ASCENDING, Order.DESCENDING):
                raise InvalidKeyError(f"{sense!r} is no direction to sort {stored_name!r} in; use 1 or -1.")
        return self._derive(order=(*self._plan.order, *order))

    def limit(self, count: int) -> Self:
        """At most `count` documents; 0 is no limit.

        Raises:
            ValueError: count is negative.
        """
        return self._derive(limit=_not_negative("limit", count))

    def skip(self, count: int) -> Self:
        """Leave out the first `count` documents.

        Raises:
            ValueError: count is negative.
        """
        return self._derive(skip=_not_negative("skip", count))

    # Terminals

    async def all(self, **lookups: Any) -> list[D]:
        """All matching documents."""
        query = self.filter(**lookups) if lookups else self
        from_row = self._document.from_row
        return [from_row(row) for row in await query._cursor().to_list(None)]

    async def first(self) -> D | None:
        """The first matching document, or None."""
        return next(iter(await self.limit(1).all()), None)

    async def get(self, **lookups: Any) -> D:
        """The only matching document.

        Raises:
            DocumentNotFound: none matches.
            MultipleDocumentsReturned: more than one does.
        """
        query = self.filter(**lookups)
        found = await query.limit(2).all()
        if not found:
            raise DocumentNotFound(f"No {self._document.__name__} matches {query._plan.filter!r}.")
        if len(found) > 1:
            raise MultipleDocumentsReturned(
                f"More than one {self._document.__name__} matches {query._plan.filter!r}."
            )
        return found[0]

    async def get_or_none(self, **lookups: Any) -> D | None:
        """The only matching document, or None.

        Raises:
            MultipleDocumentsReturned: more than one matches.
        """
        try:
            return await self.get(**lookups)
        except DocumentNotFound:
            return None

    async def count(self) -> int:
        """How many documents match, with `skip` and `limit` taken into account."""
        options = {key: value for key in ("skip", "limit") if (value := getattr(self._plan, key))}
        return int(await self._collection.count_documents(self._plan.filter, **options))

    async def exists(self, **lookups: Any) -> bool:
        """Whether any document matches."""
        return await self.filter(**lookups).limit(1).count() > 0

    async def create(self, **values: Any) -> D:
        """Make a document of these values, and write it.

        Raises:
            pydantic.ValidationError: a value does not fit its field.
        """
        return await self._document(**values).create()

    async def get_document_by_id(self, id: Any) -> D:
        """The document with this id.

        Args:
            id: an ObjectId or its 24 hexadecimal digits (or the id itself, where `id` is of another type).

        Raises:
            InvalidKeyError: a string that is no ObjectId.
            DocumentNotFound: there is none.
        """
        if resolve(self._document, "id").is_id:
            try:
                id = parse_object_id(id)
            except InvalidObjectIdError as error:
                raise InvalidKeyError(f"{self._document.__name__}: {error}") from error
        return await self.get(id=id)

    @property
    def _collection(self) -> Any:
        return self._document.meta.require_collection()._collection

    def _cursor(self) -> Any:
        plan = self._plan
        order = list(plan.order) or None
        return self._collection.find(plan.filter, sort=order, skip=plan.skip, limit=plan.limit)

    async def __aiter__(self) -> AsyncIterator[D]:
        cursor = self._cursor()
        try:
            async for row in cursor:
                yield self._document.from_row(row)
        finally:
            await cursor.close()

    def __await__(self) -> Generator[Any, None, list[D]]:
        return self.all().__await__()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._document.__name__}: {self._plan.filter!r}>"


def _by_name(query: Mapping[Any, Any]) -> dict[str, Any]:
    """A MongoDB query as it was given; `Document.field` may stand for a name."""
    if not isinstance(query, Mapping):
        raise InvalidKeyError(f"query() takes expressions and dicts, not {query!r}.")
    return {str(key) if isinstance(key, FieldProxy) else key: value for key, value in query.items()}


def _as_list(key: Any, direction: int) -> list[Any]:
    return list(key) if isinstance(key, list) else [(key, direction)]


def _sort_key(item: Any) -> tuple[Any, int]:
    if isinstance(item, tuple):
        key, direction = item
        return (key.key, key.direction) if isinstance(key, SortExpression) else (key, direction)
    return (item.key, item.direction) if isinstance(item, SortExpression) else (item, Order.ASCENDING)


def _not_negative(what: str, count: int) -> int:
    if not isinstance(count, int) or count < 0:
        raise ValueError(f"{what}({count!r}): a number of documents is an int from 0 on.")
    return count
