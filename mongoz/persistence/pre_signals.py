"""The `pre_*` signals of a write, which fire before anything is sent."""

from typing import Any

from mongoz.connection.cancellation import is_caller_cancelled
from mongoz.signals import Signal
from mongoz.signals.chains import Link, innermost_link, refuse_endless_chain
from mongoz.signals.mutes import is_muted, muting

__all__ = ["fire_pre_signal"]


async def fire_pre_signal(signal: Signal, sender: type, **keywords: Any) -> None:
    """Send a `pre_*` signal.

    Args:
        signal: a signal of the written document.
        sender: the document class.
        **keywords: the keywords of the receivers besides `sender`.

    Raises:
        SignalError: the chain of receivers is too long.
        Exception: a receiver raised it, which aborts the write.
    """
    if not signal.receivers or (muting.is_used and is_muted(sender, signal.name)):
        return
    if innermost_link.get() is not None:
        refuse_endless_chain(signal, caller_cancelled=is_caller_cancelled())
    link = Link(signal)
    try:
        await signal.send(sender, **keywords)
    finally:
        link.end()
