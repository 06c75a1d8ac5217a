"""Updating many documents: in one command where that can do, else in batches, each document under its conditions.

A batch is found and written in one transaction, see `bulk_batch`. Where that fails, because another client writes
one of its documents or the server has no transactions, they are written one by one: then each command says what it
did.
"""

import copy
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

from pymongo import ReturnDocument
from pymongo.errors import OperationFailure, PyMongoError, WriteError

from mongoz.connection.transactions import is_committed, run_once
from mongoz.fields.storage import stored, stored_names, stored_values
from mongoz.persistence.bulk.progress import Progress, Row, Written, fire, fire_later, key_of
from mongoz.persistence.bulk.selection import Selection
from mongoz.persistence.bulk.update_batch import Batch, One, encoded
from mongoz.persistence.operations.limits import limits_of, require_within
from mongoz.persistence.operations.operation import Operation, with_operations
from mongoz.persistence.operations.preview import preview
from mongoz.persistence.origin import Origin, originator
from mongoz.persistence.outcome.lookup import is_commit_open
from mongoz.persistence.patches import apply_as_whole, attribute_names, now_values, touch
from mongoz.persistence.pre_signals import ask
from mongoz.persistence.rows.copies import independent_values
from mongoz.persistence.rows.hydration import Changes, changes, hydrate, hydrate_anyway, validated_as_stored
from mongoz.persistence.rows.invariants import has_invariants
from mongoz.persistence.target import Target
from mongoz.persistence.watched import require_watched
from mongoz.persistence.write import Write, note, send_and_tell
from mongoz.persistence.writes import ATTEMPTS, Moved, moves_too_fast
from mongoz.signals.post_signals import Firing
from mongoz.stamps import FIELD, Call

if TYPE_CHECKING:
    from mongoz.documents.base import Document

__all__ = ["Patch", "update_and_count", "update_and_load"]

D = TypeVar("D", bound="Document")

# BadValue, TypeMismatch, PathNotViable, ConflictingUpdateOperators, DollarPrefixedFieldName, EmptyFieldName,
# DottedFieldName, ImmutableField, DocumentValidationFailure, BSONObjectTooLarge and its older code.
_REFUSALS: Final = frozenset({2, 14, 28, 40, 52, 56, 57, 66, 121, 10334, 17419})


class Patch(NamedTuple):
    """What a bulk update does to each document.

    Attributes:
        values: attribute name -> new value.
        operations: what the server computes.
    """

    values: dict[str, Any]
    operations: tuple[Operation, ...] = ()


async def update_and_count(document: type["Document"], selection: Selection, patch: Patch) -> int:
    """Update what is selected.

    Returns:
        How many documents matched.
    """
    update = _Update(document, selection, patch)
    if update.goes_by_document:
        await update.by_document()
    elif selection.is_plain:
        await update.at_once(selection.filter, selection.options)
    else:
        with update.progress.reported():
            async for ids in selection.id_batches():
                await update.at_once(selection.among(ids), selection.collation)
    return update.progress.done


async def update_and_load(document: type[D], selection: Selection, patch: Patch) -> list[D]:
    """Update what is selected.

    Returns:
        The documents that were updated, as they are after, whether that fits the model or not: they are written.
    """
    update = _Update(document, selection, patch, loads=True)
    if update.goes_by_document:
        await update.by_document()
        return [hydrate_anyway(document, row, update.elsewhere) for row in update.rows_in_order()]
    instances: list[D] = []
    with update.progress.reported():
        async for ids in selection.id_batches():
            if await update.at_once(selection.among(ids), selection.collation):
                rows = await selection.rows(ids)
                instances += [hydrate_anyway(document, row, update.elsewhere) for row in rows]
    return instances


class _Update(Generic[D]):
    """One bulk update.

    Args:
        document: the class.
        selection: of what.
        patch: what is done to each.
        loads: what is stored then is wanted.
    """

    def __init__(self, document: type[D], selection: Selection, patch: Patch, *, loads: bool = False) -> None:
        self.document = document
        self.selection = selection
        self.patch = patch
        self.target: Target = selection.target
        self.elsewhere = self.target.elsewhere(document)
        self.progress = Progress(document, "updated", self.target)
        self._rows: dict[bytes, Row] = {}
        self._seen: list[bytes] = []
        self._loads = loads
        self._limits = limits_of(document, patch.operations)
        self._whole = has_invariants(document)
        self._signal = document.meta.signals.post_update
        require_watched(document, self.target.collection, self._signal)

    @property
    def goes_by_document(self) -> bool:
        """Whether each document must be looked at: for a receiver, a stamp, or a validator."""
        firing = self.target.plan(self._signal)
        stamps = (firing.muted or firing.hops) and self.target.group
        heard = self.document.meta.signals.pre_update.receivers or firing.receivers
        return bool(heard or stamps or self._whole or self._limits.others or self.selection.is_ambiguous)

    @property
    def _prepares(self) -> bool:
        """Whether all documents of a batch must be looked at before any of them is written."""
        return bool(self._whole or self._limits.others or self.document.meta.signals.pre_update.receivers)

    # -- in one command

    async def at_once(self, filter: Mapping[str, Any], options: Mapping[str, Any]) -> int:
        """Update what matches, in one command; returns how many did.

        Raises:
            pydantic.ValidationError: one of the documents is beyond a limit of its field then; nothing is written.
        """
        driver, limits = self.target.driver, self._limits
        update = self._common().as_update()
        update = with_operations(update, self.patch.operations)
        if not limits.conditions:
            result = await driver.update_many(filter, update, session=self.target.session, **options)
        else:
            await self._require_within(filter, options)
            within = {"$and": [dict(filter), *limits.conditions]} if filter else {"$and": list(limits.conditions)}
            result = await driver.update_many(within, update, session=self.target.session, **options)
            if not result.matched_count:  # another client may have come before
                await self._require_within(filter, options)
        self.progress.done += int(result.matched_count)
        return int(result.matched_count)

    async def _require_within(self, filter: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        """Refuse all of what matches if a document of it would be beyond a limit then: before any is written."""
        broken = self._limits.broken
        condition = {"$and": [dict(filter), broken]} if filter else broken
        row = await self.target.lenient.find_one(condition, session=self.target.session, **options)
        if row is not None:
            self._check(self.target.read(row))

    def _check(self, row: Row) -> None:
        """Refuse a document that the operations would take beyond a limit of its field.

        Raises:
            pydantic.ValidationError: names collection, `_id`, field and value.
        """
        if self._limits:
            require_within(self.document, self.target.collection.namespace, row, self.patch.operations)

    def _common(self) -> Changes:
        """What is set on every document, where that does not depend on it."""
        values = {**now_values(self.document), **self.patch.values}
        return Changes(stored_values(self.document, values), ())

    # -- document by document

    async def by_document(self) -> None:
        """Update what is selected in batches; tell the receivers of each document that was written."""
        projection = None if self._prepares else {"_id": 1}
        with self.progress.reported():
            look = self._require_within if self._limits.conditions else None
            async for rows in self.selection.batches(projection, look):
                if self._loads:
                    self._seen += map(_key, rows)
                for id_ in await self._together(rows):
                    await self._alone(id_)

    def rows_in_order(self) -> list[Row]:
        """What is stored now in the documents that were written, in the order of the selection."""
        return [self._rows[key] for key in self._seen if key in self._rows]

    async def _together(self, rows: list[Row]) -> list[Any]:
        """Update a batch in one transaction; returns the ids of those that are to be updated one by one."""
        ids = [row["_id"] for row in rows]
        prepared = {_key(row): await self._prepared(row) for row in rows} if self._prepares else None
        require_watched(self.document, self.target.collection, self._signal)
        heard = self.target.plan(self._signal)
        batch = Batch(self.selection, ids, partial(self._now, prepared))

        async def unit() -> list[Any]:
            if self.target.in_transaction:
                await batch.write(self.target.session)
                await self._settle_and_tell(batch)
                return batch.moved
            async with AsyncExitStack() as held:
                session = await held.enter_async_context(self.target.own_session())
                try:
                    await run_once(self.target.registry, session, batch.write)
                except PyMongoError as error:
                    if not is_commit_open(error):
                        return ids
                    if heard.receivers and batch.written:
                        self._tell_when_known(batch, error, session, held.pop_all())
                    raise
            await self._settle_and_tell(batch)
            return batch.moved

        return await self.target.as_unit(heard, unit())

    async def _settle_and_tell(self, batch: Batch) -> None:
        self.progress.done += len(batch.written)
        if self._loads:
            self._rows.update({_key(one.row): one.after(computed) for one, _, computed in batch.written})
        written = [
            self._told(one, one.after(row), origin) for one, origin, row in batch.written if one.firing.receivers
        ]
        for each in written:
            self.target.keep_undoable(each.instance)
        await fire(self.document, Firing(self._signal), self.target, written, self.progress)

    def _tell_when_known(self, batch: Batch, error: PyMongoError, session: Any, held: AsyncExitStack) -> None:
        note(error)

        async def found_out() -> list[Written]:
            if not await is_committed(session):
                return []
            return [self._told(one, one.after(row), origin) for one, origin, row in batch.written]

        fire_later(self.document, Firing(self._signal), self.target, found_out, held)

    def _told(self, one: One, row: Row, origin: Origin) -> Written:
        """What the receivers of a document are told, which is this row now."""
        instance = hydrate_anyway(self.document, copy.deepcopy(row) if self._loads else row, self.elsewhere)
        if one.instance is not None:  # the one that `pre_update` receivers know
            instance = _become(one.instance, instance)
        return Written(instance, origin.token, self._keywords(one), one.firing)

    def _keywords(self, one: One) -> dict[str, Any]:
        tops = (operation.top for operation in one.operations)
        names = attribute_names(self.document, (*one.changes.changed, *one.changes.removed, *tops))
        try:
            was = hydrate(self.document, stored(one.row), self.elsewhere)
        except Exception:  # as for any instance: better nothing than a half
            was = None
        return {"update_fields": names, "previous": was}

    async def _alone(self, id_: Any) -> None:
        """Update one document, if it matches still; again where it has changed meanwhile."""
        for _ in range(ATTEMPTS):
            rows = await self.selection.matching([id_], session=self.target.session)
            if not rows:
                return
            one = await self._prepared(rows[0]) if self._prepares else self._plain(rows[0])
            try:
                await self._send(one)
            except Moved:
                continue
            return
        raise moves_too_fast(self.document, self.target, id_)

    async def _send(self, one: One) -> None:
        """Update one document, and tell its receivers.

        Raises:
            Moved: it does not match any more, or has changed since.
        """
        firing, id_ = one.firing, one.row["_id"]
        origin = (await originator(firing, self.target, Call.UPDATED, natural=True)).of(id_)
        update, settled = one.request(origin), False
        if one.read is not None:
            condition = self.selection.as_it_was(one.row)
        elif self._limits.conditions:
            condition = self.selection.still(one.row)
            condition["filter"] = {"$and": [condition["filter"], *self._limits.conditions]}
        else:
            condition = self.selection.still(one.row)
        instance = one.instance
        if instance is None:
            instance = hydrate_anyway(self.document, copy.deepcopy(dict(one.row)), self.elsewhere)

        async def send(session: Any) -> Row:
            try:
                found = await self.target.lenient.find_one_and_update(
                    **condition, update=update, return_document=ReturnDocument.AFTER, session=session
                )
            except OperationFailure as error:
                if error.code in _REFUSALS and type(error) is OperationFailure:
                    details: Any = error.details or {}
                    raise WriteError(str(details.get("errmsg", error)), error.code, details) from error
                raise
            if found is None:
                raise Moved
            row: Row = self.target.read(found)
            return row

        def settle(instance: Any, row: Row) -> dict[str, Any]:
            nonlocal settled
            settled = True
            row = {name: value for name, value in row.items() if name != FIELD}
            row = {"_id": id_, **row} if "_id" not in row else row
            if self._loads:
                self._rows[_key(row)] = copy.deepcopy(row)
            self.target.keep_undoable(instance)
            _become(instance, hydrate_anyway(self.document, row, self.elsewhere))
            return {"instance": instance, **self._keywords(one)}

        try:
            await send_and_tell(Write(self.target, firing, origin, instance, id_, send, settle))
        except Exception as error:
            if not settled:
                raise
            self.progress.failed(error)
        self.progress.done += 1

    # -- what is written to one document

    def _now(self, prepared: dict[bytes, One] | None, row: Row) -> One | None:
        """What is to be written to a document that is this row now; None if that must be found out anew.

        Args:
            prepared: by key, what was to be written as it was, where that depends on the document.
            row: as it is now.
        """
        if prepared is None:
            return self._plain(row)
        one = prepared[_key(row)]
        if one.read is not None and one.read != encoded(row):
            return None
        self._check(row)
        row.pop(FIELD, None)
        return one._replace(row=row)

    def _plain(self, row: Row) -> One:
        """What is written to every document alike.

        Raises:
            pydantic.ValidationError: the document would be beyond a limit of its field then.
        """
        self._check(row)
        changed = self._common()
        return self._one(row, changed, self.patch.operations)

    def _one(
        self, row: Row, changed: Changes, operations: tuple[Operation, ...], instance: Any = None, read: Any = None
    ) -> One:
        tops = (operation.top for operation in operations)
        names = attribute_names(self.document, (*changed.changed, *changed.removed, *tops))
        return One(row, changed, operations, self.target.plan(self._signal, names), instance, read)

    async def _prepared(self, row: Row) -> One:
        """What is written to a document of which validators, or `pre_update` receivers, decide.

        Raises:
            pydantic.ValidationError: what would be stored does not fit the model.
        """
        self._check(row)
        read = encoded(row)
        row.pop(FIELD, None)
        instance = hydrate_anyway(self.document, copy.deepcopy(dict(row)), self.elsewhere)
        operations, names = self.patch.operations, stored_names(self.document)
        values = independent_values(self.patch.values)
        if self._whole:
            computed = preview(row, operations)
            applied = apply_as_whole(instance, values, operations, computed)
            operations = tuple(each for each in operations if each.attribute not in applied.derived)
            fields = applied.fields
        else:
            instance.__dict__.update(values)
            instance.__pydantic_fields_set__.update(values)
            fields = frozenset([*values, *touch(instance)])
        more = await self._more(instance, fields | {each.attribute for each in operations})
        after = stored(instance)
        patch = Changes({names[name]: after[names[name]] for name in fields} | more.changed, more.removed)
        derives = self._whole or self._limits.others or more.changed or more.removed
        return self._one(row, patch, operations, instance, read if derives else None)

    async def _more(self, instance: D, fields: frozenset[str]) -> Changes:
        """What `pre_update` receivers change on an instance, validated."""
        signal = self.document.meta.signals.pre_update
        if not signal.receivers:
            return Changes({}, ())
        before = stored(instance)
        await ask(signal, self.document, instance=instance, update_fields=fields)
        more = changes(before, stored(instance))
        if not (more.changed or more.removed):
            return more
        if self._whole:
            derived = apply_as_whole(instance, {})
            return changes(before, stored(instance)) if derived else more
        # Only this: what the document had before may be whatever it is, as if nobody listened.
        valid = validated_as_stored(self.document.proxy_document, more.changed)
        names = {alias: name for name, alias in stored_names(self.document).items()}
        for alias in more.changed.keys() & names.keys():
            instance.__dict__[names[alias]] = valid.__dict__[names[alias]]
        return changes(before, stored(instance))


def _become(instance: Any, other: Any) -> Any:
    """Give an instance the values of another one, and what that remembers of the database."""
    instance.__dict__.update(other.__dict__)
    object.__setattr__(instance, "__pydantic_extra__", other.__pydantic_extra__)
    object.__setattr__(instance, "_loaded", other._loaded)
    return instance


def _key(row: Row) -> bytes:
    return key_of(row["_id"])
