"""The documents that a bulk write is about, in batches."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from pymongo.errors import CursorNotFound

from mongoz.persistence.targets import Target

__all__ = ["BATCH", "Selection", "chunks"]

BATCH: Final = 500
"""Documents that are in memory at once while receivers are told about each."""

_IDS: Final = 10_000  # of 12 bytes and some; a command holds 48 MB


@dataclass(frozen=True, slots=True)
class Selection:
    """What a query selects, for writing.

    Attributes:
        target: where it is.
        filter: the conditions, as one MongoDB filter.
        options: `hint` and `collation`, where the query has them.
        ids: gives the ids in the order of the query; only for queries that a filter alone can't express: those
            that join, skip or limit, and those whose order matters.
    """

    target: Target
    filter: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    ids: Callable[[], Awaitable[list[Any]]] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the filter says it all, so that one command can do."""
        return self.ids is None

    def among(self, ids: list[Any]) -> dict[str, Any]:
        """The filter for those of these documents that (still) match."""
        chosen = {"_id": {"$in": ids}}
        return {"$and": [dict(self.filter), chosen]} if self.filter and self.is_plain else chosen

    async def batches(self) -> AsyncIterator[list[dict[str, Any]]]:
        """The rows, in batches of at most `BATCH`.

        A plain selection is read in the order of `_id`: no document comes twice, whatever is written meanwhile.
        """
        if self.ids is not None:
            for chosen in chunks(await self.ids(), BATCH):
                yield await self.rows(chosen)
            return
        batch: list[dict[str, Any]] = []
        last: list[Any] = []
        while True:
            cursor = self._in_order(last)
            try:
                async for row in cursor:
                    batch.append(row)
                    last = [row["_id"]]
                    if len(batch) == BATCH:
                        yield batch
                        batch = []
                break
            except CursorNotFound:  # receivers that are slow: the server closes what nobody reads for 10 minutes
                if not last:
                    raise
            finally:
                await cursor.close()
        if batch:
            yield batch

    def _in_order(self, after: list[Any]) -> Any:
        """A cursor in the order of `_id`, behind this one if there is one."""
        # By $expr, since $gt would only find ids of the same type.
        behind = [{"$expr": {"$gt": ["$_id", {"$literal": id_}]}} for id_ in after]
        condition = {"$and": [dict(self.filter), *behind]} if behind else self.filter
        return self.target.driver.find(
            condition, sort=[("_id", 1)], batch_size=BATCH, session=self.target.session, **self.options
        )

    async def id_batches(self) -> AsyncIterator[list[Any]]:
        """The ids, in batches that fit into a command."""
        if self.ids is not None:
            ids = await self.ids()
        else:
            found = self.target.driver.find(self.filter, {"_id": 1}, session=self.target.session, **self.options)
            ids = [row["_id"] for row in await found.to_list(None)]
        for chosen in chunks(ids, _IDS):
            yield chosen

    async def rows(self, ids: list[Any]) -> list[dict[str, Any]]:
        """Those of these documents that are there, in this order."""
        cursor = self.target.driver.find({"_id": {"$in": ids}}, session=self.target.session)
        place = {_hashable(id_): number for number, id_ in enumerate(ids)}
        rows: list[dict[str, Any]] = await cursor.to_list(None)
        return sorted(rows, key=lambda row: place[_hashable(row["_id"])])


def _hashable(id_: Any) -> Any:
    return repr(id_) if isinstance(id_, dict | list) else id_


def chunks(items: list[Any], size: int) -> list[list[Any]]:
    """The items in lists of at most `size`."""
    rest = iter(items)
    return list(iter(lambda: list(islice(rest, size)), []))
