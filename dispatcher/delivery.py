"""Deliver one change: make its instance, call its receivers in order, try again those that fail."""

import asyncio
import copy
import traceback
from functools import cache
from hashlib import blake2b
from typing import Any

import stamina
from pydantic import ValidationError

from dispatcher.events import Calls, Change, Image, Job
from dispatcher.observe import Stats, get_logger
from mongoz.documents.rows import bare_instance
from mongoz.fields.storage import stored_names
from mongoz.signals import Delivery
from mongoz.signals.receivers import Receiver

__all__ = ["Deliverer", "delivery_id"]

log = get_logger()


class Deliverer:
    """Works off jobs.

    Args:
        term: of the position that this process owns.
        attempts: at a delivery, at most.
        timeout: seconds that one attempt may take.
        stats: counters.
        log_each: log every delivery, at level debug.
    """

    def __init__(
        self, *, term: int, attempts: int, timeout: float, stats: Stats, log_each: bool = False
    ) -> None:
        self._term = term
        self._attempts = attempts
        self._timeout = timeout
        self._stats = stats
        self._log_each = log_each

    async def work(self, job: Job) -> None:
        """Deliver one change to all of its receivers. Never raises but for cancellation."""
        change = job.change
        assert change is not None
        last = len(job.calls) - 1
        for i, calls in enumerate(job.calls):
            # An instance takes its row over: several document classes on one collection need a copy each.
            mine = change if i == last else copy.deepcopy(change)
            await self._deliver(mine, calls)

    async def _deliver(self, change: Change, calls: Calls) -> None:
        try:
            keywords, image = _keywords(change, calls)
        except ValidationError as error:
            self._stats.invalid += 1
            log.error(
                "a document does not fit its model; its receivers are skipped",
                action="change.invalid",
                document=calls.document.__name__,
                operation=change.operation,
                namespace=".".join(change.namespace),
                id=repr(change.id),
                receivers=[receiver.name for receiver in calls.receivers],
                error=str(error),
            )
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
            if await self._call(receiver, calls.document, delivery, keywords):
                self._stats.delivered += 1
                if self._log_each:
                    self._log_delivered(change, delivery)

    async def _call(
        self, receiver: Receiver, sender: Any, delivery: Delivery, keywords: dict[str, Any]
    ) -> bool:
        """Call one receiver until it returns; False when it was given up."""
        try:
            async with asyncio.timeout(self._timeout):
                await receiver.function(sender=sender, delivery=delivery, **keywords)
        except (Exception, SystemExit, asyncio.CancelledError) as error:
            _reraise_cancellation(error)
            return await self._call_again(receiver, sender, delivery, keywords, error)
        return True

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
                    try:
                        async with asyncio.timeout(self._timeout):
                            await receiver.function(sender=sender, delivery=delivery, **keywords)
                    except (Exception, SystemExit, asyncio.CancelledError) as again:
                        _reraise_cancellation(again)
                        error = again
                        self._log_attempt(delivery, again)
                        raise _Failed from again
        except _Failed:
            self._stats.failed += 1
            log.error(
                "a receiver failed in every attempt; the delivery is given up",
                action="delivery.failed",
                **_described(delivery),
                instance=repr(keywords["instance"]),
                attempts=self._attempts,
                error="".join(traceback.format_exception(error)),
            )
            return False
        return True

    def _log_attempt(self, delivery: Delivery, error: BaseException) -> None:
        log.warning(
            "a receiver failed",
            action="delivery.attempt_failed",
            **_described(delivery),
            of=self._attempts,
            error=f"{type(error).__name__}: {error}",
        )

    def _log_delivered(self, change: Change, delivery: Delivery) -> None:
        log.debug(
            "delivered",
            action="delivery.done",
            **_described(delivery),
            namespace=".".join(change.namespace),
            key=str(change.id),
            image=delivery.image,
            wall_time=change.wall_time.isoformat() if change.wall_time else None,
        )


class _Failed(Exception):
    """An attempt failed, whatever was raised: stamina retries Exceptions only, and receivers may raise others."""


def _reraise_cancellation(error: BaseException) -> None:
    """Let through that *we* are being cancelled; a receiver that raises CancelledError has merely failed."""
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
        raise error


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


def _keywords(change: Change, calls: Calls) -> tuple[dict[str, Any], Image]:
    """What the receivers get, and what the instance in it is.

    Raises:
        ValidationError: the document does not fit its model.
    """
    document = calls.document
    own = document.meta.collection
    elsewhere = None
    if (own.database.name, own.name) != change.namespace:
        elsewhere = document.meta.registry.get_database(change.namespace[0]).get_collection(
            change.namespace[1]
        )
    row, image = change.document, change.image
    if change.operation == "delete":
        row, image = change.before, ("pre" if change.before is not None else "key")
    instance = (
        document.from_row(row, elsewhere)
        if row is not None
        else bare_instance(document, change.id, elsewhere)
    )
    keywords: dict[str, Any] = {"instance": instance}
    if calls.signal == "post_delete":
        return keywords, image
    keywords["previous"] = _previous(change, document, elsewhere)
    if calls.signal == "post_save":
        keywords["created"] = calls.created
    else:
        attributes = _attributes(document)
        keywords["update_fields"] = frozenset(attributes.get(name, name) for name in change.names)
    return keywords, image


def _previous(change: Change, document: Any, elsewhere: Any) -> Any:
    if change.before is None:
        return None
    try:
        return document.from_row(change.before, elsewhere)
    except ValidationError:  # what it was before is no reason not to deliver what it is
        return None


@cache
def _attributes(document: Any) -> dict[str, str]:
    return {stored: name for name, stored in stored_names(document).items()}
