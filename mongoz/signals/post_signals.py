"""Chooses and runs the `post_*` receivers that run in this process after a write."""

import asyncio
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from mongoz.claims.book import OpenClaim
from mongoz.error_groups import raise_together
from mongoz.exceptions import SignalError
from mongoz.signals.chains import Link
from mongoz.signals.contexts import WriteContext, contexts, current_context
from mongoz.signals.hops import current_hops
from mongoz.signals.mutes import is_muted, muting
from mongoz.signals.receivers import Delivery, Receiver
from mongoz.signals.signal import Signal

__all__ = ["Firing", "leave_to_dispatchers", "plan_firing"]


class Firing(NamedTuple):
    """The receivers of a write. They are chosen before the write, because the stamp lists them.

    Attributes:
        signal: the `post_*` signal.
        receivers: the receivers that this process runs.
        muted: neither this process nor a dispatcher runs receivers.
        hops: the hops of the write (see `signals/hops.py`); 0 unless a receiver in a dispatcher makes the write.
        context: the context of the write (see `signals/contexts.py`). A muted write has none.
    """

    signal: Signal
    receivers: tuple[Receiver, ...] = ()
    muted: bool = False
    hops: int = 0
    context: WriteContext | None = None

    @property
    def concerns_dispatchers(self) -> bool:
        """Whether a dispatcher must know that mongoz made the write."""
        return bool(self.receivers or self.muted or self.hops or self.context)

    @property
    def informs_dispatchers(self) -> bool:
        """Whether the write is muted, has hops or has a context. A dispatcher must know each of these."""
        return bool(self.muted or self.hops or self.context)

    async def run(
        self, sender: type, delivery_id: str, keywords: dict[str, Any], claim: OpenClaim | None = None
    ) -> None:
        """Await all receivers, one after another; then raise their errors.

        Claimed receivers that may not start in this process any more are left to dispatchers.

        Args:
            sender: the document class.
            delivery_id: the token of the write.
            keywords: further keywords of the receivers. This call adds `sender` and `delivery` to the dict.
            claim: the claim of the write, if it has one. This call ends the claim.

        Raises:
            Exception: the error of the only failing receiver.
            ExceptionGroup: several receivers failed. In both cases the document stays written.
        """
        errors: list[Exception] = []
        name = self.signal.name or ""
        image: Literal["pre", "post"] = "pre" if name == "post_delete" else "post"
        context = None if self.context is None else self.context.values
        keywords["sender"] = sender
        left, is_over = 0, False
        link = Link(self.signal)
        try:
            for receiver in self.receivers:
                if claim is not None and receiver in claim.covered and not claim.may_start:
                    left += 1
                    continue
                link.receiver = receiver.name
                # Positional arguments: keywords would take three times as long.
                keywords["delivery"] = Delivery(
                    delivery_id, name, receiver.name, "process", 1, 0, None, None, image, False, None, False,
                    context,
                )  # fmt: skip
                try:
                    await receiver.function(**keywords)
                except asyncio.CancelledError as error:
                    if _is_cancelled_here():
                        raise
                    errors.append(_cancelled_inside(receiver, error))
                except Exception as error:
                    errors.append(error)
            is_over = True
        finally:
            link.end()
            if claim is not None:
                if is_over and not left:
                    claim.done()
                else:
                    claim.release()
        if errors:
            count = f"{len(errors)} of {len(self.receivers)}"
            raise_together(errors, f"{count} {name} receivers of {sender.__name__} raised")


def _is_cancelled_here() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _cancelled_inside(receiver: Receiver, error: asyncio.CancelledError) -> SignalError:
    """The error of a receiver whose awaited task was cancelled. The other receivers must still run."""
    raised = SignalError(
        f"A task that the receiver {receiver.name!r} awaited was cancelled; the receiver did not complete."
    )
    raised.__cause__ = error
    return raised


def plan_firing(signal: Signal, changed: Iterable[str] | None = None) -> Firing:
    """Decide which receivers of a signal this process runs for a write that the current task makes now.

    Args:
        signal: a `post_*` signal.
        changed: names of the written fields. A receiver with `fields=` is left out if none of its fields was
            written. If `changed` is None, `fields=` does not count.
    """
    if muting.is_used and is_muted(signal.sender, signal.name):
        return Firing(signal, muted=True)
    context = current_context() if contexts.is_used else None
    if hops := current_hops():
        return Firing(signal, hops=hops, context=context)
    planned: Firing | None = signal.cached_firing
    if planned is None:
        planned = Firing(signal, signal.in_process)
        signal.cached_firing = None if signal.is_tapped else planned
    if context is not None:
        planned = planned._replace(context=context)
    receivers = planned.receivers
    if changed is not None and any(receiver.options.fields for receiver in receivers):
        names = frozenset(changed)
        receivers = tuple(r for r in receivers if not r.options.fields or r.options.fields & names)
        return planned._replace(receivers=receivers)
    return planned


def leave_to_dispatchers(firing: Firing) -> Firing:
    """Leave the receivers of a write to the dispatchers: keep only receivers that no dispatcher runs."""
    return firing._replace(receivers=tuple(r for r in firing.receivers if not r.runs_in_dispatcher))
