"""Writes inside of receivers of writes: how deep they are, and where they end.

A receiver that saves its own instance is told of that save too. Two receivers may trigger each other in the same
way. Without a limit such a chain never ends.
"""

from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, Self

from mongoz.exceptions import SignalError

if TYPE_CHECKING:
    from mongoz.signals.signal import Signal

__all__ = ["MOST_NESTED", "Link", "chain", "refuse_endless"]

MOST_NESTED: Final = 16
"""Writes inside of each other that have receivers."""


class Link:
    """One signal whose receivers run: use it as a context manager around them.

    Attributes:
        signal: it.
        receiver: the name of the receiver that runs at present, where that is known.
        outer: the link whose receivers made this write, if there is one.
        depth: how many links there are, this one included.
        outermost: the link where the chain begins.
        is_stopped: of the outermost one: the chain came to the limit, and its other branches end as well.
    """

    __slots__ = ("_token", "depth", "is_stopped", "outer", "outermost", "receiver", "signal")

    def __init__(self, signal: "Signal") -> None:
        self.signal = signal
        self.receiver = ""
        self.is_stopped = False
        self.outer = outer = chain.get()
        if outer is None:
            self.depth, self.outermost = 1, self
        else:
            self.depth, self.outermost = outer.depth + 1, outer.outermost

    def __enter__(self) -> Self:
        self._token = chain.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        chain.reset(self._token)
        self.is_stopped = False  # tasks that a receiver has started may go on with other writes

    def __str__(self) -> str:
        name = self.receiver or ", ".join(receiver.name for receiver in self.signal.receivers)
        return f"{_sender(self.signal)}.{self.signal.name} ({name})"


chain: Final[ContextVar[Link | None]] = ContextVar("mongoz_chain", default=None)
"""The innermost signal whose receivers run in this task, or have started it."""


def refuse_endless(signal: "Signal", *, given_up: bool) -> None:
    """Refuse a write whose receivers would run too deep inside of others.

    Args:
        signal: what the write fires.
        given_up: whoever awaits the outermost write was cancelled: then a chain ends where it comes to a signal
            again. One that does not repeat itself goes on: a write and its receivers belong together.

    Raises:
        SignalError: names the chain.
    """
    inner = chain.get()
    if inner is None:
        return
    if inner.depth > MOST_NESTED:
        inner.outermost.is_stopped = True
        what = f"has led to {MOST_NESTED} writes inside of each other"
    elif (given_up or inner.outermost.is_stopped) and any(link.signal is signal for link in _links(inner)):
        what = "repeats itself, and its caller was cancelled" if given_up else "repeats itself without an end"
    else:
        return
    links = " -> ".join(str(link) for link in reversed([*_links(inner)]))
    raise SignalError(
        f"A chain of receivers {what}, so the next write, which would fire {signal.name} of {_sender(signal)}, is "
        f"refused: {links}. Have a receiver write only where something is left to change, or write inside of "
        "mongoz.signals.muted(), or connect it with delivery='dispatcher'."
    )


def _links(link: Link | None) -> Iterator[Link]:
    while link is not None:
        yield link
        link = link.outer


def _sender(signal: "Signal") -> str:
    return signal.sender.__name__ if signal.sender is not None else "?"
