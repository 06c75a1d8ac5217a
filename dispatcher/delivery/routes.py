"""Selects the receivers of a change: those of its document class that the writing process did not run.

`Routes.resolve` selects them, and applies the options `fields` and `where`. `Routes.claimed` selects the receivers
that the writing process has claimed.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple

from dispatcher.core.events import CALLED, Calls, Change, Namespace
from dispatcher.delivery.instances import name_of
from dispatcher.delivery.where import Conditions, RoutedChange
from dispatcher.exceptions import ApplicationError
from mongoz.connection import Collection
from mongoz.connection.namespaces import NamespacePattern
from mongoz.fields.storage import stored_names
from mongoz.signals.names import POST
from mongoz.signals.receivers import Receiver, stamp_ids

WithheldReason = Literal["ran", "muted"]
"""The reason why a stamped change skips a receiver: the writing process ran it, or the write was muted."""

_NO_CALLS: Final[tuple[Calls, ...]] = ()

# Signal and `created` of a change without a stamp. They depend only on the operation.
_NATURAL: Final = {
    "insert": ("post_save", True),
    "replace": ("post_save", False),
    "update": ("post_update", False),
    "delete": ("post_delete", False),
}

# Maximum number of namespaces whose listeners are cached.
_MOST_REMEMBERED: Final = 10_000


class Listener(NamedTuple):
    """One document class and its receivers, by signal.

    Attributes:
        receivers: the receivers, by signal.
        namespace: the namespace of the document's own collection.
        patterns: the patterns of further collections with documents of this class.
        fields: for `post_update` receivers with the option `fields`: the stored names of these fields.
        stamped: for each receiver, the ids that stand for it in the stamps of this document class.
    """

    document: Any
    receivers: dict[str, tuple[Receiver, ...]]
    namespace: Namespace
    patterns: tuple[NamespacePattern, ...] = ()
    fields: Mapping[Receiver, frozenset[str]] = MappingProxyType({})
    stamped: Mapping[Receiver, frozenset[bytes]] = MappingProxyType({})


class _NamespaceListener(NamedTuple):
    """A listener for one namespace.

    Attributes:
        collection: the collection of the namespace; None if it is the document's own collection.
        names: the names of all receivers of the listener.
    """

    document: Any
    receivers: dict[str, tuple[Receiver, ...]]
    collection: Collection | None
    fields: Mapping[Receiver, frozenset[str]]
    names: frozenset[str]
    stamped: Mapping[Receiver, frozenset[bytes]]


class Routes:
    """The receivers of a set of document classes. Receivers that are connected later are not included.

    Args:
        documents: concrete document classes.
        group: the group of dispatchers that this process belongs to; stamps of other groups do not count.
        apart_from: the database of the dispatcher's state. The patterns of `Meta.watch` exclude it. Empty to
            exclude no database.
    """

    def __init__(self, documents: Iterable[Any], group: str, apart_from: str = "") -> None:
        self.group = group
        self.apart_from = apart_from
        self._run = ""
        self._repeats = False
        self._conditions: Conditions | None = None
        self._listeners: list[Listener] = []
        self._found: dict[Namespace, tuple[_NamespaceListener, ...]] = {}
        # Calls of changes without a stamp, if they depend only on namespace and operation.
        self._natural: dict[tuple[Namespace, str], tuple[Calls, ...]] = {}
        self._withheld: dict[Hashable, tuple[tuple[WithheldReason, str, str], ...]] = {}
        for document in documents:
            receivers = {
                name: _in_order(r for r in getattr(document.meta.signals, name).receivers if r.runs_in_dispatcher)
                for name in POST
            }
            if any(receivers.values()):
                collection = document.meta.collection
                namespace = (collection.database.name, collection.name)
                patterns = document.meta.watched.patterns
                fields = _fields(document, receivers["post_update"])
                stamped = _stamped(document, receivers)
                self._listeners.append(Listener(document, receivers, namespace, patterns, fields, stamped))

    def narrowed(self, keep: Callable[[str, Receiver], bool], run: str = "", *, missed: bool = False) -> "Routes":
        """Make routes with a part of the receivers.

        Args:
            keep: called with a signal name and a receiver; returns whether the receiver stays.
            run: the id of a replay or a backfill; "" for live deliveries. A run also calls the receivers that the
                writing process has run, unless `missed` is True.
            missed: whether the run leaves out the receivers that the writing process has run.
        """
        routes = Routes((), self.group, self.apart_from)
        routes._run = run
        routes._repeats = bool(run) and not missed
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
        """The current and former names of all receivers."""
        found = [r for one in self._listeners for receivers in one.receivers.values() for r in receivers]
        return frozenset(name for one in found for name in (one.name, *one.options.formerly))

    @property
    def namespaces(self) -> tuple[Namespace, ...]:
        """The collections with listeners. Collections that only a pattern with a wildcard matches are left out."""
        watched = (pattern for one in self._listeners for pattern in one.patterns if pattern.is_literal)
        named = [(pattern.database, pattern.collection) for pattern in watched]
        return tuple(dict.fromkeys([*(listener.namespace for listener in self._listeners), *named]))

    @property
    def patterns(self) -> tuple[NamespacePattern, ...]:
        """The patterns of further collections with listeners."""
        watched = [pattern for listener in self._listeners for pattern in listener.patterns]
        return tuple(dict.fromkeys(pattern for pattern in watched if not pattern.is_literal))

    @property
    def receivers(self) -> tuple[Receiver, ...]:
        """All receivers of all document classes."""
        by_signal = (listener.receivers.values() for listener in self._listeners)
        return tuple(one for signals in by_signal for receivers in signals for one in receivers)

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """All document classes with receivers."""
        return tuple(self._listeners)

    def check_batches(self) -> None:
        """Check that all deliveries to a batch receiver can share its batches, whatever their signal.

        Raises:
            ApplicationError: two receivers of a document have the same name, but differ in their function or in
                an option that concerns batches.
        """
        for listener in self._listeners:
            known: dict[str, Receiver] = {}
            for one in (one for receivers in listener.receivers.values() for one in receivers):
                other = known.setdefault(one.name, one)
                if (one.options.batch or other.options.batch) and _batch_form(one) != _batch_form(other):
                    raise ApplicationError(
                        f"{listener.document.__name__} has two receivers {one.name!r}: {other.defined_at} and "
                        f"{one.defined_at}. At least one is a batch receiver, but they can't share a batch.",
                        remedy="Connect the same function to both signals, with the same options batch, retry, "
                        "timeout, on_failure and transactional; or give one of them another name=.",
                    )

    async def prepare(self, conditions: Conditions) -> bool:
        """Let the server check every `where`. From now on, `resolve` applies these filters.

        Returns:
            Whether any receiver has a `where`.

        Raises:
            ApplicationError: the server rejects a `where`.
            PyMongoError: the command failed.
        """
        prepared = await conditions.prepare(self._each())
        self._conditions = conditions if prepared else None
        return prepared

    def _each(self) -> Iterator[tuple[Any, Receiver]]:
        for listener in self._listeners:
            for receivers in listener.receivers.values():
                for receiver in receivers:
                    yield listener.document, receiver

    async def resolve(self, changes: Sequence[Change]) -> list[RoutedChange]:
        """The receivers of each change, in the order in which they are called. Most changes have none."""
        routed: list[RoutedChange] = []
        calls = _NO_CALLS
        natural: tuple[Namespace, str] | None = None
        for change in changes:
            # Most changes have the same receivers as the change before them.
            if change.origin is not None or natural != (change.namespace, change.operation):
                calls = self.route(change)
                natural = (change.namespace, change.operation)
                if change.origin is not None or natural not in self._natural:
                    natural = None
            routed.append((change, calls))
        return routed if self._conditions is None else await self._conditions.wanted(routed)

    def route(self, change: Change) -> tuple[Calls, ...]:
        """The receivers of one change, without the check of `where`."""
        natural = change.namespace, change.operation
        if change.origin is None and (known := self._natural.get(natural)) is not None:
            return known
        if change.operation not in _NATURAL:
            return _NO_CALLS
        signal, created = _NATURAL[change.operation]
        done: frozenset[bytes] = frozenset()
        hops = 0
        origin = change.origin
        if origin is not None:
            if origin.muted:
                return _NO_CALLS
            signal, created = CALLED[change.operation, origin.call]
            done, hops = origin.receivers, origin.hops
        calls = []
        found = self._found.get(change.namespace)
        if found is None:
            found = self._find(change.namespace)
        for document, by_signal, collection, fields, _, stamped in found:
            receivers = by_signal[signal]
            if done and not self._repeats:
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

    def signal_of(self, change: Change) -> tuple[str, bool] | None:
        """The signal of a change and the value of `created`; None if its operation has no signal."""
        if change.operation not in _NATURAL:
            return None
        origin = change.origin
        return _NATURAL[change.operation] if origin is None else CALLED[change.operation, origin.call]

    def claimed(self, change: Change, ids: frozenset[bytes]) -> tuple[Calls, ...]:
        """Those receivers of a change that the writing process has claimed.

        Args:
            change: a change with an origin.
            ids: the ids of the claimed receivers, as stamps list them.
        """
        origin = change.origin
        assert origin is not None  # the caller has checked it
        signal, created = CALLED[change.operation, origin.call]
        calls = []
        for one in self._found.get(change.namespace) or self._find(change.namespace):
            receivers = tuple(r for r in one.receivers[signal] if not ids.isdisjoint(one.stamped[r]))
            if receivers:
                calls.append(Calls(one.document, signal, created, receivers, one.collection))
        return tuple(calls)

    def is_listed(self, namespace: Namespace, receiver: Receiver, ids: frozenset[bytes]) -> bool:
        """Returns whether one of these ids stands for this receiver in the stamps of the collection."""
        return any(
            other.name == receiver.name and not stamped.isdisjoint(ids)
            for one in self._found.get(namespace) or self._find(namespace)
            for other, stamped in one.stamped.items()
        )

    def stamped_ids(self, namespace: Namespace) -> frozenset[bytes]:
        """The ids that stand for the receivers of a collection in the stamps of its documents."""
        found = self._found.get(namespace) or self._find(namespace)
        return frozenset(id_ for one in found for ids in one.stamped.values() for id_ in ids)

    def withheld(self, change: Change) -> tuple[tuple[WithheldReason, str, str], ...]:
        """The receivers that do not get a change because of its stamp: reason, receiver and signal."""
        origin = change.origin
        assert origin is not None  # the caller has checked it
        if not (origin.muted or origin.receivers) or self._repeats:
            return ()
        signal, _ = CALLED[change.operation, origin.call]
        form = (change.namespace, signal, origin.muted, origin.receivers)
        known = self._withheld.get(form)
        if known is None:
            if len(self._withheld) >= _MOST_REMEMBERED:
                self._withheld.clear()
            reason: WithheldReason = "muted" if origin.muted else "ran"
            known = self._withheld[form] = tuple(
                (reason, receiver.name, signal)
                for one in self._found.get(change.namespace) or self._find(change.namespace)
                for receiver in one.receivers[signal]
                if origin.muted or not origin.receivers.isdisjoint(one.stamped[receiver])
            )
        return known

    def listening_to(self, namespace: Namespace) -> tuple[Listener, ...]:
        """The listeners of a collection, in the order of the document classes."""
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
        """Find the current receiver of a recorded call; None if the receiver no longer exists.

        Args:
            document: the name of the document class.
            receiver: the id of the receiver, or its id under an earlier name.
            namespace: the namespace of the change.
            created: the argument `created` of `post_save` receivers.
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

    def _find(self, namespace: Namespace) -> tuple[_NamespaceListener, ...]:
        """Find the listeners of a namespace, and cache them."""
        if len(self._found) >= _MOST_REMEMBERED:
            self._found.clear()
            self._natural.clear()
        found = tuple(
            _NamespaceListener(
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


def _batch_form(receiver: Receiver) -> tuple[Any, ...]:
    """The function and the options that all receivers of one batch have in common."""
    options = receiver.options
    return (
        receiver.function,
        options.batch,
        options.retry,
        options.timeout,
        options.on_failure,
        options.transactional,
    )


def _collection(document: Any, namespace: Namespace) -> Collection:
    """The collection of a namespace, in the document's registry."""
    database, name = namespace
    collection: Collection = document.meta.registry.get_database(database).get_collection(name)
    return collection


def _in_order(receivers: Iterable[Receiver]) -> tuple[Receiver, ...]:
    """Sort receivers for their calls. Receivers with limits come last, so that the others don't wait for them."""
    return tuple(sorted(receivers, key=lambda one: one.options.is_limited))


def _stamped(document: Any, receivers: Mapping[str, Iterable[Receiver]]) -> dict[Receiver, frozenset[bytes]]:
    """For each receiver, the ids that stand for it in the stamps of a document class."""
    return {r: frozenset(stamp_ids(r, document, signal)) for signal, some in receivers.items() for r in some}


def _fields(document: Any, receivers: Iterable[Receiver]) -> dict[Receiver, frozenset[str]]:
    """The stored names of the fields that trigger each receiver. The option `fields` has attribute names."""
    names = stored_names(document)
    return {
        r: frozenset(names.get(name, name) for name in r.options.fields) for r in receivers if r.options.fields
    }
