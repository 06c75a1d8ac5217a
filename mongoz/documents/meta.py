"""What `class Meta` says, resolved against the parents' and the class itself."""

from typing import Any, Final

from mongoz.connection import Collection, Database, Registry
from mongoz.exceptions import AbstractDocumentError, ImproperlyConfigured, nearest
from mongoz.fields import BaseField
from mongoz.signals import Broadcaster

__all__ = ["MetaInfo"]

_OPTIONS: Final = frozenset({"registry", "database", "collection", "abstract"})

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
        fields: name -> field.
        signals: the Broadcaster.
    """

    registry: Registry | None
    database: Database | None
    collection: Collection | None
    abstract: bool
    fields: dict[str, BaseField]
    signals: Broadcaster

    def __init__(self, document_name: str, declared: type | None, parents: list["MetaInfo"]) -> None:
        """Read the options of one class.

        Args:
            document_name: for messages and the default collection's name.
            declared: the inner class Meta, if there is one.
            parents: the Meta of the parents, nearest first.

        Raises:
            ImproperlyConfigured: an unknown option, or one of a wrong type.
        """
        options = _options_of(document_name, declared)
        self._document_name = document_name
        self.registry = options.get("registry") or _inherited("registry", parents)
        self.abstract = bool(options.get("abstract", False))
        self._database_option = options.get("database") or _inherited("_database_option", parents)
        self._collection_option = options.get("collection")
        self.fields = {}
        self._check_types()
        self.database = self._make_database()
        self.collection = None

    def settle(self, document: type, fields: dict[str, BaseField], parents: list["MetaInfo"]) -> None:
        """Finish once the class exists: its fields, its collection, its signals.

        Raises:
            ImproperlyConfigured: a concrete document has a registry but no database.
        """
        self.fields = fields
        self.abstract = self.abstract or not set(fields) - {"id"}
        if not self.abstract and self.registry is not None:
            if self.database is None:
                raise ImproperlyConfigured(_NO_DATABASE, detail=f"({self._document_name} has none.)")
            self.collection = self._make_collection(self.database)
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
            raise AbstractDocumentError(f"{self._document_name} is abstract: it has no collection.")
        raise ImproperlyConfigured(
            f"{self._document_name} has no registry, so it can't be read or written; set 'registry' in its Meta."
        )

    def _check_types(self) -> None:
        if self.registry is not None and not isinstance(self.registry, Registry):
            raise self._wrong("registry", self.registry, "a mongoz.Registry")
        if not isinstance(self._database_option, str | Database | None):
            raise self._wrong("database", self._database_option, "a name or a Database")
        if not isinstance(self._collection_option, str | Collection | None):
            raise self._wrong("collection", self._collection_option, "a name or a Collection")

    def _wrong(self, option: str, value: object, expected: str) -> ImproperlyConfigured:
        return ImproperlyConfigured(f"Meta.{option} of {self._document_name} must be {expected}, not {value!r}.")

    def _make_database(self) -> Database | None:
        option: str | Database | None = self._database_option
        if isinstance(option, str):
            return self.registry.get_database(option) if self.registry is not None else None
        return option

    def _make_collection(self, database: Database) -> Collection:
        option = self._collection_option
        if isinstance(option, Collection):
            return option
        return database.get_collection(option or f"{self._document_name.lower()}s")

    def __repr__(self) -> str:
        return f"<Meta of {self._document_name}: {self.collection or 'abstract'}>"


def _options_of(document_name: str, declared: type | None) -> dict[str, Any]:
    if declared is None:
        return {}
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


def _inherited(name: str, parents: list[MetaInfo]) -> Any:
    return next((value for parent in parents if (value := getattr(parent, name)) is not None), None)
