"""The options retry, timeout and on_failure."""

import asyncio
import time
from typing import Any

import pytest
from bson import ObjectId

from mongoz.core.signals import post_save, post_update
from mongoz.signals.options import Retry
from tests.integration.deliveries import Parked, State, actions
from tests.support import PATIENCE, dispatching, eventually

QUICK = Retry(attempts=3, base=0.01, cap=0.02)


@pytest.fixture
def state(foreign: Any) -> State:
    return State(foreign)


async def test_the_option_retry_sets_the_number_of_attempts(account, foreign, dispatched, state):
    """Without the option the setting of the operator applies."""
    attempts: dict[str, list[int]] = {"own": [], "setting": []}

    @post_save(account, name="own", retry=QUICK)
    async def own(sender, delivery, **kwargs):
        attempts["own"].append(delivery.attempt)
        raise ValueError("never")

    @post_save(account, name="setting")
    async def setting(sender, delivery, **kwargs):
        attempts["setting"].append(delivery.attempt)
        raise ValueError("never")

    async with dispatching(dispatched, attempts=2) as running:
        foreign["accounts"].insert_one({"name": "Ada"})
        await state.wait(2)
    assert attempts == {"own": [1, 2, 3], "setting": [1, 2]}
    assert (running.stats.failed, running.stats.dead_letters, running.stats.retried) == (2, 2, 3)


async def test_a_retry_gets_a_new_instance(account, foreign, dispatched):
    """Receivers that run after a failed attempt get a new instance, too. Earlier receivers have not changed it."""
    seen: list[tuple[str, list[str]]] = []

    def connect(name: str, fails: int = 0) -> None:
        async def receiver(sender: Any, instance: Any, delivery: Any, **kwargs: Any) -> None:
            seen.append((name, list(instance.tags)))
            instance.tags.append(name)
            if delivery.attempt <= fails:
                raise ValueError("not yet")

        post_save(account, name=name, retry=QUICK)(receiver)

    connect("first")
    connect("flaky", fails=2)
    connect("last")
    async with dispatching(dispatched):
        foreign["accounts"].insert_one({"name": "Ada", "tags": ["stored"]})
        await eventually(lambda: seen and seen[-1][0] == "last")
    assert seen == [
        ("first", ["stored"]),
        ("flaky", ["stored", "first"]),
        ("flaky", ["stored"]),
        ("flaky", ["stored"]),
        ("last", ["stored"]),
    ]


async def test_a_hanging_receiver_delays_only_its_document(account, foreign, dispatched, state):
    """The timeout ends each attempt, and the last one leaves a dead letter. Other deliveries run meanwhile."""
    calls: list[str] = []

    @post_save(account, name="hanging", timeout=0.2, retry=Retry(2, base=0.01))
    async def hanging(sender, instance, **kwargs):
        calls.append(instance.name)
        if instance.name == "stuck":
            await asyncio.Event().wait()

    id_ = ObjectId()
    async with dispatching(dispatched, timeout=30.0):
        foreign["accounts"].insert_one({"_id": id_, "name": "stuck"})
        foreign["accounts"].replace_one({"_id": id_}, {"name": "behind"})
        foreign["accounts"].insert_many([{"name": "other"} for _ in range(5)])
        letter = await state.letter()
        await eventually(lambda: "behind" in calls)
    assert calls.count("stuck") == 2
    assert calls.index("behind") > max(i for i, name in enumerate(calls) if name in ("stuck", "other"))
    assert letter["error"]["type"] == "builtins.TimeoutError"
    assert "longer than 0.2 s" in letter["error"]["message"]


async def test_a_pause_before_a_retry_occupies_no_worker(account, foreign, dispatched):
    """There is only one worker. A delivery that waits for its next attempt does not delay other documents."""
    calls: list[tuple[str, int]] = []
    released = False

    @post_save(account, name="flaky", retry=Retry(1000, base=0.05, cap=0.05))
    async def flaky(sender, instance, delivery, **kwargs):
        calls.append((instance.name, delivery.attempt))
        if instance.name.startswith("bad") and not released:
            raise ValueError("not yet")

    async with dispatching(dispatched, concurrency=1) as running:
        foreign["accounts"].insert_many([{"name": f"bad{i}"} for i in range(5)])
        foreign["accounts"].insert_many([{"name": f"good{i}"} for i in range(20)])
        await eventually(lambda: sum(name.startswith("good") for name, _ in calls) == 20)
        released = True
        await eventually(lambda: running.stats.delivered == 25)
    assert running.stats.failed == 0


async def test_on_failure_block_retries_without_end_and_keeps_the_order(
    account, foreign, dispatched, state, capsys
):
    said = actions(capsys)
    calls: list[str] = []
    mended = False

    @post_save(account, name="strict", retry=Retry(2, base=0.01, cap=0.02), on_failure="block")
    async def strict(sender, instance, delivery, **kwargs):
        if instance.name == "first" and not mended:
            raise ValueError("not yet")
        calls.append(f"{instance.name} {delivery.attempt > 2}")

    id_ = ObjectId()
    async with dispatching(dispatched) as running:
        foreign["accounts"].insert_one({"_id": id_, "name": "first"})
        foreign["accounts"].replace_one({"_id": id_}, {"name": "second"})
        foreign["accounts"].insert_one({"name": "other"})
        await eventually(lambda: running.stats.retried >= 5)
        assert calls == ["other False"]
        assert said().count("delivery.blocked") == 1
        mended = True
        await eventually(lambda: len(calls) == 3)
    assert calls == ["other False", "first True", "second False"]
    assert state.letters == []


async def test_a_stop_does_not_wait_for_retry_pauses(account, foreign, dispatched):
    """Waiting deliveries stay undelivered; the next dispatcher makes them."""
    calls: list[int] = []
    mended = False

    @post_save(account, name="strict", retry=Retry(2, base=60.0))
    async def strict(sender, delivery, **kwargs):
        calls.append(delivery.term)
        if not mended:
            raise ValueError("not yet")

    async with dispatching(dispatched, grace=1000.0, park_after=1000.0):
        foreign["accounts"].insert_one({"name": "Ada"})
        await eventually(lambda: calls)
        began = time.monotonic()
    assert time.monotonic() - began < PATIENCE
    mended = True
    async with dispatching(dispatched) as running:
        await eventually(lambda: running.stats.delivered)
    assert calls == [1, 2]


@pytest.mark.parametrize("fails", ["raises", "hangs"])
async def test_after_a_stop_finished_receivers_do_not_run_again(account, foreign, dispatched, state, fails):
    """The remaining deliveries of an unfinished change are parked, and later changes of the document wait."""
    told: list[tuple[str, str, int]] = []
    begun, mended = asyncio.Event(), False

    def connect(name: str) -> None:
        @post_save(account, name=name, retry=Retry(5, base=60.0))
        async def receiver(sender, instance, delivery, **kwargs):
            if name == "second" and instance.name == "stuck" and not mended:
                begun.set()
                if fails == "raises":
                    raise ValueError("not yet")
                await asyncio.Event().wait()
            told.append((name, instance.name, delivery.attempt))

    for name in ("first", "second", "third"):
        connect(name)
    id_ = ObjectId()
    async with dispatching(dispatched, park_after=1000.0, grace=0.1 if fails == "hangs" else 20.0) as running:
        foreign["accounts"].insert_one({"_id": id_, "name": "stuck"})
        foreign["accounts"].replace_one({"_id": id_}, {"name": "behind"})
        await eventually(begun.is_set)
        await eventually(lambda: running.stats.read == 2)
    assert told == [("first", "stuck", 1)]
    assert [(head["receiver"], head["state"]) for head in Parked(foreign).heads] == [
        ("second", "interrupted"),
        ("third", "interrupted"),
    ]
    mended = True
    async with dispatching(dispatched):
        await eventually(lambda: len(told) == 6)
        await eventually(lambda: Parked(foreign).empty)
    assert sorted(told) == sorted(
        (name, which, 1) for name in ("first", "second", "third") for which in ("stuck", "behind")
    )
    for name in ("first", "second", "third"):
        assert [which for one, which, _ in told if one == name] == ["stuck", "behind"]


async def test_on_failure_drop_writes_no_dead_letter(account, foreign, dispatched, state, capsys):
    said = actions(capsys)
    after: list[str] = []

    @post_save(account, name="unimportant", retry=1, on_failure="drop")
    async def unimportant(sender, **kwargs):
        raise ValueError("never")

    @post_save(account, name="next")
    async def next_one(sender, instance, **kwargs):
        after.append(instance.name)

    async with dispatching(dispatched) as running:
        foreign["accounts"].insert_one({"name": "Ada"})
        await eventually(lambda: after)
    assert "delivery.dropped" in said()
    assert (running.stats.failed, running.stats.dead_letters) == (1, 0)
    assert state.letters == []


async def test_writes_of_a_receiver_are_delivered_through_the_change_stream(account, foreign, dispatched):
    """The write itself runs no post_save receiver in the dispatcher's process."""
    calls: list[tuple[str, str]] = []

    @post_save(account, name="copying")
    async def copying(sender, instance, delivery, **kwargs):
        calls.append((instance.name, delivery.origin))
        if instance.name == "original":
            await account.objects.create(name="copy")

    async with dispatching(dispatched):
        foreign["accounts"].insert_one({"name": "original"})
        await eventually(lambda: len(calls) >= 2)
    assert calls == [("original", "stream"), ("copy", "stream")]


async def test_a_receiver_that_triggers_itself_ends_in_a_dead_letter(account, foreign, dispatched, state, capsys):
    said = actions(capsys)
    calls: list[int] = []

    @post_update(account, name="endless")
    async def endless(sender, instance, **kwargs):
        calls.append(instance.amount)
        await instance.update(amount=instance.amount + 1)

    async with dispatching(dispatched):
        id_ = foreign["accounts"].insert_one({"name": "Ada"}).inserted_id
        foreign["accounts"].update_one({"_id": id_}, {"$set": {"amount": 1}})
        letter = await state.letter()
    assert calls == list(range(1, 18))  # the first delivery and 16 hops
    assert (letter["reason"], letter["attempts"], letter["hops"]) == ("too_many_hops", 0, 17)
    assert "change.too_many_hops" in said()
