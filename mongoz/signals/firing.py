"""Running the in-process receivers of one write that stands."""

from typing import Any, Literal, NamedTuple

from mongoz.exceptions import raise_together
from mongoz.signals.muting import is_muted
from mongoz.signals.receivers import Delivery, Receiver
from mongoz.signals.signal import Signal

__all__ = ["Firing", "plan"]


class Firing(NamedTuple):
    """What will happen in this process after a write: decided before it, since the stamp must say so.

    Attributes:
        signal: the `post_*` signal.
        receivers: those that this process runs.
        muted: nobody delivers this write, the dispatcher neither.
    """

    signal: Signal
    receivers: tuple[Receiver, ...]
    muted: bool

    async def run(self, sender: type, delivery_id: str, **kwargs: Any) -> None:
        """Await all receivers, one after another; then raise what they raised.

        Raises:
            Exception: what the only failing receiver raised, as it is.
            ExceptionGroup: what several raised. The write stands in either case.
        """
        errors: list[Exception] = []
        name = self.signal.name or ""
        image: Literal["pre", "post"] = "pre" if name == "post_delete" else "post"
        for receiver in self.receivers:
            delivery = Delivery(delivery_id, name, receiver.name, "process", image=image)
            try:
                await receiver.function(sender=sender, delivery=delivery, **kwargs)
            except Exception as error:
                errors.append(error)
        count = f"{len(errors)} of {len(self.receivers)}"
        raise_together(errors, f"{count} {name} receivers of {sender.__name__} raised")


def plan(signal: Signal) -> Firing:
    """Who of a signal's receivers runs here, as things are now in this task."""
    if is_muted(signal.sender, signal.name):
        return Firing(signal, (), True)
    return Firing(signal, tuple(r for r in signal.receivers if r.runs_in_process), False)
