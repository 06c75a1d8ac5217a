"""`concurrency` limits the attempts of a receiver at the same time. `rate` limits its attempts in a period."""

import asyncio
import time
from typing import Any

import pytest
from bson import ObjectId
from bson.timestamp import Timestamp

from dispatcher.exceptions import ApplicationError
from dispatcher.operate.dead_letters import request_retry
from dispatcher.parking.store import HeldStore
from dispatcher.runs import replay
from dispatcher.runs.player import workplace
from dispatcher.runtime.service import Service
from mongoz.core.signals import post_save, post_update
from mongoz.signals.options import Retry
from tests.integration.deliveries import Parked
from tests.support import dispatching, eventually, group_of, settings_for


@pytest.fixture
def state(foreign: Any) -> Parked:
    return Parked(foreign)


class Limited:
    """A receiver that counts its running attempts. Each attempt waits until the test sets `open`."""

    def __init__(self, document: Any, *signals: Any, **options: Any) -> None:
        self.open = asyncio.Event()
        self.running = self.most = 0
        self.got: list[str] = []
        self.at: list[float] = []
        self.seconds = 0.0
        for connect in signals or (post_save,):
            connect(document, **{"name": "limited", "delivery": "dispatcher", **options})(self)

    async def __call__(self, sender: Any, instance: Any, **kwargs: Any) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        self.at.append(time.monotonic())
        try:
            await self.open.wait()
            await asyncio.sleep(self.seconds)
        finally:
            self.running -= 1
        self.got.append(instance.name)


class Plain:
    """A receiver without limits."""

    def __init__(self, document: Any) -> None:
        self.got: list[str] = []
        post_save(document, name="plain")(self)

    async def __call__(self, sender: Any, instance: Any, **kwargs: Any) -> None:
        self.got.append(instance.name)


async def test_other_receivers_do_not_wait_for_a_place_of_a_limited_receiver(account, foreign, dispatched, state):
    """All places of the limited receiver stay taken. Another receiver gets all events, and the position moves."""
    limited = Limited(account, concurrency=2)
    plain = Plain(account)
    names = [f"{n:03}" for n in range(150)]
    async with dispatching(dispatched, concurrency=4, max_queued=20) as running:
        foreign["accounts"].insert_many([{"name": name} for name in names])
        await eventually(lambda: sorted(plain.got) == names)
        await eventually(lambda: len(state.rows) >= 140)
        await eventually(lambda: {head["state"] for head in state.heads} == {"limited"})
        assert {(head["attempts"], head["first_attempt_at"]) for head in state.heads} == {(0, None)}
        assert (limited.running, limited.most) == (2, 2)
        limited.open.set()
        await eventually(lambda: sorted(limited.got) == names)
        await eventually(lambda: state.empty)
    (_, figures) = sorted(running.stats.receivers.values(), key=lambda one: one.limited)
    assert (figures.receiver, figures.retried, figures.failed) == ("limited", 0, 0)
    assert figures.limited >= 140
    assert limited.most == 2


async def test_other_receivers_do_not_wait_for_the_queries_about_parked_deliveries(
    account, foreign, dispatched, state, monkeypatch
):
    """Receivers with limits often have parked deliveries. In this test, the queries about their lanes hang."""
    limited = Limited(account, concurrency=1)
    plain = Plain(account)
    names = [f"{n:03}" for n in range(20)]
    answer = asyncio.Event()
    existing, is_headed = HeldStore.existing, HeldStore.is_headed

    async def existing_late(self: HeldStore, lanes: Any) -> set[str]:
        await answer.wait()
        return await existing(self, lanes)

    async def is_headed_late(self: HeldStore, lane: str) -> bool | None:
        await answer.wait()
        return await is_headed(self, lane)

    async with dispatching(dispatched):
        foreign["accounts"].insert_many([{"name": name} for name in names])
        await eventually(lambda: len(plain.got) == 20 and len(state.rows) >= 10)
        monkeypatch.setattr(HeldStore, "existing", existing_late)
        monkeypatch.setattr(HeldStore, "is_headed", is_headed_late)
        foreign["accounts"].insert_one({"name": "later"})
        await eventually(lambda: plain.got[20:] == ["later"])
        answer.set()
        limited.open.set()
        await eventually(lambda: sorted(limited.got) == [*names, "later"])


async def test_all_partitions_of_a_process_share_the_places_and_keep_the_order(
    account, foreign, dispatched, state
):
    """The receivers of both signals have one name, so they share the places. Each document keeps its order."""
    limited = Limited(account, post_save, post_update, concurrency=3)
    limited.seconds = 0.002
    ids = [ObjectId() for _ in range(20)]
    async with dispatching(dispatched, partitions=4):
        for number, id_ in enumerate(ids):
            foreign["accounts"].insert_one({"_id": id_, "name": f"{number}:0"})
        for step in range(1, 5):
            for number, id_ in enumerate(ids):
                foreign["accounts"].replace_one({"_id": id_}, {"name": f"{number}:{step}"})
        await eventually(lambda: limited.running == 3 and len(state.rows) > 50)
        limited.open.set()
        await eventually(lambda: len(limited.got) == 100)
        await eventually(lambda: state.empty)
    assert limited.most == 3
    for number in range(20):
        own = [name for name in limited.got if name.startswith(f"{number}:")]
        assert own == [f"{number}:{step}" for step in range(5)]


async def test_a_failed_attempt_gives_its_place_back(account, foreign, dispatched, state):
    calls: list[int] = []

    @post_save(account, name="failing", concurrency=1, retry=Retry(2, base=0.01), timeout=0.2)
    async def failing(sender, instance, delivery, **kwargs):
        calls.append(instance.amount)
        if instance.amount % 2:
            raise ValueError("no")
        await asyncio.Event().wait()

    async with dispatching(dispatched):
        foreign["accounts"].insert_many([{"name": "x", "amount": n} for n in range(4)])
        await state.wait(4)
    assert sorted(calls) == [0, 0, 1, 1, 2, 2, 3, 3]


async def test_concurrency_does_not_limit_the_writing_process(account, dispatched):
    limited = Limited(account, concurrency=1, delivery="any")
    async with asyncio.TaskGroup() as group:
        for number in range(5):
            group.create_task(account(name=str(number)).create())
        await eventually(lambda: limited.running == 5)
        limited.open.set()
    assert (limited.most, sorted(limited.got)) == (5, list("01234"))


async def test_a_dispatcher_that_stops_frees_its_places_although_deliveries_wait(
    account, foreign, dispatched, state
):
    """The next dispatcher makes each delivery once."""
    limited = Limited(account, concurrency=1)
    async with dispatching(dispatched, grace=0.1):
        foreign["accounts"].insert_many([{"name": str(n)} for n in range(10)])
        await eventually(lambda: limited.running == 1 and len(state.rows) >= 8)
    assert limited.running == 0
    limited.open.set()
    async with dispatching(dispatched):
        await eventually(lambda: len(limited.got) == 10)
        await eventually(lambda: state.empty)
    assert sorted(limited.got) == sorted(map(str, range(10)))


async def test_all_partitions_share_a_rate_and_deliveries_beyond_the_rate_are_parked(
    account, foreign, dispatched, state
):
    """The deliveries beyond the rate do not slow down another receiver."""
    limited = Limited(account, rate="20/s")
    limited.open.set()
    plain = Plain(account)
    async with dispatching(dispatched, partitions=3):
        foreign["accounts"].insert_many([{"name": str(n)} for n in range(60)])
        await eventually(lambda: len(plain.got) == 60)
        assert len(limited.got) < 50
        await eventually(lambda: {head["state"] for head in state.heads} == {"limited"}, what="the rest is parked")
        await eventually(lambda: len(limited.got) == 60)
        await eventually(lambda: state.empty)
    # The attempts of one second may begin together: 20. The other 40 attempts take two seconds.
    for first, last in zip(limited.at, limited.at[21:], strict=False):
        assert last - first >= 1 / 20 - 0.02
    assert limited.at[-1] - limited.at[0] >= 1.9


async def test_repeated_attempts_count_in_a_rate_too(account, foreign, dispatched, state):
    """Ten attempts begin together. After that, one attempt begins every tenth of a second."""
    at: list[float] = []

    @post_save(account, name="failing", rate="10/s", retry=Retry(4, base=0.001, cap=0.002))
    async def failing(sender, instance, **kwargs):
        at.append(time.monotonic())
        raise ValueError("no")

    async with dispatching(dispatched):
        foreign["accounts"].insert_many([{"name": str(n)} for n in range(6)])
        letters = await state.wait(6)
    assert {letter["attempts"] for letter in letters} == {4}
    assert len(at) == 24
    for first, last in zip(at, at[11:], strict=False):
        assert last - first >= 1 / 10 - 0.02
    assert at[-1] - at[0] >= 1.3


@pytest.mark.usefixtures("quick")
async def test_retries_of_dead_letters_obey_concurrency(account, foreign, dispatched, client, database, state):
    limited = Limited(account, concurrency=2, retry=1, timeout=0.3)
    async with dispatching(dispatched) as running:
        foreign["accounts"].insert_many([{"name": str(n)} for n in range(6)])
        await state.wait(6)
        limited.open.set()
        limited.seconds, limited.most = 0.02, 0
        await request_retry(group_of(client, database), None)
        await eventually(lambda: sorted(limited.got) == sorted(map(str, range(6))))
        await eventually(lambda: state.empty and not state.letters)
        assert running.stats.figures_of("limited", "post_save").failed == 6
    assert limited.most == 2


async def test_dispatchers_of_a_group_divide_a_rate_by_their_partitions(account, foreign, dispatched, state):
    """Each dispatcher has half of the rate. At its start, only the attempts of one second begin together."""
    limited = Limited(account, rate="20/s")
    limited.open.set()
    async with (
        dispatching(dispatched, partitions=2) as one,
        dispatching(dispatched, partitions=2) as other,
    ):
        await eventually(lambda: [len(each.service.held) for each in (one, other)] == [1, 1])
        foreign["accounts"].insert_many([{"name": str(n)} for n in range(100)])
        await eventually(lambda: len(limited.got) == 100)
        await eventually(lambda: state.empty)
    assert min(each.stats.delivered for each in (one, other)) >= 20
    # In each process, at most 10 attempts begin together. The other 80 attempts take at least 4 seconds at 20/s.
    assert limited.at[-1] - limited.at[0] >= 3.9


async def test_parked_deliveries_of_a_slow_rate_are_not_read_again_and_again(
    account, foreign, dispatched, state, monkeypatch
):
    """One delivery is made, and the next one is due in an hour."""
    from dispatcher.parking.store import HeldStore

    queries = 0
    due = HeldStore.due

    async def counted(self: Any, *args: Any) -> Any:
        nonlocal queries
        queries += 1
        return await due(self, *args)

    monkeypatch.setattr(HeldStore, "due", counted)
    limited = Limited(account, rate="1/h")
    limited.open.set()
    plain = Plain(account)
    async with dispatching(dispatched):
        foreign["accounts"].insert_many([{"name": str(n)} for n in range(100)])
        await eventually(lambda: len(plain.got) == 100 and len(state.rows) == 99)
        assert len(limited.got) == 1
        before = queries
        foreign["accounts"].insert_many([{"name": str(n)} for n in range(100)])
        await eventually(lambda: len(state.rows) == 199)
        assert queries == before


async def test_limits_apply_in_a_replay(account, foreign, dispatched, mongo):
    latest = foreign.client.admin.command("hello")["operationTime"]
    begin = Timestamp(latest.time, latest.inc + 1)
    limited = Limited(account, concurrency=2, rate="40/s")
    limited.seconds = 0.01
    limited.open.set()
    Plain(account)
    async with dispatching(dispatched):
        foreign["accounts"].insert_many([{"name": str(n)} for n in range(60)])
        await eventually(lambda: len(limited.got) == 60)
    limited.got.clear()
    limited.at.clear()
    limited.most = 0
    asked: dict[str, Any] = {"until": None, "asked": {}, "rate": None, "resume": None, "new": False}
    async with workplace(dispatched, settings_for(dispatched)) as place:
        one = await replay.start(place, (), since=begin, **asked)
        outcome = await one.work(asyncio.Event())
    assert (outcome.finished, outcome.delivered, len(limited.got), limited.most) == (True, 120, 60, 2)
    assert limited.at[-1] - limited.at[0] >= 0.4


async def test_receivers_of_one_name_need_the_same_limits(account, dispatched):
    Limited(account, concurrency=2)
    Limited(account, post_update, concurrency=3)
    with pytest.raises(ApplicationError, match="'limited' have different limits"):
        Service(dispatched, settings_for(dispatched))
