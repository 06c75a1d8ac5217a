"""Writes reach receivers through the relay and a topic of Kafka, with stamps, as through a change stream."""

from typing import Any

import pytest

import mongoz
from mongoz.core.signals import post_delete, post_save
from tests.integration.deliveries import State, make_account
from tests.support import dispatching, eventually

pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")
from tests.integration.relaying import relay_name, relaying


@pytest.fixture
def account(dispatched: mongoz.Registry, database: str) -> Any:
    return make_account(dispatched, database)


async def test_foreign_writes_are_delivered_and_own_ones_are_not(account, dispatched, foreign, broker, client):
    got: list[tuple[str, str, str]] = []

    @post_save(account, name="saved")
    async def saved(sender, instance, delivery, **kwargs):
        got.append(("saved", instance.name, delivery.origin))

    @post_delete(account, name="deleted")
    async def deleted(sender, instance, delivery, **kwargs):
        got.append(("deleted", str(instance.name), delivery.origin))

    await client[foreign.name].create_collection("accounts", changeStreamPreAndPostImages={"enabled": True})
    name = relay_name()
    async with (
        relaying(dispatched, broker.address, name),
        dispatching(dispatched, kafka=broker.address, kafka_topic=f"mongoz.{name}") as running,
    ):
        assert len(running.service.held) == 4
        await account.query.create(name="own")
        await account.query.filter(name="own").delete()
        foreign["accounts"].insert_one({"name": "foreign"})
        foreign["accounts"].delete_one({"name": "foreign"})
        await eventually(lambda: len(got) == 4, what="the foreign writes are delivered")
        last = max(one["token"] for one in State(foreign).database["positions"].find({"log": {"$exists": True}}))
        await eventually(
            lambda: (
                min(one["token"] for one in State(foreign).database["positions"].find({"log": {"$exists": True}}))
                > last
            ),
            what="quiet partitions follow the relay",
        )
    assert got == [
        ("saved", "own", "process"),
        ("deleted", "own", "process"),
        ("saved", "foreign", "stream"),
        ("deleted", "foreign", "stream"),
    ]
