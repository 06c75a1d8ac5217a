"""A batch of a bulk update: found and written in one transaction.

So it is known which documents were written, and what they are now.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import bson
from pymongo import UpdateOne
from pymongo.errors import BulkWriteError, DuplicateKeyError, PyMongoError, WriteError

from mongoz.connection.codec import CODEC_OPTIONS, Read
from mongoz.persistence.bulk.progress import Row, key_of, there_of
from mongoz.persistence.bulk.selection import Selection
from mongoz.persistence.operations.operation import Operation, with_operations
from mongoz.persistence.origin import Origin, originator
from mongoz.persistence.rows.hydration import Changes
from mongoz.signals.post_signals import Firing
from mongoz.stamps import FIELD, Call

__all__ = ["Batch", "One", "encoded"]

_DUPLICATES: Final = frozenset({11000, 11001, 12582})


class One(NamedTuple):
    """A document, and what is to be written to it.

    Attributes:
        row: as it was read.
        changes: what is set and removed.
        operations: what the server computes.
        firing: who is told.
        instance: that `pre_update` receivers got, if there are any.
        read: the row as BSON, if what is written was derived from it.
    """

    row: Row
    changes: Changes
    operations: tuple[Operation, ...]
    firing: Firing
    instance: Any = None
    read: bytes | None = None

    def request(self, origin: Origin) -> dict[str, Any]:
        """The update document."""
        stamped = self.changes._replace(changed=origin.onto(self.changes.changed))
        return with_operations(stamped.as_update(), self.operations)

    def after(self, computed: Row) -> Row:
        """The row as it is once that is written.

        Args:
            computed: what the operations made of their fields.
        """
        tops = {operation.top for operation in self.operations}
        gone = {*self.changes.removed, *tops, FIELD}
        kept = {name: value for name, value in self.row.items() if name not in gone}
        return {**kept, **self.changes.changed, **{name: computed[name] for name in computed if name in tops}}


class Batch:
    """A batch on its way.

    Args:
        selection: what it is of.
        ids: of its documents.
        one_of: what is to be written to a document that is this row now; None if that must be found out anew.

    Attributes:
        written: each document that was written, the origin of that, and what operations made of their fields.
        moved: the ids of those that have changed since they were read.
    """

    def __init__(self, selection: Selection, ids: list[Any], one_of: Callable[[Row], One | None]) -> None:
        self._selection = selection
        self._ids = ids
        self._one_of = one_of
        self.written: list[tuple[One, Origin, Row]] = []
        self.moved: list[Any] = []

    async def write(self, session: Any) -> None:
        """Find what matches, and write it: in a transaction."""
        target = self._selection.target
        self.written, self.moved = [], []
        ones: list[One] = []
        for row in await self._selection.matching(self._ids, session=session):
            one = self._one_of(row)
            if one is None:
                self.moved.append(row["_id"])
            else:
                ones.append(one)
        if not ones:
            return
        makers = {}
        for one in ones:
            if one.firing not in makers:
                makers[one.firing] = await originator(one.firing, target, Call.UPDATED, natural=True)
        origins = [makers[one.firing].of(one.row["_id"]) for one in ones]
        requests = [
            UpdateOne({"_id": one.row["_id"]}, one.request(origin))
            for one, origin in zip(ones, origins, strict=True)
        ]
        try:
            await target.driver.bulk_write(requests, session=session)
        except BulkWriteError as error:
            raise _as_of_one(error) from error
        computed: dict[bytes, Row] = {}
        fields = {operation.top for one in ones for operation in one.operations}
        if fields:
            computed = await there_of(target, [one.row["_id"] for one in ones], fields, session)
        self.written = [
            (one, origin, computed.get(key_of(one.row["_id"]), {}))
            for one, origin in zip(ones, origins, strict=True)
        ]


def encoded(row: Row) -> bytes:
    """A row as it is stored."""
    return row.raw if isinstance(row, Read) else bson.encode(row, codec_options=CODEC_OPTIONS)


def _as_of_one(error: BulkWriteError) -> PyMongoError:
    """The error of a bulk write as `update_many` would raise it."""
    details: Any = error.details
    refusal = next(iter(details["writeErrors"]), None)
    if refusal is None:
        return error
    kind = DuplicateKeyError if refusal["code"] in _DUPLICATES else WriteError
    return kind(refusal["errmsg"], refusal["code"], refusal)
