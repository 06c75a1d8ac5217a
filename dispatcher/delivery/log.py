"""Log lines about deliveries."""

from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from dispatcher.core.error_text import text_of
from dispatcher.core.events import Calls, Change
from dispatcher.core.output.logs import log
from dispatcher.delivery.outcome import Waiting
from dispatcher.delivery.terms import Terms
from mongoz.signals import Delivery

Undelivered = Literal["change.invalid", "change.too_many_hops", "change.undecodable"]
"""The `action` of the log line if no receiver can be called for a change."""

End = Literal["blocked", "dropped", "dead_lettered"]
"""The state of a delivery after the last attempt that its options allow."""


def log_delivered(change: Change, delivery: Delivery, seconds: float) -> None:
    """Log a successful delivery. Called only with the log level `debug`."""
    log.debug(
        "delivered",
        action="delivery.done",
        **described(delivery),
        operation=change.operation,
        namespace=".".join(change.namespace),
        key=str(change.id),
        image=delivery.image,
        wall_time=str(change.wall_time) if change.wall_time else None,
        began=(datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(),
    )


def log_undelivered(what: str, action: Undelivered, change: Change, calls: Calls, error: BaseException) -> None:
    """Log that no receiver can be called for a change."""
    log.error(
        f"{what}; its receivers are not called, and each delivery becomes a dead letter or is dropped",
        action=action,
        document=calls.document.__name__,
        operation=change.operation,
        namespace=".".join(change.namespace),
        id=repr(change.id),
        receivers=[receiver.name for receiver in calls.receivers],
        error=text_of(error),
    )


def log_attempt(delivery: Delivery, terms: Terms, error: BaseException) -> None:
    """Log a failed attempt. Another attempt follows."""
    log.warning(
        "a receiver failed",
        action="delivery.attempt_failed",
        **described(delivery),
        of=terms.retry.attempts,
        error=text_of(error),
    )


def log_postponed(delivery: Delivery, seconds: float) -> None:
    """Log that a receiver raised `RetryAfter`."""
    log.info(
        "a receiver asks for another attempt later",
        action="delivery.retry_after",
        **described(delivery),
        seconds=round(seconds, 3),
    )


def log_parked(delivery: Delivery, waiting: Waiting) -> None:
    """Log that a delivery waits in the database."""
    log.info(
        "a delivery must wait; it is parked, with the later deliveries of its document to this receiver",
        action="delivery.parked",
        **described(delivery),
        reason=waiting.reason,
        seconds=round(waiting.seconds, 3),
    )


def log_failed(what: str, how: End, delivery: Delivery, id_: Any, error: BaseException) -> None:
    """Log the failure of the last attempt that the option `retry` allows.

    After this attempt, only a blocked delivery is attempted again.
    """
    log.error(
        what,
        action=f"delivery.{how}",
        **described(delivery),
        id=repr(id_),
        error=text_of(error),
        exc_info=_from_the_receiver_on(error),
    )


def _from_the_receiver_on(error: BaseException) -> BaseException:
    """Remove the leading frames of the dispatcher from the traceback of an error."""
    trace = error.__traceback__
    while trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith("dispatcher.delivery."):
        trace = trace.tb_next
    return error if trace is None else error.with_traceback(trace)


def described(delivery: Delivery) -> dict[str, Any]:
    """The common fields of all log lines about a delivery."""
    return {
        "delivery_id": delivery.id,
        "signal": delivery.signal,
        "receiver": delivery.receiver,
        "attempt": delivery.attempt,
    }
