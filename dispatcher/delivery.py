"""Deliver one change: make its instance, call its receivers in order, try again those that fail."""

import asyncio
import copy
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from hashlib import blake2b
from time import monotonic
from typing import Any, Final

import stamina

from dispatcher.events import Calls, Change, Image, Job
from dispatcher.observe import Stats, get_logger
from mongoz.fields.storage import stored_names
from mongoz.persistence.rows import bare_instance, hydrate
from mongoz.signals import Delivery
from mongoz.signals.receivers import Receiver

__all__ = ["Deliverer", "delivery_id"]

log = get_logger()

# Seconds after which a receiver that hangs on is cancelled once more.
_CANCEL_AGAIN: Final = 1.0


class Deliverer:
    """Works off jobs.

    Args:
        term: of the position that this process owns.
        attempts: at a delivery, at most.
        timeout: seconds that one attempt may take.
        stats: counters.
        log_each: log every delivery, at level debug.
        cutting: whether deliveries in flight are being cancelled because the process ends.
    """

    def __init__(
        self,
        *,
        term: int,
        attempts: int,
        timeout: float,
        stats: Stats,
        log_each: bool = False,
        cutting: Callable[[], bool] = lambda: False,
    ) -> None:
        self._cutting = cutting
        self._term = term
        self._attempts = attempts
        self._timeout = timeout
        self._stats = stats
        self._log_each = log_each
        # Who is in a receiver, and until when it may be. A timer per delivery would cost more than a delivery.
        self._deadlines: dict[asyncio.Task[Any], float] = {}
        self._overdue: Counter[asyncio.Task[Any]] = Counter()

    async def watch(self) -> None:
        """Cancel the receivers that hang. Runs for ever, beside the workers."""
        while True:
            await asyncio.sleep(min(1.0, self._timeout / 10))
            now = monotonic()
            for task, deadline in list(self._deadlines.items()):
                if deadline < now:
                    self._deadlines[task] = now + _CANCEL_AGAIN  # some cancellations get lost, see `cancelling`
                    self._overdue[task] += 1
                    task.cancel()

    async def work(self, job: Job) -> None:
        """Deliver one change to all of its receivers. Never raises but for cancellation."""
        change = job.change
        assert change is not None
        if len(job.calls) == 1:
            await self._deliver(change, job.calls[0])
            return
        for calls in job.calls:
            # An instance takes its row over: several document classes on one collection need a copy each.
            await self._deliver(copy.deepcopy(change), calls)

    async def _deliver(self, change: Change, calls: Calls) -> None:
        try:
            image, keywords = _keywords(change, calls)
        except Exception as error:  # ValidationErrors, and whatever the application's validators raise
            self._stats.invalid += 1
            self._log_invalid(change, calls, error)
            return
        id_ = delivery_id(change.token)
        for receiver in calls.receivers:
            delivery = Delivery(
                id_,
                calls.signal,
                receiver.name,
                "stream",
                1,
                self._term,
                change.cluster_time,
                change.wall_time,
                image,
            )
            began = datetime.now(UTC) if self._log_each else None
            failure = await self._attempt(receiver, calls.document, delivery, keywords)
            if failure is not None and not await self._call_again(
                receiver, calls.document, delivery, keywords, failure
            ):
                continue
            self._stats.delivered += 1
            if began is not None:
                self._log_delivered(change, delivery, began)

    async def _attempt(
        self, receiver: Receiver, sender: Any, delivery: Delivery, keywords: dict[str, Any]
    ) -> BaseException | None:
        """Call a receiver once; what it raised, if it did.

        Raises:
            CancelledError: the process ends, and the grace period is over. Whatever else a receiver raises, or
                does to the task it runs in, it has merely failed.
        """
        task = asyncio.current_task()
        assert task is not None
        self._deadlines[task] = monotonic() + self._timeout
        try:
            await receiver.function(sender=sender, delivery=delivery, **keywords)
        except BaseException as error:
            del self._deadlines[task]
            if self._cutting() and isinstance(error, asyncio.CancelledError):
                raise
            late = await self._settle(task)
            if late and isinstance(error, asyncio.CancelledError):
                return TimeoutError(f"it took longer than {self._timeout:g} s")
            return error
        del self._deadlines[task]
        if task.cancelling():
            await self._settle(task)
        return None

    async def _settle(self, task: asyncio.Task[Any]) -> bool:
        """Clear the worker of cancellations that were meant for the receiver; whether it was late."""
        late = self._overdue.pop(task, 0) > 0
        if task.cancelling() and not self._cutting():
            while task.cancelling():
                task.uncancel()
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0)  # takes one that was asked for and is still to come
        return late

    async def _call_again(
        self,
        receiver: Receiver,
        sender: Any,
        delivery: Delivery,
        keywords: dict[str, Any],
        error: BaseException,
    ) -> bool:
        try:
            async for attempt in stamina.retry_context(
                on=Exception, attempts=self._attempts, timeout=None, wait_initial=0.5, wait_max=60.0
            ):
                with attempt:
                    if attempt.num == 1:  # made already; failing once more only schedules the next
                        self._log_attempt(delivery, error)
                        raise _Failed from error
                    self._stats.retried += 1
                    delivery = delivery._replace(attempt=attempt.num)
                    again = await self._attempt(receiver, sender, delivery, keywords)
                    if again is not None:
                        error = again
                        self._log_attempt(delivery, error)
                        raise _Failed from error
        except _Failed:
            self._stats.failed += 1
            log.error(
                "a receiver failed in every attempt; the delivery is given up",
                action="delivery.failed",
                **_described(delivery),
                id=repr(keywords["instance"].__dict__.get("id")),
                attempts=self._attempts,
                error=_text(error),
                exc_info=_from_the_receiver_on(error),
            )
            return False
        return True

    def _log_invalid(self, change: Change, calls: Calls, error: Exception) -> None:
        log.error(
            "a document does not fit its model; its receivers are skipped",
            action="change.invalid",
            document=calls.document.__name__,
            operation=change.operation,
            namespace=".".join(change.namespace),
            id=repr(change.id),
            receivers=[receiver.name for receiver in calls.receivers],
            error=_text(error),
        )

    def _log_attempt(self, delivery: Delivery, error: BaseException) -> None:
        log.warning(
            "a receiver failed",
            action="delivery.attempt_failed",
            **_described(delivery),
            of=self._attempts,
            error=_text(error),
        )

    def _log_delivered(self, change: Change, delivery: Delivery, began: datetime) -> None:
        log.debug(
            "delivered",
            action="delivery.done",
            **_described(delivery),
            operation=change.operation,
            namespace=".".join(change.namespace),
            key=str(change.id),
            image=delivery.image,
            wall_time=change.wall_time.isoformat() if change.wall_time else None,
            began=began.isoformat(),
        )


class _Failed(Exception):
    """An attempt failed, whatever was raised: stamina knows Exceptions only."""


def _from_the_receiver_on(error: BaseException) -> BaseException:
    """The error without the frame of ours that called the receiver."""
    trace = error.__traceback__
    return error if trace is None or trace.tb_next is None else error.with_traceback(trace.tb_next)


def _text(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # of an application's class, whose __str__ has a bug
        return type(error).__name__


def _described(delivery: Delivery) -> dict[str, Any]:
    return {
        "delivery_id": delivery.id,
        "signal": delivery.signal,
        "receiver": delivery.receiver,
        "attempt": delivery.attempt,
    }


def delivery_id(token: str) -> str:
    """The id of the deliveries of a change: the same whenever the change is read again."""
    return blake2b(token.encode(), digest_size=12).hexdigest()


def _keywords(change: Change, calls: Calls) -> tuple[Image, dict[str, Any]]:
    """What the instance is that the receivers get, and their keywords.

    Raises:
        ValidationError: the document does not fit its model.
        Exception: a validator of the application raised it.
    """
    document, signal = calls.document, calls.signal
    if signal == "post_delete":
        before = None if change.before is None else _previous(document, change.before)
        if before is None:  # not known, or not fit for the model: that it is gone must be told all the same
            return "key", {"instance": bare_instance(document, change.id)}
        return "pre", {"instance": before}
    row = change.document
    instance = hydrate(document, row) if row is not None else bare_instance(document, change.id)
    previous = None if change.before is None else _previous(document, change.before)
    if signal == "post_save":
        return change.image, {"instance": instance, "created": calls.created, "previous": previous}
    attributes = _attributes(document)
    names = frozenset(attributes.get(name, name) for name in change.names)
    return change.image, {"instance": instance, "update_fields": names, "previous": previous}


def _previous(document: Any, row: dict[str, Any]) -> Any:
    try:
        return hydrate(document, row)
    except Exception:  # what it was before is no reason not to deliver what it is
        return None


@cache
def _attributes(document: Any) -> dict[str, str]:
    return {stored: name for name, stored in stored_names(document).items()}
