"""Receivers that are slow, block the event loop or ignore cancellation are logged; other deliveries continue."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import structlog
from bson import ObjectId

from dispatcher.delivery import invoker
from dispatcher.operate import dead_letters
from mongoz.core.signals import post_save
from mongoz.signals.options import Retry
from tests.integration.deliveries import Parked, Strict, actions
from tests.support import dispatching, eventually, group_of

refusing_ones: "list[Refusing]" = []


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hanging receivers are cancelled again after 0.02 s instead of a second. Each log event is one line."""
    monkeypatch.setattr(invoker, "_CANCEL_AGAIN", 0.02)
    structlog.configure(processors=[structlog.processors.KeyValueRenderer()])
    yield
    structlog.reset_defaults()
    refusing_ones.clear()


@pytest.fixture(autouse=True)
async def released() -> AsyncIterator[None]:
    """Releases the receivers that ignore cancellation: after a failed test, nothing else could end the loop."""
    yield
    for each in refusing_ones:
        each.hangs = False
        each.gate.set()


@pytest.fixture
def state(foreign: Any) -> Parked:
    return Parked(foreign)


async def test_three_slow_calls_of_a_receiver_are_one_log_line(account, foreign, dispatched, capsys):
    """The receiver is logged while it still runs. Quick receivers are not logged."""
    said = actions(capsys)
    gate = asyncio.Event()
    quick = Strict(account, name="quick")
    quick.mended = True

    @post_save(account, name="slow")
    async def slow(sender, **kwargs):
        await gate.wait()

    async with dispatching(dispatched, slow_after=0.05) as running:
        foreign["accounts"].insert_many([{"name": "a"}, {"name": "b"}, {"name": "c"}])
        await eventually(lambda: "delivery.slow" in said())
        await eventually(lambda: sum(running.service.held[0]._invoker._throttle._kept_back.values()) == 2)
        gate.set()
        await eventually(lambda: running.stats.delivered == 6)
    (line,) = [line for line in said().splitlines() if "delivery.slow" in line]
    assert "receiver='slow'" in line
    assert "signal='post_save'" in line
    assert "seconds=" in line


async def test_a_receiver_that_blocks_the_event_loop_is_logged_with_its_frames(
    account, foreign, dispatched, capsys
):
    said = actions(capsys)
    done: list[str] = []

    @post_save(account, name="blocking")
    async def blocking(sender, instance, **kwargs):
        await asyncio.sleep(0)
        computes_for_long()
        done.append(instance.name)

    async with dispatching(dispatched, block_after=0.1):
        foreign["accounts"].insert_one({"name": "Ada"})
        await eventually(lambda: done)
        await eventually(lambda: "loop.turns" in said())
    line = next(line for line in said().splitlines() if "loop.blocked" in line)
    assert "receiver='blocking'" in line
    assert "in computes_for_long" in line
    assert "time.sleep(0.5)" in line
    assert "lanes.py" not in line  # only the receiver's own frames


def computes_for_long() -> None:
    time.sleep(0.5)


class Refusing:
    """A receiver that swallows cancellations until it is released."""

    def __init__(self, document: Any, **options: Any) -> None:
        self.hangs = True
        self.gate = asyncio.Event()
        self.calls: list[tuple[str, int]] = []
        self.inside = self.most = 0
        self.done: list[str] = []
        refusing_ones.append(self)
        post_save(document, name="refusing", timeout=0.05, **options)(self)

    async def __call__(self, sender: Any, instance: Any, delivery: Any, **kwargs: Any) -> None:
        self.calls.append((instance.name, delivery.attempt))
        self.inside += 1
        self.most = max(self.most, self.inside)
        gate, deadline = self.gate, time.monotonic() + 15
        while self.hangs and instance.name.startswith("bad") and not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                if time.monotonic() > deadline:  # a failing test must end
                    raise
        self.inside -= 1
        self.done.append(instance.name)


async def test_a_new_worker_replaces_a_worker_whose_receiver_ignores_cancellation(
    account, foreign, dispatched, state, capsys
):
    """There is one worker. Only deliveries of the document to this receiver wait, and the position moves."""
    said = actions(capsys)
    refusing = Refusing(account, retry=Retry(1000, base=0.01, cap=0.02))
    after: list[str] = []

    @post_save(account, name="next")
    async def next_one(sender, instance, **kwargs):
        after.append(instance.name)

    id_ = ObjectId()
    async with dispatching(dispatched, concurrency=1, park_after=0.0) as running:
        before = state.token
        foreign["accounts"].insert_one({"_id": id_, "name": "bad"})
        foreign["accounts"].replace_one({"_id": id_}, {"name": "behind"})
        foreign["accounts"].insert_many([{"name": f"good{n}"} for n in range(5)])
        await eventually(lambda: len(after) == 7)
        assert sorted(refusing.done) == [f"good{n}" for n in range(5)]
        await eventually(lambda: len(state.rows) == 2 and state.token > before)
        assert [name for name in after if "good" not in name] == ["bad", "behind"]
        assert refusing.calls.count(("bad", 1)) == len([one for one in refusing.calls if one[0] == "bad"]) == 1
        assert running.service.held[0]._capacity.in_flight == 0
        refusing.gate.set()
        await eventually(lambda: state.empty)
    # The late result is discarded, so the delivery is repeated. Then the next delivery of the document follows.
    assert refusing.done[5:] == ["bad", "bad", "behind"]
    assert refusing.calls[-2:] == [("bad", 2), ("behind", 1)]
    assert "delivery.stuck" in said()


async def test_a_parked_delivery_waits_for_its_receiver_that_ignores_cancellation(
    account, foreign, dispatched, state
):
    """The worker of the receiver is replaced. The document still has one delivery at a time."""
    refusing = Refusing(account, retry=Retry(1000, base=0.01, cap=0.02))
    id_ = ObjectId()
    async with dispatching(dispatched, concurrency=2, park_after=0.0) as running:
        foreign["accounts"].insert_one({"_id": id_, "name": "bad"})
        await eventually(lambda: state.rows)
        foreign["accounts"].replace_one({"_id": id_}, {"name": "behind"})
        first, refusing.gate = refusing.gate, asyncio.Event()
        first.set()
        await eventually(lambda: ("bad", 2) in refusing.calls)
        await eventually(lambda: state.heads[0]["attempts"] == 2)
        await eventually(lambda: running.service.held[0]._capacity.in_flight == 0)
        refusing.hangs = False
        refusing.gate.set()
        await eventually(lambda: state.empty)
    assert refusing.most == 1
    assert refusing.done == ["bad", "bad", "bad", "behind"]
    assert refusing.calls == [("bad", 1), ("bad", 2), ("bad", 3), ("behind", 1)]


async def test_a_backfill_continues_although_a_receiver_ignores_cancellation(account, foreign, dispatched, state):
    """The delivery to the hanging receiver is parked. Other documents and the stream do not wait."""
    foreign["accounts"].insert_one({"_id": ObjectId(), "name": "bad"})
    foreign["accounts"].insert_many([{"name": f"good{n}"} for n in range(5)])
    refusing = Refusing(account, retry=Retry(1000, base=0.01, cap=0.02))
    lost = {"failCommands": ["getMore"], "errorCode": 136, "appName": "mongoz-dispatcher"}
    async with dispatching(dispatched, on_history_lost="backfill", concurrency=1, park_after=0.0):
        foreign.client.admin.command("configureFailPoint", "failCommand", mode={"times": 1}, data=lost)
        runs = state.database["controls"]
        await eventually(lambda: runs.find_one({"kind": "run", "status": "finished"}))
        assert len(state.rows) == 1
        foreign["accounts"].insert_one({"name": "good and new"})
        await eventually(lambda: "good and new" in refusing.done)
        refusing.gate.set()
        await eventually(lambda: state.empty)
    assert sorted(set(refusing.done)) == ["bad", "good and new", *(f"good{n}" for n in range(5))]


async def test_a_receiver_that_ignores_cancellation_fails_after_its_last_attempt(
    account, foreign, dispatched, state
):
    refusing = Refusing(account, retry=1)
    id_ = ObjectId()
    async with dispatching(dispatched):
        foreign["accounts"].insert_one({"_id": id_, "name": "bad"})
        foreign["accounts"].replace_one({"_id": id_}, {"name": "behind"})
        letter = await state.letter()
        await eventually(lambda: refusing.done == ["behind"])
        refusing.gate.set()
        await eventually(lambda: refusing.inside == 0)
    assert "ignores cancellation" in letter["error"]["message"]
    assert state.empty


async def test_a_retried_dead_letter_whose_receiver_ignores_cancellation_stays_one_letter(
    account, foreign, dispatched, state, client, database
):
    refusing = Refusing(account, retry=1)
    async with dispatching(dispatched):
        foreign["accounts"].insert_one({"name": "bad"})
        letter = await state.letter()
        first, refusing.gate = refusing.gate, asyncio.Event()
        first.set()
        await eventually(lambda: refusing.inside == 0)
        await dead_letters.request_retry(group_of(client, database), [letter["_id"]])
        await eventually(lambda: state.letters and state.letters[0].get("retries") == 1)
        refusing.gate.set()
        await eventually(lambda: refusing.inside == 0)
    assert [one["_id"] for one in state.letters] == [letter["_id"]]
    assert "ignores cancellation" in state.letters[0]["error"]["message"]
