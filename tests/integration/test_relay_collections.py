"""Collections of a relay: added, renamed, dropped; and a topic with many partitions."""

from collections import defaultdict

import pytest

import mongoz
from dispatcher.embedded.broker import EmbeddedBroker
from tests.integration.relaying import accepted, last_token, make_document, relaying, saved_state

pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")


async def test_nothing_is_lost_when_a_collection_is_added(
    order, dispatched, foreign, broker: EmbeddedBroker, client, database, name
) -> None:
    topic = f"mongoz.{name}"

    def write(numbers: range) -> None:
        for number in numbers:
            foreign["orders"].insert_one({"_id": number})
            foreign["customers"].insert_one({"_id": number})

    with foreign.watch() as stream:
        async with relaying(dispatched, broker.address, name) as relay:
            write(range(20))
            await relay.published(await last_token(foreign, client, database))
        write(range(20, 40))  # no relay runs
        before = await saved_state(client, database, name)
        make_document(dispatched, database, "customers")
        async with relaying(dispatched, broker.address, name) as relay:
            write(range(40, 60))
            await relay.published(await last_token(foreign, client, database))
        events = [next(stream) for _ in range(120)]
    state = await saved_state(client, database, name)
    tokens = defaultdict(set)
    for one in accepted(broker.address, topic):
        tokens[one.event["ns"]["coll"]].add(one.event["_id"]["_data"])
    wanted = defaultdict(set)
    for event in events:
        wanted[event["ns"]["coll"]].add(event["_id"]["_data"])
    since = state.since[f"{database}.customers"]
    assert tokens["orders"] == wanted["orders"]
    assert {one for one in wanted["customers"] if one > since} <= tokens["customers"]
    assert since > before.position.token
    assert len({one for one in wanted["customers"] if one > since}) >= 20


async def test_a_collection_that_is_left_out_and_added_again_is_published_from_the_second_time(
    order, dispatched, mongo, foreign, broker: EmbeddedBroker, client, database, name
) -> None:
    collection = f"{database}.orders"
    async with mongoz.Registry(mongo.url, dispatched=database) as other:
        make_document(other, database, "customers")
        async with relaying(dispatched, broker.address, name):
            first = (await saved_state(client, database, name)).since[collection]
        async with relaying(other, broker.address, name) as relay:
            foreign["orders"].insert_one({"_id": "not published"})
            missing = await last_token(foreign, client, database)
            await relay.published(missing)
            assert collection not in (await saved_state(client, database, name)).since
        async with relaying(dispatched, broker.address, name) as relay:
            foreign["orders"].insert_one({"_id": "published"})
            await relay.published(await last_token(foreign, client, database))
    assert (await saved_state(client, database, name)).since[collection] >= missing > first
    assert [one.event["documentKey"]["_id"] for one in accepted(broker.address, f"mongoz.{name}")] == ["published"]


async def test_the_relay_goes_on_when_collections_are_renamed_and_dropped(
    order, dispatched, foreign, broker: EmbeddedBroker, client, database, name
) -> None:
    async with relaying(dispatched, broker.address, name) as relay:
        for step in range(4):
            foreign["orders"].insert_one({"_id": step})
            if step == 0:
                foreign["orders"].rename("archive")
            elif step == 1:
                foreign["archive"].rename("orders", dropTarget=True)
            elif step == 2:
                foreign["orders"].drop()
            else:
                foreign.client.drop_database(database)  # the server closes the stream
        foreign["orders"].insert_one({"_id": "last"})
        await relay.published(await last_token(foreign, client, database))
    read = accepted(broker.address, f"mongoz.{name}")
    whole = [one for one in read if one.event["operationType"] != "insert"]
    assert [one.event["operationType"] for one in whole] == ["rename", "rename", "drop", "drop", "dropDatabase"]
    assert {one.partition for one in whole} == {0}
    found = {str(one.event["documentKey"]["_id"]) for one in read if one.event["operationType"] == "insert"}
    assert found == {"0", "1", "2", "3", "last"}
    assert relay.stats.gaps == 0  # readers decide whether these events are gaps


async def test_a_topic_can_have_256_partitions(
    order, dispatched, foreign, broker: EmbeddedBroker, client, database, name
) -> None:
    for round_ in range(2):
        async with relaying(dispatched, broker.address, name, partitions=256) as relay:
            foreign["orders"].insert_many([{"_id": f"{round_}/{i}"} for i in range(500)])
            foreign["orders"].update_many({}, {"$set": {"round": round_}})
            await relay.published(await last_token(foreign, client, database))
    position = (await saved_state(client, database, name)).position
    read = accepted(broker.address, f"mongoz.{name}")
    assert len(position.marks) == 256
    assert sum(mark.offset for mark in position.marks) == len(read) == 2_500
    assert len({one.partition for one in read}) > 200
    operations = defaultdict(list)
    for one in read:
        operations[one.event["documentKey"]["_id"]].append(one.event["operationType"])
    assert {tuple(one) for one in operations.values()} == {("insert", "update", "update"), ("insert", "update")}


async def test_the_relay_resumes_at_the_time_of_a_position_whose_event_it_does_not_read_any_more(
    order, dispatched, mongo, foreign, broker: EmbeddedBroker, client, database, name
) -> None:
    """The server can't resume a stream after an event that the stream does not return."""
    async with relaying(dispatched, broker.address, name) as relay:
        with foreign.watch() as stream:
            foreign["orders"].insert_one({"_id": "published"})
            event = next(stream)["_id"]["_data"]
        await relay.published(event)
    relays = client[f"{database}_state"]["relays"]
    changed = await relays.update_one({"_id": f"mongoz.{name}"}, {"$set": {"token": event}})
    assert changed.matched_count == 1
    async with mongoz.Registry(mongo.url, dispatched=database) as other:
        make_document(other, database, "customers")
        async with relaying(other, broker.address, name) as relay:
            foreign["customers"].insert_one({"_id": "later"})
            await relay.published(await last_token(foreign, client, database))
    read = [one.event["documentKey"]["_id"] for one in accepted(broker.address, f"mongoz.{name}")]
    assert read == ["published", "later"]
