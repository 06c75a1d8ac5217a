"""Each receiver has only the steps that it needs, in a fixed order."""

import asyncio
import re
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bson import Timestamp

from dispatcher.core.events import Calls, Change, Job
from dispatcher.core.lease import Lease, now
from dispatcher.core.stats import ReceiverFigures, Stats
from dispatcher.delivery import invoker
from dispatcher.delivery.attempt import Attempt, Target
from dispatcher.delivery.capacity import Bounds, Capacity
from dispatcher.delivery.invoker import run_receiver
from dispatcher.delivery.measurement import Measurement
from dispatcher.delivery.steps import Steps
from dispatcher.delivery.terms import Policy
from mongoz.connection.codec import CODEC_OPTIONS
from mongoz.signals import Delivery
from mongoz.signals.hops import current_hops, inside_dispatcher
from mongoz.signals.options import Options
from mongoz.signals.receivers import Receiver

CHANGE = Change("82", "insert", ("d", "c"), 1, Timestamp(1, 1), None, {}, None, "post", frozenset(), None, 1)
JOB = Job("82", CHANGE)


def receiver_of(function: Any, **options: Any) -> Receiver:
    return Receiver(function, "receiver", 1, Options(**options), b"12345678")


def attempt_at(target: Target, *, began: float = 0.0) -> Attempt:
    calls = Calls(object, "post_save", True, (target.receiver,))
    delivery = Delivery("id", "post_save", "receiver", "stream", 1, 1, None, None, "post", False)
    return Attempt(target, CHANGE, calls, delivery, {}, JOB, began)


class Noted:
    """A step that records when it begins and ends."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name = name
        self.notes = notes

    def around(self, target: Target) -> Target:
        run = target.run

        async def noted(attempt: Attempt) -> None:
            self.notes.append(f"{self.name} begins")
            await run(attempt)
            self.notes.append(f"{self.name} ends")

        return replace(target, run=noted)


def steps(**more: Any) -> Steps:
    policy, capacity = Policy(5, 30.0), Capacity(Bounds(1, 1, 1))
    return Steps(policy, Lease.for_ever(), capacity, Stats(), CODEC_OPTIONS, **more)


async def test_spans_are_around_transactions():
    """The span includes the commit."""
    notes: list[str] = []

    async def receive(**_: Any) -> None:
        notes.append("receiver")

    target = steps(tracing=Noted("span", notes), transactions=Noted("transaction", notes)).target(
        receiver_of(receive), "post_save"
    )
    assert await target.call(attempt_at(target, began=now())) is None
    assert notes == ["span begins", "transaction begins", "receiver", "transaction ends", "span ends"]


async def test_a_plain_receiver_is_called_directly():
    async def receive(**_: Any) -> None:
        """Does nothing."""

    assert steps().target(receiver_of(receive), "post_save").run is run_receiver


async def test_the_invoker_calls_a_plain_receiver_itself():
    """The watchdog logs the frames down to the module of the invoker. They are those of the receiver alone."""
    callers: list[str] = []

    def receive(**_: Any) -> Any:
        callers.append(sys._getframe(1).f_globals["__name__"])
        return asyncio.sleep(0)

    target = steps().target(receiver_of(receive), "post_save")
    assert await target.call(attempt_at(target, began=now())) is None
    assert callers == [invoker.__name__]


@pytest.mark.parametrize(("options", "expected"), [({}, 30.0), ({"timeout": 4.0}, 4.0)])
async def test_the_time_limit_is_that_of_the_receiver_or_of_the_settings(options, expected):
    assert steps().target(receiver_of(print, **options), "post_save").terms.timeout == expected


async def test_the_example_step_in_the_docs_waits_before_the_time_limit_begins():
    text = (Path(__file__).parents[2] / "docs/why.md").read_text("utf-8")
    (code,) = re.findall(r"```python title=\"spacing.py\"\n(.*?)```", text, re.S)
    scope: dict[str, Any] = {}
    exec(code, scope)
    scope["now"] = lambda: 0.0
    waits: list[float] = []

    async def pause(seconds: float) -> None:
        waits.append(seconds)

    async def call(_attempt: Attempt) -> None:
        return

    receiver = receiver_of(call)
    figures, terms = ReceiverFigures("receiver", "post_save"), Policy(5, 30.0).terms_of(receiver.options)
    plain = Target(receiver, terms, figures, run_receiver, call)
    assert scope["Spacing"]({}, pause).around(plain) is plain
    limited = scope["Spacing"]({"receiver": 0.1}, pause).around(plain)
    assert limited.run is run_receiver
    for _ in range(3):
        await limited.call(attempt_at(limited))
    assert waits == pytest.approx([0.1, 0.2])


async def test_at_most_a_thousand_attempts_per_second_are_measured():
    figures = ReceiverFigures("receiver", "post_save")

    async def call(_attempt: Attempt) -> None:
        return

    receiver = receiver_of(call)
    target = Measurement(Stats()).around(
        Target(receiver, Policy(5, 30.0).terms_of(receiver.options), figures, run_receiver, call)
    )

    async def measured(began: float) -> int:
        before = sum(figures.duration.counts)
        assert await target.call(attempt_at(target, began=began)) is None
        return sum(figures.duration.counts) - before

    assert 900 <= sum([await measured(n / 100_000) for n in range(100_000)]) <= 1_000
    assert [await measured(5.0), await measured(5.0005)] == [1, 0]


async def test_writes_of_a_receiver_have_the_hops_of_its_change():
    """A worker makes deliveries with different hops, one after another."""
    found: list[int] = []

    async def receive(**_: Any) -> None:
        found.append(current_hops())

    target = steps().target(receiver_of(receive), "post_save")
    for hops in (0, 2, 2, 0):
        with inside_dispatcher(hops):
            assert await target.call(attempt_at(target)) is None
    assert found == [1, 3, 3, 1]


async def test_a_worker_that_has_ended_leaves_no_context():
    async def receive(**_: Any) -> None:
        """Does nothing."""

    made = steps()
    target = made.target(receiver_of(receive), "post_save")

    async def work() -> None:
        for _ in range(3):
            await target.call(attempt_at(target))

    await asyncio.gather(*(asyncio.create_task(work()) for _ in range(5)))
    await asyncio.sleep(0)
    assert not made.invoker._contexts


@pytest.mark.parametrize("waits", [False, True])
async def test_an_attempt_begins_only_while_the_lease_is_valid(waits):
    """Without a valid lease, a call waits until the lease is renewed, whether or not the receiver waits."""
    lease = Lease(0, 1, 1, seconds=0.0, sent=now())
    called = asyncio.Event()

    async def receive(**_: Any) -> None:
        called.set()
        if waits:
            await asyncio.sleep(0)

    policy, capacity = Policy(5, 30.0), Capacity(Bounds(1, 1, 1))
    target = Steps(policy, lease, capacity, Stats(), CODEC_OPTIONS).target(receiver_of(receive), "post_save")

    async def work() -> None:
        assert await target.call(attempt_at(target)) is None

    working = asyncio.create_task(work())
    for _ in range(3):
        await asyncio.sleep(0)
    assert not called.is_set()
    lease.seconds = 60.0
    lease.renewed(now())
    await working
    assert called.is_set()


async def test_a_receiver_that_clears_the_cancellation_of_its_time_limit_changes_no_later_attempt():
    """Otherwise the worker's next receiver gets one more second, and its own cancellation counts as a timeout."""
    capacity = Capacity(Bounds(1, 1, 1))
    made = Steps(Policy(5, 0.01), Lease.for_ever(), capacity, Stats(), CODEC_OPTIONS)

    async def clear(**_: Any) -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()

    async def cancel(**_: Any) -> None:
        raise asyncio.CancelledError

    async def work() -> list[BaseException | None]:
        targets = [made.target(receiver_of(one), "post_save") for one in (clear, cancel)]
        return [await target.call(attempt_at(target)) for target in targets]

    watching = asyncio.create_task(made.invoker.watch())
    try:
        first, second = await asyncio.create_task(work())
    finally:
        watching.cancel()
    assert first is None
    assert isinstance(second, asyncio.CancelledError)
