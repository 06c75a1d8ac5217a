"""Deliveries that wait for long are parked.

They take no memory, do not hold the position back, and keep their order.
"""

import asyncio
import random
import tracemalloc
from collections import defaultdict
from datetime import datetime
from typing import Any

import pytest
from bson import ObjectId
from pymongo import ReplaceOne

from dispatcher.parking import worker
from dispatcher.parking.store import HeldStore
from dispatcher.runtime.service import Service
from mongoz.core.signals import post_delete, post_save, post_update
from mongoz.signals.options import Retry
from tests.integration.deliveries import IMAGES, Parked, Strict, actions
from tests.support import PATIENCE, Running, dispatching, eventually, settings_for


@pytest.fixture
def state(foreign: Any) -> Parked:
    return Parked(foreign)


async def test_deliveries_of_a_blocked_document_take_no_memory_and_do_not_hold_the_position_back(
    account, foreign, dispatched, state, capsys
):
    """The deliveries of the document are parked and keep their order. The position and other documents move on."""
    said = actions(capsys)
    seen: list[str] = []
    strict = Strict(account, refuses=lambda instance: instance.amount == 1)

    @post_save(account, name="next")
    async def next_one(sender, instance, **kwargs):
        seen.append(instance.name)

    id_ = ObjectId()
    async with dispatching(dispatched) as running:
        before = state.token
        foreign["accounts"].insert_one({"_id": id_, "name": "0", "amount": 1})
        for number in range(1, 4):
            foreign["accounts"].replace_one({"_id": id_}, {"name": str(number), "amount": 0})
        foreign["accounts"].insert_one({"name": "other", "amount": 0})
        await eventually(lambda: len(state.rows) == 4 and len(seen) == 5)
        assert sorted(seen) == ["0", "1", "2", "3", "other"]
        assert strict.got == ["other"]
        await eventually(lambda: state.token > before)
        (head,) = state.heads
        assert (head["receiver"], head["state"], head["key"]) == ("strict", "blocked", id_)
        assert head["error"] == {"type": "builtins.ValueError", "message": "ValueError: not yet"}
        assert [row["token"] for row in state.rows] == sorted(row["token"] for row in state.rows)
        strict.mended = True
        await eventually(lambda: state.empty)
    assert strict.got == ["other", "0", "1", "2", "3"]
    assert len({delivery.id for delivery in strict.deliveries}) == 5
    assert [attempt for name, attempt in strict.attempts if name == "0"] == list(
        range(1, len([name for name, _ in strict.attempts if name == "0"]) + 1)
    )
    assert {attempt for name, attempt in strict.attempts if name != "0"} == {1}
    assert said().count("delivery.blocked") == 1
    assert "delivery.parked" in said()
    assert running.stats.parked == 4


async def test_waiting_deliveries_leave_room_for_other_deliveries(account, foreign, dispatched, state):
    """Deliveries that wait in memory for a retry occupy at most half of the capacity."""
    got: list[str] = []

    @post_save(account, name="picky", retry=Retry(2, base=60, cap=60))
    async def picky(sender, instance, **kwargs):
        if instance.name.startswith("bad"):
            raise ValueError("not yet")
        got.append(instance.name)

    good = [f"good {n}" for n in range(30)]
    async with dispatching(dispatched, max_queued=20, park_after=120.0):
        foreign["accounts"].insert_many([{"name": name} for name in [*(f"bad {n}" for n in range(30)), *good]])
        await eventually(lambda: sorted(got) == sorted(good))
        assert {head["state"] for head in state.heads} == {"retrying"}
        assert len(state.heads) >= 20


async def test_a_delivery_that_the_worker_searches_before_it_is_written_is_not_lost(
    account, foreign, dispatched, state, monkeypatch
):
    """The worker searches twice while the delivery is being parked.

    Both searches find nothing. The delivery is made afterwards.
    """
    looked = 0
    due, put = HeldStore.due, HeldStore.put

    async def watched_due(self: Any, *args: Any) -> Any:
        nonlocal looked
        found = await due(self, *args)
        looked += 1
        return found

    async def slow_put(self: Any, *args: Any) -> None:
        before = looked
        await eventually(lambda: looked > before + 1, what="two searches of the worker")
        await put(self, *args)

    monkeypatch.setattr(HeldStore, "due", watched_due)
    monkeypatch.setattr(HeldStore, "put", slow_put)
    monkeypatch.setattr("dispatcher.parking.worker._RARELY", 0.1)
    strict = Strict(account, refuses=lambda instance: len(strict.attempts) < 2, retry=Retry(9, base=0.1, cap=0.1))
    async with dispatching(dispatched, park_after=0.0):
        foreign["accounts"].insert_one({"name": "first"})
        await eventually(lambda: strict.got == ["first"])
        await eventually(lambda: state.empty)


async def test_attempts_continue_after_a_restart(account, foreign, dispatched, state):
    """The attempts of both processes count together, and end in a dead letter."""
    strict = Strict(account, retry=Retry(4, base=0.2, cap=0.2), on_failure="dead_letter")
    id_ = ObjectId()
    async with dispatching(dispatched, park_after=0.0):
        foreign["accounts"].insert_one({"_id": id_, "name": "first"})
        await eventually(lambda: len(strict.attempts) >= 2)
    assert state.letters == []
    async with dispatching(dispatched):
        letter = await state.letter()
        await eventually(lambda: state.empty)
    assert [attempt for _, attempt in strict.attempts] == [1, 2, 3, 4]
    assert (letter["attempts"], letter["reason"], letter["term"]) == (4, "failed", 2)
    assert letter["error"]["message"] == "ValueError: not yet"
    assert (letter["last_attempt_at"] - letter["first_attempt_at"]).total_seconds() >= 0.3


async def test_a_parked_delivery_has_the_same_keywords_as_a_live_delivery(account, foreign, dispatched, state):
    """A parked delivery has the images, the changed names, and an instance of its own, too."""
    foreign.create_collection("accounts", **IMAGES)
    got: list[tuple[str, dict[str, Any]]] = []
    mended = False

    @post_save(account, name="both", retry=1, on_failure="block")
    @post_update(account, name="both", retry=1, on_failure="block")
    @post_delete(account, name="both", retry=1, on_failure="block")
    async def both(sender, instance, delivery, **kwargs):
        got.append((delivery.signal, {"tags": list(instance.tags), "delivery": delivery, **kwargs}))
        instance.tags.append("seen")
        if not mended:
            raise ValueError("not yet")

    id_ = ObjectId()
    async with dispatching(dispatched):
        foreign["accounts"].insert_one({"_id": id_, "name": "Ada", "tags": ["a"]})
        foreign["accounts"].update_one({"_id": id_}, {"$set": {"name": "Bea", "tags": ["b"]}})
        foreign["accounts"].delete_one({"_id": id_})
        await eventually(lambda: len(state.rows) == 3)
        assert {signal for signal, _ in got} == {
            "post_save"
        }  # each receiver gets the changes of one document in order
        mended = True
        await eventually(lambda: state.empty)
    first = got[0][1]
    saved, updated, deleted = got[-3:]
    assert [signal for signal, _ in got[-3:]] == ["post_save", "post_update", "post_delete"]
    assert saved[1]["tags"] == first["tags"] == ["a"]
    assert saved[1]["created"] is True
    assert saved[1]["delivery"] == first["delivery"].replaced(attempt=saved[1]["delivery"].attempt)
    assert updated[1]["update_fields"] == {"name", "tags"}
    assert updated[1]["previous"].name == "Ada"
    assert updated[1]["tags"] == deleted[1]["tags"] == ["b"]
    assert [one["delivery"].image for _, one in got[-3:]] == ["post", "post", "pre"]
    assert updated[1]["delivery"].wall_time is not None


async def test_thousands_of_followers_keep_their_order(account, foreign, dispatched, state):
    """Some followers arrive before the first delivery is parked, some meanwhile, and some afterwards."""
    strict = Strict(account, refuses=lambda instance: instance.amount == 0)
    id_ = ObjectId()
    total = 2_000
    async with dispatching(dispatched) as running:
        foreign["accounts"].insert_one({"_id": id_, "name": "0", "amount": 0})
        for start in range(1, total, 100):
            rows = [{"name": str(n), "amount": n} for n in range(start, min(start + 100, total))]
            foreign["accounts"].bulk_write([bson_replace(id_, row) for row in rows])
            strict.mended = start > total // 2
        await eventually(lambda: len(strict.got) == total)
        await eventually(lambda: state.empty)
        assert running.service.position is not None
    assert strict.got == [str(n) for n in range(total)]


def bson_replace(id_: Any, row: dict[str, Any]) -> Any:
    return ReplaceOne({"_id": id_}, row)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
async def test_the_order_is_kept_across_parking_and_live_changes(account, foreign, dispatched, state, seed):
    """Receivers fail at random, and deliveries are parked soon. Each receiver gets each change once, in order."""
    chance = random.Random(seed)
    got: dict[tuple[str, Any], list[int]] = defaultdict(list)
    flaky = True

    def connect(name: str, **options: Any) -> None:
        async def receiver(sender: Any, instance: Any, **kwargs: Any) -> None:
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
            if flaky and chance.random() < 0.3:
                raise ValueError("not now")
            got[name, instance.id].append(instance.amount)

        post_save(account, name=name, **options)(receiver)

    connect("blocking", retry=Retry(1, base=0.01, cap=0.05), on_failure="block")
    connect("retrying", retry=Retry(1000, base=0.005, cap=0.03))
    connect("steady", retry=Retry(1000, base=0.001, cap=0.002))
    ids = [ObjectId() for _ in range(6)]
    counts: dict[Any, int] = defaultdict(int)
    async with dispatching(dispatched, park_after=0.02):
        for _ in range(12):
            for _ in range(10):
                id_ = chance.choice(ids)
                counts[id_] += 1
                row = {"name": "x", "amount": counts[id_]}
                foreign["accounts"].replace_one({"_id": id_}, row, upsert=True)
            await asyncio.sleep(0.002)
        flaky = seed == 0
        expected = {
            (name, id_): [*range(1, counts[id_] + 1)]
            for name in ("blocking", "retrying", "steady")
            for id_ in counts
        }
        await eventually(lambda: sum(map(len, got.values())) >= 3 * sum(counts.values()) and state.empty)
    assert got == expected


async def test_after_a_restart_changes_still_wait_for_parked_deliveries(account, foreign, dispatched, state):
    """The new process has no queue, so it looks up the parked deliveries."""
    strict = Strict(account, refuses=lambda instance: instance.amount == 0)
    id_ = ObjectId()
    async with dispatching(dispatched):
        foreign["accounts"].insert_one({"_id": id_, "name": "0", "amount": 0})
        await eventually(lambda: state.rows)
    async with dispatching(dispatched) as running:
        for number in range(1, 4):
            foreign["accounts"].replace_one({"_id": id_}, {"name": str(number), "amount": number})
            foreign["accounts"].insert_one({"name": f"other {number}", "amount": 1})
            await eventually(lambda number=number: f"other {number}" in strict.got)
            await eventually(lambda number=number: len(state.rows) == number + 1)
        await eventually(lambda: running.stats.parked == 3)
        strict.mended = True
        await eventually(lambda: state.empty)
    assert [name for name in strict.got if name.isdigit()] == ["0", "1", "2", "3"]


async def test_a_parked_delivery_is_not_made_before_the_stream_has_repeated_it(
    account, foreign, dispatched, state, capsys
):
    """As after SIGKILL, the position is older than the parked deliveries.

    The stream repeats these deliveries, but slowly. If the worker did not wait, a parked delivery would be made
    twice, and possibly after its followers.
    """
    said = actions(capsys)
    strict = Strict(account, refuses=lambda instance: instance.amount == 0)
    id_ = ObjectId()
    async with dispatching(dispatched):
        before = state.token
        foreign["accounts"].insert_one({"_id": id_, "name": "0", "amount": 0})
        for number in range(1, 6):
            foreign["accounts"].replace_one({"_id": id_}, {"name": str(number), "amount": number})
        await eventually(lambda: len(state.rows) == 6)
    state.rewind(before)
    strict.mended = True
    admin = foreign.client.admin
    failing = {"failCommands": ["getMore"], "errorCode": 11600, "appName": "mongoz-dispatcher"}
    admin.command("configureFailPoint", "failCommand", mode="alwaysOn", data=failing)
    try:
        running = Running(Service(dispatched, settings_for(dispatched)))
        await eventually(lambda: said().count("stamps.not_read") >= 2)
        assert strict.got == []
        admin.command("configureFailPoint", "failCommand", mode="off")
        await eventually(lambda: state.empty and "5" in strict.got)
    finally:
        admin.command("configureFailPoint", "failCommand", mode="off")
        await running.stop()
    assert strict.got == [str(n) for n in range(6)]


async def test_partitions_deliver_their_own_parked_deliveries(account, foreign, dispatched, state):
    """Each parked delivery is made once and in order."""
    strict = Strict(account, refuses=lambda instance: instance.amount == 0)
    ids = [ObjectId() for _ in range(20)]
    async with dispatching(dispatched, partitions=2) as running:
        await eventually(lambda: len(running.service.held) == 2)
        for number in range(3):
            rows = [
                ReplaceOne({"_id": id_}, {"name": f"{i} {number}", "amount": number}, upsert=True)
                for i, id_ in enumerate(ids)
            ]
            foreign["accounts"].bulk_write(rows)
        await eventually(lambda: len(state.rows) == 60)
        strict.mended = True
        await eventually(lambda: state.empty)
    for i in range(20):
        assert [name for name in strict.got if name.startswith(f"{i} ")] == [
            f"{i} {number}" for number in range(3)
        ]


async def test_a_stop_during_the_delivery_of_a_lane_repeats_no_delivery(account, foreign, dispatched, state):
    """The stop interrupts the lane; finished deliveries are already removed."""
    hangs = asyncio.Event()

    class Hanging(Strict):
        async def __call__(self, sender: Any, instance: Any, delivery: Any, **kwargs: Any) -> None:
            if instance.name == "3" and not self.mended:
                hangs.set()
                await asyncio.Event().wait()
            self.got.append(instance.name)

    first, id_ = Strict(account), ObjectId()
    async with dispatching(dispatched):
        for number in range(5):
            foreign["accounts"].replace_one({"_id": id_}, {"name": str(number)}, upsert=True)
        await eventually(lambda: len(state.rows) == 5)
    account.signals.post_save.disconnect(first)
    hanging = Hanging(account)
    async with dispatching(dispatched, grace=0.05):
        await eventually(hangs.is_set)
    assert hanging.got == ["0", "1", "2"]
    assert len(state.rows) == 2
    hanging.mended = True
    async with dispatching(dispatched):
        await eventually(lambda: state.empty)
    assert hanging.got == ["0", "1", "2", "3", "4"]


async def test_parked_deliveries_of_a_renamed_receiver_are_made(account, foreign, dispatched, state, capsys):
    """Deliveries parked under an earlier name are found.

    Deliveries of a removed receiver stay. The log names them.
    """
    said = actions(capsys)
    old = Strict(account, name="old")
    gone = Strict(account, name="gone")
    id_ = ObjectId()
    async with dispatching(dispatched):
        foreign["accounts"].insert_one({"_id": id_, "name": "0"})
        await eventually(lambda: len(state.rows) == 2)
    account.signals.post_save.disconnect(old)
    account.signals.post_save.disconnect(gone)
    new = Strict(account, name="new", formerly="old")
    async with dispatching(dispatched):
        foreign["accounts"].replace_one({"_id": id_}, {"name": "1"})
        await eventually(lambda: len(state.rows) == 3)
        assert {head["receiver"] for head in state.heads} == {"old", "gone"}
        new.mended = True
        await eventually(lambda: new.got == ["0", "1"])
        await eventually(lambda: len(state.rows) == 1)
    assert [head["receiver"] for head in state.heads] == ["gone"]
    assert said().count("parked.orphaned") == 1
    assert {delivery.receiver for delivery in new.deliveries} == {"new"}
    Strict(account, name="gone").mended = True
    async with dispatching(dispatched):
        await eventually(lambda: state.empty)


async def test_parked_deliveries_of_a_disconnected_receiver_stay(account, foreign, dispatched, state, capsys):
    """The receiver still exists, but not for this signal."""
    said = actions(capsys)
    strict = Strict(account, post_save)
    async with dispatching(dispatched):
        foreign["accounts"].insert_one({"name": "0"})
        await eventually(lambda: state.rows)
    account.signals.post_save.disconnect(strict)
    Strict(account, post_update)
    async with dispatching(dispatched):
        await eventually(lambda: [head["state"] for head in state.heads] == ["orphaned"])
    assert said().count("parked.orphaned") == 1
    assert len(state.rows) == 1


SAVES_NEVER: Any = {"save_interval": 60.0, "idle_save_interval": 60.0, "grace": 0.1}

STEPS: Any = {
    "it is not written": ("update", [], "block"),
    "it is finished, and not removed": ("delete", ["0"], "block"),
    "it is removed, and the next one is not the head": ("update", ["0"], "block"),
    "it is a dead letter, and the next one is not the head": ("update", [], "dead_letter"),
}


@pytest.mark.parametrize("step", STEPS)
async def test_a_crash_between_two_writes_loses_nothing(account, foreign, dispatched, state, step, monkeypatch):
    """The server refuses one command for held deliveries, and then the process is killed."""
    monkeypatch.setattr("dispatcher.delivery.lanes._TO_WRITE", 0.05)  # the killed process discards pending writes
    command, delivered, on_failure = STEPS[step]
    strict = Strict(account, refuses=lambda instance: instance.amount == 0)
    id_ = ObjectId()
    admin = foreign.client.admin
    # The server refuses commands for one collection only, because it must accept others, such as lease renewals.
    failing = {"failCommands": [command], "errorCode": 11600, "namespace": f"{foreign.name}_state.held"}

    def stop_at(command_mode: Any) -> None:
        admin.command("configureFailPoint", "failCommand", mode=command_mode, data=failing)

    if step != "it is not written":
        async with dispatching(dispatched):
            foreign["accounts"].insert_one({"_id": id_, "name": "0", "amount": 0})
            foreign["accounts"].replace_one({"_id": id_}, {"name": "1", "amount": 1})
            await eventually(lambda: len(state.rows) == 2)
        state.database["held"].update_one(state.HEADS, {"$set": {"due_at": datetime(2020, 1, 1)}})
    if on_failure != "block":  # the next version of the application
        account.signals.post_save.disconnect(strict)
        strict = Strict(account, retry=Retry(1), on_failure=on_failure)
    strict.mended = bool(delivered)
    stop_at("alwaysOn")
    async with dispatching(dispatched, lease=1.0, **SAVES_NEVER) as running:
        token = state.token
        if step == "it is not written":
            foreign["accounts"].insert_one({"_id": id_, "name": "0", "amount": 0})
            await eventually(lambda: strict.attempts)
        else:
            await eventually(lambda: strict.attempts and strict.got == delivered)
            await eventually(lambda: len(state.rows) == (1 if command == "update" else 2))
        running.task.cancel()
        await asyncio.wait([running.task])
    admin.command("configureFailPoint", "failCommand", mode="off")
    state.rewind(token)
    strict.mended = True
    async with dispatching(dispatched, lease=1.0):
        if step == "it is not written":
            foreign["accounts"].replace_one({"_id": id_}, {"name": "1", "amount": 1})
        await eventually(lambda: "1" in strict.got and state.empty)
    assert list(dict.fromkeys(strict.got)) == [*(["0"] if on_failure == "block" else []), "1"]
    assert strict.got[-1] == "1"
    assert len(state.letters) == (on_failure != "block")


@pytest.mark.slow
async def test_many_parked_deliveries_are_made_with_constant_memory(account, foreign, dispatched, state):
    """600 deliveries with 12 MB are parked. While they are made, neither lanes nor documents accumulate."""
    strict = Strict(account, retry=Retry(1, base=0.3, cap=0.3))
    total, blob = 600, bytes(20_000)
    most = 0
    async with dispatching(dispatched, concurrency=20) as running:
        for start in range(0, total, 200):
            rows = [{"name": str(n), "blob": blob} for n in range(start, start + 200)]
            foreign["accounts"].insert_many(rows)
        await eventually(lambda: running.stats.parked >= total)
        pipeline = running.service.held[0]
        strict.mended = True
        tracemalloc.start()
        try:
            while len(strict.got) < total:
                taken = len(pipeline._worker._taken)
                assert taken <= 20
                assert len(pipeline._parking._remembered) <= 1_000
                most = max(most, taken)
                await asyncio.sleep(0.01)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        await eventually(lambda: state.empty)
    assert most > 5
    assert peak < 5_000_000  # 12 MB are parked


async def test_followers_are_not_overtaken_when_a_former_owner_deletes_their_head(
    account, foreign, dispatched, state, monkeypatch
):
    """The last command of the former owner arrives after the takeover. The lane has no head, so nothing is due."""
    looks = 0
    due = HeldStore.due

    async def counted(*args: Any) -> Any:
        nonlocal looks
        found = await due(*args)
        looks += not state.heads
        return found

    monkeypatch.setattr(worker, "_RARELY", 0.1)
    monkeypatch.setattr(HeldStore, "due", counted)
    strict = Strict(account, refuses=lambda instance: instance.amount == 0)
    id_ = ObjectId()
    async with dispatching(dispatched):
        foreign["accounts"].insert_one({"_id": id_, "name": "0", "amount": 0})
        foreign["accounts"].replace_one({"_id": id_}, {"name": "1", "amount": 1})
        await eventually(lambda: len(state.rows) == 2)
    state._held.update_many(Parked.HEADS, {"$set": {"due_at": datetime(2100, 1, 1)}})
    async with dispatching(dispatched):
        assert state._held.delete_many(Parked.HEADS).deleted_count == 1
        await eventually(lambda: looks)
        foreign["accounts"].replace_one({"_id": id_}, {"name": "2", "amount": 2})
        await eventually(lambda: state.empty and "2" in strict.got)
    assert strict.got == ["1", "2"]


async def test_a_lane_without_a_head_is_delivered_as_soon_as_it_gets_a_further_delivery(
    account, foreign, dispatched, state, monkeypatch
):
    """The worker delivers the whole lane, and does not wait for its next query."""
    monkeypatch.setattr(worker, "_RARELY", 3_600.0)
    monkeypatch.setattr(worker, "_SOON", 3_600.0)
    hours = Retry(1, base=7_200.0, cap=7_200.0)
    strict = Strict(account, refuses=lambda instance: instance.amount == 0, retry=hours)
    id_ = ObjectId()
    async with dispatching(dispatched):
        foreign["accounts"].insert_one({"_id": id_, "name": "0", "amount": 0})
        await eventually(lambda: len(state.heads) == 1)
        foreign["accounts"].replace_one({"_id": id_}, {"name": "1", "amount": 1})
        await eventually(lambda: len(state.rows) == 2)
        state._held.update_many(Parked.HEADS, {"$unset": {"due_at": ""}})
        strict.mended = True
        foreign["accounts"].replace_one({"_id": id_}, {"name": "2", "amount": 2})
        await eventually(lambda: state.empty)
    assert strict.got == ["0", "1", "2"]


async def test_deliveries_that_wait_for_their_next_attempt_cost_no_queries(
    account, foreign, dispatched, state, monkeypatch
):
    """The worker knows when the next delivery is due, and queries only then."""
    due, queries = HeldStore.due, 0

    async def counted(*args: Any) -> Any:
        nonlocal queries
        queries += 1
        return await due(*args)

    monkeypatch.setattr(HeldStore, "due", counted)
    Strict(account, retry=Retry(1, base=60.0, cap=60.0))
    async with dispatching(dispatched, partitions=3):
        foreign["accounts"].insert_many([{"name": str(number)} for number in range(30)])
        await eventually(lambda: len(state.heads) == 30)
        before = -1
        async with asyncio.timeout(PATIENCE):
            while queries != before:  # a few queries follow the last attempts, then there are none
                before = queries
                await asyncio.sleep(2.5)
