"""Writes and dispatchers during an election.

A connection that is opened during the election shows the driver a member without sessions, until it is closed.
"""

import asyncio
from typing import Any

import pytest
from pymongo.errors import AutoReconnect

import mongoz
from mongoz.core.signals import post_delete, post_save, post_update
from tests.proxy import Proxy, proxied
from tests.support import dispatching, eventually


@pytest.fixture
async def proxy(mongo):
    async with proxied(mongo.url) as made:
        yield made


@pytest.fixture
async def registry(proxy, driver, database):
    async with mongoz.Registry(proxy.url, driver=driver, dispatched=database) as made:
        yield made


@pytest.fixture
def User(registry, database):
    class User(mongoz.Document):
        name: str = mongoz.String()
        age: int = mongoz.Integer(default=0)

        Meta = type("Meta", (), {"registry": registry, "database": database, "collection": "users"})

    return User


@pytest.fixture
def told(User) -> list[str]:
    """The signals of the deliveries."""
    log: list[str] = []
    for signal, name in ((post_save, "post_save"), (post_update, "post_update"), (post_delete, "post_delete")):

        def connect(signal: Any, name: str) -> None:
            @signal(User, name=f"told.{name}")
            async def receive(sender: Any, instance: Any, **kwargs: Any) -> None:
                log.append(name)

        connect(signal, name)
    return log


def elect(proxy: Proxy) -> None:
    """New connections see only a member without data."""
    proxy.electing = True
    proxy.refuse()
    proxy.accept()


async def create(User: Any, user: Any) -> None:
    await User(name="new").create()


async def update(User: Any, user: Any) -> None:
    await user.update(age=1)


async def create_many(User: Any, user: Any) -> None:
    await User.create_many([User(name="new")])


async def update_many(User: Any, user: Any) -> None:
    await User.objects.update_count(age=1)


async def delete(User: Any, user: Any) -> None:
    await user.delete()


async def delete_many(User: Any, user: Any) -> None:
    await User.objects.delete()


async def in_transaction(User: Any, user: Any) -> None:
    async with User.meta.registry.transaction():
        await user.update(age=1)


WRITES = {
    create: ("insert", "post_save"),
    update: ("update", "post_update"),
    create_many: ("insert", "post_save"),
    update_many: ("commitTransaction", "post_update"),
    delete: ("commitTransaction", "post_delete"),
    delete_many: ("commitTransaction", "post_delete"),
    in_transaction: ("commitTransaction", "post_update"),
}


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
async def test_a_write_whose_second_attempt_meets_an_election_is_delivered(User, told, proxy, write, registry):
    """The driver sends the write again after a lost answer, and raises the error of the second attempt."""
    command, signal = WRITES[write]
    user = await User.objects.create(name="Ada")
    told.clear()
    proxy.electing = True
    proxy.cut_after_request(command)
    with pytest.raises(AutoReconnect):
        await write(User, user)
    assert proxy.lost == 1
    proxy.electing = False  # the connections stay open
    await eventually(lambda: not registry._unsettled, what="the outcome is known")
    assert told == [signal]


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
async def test_a_write_during_an_election_fails_without_a_delivery_or_is_repeated(
    User, told, proxy, write, registry
):
    user = await User.objects.create(name="Ada")
    told.clear()
    elect(proxy)
    writing = asyncio.create_task(write(User, user))
    if write not in (delete, delete_many):  # deletes repeat their own transaction until the election ends
        with pytest.raises(AutoReconnect):
            await writing
    proxy.electing = False
    if writing.done():
        await eventually(lambda: not registry._unsettled, what="the outcome is known")
        assert told == []
        await write(User, user)
    await asyncio.wait([writing])
    assert told == [WRITES[write][1]]


async def test_run_transaction_repeats_the_whole_transaction_during_an_election(User, told, proxy, registry):
    user = await User.objects.create(name="Ada")
    told.clear()
    elect(proxy)
    writing = asyncio.create_task(registry.run_transaction(lambda: user.update(age=1)))
    await asyncio.sleep(0)
    proxy.electing = False
    await writing
    assert told == ["post_update"]


async def test_a_dispatcher_continues_after_an_election(User, told, proxy, registry, foreign):
    async with dispatching(registry) as running:
        foreign.users.insert_one({"name": "before"})
        await eventually(lambda: len(told) == 1)
        reconnects = running.stats.reconnects
        elect(proxy)
        await eventually(
            lambda: running.stats.reconnects > reconnects + 2, within=60, what="the dispatcher connects again"
        )
        assert not running.task.done()
        foreign.users.insert_one({"name": "during"})
        proxy.electing = False  # connections opened during the election stay, without sessions
        await eventually(lambda: len(told) == 2, within=60, what="the write during the election is delivered")
        assert not running.task.done()


async def test_a_start_during_an_election_waits_for_its_end(User, told, proxy, registry, foreign):
    elect(proxy)
    ending = asyncio.get_running_loop().call_later(1, setattr, proxy, "electing", False)
    async with dispatching(registry, connect_timeout=60):
        foreign.users.insert_one({"name": "Ada"})
        await eventually(lambda: len(told) == 1)
    ending.cancel()
