"""Batch receivers that hang, are cancelled, or have a rate."""

import asyncio
import time
from itertools import pairwise
from typing import Any

import pytest

from mongoz import Batch, BatchError, RetryAfter
from mongoz.core.signals import post_save
from mongoz.signals.options import Retry
from tests.integration.deliveries import QUICK, Indexer, Parked
from tests.support import dispatching, eventually


@pytest.fixture
def state(foreign: Any) -> Parked:
    return Parked(foreign)


def rows(*names: str) -> list[dict[str, Any]]:
    return [{"name": name, "amount": 0} for name in names]


async def hang() -> None:
    await asyncio.Event().wait()


async def cancel_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(60)


@pytest.mark.parametrize(
    ("end", "error"), [(hang, "builtins.TimeoutError"), (cancel_itself, "asyncio.exceptions.CancelledError")]
)
async def test_a_batch_that_is_cancelled_is_repeated_and_halved(account, foreign, dispatched, state, end, error):
    """Only the event that hangs becomes a dead letter. The other events and a later batch are delivered."""
    batches: list[str] = []
    done: list[str] = []

    @post_save(account, name="hangs", batch=Batch(size=4, wait=60), timeout=0.2, retry=QUICK)
    async def hangs(sender, batch, **kwargs):
        names = [event.instance.name for event in batch]
        batches.append("".join(names))
        if "2" in names:
            await end()
        done.extend(names)

    async with dispatching(dispatched) as running:
        foreign["accounts"].insert_many(rows("0", "1", "2", "3"))
        letter = await state.letter()
        await eventually(lambda: sorted(done) == ["0", "1", "3"])
        foreign["accounts"].insert_many(rows("4", "5", "6", "7"))
        await eventually(lambda: done[3:] == ["4", "5", "6", "7"])
        figures = running.stats.figures_of("hangs", "post_save")
        assert (figures.delivered, figures.failed) == (7, 1)
    assert batches == ["0123", "0123", "01", "23", "2", "3", "4567"]
    assert (letter["reason"], letter["attempts"], letter["error"]["type"]) == ("failed", 2, error)


@pytest.mark.parametrize("busy", ["1", "2"])
async def test_an_event_is_not_attempted_before_the_time_that_retry_after_asks_for(
    account, foreign, dispatched, state, busy
):
    """The attempts of the busy event do not count. Another event of the batch fails, and its attempts count."""
    wrong = "3" if busy == "2" else "2"
    at: list[float] = []
    attempts: dict[str, list[int]] = {busy: [], wrong: []}
    done: list[str] = []

    @post_save(account, name="mixed", batch=Batch(size=4, wait=0.2), retry=Retry(3, base=0.01, cap=0.02))
    async def mixed(sender, batch, **kwargs):
        errors: dict[int, Exception] = {}
        for number, event in enumerate(batch):
            name = event.instance.name
            if name in attempts:
                attempts[name].append(event.delivery.attempt)
            if name == busy:
                at.append(time.monotonic())
                if len(at) < 4:
                    errors[number] = RetryAfter(0.3)
                    continue
            if name == wrong:
                errors[number] = ValueError("wrong")
                continue
            done.append(name)
        if errors:
            raise BatchError(errors)

    async with dispatching(dispatched):
        foreign["accounts"].insert_many(rows("0", "1", "2", "3"))
        letter = await state.letter()
        await eventually(lambda: sorted(done) == sorted({"0", "1", "2", "3"} - {wrong}))
        await eventually(lambda: state.empty)
    assert all(after - before >= 0.29 for before, after in pairwise(at))
    assert attempts == {busy: [1, 1, 1, 1], wrong: [1, 2, 3]}
    assert (letter["attempts"], letter["error"]["message"]) == (3, "ValueError: wrong")


async def test_a_batch_counts_as_one_attempt_of_a_rate(account, foreign, dispatched, state):
    """Two batches begin together. Then one batch begins every half second. Events that must wait are parked."""
    at: list[float] = []
    indexer = Indexer(
        account, Batch(size=10, wait=0.1), fails=lambda batch: at.append(time.monotonic()), rate="2/s"
    )
    told: list[str] = []

    @post_save(account, name="plain")
    async def plain(sender, instance, **kwargs):
        told.append(instance.name)

    names = [f"{number:03}" for number in range(60)]
    async with dispatching(dispatched) as running:
        foreign["accounts"].insert_many(rows(*names))
        await eventually(lambda: len(told) == 60)
        assert len(indexer.done) < 60, "the other receiver does not wait"
        await eventually(lambda: sorted(indexer.done) == names)
        await eventually(lambda: state.empty)
        assert running.stats.figures_of("indexer", "post_save").limited > 0
    assert {delivery.attempt for delivery in indexer.deliveries} == {1}
    assert len({delivery.id for delivery in indexer.deliveries}) == 60
    for first, third in zip(at, at[2:], strict=False):
        assert third - first >= 0.45
    assert len(at) <= 8, "parked events come back in full batches"
