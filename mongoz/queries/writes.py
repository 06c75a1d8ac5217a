"""The methods of queries that write."""

import warnings
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

from mongoz.exceptions import InvalidKeyError
from mongoz.fields.storage import stored_names
from mongoz.model.base import Model
from mongoz.persistence.bulk.delete import delete_selected
from mongoz.persistence.bulk.insert import insert_many
from mongoz.persistence.bulk.selection import Selection
from mongoz.persistence.bulk.update import BulkPatch, update_and_count, update_and_load
from mongoz.persistence.insert import insert_instance, insert_unless_exists
from mongoz.persistence.rows.validation import validate_values
from mongoz.persistence.target import WriteTarget, resolve_target
from mongoz.queries.equalities import find_equalities
from mongoz.queries.pipelines import own_filter
from mongoz.queries.reads import ReadQuery
from mongoz.queries.update_operators import UpdateOperator, resolve_operators
from mongoz.settings import settings
from mongoz.synonyms import nearest

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
            **fields: new values; names that are not fields are ignored, with a warning.

        Returns:
            The documents that matched before the write, as they are after it.

        Raises:
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
        change. If a receiver is connected, a validator reads several fields, or the query has joins, `skip` or
        `limit`, the documents are updated in batches, so that their number has no limit.

        Args:
            *operations: changes that the server computes: `U.inc(age=1)`.
            **fields: new values; names that are not fields are ignored, with a warning.

        Returns:
            The number of matching documents.

        Raises:
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
        `post_save` does not fire. (Only a unique index keeps two concurrent upserts from inserting a document
        each.)

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
        plan = self._plan
        if plan.joins:
            raise InvalidKeyError(
                "get_or_create() supports no conditions on a referenced document, since it can't create that "
                "document."
            )
        values = find_equalities(self._document, plan.conditions)
        by_id = "id" in values
        values.update({str(name): value for name, value in defaults.items()})
        instance = self._document(**values)
        target = await resolve_target(self._document, self._other_collection, plan.session)
        while not await insert_unless_exists(instance, plan.filter, target, by_id=by_id):
            found = await self.get_or_none()
            if found is not None:
                return found
        return instance

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
        by_stored_name = {alias: name for name, alias in stored_names(document).items()}
        known = {}
        for given, value in fields.items():
            name = given if given in document.model_fields else by_stored_name.get(given, "id")
            if name != "id":
                known[name] = value
                continue
            warnings.warn(
                f"update() of {document.__name__} ignores {given!r}: it is no field that can be updated."
                f"{nearest(given, document.model_fields) if given not in settings.parsed_ids else ''}",
                stacklevel=4,
            )
        resolved = resolve_operators(document, operations)
        if self._plan.nothing or not (known or resolved):
            return None
        return BulkPatch(validate_values(document, known), resolved)
