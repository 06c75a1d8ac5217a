"""The terminals of a query that write."""

from typing import TYPE_CHECKING, Any, TypeVar

from mongoz.queries.reading import Reading

if TYPE_CHECKING:
    from mongoz.documents.base import Document

__all__ = ["Writing"]

D = TypeVar("D", bound="Document")


class Writing(Reading[D]):
    """What a query can be told to do."""

    async def create(self, **values: Any) -> D:
        """Make a document of these values, and write it.

        Raises:
            pydantic.ValidationError: a value does not fit its field.
        """
        return await self._document(**values).create()
