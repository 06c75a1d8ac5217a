"""Records the changes that a dispatcher reads, their deliveries, and the results of the receivers."""

import asyncio
import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any, Literal

from dispatcher.core.events import DELIVERABLE, Calls, Change, Namespace, delivery_id_of
from dispatcher.core.keys import document_key
from dispatcher.delivery.routes import Routes
from dispatcher.delivery.where import RoutedChange
from mongoz.exceptions import BatchError, RetryAfter
from mongoz.persistence.rows.hydration import hydrate
from mongoz.signals import BatchEvent, Delivery
from mongoz.signals.receivers import Receiver

__all__ = ["RecordedDelivery", "Recorder", "RecordingRoutes", "SeenChange", "failures_of", "token_of"]

Outcome = Literal["waiting", "running", "delivered", "postponed", "failed", "cancelled"]


@dataclass(eq=False, slots=True)
class RecordedDelivery:
    """The delivery of one change to one receiver.

    Attributes:
        receiver: the name of the receiver.
        signal: `"post_save"`, `"post_update"` or `"post_delete"`.
        document: the document class, which the receiver gets as `sender`.
        collection: `"database.collection"`.
        id: the document's `_id`.
        outcome: `"waiting"` (not called yet), `"running"`, `"delivered"`, `"postponed"` (the last attempt raised
            `RetryAfter`), `"failed"` (the last attempt raised another exception), or `"cancelled"` because the
            dispatcher ended.
        attempts: the number of calls of the receiver.
        error: the exception of the last call; None if the receiver returned.
        kwargs: the keyword arguments of the receiver: `instance`, `created`, `update_fields`, `previous`,
            `delivery`.
        result: the return value of the receiver.
    """

    receiver: str
    signal: str
    document: Any
    collection: str
    id: Any
    outcome: Outcome = "waiting"
    attempts: int = 0
    error: BaseException | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict, repr=False)
    result: Any = field(default=None, repr=False)
    _change: Change = field(kw_only=True, repr=False)
    _began: float = field(default=0.0, repr=False)

    @property
    def instance(self) -> Any:
        """The instance that the receiver gets; None until the receiver is called."""
        return self.kwargs.get("instance")

    @property
    def delivery(self) -> Delivery | None:
        """The `delivery` that the receiver gets; None until the receiver is called."""
        return self.kwargs.get("delivery")

    def __str__(self) -> str:
        text = f"{self.signal} of {self.collection} {self.id!r} to {self.receiver}: {self.outcome}"
        if self.outcome == "running":
            text += f" for {monotonic() - self._began:.1f} s"
        if self.attempts > 1:
            text += f", attempt {self.attempts}"
        return text if self.error is None else f"{text}: {type(self.error).__name__}: {self.error}"


@dataclass(frozen=True, slots=True)
class SeenChange:
    """A change, and the number of its receivers in this dispatcher."""

    change: Change
    receivers: int

    def __str__(self) -> str:
        text = f"{self.change.operation} of {'.'.join(self.change.namespace)} {self.change.id!r}"
        return text if self.receivers else f"{text}: no receiver gets this change"


class Recorder:
    """The changes that a dispatcher read, and its deliveries.

    Attributes:
        deliveries: the deliveries in the order in which their changes were read.
        changes: the changes in the order in which they were read.
        activity: grows when a change with receivers is read, and when a call of a receiver ends.
        ending: whether the dispatcher is ending. A receiver that is cancelled at that time has not failed.
    """

    def __init__(self) -> None:
        self.deliveries: list[RecordedDelivery] = []
        self.changes: list[SeenChange] = []
        self.activity = 0
        self._resumed: dict[int, tuple[Receiver, Receiver]] = {}
        # Key: the id of the delivery, and the name of the receiver.
        self._batched: dict[tuple[str, str], RecordedDelivery] = {}
        self.ending = False

    def record(self, change: Change, calls: Iterable[Calls]) -> tuple[Calls, ...]:
        """Record the deliveries of a change. Returns the calls with receivers that record their results."""
        recorded = tuple(self._recorded(change, each) for each in calls)
        self.changes.append(SeenChange(change, sum(len(each.receivers) for each in recorded)))
        self.activity += len(recorded)
        return recorded

    def _recorded(self, change: Change, calls: Calls) -> Calls:
        return calls.with_receivers(*(self._wrap(change, calls, one) for one in calls.receivers))

    def _wrap(self, change: Change, calls: Calls, receiver: Receiver) -> Receiver:
        # A copy, because the receiver may change the row, and failures_of() validates the row later.
        kept = change._replace(document=copy.deepcopy(change.document))
        place = ".".join(change.namespace)
        record = RecordedDelivery(receiver.name, calls.signal, calls.document, place, change.id, _change=kept)
        self.deliveries.append(record)

        if receiver.options.batch is not None:
            self._batched[delivery_id_of(kept, calls.run), receiver.name] = record
            return self._wrap_batched(receiver)

        async def recorded(sender: Any, **kwargs: Any) -> Any:
            return await self._call(record, receiver, sender, kwargs)

        return replace(receiver, function=recorded)

    def _wrap_batched(self, receiver: Receiver) -> Receiver:
        """A copy of a batch receiver. The copy records the results.

        All changes share the copy, so their events form batches.
        """
        if id(receiver) not in self._resumed:

            async def recorded(sender: Any, batch: list[BatchEvent]) -> Any:
                return await self._call_batch(receiver, sender, batch)

            self._resumed[id(receiver)] = (receiver, replace(receiver, function=recorded))
        return self._resumed[id(receiver)][1]

    async def _call_batch(self, receiver: Receiver, sender: Any, batch: list[BatchEvent]) -> Any:
        found = [self._batched.get((event.delivery.id, event.delivery.receiver)) for event in batch]
        records = [(number, record) for number, record in enumerate(found) if record is not None]
        for number, record in records:
            record.kwargs, record.outcome, record.error = batch[number]._asdict(), "running", None
            record.attempts += 1
            record._began = monotonic()
        try:
            result = await receiver.function(sender=sender, batch=batch)
        except BaseException as error:
            errors = error.errors if isinstance(error, BatchError) else dict.fromkeys(range(len(found)), error)
            for number, record in records:
                if number in errors:
                    self._failed(record, errors[number])
                else:
                    record.outcome = "delivered"
            raise
        else:
            for _, record in records:
                record.outcome, record.result = "delivered", result
            return result
        finally:
            self.activity += 1

    async def _call(
        self, record: RecordedDelivery, receiver: Receiver, sender: Any, kwargs: dict[str, Any]
    ) -> Any:
        record.kwargs, record.outcome, record.error = kwargs, "running", None
        record.attempts += 1
        record._began = monotonic()
        try:
            record.result = await receiver.function(sender=sender, **kwargs)
        except BaseException as error:
            self._failed(record, error)
            raise
        else:
            record.outcome = "delivered"
            return record.result
        finally:
            self.activity += 1

    def resume(self, calls: Calls) -> Calls:
        """Return the call of a parked delivery, with a receiver that continues the record of the delivery."""
        (receiver,) = calls.receivers
        if receiver.options.batch is not None:
            return calls.with_receivers(self._wrap_batched(receiver))
        if id(receiver) not in self._resumed:

            async def recorded(sender: Any, delivery: Delivery, **kwargs: Any) -> Any:
                kwargs["delivery"] = delivery
                for record in self.deliveries:
                    if record.receiver == delivery.receiver and delivery_id_of(record._change) == delivery.id:
                        return await self._call(record, receiver, sender, kwargs)
                return await receiver.function(sender=sender, **kwargs)

            self._resumed[id(receiver)] = (receiver, replace(receiver, function=recorded))
        return calls.with_receivers(self._resumed[id(receiver)][1])

    def _failed(self, record: RecordedDelivery, error: BaseException) -> None:
        cancelled = isinstance(error, asyncio.CancelledError)
        record.outcome = "cancelled" if cancelled and self.ending else "failed"
        if isinstance(error, RetryAfter):
            record.outcome = "postponed"
        if cancelled and not self.ending:
            error = TimeoutError(f"the receiver was cancelled after {monotonic() - record._began:.1f} s")
        record.error = error

    def of(self, namespaces: Iterable[Namespace], id_: Any) -> list[RecordedDelivery]:
        """The deliveries of one document, which may be in any of these collections."""
        keys = {document_key(namespace, id_) for namespace in namespaces}
        return [each for each in self.deliveries if each._change.key in keys]


class RecordingRoutes(Routes):
    """The `Routes` of a service. They also record the deliveries.

    Args:
        marker: the collection into which `until_idle` writes. It is watched too.
        on_marker: called with every change of this collection.
    """

    def __init__(
        self, routes: Routes, recorder: Recorder, marker: Namespace, on_marker: Callable[[Change], None]
    ) -> None:
        super().__init__((), routes.group, routes.apart_from)
        self._listeners = [*routes.listeners]
        self._recorder = recorder
        self._marker = marker
        self._on_marker = on_marker

    @property
    def namespaces(self) -> tuple[Namespace, ...]:
        """The collections to watch."""
        return (*super().namespaces, self._marker)

    def calls_to(self, *names: Any, **options: Any) -> Calls | None:
        """Find the current receiver, as `Routes.calls_to` does. The found receiver records its results."""
        calls = super().calls_to(*names, **options)
        return None if calls is None else self._recorder.resume(calls)

    async def resolve(self, changes: Sequence[Change]) -> list[RoutedChange]:
        """The receivers of each change, in the order in which they are called."""
        for change in changes:
            if change.namespace == self._marker:
                self._on_marker(change)
        return [
            (change, self._recorder.record(change, calls))
            if change.operation in DELIVERABLE and change.namespace != self._marker
            else (change, calls)
            for change, calls in await super().resolve(changes)
        ]


def failures_of(deliveries: Iterable[RecordedDelivery]) -> list[tuple[RecordedDelivery, Exception]]:
    """The errors of finished deliveries. A note of each exception names the delivery.

    If the receiver of a finished delivery was never called, the document does not fit its model. This error is
    returned once for all receivers of the change.
    """
    failures: list[tuple[RecordedDelivery, Exception]] = []
    misfits: set[tuple[str, Any]] = set()
    for record in deliveries:
        error = record.error if record.outcome == "failed" else None
        if record.outcome == "waiting" and (record._change.token, record.document) not in misfits:
            error = _misfit(record)
            misfits.add((record._change.token, record.document))
        if error is None:
            continue
        if not isinstance(error, Exception):  # an ExceptionGroup can't contain a SystemExit
            error = RuntimeError(f"{type(error).__name__}: {error}")
        note = f"in the delivery of {record.signal} of {record.collection} {record.id!r} to {record.receiver}"
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        failures.append((record, error))
    return failures


def token_of(record: RecordedDelivery) -> str:
    """The resume token of the delivered change."""
    return record._change.token


def _misfit(record: RecordedDelivery) -> Exception | None:
    row = record._change.document
    if row is None:
        return None
    try:
        hydrate(record.document, copy.deepcopy(row))
    except Exception as error:  # a ValidationError, or any exception of the application's validators
        return error
    return None
