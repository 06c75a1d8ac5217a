"""Changes that the relay can't publish are gaps: in the topic, and in the state."""

from typing import Any

import pytest
from pymongo import AsyncMongoClient, MongoClient

import mongoz
from dispatcher.core.events import EventBatch
from dispatcher.core.resume_tokens import directly_after
from dispatcher.embedded.broker import EmbeddedBroker
from dispatcher.exceptions import HistoryLost
from dispatcher.kafka.envelope import RecordKind, gap_in
from dispatcher.operate.positions import Mover
from dispatcher.stream.change_stream import ChangeStreamSource
from tests.integration.relaying import Read, accepted, last_token, make_document, relaying, saved_state
from tests.integration.test_history_lost import forget, forgetful  # noqa: F401 - a fixture
from tests.support import group_of

pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")


def gaps(read: list[Read]) -> list[tuple[int, Any]]:
    return [(one.partition, gap_in(one.envelope)) for one in read if one.envelope.kind is RecordKind.GAP]


def ids(read: list[Read]) -> list[Any]:
    return [one.event["documentKey"]["_id"] for one in read if one.envelope.kind is RecordKind.EVENT]


async def test_lost_history_ends_the_relay_or_is_a_gap_in_every_partition(
    forgetful: MongoClient,  # noqa: F811
    broker: EmbeddedBroker,
    name: str,
) -> None:
    database = f"lost_relay_{name}"
    foreign = forgetful[database]
    async with (
        mongoz.Registry(forgetful.url, dispatched=database) as registry,
        AsyncMongoClient(forgetful.url) as client,
    ):
        make_document(registry, database, "orders")
        async with relaying(registry, broker.address, name) as relay:
            foreign["orders"].insert_one({"_id": 1})
            await relay.published(await last_token(foreign, client, database))
        before = await saved_state(client, database, name)
        foreign["orders"].insert_one({"_id": "lost"})
        forget(forgetful, before.position.token)
        with pytest.raises(HistoryLost):
            async with relaying(registry, broker.address, name) as relay:
                await relay.published("9")
        async with relaying(registry, broker.address, name, on_history_lost="resume") as relay:
            # The gap is published, and the stream goes on.
            await relay.published(directly_after(before.position.token))
            foreign["orders"].insert_one({"_id": 2})
            await relay.published(await last_token(foreign, client, database))
    read = accepted(broker.address, f"mongoz.{name}")
    assert ids(read) == [1, 2]
    found = gaps(read)
    assert [partition for partition, _ in found] == [0, 1, 2, 3]
    assert {gap.kind for _, gap in found} == {"history_lost"}
    assert {gap.after for _, gap in found} == {before.position.token}
    assert len({gap.until for _, gap in found}) == 1
    [recorded] = foreign.client[f"{database}_state"]["gaps"].find()
    assert (recorded["kind"], recorded["group"]) == ("history_lost", f"mongoz.{name}")


async def test_an_event_that_the_server_can_not_send_is_a_gap_before_the_next_event(
    dispatched: mongoz.Registry, foreign, broker: EmbeddedBroker, client, database: str, name: str, monkeypatch
) -> None:
    make_document(dispatched, database, "orders")
    batches = ChangeStreamSource.batches

    async def with_loss(self, start):
        before = start.token
        async for batch in batches(self, start):
            rest = [event for event in batch.events if event["documentKey"]["_id"] != "huge"]
            yield batch if len(rest) == len(batch.events) else EventBatch(rest, batch.token, lost_after=before)
            before = batch.token

    monkeypatch.setattr(ChangeStreamSource, "batches", with_loss)
    async with relaying(dispatched, broker.address, name) as relay:
        foreign["orders"].insert_one({"_id": 1})
        await relay.published(await last_token(foreign, client, database))
        foreign["orders"].insert_many([{"_id": "huge"}, {"_id": 2}])
        await relay.published(await last_token(foreign, client, database))
    read = accepted(broker.address, f"mongoz.{name}")
    assert sorted(ids(read)) == [1, 2]
    [(partition, gap)] = gaps(read)
    assert (partition, gap.kind, gap.token) == (0, "oversize", directly_after(gap.after))


@pytest.mark.slow
async def test_an_operator_can_move_the_relay_only_forward(
    dispatched: mongoz.Registry, foreign, broker: EmbeddedBroker, client, database: str, name: str
) -> None:
    make_document(dispatched, database, "orders")
    async with relaying(dispatched, broker.address, name) as relay:
        foreign["orders"].insert_one({"_id": 1})
        await relay.published(await last_token(foreign, client, database))
    before = await saved_state(client, database, name)
    foreign["orders"].insert_one({"_id": "skipped"})
    later = await last_token(foreign, client, database)
    await move_relay(client, database, name, later)
    async with relaying(dispatched, broker.address, name) as relay:
        foreign["orders"].insert_one({"_id": 2})
        await relay.published(await last_token(foreign, client, database))
    await move_relay(client, database, name, before.position.token)
    async with relaying(dispatched, broker.address, name) as relay:
        foreign["orders"].insert_one({"_id": 3})
        await relay.published(await last_token(foreign, client, database))
    read = accepted(broker.address, f"mongoz.{name}")
    assert sorted(ids(read)) == [1, 2, 3]
    assert {(gap.after, gap.until) for _, gap in gaps(read)} == {(before.position.token, later)}
    assert len(gaps(read)) == 4


async def move_relay(client: Any, database: str, name: str, token: str) -> None:
    mover = Mover(group_of(client, database, f"mongoz.{name}"))
    await mover.move(token, force=False)
