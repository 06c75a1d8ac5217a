"""Chains of writes and receivers, and their limit.

A receiver that saves its own instance triggers itself again. Two receivers may trigger each other. Without a limit
the chain never ends.
"""

from collections.abc import Iterator
from contextvars import ContextVar
from typing import Final

from mongoz.exceptions import SignalError
from mongoz.signals.signal import Signal

__all__ = ["MAX_LENGTH", "Link", "innermost_link", "refuse_endless_chain"]

MAX_LENGTH: Final = 16
"""The maximum number of nested writes in a chain; the first write of the chain does not count."""


class Link:
    """One signal while its receivers run. A new link becomes the innermost link of the task; `end` undoes this.

    Attributes:
        signal: the signal.
        receiver: the name of the running receiver, if it is known.
        outer: the link whose receivers made the write of this signal; None for the first write of a chain.
        depth: the number of links, this one included.
        is_stopped: set on the outermost link when the chain reaches the limit. From then on, every branch of the
            chain ends when it reaches a signal for the second time.
    """

    __slots__ = ("_token", "depth", "is_stopped", "outer", "receiver", "signal")

    def __init__(self, signal: Signal) -> None:
        self.signal = signal
        self.receiver = ""
        self.is_stopped = False
        self.outer = outer = innermost_link.get()
        self.depth: int = 1 if outer is None else outer.depth + 1
        self._token = innermost_link.set(self)

    @property
    def outermost(self) -> "Link":
        """The link at the start of the chain."""
        *_, last = _links(self)
        return last

    def end(self) -> None:
        """Record that the receivers have run."""
        innermost_link.reset(self._token)
        self.is_stopped = False  # tasks that a receiver started may still run, and make other writes

    def __str__(self) -> str:
        name = self.receiver or ", ".join(receiver.name for receiver in self.signal.receivers)
        return f"{_sender_name(self.signal)}.{self.signal.name} ({name})"


innermost_link: Final[ContextVar[Link | None]] = ContextVar("mongoz_chain", default=None)
"""The link of the innermost signal whose receivers run in this task, or have started this task; or None."""


def refuse_endless_chain(signal: Signal, *, caller_cancelled: bool) -> None:
    """Refuse a write whose chain is too long.

    Args:
        signal: the signal of the write.
        caller_cancelled: the caller of the outermost write was cancelled. Then the chain ends when it reaches a
            signal for the second time. Without a repetition the chain continues: a write and its receivers belong
            together.

    Raises:
        SignalError: the chain is too long; the message shows it.
    """
    inner = innermost_link.get()
    if inner is None:
        return
    if inner.depth > MAX_LENGTH:
        inner.outermost.is_stopped = True
        reason = f"has led to {MAX_LENGTH} nested writes"
    elif (caller_cancelled or inner.outermost.is_stopped) and any(link.signal is signal for link in _links(inner)):
        reason = "repeats itself without an end"
        if caller_cancelled:
            reason = "repeats itself, and its caller was cancelled"
    else:
        return
    links = " -> ".join(str(link) for link in reversed([*_links(inner)]))
    raise SignalError(
        f"A chain of receivers {reason}, so the next write, which would fire {signal.name} of "
        f"{_sender_name(signal)}, is refused: {links}. Let a receiver write only if something is left to change, "
        "or write inside of mongoz.signals.muted(), or connect the receiver with delivery='dispatcher'."
    )


def _links(link: Link | None) -> Iterator[Link]:
    while link is not None:
        yield link
        link = link.outer


def _sender_name(signal: Signal) -> str:
    return signal.sender.__name__ if signal.sender is not None else "?"
