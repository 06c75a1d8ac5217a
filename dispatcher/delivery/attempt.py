"""One attempt: the receiver, its arguments, and the steps around the call."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import copy_context
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any, NamedTuple, Protocol

from bson.codec_options import CodecOptions

from dispatcher.core.events import Calls, Change, Job
from dispatcher.core.stats import ReceiverFigures
from dispatcher.delivery.instances import keywords_of, untouched
from dispatcher.delivery.outcome import Decision, RetriedLetter, Waiting
from dispatcher.delivery.terms import Terms
from dispatcher.pace.limit import Place
from mongoz.signals import Delivery
from mongoz.signals.receivers import Receiver

Run = Callable[["Attempt"], Awaitable[Any]]
"""Runs a receiver. Raises the error of the receiver."""

Call = Callable[["Attempt"], Awaitable[BaseException | None]]
"""Makes an attempt. Returns the error of the receiver; None if the attempt succeeded."""


@dataclass(slots=True, eq=False)
class Target:
    """A receiver with the steps around its attempts. The steps are chosen once.

    No code modifies a target: `replace` makes a copy with a further step.

    Attributes:
        terms: the options of the receiver, completed by the operator's settings.
        run: the steps inside the time limit. They run in the receiver's context and can be cancelled.
        call: the steps outside the time limit, around `run`. They run in the context of the worker.
    """

    receiver: Receiver
    terms: Terms
    figures: ReceiverFigures
    run: Run
    call: Call


class Step(Protocol):
    """A step around each attempt of the receivers that need it, like a middleware."""

    def around(self, target: Target) -> Target:
        """Put the step around the `run` or around the `call` of a receiver.

        Returns:
            The target with another `run` or `call`; the same target if the receiver does not need this step.
        """


class HeldDelivery(NamedTuple):
    """A delivery that waited in the database, and is due.

    Attributes:
        change: the change, with documents that no receiver has modified.
        calls: the document class and a single receiver.
        retried: the dead letter that the delivery repeats; None if it repeats none.
        leave: called if the receiver ignores cancellation. Its arguments are the task in which the receiver still
            runs, and the decision about the delivery. In this case `deliver_held` does not return.
        place: the place that is already taken for this attempt, if the receiver has limits; None if no place is
            taken.
        lane: the name of its lane.
        id: the `_id` of its record.
    """

    change: Change
    calls: Calls
    waiting: Waiting
    retried: RetriedLetter | None
    leave: Callable[["asyncio.Task[Any]", Decision], Awaitable[None]]
    place: Place | None = None
    lane: str = ""
    id: str = ""


class Leaving(Protocol):
    """The parent of an attempt. It can go on without the task of a receiver that ignores cancellation."""

    async def leave(self, task: "asyncio.Task[Any]", attempt: "Attempt") -> None:
        """Do the remaining work of the parent without this task.

        The attempt in the task counts as failed, and its result is ignored.
        """


@dataclass(slots=True, eq=False)
class Attempt:
    """One attempt to deliver one change to one receiver. `replace` makes a changed copy.

    Attributes:
        calls: the document class, the signal, and the collection of the change.
        keywords: the keyword arguments of the receiver, such as the instance. Each call sets `sender` and
            `delivery` in this dict: this takes less time than making a new dict.
        parent: the job, the held delivery or the batch to which this attempt belongs.
        began: the time of the beginning, by the monotonic clock.
    """

    target: Target
    change: Change
    calls: Calls
    delivery: Delivery
    keywords: dict[str, Any]
    parent: Job | HeldDelivery | Leaving
    began: float

    @property
    def deliveries(self) -> Sequence[Delivery]:
        """The deliveries of the attempt: one, or those of a batch."""
        return (self.delivery,)

    def renewed(self, codec_options: CodecOptions[Any]) -> "Attempt":
        """Copy the attempt, with a new instance that no receiver has modified.

        Raises:
            BaseException: a validator of the application raised it.
        """
        change = untouched(self.change, codec_options)
        _, keywords = copy_context().run(keywords_of, change, self.calls)  # validators may set context variables
        return replace(self, keywords=keywords, began=monotonic())
