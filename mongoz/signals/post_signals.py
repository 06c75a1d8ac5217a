"""Running the in-process receivers of one write that stands."""

import asyncio
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from mongoz.error_groups import raise_together
from mongoz.exceptions import SignalError
from mongoz.signals.chains import Link
from mongoz.signals.hops import ask_hops
from mongoz.signals.mutes import is_muted, muting
from mongoz.signals.receivers import Delivery, Receiver
from mongoz.signals.signal import Signal

__all__ = ["Firing", "left_to_dispatchers", "plan"]


class Firing(NamedTuple):
    """What will happen in this process after a write: decided before it, since the stamp must say so.

    Attributes:
        signal: the `post_*` signal.
        receivers: those that this process runs.
        muted: nobody delivers this write, the dispatcher neither.
        hops: of the write, if a receiver in a dispatcher makes it, else 0.
    """

    signal: Signal
    receivers: tuple[Receiver, ...] = ()
    muted: bool = False
    hops: int = 0

    @property
    def tells(self) -> bool:
        """Whether a dispatcher must know of it."""
        return bool(self.receivers or self.muted or self.hops)

    async def run(self, sender: type, delivery_id: str, **keywords: Any) -> None:
        """Await all receivers, one after another; then raise what they raised.

        Args:
            sender: the document class.
            delivery_id: the token of the write.
            **keywords: what the receivers are told beside these.

        Raises:
            Exception: what the only failing receiver raised, as it is.
            ExceptionGroup: what several raised. The write stands in either case.
        """
        errors: list[Exception] = []
        name = self.signal.name or ""
        image: Literal["pre", "post"] = "pre" if name == "post_delete" else "post"
        keywords["sender"] = sender
        with Link(self.signal) as link:
            for receiver in self.receivers:
                link.receiver = receiver.name
                # By position: by name it takes three times as long.
                keywords["delivery"] = Delivery(
                    delivery_id, name, receiver.name, "process", 1, 0, None, None, image, False, None
                )
                try:
                    await receiver.function(**keywords)
                except asyncio.CancelledError as error:
                    if _is_cancelled_here():
                        raise
                    errors.append(_cancelled_inside(receiver, error))
                except Exception as error:
                    errors.append(error)
        if errors:
            count = f"{len(errors)} of {len(self.receivers)}"
            raise_together(errors, f"{count} {name} receivers of {sender.__name__} raised")


def _is_cancelled_here() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _cancelled_inside(receiver: Receiver, error: asyncio.CancelledError) -> SignalError:
    """What stands for the cancellation of something that a receiver awaited: the others must run all the same."""
    raised = SignalError(f"What the receiver {receiver.name!r} awaited was cancelled; it has not run to its end.")
    raised.__cause__ = error
    return raised


def plan(signal: Signal, changed: Iterable[str] | None = None) -> Firing:
    """Who of a signal's receivers runs here, as things are now in this task.

    Args:
        signal: a `post_*` signal.
        changed: names of the fields that the write is about, for receivers that listen to some fields only; None
            means any.
    """
    if muting.is_used and is_muted(signal.sender, signal.name):
        return Firing(signal, muted=True)
    if hops := ask_hops():
        return Firing(signal, hops=hops)
    planned: Firing | None = signal._planned
    if planned is None:
        planned = Firing(signal, signal.in_process)
        signal._planned = None if signal.is_tapped else planned
    receivers = planned.receivers
    if changed is not None and any(receiver.options.fields for receiver in receivers):
        names = frozenset(changed)
        return Firing(signal, tuple(r for r in receivers if not r.options.fields or r.options.fields & names))
    return planned


def left_to_dispatchers(firing: Firing) -> Firing:
    """The same, for a write that dispatchers won't know to be ours: only receivers that they never run stay."""
    return firing._replace(receivers=tuple(r for r in firing.receivers if not r.runs_in_dispatcher))
