"""Random failures of batch receivers: each event is finished once, and each document keeps its order."""

import asyncio
from collections import Counter, defaultdict
from typing import Any, NamedTuple

from bson import ObjectId
from hypothesis import example, given
from hypothesis import strategies as st

import mongoz
from dispatcher.batches.attempt import run_batch
from dispatcher.batches.gathering import GatheredDelivery
from dispatcher.batches.run import BatchRun, BatchTools
from dispatcher.core.bson_codec import RawEvent
from dispatcher.core.events import Calls, Job
from dispatcher.core.lease import Lease
from dispatcher.core.stats import Stats
from dispatcher.delivery.capacity import Bounds, Capacity
from dispatcher.delivery.failure import Failures
from dispatcher.delivery.steps import Steps
from dispatcher.delivery.terms import Policy
from dispatcher.stream.decode import decode
from mongoz import Batch, BatchError, RetryAfter
from mongoz.signals.options import Retry
from tests.list_source import event

registry = mongoz.Registry("mongodb://nowhere.example/", dispatched="shop")


class Product(mongoz.Document):
    n: int = mongoz.Integer()

    class Meta:
        registry = registry
        database = "shop"


class Event(NamedTuple):
    """An event of a batch.

    Attributes:
        document: the number of its document.
        failures: the number of calls in which it fails; 99 for all.
        asks: whether these failures are `RetryAfter`. Ignored if all calls fail.
    """

    document: int
    failures: int
    asks: bool


EVENTS = st.lists(
    st.builds(Event, st.integers(0, 3), st.sampled_from([0, 0, 0, 1, 2, 99]), st.booleans()),
    min_size=1,
    max_size=8,
)


class Receiver:
    """Fails as the events say.

    Attributes:
        done: the events that were delivered, in order, maybe repeatedly.
        is_named: whether it raises a `BatchError` that names the failed events. Otherwise it raises the first
            error.
    """

    def __init__(self, events: list[Event], *, is_named: bool) -> None:
        self._events = events
        self._calls: Counter[int] = Counter()
        self._is_named = is_named
        self.done: list[int] = []
        self.batches: list[list[int]] = []

    async def __call__(self, sender: Any, batch: Any, **kwargs: Any) -> None:
        numbers = [one.instance.n for one in batch]
        self.batches.append(numbers)
        assert len(set(numbers)) == len(numbers)
        errors: dict[int, Exception] = {}
        for place, number in enumerate(numbers):
            self._calls[number] += 1
            one = self._events[number]
            if self._calls[number] <= one.failures:
                asks = one.asks and one.failures < 99
                errors[place] = RetryAfter(0.001) if asks else ValueError(str(number))
        if errors and not self._is_named:
            raise next(iter(errors.values()))
        self.done += [number for place, number in enumerate(numbers) if place not in errors]
        if errors:
            raise BatchError(errors)


async def run(receiver: Receiver, events: list[Event], attempts: int) -> tuple[Counter[int], Stats]:
    """Delivers a batch. Returns how often each event was finished, and the counters of the deliveries."""
    Product.signals.post_save.connect(
        receiver, name="index", batch=Batch(size=100), retry=Retry(attempts, base=0.0001, cap=0.0002)
    )
    try:
        (connected,) = Product.signals.post_save.receivers
    finally:
        Product.signals.post_save.disconnect(receiver)
    stats, capacity = Stats(), Capacity(Bounds(10, 1_000, 1_000_000))
    policy = Policy(attempts, 30.0)
    steps = Steps(policy, Lease.for_ever(), capacity, stats, registry.codec_options).batched(run_batch, None)
    failures = Failures(1, stats, pause=capacity.pause)
    tools = BatchTools(1, policy, capacity, stats, registry.codec_options, failures, None)
    gathered = [made(number, one, connected) for number, one in enumerate(events)]
    finished: Counter[int] = Counter()
    numbers = {id(one): number for number, one in enumerate(gathered)}

    async def end(_run: BatchRun) -> None:
        assert not _run.waits

    capacity.in_flight = 1
    target = steps.target(connected, "post_save")
    await BatchRun(tools, target, gathered, finish=lambda one: finished.update([numbers[id(one)]]), end=end).run()
    return finished, stats


def made(number: int, one: Event, receiver: Any) -> GatheredDelivery:
    id_ = ObjectId(f"{one.document:024x}")
    document = {"_id": id_, "n": number}
    raw = event(number + 1, "insert", id_, second=1_800_000_000, place="shop.products", fullDocument=document)
    change = decode(RawEvent(raw), registry.codec_options)
    calls = Calls(Product, "post_save", True, (receiver,))
    return GatheredDelivery(change, calls, change.key, 0.0, Job("", change, (calls,)), is_untouched=True)


@given(EVENTS, st.booleans(), st.integers(1, 3))
@example(events=[Event(0, 1, False), Event(0, 0, False), Event(0, 1, True)], is_named=True, attempts=1)
def test_each_event_is_finished_once_and_each_document_keeps_its_order(
    events: list[Event], is_named: bool, attempts: int
) -> None:
    receiver = Receiver(events, is_named=is_named)
    finished, stats = asyncio.run(run(receiver, events, attempts))
    assert finished == Counter(range(len(events)))
    assert stats.delivered + stats.failed == len(events)
    assert {number for number, one in enumerate(events) if one.failures == 99}.isdisjoint(receiver.done)
    assert {number for number, one in enumerate(events) if one.failures == 0} <= {*receiver.done}
    assert stats.delivered == len({*receiver.done})
    # The events of each document, in the order of their last deliveries.
    last: dict[int, list[int]] = defaultdict(list)
    for number in reversed(dict.fromkeys(reversed(receiver.done))):
        last[events[number].document].append(number)
    for document, numbers in last.items():
        assert numbers == sorted(numbers), f"document {document} ends with an older state"
    if is_named:
        repeated = {number for number, count in Counter(receiver.done).items() if count > 1}
        failing = {one.document for one in events if one.failures}
        assert {events[number].document for number in repeated} <= failing, (
            "documents without a failure are not repeated"
        )


@given(EVENTS)
def test_an_event_that_asks_for_a_later_attempt_is_delivered_in_the_end(events: list[Event]) -> None:
    """The receiver has only one attempt. `RetryAfter` does not use it up."""
    asking = [one._replace(asks=True, failures=min(one.failures, 2)) for one in events]
    receiver = Receiver(asking, is_named=True)
    _, stats = asyncio.run(run(receiver, asking, 1))
    assert (stats.delivered, stats.failed) == (len(events), 0)
    assert {*receiver.done} == {*range(len(events))}
