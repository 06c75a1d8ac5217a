"""A committed write reaches its receivers exactly once although the call is cancelled."""

import asyncio
import gc
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from bson import ObjectId

from mongoz.core.signals import post_delete, post_save, post_update
from mongoz.persistence.bulk import insert as bulk
from mongoz.persistence.bulk import selection
from mongoz.stamps import FIELD
from tests.integration.test_operation_matrix import make as make_user
from tests.support import dispatching, eventually

WRITES = 300
AT_ONCE = 10
END = ObjectId()

# PyMongo leaves a connection open if the task is cancelled at one of these points: `Pool.connect` waits for the
# lock of the pool, `Pool.connect` notes the cluster time (both are outside of the `try` that closes the
# connection), or `Pool.checkin` closes a connection. No object refers to the connection then, so Python warns when
# the garbage collector finds the connection. The fixture `collected` runs the collector within these tests.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed transport:ResourceWarning")


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Runs the garbage collector, so that leaked connections of PyMongo cause no warning in a later test."""
    yield
    gc.collect()


async def save(User: Any, ids: list[ObjectId]) -> None:
    user = User(id=ids[0], name="new")
    await user.create()
    user.age = 1
    await user.save()


async def update(User: Any, ids: list[ObjectId]) -> None:
    user = await User.objects.create(id=ids[0], name="new")
    await user.update(age=1)


async def delete(User: Any, ids: list[ObjectId]) -> None:
    user = await User.objects.create(id=ids[0], name="new")
    await user.delete()


async def upsert(User: Any, ids: list[ObjectId]) -> None:
    await User.objects.get_or_create({"name": "new"}, id=ids[0])


async def many(User: Any, ids: list[ObjectId]) -> None:
    """Each call writes five documents in batches of two."""
    await User.create_many([User(id=id_, name="new") for id_ in ids])
    await User.objects.filter(id__in=ids).update_count(age=1)
    await User.objects.filter(id__in=ids).delete()


async def together(User: Any, ids: list[ObjectId]) -> None:
    async with User.meta.registry.transaction():
        users = [await User.objects.create(id=id_, name="new") for id_ in ids]
        await users[0].update(age=1)
        await users[0].delete()


CALLS = (save, update, delete, upsert, many, together)


@pytest.fixture
def told() -> Counter[tuple[Any, str, Any]]:
    return Counter()


@pytest.fixture
def listen(told: Counter[Any]) -> Any:
    def connect_all(User: Any, **options: Any) -> None:
        async def receive(sender: Any, instance: Any, delivery: Any, **kwargs: Any) -> None:
            await asyncio.sleep(0)  # a point for a cancellation
            told[instance.id, delivery.signal, kwargs.get("created")] += 1

        for connect in (post_save, post_update, post_delete):
            connect(User, name="watcher", **options)(receive)

    return connect_all


async def cancelled_at_random(User: Any, monkeypatch: Any) -> int:
    """Starts the calls, and cancels each at a random point. Returns the number of interrupted calls."""
    monkeypatch.setattr(bulk, "BATCH", 2)
    monkeypatch.setattr(selection, "BATCH", 2)
    loop, chance, cut = asyncio.get_running_loop(), random.Random(), 0
    took = dict.fromkeys(CALLS, 0.05)

    async def one(number: int) -> None:
        nonlocal cut
        call = CALLS[number % len(CALLS)]
        began = loop.time()
        task = loop.create_task(call(User, [ObjectId() for _ in range(5)]))
        await asyncio.wait({task}, timeout=chance.uniform(0, took[call]))
        task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        if outcome is None:
            took[call] = (took[call] + loop.time() - began) / 2
        assert outcome is None or isinstance(outcome, asyncio.CancelledError), outcome
        cut += outcome is not None

    for first in range(0, WRITES, AT_ONCE):
        await asyncio.gather(*(one(number) for number in range(first, first + AT_ONCE)))
    return cut


def committed(stream: Any) -> Counter[tuple[Any, str, Any]]:
    """The expected deliveries, counted from the server's changes of each document."""
    expected: Counter[tuple[Any, str, Any]] = Counter()
    while not expected[END, "post_save", True]:
        event = stream.next()
        id_, kind = event["documentKey"]["_id"], event["operationType"]
        if kind == "insert":
            expected[id_, "post_save", True] += 1
        elif kind == "delete":
            expected[id_, "post_delete", None] += 1
        else:
            names = set(event["updateDescription"]["updatedFields"])
            call = event["updateDescription"]["updatedFields"].get(FIELD, b"\0\0")[1]
            if names != {FIELD}:  # an update of only the stamp is a delete marker
                expected[id_, "post_save" if call == 2 else "post_update", False if call == 2 else None] += 1
    return expected


@pytest.mark.slow
async def test_committed_writes_of_cancelled_calls_are_delivered_once_with_a_dispatcher(
    dispatched, database, foreign, told, listen, monkeypatch
):
    foreign.create_collection("users")
    User = make_user(dispatched, database)
    listen(User)
    with foreign.users.watch() as stream:
        async with dispatching(dispatched):
            cut = await cancelled_at_random(User, monkeypatch)
            # All receivers in process have ended. The dispatcher makes the other deliveries. This insert is the
            # last change that `committed` counts.
            foreign.users.insert_one({"_id": END, "name": "end"})
            await eventually(lambda: told[END, "post_save", True], what="the end")
            expected = committed(stream)
            await eventually(lambda: told.total() >= expected.total(), what="all deliveries")
    assert cut > WRITES / 5
    assert told == expected


@pytest.mark.slow
async def test_committed_writes_of_cancelled_calls_are_delivered_once_without_a_dispatcher(
    registry, database, foreign, told, listen, monkeypatch
):
    foreign.create_collection("users")
    User = make_user(registry, database)
    listen(User)
    with foreign.users.watch() as stream:
        cut = await cancelled_at_random(User, monkeypatch)
        foreign.users.insert_one({"_id": END, "name": "end"})
        told[END, "post_save", True] += 1
        expected = committed(stream)
    # Without stamps the change of a `save` looks like the change of an `update`.
    by_call = Counter(told)
    for (id_, signal, created), count in told.items():
        if (signal, created) == ("post_save", False):
            by_call[id_, "post_update", None] += count
            del by_call[id_, signal, created]
    assert cut > WRITES / 5
    assert by_call == expected
