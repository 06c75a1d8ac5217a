"""An attempt that raises `RetryAfter` does not count, and the receiver gets another attempt later."""

import time
from datetime import timedelta
from typing import Any

import pytest
from bson import ObjectId

import mongoz
from dispatcher.delivery import failure
from dispatcher.testing import Dispatcher, deliver, insert
from mongoz.core.signals import post_save
from mongoz.signals.options import Retry
from tests.integration.deliveries import Parked, actions
from tests.support import dispatching, eventually

ONCE = Retry(attempts=1)


@pytest.fixture
def state(foreign: Any) -> Parked:
    return Parked(foreign)


class Busy:
    """A receiver that asks `times` times for another attempt, for each document."""

    def __init__(self, document: Any, *, times: int, seconds: float, **options: Any) -> None:
        self.times = times
        self.seconds = seconds
        self.calls: list[tuple[str, int]] = []
        self.at: list[float] = []
        self.got: list[str] = []
        post_save(document, **{"name": "busy", "retry": ONCE, "delivery": "dispatcher", **options})(self)

    async def __call__(self, sender: Any, instance: Any, delivery: Any, **kwargs: Any) -> None:
        self.calls.append((instance.name, delivery.attempt))
        self.at.append(time.monotonic())
        if sum(name == instance.name for name, _ in self.calls) <= self.times:
            raise mongoz.RetryAfter(self.seconds)
        self.got.append(instance.name)


@pytest.mark.parametrize("options", [{}, {"transactional": True}, {"on_failure": "block"}], ids=repr)
async def test_a_short_wait_is_in_memory_and_uses_up_no_attempt(
    account, foreign, dispatched, state, capsys, options
):
    said = actions(capsys)
    busy = Busy(account, times=3, seconds=0.05, **options)
    async with dispatching(dispatched) as running:
        foreign["accounts"].insert_one({"name": "Ada"})
        await eventually(lambda: running.stats.delivered == 1)
    assert busy.calls == [("Ada", 1)] * 4
    assert all(after - before >= 0.05 for before, after in zip(busy.at, busy.at[1:], strict=False))
    (figures,) = running.stats.receivers.values()
    assert (figures.postponed, figures.retried, figures.failed, running.stats.parked) == (3, 0, 0, 0)
    assert said().count("delivery.retry_after") == 3
    assert "attempt_failed" not in said()
    assert state.letters == []


@pytest.mark.parametrize("options", [{}, {"transactional": True}, {"on_failure": "block"}], ids=repr)
async def test_a_long_wait_is_parked_with_its_followers(account, foreign, dispatched, state, options):
    """The position, other documents and other receivers do not wait. The order stays the same."""
    busy = Busy(account, times=2, seconds=0.4, **options)
    others: list[str] = []

    @post_save(account, name="other")
    async def other(sender, instance, **kwargs):
        others.append(instance.name)

    id_ = ObjectId()
    async with dispatching(dispatched, park_after=0.1) as running:
        before = state.token
        foreign["accounts"].insert_one({"_id": id_, "name": "first"})
        foreign["accounts"].replace_one({"_id": id_}, {"name": "second"})
        await eventually(lambda: others == ["first", "second"])
        assert busy.got == []
        (head,) = state.heads
        assert (head["state"], head["attempts"], head["error"]["type"]) == (
            "retry_after",
            0,
            "mongoz.exceptions.RetryAfter",
        )
        await eventually(lambda: state.token > before)
        await eventually(lambda: state.empty)
    assert busy.got == ["first", "second"]
    assert busy.calls == [("first", 1)] * 3 + [("second", 1)] * 3
    assert running.stats.retried == 0


async def test_the_time_of_the_first_attempt_is_kept_while_attempts_do_not_count(
    account, foreign, dispatched, state, monkeypatch
):
    """After the longest time for `RetryAfter`, a parked delivery becomes a dead letter, too."""
    monkeypatch.setattr(failure, "_POSTPONED_FOR", timedelta(seconds=0.6))
    busy = Busy(account, times=1_000, seconds=0.1)
    async with dispatching(dispatched, park_after=0.0):
        foreign["accounts"].insert_one({"name": "Ada"})
        letter = await state.letter()
    assert letter["attempts"] == 1
    assert letter["error"]["message"] == "RetryAfter: Another attempt is due after 0.1 s."
    assert {attempt for _, attempt in busy.calls} == {1}
    assert len(busy.calls) > 2


async def test_a_retried_dead_letter_may_ask_for_another_time(account, foreign, dispatched, state):
    fails = True
    calls: list[int] = []

    @post_save(account, name="hook", retry=ONCE)
    async def hook(sender, delivery, **kwargs):
        calls.append(delivery.attempt)
        if fails:
            raise ValueError("down")
        if len(calls) < 4:
            raise mongoz.RetryAfter(0.05)

    async with dispatching(dispatched, park_after=0.0):
        foreign["accounts"].insert_one({"name": "Ada"})
        letter = await state.letter()
        fails = False
        state.database["held"].update_one({"_id": letter["_id"]}, {"$currentDate": {"retry_requested_at": True}})
        await eventually(lambda: not state.letters)
    assert calls == [1, 1, 1, 1]


async def test_a_retry_after_of_an_in_process_receiver_reaches_the_caller(account):
    Busy(account, times=1, seconds=5, delivery="process", retry=None)
    with pytest.raises(mongoz.RetryAfter):
        await account.objects.create(name="Ada")
    assert await account.objects.count() == 1


async def test_a_retry_after_is_no_failure_in_a_test(account, foreign, dispatched, mongo):
    busy = Busy(account, times=1, seconds=0.3)
    with pytest.raises(mongoz.RetryAfter):
        await deliver(account, insert({"name": "Ada"}))
    busy.calls.clear()
    async with Dispatcher(dispatched, url=mongo.url) as dispatcher:
        id_ = foreign["accounts"].insert_one({"name": "Ada"}).inserted_id
        await eventually(lambda: [one.outcome for one in dispatcher.deliveries] == ["postponed"])
        (delivery,) = await dispatcher.delivered(("accounts", id_))
    assert (delivery.attempts, delivery.delivery.attempt) == (2, 1)
