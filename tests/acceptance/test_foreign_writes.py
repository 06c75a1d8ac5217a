"""The main job, as an operator sees it: each kind of foreign write, through the real command."""

import contextlib
import json

import pytest
from bson import ObjectId
from pymongo import DeleteOne, InsertOne, MongoClient, ReplaceOne, UpdateMany, UpdateOne

from dispatcher.embedded import embedded_mongo
from tests.support import daemon, eventually_sync

RECORDER = "tests.acceptance.apps.recorder:registry"
ID = ObjectId()

# (what is there before, the foreign client's call, the calls it must lead to)
KNOWN = {"name": "Ada", "age": 1}
WRITES = {
    "insert_one": (None, lambda c: c.insert_one({"_id": ID, **KNOWN}), [("post_save", {"created": True})]),
    "insert_many": (None, lambda c: c.insert_many([{"_id": ID, **KNOWN}]), [("post_save", {"created": True})]),
    "update_one": (
        KNOWN,
        lambda c: c.update_one({"_id": ID}, {"$set": {"age": 2}}),
        [("post_update", {"update_fields": ["age"]})],
    ),
    "update_many": (
        KNOWN,
        lambda c: c.update_many({}, {"$inc": {"age": 1}, "$set": {"name": "Bea"}}),
        [("post_update", {"update_fields": ["age", "name"]})],
    ),
    "update with a pipeline": (
        KNOWN,
        lambda c: c.update_one({"_id": ID}, [{"$set": {"age": {"$add": ["$age", 1]}}}]),
        [("post_update", {"update_fields": ["age"]})],
    ),
    "find_one_and_update": (
        KNOWN,
        lambda c: c.find_one_and_update({"_id": ID}, {"$unset": {"age": ""}}),
        [("post_update", {"update_fields": ["age"]})],
    ),
    "replace_one": (
        KNOWN,
        lambda c: c.replace_one({"_id": ID}, {"name": "Bea"}),
        [("post_save", {"created": False})],
    ),
    "delete_one": (KNOWN, lambda c: c.delete_one({"_id": ID}), [("post_delete", {})]),
    "delete_many": (KNOWN, lambda c: c.delete_many({}), [("post_delete", {})]),
    "upsert that inserts": (
        None,
        lambda c: c.update_one({"_id": ID}, {"$set": KNOWN}, upsert=True),
        [("post_save", {"created": True})],
    ),
    "upsert that updates": (
        KNOWN,
        lambda c: c.update_one({"_id": ID}, {"$set": {"age": 5}}, upsert=True),
        [("post_update", {"update_fields": ["age"]})],
    ),
    "bulk_write": (
        None,
        lambda c: c.bulk_write(
            [
                InsertOne({"_id": ID, **KNOWN}),
                UpdateOne({"_id": ID}, {"$set": {"age": 2}}),
                UpdateMany({"_id": ID}, {"$set": {"age": 3}}),
                ReplaceOne({"_id": ID}, {"name": "Bea"}),
                DeleteOne({"_id": ID}),
            ]
        ),
        [
            ("post_save", {"created": True}),
            ("post_update", {"update_fields": ["age"]}),
            ("post_update", {"update_fields": ["age"]}),
            ("post_save", {"created": False}),
            ("post_delete", {}),
        ],
    ),
    "an update that changes nothing": (KNOWN, lambda c: c.update_one({"_id": ID}, {"$set": {"age": 1}}), []),
}
KEYWORDS = {
    "post_save": {"sender", "instance", "created", "previous", "delivery"},
    "post_update": {"sender", "instance", "update_fields", "previous", "delivery"},
    "post_delete": {"sender", "instance", "delivery"},
}


@pytest.fixture
def record(mongo, database, tmp_path):
    """The environment of the recording application, and reading what it recorded."""
    path = tmp_path / "record"
    path.touch()

    def read():
        return [json.loads(line) for line in path.read_text().splitlines()]

    read.environment = {
        "RECORDER_URL": mongo.url,
        "RECORDER_GROUP": database,
        "RECORDER_FILE": str(path),
        "DISPATCHER_STATE_DATABASE": f"{database}_state",
    }
    return read


def test_each_kind_of_foreign_write_reaches_the_right_receiver(record, foreign, tmp_path):
    """One daemon for all of them: each write is followed by a marker in the other collection."""
    with daemon(RECORDER, cwd=tmp_path, **record.environment) as running:
        running.wait_started()
        for number, (name, (before, write, expected)) in enumerate(WRITES.items()):
            for collection in ("users", "orders"):
                foreign[collection].delete_many({})
            if before is not None:
                foreign["users"].insert_one({"_id": ID, **before})
            foreign["orders"].insert_one({"name": f"before {number}"})
            write(foreign["users"])
            foreign["orders"].insert_one({"name": f"after {number}"})
            calls = calls_between(record, number)
            assert [call["delivery"]["signal"] for call in calls] == [signal for signal, _ in expected], name
            for call, (signal, keywords) in zip(calls, expected, strict=True):
                assert set(call) == KEYWORDS[signal], name
                assert {key: call[key] for key in keywords} == keywords, name
                assert call["sender"] == "User"
                assert call["instance"]["id"] == str(ID)
                assert call["delivery"]["origin"] == "stream"
                assert call["delivery"]["receiver"].startswith("tests.acceptance.apps.recorder.")


def calls_between(record, number):
    """What users' receivers were called with between the two markers.

    Different documents are delivered concurrently, but this recorder never waits: calls keep commit order.
    """

    def marks():
        calls = record()
        names = [call["instance"].get("name") if call["sender"] == "Order" else None for call in calls]
        if f"after {number}" not in names:
            return None
        between = calls[names.index(f"before {number}") + 1 : names.index(f"after {number}")]
        return [[call for call in between if call["sender"] == "User"]]

    return eventually_sync(marks)[0]


def test_it_survives_the_server(tmp_path):
    """The server dies and comes back: the daemon waits for it, and nothing of before or after is lost."""
    data = tmp_path / "data"
    record = tmp_path / "record"
    record.touch()
    with contextlib.ExitStack() as stack:
        with embedded_mongo(directory=data) as first, MongoClient(first.url) as client:
            environment = {"RECORDER_URL": first.url, "RECORDER_GROUP": "outage", "RECORDER_FILE": str(record)}
            running = stack.enter_context(daemon(RECORDER, cwd=tmp_path, **environment))
            running.wait_started()
            client["outage"]["users"].insert_one({"name": "before"})
            eventually_sync(lambda: "before" in record.read_text())
        eventually_sync(lambda: running.lines("stream.broken"), within=30)
        with embedded_mongo(directory=data, port=first.port) as second, MongoClient(second.url) as client:
            client["outage"]["users"].insert_one({"name": "after"})
            eventually_sync(lambda: "after" in record.read_text(), within=40)
            assert running.terminate() == 0
    names = [json.loads(line)["instance"]["name"] for line in record.read_text().splitlines()]
    assert names == ["before", "after"]
