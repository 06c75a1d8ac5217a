"""The methods by which queries read documents."""

from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Never, TypeVar

from mongoz.exceptions import (
    DocumentNotFound,
    FieldDefinitionError,
    InvalidKeyError,
    InvalidObjectIdError,
    MultipleDocumentsReturned,
    OperatorInvalid,
)
from mongoz.fields.object_id import parse_object_id
from mongoz.fields.storage import stored
from mongoz.model.base import Model
from mongoz.model.paths import resolve_path
from mongoz.model.reserved import without_stamps
from mongoz.persistence.rows.many import make_all
from mongoz.queries.builders import QueryBuilder
from mongoz.queries.columns import Columns, select_columns
from mongoz.queries.distinct import load_values
from mongoz.queries.lookups import refuse_positional
from mongoz.queries.pipelines import command_options, find_arguments, is_for_find_only, last_row_stages, pipeline
from mongoz.queries.plan import Plan
from mongoz.queries.projection import instance_maker, projection

__all__ = ["ReadQuery"]

D = TypeVar("D", bound=Model)

_ID_ONLY: Final = {"_id": 1}


class ReadQuery(QueryBuilder[D]):
    """A query with its reading methods. Awaiting it gives a list of instances; `async for` streams them."""

    async def execute(self) -> list[D]:
        """All matching documents as a list.

        Awaiting the query does the same, except after `none()`: then it returns the query itself.
        """
        plan = self._plan
        make = instance_maker(self._document, plan, self._other_collection)
        return make_all(make, await self._fetch(plan, projection(self._document, plan)))

    async def first(self) -> D | None:
        """The first matching document, or None. Reads one document."""
        return next(iter(await self._with(self._plan.at_most(1)).execute()), None)

    async def last(self) -> D | None:
        """The last matching document, or None; without a sort, the one with the highest id. Reads one document."""
        plan = self._plan
        if not (plan.skip or plan.limit):
            return await self._derive(order=plan.reversed_order).first()
        # The position of the last document depends on the number of matches, which only the server knows.
        rows = await self._fetch(plan, projection(self._document, plan), last_row_stages(plan))
        return instance_maker(self._document, plan, self._other_collection)(rows[0]) if rows else None

    async def get(self, *misplaced: Never, **lookups: Any) -> D:
        """The only matching document.

        Raises:
            DocumentNotFound: no document matches.
            MultipleDocumentsReturned: several documents match.
        """
        refuse_positional("get", misplaced)
        return await self.filter(**lookups)._get()

    async def _get(self) -> D:
        plan = self._plan
        found = await self._with(plan.at_most(2)).execute()
        if not found:
            raise DocumentNotFound(f"No {self._document.__name__} matches {plan.filter!r}.")
        if len(found) > 1:
            raise MultipleDocumentsReturned(f"More than one {self._document.__name__} matches {plan.filter!r}.")
        return found[0]

    async def get_or_none(self, *misplaced: Never, **lookups: Any) -> D | None:
        """The only matching document, or None.

        Raises:
            MultipleDocumentsReturned: several documents match.
        """
        refuse_positional("get_or_none", misplaced)
        try:
            return await self.get(**lookups)
        except DocumentNotFound:
            return None

    async def get_document_by_id(self, id: Any) -> D:
        """The document with this id.

        Args:
            id: an ObjectId or its 24 hexadecimal digits (or a value of the type of the document's id,
                if that type is not ObjectId).

        Raises:
            InvalidKeyError: the document's id is an ObjectId, and `id` is neither an ObjectId nor 24 digits.
            DocumentNotFound: there is no such document.
        """
        if resolve_path(self._document, "id").is_id:
            try:
                id = parse_object_id(id)
            except InvalidObjectIdError as error:
                raise InvalidKeyError(f"{self._document.__name__}: {error}") from error
        return await self.get(id=id)

    async def count(self) -> int:
        """The number of matching documents. `skip` and `limit` apply."""
        plan = self._plan
        if plan.nothing:
            return 0
        if plan.joins:
            rows = await self._fetch(plan, None, [{"$count": "count"}])
            return int(rows[0]["count"]) if rows else 0
        if is_for_find_only(plan.conditions):
            return len(await self._fetch(plan, _ID_ONLY))
        window = {key: value for key in ("skip", "limit") if (value := getattr(plan, key))}
        options = command_options(plan, "hint", "collation", "max_time_ms")
        session = self._session
        return int(await self._collection.count_documents(plan.filter, session=session, **window, **options))

    async def exists(self, *misplaced: Never, **lookups: Any) -> bool:
        """Whether any document matches."""
        refuse_positional("exists", misplaced)
        return await self.filter(**lookups)._exists()

    async def _exists(self) -> bool:
        return bool(await self._fetch(self._plan.at_most(1), _ID_ONLY))

    async def distinct_values(self, key: Any) -> list[Any]:
        """The distinct values of one field; for a list field, the distinct items.

        Args:
            key: a field's name, which may be dotted, or `Document.field`.

        Raises:
            InvalidKeyError: there is no such field.
        """
        plan, path = self._plan, resolve_path(self._document, str(key)).path
        if plan.nothing:
            return []
        options = command_options(plan, "hint", "collation", "max_time_ms")
        conditions = plan.filter
        if plan.joins or plan.skip or plan.limit:  # the server's command supports none of these
            conditions = {"_id": {"$in": [row["_id"] for row in await self._fetch(plan, _ID_ONLY)]}}
            options.pop("hint", None)
        values = await self._collection.distinct(path, conditions, session=self._session, **options)
        return load_values(self._document, path, values)

    async def values(
        self, fields: list[Any] | None = None, exclude: Any = None, exclude_none: bool = False
    ) -> list[dict[str, Any]]:
        """The matching documents as dicts of plain Python values. Reads only the wanted fields.

        Args:
            fields: names of fields; None for all. `reference__name` is a field of a referenced document. The
                result contains referenced documents as a list, under the name of their collection.
            exclude: names of fields to leave out.
            exclude_none: leave out values that are None.

        Raises:
            FieldDefinitionError: `fields` is no list, or `exclude` is no list, tuple or set.
            InvalidKeyError: there is no such field.

        Examples:
            >>> await Movie.objects.values(["name", "producer_id__city"])
            [{"name": "Alien", "producers": [{"city": "London"}]}]
        """
        columns = select_columns(self._document, self._plan, fields, exclude, undeclared=True)
        return await self._fetch_columns(columns, exclude_none)

    async def values_list(
        self,
        fields: list[Any] | str | None = None,
        exclude: Any = None,
        exclude_none: bool = False,
        flat: bool = False,
    ) -> list[Any]:
        """The matching documents as tuples: the id, then the inherited fields, then the document's own.

        Args:
            fields: names of fields, or one name. None for all fields.
            exclude: names of fields to leave out.
            exclude_none: leave out values that are None; tuples may then have different lengths.
            flat: return the values of a single field instead of tuples.

        Raises:
            FieldDefinitionError: `fields` is neither a list nor a str, `exclude` is no list, tuple or set, or
                `flat` is set without exactly one field.
            InvalidKeyError: there is no such field.
        """
        names = [fields] if isinstance(fields, str) else fields
        try:
            columns = select_columns(self._document, self._plan, names, exclude, undeclared=False)
        except InvalidKeyError as error:
            if flat:
                raise FieldDefinitionError(f"flat=True needs a field: {error}") from error
            raise
        if flat and (not names or columns.width != 1):
            raise FieldDefinitionError(f"flat=True needs exactly one field, not {fields!r}.")
        rows = [tuple(row.values()) for row in await self._fetch_columns(columns, exclude_none)]
        return [row[0] for row in rows if row] if flat else rows

    async def aggregate(self, pipeline: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Run an aggregation pipeline on the matching documents; returns the rows as dicts.

        The conditions, the sort, `skip`, `limit`, `only` and `defer` of the query come first. Names in the
        pipeline are stored names. Origin stamps are removed, at any depth.

        Raises:
            TypeError: `pipeline` is no list of stages.
            OperatorInvalid: a condition of the query uses JavaScript or `$near`, which no pipeline supports.

        Examples:
            >>> await Movie.objects.filter(year__gte=1980).aggregate([{"$sortByCount": "$year"}])
        """
        if not isinstance(pipeline, list | tuple):
            raise TypeError(f"aggregate() takes a list of stages, not {pipeline!r}.")
        plan = self._plan
        if plan.nothing:
            return []
        if is_for_find_only(plan.conditions):
            raise OperatorInvalid(
                f"aggregate() supports no JavaScript ($where) and no $near in the conditions {plan.filter!r}. "
                "Write the condition with $expr, or make $geoNear the first stage of the pipeline."
            )
        cursor = await self._cursor(plan, projection(self._document, plan), stored(pipeline))
        return [without_stamps(row) async for row in cursor]

    async def explain(self) -> dict[str, Any]:
        """The server's `explain` of the query, with the statistics of all considered plans."""
        plan = self._plan
        if plan.nothing:
            return {}
        place, fields = self._place, projection(self._document, plan)
        # The command runs outside the session: servers refuse explain inside a transaction.
        if not plan.joins:
            explained = await self._collection.find(**find_arguments(plan, fields)).explain()
        else:
            options = command_options(plan, "hint", "collation", "max_time_ms")
            aggregation = {"aggregate": place.name, "pipeline": pipeline(plan, fields), "cursor": {}, **options}
            explained = await place.database.driver_database.command({"explain": aggregation})
        return dict(explained)

    async def _fetch_columns(self, columns: Columns, exclude_none: bool) -> list[dict[str, Any]]:
        plan, parts = columns.plan, columns.parts
        make = instance_maker(self._document, plan, self._other_collection, parts)
        rows = await self._fetch(plan, projection(self._document, plan, parts))
        return make_all(lambda row: columns.values_of(make(row), exclude_none=exclude_none), rows)

    async def _fetch(
        self, plan: Plan, fields: Mapping[str, Any] | None, further: Any = ()
    ) -> list[dict[str, Any]]:
        """All rows of a plan."""
        if plan.nothing:
            return []
        cursor = await self._cursor(plan, fields, further)
        rows: list[dict[str, Any]] = await cursor.to_list(None)
        return rows

    async def _cursor(
        self, plan: Plan, fields: Mapping[str, Any] | None, further: Any = (), collection: Any = None
    ) -> Any:
        """The driver's cursor over the rows of a plan.

        Args:
            plan: the plan.
            fields: the projection.
            further: stages of an aggregation, after those of the plan.
            collection: the driver's collection with other codec options; None for the query's own.
        """
        session = self._session
        found_in = self._collection if collection is None else collection
        if not (plan.joins or further):
            return found_in.find(**find_arguments(plan, fields), session=session)
        stages = [*pipeline(plan, fields), *further]
        options = command_options(plan, "hint", "collation", "max_time_ms", "batch_size")
        adapter = self._place.database.deployment.adapter
        return await adapter.aggregate(found_in, stages, session=session, **options)

    def _rows(
        self, fields: Mapping[str, Any] | None = None, batch_size: int | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """The raw rows, one after another."""
        plan = self._plan
        if batch_size is not None:
            plan = replace(plan, options={**plan.options, "batch_size": batch_size})
        return self._stream(plan, fields, lambda row: row)

    async def _stream(
        self, plan: Plan, fields: Mapping[str, Any] | None, make: Callable[[dict[str, Any]], Any]
    ) -> AsyncIterator[Any]:
        if plan.nothing:
            return
        cursor = await self._cursor(plan, fields)
        try:
            async for row in cursor:
                yield make(row)
        finally:
            await cursor.close()

    def __aiter__(self) -> AsyncIterator[D]:
        plan = self._plan
        make = instance_maker(self._document, plan, self._other_collection)
        return self._stream(plan, projection(self._document, plan), make)

    def __await__(self) -> Generator[Any, None, list[D]]:
        return self._result().__await__()

    async def _result(self) -> Any:
        return self if self._returns_itself else await self.execute()

    def __bool__(self) -> bool:
        return not self._plan.nothing  # false only after none(); no command is sent

    def __len__(self) -> int:
        return len(self._known_documents())

    def __iter__(self) -> Iterator[D]:
        return iter(self._known_documents())

    def __getitem__(self, key: object) -> Any:
        raise TypeError(f"{self!r} has no items: for [10:15] write skip(10).limit(5), for [3] skip(3).first().")

    def _known_documents(self) -> tuple[D, ...]:
        if self._plan.nothing:
            return ()
        raise TypeError(f"{self!r} has not run yet: await it for a list, or stream it with 'async for'.")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._document.__name__}: {self._plan.filter!r}>"
