"""After a transaction, the receivers of each call get the instance as this call wrote it."""

import copy
import threading
from typing import Any

import pytest

import mongoz
from mongoz import Registry
from mongoz.core.signals import post_delete, post_save, post_update, pre_update
from mongoz.queries.update_operators import U


@pytest.fixture(params=["plain", "dispatched"])
def Item(request: pytest.FixtureRequest, registry: Registry, dispatched: Registry, database: str) -> Any:
    here = (registry if request.param == "plain" else dispatched).get_database(database)

    class Part(mongoz.EmbeddedDocument):
        size: int = mongoz.Integer(default=0)

    class Item(mongoz.Document):
        name: str = mongoz.String()
        n: int = mongoz.Integer(default=0)
        tags: list[str] = mongoz.Array(str, default=list)
        part: Part = mongoz.Embed(Part, default=Part)

        class Meta:
            registry = here.deployment
            database = here

    return Item


@pytest.fixture
def told(Item: Any) -> list[tuple[Any, ...]]:
    heard: list[tuple[Any, ...]] = []

    @post_save(Item, name="save")
    @post_update(Item, name="update")
    @post_delete(Item, name="delete")
    async def hear(sender: Any, instance: Any, delivery: Any, **kwargs: Any) -> None:
        heard.append((delivery.signal, instance.name, instance.n, [*instance.tags], instance.part.size))

    return heard


async def test_receivers_get_the_instance_of_each_call(Item: Any, told: list[Any]) -> None:
    async with Item.meta.registry.transaction():
        item = await Item.objects.create(name="a", n=0)
        await item.update(name="b", n=1)
        await item.update(U.inc(n=1), name="c")
        item.tags.append("x")
        item.part.size = 3
        await item.save()
        item.tags.append("y")
        item.part.size = 4
        await item.delete()
        item.name = "unsaved"
        item.tags.clear()
    assert told == [
        ("post_save", "a", 0, [], 0),
        ("post_update", "b", 1, [], 0),
        ("post_update", "c", 2, [], 0),
        ("post_save", "c", 2, ["x"], 3),
        ("post_delete", "c", 2, ["x", "y"], 4),
    ]


async def test_receivers_get_the_instances_of_bulk_calls(Item: Any, told: list[Any]) -> None:
    async with Item.meta.registry.transaction():
        items = await Item.create_many([Item(name="a", tags=["x"]), Item(name="b")])
        items[0].tags.append("y")
        items[1].name = "changed"
        await Item.objects.filter(name="a").update_many(n=1)
        item = await Item.objects.get_or_create(name="c")
        item.n = 9
        await Item.objects.filter(name="b").delete()
    assert told == [
        ("post_save", "a", 0, ["x"], 0),
        ("post_save", "b", 0, [], 0),
        ("post_update", "a", 1, ["x"], 0),
        ("post_save", "c", 0, [], 0),
        ("post_delete", "b", 0, [], 0),
    ]


async def test_a_save_by_a_receiver_does_not_revert_later_writes(Item: Any) -> None:
    @post_save(Item, name="resave")
    async def resave(sender: Any, instance: Any, created: bool, **kwargs: Any) -> None:
        if created:
            await instance.save()
            await instance.update(tags=["seen"])

    async with Item.meta.registry.transaction():
        item = await Item.objects.create(name="a")
        await item.update(name="b")
    found = await Item.objects.get()
    assert (found.name, found.tags) == ("b", ["seen"])


async def test_outside_of_transactions_a_receiver_gets_the_instance_of_the_caller(Item: Any) -> None:
    heard: list[Any] = []

    @post_save(Item, name="hear")
    async def hear(sender: Any, instance: Any, **kwargs: Any) -> None:
        heard.append(instance)

    item = await Item.objects.create(name="a")
    await item.save()
    assert [each is item for each in heard] == [True, True]


async def test_receivers_are_called_although_values_can_not_be_copied(Item: Any, told: list[Any]) -> None:
    @pre_update(Item)
    async def before(sender: Any, instance: Any, **kwargs: Any) -> None: ...

    with pytest.raises(TypeError):
        copy.deepcopy(threading.Lock())
    async with Item.meta.registry.transaction():
        item = Item(name="a")
        item.__dict__["lock"] = threading.Lock()  # as a cached property stores it
        await item.create()
        item.tags.append("x")
        await item.update(n=1)
    assert told == [("post_save", "a", 0, [], 0), ("post_update", "a", 1, ["x"], 0)]
