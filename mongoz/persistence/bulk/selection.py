"""The documents that a bulk write is about, in batches."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from operator import itemgetter
from typing import Any, Final

from pymongo.errors import CursorNotFound
from pymongo.read_preferences import ReadPreference

from mongoz.connection.codec import CODEC_OPTIONS, as_read
from mongoz.keys import canonical
from mongoz.persistence.target import Target

__all__ = ["BATCH", "Selection", "chunks"]

BATCH: Final = 500
"""Documents that are in memory at once while receivers are told about each."""

_IDS: Final = 10_000  # of 12 bytes and some; a command holds 48 MB

Look = Callable[[Mapping[str, Any], Mapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Selection:
    """What a query selects, for writing.

    Attributes:
        target: where it is.
        filter: the conditions, as one MongoDB filter.
        options: `hint` and `collation`, where the query has them.
        ids: gives the ids in the order of the query; only for queries that a filter alone can't express: those
            that join, skip or limit, and those whose order matters. What is written by these ids must match the
            filter still.
    """

    target: Target
    filter: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    ids: Callable[[], Awaitable[list[Any]]] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the filter says it all, so that one command can do."""
        return self.ids is None

    @property
    def is_ambiguous(self) -> bool:
        """Whether a command that names the chosen ids may match others, which a collation takes for equal."""
        return self.ids is not None and bool(self.collation)

    def among(self, ids: list[Any]) -> dict[str, Any]:
        """The filter for those of these documents that (still) match."""
        return self.also({"_id": {"$in": ids}})

    def also(self, *conditions: Mapping[str, Any]) -> dict[str, Any]:
        """The filter, and further conditions."""
        every = [dict(condition) for condition in (self.filter, *conditions) if condition]
        return {"$and": every} if len(every) > 1 else every[0] if every else {}

    @property
    def collation(self) -> dict[str, Any]:
        """How strings are compared in the filter, as an argument of the driver."""
        return {name: value for name, value in self.options.items() if name == "collation"}

    async def batches(
        self, projection: Mapping[str, Any] | None = None, look: Look | None = None
    ) -> AsyncIterator[list[dict[str, Any]]]:
        """The rows, or a part of each, in batches of at most `BATCH`.

        A plain selection is read in the order of `_id`: no document comes twice, whatever is written meanwhile.

        Args:
            projection: what is wanted of each.
            look: is awaited with what one command could write, filter and options, before the batches of that.
        """
        if self.ids is not None:
            async for ids in self.id_batches():
                if look is not None:
                    await look(self.among(ids), self.collation)
                for chosen in chunks(ids, BATCH):
                    yield await self.matching(chosen, projection, self.target.session)
            return
        if look is not None:
            await look(self.filter, self.options)
        batch: list[dict[str, Any]] = []
        last: list[Any] = []
        while True:
            cursor = self._in_order(last, projection)
            try:
                async for found in cursor:
                    row = self.target.read(found)
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

    def _in_order(self, after: list[Any], projection: Mapping[str, Any] | None) -> Any:
        """A cursor in the order of `_id`, behind this one if there is one."""
        # By $expr, since $gt would only find ids of the same type.
        behind = [{"$expr": {"$gt": ["$_id", {"$literal": id_}]}} for id_ in after]
        return self.target.lenient.find(
            self.also(*behind),
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
            found = self.target.lenient.find(self.filter, {"_id": 1}, session=self.target.session, **self.options)
            ids = [self.target.read(row)["_id"] for row in await found.to_list(None)]
        for chosen in chunks(ids, _IDS):
            yield chosen

    async def rows(self, ids: list[Any]) -> list[dict[str, Any]]:
        """Those of these documents that are there, in this order."""
        cursor = self.target.lenient.find({"_id": {"$in": ids}}, session=self.target.session)
        return _in_order_of(ids, map(self.target.read, await cursor.to_list(None)))

    async def matching(
        self, ids: list[Any], projection: Mapping[str, Any] | None = None, session: Any = None
    ) -> list[dict[str, Any]]:
        """Those of these documents that match now, by the primary's account, in this order."""
        primary = self.target.lenient.with_options(read_preference=ReadPreference.PRIMARY)
        cursor = primary.find(self.among(ids), projection, session=session, **self.collation)
        return _in_order_of(ids, map(self.target.read, await cursor.to_list(None)))

    def as_it_was(self, row: Any) -> dict[str, Any]:
        """The arguments of a command for a document, if nothing in it has changed since it was read.

        Args:
            row: the whole document, as it was read when it matched.
        """
        same = {"$expr": {"$eq": ["$$ROOT", {"$literal": as_read(row)}]}}
        return {"filter": {"_id": row["_id"], **same}}

    def still(self, row: Any) -> dict[str, Any]:
        """The arguments of a command for a document, if it matches still."""
        if self.collation:  # under which other ids might be equal to this one
            return self.as_it_was(row)
        return {"filter": self.also({"_id": row["_id"]})}


def _in_order_of(ids: list[Any], rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    place = {canonical(id_, CODEC_OPTIONS): number for number, id_ in enumerate(ids)}
    keyed = [(place.get(canonical(row["_id"], CODEC_OPTIONS)), row) for row in rows]
    found = [(number, row) for number, row in keyed if number is not None]  # a collation finds more
    return [row for _, row in sorted(found, key=itemgetter(0))]


def chunks(items: list[Any], size: int) -> list[list[Any]]:
    """The items in lists of at most `size`."""
    rest = iter(items)
    return list(iter(lambda: list(islice(rest, size)), []))
