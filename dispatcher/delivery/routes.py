"""Which receivers get a change: those of its document, less those that ran where it was written.

`Routes.resolve` is the only place that decides it, `fields` and `where` included.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple

from dispatcher.core.events import CALLED, Calls, Change, Namespace
from dispatcher.delivery.instances import name_of
from dispatcher.delivery.where import Conditions, Routed
from mongoz.connection import Collection
from mongoz.connection.namespaces import NamespacePattern
from mongoz.fields.storage import stored_names
from mongoz.signals.names import POST
from mongoz.signals.receivers import Receiver, stamp_ids

Withheld = Literal["ran", "muted"]
"""Why a stamp keeps a change from a receiver: it ran where the change was written, or the write was muted."""

_NOBODY: Final[tuple[Calls, ...]] = ()

# Signal and `created` by the operation alone: of a change without a stamp that counts.
_NATURAL: Final = {
    "insert": ("post_save", True),
    "replace": ("post_save", False),
    "update": ("post_update", False),
    "delete": ("post_delete", False),
}

# Namespaces whose listeners are cached, at most.
_MOST_REMEMBERED: Final = 10_000


class Listener(NamedTuple):
    """One document class and its receivers, by signal.

    Attributes:
        receivers: by signal.
        namespace: of its own collection.
        patterns: of further ones that hold such documents.
        fields: the stored names that must have changed, of the `post_update` receivers that ask for some.
        stamped: the ids of receivers in the stamps of this document.
    """

    document: Any
    receivers: dict[str, tuple[Receiver, ...]]
    namespace: Namespace
    patterns: tuple[NamespacePattern, ...] = ()
    fields: Mapping[Receiver, frozenset[str]] = MappingProxyType({})
    stamped: Mapping[Receiver, frozenset[bytes]] = MappingProxyType({})


class _Found(NamedTuple):
    """A listener, as it is for one namespace.

    Attributes:
        collection: the one that the namespace names, if it is not the document's own.
        names: of all its receivers.
    """

    document: Any
    receivers: dict[str, tuple[Receiver, ...]]
    collection: Collection | None
    fields: Mapping[Receiver, frozenset[str]]
    names: frozenset[str]
    stamped: Mapping[Receiver, frozenset[bytes]]


class Routes:
    """The receivers of a set of documents, as they are connected at this moment.

    Args:
        documents: concrete document classes.
        group: the group of dispatchers that this process belongs to; stamps of other groups do not count.
        apart_from: the database of the dispatcher's state, which the patterns of `Meta.watch` leave out.
    """

    def __init__(self, documents: Iterable[Any], group: str, apart_from: str = "") -> None:
        self.group = group
        self.apart_from = apart_from
        self._run = ""
        self._conditions: Conditions | None = None
        self._listeners: list[Listener] = []
        self._found: dict[Namespace, tuple[_Found, ...]] = {}
        # Calls of changes without a stamp, where they depend on nothing but namespace and operation.
        self._natural: dict[tuple[Namespace, str], tuple[Calls, ...]] = {}
        self._withheld: dict[Hashable, tuple[tuple[Withheld, str, str], ...]] = {}
        for document in documents:
            receivers = {
                name: tuple(r for r in getattr(document.meta.signals, name).receivers if r.runs_in_dispatcher)
                for name in POST
            }
            if any(receivers.values()):
                collection = document.meta.collection
                namespace = (collection.database.name, collection.name)
                patterns = document.meta.watched.patterns
                fields = _fields(document, receivers["post_update"])
                stamped = _stamped(document, receivers)
                self._listeners.append(Listener(document, receivers, namespace, patterns, fields, stamped))

    def narrowed(self, keep: Callable[[str, Receiver], bool], run: str = "") -> "Routes":
        """Some of the receivers only.

        Args:
            keep: whether one stays, by the name of its signal.
            run: id of the run that calls them. In a run, receivers that ran where a change was written get it too.
        """
        routes = Routes((), self.group, self.apart_from)
        routes._run = run
        routes._conditions = self._conditions
        for listener in self._listeners:
            kept = {
                signal: tuple(one for one in receivers if keep(signal, one))
                for signal, receivers in listener.receivers.items()
            }
            if any(kept.values()):
                routes._listeners.append(listener._replace(receivers=kept))
        return routes

    @property
    def names(self) -> frozenset[str]:
        """The names of all receivers, former ones included."""
        found = [r for one in self._listeners for receivers in one.receivers.values() for r in receivers]
        return frozenset(name for one in found for name in (one.name, *one.options.formerly))

    @property
    def namespaces(self) -> tuple[Namespace, ...]:
        """The collections with listeners that are known by name."""
        watched = (pattern for one in self._listeners for pattern in one.patterns if pattern.is_literal)
        named = [(pattern.database, pattern.collection) for pattern in watched]
        return tuple(dict.fromkeys([*(listener.namespace for listener in self._listeners), *named]))

    @property
    def patterns(self) -> tuple[NamespacePattern, ...]:
        """The patterns of further ones."""
        watched = [pattern for listener in self._listeners for pattern in listener.patterns]
        return tuple(dict.fromkeys(pattern for pattern in watched if not pattern.is_literal))

    @property
    def receivers(self) -> tuple[Receiver, ...]:
        """All receivers of all documents."""
        by_signal = (listener.receivers.values() for listener in self._listeners)
        return tuple(one for signals in by_signal for receivers in signals for one in receivers)

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """Every document that has receivers."""
        return tuple(self._listeners)

    async def prepare(self, conditions: Conditions) -> bool:
        """Have the server check every `where`, and ask it from now on; whether any receiver has one.

        Raises:
            ApplicationError: the server does not accept one.
            PyMongoError: as the driver has it.
        """
        prepared = await conditions.prepare(self._each())
        self._conditions = conditions if prepared else None
        return prepared

    def _each(self) -> Iterator[tuple[Any, Receiver]]:
        for listener in self._listeners:
            for receivers in listener.receivers.values():
                for receiver in receivers:
                    yield listener.document, receiver

    async def resolve(self, changes: Sequence[Change]) -> list[Routed]:
        """The receivers of each change, in the order in which they are called. Most changes have none."""
        routed = [(change, self.route(change)) for change in changes]
        return routed if self._conditions is None else await self._conditions.wanted(routed)

    def route(self, change: Change) -> tuple[Calls, ...]:
        """The receivers of one change; `where` is not asked."""
        natural = change.namespace, change.operation
        if change.origin is None and (known := self._natural.get(natural)) is not None:
            return known
        if change.operation not in _NATURAL:
            return _NOBODY
        signal, created = _NATURAL[change.operation]
        done: frozenset[bytes] = frozenset()
        hops = 0
        origin = change.origin
        if origin is not None:
            if origin.muted:
                return _NOBODY
            signal, created = CALLED[change.operation, origin.call]
            done, hops = origin.receivers, origin.hops
        calls = []
        found = self._found.get(change.namespace)
        if found is None:
            found = self._find(change.namespace)
        for document, by_signal, collection, fields, _, stamped in found:
            receivers = by_signal[signal]
            if done and not self._run:
                receivers = tuple(r for r in receivers if done.isdisjoint(stamped[r]))
            if fields and signal == "post_update":
                names = change.names
                receivers = tuple(r for r in receivers if r not in fields or not fields[r].isdisjoint(names))
            if receivers:
                calls.append(Calls(document, signal, created, receivers, collection, hops, self._run))
        routed = tuple(calls)
        if origin is None and not any(one.fields for one in found):
            self._natural[natural] = routed
        return routed

    def withheld(self, change: Change) -> tuple[tuple[Withheld, str, str], ...]:
        """The receivers that the stamp keeps a change from: reason, receiver and signal."""
        origin = change.origin
        assert origin is not None  # the caller has looked
        if not (origin.muted or origin.receivers) or self._run:
            return ()
        signal, _ = CALLED[change.operation, origin.call]
        form = (change.namespace, signal, origin.muted, origin.receivers)
        known = self._withheld.get(form)
        if known is None:
            if len(self._withheld) >= _MOST_REMEMBERED:
                self._withheld.clear()
            reason: Withheld = "muted" if origin.muted else "ran"
            known = self._withheld[form] = tuple(
                (reason, receiver.name, signal)
                for one in self._found.get(change.namespace) or self._find(change.namespace)
                for receiver in one.receivers[signal]
                if origin.muted or not origin.receivers.isdisjoint(one.stamped[receiver])
            )
        return known

    def listening_to(self, namespace: Namespace) -> tuple[Listener, ...]:
        """The listeners of a collection, in the order of the documents."""
        database, collection = namespace
        return tuple(
            listener
            for listener in self._listeners
            if listener.namespace == namespace
            or any(pattern.matches(database, collection, (self.apart_from,)) for pattern in listener.patterns)
        )

    def names_listening_to(self, namespace: Namespace) -> tuple[tuple[str, frozenset[str]], ...]:
        """The listeners of a collection: names of document classes, each with the names of its receivers."""
        found = self._found.get(namespace) or self._find(namespace)
        return tuple((name_of(one.document), one.names) for one in found)

    def calls_to(
        self,
        document: str,
        signal: str,
        receiver: bytes,
        namespace: Namespace,
        *,
        created: bool,
        hops: int,
        run: str = "",
    ) -> Calls | None:
        """A recorded call, as it is made today; None if the receiver does not exist any more.

        Args:
            document: name of the class.
            receiver: its id, or one that it had under an earlier name.
            namespace: where the change was made.
            created: what `post_save` receivers are told.
        """
        for listener in self._listeners:
            if name_of(listener.document) != document:
                continue
            for one in listener.receivers.get(signal, ()):
                if receiver in one.ids:
                    own = listener.namespace == namespace
                    collection = None if own else _collection(listener.document, namespace)
                    return Calls(listener.document, signal, created, (one,), collection, hops, run)
        return None

    def _find(self, namespace: Namespace) -> tuple[_Found, ...]:
        """Find the listeners of a namespace, and cache them."""
        if len(self._found) >= _MOST_REMEMBERED:
            self._found.clear()
            self._natural.clear()
        found = tuple(
            _Found(
                listener.document,
                listener.receivers,
                None if listener.namespace == namespace else _collection(listener.document, namespace),
                listener.fields,
                frozenset(one.name for receivers in listener.receivers.values() for one in receivers),
                listener.stamped,
            )
            for listener in self.listening_to(namespace)
        )
        self._found[namespace] = found
        return found


def _collection(document: Any, namespace: Namespace) -> Collection:
    """The collection of a namespace, in the document's registry."""
    database, name = namespace
    collection: Collection = document.meta.registry.get_database(database).get_collection(name)
    return collection


def _stamped(document: Any, receivers: Mapping[str, Iterable[Receiver]]) -> dict[Receiver, frozenset[bytes]]:
    """The ids of receivers in the stamps of a document."""
    return {r: frozenset(stamp_ids(r, document, signal)) for signal, some in receivers.items() for r in some}


def _fields(document: Any, receivers: Iterable[Receiver]) -> dict[Receiver, frozenset[str]]:
    """The stored names that must have changed, by receiver; receivers name attributes."""
    names = stored_names(document)
    return {
        r: frozenset(names.get(name, name) for name in r.options.fields) for r in receivers if r.options.fields
    }
