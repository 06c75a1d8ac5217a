"""Pickles of instances: with what they remember of the database, so that `save` writes the same afterwards."""

import pickle
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from mongoz.connection import Collection
from mongoz.model.attachments import attach, attached
from mongoz.model.partial import is_partial
from mongoz.persistence.rows.hydration import Loaded, loaded

if TYPE_CHECKING:
    from mongoz.documents.base import Document

__all__ = ["give_memory", "memory_of", "reduced"]

_SNAPSHOT: Final = "mongoz_snapshot"
_PLACE: Final = "mongoz_collection"
_ATTACHED: Final = "mongoz_attached"


def reduced(instance: "Document") -> tuple[Any, ...]:
    """What pickle makes an instance of. The class of rows of only() and defer() has the name of their document."""
    document = type(instance)
    return _blank, (document.meta.document, is_partial(document)), instance.__getstate__()


def _blank(document: type["Document"], partial: bool) -> "Document":
    kind: Any = document.proxy_document if partial else document
    blank: Document = kind.__new__(kind)
    return blank


def memory_of(instance: "Document") -> dict[str, Any]:
    """What an instance knows beside its fields, in a form that can be pickled.

    Raises:
        pickle.PicklingError: it is from a collection that another process could not find again.
    """
    state = loaded(instance)
    return {
        _SNAPSHOT: state.snapshot,
        _PLACE: None if state.collection is None else _names(instance, state.collection),
        _ATTACHED: attached(instance),
    }


def give_memory(instance: "Document", memory: Mapping[Any, Any]) -> None:
    """Have an instance know what another one knew; one that was pickled without that knows nothing."""
    place = memory.get(_PLACE)
    collection = None
    if place is not None:
        database, name = place
        collection = (
            instance.meta.require_collection().database._registry.get_database(database).get_collection(name)
        )
    object.__setattr__(instance, "_loaded", Loaded(memory.get(_SNAPSHOT), collection))
    attach(instance, memory.get(_ATTACHED) or {})


def _names(instance: "Document", collection: Collection) -> tuple[str, str]:
    """Database and collection: connections can't be pickled, and the document's registry is known by its class."""
    if collection.database._registry is not instance.meta.registry:
        raise pickle.PicklingError(
            f"{instance!r} is from {collection.namespace!r} of another registry than that of its class, which a "
            "pickle can't say. Pickle its model_dump(), or load it through a class of that registry."
        )
    return collection.database.name, collection.name
