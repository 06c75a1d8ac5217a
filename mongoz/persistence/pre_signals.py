"""The `pre_*` receivers of a write: before anything is sent."""

from typing import Any

from mongoz.connection.cancellation import is_given_up
from mongoz.signals import Signal
from mongoz.signals.chains import Link, refuse_endless
from mongoz.signals.mutes import is_muted

__all__ = ["ask"]


async def ask(signal: Signal, sender: type, **keywords: Any) -> None:
    """Send a `pre_*` signal.

    Args:
        signal: of the document that is written.
        sender: the document class.
        **keywords: what the receivers are told beside that.

    Raises:
        SignalError: too many writes are inside of each other.
        Exception: what a receiver raised: it aborts the write.
    """
    if not signal.receivers or is_muted(sender, signal.name):
        return
    refuse_endless(signal, given_up=is_given_up())
    with Link(signal):
        await signal.send(sender, **keywords)
