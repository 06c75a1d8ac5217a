"""The relay publishes the changes of a change stream to a topic."""

import json
from collections import defaultdict
from typing import Any

import bson
import pytest
from bson import Decimal128, Int64, ObjectId

import mongoz
from dispatcher.core.resume_tokens import token_time
from dispatcher.core.state import State
from dispatcher.embedded.broker import EmbeddedBroker
from dispatcher.exceptions import HistoryLost, PositionError, TopicError
from dispatcher.kafka.envelope import large_event_in
from dispatcher.kafka.large_events import LargeEvents
from dispatcher.kafka.relay_state import RelayStore
from dispatcher.operate.status import read_status
from dispatcher.relay.ledger import RecordLedger
from mongoz.stamps import Call, Stamp
from tests.integration.relaying import Read, accepted, last_token, make_document, relaying, saved_state
from tests.support import eventually, group_of

pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")


@pytest.fixture
def customer(dispatched: mongoz.Registry, database: str) -> Any:
    return make_document(dispatched, database, "customers")


def by_document(read: list[Read]) -> dict[tuple[str, str], list[Any]]:
    """The operations of each document, in the order of the topic."""
    found = defaultdict(list)
    for one in read:
        event = one.event
        value = (event.get("fullDocument") or event.get("updateDescription", {}).get("updatedFields") or {}).get(
            "number"
        )
        key = (event["ns"]["coll"], repr(event["documentKey"]["_id"]))
        found[key].append((event["operationType"], value))
    return dict(found)


async def test_all_changes_of_two_collections_arrive_in_order(
    order, customer, dispatched, foreign, broker: EmbeddedBroker, client, database, name
) -> None:
    async with relaying(dispatched, broker.address, name) as relay:
        for round_ in range(5):
            for collection in ("orders", "customers", "others"):
                foreign[collection].insert_many([{"_id": f"{round_}/{i}", "number": 0} for i in range(20)])
        for number in range(1, 6):
            foreign["orders"].update_many({"number": number - 1}, {"$set": {"number": number}})
        foreign["customers"].delete_many({})
        await relay.published(await last_token(foreign, client, database))
    found = by_document(accepted(broker.address, f"mongoz.{name}"))
    expected: dict[tuple[str, str], list[Any]] = {}
    for round_ in range(5):
        for i in range(20):
            updates = [("update", number) for number in range(1, 6)]
            expected["orders", repr(f"{round_}/{i}")] = [("insert", 0), *updates]
            expected["customers", repr(f"{round_}/{i}")] = [("insert", 0), ("delete", None)]
    assert found == expected
    assert relay.stats.read == 800


async def test_the_server_computes_the_partition(
    order, dispatched, foreign, broker: EmbeddedBroker, client, database, name
) -> None:
    numbers = [1, Int64(1), 1.0, Decimal128("1")]
    async with relaying(dispatched, broker.address, name) as relay:
        for number in numbers:
            foreign["orders"].insert_one({"_id": number, "number": 7})
            foreign["orders"].delete_one({"_id": number})
        foreign["orders"].insert_many([{"_id": i} for i in range(2, 40)])
        await relay.published(await last_token(foreign, client, database))
    read = accepted(broker.address, f"mongoz.{name}")
    same = {one.partition for one in read if one.event.get("fullDocument", {}).get("number") == 7}
    deleted = {one.partition for one in read if one.event["operationType"] == "delete"}
    assert same == deleted
    assert len(same) == 1
    pipeline = [{"$project": {"hash": {"$toHashedIndexKey": "$_id"}}}]
    hashes = {repr(one["_id"]): one["hash"] for one in foreign["orders"].aggregate(pipeline)}
    others = {repr(one.event["documentKey"]["_id"]): one.partition for one in read}
    assert {id_: abs(hash_) % 4 for id_, hash_ in hashes.items()} == {id_: others[id_] for id_ in hashes}
    assert len(set(others.values())) == 4


async def test_the_event_has_the_bytes_of_the_server_and_a_readable_key(
    order, dispatched, foreign, broker: EmbeddedBroker, client, database, name
) -> None:
    ids = [ObjectId(), "é" * 10, 5, Int64(6), {"a": 1}, "x" * 2_000]
    async with await client[database].watch() as stream, relaying(dispatched, broker.address, name) as relay:
        foreign["orders"].insert_many([{"_id": id_} for id_ in ids])
        await relay.published(await last_token(foreign, client, database))
        events = [await stream.next() for _ in ids]
    read = accepted(broker.address, f"mongoz.{name}")
    assert sorted((one.event for one in read), key=lambda one: one["_id"]["_data"]) == events
    keys = {repr(one.event["documentKey"]["_id"]): one.key for one in read}
    assert keys[repr(ids[-1])] is None
    assert json.loads(keys[repr(ids[0])] or "") == {"$oid": str(ids[0])}
    assert [json.loads(keys[repr(id_)] or "") for id_ in ids[1:5]] == ids[1:5]


async def test_a_delete_has_the_stamp_of_its_marker(
    order, dispatched, foreign, broker: EmbeddedBroker, client, database, name, mongo
) -> None:
    async with relaying(dispatched, broker.address, name) as relay:
        one = await order.objects.create(number=1)
        await one.delete()
        for number in range(30):
            await order.objects.create(number=number)
        await order.objects.filter().delete()
        foreign["orders"].insert_one({"_id": 1})
        foreign["orders"].delete_one({"_id": 1})
        await relay.published(await last_token(foreign, client, database))
    read = accepted(broker.address, f"mongoz.{name}")
    deletes = [each for each in read if each.event["operationType"] == "delete"]
    stamps = [Stamp.unpack(each.envelope.stamp) for each in deletes if each.event["documentKey"]["_id"] != 1]
    assert len(stamps) == 31
    assert all(stamp is not None and stamp.call is Call.DELETED and stamp.group == database for stamp in stamps)
    assert len({stamp.token for stamp in stamps if stamp is not None}) == 31
    assert [each.envelope.stamp for each in deletes if each.event["documentKey"]["_id"] == 1] == [b""]
    assert {each.event["operationType"] for each in read} == {"insert", "delete"}  # no markers


async def test_no_position_lies_between_a_marker_and_its_delete(
    order, dispatched, broker: EmbeddedBroker, client, database, foreign, name, monkeypatch
) -> None:
    passed = []
    pass_to = RecordLedger._pass_to

    def recorded(self: RecordLedger, token: str) -> None:
        passed.append(token)
        pass_to(self, token)

    monkeypatch.setattr(RecordLedger, "_pass_to", recorded)
    async with relaying(dispatched, broker.address, name, batch_size=3) as relay:
        for _ in range(3):
            await order.objects.bulk_create([order(number=number) for number in range(100)])
            await order.objects.filter().delete()
        await relay.published(await last_token(foreign, client, database))
    deletes = [
        one.event for one in accepted(broker.address, f"mongoz.{name}") if one.event["operationType"] == "delete"
    ]
    times = {event["clusterTime"] for event in deletes}
    last = {time: max(e["_id"]["_data"] for e in deletes if e["clusterTime"] == time) for time in times}
    assert len(deletes) == 300
    assert len(passed) > 50
    assert [token for token in passed if token < last.get(token_time(token), "")] == []


async def test_a_restart_continues_at_the_position(
    order, dispatched, foreign, broker: EmbeddedBroker, client, database, name
) -> None:
    async with relaying(dispatched, broker.address, name) as relay:
        foreign["orders"].insert_one({"_id": 1})
        await relay.published(await last_token(foreign, client, database))
    first = await saved_state(client, database, name)
    foreign["orders"].insert_one({"_id": 2})
    async with relaying(dispatched, broker.address, name) as relay:
        foreign["orders"].insert_one({"_id": 3})
        await relay.published(await last_token(foreign, client, database))
    second = await saved_state(client, database, name)
    read = accepted(broker.address, f"mongoz.{name}")
    assert sorted(one.event["documentKey"]["_id"] for one in read) == [1, 2, 3]
    assert second.term > first.term
    assert second.position.token > first.position.token
    # A term is at least the server's time in seconds, so it grows even if the document of the relay is deleted.
    assert first.term > 1_500_000_000
    for mark in second.position.marks:
        assert mark.term in (0, first.term, second.term)
    assert second.since == {f"{database}.orders": second.since[f"{database}.orders"]}


async def test_a_new_collection_is_published_from_a_token_after_the_saved_position(
    order, dispatched, foreign, broker: EmbeddedBroker, client, database, name
) -> None:
    async with relaying(dispatched, broker.address, name) as relay:
        foreign["orders"].insert_one({"_id": 1})
        await relay.published(await last_token(foreign, client, database))
    first = await saved_state(client, database, name)
    make_document(dispatched, database, "customers")
    foreign["orders"].insert_one({"_id": 2})
    async with relaying(dispatched, broker.address, name) as relay:
        foreign["customers"].insert_one({"_id": 3})
        await relay.published(await last_token(foreign, client, database))
    second = await saved_state(client, database, name)
    assert second.since[f"{database}.orders"] == first.since[f"{database}.orders"]
    assert second.since[f"{database}.customers"] > first.position.token
    read = accepted(broker.address, f"mongoz.{name}")
    assert sorted(one.event["documentKey"]["_id"] for one in read) == [1, 2, 3]


async def test_a_document_with_a_very_long_key_stops_nothing(
    order, dispatched, foreign, broker: EmbeddedBroker, client, database, name
) -> None:
    key = "k" * 900_000  # the token has twice as many characters, which is more than a record may have
    async with relaying(dispatched, broker.address, name, partitions=1) as relay:
        foreign["orders"].insert_many([{"_id": 1}, {"_id": key}, {"_id": 2}])
        await relay.published(await last_token(foreign, client, database))
    first, large, last = accepted(broker.address, f"mongoz.{name}")
    assert [one.event["documentKey"]["_id"] for one in (first, last)] == [1, 2]
    files = LargeEvents(State(client, f"{database}_state"), f"mongoz.{name}")
    event = await files.read(large_event_in(large.envelope))
    assert event is not None
    assert bson.decode(event)["documentKey"]["_id"] == key


async def test_a_drop_is_in_the_first_partition(
    order, dispatched, foreign, broker: EmbeddedBroker, client, database, name
) -> None:
    async with relaying(dispatched, broker.address, name) as relay:
        foreign["orders"].insert_one({"_id": 1})
        foreign["orders"].drop()
        foreign["other"].insert_one({"_id": 1})
        await relay.published(await last_token(foreign, client, database))
    read = accepted(broker.address, f"mongoz.{name}")
    [drop] = [one for one in read if one.event["operationType"] == "drop"]
    assert drop.partition == 0


async def test_a_topic_with_another_number_of_partitions_is_refused(
    order, dispatched, broker: EmbeddedBroker, name
) -> None:
    async with relaying(dispatched, broker.address, name, partitions=4):
        pass
    with pytest.raises(TopicError, match=r"--partitions is 8, and the topic .* has 4 partitions"):
        async with relaying(dispatched, broker.address, name, partitions=8):
            pass
    async with relaying(dispatched, broker.address, name, partitions=None):
        pass


async def test_another_topic_of_the_same_name_is_lost_history(
    order, dispatched, foreign, broker: EmbeddedBroker, client, database, name
) -> None:
    async with relaying(dispatched, broker.address, name):
        pass
    relays = client[f"{database}_state"]["relays"]
    await relays.update_one({}, {"$set": {"_id": f"mongoz.{name}", "topic_id": "another"}})
    with pytest.raises(HistoryLost, match="was deleted, and created again"):
        async with relaying(dispatched, broker.address, name):
            pass
    async with relaying(dispatched, broker.address, name, on_history_lost="resume") as relay:
        foreign["orders"].insert_one({"_id": 1})
        await relay.published(await last_token(foreign, client, database))
    assert (await saved_state(client, database, name)).topic.id != "another"
    [gap] = await client[f"{database}_state"]["gaps"].find().to_list()
    assert (gap["kind"], "was deleted and created again" in gap["text"]) == ("history_lost", True)


async def test_operators_see_a_relay_as_a_group(
    order, dispatched, foreign, broker: EmbeddedBroker, client, database, name
) -> None:
    async with relaying(dispatched, broker.address, name) as relay:
        foreign["orders"].insert_one({"_id": 1})
        await relay.published(await last_token(foreign, client, database))
        await eventually(lambda: relay.stats.saves)
        status = await read_status(group_of(client, database, f"mongoz.{name}"))
        [partition] = status.partitions
        [member] = status.alive
        assert partition.owner == member.id
        assert relay.service.observer.not_ready() == []
        assert relay.service.observer.snapshot().stats.read == 1


async def test_a_process_with_an_older_term_can_neither_save_nor_take_the_next_term(
    order, dispatched, broker: EmbeddedBroker, client, database, name
) -> None:
    async with relaying(dispatched, broker.address, name):
        pass
    store = RelayStore(State(client, f"{database}_state"), f"mongoz.{name}")
    state = await store.load()
    assert state is not None
    later = state.position._replace(token=f"82FF{state.position.token[4:]}")
    assert not await store.save(state.term - 1, later)
    assert await store.take_term(state.topic, state.since, term=state.term - 1, position=later) is None
    assert await store.load() == state
    taken = await store.take_term(state.topic, state.since, term=state.term)
    assert taken is not None
    assert taken == state._replace(term=taken.term)
    assert taken.term > state.term
    await store.begin(state.topic, later, {})
    assert await store.load() == taken


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"term": "x"}, "lacks one of term"),
        ({"partitions": [{"offset": 1}]}, r"has {'offset': 1} as partitions.0"),
        ({"collections": [1]}, "has 1 in collections"),
        ({"token": "x"}, "is no resume token"),
    ],
)
async def test_a_malformed_state_of_a_relay_is_named(
    client, database, name, change: dict[str, Any], text: str
) -> None:
    state = State(client, f"{database}_state")
    document = {
        "_id": f"mongoz.{name}",
        "term": 1,
        "cluster": "c",
        "topic_id": "t",
        "token": "82" + "0" * 20,
        "fingerprint": "",
        "partitions": [{"offset": 0, "term": 0, "number": -1}],
        "collections": [],
    }
    await state.relays.insert_one({**document, **change})
    with pytest.raises(PositionError, match=text):
        await RelayStore(state, f"mongoz.{name}").load()
