"""Refuses writes to collections that no dispatcher watches, if receivers run only in the dispatcher."""

from mongoz.connection import Collection
from mongoz.exceptions import ImproperlyConfigured
from mongoz.model.base import Model
from mongoz.signals import Signal
from mongoz.signals.mutes import is_muted

__all__ = ["is_watched", "require_watched"]


def is_watched(document: type[Model], collection: Collection) -> bool:
    """Whether a dispatcher that serves this document watches a collection.

    Args:
        document: the class.
        collection: the document's own collection, which is always watched, or another collection.
    """
    meta = document.meta
    own = meta.collection
    if collection is own or collection == own:
        return True
    if own is None or not _are_on_same_deployment(own, collection):
        return False
    # It may be the same collection through another registry, or a collection in Meta.watch.
    return collection.namespace == own.namespace or meta.watched.covers(collection.database.name, collection.name)


def require_watched(document: type[Model], collection: Collection, signal: Signal) -> None:
    """Refuse a write whose change could not be delivered to receivers that only run in a dispatcher.

    Call it before anything is written. It accepts every write if no dispatcher serves the registry, if all
    receivers run in the writing process, or if the signal is muted.

    Args:
        document: the class.
        collection: the collection of the write.
        signal: the signal that the write fires afterwards.

    Raises:
        ImproperlyConfigured: no dispatcher watches the collection. The message names the collection, the receiver
            and the remedy.
    """
    meta = document.meta
    if collection is meta.collection or meta.registry is None or meta.registry.dispatched is None:
        return
    remote = next((receiver for receiver in signal.receivers if not receiver.runs_in_process), None)
    if remote is None or is_watched(document, collection):
        return
    if is_muted(signal.sender, signal.name):
        return
    name = meta.document.__name__
    raise ImproperlyConfigured(
        f"{name} can't be written to {collection.namespace!r}: the {signal.name} receiver {remote.name!r} runs "
        f"only in the dispatcher, and for {name} the dispatcher watches only {_watched_namespaces(document)}. "
        f"{_remedy(document, collection)}"
    )


def _are_on_same_deployment(one: Collection, other: Collection) -> bool:
    first, second = one.database.deployment, other.database.deployment
    return first is second or (first.url is not None and first.url == second.url)


def _watched_namespaces(document: type[Model]) -> str:
    own = [document.meta.collection.namespace] if document.meta.collection is not None else []
    return ", ".join(repr(text) for text in (*own, *map(str, document.meta.watched.patterns)))


def _remedy(document: type[Model], collection: Collection) -> str:
    own = document.meta.collection
    if own is not None and not _are_on_same_deployment(own, collection):
        return "Write to a collection of the document's own registry: a dispatcher serves one deployment."
    return f"Add {collection.namespace!r}, or a pattern that covers it, to Meta.watch."
