"""Pickles of instances. They contain the last known row of the database, so unpickled instances can be saved."""

import pickle
from collections.abc import Mapping
from typing import Any, Final

from mongoz.connection import Collection
from mongoz.model.partial import is_partial
from mongoz.model.parts import class_of_parts
from mongoz.model.state import Loaded, attach, attached, loaded, restore

__all__ = ["pickled_state", "reduce_instance", "restore_pickled_state"]

_SNAPSHOT: Final = "mongoz_snapshot"
_COLLECTION: Final = "mongoz_collection"
_ATTACHED: Final = "mongoz_attached"


def reduce_instance(instance: Any) -> tuple[Any, ...]:
    """The `__reduce__` of an instance.

    The pickle contains the name of the document class. An instance that was loaded in part has another class,
    which pickle can't import by name.
    """
    document = type(instance)
    blank = (document.meta.document, is_partial(document), getattr(document, "__parts__", None))
    return _make_blank, blank, instance.__getstate__()


def _make_blank(document: Any, partial: bool, parts: frozenset[str] | None = None) -> Any:
    kind = document
    if partial:
        kind = document.proxy_document if parts is None else class_of_parts(document, parts)
    return kind.__new__(kind)


def pickled_state(instance: Any) -> dict[str, Any]:
    """The state of an instance besides its fields, in a form that can be pickled.

    Raises:
        pickle.PicklingError: another process could not find the collection of the instance.
    """
    state = loaded(instance)
    return {
        _SNAPSHOT: state.snapshot,
        _COLLECTION: None if state.collection is None else _names_of(instance, state.collection),
        _ATTACHED: attached(instance),
    }


def restore_pickled_state(instance: Any, pickled: Mapping[Any, Any]) -> None:
    """Give an instance the pickled state. Pickles of older versions have none: then the state stays empty."""
    names = pickled.get(_COLLECTION)
    collection = None if names is None else instance.meta.require_collection().sibling(*names)
    restore(instance, Loaded(pickled.get(_SNAPSHOT), collection))
    attach(instance, pickled.get(_ATTACHED) or {})


def _names_of(instance: Any, collection: Collection) -> tuple[str, str]:
    """The names of database and collection.

    A collection can't be pickled, since it has a connection. After unpickling, the registry of the class provides
    the collection with these names.
    """
    if collection.database.deployment is not instance.meta.registry:
        raise pickle.PicklingError(
            f"{instance} is from {collection.namespace!r} of another registry than its class. A pickle can't "
            "refer to another registry. Pickle its model_dump(), or load it through a class of that registry."
        )
    return collection.database.name, collection.name
