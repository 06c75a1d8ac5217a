"""Each kind of foreign write reaches its receivers through the real command."""

import contextlib
import json

import pytest
from bson import ObjectId
from pymongo import DeleteOne, InsertOne, MongoClient, ReplaceOne, UpdateMany, UpdateOne

from dispatcher.embedded.server import embedded_mongo
from tests.support import daemon, eventually_sync

RECORDER = "tests.acceptance.apps.recorder:registry"
ID = ObjectId()

# (existing documents, the foreign client's call, the expected calls of receivers)
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
    """The environment of the recording application, and a reader of its records."""
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
    """One daemon serves all writes. Markers are inserts of the same document, so they keep their order."""
    users = foreign["users"]

    def mark(name):
        users.delete_many({})
        users.insert_one({"_id": ID, "name": name})

    with daemon(RECORDER, cwd=tmp_path, **record.environment) as running:
        running.wait_started()
        for number, (name, (before, write, expected)) in enumerate(WRITES.items()):
            mark(f"before {number}")
            users.delete_many({})
            setup = ["post_delete"]
            if before is not None:
                users.insert_one({"_id": ID, **before})
                setup.append("post_save")
            write(users)
            cleared = ["post_delete"] if users.count_documents({}) else []
            mark(f"after {number}")
            calls = calls_between(record, f"before {number}", f"after {number}")
            signals = [signal for signal, _ in expected]
            assert [call["delivery"]["signal"] for call in calls] == [*setup, *signals, *cleared], name
            calls = calls[len(setup) : len(setup) + len(expected)]
            for call, (signal, keywords) in zip(calls, expected, strict=True):
                assert set(call) == KEYWORDS[signal], name
                assert {key: call[key] for key in keywords} == keywords, name
                assert call["sender"] == "User"
                assert call["instance"]["id"] == str(ID)
                assert call["delivery"]["origin"] == "stream"
                assert call["delivery"]["receiver"].startswith("tests.acceptance.apps.recorder.")


def calls_between(record, first, last):
    """The calls of the receivers between the two marker inserts."""

    def marks():
        calls = record()
        # Only an insert can be a marker. A delete has no name, and an update may have the name of a later update.
        names = [call["instance"].get("name") if call.get("created") else None for call in calls]
        return [calls[names.index(first) + 1 : names.index(last)]] if last in names else None

    return eventually_sync(marks)[0]


@pytest.mark.slow
def test_a_daemon_survives_a_restart_of_the_server(tmp_path):
    """The daemon waits for the server. No change before or after the restart is lost."""
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
        eventually_sync(lambda: running.lines("stream.broken"))
        with embedded_mongo(directory=data, port=first.port) as second, MongoClient(second.url) as client:
            client["outage"]["users"].insert_one({"name": "after"})
            eventually_sync(lambda: "after" in record.read_text())
            assert running.terminate() == 0
    names = [json.loads(line)["instance"]["name"] for line in record.read_text().splitlines()]
    assert names == ["before", "after"]
