"""Overlapping calls of one instance run in sequence, without a deadlock."""

import asyncio
import contextlib
import copy
import pickle
from typing import Any

import pytest
from pydantic import field_validator
from pymongo.errors import BulkWriteError

import mongoz
from mongoz import DocumentNotFound, Registry
from mongoz.core.signals import post_delete, post_save, post_update, pre_delete, pre_save, pre_update
from mongoz.persistence import turns

PATIENCE = 20.0
"""In seconds. Only a call that hangs takes so long."""


class Switch(mongoz.Document):
    """A class at module level, because pickle finds classes by name."""

    on: bool = mongoz.Boolean()
    n: int = mongoz.Integer(default=0)
    tags: list[str] = mongoz.Array(str, default=list)


def make(registry: Registry, database: str) -> Any:
    here = registry.get_database(database)

    class Lamp(mongoz.Document):
        on: bool = mongoz.Boolean()
        n: int = mongoz.Integer(default=0)

        class Meta:
            registry = here.deployment
            database = here

    return Lamp


@pytest.fixture
def Lamp(registry: Registry, database: str) -> Any:
    return make(registry, database)


@pytest.fixture(autouse=True)
def no_call_is_left_at_the_end() -> Any:
    yield
    assert not turns._last
    assert not turns._waiting


async def found_again(document: Any) -> Any:
    return await type(document).objects.get(id=document.id)


async def test_the_later_of_two_saves_is_stored(Lamp: Any) -> None:
    lamp = await Lamp.objects.create()
    lamp.on = True
    first = asyncio.create_task(lamp.save())
    await asyncio.sleep(0)
    lamp.on = False
    await lamp.save()
    await first
    assert (await found_again(lamp)).on is False


async def test_a_new_instance_with_overlapping_saves_is_inserted_once(Lamp: Any) -> None:
    lamp = Lamp()
    await asyncio.gather(lamp.save(), lamp.save(), lamp.save())
    assert await Lamp.objects.count() == 1


async def test_calls_of_all_kinds_keep_the_order_in_which_they_began(Lamp: Any) -> None:
    lamp = Lamp()
    calls = [lamp.create(), *(lamp.update(n=n) for n in range(20)), lamp.refresh(), lamp.save(), lamp.delete()]
    await asyncio.gather(*calls, return_exceptions=False)
    assert lamp.n == 19
    assert await Lamp.objects.count() == 0
    with pytest.raises(DocumentNotFound):
        await lamp.save()


async def test_receivers_of_overlapping_saves_run_in_the_order_of_the_calls(Lamp: Any) -> None:
    told: list[int] = []

    async def hear(sender: Any, instance: Any, **kwargs: Any) -> None:
        n = instance.n
        await asyncio.sleep(0.01 if n == 1 else 0)
        told.append(n)

    lamp = await Lamp.objects.create()
    post_save(Lamp)(hear)
    tasks = []
    for n in (1, 2, 3):
        lamp.n = n
        tasks.append(asyncio.create_task(lamp.update(n=n)))
        tasks.append(asyncio.create_task(lamp.save()))
    await asyncio.gather(*tasks)
    assert told == [1, 2, 3]


async def test_a_cancelled_waiting_call_does_not_block_other_calls(Lamp: Any) -> None:
    lamp = await Lamp.objects.create()
    tasks = [asyncio.create_task(lamp.update(n=n)) for n in range(1, 6)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    tasks[4].cancel()
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), PATIENCE)
    assert [isinstance(result, asyncio.CancelledError) for result in results] == [False, True, False, False, True]
    assert (await found_again(lamp)).n == lamp.n == 4


async def test_a_failed_call_does_not_block_other_calls(Lamp: Any) -> None:
    lamp = await Lamp.objects.create()
    results = await asyncio.gather(lamp.update(n="x"), lamp.update(m=1), lamp.update(n=3), return_exceptions=True)
    assert [type(result).__name__ for result in results] == ["ValidationError", "InvalidKeyError", "Lamp"]
    assert (await found_again(lamp)).n == 3


async def test_a_receiver_may_write_its_own_instance(Lamp: Any) -> None:
    lamp = Lamp()

    @post_save(Lamp)
    async def again(sender: Any, instance: Any, created: bool, **kwargs: Any) -> None:
        if created:
            await instance.update(n=1)
            await instance.save()
            await instance.refresh()

    await asyncio.wait_for(asyncio.gather(lamp.save(), lamp.save()), PATIENCE)
    assert (await found_again(lamp)).n == 1


async def test_a_receiver_may_await_tasks_that_write_its_own_instance(Lamp: Any) -> None:
    order: list[int] = []

    @post_save(Lamp)
    async def again(sender: Any, instance: Any, created: bool, **kwargs: Any) -> None:
        if created:

            async def write(n: int) -> None:
                await instance.update(n=n)
                order.append(n)

            async with asyncio.TaskGroup() as group:
                for n in (1, 2, 3):
                    group.create_task(write(n))

    lamp = Lamp()
    await asyncio.wait_for(asyncio.gather(lamp.save(), lamp.save()), PATIENCE)
    assert order == [1, 2, 3]
    assert (await found_again(lamp)).n == lamp.n == 3


async def test_a_pre_receiver_may_write_its_own_instance(Lamp: Any) -> None:
    lamp = await Lamp.objects.create()

    @pre_save(Lamp)
    async def before(sender: Any, instance: Any, **kwargs: Any) -> None:
        await asyncio.create_task(instance.update(n=instance.n + 1))

    await asyncio.wait_for(asyncio.gather(lamp.save(), lamp.save()), PATIENCE)
    assert (await found_again(lamp)).n == 2


@pytest.mark.parametrize(
    ("signal", "call", "inner"),
    [
        (pre_save, "create", "delete"),
        (post_save, "create", "update"),
        (pre_save, "save", "update"),
        (post_save, "save", "refresh"),
        (pre_update, "update", "refresh"),
        (post_update, "update", "save"),
        (pre_delete, "delete", "refresh"),
        (post_delete, "delete", "create"),
    ],
)
async def test_each_kind_of_receiver_may_write_its_own_instance(
    Lamp: Any, signal: Any, call: str, inner: str
) -> None:
    made: list[str] = []
    lamp = Lamp() if call == "create" else await Lamp.objects.create()

    @signal(Lamp)
    async def again(sender: Any, instance: Any, **kwargs: Any) -> None:
        with contextlib.suppress(DocumentNotFound):  # a new instance can't be deleted
            await asyncio.create_task(getattr(instance, inner)(**values(inner)))
        made.append(inner)

    def values(name: str) -> dict[str, Any]:
        return {"n": 1} if name == "update" else {}

    await asyncio.wait_for(getattr(lamp, call)(**values(call)), PATIENCE)
    assert made == [inner]


@pytest.mark.parametrize(("signal", "call"), [(post_save, "create"), (post_save, "save"), (post_update, "update")])
async def test_a_receiver_that_is_connected_during_the_call_may_write_its_own_instance(
    registry: Registry, database: str, signal: Any, call: str
) -> None:
    made: list[int] = []

    class Late(make(registry, database)):  # type: ignore[misc]
        @field_validator("n")
        @classmethod
        def connect(cls, value: int) -> int:
            if value == 7 and not signal_of(cls).receivers:
                signal(cls)(again)
            return value

    def signal_of(document: Any) -> Any:
        return document.meta.signals.post_update if call == "update" else document.meta.signals.post_save

    async def again(sender: Any, instance: Any, **kwargs: Any) -> None:
        made.append(instance.n)
        await instance.refresh()

    late = Late() if call == "create" else await Late.objects.create()
    if call != "update":
        late.__dict__["n"] = 7  # the write validates it
    await asyncio.wait_for(getattr(late, call)(**({"n": 7} if call == "update" else {})), PATIENCE)
    assert made == [7]


async def test_a_task_started_by_a_receiver_waits_for_its_own_turn(Lamp: Any) -> None:
    left: list[asyncio.Task[Any]] = []

    @post_save(Lamp)
    async def leave(sender: Any, instance: Any, created: bool, **kwargs: Any) -> None:
        async def later() -> None:
            await asyncio.sleep(0.02)
            for n in (1, 2, 3):
                await instance.update(n=n)

        if created:
            left.append(asyncio.create_task(later()))

    lamp = await Lamp.objects.create()
    await asyncio.wait_for(asyncio.gather(*left, *(lamp.update(on=True) for _ in range(5))), PATIENCE)
    found = await found_again(lamp)
    assert (found.n, found.on) == (3, True)


async def test_other_calls_wait_for_a_write_in_a_task_of_a_receiver(Lamp: Any) -> None:
    left: list[asyncio.Task[Any]] = []

    @post_save(Lamp)
    async def leave(sender: Any, instance: Any, created: bool, **kwargs: Any) -> None:
        if created:
            left.append(asyncio.create_task(instance.update(n=1)))
            await asyncio.sleep(0)

    lamp = await Lamp.objects.create()
    await lamp.update(n=2)
    await asyncio.gather(*left)
    assert (await found_again(lamp)).n == lamp.n == 2


async def test_receivers_that_write_each_others_instances_do_not_deadlock(Lamp: Any) -> None:
    one, other = await Lamp.objects.create(), await Lamp.objects.create()
    inside: list[Any] = []
    both = asyncio.Event()

    @post_save(Lamp)
    async def cross(sender: Any, instance: Any, **kwargs: Any) -> None:
        inside.append(instance)
        if len(inside) == 2:
            both.set()
        await both.wait()
        await (other if instance is one else one).update(n=7)

    await asyncio.wait_for(asyncio.gather(one.save(), other.save()), PATIENCE)
    assert (await found_again(one)).n == (await found_again(other)).n == 7


async def test_a_ring_of_three_does_not_deadlock(Lamp: Any) -> None:
    lamps = [await Lamp.objects.create() for _ in range(3)]
    inside: list[Any] = []
    all_in = asyncio.Event()

    @post_save(Lamp)
    async def cross(sender: Any, instance: Any, **kwargs: Any) -> None:
        place = next(i for i, lamp in enumerate(lamps) if lamp is instance)
        inside.append(instance)
        if len(inside) == 3:
            all_in.set()
        await all_in.wait()
        await lamps[(place + 1) % 3].update(n=place + 1)

    await asyncio.wait_for(asyncio.gather(*(lamp.save() for lamp in lamps)), PATIENCE)
    assert sorted(lamp.n for lamp in lamps) == [1, 2, 3]


async def test_a_transaction_and_a_write_waiting_for_it_do_not_deadlock(Lamp: Any) -> None:
    lamp = await Lamp.objects.create()
    registry = Lamp.meta.registry
    async with registry.transaction():
        await lamp.update(n=1)
        outside = asyncio.create_task(lamp.update(on=True))  # the server blocks this update until the commit
        await asyncio.sleep(0.1)
        async with asyncio.timeout(PATIENCE):
            await lamp.update(n=2)
    await asyncio.wait_for(outside, PATIENCE)
    found = await found_again(lamp)
    assert (found.n, found.on) == (2, True)


async def test_blocking_calls_do_not_deadlock_with_their_loop(Lamp: Any) -> None:
    lamp = await Lamp.objects.create()
    first = asyncio.create_task(lamp.update(n=1))
    await asyncio.sleep(0)
    mongoz.run_sync(lamp.update(on=True))
    await first
    found = await found_again(lamp)
    assert (found.n, found.on) == (1, True)


def test_a_call_of_an_abandoned_loop_does_not_block_another_loop(mongo: Any, database: str) -> None:
    registry = Registry(mongo.url)
    Lamp = make(registry, database)
    abandoned = asyncio.new_event_loop()

    async def leave() -> Any:
        lamp = await Lamp.objects.create()
        task = asyncio.create_task(lamp.update(n=1))
        await asyncio.sleep(0)
        return lamp, task

    lamp, task = abandoned.run_until_complete(leave())

    async def go_on() -> None:
        await asyncio.wait_for(lamp.update(on=True), PATIENCE)
        assert (await found_again(lamp)).on is True

    try:
        asyncio.run(go_on())
    finally:
        abandoned.run_until_complete(task)
        abandoned.run_until_complete(abandoned.shutdown_asyncgens())
        abandoned.close()


def test_instances_can_be_copied_and_pickled_during_a_call(mongo: Any, database: str) -> None:
    async def main() -> None:
        async with Registry(mongo.url) as registry:
            Lamp = make(registry, database)
            lamp = await Lamp.objects.create()
            task = asyncio.create_task(lamp.update(n=1))
            await asyncio.sleep(0)
            for copied in (copy.copy(lamp), copy.deepcopy(lamp), Lamp.model_validate(lamp.model_dump())):
                await asyncio.wait_for(copied.refresh(), PATIENCE)
            await task

    asyncio.run(main())
    switch = Switch(n=3)
    assert pickle.loads(pickle.dumps(switch)).n == 3


@pytest.mark.parametrize("first", ["save", "create_many"])
async def test_create_many_waits_for_earlier_calls_of_its_instances(Lamp: Any, first: str) -> None:
    lamp, other = Lamp(), Lamp()
    calls = {"save": lamp.save, "create_many": lambda: Lamp.create_many([other, lamp])}
    second = next(name for name in calls if name != first)
    results = await asyncio.gather(calls[first](), calls[second](), return_exceptions=True)
    # As with create(), an existing document can't be created.
    assert isinstance(results[1], BulkWriteError if second == "create_many" else Lamp)
    assert await Lamp.objects.count() == 2
    assert await Lamp.objects.filter(id=lamp.id).count() == 1


async def test_create_many_refuses_the_same_instance_twice(Lamp: Any) -> None:
    lamp, other = Lamp(), Lamp()
    with pytest.raises(ValueError, match=r"create_many\(\) of Lamp got an instance twice: Lamp\("):
        await Lamp.create_many([lamp, other, lamp])
    assert await Lamp.objects.count() == 0
    assert await Lamp.create_many([lamp, other]) == [lamp, other]


async def test_two_calls_of_create_many_with_the_same_instances_do_not_deadlock(Lamp: Any) -> None:
    lamps = [Lamp() for _ in range(3)]
    calls = [Lamp.create_many(lamps), Lamp.create_many(lamps[::-1]), lamps[1].save()]
    results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), PATIENCE)
    assert [type(result).__name__ for result in results] == ["list", "BulkWriteError", "Lamp"]
    assert await Lamp.objects.count() == 3


async def test_receivers_of_create_many_may_write_its_instances(Lamp: Any) -> None:
    lamps = [Lamp() for _ in range(3)]

    async def hear(sender: Any, instance: Any, created: bool, **kwargs: Any) -> None:
        if created:
            for lamp in lamps:
                if lamp.id is not None:
                    lamp.n += 1
                    await asyncio.create_task(lamp.save())

    post_save(Lamp)(hear)
    await asyncio.wait_for(Lamp.create_many(lamps), PATIENCE)
    assert {(await found_again(lamp)).n for lamp in lamps} == {3}


async def test_create_many_and_a_receiver_that_waits_for_create_many_do_not_deadlock(Lamp: Any) -> None:
    one, other = Lamp(), Lamp()

    async def hear(sender: Any, instance: Any, created: bool, **kwargs: Any) -> None:
        if instance is one and created:
            await other.save()

    post_save(Lamp)(hear)
    calls = [one.save(), Lamp.create_many([other, one])]
    results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), PATIENCE)
    assert isinstance(results[0], Lamp)
    assert await Lamp.objects.count() == 2


async def test_deletes_wait_for_an_earlier_save_or_create_many_of_their_instances(Lamp: Any) -> None:
    lamps = [Lamp(n=n) for n in range(4)]
    seen: list[tuple[str, int]] = []

    async def hear(sender: Any, instance: Any, **kwargs: Any) -> None:
        seen.append(("saved", instance.n))
        await asyncio.sleep(0)

    post_save(Lamp)(hear)
    calls = [lamps[2].save(), Lamp.create_many([*lamps[:2], *lamps[3:]]), *(lamp.delete() for lamp in lamps)]
    await asyncio.wait_for(asyncio.gather(*calls), PATIENCE)
    assert sorted(seen) == [("saved", n) for n in range(4)]
    assert await Lamp.objects.count() == 0


async def test_a_cancelled_create_many_does_not_block_other_calls(Lamp: Any) -> None:
    lamp, other = Lamp(), Lamp()
    held = asyncio.Event()

    async def hold(sender: Any, instance: Any, **kwargs: Any) -> None:
        await held.wait()

    pre_save(Lamp)(hold)
    first = asyncio.create_task(lamp.save())
    await asyncio.sleep(0)
    waiting = asyncio.create_task(Lamp.create_many([other, lamp]))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    held.set()
    await asyncio.wait_for(asyncio.gather(first, lamp.save(), other.save()), PATIENCE)
    assert await Lamp.objects.count() == 2
