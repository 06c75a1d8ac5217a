"""Malformed documents of the state are skipped and named. Only a malformed position ends a dispatcher."""

import asyncio
import json
from datetime import datetime
from typing import Any

import bson
import pytest
from bson import Binary, Int64, ObjectId
from bson.raw_bson import RawBSONDocument
from pymongo import AsyncMongoClient
from typer.testing import CliRunner

from dispatcher.cli import app
from dispatcher.exceptions import MalformedLetter, PositionError
from dispatcher.operate.dead_letters import Wanted, outcomes, request_retry
from dispatcher.operate.status import read_status
from dispatcher.web.dashboard.letters import Letterbox
from mongoz.core.signals import post_save
from tests.books import book
from tests.integration.deliveries import make_account
from tests.support import dispatching, eventually, group_of

NOW = datetime(2026, 1, 1)
ASKED = {"partition": 0, "partitions": 1}


def undecodable(**fields: Any) -> RawBSONDocument:
    """A document with a date, a text and a binary value that no driver decodes."""
    raw = bson.encode({**fields, "text": "AAAA", "when": Int64(2**60), "old": Binary(b"1234", 0)})
    raw = raw.replace(b"AAAA", b"\xff\xfe\xff\xfe").replace(b"\x12when\0", b"\x09when\0")
    return RawBSONDocument(raw.replace(b"\x04\0\0\0\x001234", b"\x04\0\0\0\x021234"))


def malformed(group: str) -> dict[str, list[Any]]:
    """The malformed documents by collection."""
    letter = {"group": group, "receiver": "r", "signal": "post_save", "last_attempt_at": NOW, "reason": "failed"}
    return {
        "members": [
            {"_id": "pid", "group": group, "pid": "many", "seen_at": NOW},
            {"_id": "partitions", "group": group, "partitions": ["a", 1]},
            {"_id": "stats", "group": group, "stats": {"per_second": 5, "partitions": []}},
            {"_id": "receivers", "group": group, "receivers": [5], "lease_seconds": "long"},
            {"_id": "huge", "group": group, "pid": Int64(2**60), "boot": "a/b/1", "host": {}},
            undecodable(_id=ObjectId(), group=group),
        ],
        "controls": [
            {"_id": "everything?", "group": group, "kind": "pause"},
            {"_id": "pause", "group": group, "kind": "pause", "receiver_name": {"a": 1}, "since": "yesterday"},
            undecodable(_id="pause too", group=group, kind="pause"),
            {
                "_id": "run",
                "group": group,
                "kind": "run",
                "what": "backfill",
                "asked": {"partition": 0, "partitions": 1},
            },
            {"_id": "no run", "group": group, "kind": "run", "asked": 5},
        ],
        "gaps": [
            {"_id": "gap", "group": group, "kind": 5, "noted_at": {}},
            {"_id": "ns", "group": group, "namespace": 1},
        ],
        "claims": [
            {"_id": "no book", "group": group},
            book(group, 1, open=[1, 2, 3]),
            book(group, 2, released="none", host={}),
            book(group, 3, beat_at="yesterday"),
            undecodable(**book(group, 4)),
        ],
        "sessions": [{"_id": "no uuid", "group": group}, undecodable(_id=5, group=group, owner=None)],
        "held": [
            {"_id": ObjectId(), **letter, "retry_requested_at": NOW},
            {"_id": "error", **letter, "error": "text", "retry_requested_at": NOW},
            {"_id": "files", **letter, "parts": {}, "files": {"document": 10**9}, "retry_requested_at": NOW},
            {"_id": "receiver", **letter, "receiver": {"a": [1]}, "last_attempt_at": 5},
            undecodable(_id="undecodable", group=group, reason="failed", retry_requested_at=NOW),
            {"_id": "no lane", "group": group, "receiver": "steady", "due_at": NOW},
            {
                "_id": "head",
                "group": group,
                "receiver": "steady",
                "lane": "a",
                "state": "paused",
                "due_at": "soon",
            },
            {"_id": "state", "group": group, "receiver": "steady", "lane": "b", "state": 5, "due_at": NOW},
            {"_id": "odd", "group": group, "receiver": {"a": 1}, "lane": "c", "state": 5, "due_at": NOW},
            undecodable(_id="raw", group=group, receiver="steady", lane="d", state="blocked", due_at=NOW),
            {"_id": "follower", "group": group, "receiver": "steady", "lane": 5, "token": 5},
        ],
        "held.files": [{"_id": 5}],
    }


@pytest.fixture
def steady(dispatched, database) -> Any:
    account, got = make_account(dispatched, database), []

    @post_save(account, name="steady")
    async def steady(sender: Any, instance: Any, **kwargs: Any) -> None:
        got.append(instance.name)

    return got


@pytest.fixture
def spoil(foreign, database):
    """Writes all malformed documents."""

    def write() -> None:
        for name, documents in malformed(database).items():
            foreign.client[f"{database}_state"][name].insert_many(documents)

    return write


@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_a_dispatcher_continues_despite_malformed_state(steady, spoil, foreign, dispatched, database, when):
    if when == "before":
        spoil()
    async with dispatching(dispatched) as running:
        foreign["accounts"].insert_one({"name": "first"})
        await eventually(lambda: steady == ["first"])
        if when == "meanwhile":
            spoil()
        state = foreign.client[f"{database}_state"]
        asked = {"retry_requested_at": {"$exists": True}}
        await eventually(
            lambda: state["held"].count_documents(asked) == 0, within=30, what="all requests have an answer"
        )
        await asyncio.sleep(1.5)  # every part of the dispatcher reads the state once a second
        foreign["accounts"].insert_one({"name": "second"})
        await eventually(lambda: steady == ["first", "second"])
        assert not running.task.done()
    answered = state["held"].find({"retry_refused": {"$exists": True}}, {"retry_refused": True})
    refused = {str(one["_id"]): one["retry_refused"]["text"] for one in answered}
    assert "1000000000" in refused["files"]
    assert len(refused) == 4


@pytest.mark.parametrize(
    ("field", "value"), [("owner", 5), ("term", "one"), ("lease_seconds", -1), ("partitions", 7)]
)
async def test_a_malformed_position_ends_a_running_dispatcher_with_an_error_that_names_the_position(
    steady, foreign, dispatched, database, field, value
):
    positions = foreign.client[f"{database}_state"]["positions"]
    async with dispatching(dispatched, partitions=2, lease=1) as running:
        positions.update_one({"_id": f"{database}:1"}, {"$set": {field: value}})
        await eventually(running.task.done)
        with pytest.raises(PositionError, match=f"'{database}:1'.*{value!r}"):
            await running.task


async def test_a_malformed_token_ends_the_dispatcher_that_claims_the_partition(
    steady, foreign, dispatched, database
):
    """The holder of a partition knows the position, so it does not read the malformed token."""
    positions = foreign.client[f"{database}_state"]["positions"]
    async with dispatching(dispatched, partitions=2, lease=1) as running:
        lease = running.service.held[1]._checkpoint.lease
        elsewhere = {"owner": "elsewhere", "boot": None, "token": "nonsense"}
        positions.update_one({"_id": f"{database}:1"}, {"$set": elsewhere, "$inc": {"term": 1}})
        await eventually(lease.lost.is_set)
        # The lease of `elsewhere` ends, and this dispatcher claims the partition.
        await eventually(running.task.done)
        with pytest.raises(PositionError, match=f"'{database}:1'.*'nonsense' as token, not a resume token"):
            await running.task


async def test_the_status_skips_and_names_malformed_documents(spoil, mongo, database):
    spoil()
    async with AsyncMongoClient(mongo.url) as client:
        seen = await read_status(group_of(client, database))
        assert json.dumps(seen.as_dict(), default=str)
    named = {(one.collection.partition(".")[2], one.id) for one in seen.misfits}
    claims = [("claims", repr(id_)) for id_ in ("no book", *(f"{number:016x}" for number in (1, 2, 3)))]
    expected = [("members", "'pid'"), ("controls", "'everything?'"), ("gaps", "'gap'"), *claims]
    for collection, id_ in expected:
        assert (collection, id_) in named
    pid = next(one for one in seen.misfits if one.id == "'pid'")
    assert "pid" in pid.problem
    assert "'many'" in pid.problem
    assert "Fix it or delete it" in pid.remedy
    assert (seen.paused, seen.alive) == ([], [])


async def test_commands_and_dashboard_skip_malformed_documents(spoil, mongo, foreign, database):
    spoil()
    foreign.client[f"{database}_state"]["positions"].insert_one(
        {"_id": database, "group": database, "partitions": 1}
    )
    place = ["--url", mongo.url, "--group", database, "--state-database", f"{database}_state"]

    def say(*arguments: str) -> Any:
        return CliRunner().invoke(app, [*arguments, *place])

    status = await asyncio.to_thread(say, "status")
    assert status.exit_code == 0, status.output
    assert "Malformed documents" in status.stdout
    listed = await asyncio.to_thread(say, "dead-letters", "list", "--json")
    assert listed.exit_code == 0, listed.output
    assert "is malformed" in listed.stderr
    assert {one["_id"] for one in json.loads(listed.stdout)} == {"files", "undecodable"}
    shown = await asyncio.to_thread(say, "dead-letters", "show", "receiver")
    # The command prints the error, and exits with the code of the error.
    assert isinstance(shown.exception, MalformedLetter)
    assert "is malformed: receiver" in str(shown.exception)
    async with AsyncMongoClient(mongo.url) as client:
        letterbox = Letterbox(group_of(client, database))
        page = await letterbox.page(Wanted(), None)
        assert json.dumps(page, default=str)
        # The page does not read the errors of dead letters, so a malformed error is no misfit.
        assert len(page["misfits"]) == 2
        asked = await request_retry(group_of(client, database), ["undecodable"])
        assert [one.result async for one in outcomes(group_of(client, database), asked, within=0)] == ["waiting"]
