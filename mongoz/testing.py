"""Captures of signals, for tests.

    with capture(User) as captured:
        await sign_up("ada@example.com")
    captured.assert_fired(User.signals.post_save, created=True, instance__email="ada@example.com")

A capture records signals of this process only. `dispatcher.testing` records the deliveries of a dispatcher.
"""

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Final, overload

from mongoz.connection import Registry
from mongoz.documents import Document
from mongoz.exceptions import SignalError
from mongoz.signals import Broadcaster, Signal
from mongoz.signals.broadcaster import signals_of, unwatch, watch
from mongoz.signals.names import KEYWORDS
from mongoz.signals.options import Options
from mongoz.signals.receivers import Receiver
from mongoz.signals.taps import Tap
from mongoz.stamps import receiver_id
from mongoz.synonyms import nearest

__all__ = ["Captured", "Fired", "capture"]

_numbers = itertools.count(1)

# A report leaves out these keywords. It shows `sender` and `instance` in another form. `delivery` and `previous`
# don't help its reader.
_LEFT_OUT: Final = frozenset({"sender", "instance", "delivery", "previous"})
_LONGEST: Final = 60


@dataclass(frozen=True, eq=False, slots=True)
class Fired:
    """One signal that fired.

    Attributes:
        signal: the name of the signal.
        sender: the document class, or the sender of a custom signal.
        instance: the instance, which may have changed after the signal; None if a custom signal had no instance.
        kwargs: the keywords of the receivers, without `sender`.
        values: the fields of the instance when the signal fired.
    """

    signal: str
    sender: Any
    instance: Any
    kwargs: Mapping[str, Any]
    values: Mapping[str, Any] = field(repr=False)
    _source: Signal = field(repr=False)

    def __str__(self) -> str:
        about = ""
        if self.values:
            about = f" {', '.join(f'{name}={_short(value)}' for name, value in self.values.items())}"
        keywords = [f"{name}={_short(value)}" for name, value in self.kwargs.items() if name not in _LEFT_OUT]
        return f"{_name_of(self.sender)}.{self.signal}({', '.join(keywords)}){about}"

    def matches(self, matching: Mapping[str, Any]) -> bool:
        """Whether the keywords have these values; `instance__name` is the field `name` when the signal fired."""
        return all(self._has(path.split("__"), value) for path, value in matching.items())

    def _has(self, path: list[str], wanted: Any) -> bool:
        first, *rest = path
        found: Any = {"sender": self.sender, **self.kwargs}
        if first == "instance" and rest and self.values:
            found, path = self.values, rest
        for step in path:
            try:
                found = found[step] if isinstance(found, Mapping) else getattr(found, step)
            except (KeyError, AttributeError):
                return False
        return bool(found == wanted)


class Captured(Sequence[Fired]):
    """The captured signals, in order. They stay readable after the block.

    `of()` and `named()` return the matching ones of the signals that were captured so far.
    """

    def __init__(self, signals: list[Signal], fired: Iterable[Fired] = ()) -> None:
        self._signals = signals
        self._fired = list(fired)

    @overload
    def __getitem__(self, index: int) -> Fired: ...
    @overload
    def __getitem__(self, index: slice) -> list[Fired]: ...
    def __getitem__(self, index: int | slice) -> Fired | list[Fired]:
        return self._fired[index]

    def __len__(self) -> int:
        return len(self._fired)

    def __repr__(self) -> str:
        return f"<Captured: {', '.join(self.names) or 'nothing'}>"

    @property
    def names(self) -> list[str]:
        """The names of the signals that fired, in order: `["pre_save", "post_save"]`."""
        return [each.signal for each in self._fired]

    def of(self, *documents: type[Document]) -> "Captured":
        """The signals that these documents sent; an abstract document includes its subclasses."""
        return Captured(self._signals, [f for f in self._fired if any(_is_of(f, one) for one in documents)])

    def named(self, *signals: str | Signal) -> "Captured":
        """The captured signals with these names.

        Raises:
            SignalError: a signal is not captured at all.
        """
        tests = [self._test(signal) for signal in signals]
        return Captured(self._signals, [f for f in self._fired if any(test(f) for test in tests)])

    def clear(self) -> None:
        """Remove the signals that were captured so far."""
        self._fired.clear()

    def assert_fired(self, signal: str | Signal, times: int | None = 1, **matching: Any) -> list[Fired]:
        """Assert that a signal fired this many times.

        Args:
            signal: `User.signals.post_save`; or a name, which includes all captured documents.
            times: the exact number; None means at least once.
            **matching: keywords of the receivers (`created=True`), and fields of the instance when the
                signal fired (`instance__name="Ada"`). Only signals that match all of them count.

        Returns:
            The signals that match.

        Raises:
            AssertionError: the signal fired another number of times; the message lists the signals that fired.
            SignalError: the signal is not captured, or never has this keyword.

        Examples:
            >>> captured.assert_fired("post_update", update_fields={"name"}, instance__name="Ada")
        """
        _check_keywords(signal, matching)
        found = [fired for fired in self.named(signal) if fired.matches(matching)]
        if len(found) == times or (times is None and found):
            return found
        conditions = ", ".join(f"{name}={_short(value)}" for name, value in matching.items())
        raise AssertionError(
            f"{_label(signal)}{f' with {conditions}' if conditions else ''} fired {_times(len(found))}, "
            f"expected {'at least once' if times is None else _times(times)}.\n{self._report()}"
        )

    def assert_not_fired(self, signal: str | Signal, **matching: Any) -> None:
        """Assert that a matching signal did not fire; for the arguments and errors see `assert_fired`."""
        self.assert_fired(signal, times=0, **matching)

    def assert_nothing_fired(self) -> None:
        """Assert that none of the captured signals fired.

        Raises:
            AssertionError: a signal fired; the message lists all of them.
        """
        if self._fired:
            raise AssertionError(f"Nothing should have fired.\n{self._report()}")

    def _report(self) -> str:
        if not self._fired:
            return "Nothing fired."
        lines = [f"  {number}. {fired}" for number, fired in enumerate(self._fired, start=1)]
        return "\n".join(["These signals fired:", *lines])

    def _test(self, signal: str | Signal) -> Callable[[Fired], bool]:
        known = self._signals
        if isinstance(signal, str):
            names = {one.name for one in known if one.name}
            if signal not in names:
                raise SignalError(f"No signal {signal!r} is captured.{nearest(signal, names)}")
            return lambda fired: fired.signal == signal
        if not any(one is signal for one in known):
            raise SignalError(f"{_label(signal)} is not captured; give it, or its document, to capture(...).")
        name, sender = signal.name, signal.sender
        if sender is None:  # a custom signal
            return lambda fired: fired._source is signal
        return lambda fired: fired.signal == name and _is_of(fired, sender)  # also signals of its subclasses


class capture:  # noqa: N801 - it reads like a function: with capture(User) as captured
    """Record which signals fire while a `with` block runs.

    A signal fires when it is sent: before its first receiver runs, and even if it has no receiver. So a test can
    also cover a `pre_*` receiver that refuses the write. Muted signals do not fire, and `post_*` signals of a
    transaction fire after its commit. Bulk calls without receivers only send commands and fire nothing. A capture
    counts as a receiver, so bulk calls inside of the block work on instances.

    A capture records the signals of all tasks of this process, including tasks that were running before the block,
    such as workers of the application. With `this_task=True` each of several concurrent tasks records its own
    signals only.

    On a dispatched registry every captured write has a stamp, like a write with a receiver. A silent capture keeps
    the real receivers from running. The stamp does not list these receivers, so a dispatcher delivers to them.

    Args:
        *targets: documents (all their signals, custom ones included; an abstract document includes its
            subclasses), single signals, or a registry (all its documents).
        silent: the real receivers do not run in process inside of the block.
        this_task: record and silence only signals of the task that enters the block, and of tasks that it starts
            inside of the block.

    Raises:
        SignalError: there is no target, or a target is none of these.

    Examples:
        >>> with capture(User, silent=True) as captured:
        ...     await User.objects.create(name="Ada")
        >>> captured.assert_fired(User.signals.post_save, created=True)
    """

    def __init__(
        self, *targets: type[Document] | Signal | Registry, silent: bool = False, this_task: bool = False
    ) -> None:
        if not targets:
            raise SignalError("capture() needs documents, signals or a registry: capture(User).")
        self._broadcasters: list[Broadcaster] = []
        self._signals: list[Signal] = []
        for target in targets:
            self._add_target(target)
        self._silent = silent
        self._this_task = this_task
        self._tapped: list[Signal] = []
        self._taps: list[Tap] = []
        self._captured = Captured(self._tapped)
        self._name = f"mongoz.testing.capture-{next(_numbers)}"

    def _add_target(self, target: object) -> None:
        if isinstance(target, Signal):
            self._signals.append(target)
            return
        documents: Iterable[Any] = (target,)
        if isinstance(target, Registry):
            documents = target.all_documents
        elif not (isinstance(target, type) and issubclass(target, Document)):
            raise SignalError(f"capture() takes documents, signals and registries, not {target!r}.")
        elif target.meta.abstract:
            documents = (target, *_subclasses(target))
        self._broadcasters += [document.meta.signals for document in documents]

    def __enter__(self) -> Captured:
        if self._tapped:
            raise SignalError("This capture is in use already; make another one: capture(...).")
        self._captured = Captured(self._tapped)
        for broadcaster in self._broadcasters:
            watch(broadcaster, self._tap)  # captures signals that are created in the block too
            for signal in signals_of(broadcaster):
                self._tap(signal)
        for signal in self._signals:
            self._tap(signal)
        _entered.set(_entered.get() | {self})
        return self._captured

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _entered.set(_entered.get() - {self})
        for broadcaster in self._broadcasters:
            unwatch(broadcaster, self._tap)
        for signal, tap in zip(self._tapped, self._taps, strict=True):
            signal.untap(tap)
        self._tapped, self._taps = [], []

    def _tap(self, signal: Signal) -> None:
        if any(signal is one for one in self._tapped):
            return
        # A unique id, because stamps may contain it.
        receiver = Receiver(
            partial(self._record, signal), self._name, -1, Options(delivery="process"), receiver_id((self._name,))
        )
        tap = Tap(receiver, self._silent, self._is_active)
        self._tapped.append(signal)
        self._taps.append(tap)
        signal.tap(tap)

    def _is_active(self) -> bool:
        return not self._this_task or self in _entered.get()

    async def _record(self, signal: Signal, /, sender: Any = None, **kwargs: Any) -> None:
        instance = kwargs.get("instance")
        values = {name: _copied(value) for name, value in getattr(instance, "__dict__", {}).items()}
        fired = Fired(signal.name or "(custom)", sender, instance, kwargs, values, signal)
        self._captured._fired.append(fired)


_entered: Final[ContextVar[frozenset[capture]]] = ContextVar("mongoz_testing_entered", default=frozenset())
"""The captures whose blocks the current task is in; a task inherits them from the task that starts it."""


def _subclasses(document: type) -> Iterator[type]:
    child: type
    for child in document.__subclasses__():
        yield child
        yield from _subclasses(child)


def _is_of(fired: Fired, document: Any) -> bool:
    sender = fired.sender
    return sender is document or (
        document.meta.abstract and isinstance(sender, type) and issubclass(sender, document)
    )


def _check_keywords(signal: str | Signal, matching: Mapping[str, Any]) -> None:
    """Refuse misspelt keywords: they match nothing, so `assert_not_fired` would always pass."""
    name = signal if isinstance(signal, str) else signal.name
    fields = getattr(None if isinstance(signal, str) else signal.sender, "model_fields", None)
    for path in matching:
        first, _, rest = path.partition("__")
        if name in KEYWORDS and first not in KEYWORDS[name]:
            raise SignalError(f"{name} has no keyword {first!r}.{nearest(first, KEYWORDS[name])}")
        attribute = rest.partition("__")[0]
        if first == "instance" and attribute and fields and attribute not in fields:
            raise SignalError(
                f"The document of {_label(signal)} has no field {attribute!r}.{nearest(attribute, fields)}"
            )


def _label(signal: str | Signal) -> str:
    if isinstance(signal, str):
        return signal
    return f"{_name_of(signal.sender)}.{signal.name}" if signal.sender else signal.name or "a custom signal"


def _name_of(sender: Any) -> str:
    return getattr(sender, "__name__", None) or repr(sender)


def _times(count: int) -> str:
    return {0: "never", 1: "once"}.get(count, f"{count} times")


def _short(value: Any) -> str:
    text = repr(sorted(value) if isinstance(value, frozenset) else value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _copied(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except Exception:  # a file or a lock can't be copied
        return value
