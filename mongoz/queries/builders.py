"""The builder methods of queries: each returns a new query."""

from dataclasses import replace
from typing import Any, Generic, Never, Self, TypeVar

import bson
from pymongo.collation import Collation

from mongoz.connection import Collection, Database
from mongoz.connection.transactions import join_transaction
from mongoz.exceptions import FieldDefinitionError, ImproperlyConfigured, InvalidKeyError
from mongoz.model.base import Model
from mongoz.queries.expressions import Condition, Order, compile_condition
from mongoz.queries.lookups import compile_lookups, refuse_positional
from mongoz.queries.pipelines import OPTIONS
from mongoz.queries.plan import Plan, conjunction
from mongoz.queries.projection import field_names, field_parts
from mongoz.queries.sort_keys import compile_sort
from mongoz.synonyms import nearest

__all__ = ["QueryBuilder"]

D = TypeVar("D", bound=Model)


class QueryBuilder(Generic[D]):
    """A document class and an immutable plan. Each method returns a new query with a refined plan."""

    # Class defaults, for applications' managers whose constructor does not call this constructor.
    _bound: type[D] | None = None
    _plan = Plan()

    def __init__(self, document: type[D] | None = None, plan: Plan | None = None) -> None:
        self._bound = document
        self._plan = plan or Plan()

    @property
    def _document(self) -> type[D]:
        """The queried document class.

        Raises:
            ImproperlyConfigured: this is a manager that is not attached to a document.
        """
        if self._bound is None:
            raise ImproperlyConfigured(
                f"This {type(self).__name__} belongs to no document; assign it in the body of a document class, "
                "and use it through that class."
            )
        return self._bound

    _returns_itself = False
    """Whether awaiting the query returns the query itself. True only for the result of `none()`."""

    def _bind(self, document: type[D]) -> Self:
        """Return a copy of this manager that belongs to the document."""
        manager = self._with(self._plan)
        manager._bound = document
        return manager

    def _with(self, plan: Plan) -> Self:
        # The class is not called, because an application's manager may have its own constructor and state.
        query = object.__new__(type(self))
        query.__dict__ = {**self.__dict__, "_plan": plan, "_returns_itself": False}
        return query

    def _derive(self, **changes: Any) -> Self:
        return self._with(replace(self._plan, **changes))

    def filter(self, *misplaced: Never, **lookups: Any) -> Self:
        """Keep only documents that match all keywords: `name="Ada"`, `age__gte=18`, `**{"address.city": "Bonn"}`.

        Raises:
            InvalidKeyError: there is no such field.
            OperatorInvalid: there is no such lookup.
        """
        refuse_positional("filter", misplaced)
        return self._with(self._plan.matching(*compile_lookups(self._document, lookups)))

    def exclude(self, *misplaced: Never, **lookups: Any) -> Self:
        """Leave out documents that match all keywords.

        Raises:
            InvalidKeyError: there is no such field.
            OperatorInvalid: there is no such lookup.
        """
        refuse_positional("exclude", misplaced)
        compiled = compile_lookups(self._document, lookups)
        conditions = [{"$nor": [conjunction(compiled.conditions)]}] if compiled.conditions else []
        return self._with(self._plan.matching(conditions, compiled.joins, compiled.order))

    def all(self, *misplaced: Never, **lookups: Any) -> Self:
        """All documents that match the keywords, as with `filter`. Await the query for a list."""
        refuse_positional("all", misplaced)
        return self.filter(**lookups)

    def query(self, *conditions: Condition) -> Self:
        """Keep only documents that match all conditions: expressions, or MongoDB queries as dicts.

        Raises:
            InvalidKeyError: an argument is no condition, or contains an unknown field.

        Examples:
            >>> await User.objects.query(User.age >= 18, {"name": {"$exists": True}})
        """
        return self._with(self._plan.matching([compile_condition(self._document, each) for each in conditions]))

    def raw(self, *conditions: Condition) -> Self:
        """Alias of `query`."""
        return self.query(*conditions)

    def where(self, js: str | bson.Code) -> Self:
        """Keep only documents for which a JavaScript expression or function is true; `this` is the document.

        Never include a user's input, because `js` is code.

        Raises:
            TypeError: `js` is neither a str nor a bson.Code.

        Examples:
            >>> await Movie.objects.where("this.year > 2000")
        """
        if not isinstance(js, str):  # bson.Code is a subclass
            raise TypeError(f"where() takes JavaScript as a str or a bson.Code, not {js!r}.")
        return self._with(self._plan.matching([{"$where": js}]))

    def only(self, *names: Any) -> Self:
        """Load these fields only, and the id. A second call replaces the first.

        Args:
            *names: names of fields, or dotted names. With `"address.city"`, the loaded address has only the city.

        Raises:
            InvalidKeyError: there is no such field.
            FieldDefinitionError: the query has a `defer` already.
        """
        chosen, parts = field_parts(self._document, names)
        if self._plan.defer and chosen:
            raise FieldDefinitionError("only() and defer() exclude each other; this query has a defer() already.")
        return self._derive(only=chosen | {"id"}, parts=parts) if chosen else self._derive()

    def defer(self, *names: Any) -> Self:
        """Don't load these fields. A second call adds further fields. The id is always loaded.

        Raises:
            InvalidKeyError: there is no such field.
            FieldDefinitionError: the query has an `only` already.
        """
        left_out = field_names(self._document, "defer", names)
        if self._plan.only is not None and left_out:
            raise FieldDefinitionError("only() and defer() exclude each other; this query has an only() already.")
        return self._derive(defer=self._plan.defer | left_out - {"id"})

    def sort(self, key: Any = None, direction: int = Order.ASCENDING, **lookups: Any) -> Self:
        """Order by a key. A second call adds a key: it orders documents whose earlier keys are equal.

        Args:
            key: a field's name, `Document.field`, a SortExpression, or a list of these or of `(key, direction)`.
            direction: `Order.ASCENDING` (1) or `Order.DESCENDING` (-1).
            **lookups: `name__asc=True`, `age__desc=True`.

        Raises:
            InvalidKeyError: there is no such field or direction.
        """
        compiled = compile_sort(self._document, key, direction, lookups)
        return self._with(self._plan.matching((), compiled.joins, compiled.order))

    def limit(self, count: int) -> Self:
        """At most `count` documents; 0 is no limit.

        Raises:
            ValueError: count is negative.
        """
        return self._derive(limit=_not_negative("limit", count))

    def skip(self, count: int) -> Self:
        """Leave out the first `count` documents.

        Raises:
            ValueError: count is negative.
        """
        return self._derive(skip=_not_negative("skip", count))

    def using(self, database: str | Database) -> Self:
        """Work on the collection of the same name in another database of the registry.

        Loaded instances remember the database, so their `save` and `delete` use the same collection.

        Raises:
            ImproperlyConfigured: `database` is not the name of a database.
        """
        name = database.name if isinstance(database, Database) else database
        if not isinstance(name, str) or not name:
            raise ImproperlyConfigured(f"using() takes the name of a database, not {database!r}.")
        return self._derive(database=name)

    def using_session(self, session: Any) -> Self:
        """Read and write in the driver's session; None joins the transaction of the task, if there is one."""
        return self._derive(session=session)

    def options(self, **options: Any) -> Self:
        """Options for the driver.

        Args:
            **options: `hint`: an index's name or its `(key, direction)` pairs. `collation`: pymongo's Collation,
                or a dict. `max_time_ms`: the server's time limit. `batch_size`: rows per round trip. None removes
                an option.

        Raises:
            InvalidKeyError: there is no such option.
        """
        for name in options:
            if name not in OPTIONS:
                raise InvalidKeyError(f"options() takes no {name!r}.{nearest(name, OPTIONS)}")
        collation = options.get("collation")
        if isinstance(collation, Collation):
            options["collation"] = collation.document
        merged = {**self._plan.options, **options}
        return self._derive(options={name: value for name, value in merged.items() if value is not None})

    def none(self) -> Self:
        """A query without documents, which sends no command. Awaiting it returns the empty query itself."""
        query = self._derive(nothing=True)
        query._returns_itself = True
        return query

    @property
    def _place(self) -> Collection:
        """The `Collection` of this query."""
        own = self._document.meta.require_collection()
        database = self._plan.database
        if database is None or database == own.database.name:
            return own
        return own.sibling(database)

    @property
    def _other_collection(self) -> Collection | None:
        """The collection of this query; None if it is the collection of the document class."""
        place = self._place
        return None if place == self._document.meta.collection else place

    @property
    def _collection(self) -> Any:
        """The driver's collection, for the running event loop."""
        return self._place.driver_collection

    @property
    def _session(self) -> Any:
        """The driver's session of this query, or None."""
        return join_transaction(self._place.database.deployment, self._plan.session).session


def _not_negative(method: str, count: int) -> int:
    if not isinstance(count, int) or count < 0:
        raise ValueError(f"{method}({count!r}): the number of documents must be an int of at least 0.")
    return count
