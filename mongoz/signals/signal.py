"""A signal and its receivers."""

import itertools
from collections.abc import Iterable
from typing import Any, TypeVar, Unpack
from weakref import WeakSet

from mongoz.claims.document import NamedReceiver
from mongoz.exceptions import SignalError
from mongoz.signals.mutes import is_muted, muting
from mongoz.signals.names import POST
from mongoz.signals.options import ReceiverOptions
from mongoz.signals.receivers import (
    Receiver,
    ReceiverFunction,
    importable_name,
    make_receiver,
    stamp_ids,
    with_ids,
)
from mongoz.signals.taps import Tap, active_observers, unsilenced

__all__ = ["Signal"]

_F = TypeVar("_F", bound=ReceiverFunction)

_connections = itertools.count()
"""Gives each connection of the process a number. Own and inherited receivers of a document run in this order."""


class Signal:
    """An event of documents, and its async receivers.

    Examples:
        >>> User.meta.signals.on_verify = mongoz.Signal()
        >>> User.meta.signals.on_verify.connect(send_badge)
        >>> await User.meta.signals.on_verify.send(sender=User, instance=user)
    """

    __slots__ = (
        "__weakref__",
        "_children",
        "_claimable_ids",
        "_functions",
        "_in_process",
        "_in_process_ids",
        "_only",
        "_own",
        "_parents",
        "_resolved",
        "_taps",
        "cached_firing",
        "cached_stamps",
        "dispatched",
        "name",
        "sender",
    )

    def __init__(self) -> None:
        self.name: str | None = None
        self.sender: type | None = None
        self.dispatched = False
        self._parents: tuple[Signal, ...] = ()
        self._children: WeakSet[Signal] = WeakSet()
        self._own: tuple[Receiver, ...] = ()
        self._resolved: tuple[Receiver, ...] = ()
        self._functions: tuple[ReceiverFunction, ...] | None = ()  # None: the resolved receivers are out of date
        self._only: ReceiverFunction | None = None  # the only function, if there is exactly one
        self._in_process: tuple[Receiver, ...] = ()
        self._in_process_ids: frozenset[bytes] | None = None
        self._claimable_ids: frozenset[bytes] | None = None
        self._taps: tuple[Tap, ...] = ()  # while there are taps, receivers and firings are not cached
        self.cached_stamps: Any = None  # `persistence/origin.py` uses it
        self.cached_firing: Any = None  # `post_signals.plan_firing` uses it

    def bind(self, name: str, sender: type | None, parents: Iterable["Signal"], *, dispatched: bool) -> None:
        """Make this the signal `name` of one document. The document's Broadcaster calls it.

        Args:
            name: the name of the attribute.
            sender: the document class; None for a Broadcaster of no document.
            parents: the same signal of the abstract documents that the sender inherits from.
            dispatched: whether receivers need an identity that is the same in all processes.
        """
        self.name, self.sender, self.dispatched = name, sender, dispatched
        self._parents = tuple(parents)
        if name in POST and sender is not None:  # receivers that were connected before this have no id yet
            self._own = tuple(with_ids(receiver, sender, name) for receiver in self._own)
        self._clear_cache()
        self._check_identities(self.receivers)
        for parent in self._parents:  # last: after an error above, the class does not exist
            parent._children.add(self)

    def replace(self, other: "Signal") -> None:
        """Let the signals that inherit from `other` inherit from this one."""
        for child in other._children:
            child._parents = tuple(self if parent is other else parent for parent in child._parents)
            self._children.add(child)
        self._clear_caches()

    def connect(self, receiver: _F, **options: Unpack[ReceiverOptions]) -> _F:
        """Call `receiver` whenever this signal is sent, after the receivers that were connected before.

        Connecting the same receiver again changes nothing.

        Args:
            receiver: an async callable that takes `sender` first and accepts `**kwargs`.
            **options: `post_*` only: see `ReceiverOptions`.

        Returns:
            The receiver, so that `connect` serves as a decorator.

        Raises:
            SignalError: the receiver has a wrong signature, or an option is wrong.
        """
        if self._find(receiver) is not None:
            return receiver
        made = make_receiver(
            receiver,
            signal=self.name or "",
            sender=self.sender if self.name in POST else None,
            sequence=next(_connections),
            options=options,
        )
        for signal in (self, *self._children):
            signal._check_identities((*signal.receivers, made))
        self._own = (*self._own, made)
        self._clear_caches()
        return receiver

    def disconnect(self, receiver: ReceiverFunction) -> bool:
        """Stop calling `receiver`.

        Returns:
            False if the receiver was not connected to this signal itself. An inherited receiver is connected to
            the signal of the abstract document.
        """
        found = self._find(receiver)
        if found is None:
            return False
        self._own = tuple(r for r in self._own if r is not found)
        self._clear_caches()
        return True

    def tap(self, tap: Tap) -> None:
        """Add an observer that is no receiver, for tests; see `mongoz.testing`.

        Connected receivers and the result of `send` stay the same. Subclasses don't inherit a tap.
        """
        self._taps = (*self._taps, tap)
        self._clear_cache()

    def untap(self, tap: Tap) -> None:
        """Remove an observer, if it is there."""
        self._taps = tuple(one for one in self._taps if one is not tap)
        self._clear_cache()

    @property
    def receivers(self) -> tuple[Receiver, ...]:
        """All receivers, own and inherited, in the order of their connection. Observers of taps come first."""
        if self._functions is None:
            if self._taps:
                return (*active_observers(self._taps), *self._merged())
            self._resolve()
        return self._resolved

    @property
    def in_process(self) -> tuple[Receiver, ...]:
        """The receivers that the writing process calls, in order. Observers of taps come first."""
        if self._functions is None:
            if self._taps:
                local = tuple(receiver for receiver in self._merged() if receiver.runs_in_process)
                return (*active_observers(self._taps), *unsilenced(self._taps, local))
            self._resolve()
        return self._in_process

    @property
    def is_tapped(self) -> bool:
        """Whether there are taps. A tap may observe only some tasks, so the receivers depend on the task."""
        return bool(self._taps)

    def ids_of(self, receivers: tuple[Receiver, ...]) -> frozenset[bytes]:
        """The ids that stamps contain for the given receivers of this signal."""
        if receivers is not self._in_process:
            return self._ids(receivers)
        if self._in_process_ids is None:
            self._in_process_ids = self._ids(receivers)
        return self._in_process_ids

    def claimable_ids_of(self, receivers: tuple[Receiver, ...]) -> frozenset[bytes]:
        """Like `ids_of`, but only for the receivers that dispatchers can take over."""
        if receivers is not self._in_process:
            return self._ids(receiver for receiver in receivers if receiver.runs_in_dispatcher)
        if self._claimable_ids is None:
            self._claimable_ids = self._ids(receiver for receiver in receivers if receiver.runs_in_dispatcher)
        return self._claimable_ids

    @property
    def claimable_receivers(self) -> tuple[NamedReceiver, ...]:
        """The receivers that dispatchers can take over from the writing process."""
        if self.sender is None or self.name is None:
            return ()
        sender, name = self.sender, self.name
        owner = importable_name(sender)
        claimable = [receiver for receiver in self.in_process if receiver.runs_in_dispatcher]
        ids = [stamp_ids(receiver, sender, name) for receiver in claimable]
        return tuple(
            NamedReceiver(present, tuple(former), owner, name, receiver.name)
            for receiver, (present, *former) in zip(claimable, ids, strict=True)
        )

    def _ids(self, receivers: Iterable[Receiver]) -> frozenset[bytes]:
        if self.sender is None or self.name is None:
            return frozenset()
        return frozenset(id_ for receiver in receivers for id_ in stamp_ids(receiver, self.sender, self.name))

    async def send(self, sender: Any = None, /, **kwargs: Any) -> list[tuple[ReceiverFunction, Any]]:
        """Await the receivers one after another; the first exception ends the call.

        Receivers with the option `batch` run in a dispatcher only, so `send` does not call them.

        Args:
            sender: the sender; `sender=` works as well.
            **kwargs: keywords of the receivers.

        Returns:
            `(receiver, result)` of each, in order; an empty list if the signal is muted.
        """
        # Optimized. `sender` is positional only, so that kwargs is the dict for the receivers.
        if "sender" not in kwargs:
            kwargs["sender"] = sender
        elif sender is not None:
            raise TypeError("send() got several values for 'sender'")
        only = self._only
        if only is not None and not muting.is_used:
            return [(only, await only(**kwargs))]
        functions = self._functions
        if functions is None:
            functions = self._resolve() if not self._taps else await self._call_taps(kwargs)
        if not functions or is_muted(kwargs["sender"], self.name):
            return []
        results = []
        for function in functions:  # an async comprehension takes 50 % longer
            results.append((function, await function(**kwargs)))
        return results

    async def send_robust(self, /, sender: Any = None, **kwargs: Any) -> list[tuple[ReceiverFunction, Any]]:
        """Await all receivers one after another, even if some of them raise.

        Returns:
            `(receiver, result or exception)` of each, in order; an empty list if the signal is muted.
        """
        if is_muted(sender, self.name):
            return []
        results: list[tuple[ReceiverFunction, Any]] = []
        for function in await self._call_taps({"sender": sender, **kwargs}):
            try:
                results.append((function, await function(sender=sender, **kwargs)))
            except Exception as error:
                results.append((function, error))
        return results

    async def _call_taps(self, kwargs: dict[str, Any]) -> tuple[ReceiverFunction, ...]:
        """Await the taps, unless the signal is muted; returns the functions of receivers that no tap silences."""
        if not is_muted(kwargs["sender"], self.name):
            for observer in active_observers(self._taps):
                await observer.function(**kwargs)
        return tuple(r.function for r in unsilenced(self._taps, self._merged()) if r.options.batch is None)

    def __contains__(self, receiver: object) -> bool:
        """Whether `receiver` is connected to this signal itself, not to a parent's."""
        return self._find(receiver) is not None

    def __repr__(self) -> str:
        owner = f"{self.sender.__name__}." if self.sender else ""
        return f"<Signal {owner}{self.name or '(custom)'}, {len(self.receivers)} receivers>"

    def _find(self, function: Any) -> Receiver | None:
        # Functions are compared by equality: each access to a bound method makes a new, equal object.
        return next((r for r in self._own if r.function == function), None)

    def _merged(self) -> tuple[Receiver, ...]:
        """Own and inherited receivers, in order."""
        merged = list(self._own)
        for parent in self._parents:
            merged += [r for r in parent._own if all(r.function != seen.function for seen in merged)]
        return tuple(sorted(merged, key=lambda receiver: receiver.sequence))

    def _resolve(self) -> tuple[ReceiverFunction, ...]:
        self._resolved = merged = self._merged()
        self._in_process = tuple(receiver for receiver in merged if receiver.runs_in_process)
        self._functions = functions = tuple(r.function for r in merged if r.options.batch is None)
        self._only = functions[0] if len(functions) == 1 else None
        return functions

    def _clear_caches(self) -> None:
        self._clear_cache()
        for child in self._children:
            child._clear_cache()

    def _clear_cache(self) -> None:
        self._functions = self._only = self._in_process_ids = self._claimable_ids = None
        self.cached_firing = self.cached_stamps = None

    def _check_identities(self, receivers: Iterable[Receiver]) -> None:
        """Refuse receivers that a dispatcher could not find by name, or could not distinguish."""
        if not self.dispatched or self.name not in POST:
            return
        seen: dict[str | bytes, Receiver] = {}
        for receiver in receivers:
            if receiver.name.startswith("__main__.") or "<locals>" in receiver.name:
                raise SignalError(
                    f"The registry is dispatched, and another process could not find {receiver.name!r} by this "
                    "name; connect it with name='...'."
                )
            aliases: tuple[str | bytes, ...] = (receiver.name, *receiver.options.formerly, *receiver.ids)
            for alias in aliases:
                twin = seen.setdefault(alias, receiver)
                if twin.function != receiver.function:
                    raise self._ambiguous(alias, twin, receiver)

    def _ambiguous(self, alias: str | bytes, one: Receiver, other: Receiver) -> SignalError:
        known_as = f"are known as {alias!r}" if isinstance(alias, str) else f"have the id {alias.hex()}"
        return SignalError(
            f"Two receivers of {self.sender.__name__ if self.sender else ''}.{self.name} {known_as} "
            f"({one.defined_at} and {other.defined_at}); give one of them another name=."
        )
