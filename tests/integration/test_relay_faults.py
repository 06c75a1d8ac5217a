"""The relay with faults of the brokers, on Apache Kafka."""

import asyncio
import os
from typing import Any

import pytest

from dispatcher.core.state import State
from dispatcher.exceptions import KafkaError
from dispatcher.kafka.acceptance import BEGINNING
from dispatcher.kafka.config import load_config
from dispatcher.kafka.envelope import RecordKind, large_event_in
from dispatcher.kafka.large_events import LargeEvents
from dispatcher.kafka.topics import read_topic
from mongoz.core.signals import post_update
from tests.integration.deliveries import IMAGES, make_account
from tests.integration.relaying import accepted, last_token, relaying, saved_state
from tests.kafka import server as kafka
from tests.kafka.proxy import kafka_proxied
from tests.kafka.security import secured
from tests.kafka.server import KafkaServer
from tests.support import dispatching, eventually, free_port

pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")


@pytest.mark.slow
async def test_a_lost_produce_request_loses_no_event(
    order, dispatched, foreign, client, database, name, tmp_path, kafka_server: KafkaServer
) -> None:
    given = tmp_path / "kafka.properties"
    given.write_text("message.timeout.ms = 1500\n")
    behind, port = free_port(), free_port()
    servers = f"127.0.0.1:{port}"
    properties = {"advertised.listeners": f"CLIENTS://{servers}"}
    with kafka_proxied(behind, port) as proxy, kafka.running(properties, port=behind):
        async with relaying(dispatched, servers, name, path=given) as relay:
            foreign["orders"].insert_many([{"_id": i, "number": 0} for i in range(200)])
            await relay.published(await last_token(foreign, client, database))
            term = (await saved_state(client, database, name)).term
            proxy.lose_produce_requests(4)
            for number in range(1, 40):
                foreign["orders"].update_many({}, {"$set": {"number": number}})
                await asyncio.sleep(0.05)
            await relay.published(await last_token(foreign, client, database))
        assert proxy.lost == 4
        found: dict[int, list[int]] = {}
        for one in accepted(servers, f"mongoz.{name}"):
            document = one.event.get("fullDocument") or one.event["updateDescription"]["updatedFields"]
            found.setdefault(one.event["documentKey"]["_id"], []).append(document["number"])
        assert found == {i: list(range(40)) for i in range(200)}
        assert (await saved_state(client, database, name)).term > term


async def test_an_event_that_does_not_fit_into_a_record_is_a_file(
    order, dispatched, foreign, client, database, name, kafka_server: KafkaServer
) -> None:
    servers, state = kafka_server.address, State(client, f"{database}_state")
    # The fourth text is about as large as a record may be, and can't be compressed.
    texts: list[Any] = ["a", "b" * 3_000_000, "c" * 1_048_000, os.urandom(1_046_500), "d"]
    async with relaying(dispatched, servers, name) as relay:
        for i, text in enumerate(texts):
            foreign["orders"].insert_one({"_id": i, "text": text})
        await relay.published(await last_token(foreign, client, database))
    large = [one for one in accepted(servers, f"mongoz.{name}") if one.envelope.kind is RecordKind.LARGE]
    files = LargeEvents(state, f"mongoz.{name}")
    sizes = []
    for one in large:
        event = await files.read(large_event_in(one.envelope))
        assert event is not None
        sizes.append(len(event) // 1_000_000)
    assert sorted(sizes) == [1, 3]
    assert len(accepted(servers, f"mongoz.{name}")) == len(texts)


@pytest.mark.slow
async def test_an_event_of_20_mb_is_delivered_over_a_topic_that_takes_1_mb(
    dispatched, foreign, client, database, name, kafka_server: KafkaServer
) -> None:
    size = 10_000_000
    account = make_account(dispatched, database, longest=size)
    got: list[tuple[str, int | None]] = []

    @post_update(account, name="changed")
    async def changed(sender: Any, instance: Any, delivery: Any, **kwargs: Any) -> None:
        got.append((delivery.image, len(instance.name) if delivery.image != "key" else None))

    accounts = foreign.create_collection("accounts", **IMAGES)
    id_ = accounts.insert_one({"name": "a" * size}).inserted_id
    async with (
        relaying(dispatched, kafka_server.address, name) as relay,
        dispatching(dispatched, kafka=kafka_server.address, kafka_topic=f"mongoz.{name}"),
    ):
        for letter in "bc":  # with both images, each event has 20 MB
            accounts.update_one({"_id": id_}, {"$set": {"name": letter * size}})
        await relay.published(await last_token(foreign, client, database))
        await eventually(lambda: len(got) == 2, what="the events are delivered")
    assert got[0][0] in ("post", "current")  # a server that can't split the event sends it without images
    assert {length for _, length in got} == {size}
    large = [
        one for one in accepted(kafka_server.address, f"mongoz.{name}") if one.envelope.kind is RecordKind.LARGE
    ]
    files = LargeEvents(State(client, f"{database}_state"), f"mongoz.{name}")
    for one in large:
        assert await files.read(large_event_in(one.envelope)) is not None
    assert len(large) == 2


async def test_a_deleted_topic_is_lost_history(
    order, dispatched, foreign, client, database, name, kafka_server: KafkaServer
) -> None:
    admin = load_config(kafka_server.address).admin()
    async with relaying(dispatched, kafka_server.address, name, on_history_lost="resume") as relay:
        foreign["orders"].insert_one({"_id": 1})
        await relay.published(await last_token(foreign, client, database))
    first = await saved_state(client, database, name)
    await admin.ask("the topic", lambda client, _: client.delete_topics([f"mongoz.{name}"])[f"mongoz.{name}"])
    await eventually_gone(admin, f"mongoz.{name}")
    foreign["orders"].insert_one({"_id": 2})
    async with relaying(dispatched, kafka_server.address, name, on_history_lost="resume") as relay:
        await relay.published(await last_token(foreign, client, database))
    second = await saved_state(client, database, name)
    assert second.topic.id != first.topic.id
    assert [mark[:2] for mark in second.position.marks if mark.term] == [(1, second.term)]
    assert [mark for mark in second.position.marks if not mark.term] == [BEGINNING[:3]] * 3
    assert [one.event["documentKey"]["_id"] for one in accepted(kafka_server.address, f"mongoz.{name}")] == [2]


async def eventually_gone(admin: Any, topic: str) -> None:
    while await read_topic(admin, topic) is not None:
        await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_a_relay_connects_with_tls_and_a_password_from_a_file(
    order, dispatched, foreign, client, database, name, tmp_path, kafka_server: KafkaServer
) -> None:
    with secured(tmp_path) as (server, properties):
        password = properties.pop("sasl.password")
        (tmp_path / "password").write_text(f"{password}\n")
        given = tmp_path / "kafka.properties"
        lines = [f"{key} = {value}\n" for key, value in properties.items()]
        given.write_text("".join([*lines, "sasl.password_FILE = password\n"]))
        async with relaying(dispatched, server.address, name, path=given) as relay:
            foreign["orders"].insert_one({"_id": 1})
            await relay.published(await last_token(foreign, client, database))
        marks = (await saved_state(client, database, name)).position.marks
        assert sum(mark.offset for mark in marks) == 1
        (tmp_path / "password").write_text("wrong")
        with pytest.raises(KafkaError, match=r"refuses the user|No broker of Kafka answers") as error:
            async with relaying(dispatched, server.address, name, path=given):
                pass
        assert "--kafka-config" in error.value.remedy
