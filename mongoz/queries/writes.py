"""The write methods of queries."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

from mongoz.exceptions import InvalidKeyError, WriteConflict
from mongoz.model.base import Model
from mongoz.persistence.bulk.delete import delete_selected
from mongoz.persistence.bulk.insert import insert_many
from mongoz.persistence.bulk.selection import Selection
from mongoz.persistence.bulk.update import BulkPatch, update_and_count, update_and_load
from mongoz.persistence.errors import ATTEMPTS
from mongoz.persistence.insert import insert_instance, insert_unless_exists
from mongoz.persistence.rows.validation import validate_values
from mongoz.persistence.target import WriteTarget, resolve_target
from mongoz.persistence.update import update_if_matching
from mongoz.queries.equalities import find_equalities, put_value
from mongoz.queries.pipelines import own_filter
from mongoz.queries.reads import ReadQuery
from mongoz.queries.update_operators import UpdateOperator, resolve_update

__all__ = ["WriteQuery"]

D = TypeVar("D", bound=Model)


class WriteQuery(ReadQuery[D]):
    """A query that can write. Every write fires the signals of its document."""

    async def create(self, **values: Any) -> D:
        """Make a document with these values, and insert it.

        Raises:
            pydantic.ValidationError: a value does not fit its field.
        """
        return await insert_instance(self._document(**values), self._other_collection, self._plan.session)

    async def create_many(self, models: Iterable[D]) -> list[D]:
        """Insert many instances; see `Document.create_many`."""
        return await insert_many(self._document, models, self._other_collection, self._plan.session)

    async def bulk_create(self, models: Iterable[D]) -> list[D]:
        """Alias of `create_many`."""
        return await self.create_many(models)

    async def update(self, *operations: UpdateOperator, **fields: Any) -> list[D]:
        """Change fields of all matching documents.

        Without connected receivers this takes three commands: one reads the ids, one writes, one loads. With a
        receiver, or a validator that reads several fields, documents are read and written in batches. A document
        is written only if it still matches, and `pre_update` and `post_update` fire for each document.

        Args:
            *operations: changes that the server computes: `U.inc(age=1)`.
            **fields: new values, even of a part of a field: `**{"address.city": "Lyon"}`.

        Returns:
            The documents that matched before the write, as they are after it.

        Raises:
            InvalidKeyError: a field does not exist or is the id, or two changes overlap.
            pydantic.ValidationError: a value does not fit its field, or the model; nothing is written.
            WriteConflict: other clients change a document faster than it can be read, validated and written.
        """
        patch = self._patch(operations, fields)
        if patch is None:
            return await self.execute()
        return await update_and_load(self._document, await self._selection(ordered=True), patch)

    async def update_many(self, *operations: UpdateOperator, **fields: Any) -> list[D]:
        """Alias of `update`."""
        return await self.update(*operations, **fields)

    async def bulk_update(self, *operations: UpdateOperator, **fields: Any) -> list[D]:
        """Alias of `update`."""
        return await self.update(*operations, **fields)

    async def update_count(self, *operations: UpdateOperator, **fields: Any) -> int:
        """Change fields of all matching documents, without loading them if no receiver is connected.

        The update takes one round trip, or more if the server must check limits of fields that `operations`
        change. Documents are updated in batches if a receiver is connected, if a validator reads several fields,
        or if the query has joins, `skip` or `limit`. The number of documents has no limit.

        Args:
            *operations: changes that the server computes: `U.inc(age=1)`.
            **fields: new values, even of a part of a field: `**{"address.city": "Lyon"}`.

        Returns:
            The number of matching documents.

        Raises:
            InvalidKeyError: a field does not exist or is the id, or two changes overlap.
            pydantic.ValidationError: a value does not fit its field, or the model; nothing is written.
            WriteConflict: other clients change a document faster than it can be read, validated and written.
        """
        patch = self._patch(operations, fields)
        if patch is None:
            return await self.count()
        return await update_and_count(self._document, await self._selection(), patch)

    async def delete(self) -> int:
        """Delete all matching documents: in one command if no receiver is connected, else in batches.

        Returns:
            The number of deleted documents.
        """
        if self._plan.nothing:
            return 0
        return await delete_selected(self._document, await self._selection())

    async def get_or_create(self, defaults: Mapping[Any, Any] | None = None, **lookups: Any) -> D:
        """The only matching document, or else a new one.

        Equality conditions of the query and the lookups become fields of the new document, together with the
        defaults. The insert is an atomic upsert: if another writer is faster, its document is returned, and
        `post_save` does not fire. (Without a unique index, two concurrent upserts can each insert a document.)

        Args:
            defaults: further fields of a new document; keys are names or `Document.field`.
            **lookups: as for `filter`.

        Raises:
            InvalidKeyError: there is no such field, or a condition is on a referenced document.
            MultipleDocumentsReturned: several documents match.
            pydantic.ValidationError: a new document would not fit the model.
        """
        query = self.filter(**lookups) if lookups else self
        return await query._get_or_create(defaults or {})

    async def _get_or_create(self, defaults: Mapping[Any, Any]) -> D:
        found = await self.get_or_none()
        if found is not None:
            return found
        self._require_creatable("get_or_create")
        values = find_equalities(self._document, self._plan.conditions)
        by_id = "id" in values
        values.update({str(name): value for name, value in defaults.items()})
        instance = self._document(**values)
        target = await resolve_target(self._document, self._other_collection, self._plan.session)
        while not await insert_unless_exists(instance, self._filter, target, by_id=by_id):
            found = await self.get_or_none()
            if found is not None:
                return found
        return instance

    def _require_creatable(self, method: str) -> None:
        if self._plan.joins:
            raise InvalidKeyError(
                f"{method}() supports no conditions on a referenced document, since it can't create that document."
            )
        if self._plan.skip:
            raise InvalidKeyError(f"{method}() supports no skip(), because the skipped documents match too.")

    @property
    def _filter(self) -> dict[str, Any]:
        """The conditions as one MongoDB filter, which matches nothing after `none()`."""
        return {"_id": {"$in": []}} if self._plan.nothing else self._plan.filter

    async def update_or_create(self, defaults: Mapping[Any, Any] | None = None, **lookups: Any) -> tuple[D, bool]:
        """Update the only matching document; create a document if none matches.

        The update is one atomic command, which contains the conditions too. The insert is an atomic upsert, as in
        `get_or_create`. If another writer is faster, the call starts again, with the document as that writer has
        changed it.

        Args:
            defaults: the fields to change. A new document gets these fields and those of the equality conditions.
                Keys are names, dotted names, or `Document.field`.
            **lookups: as for `filter`.

        Returns:
            The document as it is now, and whether it was created.

        Raises:
            InvalidKeyError: there is no such field, or a condition is on a referenced document.
            MultipleDocumentsReturned: several documents match.
            pydantic.ValidationError: the document would not fit the model.
            WriteConflict: other clients create, change or delete the document faster than it can be written.

        Examples:
            >>> user, created = await User.objects.update_or_create({"name": "Ada"}, email="ada@example.org")
        """
        query = self.filter(**lookups) if lookups else self
        return await query._update_or_create({str(name): value for name, value in (defaults or {}).items()})

    async def _update_or_create(self, defaults: dict[str, Any]) -> tuple[D, bool]:
        document, plan = self._document, self._plan
        self._require_creatable("update_or_create")
        values, operations = resolve_update(document, (), defaults)
        target = await resolve_target(document, self._other_collection, plan.session)
        for _ in range(ATTEMPTS):
            found = await self.get_or_none()
            if found is None:
                new = find_equalities(document, plan.conditions)
                by_id = "id" in new
                for name, value in defaults.items():
                    put_value(document, new, name, value)
                instance = document(**new)
                if await insert_unless_exists(instance, self._filter, target, by_id=by_id):
                    return instance, True
            elif not defaults or await update_if_matching(found, values, operations, plan.filter, target):
                return found, False
        raise WriteConflict(
            f"update_or_create() of {document.__name__} gave up: other clients created, changed or deleted the "
            f"document for {plan.filter!r} {ATTEMPTS} times before it could be written. Try again when fewer "
            "clients write it."
        )

    async def _selection(self, *, ordered: bool = False) -> Selection:
        plan = self._plan
        target = await resolve_target(self._document, self._other_collection, plan.session)
        options = {name: plan.options[name] for name in ("hint", "collation") if name in plan.options}
        needs_ids = plan.joins or plan.skip or plan.limit or (ordered and plan.order)
        return Selection(target, own_filter(plan), options, partial(self._ids, target) if needs_ids else None)

    async def _ids(self, target: WriteTarget) -> list[Any]:
        if self._plan.nothing:
            return []
        cursor = await self._cursor(self._plan, {"_id": 1}, collection=target.raw_collection)
        return [target.decode(row)["_id"] for row in await cursor.to_list(None)]

    def _patch(self, operations: tuple[UpdateOperator, ...], fields: dict[str, Any]) -> BulkPatch | None:
        """The changes to write; None if there are none."""
        document = self._document
        values, resolved = resolve_update(document, operations, fields)
        if self._plan.nothing or not (values or resolved):
            return None
        return BulkPatch(validate_values(document, values), resolved)
