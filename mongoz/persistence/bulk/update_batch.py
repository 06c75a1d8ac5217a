"""A batch of a bulk update: read and written in one transaction.

After the transaction it is known which documents were written, and with which values.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import bson
from pymongo import UpdateOne
from pymongo.errors import BulkWriteError, DuplicateKeyError, PyMongoError, WriteError

from mongoz.connection.codec import CODEC_OPTIONS, LenientRow
from mongoz.persistence.bulk.progress import Row, find_existing, id_key
from mongoz.persistence.bulk.selection import Selection
from mongoz.persistence.operations.operation import Operation, with_operations
from mongoz.persistence.origin import Origin, make_originator
from mongoz.persistence.rows.changes import Changes
from mongoz.signals.post_signals import Firing
from mongoz.stamps import FIELD, Call

__all__ = ["DocumentUpdate", "UpdateBatch", "encode_row"]

_DUPLICATE_KEY_CODES: Final = frozenset({11000, 11001, 12582})


class DocumentUpdate(NamedTuple):
    """The update of one document.

    Attributes:
        row: the document as it was read.
        changes: the fields to set and remove.
        operations: the changes that the server computes.
        firing: the receivers.
        instance: the prepared instance, which `pre_update` receivers get; None if the update is not prepared.
        encoded: the BSON of the row, if the update was computed from the row. Such an update must be made again
            if the document has changed. None for all other updates.
    """

    row: Row
    changes: Changes
    operations: tuple[Operation, ...]
    firing: Firing
    instance: Any = None
    encoded: bytes | None = None

    def request(self, origin: Origin) -> dict[str, Any]:
        """The update with MongoDB's operators, and with the stamp if the origin has one."""
        stamped = self.changes._replace(changed=origin.stamped(self.changes.changed))
        return with_operations(stamped.as_update(), self.operations)

    def row_after(self, computed: Row) -> Row:
        """The row after the update.

        Args:
            computed: the fields that the server computed.
        """
        tops = {operation.top for operation in self.operations}
        dropped = {*self.changes.removed, *tops, FIELD}
        kept = {name: value for name, value in self.row.items() if name not in dropped}
        return {**kept, **self.changes.changed, **{name: computed[name] for name in computed if name in tops}}


class UpdateBatch:
    """A batch of a bulk update.

    Args:
        selection: the selected documents.
        ids: the ids of the batch.
        make_update: makes the update of a document from its row; returns None if the document must be read again.

    Attributes:
        written: each written document, its origin, and the fields that the server computed.
        changed: the ids of the documents for which `make_update` returned None.
    """

    def __init__(
        self, selection: Selection, ids: list[Any], make_update: Callable[[Row], DocumentUpdate | None]
    ) -> None:
        self._selection = selection
        self._ids = ids
        self._make_update = make_update
        self.written: list[tuple[DocumentUpdate, Origin, Row]] = []
        self.changed: list[Any] = []
        self._origins: list[Origin] = []

    def note_unwritten(self) -> None:
        """Record that the transaction was certainly not committed."""
        for origin in self._origins:
            origin.undone()

    def leave(self) -> None:
        """Leave the claimed receivers to dispatchers, unless they have run."""
        for origin in self._origins:
            origin.leave()

    async def write(self, session: Any) -> None:
        """Read the matching documents and update them, in a transaction."""
        target = self._selection.target
        self.written, self.changed = [], []
        updates: list[DocumentUpdate] = []
        for row in await self._selection.matching(self._ids, session=session):
            update = self._make_update(row)
            if update is None:
                self.changed.append(row["_id"])
            else:
                updates.append(update)
        if not updates:
            return
        originators = {}
        for update in updates:
            if update.firing not in originators:
                originators[update.firing] = await make_originator(
                    update.firing, target, Call.UPDATED, natural=True
                )
        origins = [originators[update.firing].origin_for(update.row["_id"]) for update in updates]
        self._origins = origins
        requests = [
            UpdateOne({"_id": update.row["_id"]}, update.request(origin))
            for update, origin in zip(updates, origins, strict=True)
        ]
        try:
            await target.driver_collection.bulk_write(requests, session=session)
        except BulkWriteError as error:
            raise _as_single_error(error) from error
        computed: dict[bytes, Row] = {}
        fields = {operation.top for update in updates for operation in update.operations}
        if fields:
            computed = await find_existing(target, [update.row["_id"] for update in updates], fields, session)
        self.written = [
            (update, origin, computed.get(id_key(update.row["_id"]), {}))
            for update, origin in zip(updates, origins, strict=True)
        ]


def encode_row(row: Row) -> bytes:
    """The BSON of a row."""
    return row.raw if isinstance(row, LenientRow) else bson.encode(row, codec_options=CODEC_OPTIONS)


def _as_single_error(error: BulkWriteError) -> PyMongoError:
    """The error of a bulk write as `update_many` would raise it."""
    details: Any = error.details
    refusal = next(iter(details["writeErrors"]), None)
    if refusal is None:
        return error
    kind = DuplicateKeyError if refusal["code"] in _DUPLICATE_KEY_CODES else WriteError
    return kind(refusal["errmsg"], refusal["code"], refusal)
