"""Who gets a change: the receivers of the watched documents, less those that ran where it was written."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from dispatcher.events import Calls, Change, Namespace
from mongoz.signals.names import POST
from mongoz.signals.receivers import Receiver
from mongoz.stamps import Call, Stamp, key_hash

__all__ = ["Listener", "Routes"]

_NOBODY: Final[tuple[Calls, ...]] = ()

# What the server's event alone leads to.
_NATURAL: Final = {
    "insert": ("post_save", True),
    "replace": ("post_save", False),
    "update": ("post_update", False),
    "delete": ("post_delete", False),
}

# What a stamp says that was called, by the event that it may stand on.
_CALLED: Final = {
    ("insert", Call.CREATED): ("post_save", True),
    ("update", Call.SAVED): ("post_save", False),
    ("update", Call.UPDATED): ("post_update", False),
}


class Listener(NamedTuple):
    """One document class and its receivers, by signal."""

    document: Any
    receivers: dict[str, tuple[Receiver, ...]]


class Routes:
    """The receivers of a set of documents, as they are connected at this moment.

    Args:
        documents: concrete document classes.
        group: the group of dispatchers that this process belongs to; stamps of others mean nothing to it.
    """

    def __init__(self, documents: Iterable[Any], group: str) -> None:
        self.group = group
        self._listeners: dict[Namespace, list[Listener]] = defaultdict(list)
        for document in documents:
            receivers = {
                name: tuple(r for r in getattr(document.meta.signals, name).receivers if r.runs_in_dispatcher)
                for name in POST
            }
            if any(receivers.values()):
                collection = document.meta.collection
                namespace = (collection.database.name, collection.name)
                self._listeners[namespace].append(Listener(document, receivers))

    @property
    def namespaces(self) -> tuple[Namespace, ...]:
        """The collections that somebody listens to."""
        return tuple(self._listeners)

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """Every document that somebody listens to."""
        return tuple(listener for listeners in self._listeners.values() for listener in listeners)

    def route(self, change: Change) -> tuple[Calls, ...]:
        """The receivers of one change, in the order in which they are called."""
        signal, created = _NATURAL[change.operation]
        done: frozenset[bytes] = frozenset()
        stamp = change.stamp
        if stamp is not None and self._counts(stamp, change):
            if stamp.muted:
                return _NOBODY
            signal, created = _CALLED[change.operation, stamp.call]
            done = stamp.receivers
        calls = []
        for document, by_signal in self._listeners.get(change.namespace, ()):
            receivers = by_signal[signal]
            if done:
                receivers = tuple(r for r in receivers if r.id not in done)
            if receivers:
                calls.append(Calls(document, signal, created, receivers))
        return tuple(calls)

    def _counts(self, stamp: Stamp, change: Change) -> bool:
        """Whether a stamp speaks of this very write: for us, of this kind, and of this document."""
        return (
            stamp.group == self.group
            and (change.operation, stamp.call) in _CALLED
            and stamp.key == key_hash(".".join(change.namespace), change.id)
        )
