"""Writes to collections that nobody watches: what a dispatcher should deliver would be lost without a word."""

from typing import TYPE_CHECKING

from mongoz.connection import Collection
from mongoz.exceptions import ImproperlyConfigured
from mongoz.signals.mutes import is_muted

if TYPE_CHECKING:
    from mongoz.documents.base import Document
    from mongoz.signals import Signal

__all__ = ["is_watched", "require_watched"]


def is_watched(document: type["Document"], collection: Collection) -> bool:
    """Whether a dispatcher that serves this document watches a collection.

    Args:
        document: the class.
        collection: its own, which always is, or another one, which is if `Meta.watch` says so.
    """
    meta = document.meta
    own = meta.collection
    if collection is own or collection == own:
        return True
    if own is None or not _on_same_deployment(own, collection):
        return False
    # The same collection of another registry, or one that Meta.watch names.
    return collection.namespace == own.namespace or meta.watched.covers(collection.database.name, collection.name)


def require_watched(document: type["Document"], collection: Collection, signal: "Signal") -> None:
    """Refuse a write whose change nobody would deliver to receivers that are only called by a dispatcher.

    To be called before anything is written. Nothing is refused where no dispatcher serves the registry, where all
    receivers run in the writing process, and where the signal is muted.

    Args:
        document: the class that is written.
        collection: where to.
        signal: what the write fires afterwards.

    Raises:
        ImproperlyConfigured: nobody watches the collection; names it, the receiver and the remedy.
    """
    meta = document.meta
    if collection is meta.collection or meta.registry is None or meta.registry.dispatched is None:
        return
    waiting = next((receiver for receiver in signal.receivers if not receiver.runs_in_process), None)
    if waiting is None or is_watched(document, collection):
        return
    if is_muted(signal.sender, signal.name):
        return
    name = meta.document.__name__
    raise ImproperlyConfigured(
        f"{name} can't be written to {collection.namespace!r}: the {signal.name} receiver {waiting.name!r} runs "
        f"in the dispatcher only, which watches {_watched_by(document)} for {name}. "
        f"{_remedy(document, collection)}"
    )


def _on_same_deployment(one: Collection, other: Collection) -> bool:
    mine, its = one.database._registry, other.database._registry
    return mine is its or (mine.url is not None and mine.url == its.url)


def _watched_by(document: type["Document"]) -> str:
    own = [document.meta.collection.namespace] if document.meta.collection is not None else []
    return ", ".join(repr(text) for text in (*own, *map(str, document.meta.watched.patterns)))


def _remedy(document: type["Document"], collection: Collection) -> str:
    own = document.meta.collection
    if own is not None and not _on_same_deployment(own, collection):
        return "Write to a collection of the document's own registry: a dispatcher serves one deployment."
    return f"Add {collection.namespace!r}, or a pattern that covers it, to Meta.watch."
