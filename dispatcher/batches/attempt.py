"""One attempt to deliver a batch: makes the events, and calls the receiver with them."""

from collections.abc import Awaitable, Sequence
from contextvars import copy_context
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any

from bson.codec_options import CodecOptions

from dispatcher.batches.gathering import GatheredDelivery
from dispatcher.core.events import Image
from dispatcher.delivery.attempt import Attempt
from dispatcher.delivery.instances import ChangeDelivery, keywords_of, untouched
from mongoz.exceptions import BatchError, SignalError
from mongoz.signals import BatchEvent, Delivery


@dataclass(slots=True, eq=False)
class BatchAttempt(Attempt):
    """One attempt to deliver a batch. `change` and `delivery` are those of the first event.

    Attributes:
        gathered: the deliveries of the batch.
        events: the events for the receiver, in the order of `gathered`.
    """

    gathered: Sequence[GatheredDelivery]
    events: list[BatchEvent]

    @property
    def deliveries(self) -> Sequence[Delivery]:
        """The deliveries of the events."""
        return [event.delivery for event in self.events]

    def renewed(self, codec_options: CodecOptions[Any]) -> "BatchAttempt":
        """Copy the attempt, with new instances that no receiver has modified.

        Raises:
            BaseException: a validator of the application raised it.
        """
        made = make_events(self.gathered, self.delivery.term, codec_options)
        for _, error in made.misfits:
            raise error
        return replace(self, events=made.events, began=monotonic())

    def without(self, indexes: Sequence[int]) -> "BatchAttempt":
        """Copy the attempt without some of its events."""
        left = [index for index in range(len(self.events)) if index not in set(indexes)]
        return replace(
            self,
            gathered=[self.gathered[index] for index in left],
            events=[self.events[index] for index in left],
        )

    def within(self, session: Any) -> "BatchAttempt":
        """Copy the attempt, with a session in the delivery of each event."""
        events = [one._replace(delivery=one.delivery.replaced(session=session)) for one in self.events]
        return replace(self, events=events)


@dataclass(slots=True)
class MadeEvents:
    """The events of a batch.

    Attributes:
        gathered: the deliveries of `events`, in the same order.
        misfits: the deliveries whose documents can't be converted to instances, each with its error.
    """

    gathered: list[GatheredDelivery]
    events: list[BatchEvent]
    misfits: list[tuple[GatheredDelivery, BaseException]]


def make_events(gathered: Sequence[GatheredDelivery], term: int, codec_options: CodecOptions[Any]) -> MadeEvents:
    """Make the events of a batch, with instances that no receiver has modified."""
    # In a copy of the context, because validators of the application may set context variables.
    return copy_context().run(_make_events, gathered, term, codec_options)


def _make_events(gathered: Sequence[GatheredDelivery], term: int, codec_options: CodecOptions[Any]) -> MadeEvents:
    made = MadeEvents([], [], [])
    for one in gathered:
        try:
            event = _make_event(one, term, codec_options)
        except BaseException as invalid:  # validators of the application may raise any error
            made.misfits.append((one, invalid))
        else:
            made.gathered.append(one)
            made.events.append(event)
    return made


def _make_event(one: GatheredDelivery, term: int, codec_options: CodecOptions[Any]) -> BatchEvent:
    change, calls = one.change, one.calls
    if one.made is not None:
        (image, keywords), one.made = one.made, None
    else:
        fresh = change if one.is_untouched else untouched(change, codec_options)
        one.is_untouched = False
        image, keywords = keywords_of(fresh, calls)
    return BatchEvent(delivery=delivery_of(one, image, term), **keywords)


def delivery_of(one: GatheredDelivery, image: Image, term: int) -> Delivery:
    """The `delivery` of an event."""
    calls = one.calls
    return ChangeDelivery(
        (one.change, calls, calls.receivers[0].name, image, one.attempts, term, one.retried is not None)
    )


def run_batch(attempt: Attempt) -> Awaitable[Any]:
    """Call the receiver with a batch. The steps of `Target.run` are around this function."""
    assert isinstance(attempt, BatchAttempt)
    return _run_batch(attempt)


async def _run_batch(attempt: BatchAttempt) -> None:
    events = list(attempt.events)  # the receiver may modify its list
    try:
        await attempt.target.receiver.function(sender=attempt.calls.document, batch=events)
    except BatchError as error:
        wrong = [index for index in error.errors if index >= len(attempt.events)]
        if wrong:
            raise SignalError(
                f"{attempt.delivery.receiver} raised BatchError for the event {wrong[0]}, but its batch has "
                f"{len(attempt.events)} events. Use the indexes of `batch`, from 0 on."
            ) from error
        raise
