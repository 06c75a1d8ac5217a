"""The documents of a bulk write, in batches."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from operator import itemgetter
from typing import Any, Final

from pymongo.errors import CursorNotFound
from pymongo.read_preferences import ReadPreference

from mongoz.connection.codec import CODEC_OPTIONS, as_stored_literal
from mongoz.keys import canonical
from mongoz.persistence.target import WriteTarget

__all__ = ["BATCH", "Selection", "split_into_chunks"]

BATCH: Final = 500
"""The number of documents in memory at the same time, while the receivers of each document run."""

_IDS_PER_COMMAND: Final = 10_000  # an id takes 12 bytes or more, and a command has room for 48 MB

Check = Callable[[Mapping[str, Any], Mapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Selection:
    """The documents that a query selects, for writing.

    Attributes:
        target: the target.
        filter: the conditions, as one MongoDB filter.
        options: `hint` and `collation`, if the query has them.
        ids: a function that loads the ids in the order of the query. The write skips documents that no longer
            match the filter. `ids` is None if the filter alone is enough: the query has no join, `skip` or
            `limit`, and the order of the documents does not matter.
    """

    target: WriteTarget
    filter: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    ids: Callable[[], Awaitable[list[Any]]] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the filter alone selects the documents, so that one command is enough."""
        return self.ids is None

    @property
    def is_ambiguous(self) -> bool:
        """Whether a command with the selected ids may also match other ids that are equal under the collation."""
        return self.ids is not None and bool(self.collation)

    def filter_for(self, ids: list[Any]) -> dict[str, Any]:
        """The filter for the documents that match and have one of these ids."""
        return self.filter_with({"_id": {"$in": ids}})

    def filter_with(self, *conditions: Mapping[str, Any]) -> dict[str, Any]:
        """The filter with further conditions."""
        every = [dict(condition) for condition in (self.filter, *conditions) if condition]
        return {"$and": every} if len(every) > 1 else every[0] if every else {}

    @property
    def collation(self) -> dict[str, Any]:
        """The collation of the filter, as an argument of the driver."""
        return {name: value for name, value in self.options.items() if name == "collation"}

    async def batches(
        self, projection: Mapping[str, Any] | None = None, check: Check | None = None
    ) -> AsyncIterator[list[dict[str, Any]]]:
        """The rows, in batches of at most `BATCH`.

        A plain selection is read in the order of `_id`, so that no document is read twice despite concurrent
        writes.

        Args:
            projection: the wanted fields; None for all.
            check: awaited before documents are read, with the filter and the options that select them; or None.
        """
        if self.ids is not None:
            async for ids in self.id_batches():
                if check is not None:
                    await check(self.filter_for(ids), self.collation)
                for chosen in split_into_chunks(ids, BATCH):
                    yield await self.matching(chosen, projection, self.target.session)
            return
        if check is not None:
            await check(self.filter, self.options)
        batch: list[dict[str, Any]] = []
        last: list[Any] = []
        while True:
            cursor = self._find_in_order(last, projection)
            try:
                async for found in cursor:
                    row = self.target.decode(found)
                    batch.append(row)
                    last = [row["_id"]]
                    if len(batch) == BATCH:
                        yield batch
                        batch = []
                break
            except CursorNotFound:  # slow receivers: the server closes a cursor that was idle for 10 minutes
                if not last:
                    raise
            finally:
                await cursor.close()
        if batch:
            yield batch

    def _find_in_order(self, after: list[Any], projection: Mapping[str, Any] | None) -> Any:
        """A cursor in the order of `_id`, after the given id if there is one."""
        # Use $expr, since a plain $gt finds only ids of the same type.
        beyond = [{"$expr": {"$gt": ["$_id", {"$literal": id_}]}} for id_ in after]
        return self.target.raw_collection.find(
            self.filter_with(*beyond),
            projection,
            sort=[("_id", 1)],
            batch_size=BATCH,
            session=self.target.session,
            **self.options,
        )

    async def id_batches(self) -> AsyncIterator[list[Any]]:
        """The ids, in batches that fit into a command."""
        if self.ids is not None:
            ids = await self.ids()
        else:
            found = self.target.raw_collection.find(
                self.filter, {"_id": 1}, session=self.target.session, **self.options
            )
            ids = [self.target.decode(row)["_id"] for row in await found.to_list(None)]
        for chosen in split_into_chunks(ids, _IDS_PER_COMMAND):
            yield chosen

    async def rows(self, ids: list[Any]) -> list[dict[str, Any]]:
        """The existing documents with these ids, in this order."""
        cursor = self.target.raw_collection.find({"_id": {"$in": ids}}, session=self.target.session)
        return _in_order_of(ids, map(self.target.decode, await cursor.to_list(None)))

    async def matching(
        self, ids: list[Any], projection: Mapping[str, Any] | None = None, session: Any = None
    ) -> list[dict[str, Any]]:
        """The matching documents with these ids, in this order; read from the primary."""
        primary = self.target.raw_collection.with_options(read_preference=ReadPreference.PRIMARY)
        cursor = primary.find(self.filter_for(ids), projection, session=session, **self.collation)
        return _in_order_of(ids, map(self.target.decode, await cursor.to_list(None)))

    def if_unchanged(self, row: Any) -> dict[str, Any]:
        """The arguments of a command on a document that must not have changed.

        Args:
            row: the whole document, as it was read when it matched.
        """
        same = {"$expr": {"$eq": ["$$ROOT", {"$literal": as_stored_literal(row)}]}}
        return {"filter": {"_id": row["_id"], **same}}

    def if_matching(self, row: Any) -> dict[str, Any]:
        """The arguments of a command on a document that must still match."""
        if self.collation:  # another id may be equal under the collation
            return self.if_unchanged(row)
        return {"filter": self.filter_with({"_id": row["_id"]})}


def _in_order_of(ids: list[Any], rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    place = {canonical(id_, CODEC_OPTIONS): number for number, id_ in enumerate(ids)}
    keyed = [(place.get(canonical(row["_id"], CODEC_OPTIONS)), row) for row in rows]
    found = [(number, row) for number, row in keyed if number is not None]  # a collation finds further ids
    return [row for _, row in sorted(found, key=itemgetter(0))]


def split_into_chunks(items: list[Any], size: int) -> list[list[Any]]:
    """The items in lists of at most `size`."""
    rest = iter(items)
    return list(iter(lambda: list(islice(rest, size)), []))
