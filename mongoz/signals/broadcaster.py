"""The signals of a document, by name."""

from collections.abc import Callable, Iterator
from typing import Any

from mongoz.exceptions import SignalError
from mongoz.signals.names import BUILT_IN, KEYWORDS
from mongoz.signals.signal import Signal
from mongoz.synonyms import nearest

__all__ = ["Broadcaster", "signals_of", "unwatch", "watch"]


class Broadcaster:
    """The class of `Document.signals`: the six built-in signals and the custom signals of the document.

    To add a custom signal, assign a `Signal`, or just use a new name: the first use creates the signal. But using
    a new name that starts with `pre_` or `post_` raises an error, because a misspelt signal would never fire.

    `Broadcaster()` belongs to no document: its signals fire when the application sends them.

    Examples:
        >>> User.meta.signals.on_verify = mongoz.Signal()
        >>> User.signals.post_save.connect(send_mail)
    """

    # The built-in signals have slots: each write looks them up, and `__getattr__` would take ten times as long.
    __slots__ = (
        "_dispatched",
        "_parents",
        "_sender",
        "_signals",
        "_watchers",
        "post_delete",
        "post_save",
        "post_update",
        "pre_delete",
        "pre_save",
        "pre_update",
    )

    # Without these declarations, type checkers think that each attribute is a Signal, because of __getattr__.
    _sender: type | None
    _parents: "tuple[Broadcaster, ...]"
    _dispatched: bool
    _signals: dict[str, Signal]
    _watchers: tuple[Callable[[Signal], None], ...]
    pre_save: Signal
    post_save: Signal
    pre_update: Signal
    post_update: Signal
    pre_delete: Signal
    post_delete: Signal

    def __init__(
        self, sender: type | None = None, parents: tuple["Broadcaster", ...] = (), *, dispatched: bool = False
    ) -> None:
        super().__setattr__("_sender", sender)
        super().__setattr__("_parents", parents)
        super().__setattr__("_dispatched", dispatched)
        super().__setattr__("_signals", {})
        super().__setattr__("_watchers", ())
        for name in BUILT_IN:
            self._bind(name, Signal())

    def _bind(self, name: str, signal: Signal) -> None:
        parents = [parent._signals[name] for parent in self._parents]
        signal.bind(name, self._sender, parents, dispatched=self._dispatched)
        self._signals[name] = signal
        super().__setattr__(name, signal)

    def __getattr__(self, name: str) -> Signal:
        if name.startswith("_"):  # copy, pickle and inspect look up such names
            raise AttributeError(name)
        found: Signal | None = self._signals.get(name)
        if found is None:
            found = next((p._signals[name] for p in self._parents if name in p._signals), None)
        if found is None:
            if name.startswith(("pre_", "post_")):
                raise SignalError(
                    f"{_name_of(self)} has no signal {name!r}, and would never fire one."
                    f"{nearest(name, self)} Assign a custom signal before you use it."
                )
            found = Signal()
            setattr(self, name, found)
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        if not isinstance(value, Signal):
            raise SignalError(f"{_name_of(self)}.signals.{name} must be a mongoz.Signal, not {value!r}.")
        if name.startswith("_"):
            raise SignalError(f"A signal's name can't start with an underscore: {name!r}.")
        if name in BUILT_IN:
            replaced = self._signals[name]
            self._bind(name, value)
            value.replace(replaced)
        else:
            value.name = value.name or name
            self._signals[name] = value
        for watcher in self._watchers:
            watcher(value)

    def __delattr__(self, name: str) -> None:
        if name in BUILT_IN or name not in self._signals:
            raise SignalError(f"{_name_of(self)} has no custom signal {name!r} to delete.")
        del self._signals[name]

    def __contains__(self, name: object) -> bool:
        return name in self._signals or any(name in parent._signals for parent in self._parents)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._signals))

    def __repr__(self) -> str:
        return f"<Broadcaster of {_name_of(self)}: {', '.join(self)}>"


# Functions instead of methods: every public name of a Broadcaster is the name of a signal.


def _name_of(broadcaster: Broadcaster) -> str:
    return "no document" if broadcaster._sender is None else broadcaster._sender.__name__


def signals_of(broadcaster: Broadcaster) -> Iterator[Signal]:
    """A document's own signals, and the custom signals of its abstract parents."""
    yield from broadcaster._signals.values()
    for parent in broadcaster._parents:
        yield from (signal for signal in signals_of(parent) if signal.name not in KEYWORDS)


def watch(broadcaster: Broadcaster, watcher: Callable[[Signal], None]) -> None:
    """Call `watcher` with each signal that is created or assigned from now on."""
    object.__setattr__(broadcaster, "_watchers", (*broadcaster._watchers, watcher))


def unwatch(broadcaster: Broadcaster, watcher: Callable[[Signal], None]) -> None:
    """Undo `watch`."""
    object.__setattr__(broadcaster, "_watchers", tuple(one for one in broadcaster._watchers if one != watcher))
