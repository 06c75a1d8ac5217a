"""The terminals of a query that write."""

import warnings
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from mongoz.exceptions import InvalidKeyError
from mongoz.fields.storage import stored_names
from mongoz.persistence import upsert as upserting
from mongoz.persistence import writes
from mongoz.persistence.bulk import delete as bulk_deleting
from mongoz.persistence.bulk import insert as bulk
from mongoz.persistence.bulk import update as bulk_updating
from mongoz.persistence.bulk.selection import Selection
from mongoz.persistence.patches import validated_values
from mongoz.persistence.target import Target, aim
from mongoz.queries.equalities import equalities
from mongoz.queries.pipelines import own_filter
from mongoz.queries.reads import Reading
from mongoz.queries.update_operators import Change, resolve_all
from mongoz.settings import settings
from mongoz.synonyms import nearest

if TYPE_CHECKING:
    from mongoz.documents.base import Document

__all__ = ["Writing"]

D = TypeVar("D", bound="Document")


class Writing(Reading[D]):
    """What a query can be told to do. Every write fires the signals of its document."""

    async def create(self, **values: Any) -> D:
        """Make a document of these values, and write it.

        Raises:
            pydantic.ValidationError: a value does not fit its field.
        """
        return await writes.create(self._document(**values), self._elsewhere, self._plan.session)

    async def create_many(self, models: Iterable[D]) -> list[D]:
        """Insert many instances; see `Document.create_many`."""
        return await bulk.create_many(self._document, models, self._elsewhere, self._plan.session)

    async def bulk_create(self, models: Iterable[D]) -> list[D]:
        """The same as `create_many`."""
        return await self.create_many(models)

    async def update(self, *operations: Change, **fields: Any) -> list[D]:
        """Change fields of all matching documents.

        Where no receiver is connected this takes three commands: one for the ids, one that writes, one that
        loads. Where one is connected, or a validator looks at several fields, documents are found and written in
        batches, each only if it matches still, and `pre_update` and `post_update` fire for each.

        Args:
            *operations: changes that the server computes: `U.inc(age=1)`.
            **fields: new values; names that are not fields are ignored, with a warning.

        Returns:
            The documents that matched before the write, as they are after it.

        Raises:
            pydantic.ValidationError: a value does not fit its field, or the model; nothing is written.
            WriteConflict: others change a document faster than it can be read, validated and written.
        """
        patch = self._patch(operations, fields)
        if patch is None:
            return await self.execute()
        return await bulk_updating.update_and_load(self._document, await self._selection(ordered=True), patch)

    async def update_many(self, *operations: Change, **fields: Any) -> list[D]:
        """The same as `update`."""
        return await self.update(*operations, **fields)

    async def bulk_update(self, *operations: Change, **fields: Any) -> list[D]:
        """The same as `update`."""
        return await self.update(*operations, **fields)

    async def update_count(self, *operations: Change, **fields: Any) -> int:
        """Change fields of all matching documents, without loading them where no receiver is connected.

        One round trip then, unless a validator looks at several fields; otherwise batches, so that any number of
        documents can be updated.

        Args:
            *operations: changes that the server computes: `U.inc(age=1)`.
            **fields: new values; names that are not fields are ignored, with a warning.

        Returns:
            How many documents matched.

        Raises:
            pydantic.ValidationError: a value does not fit its field, or the model; nothing is written.
            WriteConflict: others change a document faster than it can be read, validated and written.
        """
        patch = self._patch(operations, fields)
        if patch is None:
            return await self.count()
        return await bulk_updating.update_and_count(self._document, await self._selection(), patch)

    async def delete(self) -> int:
        """Delete all matching documents: in one command where no receiver is connected, else in batches.

        Returns:
            How many were deleted.
        """
        if self._plan.nothing:
            return 0
        return await bulk_deleting.delete(self._document, await self._selection())

    async def get_or_create(self, defaults: Mapping[Any, Any] | None = None, **lookups: Any) -> D:
        """The only matching document, or else a new one.

        What the query and the lookups ask to be equal becomes the new document's fields, together with the
        defaults. One atomic upsert: if another writer is faster, its document is returned, and `post_save` does
        not fire. (Two that are equally fast are only kept apart by a unique index.)

        Args:
            defaults: further fields of a new document; keys are names or `Document.field`.
            **lookups: as for `filter`.

        Raises:
            InvalidKeyError: no such field, or a condition on a referenced document.
            MultipleDocumentsReturned: more than one matches.
            pydantic.ValidationError: a new document would not fit the model.
        """
        query = self.filter(**lookups) if lookups else self
        found = await query.get_or_none()
        if found is not None:
            return found
        if query._plan.joins:
            raise InvalidKeyError(
                "get_or_create() can't look into a referenced document; it would not make that one."
            )
        values = equalities(self._document, query._plan.conditions)
        by_id = "id" in values
        values.update({str(name): value for name, value in (defaults or {}).items()})
        instance = self._document(**values)
        target = await aim(self._document, self._elsewhere, self._plan.session)
        while not await upserting.insert_unless(instance, query._plan.filter, target, by_id=by_id):
            found = await query.get_or_none()
            if found is not None:
                return found
        return instance

    async def _selection(self, *, ordered: bool = False) -> Selection:
        plan = self._plan
        target = await aim(self._document, self._elsewhere, plan.session)
        options = {name: plan.options[name] for name in ("hint", "collation") if name in plan.options}
        needs_ids = plan.joins or plan.skip or plan.limit or (ordered and plan.order)
        return Selection(target, own_filter(plan), options, partial(self._ids, target) if needs_ids else None)

    async def _ids(self, target: Target) -> list[Any]:
        if self._plan.nothing:
            return []
        cursor = await self._cursor(self._plan, {"_id": 1}, collection=target.lenient)
        return [target.read(row)["_id"] for row in await cursor.to_list(None)]

    def _patch(self, operations: tuple[Change, ...], fields: dict[str, Any]) -> bulk_updating.Patch | None:
        """What to write; None if there is nothing to."""
        document = self._document
        by_stored_name = {alias: name for name, alias in stored_names(document).items()}
        known = {}
        for given, value in fields.items():
            name = given if given in document.model_fields else by_stored_name.get(given, "id")
            if name != "id":
                known[name] = value
                continue
            warnings.warn(
                f"update() of {document.__name__} ignores {given!r}: no field that can be updated."
                f"{nearest(given, document.model_fields) if given not in settings.parsed_ids else ''}",
                stacklevel=4,
            )
        resolved = resolve_all(document, operations)
        if self._plan.nothing or not (known or resolved):
            return None
        return bulk_updating.Patch(validated_values(document, known), resolved)
