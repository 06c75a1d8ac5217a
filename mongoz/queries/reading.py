"""The terminals of a query that read."""

from collections.abc import AsyncIterator, Generator
from typing import TYPE_CHECKING, Any, TypeVar

from mongoz.exceptions import (
    DocumentNotFound,
    InvalidKeyError,
    InvalidObjectIdError,
    MultipleDocumentsReturned,
)
from mongoz.fields.object_id import parse_object_id
from mongoz.queries.builders import Builders
from mongoz.queries.paths import resolve

if TYPE_CHECKING:
    from mongoz.documents.base import Document

__all__ = ["Reading"]

D = TypeVar("D", bound="Document")


class Reading(Builders[D]):
    """What a query can be asked. Awaiting it is `all()`; `async for` streams."""

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
