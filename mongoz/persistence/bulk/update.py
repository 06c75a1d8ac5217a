"""Updates many documents: in one command if that is enough, else in batches, with the receivers of each document.

A batch is read and written in one transaction, see `update_batch`. If the transaction fails, for example because
another client writes one of the documents or the server has no transactions, each document gets its own command.
"""

import copy
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final, Generic, NamedTuple, TypeVar

from pymongo import ReturnDocument
from pymongo.errors import OperationFailure, PyMongoError, WriteError

from mongoz.connection.commits import is_aborted_after, is_committed
from mongoz.connection.transactions import run_private_transaction_once
from mongoz.fields.storage import stored, stored_names, stored_values
from mongoz.model.base import Model
from mongoz.model.state import loaded, restore
from mongoz.persistence.bulk.progress import (
    BulkProgress,
    Row,
    WrittenDocument,
    fire_for_each,
    fire_when_known,
    id_key,
)
from mongoz.persistence.bulk.selection import Selection
from mongoz.persistence.bulk.update_batch import DocumentUpdate, UpdateBatch, encode_row
from mongoz.persistence.errors import ATTEMPTS, DocumentChanged, write_conflict
from mongoz.persistence.operations.limits import limits_of, require_within_limits
from mongoz.persistence.operations.operation import Operation, with_operations
from mongoz.persistence.operations.preview import preview_operations
from mongoz.persistence.origin import Origin, make_originator
from mongoz.persistence.outcome.lookup import is_commit_unknown
from mongoz.persistence.patches import (
    apply_values_together,
    attribute_names,
    auto_now_values,
    set_auto_now,
    show_sets,
)
from mongoz.persistence.pre_signals import fire_pre_signal
from mongoz.persistence.rows.changes import Changes, find_changes
from mongoz.persistence.rows.copies import independent_values
from mongoz.persistence.rows.hydration import hydrate, hydrate_leniently, validate_stored
from mongoz.persistence.rows.invariants import has_invariants
from mongoz.persistence.rows.many import make_all
from mongoz.persistence.target import WriteTarget
from mongoz.persistence.watched import require_watched
from mongoz.persistence.write import Write, note_unknown_outcome, write_and_fire
from mongoz.signals.post_signals import Firing
from mongoz.stamps import FIELD, Call

__all__ = ["BulkPatch", "update_and_count", "update_and_load"]

D = TypeVar("D", bound=Model)

# BadValue, TypeMismatch, PathNotViable, ConflictingUpdateOperators, DollarPrefixedFieldName, EmptyFieldName,
# DottedFieldName, ImmutableField, DocumentValidationFailure, BSONObjectTooLarge and its older code.
_REFUSAL_CODES: Final = frozenset({2, 14, 28, 40, 52, 56, 57, 66, 121, 10334, 17419})


class BulkPatch(NamedTuple):
    """The changes that a bulk update makes to each document.

    Attributes:
        values: attribute name -> new value.
        operations: the changes that the server computes.
    """

    values: dict[str, Any]
    operations: tuple[Operation, ...] = ()


async def update_and_count(document: type[Model], selection: Selection, patch: BulkPatch) -> int:
    """Update the selected documents.

    Returns:
        The number of matching documents.
    """
    update = _BulkUpdate(document, selection, patch)
    if update.needs_each_document:
        await update.update_each()
    elif selection.is_plain:
        await update.update_at_once(selection.filter, selection.options)
    else:
        with update.progress.reported():
            async for ids in selection.id_batches():
                await update.update_at_once(selection.filter_for(ids), selection.collation)
    return update.progress.done


async def update_and_load(document: type[D], selection: Selection, patch: BulkPatch) -> list[D]:
    """Update the selected documents.

    Returns:
        The updated documents. A document that does not fit the model is included, since it was written too.
    """
    update = _BulkUpdate(document, selection, patch, loads=True)
    make = partial(hydrate_leniently, document, collection=update.other_collection)
    if update.needs_each_document:
        await update.update_each()
        return make_all(make, update.rows_in_order())
    instances: list[D] = []
    with update.progress.reported():
        async for ids in selection.id_batches():
            if await update.update_at_once(selection.filter_for(ids), selection.collation):
                instances += make_all(make, await selection.rows(ids))
    return instances


class _BulkUpdate(Generic[D]):
    """One bulk update.

    Args:
        document: the class.
        selection: the documents.
        patch: the changes to each document.
        loads: whether the caller needs the updated rows.
    """

    def __init__(self, document: type[D], selection: Selection, patch: BulkPatch, *, loads: bool = False) -> None:
        self.document = document
        self.selection = selection
        self.patch = patch
        self.target: WriteTarget = selection.target
        self.other_collection = self.target.other_collection(document)
        self.progress = BulkProgress(document, "updated", self.target)
        self._rows: dict[bytes, Row] = {}
        self._seen: list[bytes] = []
        self._loads = loads
        self._limits = limits_of(document, patch.operations)
        self._has_invariants = has_invariants(document)
        self._signal = document.meta.signals.post_update
        require_watched(document, self.target.collection, self._signal)

    @property
    def needs_each_document(self) -> bool:
        """Whether each document must be read first.

        The reason is a receiver, a stamp, a validator that reads several fields, a limit that no filter can
        express, or a collation under which ids are ambiguous.
        """
        firing = self.target.plan(self._signal)
        stamps = firing.informs_dispatchers and self.target.group
        has_receivers = self.document.meta.signals.pre_update.receivers or firing.receivers
        return bool(
            has_receivers
            or stamps
            or self._has_invariants
            or self._limits.has_others
            or self.selection.is_ambiguous
        )

    @property
    def _prepares(self) -> bool:
        """Whether the update of each document must be prepared from its content before the batch is written."""
        return bool(
            self._has_invariants or self._limits.has_others or self.document.meta.signals.pre_update.receivers
        )

    # -- in one command

    async def update_at_once(self, filter: Mapping[str, Any], options: Mapping[str, Any]) -> int:
        """Update all matching documents in one command; returns their number.

        Raises:
            pydantic.ValidationError: a document would exceed a limit of its field; nothing is written.
        """
        collection, limits = self.target.driver_collection, self._limits
        update = with_operations(self._common_changes().as_update(), self.patch.operations)
        if not limits.conditions:
            result = await collection.update_many(filter, update, session=self.target.session, **options)
        else:
            await self._require_all_within_limits(filter, options)
            within = {"$and": [dict(filter), *limits.conditions]} if filter else {"$and": list(limits.conditions)}
            result = await collection.update_many(within, update, session=self.target.session, **options)
            if not result.matched_count:  # another client may have changed the documents in between
                await self._require_all_within_limits(filter, options)
        self.progress.done += int(result.matched_count)
        return int(result.matched_count)

    async def _require_all_within_limits(self, filter: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        """Refuse the update before anything is written, if one of the documents would exceed a limit."""
        exceeded = self._limits.exceeded
        condition = {"$and": [dict(filter), exceeded]} if filter else exceeded
        row = await self.target.raw_collection.find_one(condition, session=self.target.session, **options)
        if row is not None:
            self._require_within_limits(self.target.decode(row))

    def _require_within_limits(self, row: Row) -> None:
        """Refuse a document that would exceed a limit of its field.

        Raises:
            pydantic.ValidationError: the message contains the collection, the `_id`, the field and the value.
        """
        if self._limits:
            require_within_limits(self.document, self.target.collection.namespace, row, self.patch.operations)

    def _common_changes(self) -> Changes:
        """The changes that are the same for all documents."""
        values = {**auto_now_values(self.document), **self.patch.values}
        return Changes(stored_values(self.document, values), ())

    # -- document by document

    async def update_each(self) -> None:
        """Update the selected documents in batches; run the receivers of each written document."""
        projection = None if self._prepares else {"_id": 1}
        with self.progress.reported():
            check = self._require_all_within_limits if self._limits.conditions else None
            async for rows in self.selection.batches(projection, check):
                if self._loads:
                    self._seen += map(_key, rows)
                for id_ in await self._update_batch(rows):
                    await self._update_one(id_)

    def rows_in_order(self) -> list[Row]:
        """The written documents as the update left them, in the order of the selection."""
        return [self._rows[key] for key in self._seen if key in self._rows]

    async def _update_batch(self, rows: list[Row]) -> list[Any]:
        """Update a batch in one transaction; returns the ids of documents that remain to be updated one by one."""
        ids = [row["_id"] for row in rows]
        prepared = {_key(row): await self._prepare(row) for row in rows} if self._prepares else None
        require_watched(self.document, self.target.collection, self._signal)
        firing = self.target.plan(self._signal)
        batch = UpdateBatch(self.selection, ids, partial(self._make_update, prepared))

        async def in_own_transaction() -> list[Any]:
            async with AsyncExitStack() as held:
                session = await held.enter_async_context(self.target.own_session())
                try:
                    await run_private_transaction_once(self.target.deployment, session, batch.write)
                except PyMongoError as error:
                    if not is_commit_unknown(error):
                        if is_aborted_after(error):
                            batch.note_unwritten()
                        return ids
                    if firing.receivers and batch.written:
                        self._fire_when_known(batch, error, session, held.pop_all())
                    raise
            await self._settle_and_fire(batch)
            return batch.changed

        async def unit() -> list[Any]:
            if self.target.in_transaction:
                await batch.write(self.target.session)
                await self._settle_and_fire(batch)
                return batch.changed
            try:
                return await in_own_transaction()
            finally:
                batch.leave()

        return await self.target.as_unit(firing, unit())

    async def _settle_and_fire(self, batch: UpdateBatch) -> None:
        self.progress.done += len(batch.written)
        if self._loads:
            self._rows.update(
                {_key(update.row): update.row_after(computed) for update, _, computed in batch.written}
            )
        written = [
            self._written(update, update.row_after(row), origin)
            for update, origin, row in batch.written
            if update.firing.receivers
        ]
        for each in written:
            self.target.undo_on_abort(each.instance)
        await fire_for_each(self.document, Firing(self._signal), self.target, written, self.progress)

    def _fire_when_known(
        self, batch: UpdateBatch, error: PyMongoError, session: Any, held: AsyncExitStack
    ) -> None:
        note_unknown_outcome(error)

        async def find_written() -> list[WrittenDocument]:
            if not await is_committed(session):
                return []
            return [self._written(update, update.row_after(row), origin) for update, origin, row in batch.written]

        fire_when_known(self.document, Firing(self._signal), self.target, find_written, held)

    def _written(self, update: DocumentUpdate, row: Row, origin: Origin) -> WrittenDocument:
        """The written document, as its receivers get it.

        Args:
            update: the update.
            row: the document after the update.
            origin: the origin of the write.
        """
        kept = copy.deepcopy(row) if self._loads else row
        instance = hydrate_leniently(self.document, kept, self.other_collection)
        if update.instance is not None:  # `pre_update` receivers, if there are any, got this instance
            instance = _replace_values(update.instance, instance)
        return WrittenDocument(instance, origin.token, self._keywords(update), update.firing, origin.claim)

    def _keywords(self, update: DocumentUpdate) -> dict[str, Any]:
        tops = (operation.top for operation in update.operations)
        names = attribute_names(self.document, (*update.changes.changed, *update.changes.removed, *tops))
        try:
            previous = hydrate(self.document, stored(update.row), self.other_collection)
        except Exception:  # an invalid document has no previous instance
            previous = None
        return {"update_fields": names, "previous": previous}

    async def _update_one(self, id_: Any) -> None:
        """Update one document if it still matches. Retry if it changed meanwhile."""
        for _ in range(ATTEMPTS):
            rows = await self.selection.matching([id_], session=self.target.session)
            if not rows:
                return
            update = await self._prepare(rows[0]) if self._prepares else self._common_update(rows[0])
            try:
                await self._send(update)
            except DocumentChanged:
                continue
            return
        raise write_conflict(self.document, self.target, id_)

    async def _send(self, update: DocumentUpdate) -> None:
        """Update one document, and run its receivers.

        Raises:
            DocumentChanged: the document does not match any more, or has changed since it was read.
        """
        firing, id_ = update.firing, update.row["_id"]
        origin = (await make_originator(firing, self.target, Call.UPDATED, natural=True)).origin_for(id_)
        request, settled = update.request(origin), False
        if update.encoded is not None:
            condition = self.selection.if_unchanged(update.row)
        elif self._limits.conditions:
            condition = self.selection.if_matching(update.row)
            condition["filter"] = {"$and": [condition["filter"], *self._limits.conditions]}
        else:
            condition = self.selection.if_matching(update.row)
        instance = update.instance
        if instance is None:
            instance = hydrate_leniently(self.document, copy.deepcopy(dict(update.row)), self.other_collection)

        async def send(session: Any) -> Row:
            try:
                found = await self.target.raw_collection.find_one_and_update(
                    **condition, update=request, return_document=ReturnDocument.AFTER, session=session
                )
            except OperationFailure as error:
                if error.code in _REFUSAL_CODES and type(error) is OperationFailure:
                    details: Any = error.details or {}
                    raise WriteError(str(details.get("errmsg", error)), error.code, details) from error
                raise
            if found is None:
                raise DocumentChanged
            row: Row = self.target.decode(found)
            return row

        def settle(instance: Any, row: Row) -> dict[str, Any]:
            nonlocal settled
            settled = True
            row = {name: value for name, value in row.items() if name != FIELD}
            row = {"_id": id_, **row} if "_id" not in row else row
            if self._loads:
                self._rows[_key(row)] = copy.deepcopy(row)
            self.target.undo_on_abort(instance)
            _replace_values(instance, hydrate_leniently(self.document, row, self.other_collection))
            return {"instance": instance, **self._keywords(update)}

        try:
            await write_and_fire(Write(self.target, firing, origin, instance, id_, settle), send)
        except Exception as error:
            if not settled:
                raise
            self.progress.add_error(error)
        self.progress.done += 1

    # -- the update of one document

    def _make_update(self, prepared: dict[bytes, DocumentUpdate] | None, row: Row) -> DocumentUpdate | None:
        """The update of a document; None if the prepared update is out of date.

        Args:
            prepared: the prepared updates by key; None if the update does not depend on the document.
            row: the document as it is now.
        """
        if prepared is None:
            return self._common_update(row)
        update = prepared[_key(row)]
        if update.encoded is not None and update.encoded != encode_row(row):
            return None
        self._require_within_limits(row)
        row.pop(FIELD, None)
        return update._replace(row=row)

    def _common_update(self, row: Row) -> DocumentUpdate:
        """The update with the same changes for all documents.

        Raises:
            pydantic.ValidationError: the document would exceed a limit of its field.
        """
        self._require_within_limits(row)
        return self._update_of(row, self._common_changes(), self.patch.operations)

    def _update_of(
        self,
        row: Row,
        changes: Changes,
        operations: tuple[Operation, ...],
        instance: Any = None,
        encoded: bytes | None = None,
    ) -> DocumentUpdate:
        tops = (operation.top for operation in operations)
        names = attribute_names(self.document, (*changes.changed, *changes.removed, *tops))
        return DocumentUpdate(row, changes, operations, self.target.plan(self._signal, names), instance, encoded)

    async def _prepare(self, row: Row) -> DocumentUpdate:
        """The update of a document, with the changes of validators and `pre_update` receivers.

        Raises:
            pydantic.ValidationError: the document would not fit the model.
        """
        self._require_within_limits(row)
        encoded = encode_row(row)
        row.pop(FIELD, None)
        instance = hydrate_leniently(self.document, copy.deepcopy(dict(row)), self.other_collection)
        operations, names = self.patch.operations, stored_names(self.document)
        values = independent_values(self.patch.values)
        if self._has_invariants:
            computed = preview_operations(row, operations)
            applied = apply_values_together(instance, values, operations, computed)
            operations = tuple(each for each in operations if each.attribute not in applied.derived)
            fields = applied.fields
        else:
            instance.__dict__.update(values)
            instance.__pydantic_fields_set__.update(values)
            fields = frozenset([*values, *set_auto_now(instance)])
        receiver_changes = await self._fire_pre_update(instance, fields, operations)
        operations = tuple(each for each in operations if each.top not in receiver_changes.names)
        after = stored(instance)
        changes = Changes(
            {names[name]: after[names[name]] for name in fields} | receiver_changes.changed,
            receiver_changes.removed,
        )
        is_derived = (
            self._has_invariants or self._limits.has_others or receiver_changes.changed or receiver_changes.removed
        )
        return self._update_of(row, changes, operations, instance, encoded if is_derived else None)

    async def _fire_pre_update(
        self, instance: D, fields: frozenset[str], operations: tuple[Operation, ...]
    ) -> Changes:
        """Fire `pre_update`; returns the changes that the receivers made to the instance, validated."""
        signal = self.document.meta.signals.pre_update
        if not signal.receivers:
            return Changes({}, ())
        show_sets(instance, operations)
        before = stored(instance)
        updated = fields | {operation.attribute for operation in operations}
        await fire_pre_signal(signal, self.document, instance=instance, update_fields=updated)
        receiver_changes = find_changes(before, stored(instance))
        if not (receiver_changes.changed or receiver_changes.removed):
            return receiver_changes
        if self._has_invariants:
            derived = apply_values_together(instance, {})
            return find_changes(before, stored(instance)) if derived else receiver_changes
        # Validate only the changed fields: an invalid value in another field must not make the update fail.
        valid = validate_stored(self.document.proxy_document, receiver_changes.changed)
        names = {alias: name for name, alias in stored_names(self.document).items()}
        for alias in receiver_changes.changed.keys() & names.keys():
            instance.__dict__[names[alias]] = valid.__dict__[names[alias]]
        return find_changes(before, stored(instance))


def _replace_values(instance: Any, other: Any) -> Any:
    """Give an instance the values and the state of another one."""
    instance.__dict__.update(other.__dict__)
    object.__setattr__(instance, "__pydantic_extra__", other.__pydantic_extra__)
    restore(instance, loaded(other))
    return instance


def _key(row: Row) -> bytes:
    return id_key(row["_id"])
