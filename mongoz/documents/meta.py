"""What `class Meta` says, resolved against the parents' and the class itself."""

from typing import Any, Final

from mongoz.connection import Collection, Database, Registry
from mongoz.connection.namespaces import NamespacePattern, Watch, parse_pattern
from mongoz.exceptions import AbstractDocumentError, ImproperlyConfigured
from mongoz.fields import BaseField
from mongoz.model.indexes import Index, gathered, indexes_in_meta, indexes_of_fields
from mongoz.persistence.indexing import ensure
from mongoz.queries.managers import refuse_several_managers
from mongoz.signals import Broadcaster
from mongoz.stamps import FIELD
from mongoz.synonyms import nearest

__all__ = ["MetaInfo"]

_OPTIONS: Final = frozenset(
    {"registry", "database", "collection", "abstract", "indexes", "autogenerate_index", "watch"}
)

_NO_DATABASE: Final = (
    "'database' for the table not found in the Meta class or any of the superclasses. "
    "You must set the database in the Meta."
)


class MetaInfo:
    """`Document.meta`: where a document lives and what belongs to it.

    Attributes:
        registry: the Registry, or None.
        database: a Database, or None where there is no registry.
        collection: a Collection; None for abstract documents and without a registry.
        abstract: it has no collection and makes no rows.
        autogenerate_index: the indexes are created before the first write to each collection.
        watch: further databases and collections that hold this document, as written in Meta.
        watched: the same as patterns of namespaces. The own collection is always watched, and not among them.
        fields: name -> field.
        indexes: those of the fields, then Meta's own, then those of the parents' Meta. The list may be changed
            after the class is defined.
        signals: the Broadcaster.
        document: the class, also when asked through that of only() or defer() rows.
    """

    registry: Registry | None
    database: Database | None
    collection: Collection | None
    abstract: bool
    fields: dict[str, BaseField]
    signals: Broadcaster
    document: Any
    indexes: list[Index]
    autogenerate_index: bool
    watch: tuple[str, ...]
    watched: Watch

    def __init__(self, document_name: str, declared: object, parents: list["MetaInfo"]) -> None:
        """Read the options of one class.

        Args:
            document_name: for messages and the default collection's name.
            declared: the inner class Meta, if there is one.
            parents: the Meta of the parents, nearest first.

        Raises:
            ImproperlyConfigured: an unknown option, or one of a wrong type.
            ValueError: something in `indexes` is no Index.
        """
        self._options = options = _options_of(document_name, declared)
        self._document_name = document_name
        self.registry = options.get("registry") or _inherited("registry", parents)
        self.abstract = bool(options.get("abstract", False))
        self.autogenerate_index = bool(
            options.get("autogenerate_index", _inherited("autogenerate_index", parents))
        )
        self._database_option = options.get("database") or _inherited("_database_name", parents)
        self._collection_option = options.get("collection")
        # Of abstract parents only: what a concrete parent watches holds its own documents.
        self._patterns = (
            _patterns_of(document_name, options["watch"])
            if "watch" in options
            else _inherited("_patterns", [parent for parent in parents if parent.abstract])
        )
        self.watch = tuple(str(pattern) for pattern in self._patterns or ())
        self.watched = Watch()
        self.fields = {}
        self._own_indexes = indexes_in_meta(document_name, options.get("indexes", ()))
        self._field_indexes: list[Index] = []
        self.indexes = []
        self._check_types()
        self.database = self._make_database()
        self.collection = None

    def settle(self, document: type, fields: dict[str, BaseField], parents: list["MetaInfo"]) -> None:
        """Finish once the class exists: its fields, its collection, its signals.

        Raises:
            ImproperlyConfigured: a concrete document has a registry but no database, or an abstract one several
                managers.
            IndexError: two indexes have the same name.
        """
        self.document = document
        self.fields = fields
        for name, field in fields.items():
            if FIELD in (field.alias, field.serialization_alias):
                raise ImproperlyConfigured(
                    f"{self._document_name}.{name} can't be stored as {FIELD!r}: this name is reserved for the "
                    "origin stamps of writes. Give the field another alias."
                )
        self.abstract = self.abstract or not set(fields) - {"id"}
        if self.abstract:
            refuse_several_managers(document)
        if not self.abstract and self.registry is not None:
            if self.database is None:
                raise ImproperlyConfigured(_NO_DATABASE, detail=f"({self._document_name} has none.)")
            self.collection = self._make_collection(self.database)
            self.watched = Watch(self._patterns or (), self.collection.name)
        self._field_indexes = indexes_of_fields(fields)
        inherited = [index for parent in parents for index in parent._own_indexes]
        self.indexes = gathered(self._document_name, [*self._field_indexes, *self._own_indexes], inherited)
        self.signals = Broadcaster(
            document,
            tuple(parent.signals for parent in parents if parent.abstract),
            dispatched=self.registry is not None and self.registry.dispatched is not None,
        )

    def require_collection(self) -> Collection:
        """The collection to work on.

        Raises:
            AbstractDocumentError: the document is abstract.
            ImproperlyConfigured: it has no registry.
        """
        if self.collection is not None:
            return self.collection
        if self.abstract:
            reason = "" if set(self.fields) - {"id"} else ", since it has no fields"
            raise AbstractDocumentError(
                f"{self._document_name} is abstract{reason}: it has no collection. "
                "Use a document that inherits from it."
            )
        raise ImproperlyConfigured(
            f"{self._document_name} has no registry, so it can't be read or written; set 'registry' in its Meta."
        )

    def wanted_indexes(self) -> list[Index]:
        """The declared indexes, without those of fields whose `index` was set to False since."""
        unwanted = [index for index in self._field_indexes if not self.fields[index.name].index]
        return [index for index in self.indexes if not any(index is one for one in unwanted)]

    async def ensure_indexes(self, target: Collection, session: Any = None) -> None:
        """Create the indexes in a collection that this process did not create there yet, if Meta wants that.

        Args:
            target: the collection that is about to be written to.
            session: the one that the write uses, if the caller gave one. The indexes are built outside of it.

        Raises:
            pymongo.errors.OperationFailure: the server refuses one.
        """
        if self.autogenerate_index:
            await ensure(self.document, target, session)

    def _check_types(self) -> None:
        if self.registry is not None and not isinstance(self.registry, Registry):
            raise self._wrong("registry", self.registry, "a mongoz.Registry")
        if not isinstance(self._database_option, str | Database | None):
            raise self._wrong("database", self._database_option, "a name or a Database")
        if not isinstance(self._collection_option, str | Collection | None):
            raise self._wrong("collection", self._collection_option, "a name or a Collection")

    def _wrong(self, option: str, value: object, expected: str) -> ImproperlyConfigured:
        return ImproperlyConfigured(f"Meta.{option} of {self._document_name} must be {expected}, not {value!r}.")

    @property
    def _database_name(self) -> str | None:
        """What children inherit: in their own registry, should they have another."""
        option = self._database_option
        return option.name if isinstance(option, Database) else option

    def _make_database(self) -> Database | None:
        option: str | Database | None = self._database_option
        if isinstance(option, str):
            return self.registry.get_database(option) if self.registry is not None else None
        if option is not None and self.registry is not None:
            self._refuse_other_registry("database", option, option)
        return option

    def _make_collection(self, database: Database) -> Collection:
        option = self._collection_option
        if isinstance(option, Collection):
            self._refuse_other_registry("collection", option, option.database)
            return option
        return database.get_collection(option or f"{self._document_name.lower()}s")

    def _refuse_other_registry(self, option: str, value: object, database: Database) -> None:
        if database._registry is not self.registry:
            raise ImproperlyConfigured(
                f"Meta.{option} of {self._document_name} is {value!r} of another registry; give its name, or "
                "take it from the registry in Meta."
            )

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type]:
        """Lets `class Meta(Parent.Meta)` inherit the options, as if that was still the class it is written as."""
        options = {name: value for name, value in self._options.items() if name != "abstract"}
        return (type("Meta", (), options),)

    def __repr__(self) -> str:
        return f"<Meta of {self._document_name}: {self.collection or 'abstract'}>"


def _options_of(document_name: str, declared: object) -> dict[str, Any]:
    if declared is None:
        return {}
    if not isinstance(declared, type):
        raise ImproperlyConfigured(f"{document_name}.Meta must be a class with options, not {declared!r}.")
    options = {
        name: value
        for kind in reversed(declared.__mro__)
        for name, value in vars(kind).items()
        if not name.startswith("__")
    }
    unknown = next((name for name in options if name not in _OPTIONS), None)
    if unknown:
        raise ImproperlyConfigured(
            f"Meta of {document_name} has no option {unknown!r}.{nearest(unknown, _OPTIONS)}"
        )
    return options


def _patterns_of(document_name: str, watch: object) -> tuple[NamespacePattern, ...]:
    """The entries of `Meta.watch`.

    Raises:
        ImproperlyConfigured: it is no list, or one of them can't be a namespace.
    """
    if not isinstance(watch, list | tuple):
        raise ImproperlyConfigured(
            f"Meta.watch of {document_name} must be a list of namespaces such as ['archive.users'], not {watch!r}."
        )
    patterns = []
    for entry in watch:
        try:
            patterns.append(parse_pattern(entry))
        except ValueError as error:
            raise ImproperlyConfigured(
                f"Meta.watch of {document_name} has {entry!r}, which {error}; write 'database.collection', or a "
                "database alone for the document's own collection in it, with '*' for anything."
            ) from None
    return tuple(patterns)


def _inherited(name: str, parents: list[MetaInfo]) -> Any:
    return next((value for parent in parents if (value := getattr(parent, name)) is not None), None)
