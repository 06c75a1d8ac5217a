"""A group switches between change streams and the topic of a relay, while other clients write."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

import mongoz
from dispatcher.group.origin import origin_of
from dispatcher.operate.positions import Mover
from mongoz.core.signals import post_delete, post_save, post_update
from mongoz.signals import muted
from tests.integration.deliveries import State, make_account
from tests.support import dispatching, eventually, group_of, settings_for

pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")
from tests.integration.relaying import relay_name, relaying

pytestmark = pytest.mark.slow


class Deliveries:
    """The deliveries that the receivers have finished.

    Attributes:
        numbers: the numbers of the inserted documents.
        ids: the ids of the deliveries of inserts.
        deleted: the ids of the deleted documents.
        updates: the values of each document in the order of its updates.
        slow: the numbers of documents whose receivers wait for `gate`.
        waiting: the numbers of documents whose receivers have begun to wait for `gate`.
    """

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.ids: list[str] = []
        self.deleted: list[Any] = []
        self.updates: dict[str, list[int]] = {}
        self.gate = asyncio.Event()
        self.slow: set[int] = set()
        self.waiting: set[int] = set()


@pytest.fixture
def got(account: Any) -> Deliveries:
    got = Deliveries()

    @post_save(account, name="saved", timeout=300)
    async def saved(sender: Any, instance: Any, delivery: Any, **kwargs: Any) -> None:
        number = int(instance.name)
        if number in got.slow:
            got.waiting.add(number)
            await got.gate.wait()
        got.numbers.append(number)
        got.ids.append(delivery.id)

    @post_update(account, name="updated")
    async def updated(sender: Any, instance: Any, **kwargs: Any) -> None:
        got.updates.setdefault(str(instance.id), []).append(int(instance.name))

    @post_delete(account, name="deleted")
    async def deleted(sender: Any, instance: Any, **kwargs: Any) -> None:
        got.deleted.append(instance.id)

    return got


class Writer:
    """Inserts and updates documents as another client. Inserts and deletes documents as the application, muted."""

    def __init__(self, foreign: Any, account: Any) -> None:
        self._accounts = foreign["accounts"]
        self._account = account
        self.count = 0
        self.updates: dict[str, list[int]] = {}

    async def write(self) -> None:
        """Insert a document, and sometimes update it twice. Sometimes create and delete documents, muted."""
        number, self.count = self.count, self.count + 1
        id_ = (await asyncio.to_thread(self._accounts.insert_one, {"name": f"{number}"})).inserted_id
        if random.random() < 0.3:
            for value in (number + 1, number + 2):
                change = {"$set": {"name": f"{value}"}}
                await asyncio.to_thread(self._accounts.update_one, {"_id": id_}, change)
                self.updates.setdefault(str(id_), []).append(value)
        if random.random() < 0.2:
            with muted(self._account):
                await self._account.objects.create_many([self._account(name="-1") for _ in range(5)])
                await self._account.objects.filter(name="-1").delete()

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """Write during a `with` block."""
        stop = asyncio.Event()

        async def run() -> None:
            while not stop.is_set():
                await self.write()

        task = asyncio.create_task(run())
        try:
            yield
        finally:
            stop.set()
            await task


@pytest.fixture
async def writer(mongo: Any, foreign: Any, database: str) -> AsyncIterator[Writer]:
    """The writer has a registry of its own, because a dispatcher replaces the client of its registry."""
    async with mongoz.Registry(mongo.url, dispatched=database) as application:
        yield Writer(foreign, make_account(application, database))


async def test_a_group_that_switches_under_load_loses_and_repeats_nothing(
    writer, dispatched, foreign, broker, client, database, got
):
    """The group switches in both directions, while some changes are finished ahead of the position."""
    await client[database].create_collection("accounts", changeStreamPreAndPostImages={"enabled": True})
    name = relay_name()
    options = {"kafka": broker.address, "kafka_topic": f"mongoz.{name}"}
    mover = Mover(group_of(client, database))
    async with relaying(dispatched, broker.address, name, partitions=3):
        to_topic = False
        async with dispatching(dispatched, partitions=1):
            pass
        async with writer.writing():
            for _ in range(6):
                got.gate.clear()
                held = writer.count + 5
                got.slow = {held}
                async with dispatching(dispatched, **(options if to_topic else {})):
                    await eventually(
                        lambda held=held: held in got.waiting and sum(one > held for one in got.numbers) > 20,
                        what="changes are finished ahead",
                    )
                ahead = [one for one in positions(foreign) if one["ahead"]]
                assert ahead, "a slow receiver holds a position back"
                got.slow = set()
                to_topic = not to_topic
                source = settings_for(dispatched, **(options if to_topic else {}))
                await mover.switch(await origin_of(source, mover._state, mover.now))
        async with dispatching(dispatched, **(options if to_topic else {})):
            await eventually(lambda: len({*got.numbers}) == writer.count, what="all are delivered")
            await eventually(
                lambda: sum(map(len, got.updates.values())) >= sum(map(len, writer.updates.values())),
                what="all updates are delivered",
            )
    assert [one for one, count in Counter(got.numbers).items() if count > 1] == []
    assert len({*got.ids}) == writer.count
    assert got.updates == writer.updates
    assert got.deleted == []


def positions(foreign: Any) -> list[dict[str, Any]]:
    return list(State(foreign).database["positions"].find({"partition": {"$exists": True}}))
