"""`Document.meta`: the options of `class Meta`, merged with the options of the parents."""

from typing import Any, Final

from mongoz.connection import Collection, Database, Registry
from mongoz.connection.namespaces import NamespacePattern, WatchedNamespaces, parse_pattern
from mongoz.exceptions import AbstractDocumentError, ImproperlyConfigured
from mongoz.fields import BaseField
from mongoz.model.indexes import Index, indexes_in_meta, indexes_of_fields, merge_indexes
from mongoz.model.partial import make_partial_class
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
    """`Document.meta`: the registry, database and collection of a document, its fields, indexes and signals.

    Attributes:
        registry: the Registry, or None.
        database: the Database; None without a registry.
        collection: the Collection; None for abstract documents and without a registry.
        abstract: whether the document has no collection.
        autogenerate_index: whether the first write to each collection creates the indexes.
        watch: further databases and collections that contain this document, as written in Meta.
        watched: `watch` as patterns of namespaces, without the document's own collection, which is always watched.
        fields: name -> field.
        indexes: the indexes of the fields, even inside of embedded documents, then Meta's own, then the indexes of
            the parents' Meta. The list may be changed after the class is defined.
        signals: the Broadcaster.
        document: the class. For a class of partial rows it is the full class.
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
    watched: WatchedNamespaces

    def __init__(self, document_name: str, declared: object, parents: list["MetaInfo"]) -> None:
        """Read the options of one class.

        Args:
            document_name: the name of the class, for messages and for the default name of the collection.
            declared: the inner class Meta, if there is one.
            parents: the Meta of the parents, nearest first.

        Raises:
            ImproperlyConfigured: an option is unknown or has a wrong type, or `database` is of another registry.
            ValueError: an item of `indexes` is no Index.
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
        # The `watch` of a concrete parent is not inherited: its namespaces hold the parent's documents.
        self._patterns = (
            _patterns_of(document_name, options["watch"])
            if "watch" in options
            else _inherited("_patterns", [parent for parent in parents if parent.abstract])
        )
        self.watch = tuple(str(pattern) for pattern in self._patterns or ())
        self.watched = WatchedNamespaces()
        self.fields = {}
        self._own_indexes = indexes_in_meta(document_name, options.get("indexes", ()))
        self._field_indexes: list[tuple[Index, BaseField]] = []
        self.indexes = []
        self._check_types()
        self.database = self._make_database()
        self.collection = None

    def settle(self, document: type, fields: dict[str, BaseField], parents: list["MetaInfo"]) -> None:
        """Set the fields, the collection and the signals, after the class has been made.

        Raises:
            ImproperlyConfigured: a concrete document has a registry but no database, its collection is of another
                registry, or a field has the stored name that is reserved for stamps.
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
        if not self.abstract and self.registry is not None:
            if self.database is None:
                raise ImproperlyConfigured(_NO_DATABASE, detail=f"({self._document_name} has none.)")
            self.collection = self._make_collection(self.database)
            self.watched = WatchedNamespaces(self._patterns or (), self.collection.name)
        self._field_indexes = indexes_of_fields(fields)
        inherited = [index for parent in parents for index in parent._own_indexes]
        of_fields = [index for index, _ in self._field_indexes]
        self.indexes = merge_indexes(self._document_name, [*of_fields, *self._own_indexes], inherited)
        self.signals = Broadcaster(
            document,
            tuple(parent.signals for parent in parents if parent.abstract),
            dispatched=self.registry is not None and self.registry.dispatched is not None,
        )

    def require_collection(self) -> Collection:
        """The document's own collection.

        Raises:
            AbstractDocumentError: the document is abstract.
            ImproperlyConfigured: the document has no registry.
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

    def collection_for(self, collection: Any) -> Collection:
        """The given `Collection`, or the `Collection` for a collection of the driver.

        Raises:
            AbstractDocumentError: the document is abstract.
            ImproperlyConfigured: the document has no registry.
            TypeError: `collection` has another type.
        """
        if isinstance(collection, Collection):
            return collection
        own = self.require_collection()
        if not hasattr(collection, "database"):
            raise TypeError(f"A collection must be a mongoz.Collection or one of the driver, not {collection!r}.")
        return own.sibling(collection.database.name, collection.name)

    def partial_class(self) -> Any:
        """The class of partial rows. It is made at the first use, because most documents never need it."""
        made = vars(self).get("_partial_class")
        # If two threads make it at the same time, both use the class that was finished first.
        return made or vars(self).setdefault("_partial_class", make_partial_class(self.document))

    def wanted_indexes(self) -> list[Index]:
        """The declared indexes, without indexes of fields whose `index` was set to False later."""
        unwanted = [index for index, field in self._field_indexes if not field.index]
        return [index for index in self.indexes if not any(index is one for one in unwanted)]

    def _check_types(self) -> None:
        if self.registry is not None and not isinstance(self.registry, Registry):
            raise self._wrong_type("registry", self.registry, "a mongoz.Registry")
        if not isinstance(self._database_option, str | Database | None):
            raise self._wrong_type("database", self._database_option, "a name or a Database")
        if not isinstance(self._collection_option, str | Collection | None):
            raise self._wrong_type("collection", self._collection_option, "a name or a Collection")

    def _wrong_type(self, option: str, value: object, expected: str) -> ImproperlyConfigured:
        return ImproperlyConfigured(f"Meta.{option} of {self._document_name} must be {expected}, not {value!r}.")

    @property
    def _database_name(self) -> str | None:
        """The name of the database. Children inherit only the name: they may have another registry."""
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
        if database.deployment is not self.registry:
            raise ImproperlyConfigured(
                f"Meta.{option} of {self._document_name} is {value!r} of another registry; give its name, or "
                "take it from the registry in Meta."
            )

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type]:
        """Let `class Meta(Parent.Meta)` inherit the options, although `Parent.Meta` is a MetaInfo and no class."""
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
    """The parsed entries of `Meta.watch`.

    Raises:
        ImproperlyConfigured: `watch` is no list, or an entry can't be a namespace.
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
                f"Meta.watch of {document_name} has {entry!r}, which {error}. Write 'database.collection', or "
                "'database' for the document's own collection in that database. '*' matches any text."
            ) from None
    return tuple(patterns)


def _inherited(name: str, parents: list[MetaInfo]) -> Any:
    return next((value for parent in parents if (value := getattr(parent, name)) is not None), None)
