"""A dead letter has all data for a new delivery, and is written before the position moves."""

import uuid
from typing import Any

import bson
import pytest
from bson import ObjectId, Timestamp
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument

from dispatcher.core.stats import Stats
from dispatcher.parking.letters import LetterStore
from dispatcher.parking.record import Record
from mongoz.core.signals import post_delete, post_save, post_update
from tests.integration.deliveries import IMAGES, State, actions, decoded
from tests.support import dispatching, eventually, group_of

STANDARD: CodecOptions[dict[str, Any]] = CodecOptions(uuid_representation=UuidRepresentation.STANDARD)


@pytest.fixture
def state(foreign: Any) -> State:
    return State(foreign)


def as_stored(row: dict[str, Any]) -> dict[str, Any]:
    """The row as a client without UUID support reads it."""
    return decoded(bson.encode(row, codec_options=STANDARD))


def break_on(document: Any, *signals: Any, name: str = "broken", **options: Any) -> list[Any]:
    """Connects a receiver that always fails; returns its deliveries."""
    got: list[Any] = []

    async def broken(sender: Any, delivery: Any, **kwargs: Any) -> None:
        got.append(delivery)
        raise LookupError("no luck")

    for connect in signals:
        connect(document, name=name, retry=1, **options)(broken)
    return got


async def test_a_dead_letter_has_no_secret_of_an_error(account, foreign, dispatched, state, capsys):
    @post_save(account, name="leaky", retry=1)
    async def leaky(sender: Any, **kwargs: Any) -> None:
        try:
            raise ValueError("mongodb://me:hunter 2hunter2@db.example.org/shop is down")
        except ValueError as error:
            raise LookupError("login with password='hunter2' failed, token=hunter2") from error

    async with dispatching(dispatched):
        foreign["accounts"].insert_one({"name": "Ada"})
        letter = await state.letter()
    assert "hunter2" not in str(letter)
    assert "hunter2" not in capsys.readouterr().err
    assert letter["error"]["message"] == "LookupError: login with password='...' failed, token=..."
    assert "mongodb://...@db.example.org/shop is down" in letter["error"]["traceback"]


async def test_a_dead_letter_describes_the_change_the_receiver_and_the_error(
    account, foreign, dispatched, database, state, capsys
):
    said = actions(capsys)
    foreign.create_collection("accounts", **IMAGES)
    id_ = foreign["accounts"].insert_one({"name": "Ada", "amount": 1}).inserted_id
    break_on(account, post_update)
    got = break_on(account, post_delete, name="broken-too")
    async with dispatching(dispatched):
        foreign["accounts"].update_one({"_id": id_}, {"$set": {"name": "Bea"}, "$unset": {"amount": 1}})
        letter = await state.letter()
        foreign["accounts"].delete_one({"_id": id_})
        _, deleted = await state.wait(2)
    receiver = account.signals.post_update.receivers[0]
    assert letter["_id"].startswith(f"{letter['delivery_id']}:{receiver.id.hex()}:")
    assert (letter["receiver"], letter["receiver_id"]) == ("broken", receiver.id.hex())
    assert (letter["group"], letter["term"], letter["hops"]) == (database, 1, 0)
    assert (letter["signal"], letter["created"], letter["operation"]) == ("post_update", False, "update")
    assert letter["document"].endswith("make_account.<locals>.Account")
    assert (letter["namespace"], letter["key"]) == ({"db": database, "coll": "accounts"}, id_)
    assert (letter["reason"], letter["attempts"], letter["image"]) == ("failed", 1, "post")
    assert letter["error"]["type"] == "builtins.LookupError"
    assert letter["error"]["message"] == "LookupError: no luck"
    assert "in broken" in letter["error"]["traceback"]
    assert letter["first_attempt_at"] <= letter["last_attempt_at"]
    assert isinstance(letter["cluster_time"], Timestamp)
    assert letter["wall_time"] is not None
    assert letter["token"].startswith("82")
    assert sorted(letter["update_fields"]) == ["amount", "name"]
    assert decoded(letter["parts"]["document"]) == {"_id": id_, "name": "Bea"}
    assert decoded(letter["parts"]["before"]) == {"_id": id_, "name": "Ada", "amount": 1}
    assert deleted["delivery_id"] == got[0].id
    assert decoded(deleted["parts"]["before"]) == {"_id": id_, "name": "Bea"}
    assert set(deleted["parts"]) == {"before"}
    assert said().count("delivery.dead_lettered") == 2


async def test_a_dead_letter_keeps_the_looked_up_document(account, foreign, dispatched, state):
    break_on(account, post_update)
    id_ = foreign["accounts"].insert_one({"name": "Ada"}).inserted_id
    async with dispatching(dispatched):
        foreign["accounts"].update_one({"_id": id_}, {"$set": {"amount": 7}})
        letter = await state.letter()
    assert letter["image"] == "current"
    assert decoded(letter["parts"]["document"]) == {"_id": id_, "name": "Ada", "amount": 7}


async def test_a_delivery_that_is_repeated_after_a_crash_overwrites_its_dead_letter(
    account, foreign, dispatched, state
):
    got = break_on(account, post_save)
    async with dispatching(dispatched):
        before = state.token
        foreign["accounts"].insert_one({"_id": uuid.uuid4().hex, "name": "Ada"})  # invalid: the id is no ObjectId
        foreign["accounts"].insert_one({"name": "Bea"})
        await state.wait(2)
    state.rewind(before)
    async with dispatching(dispatched):
        await eventually(lambda: all(letter["term"] == 2 for letter in state.letters))
    assert len(state.letters) == 2
    assert [delivery.id for delivery in got] == [got[0].id] * 2


async def test_the_position_waits_for_the_dead_letter(account, foreign, dispatched, state, capsys):
    said = actions(capsys)
    break_on(account, post_save)
    admin = foreign.client.admin
    failing = {"failCommands": ["findAndModify"], "errorCode": 112, "appName": "mongoz-dispatcher"}
    async with dispatching(dispatched) as running:
        admin.command("configureFailPoint", "failCommand", mode="alwaysOn", data=failing)
        try:
            foreign["accounts"].insert_one({"name": "Ada"})
            await eventually(lambda: said().count("dead_letter.not_written") >= 1)
            held = running.service.position
            foreign.client.drop_database(foreign.name)  # a change without receivers
            await eventually(lambda: running.stats.read >= 3)
            await eventually(lambda: said().count("dead_letter.not_written") >= 3)
            assert running.service.position == held
            assert running.stats.dead_letters == 0
        finally:
            admin.command("configureFailPoint", "failCommand", mode="off")
        await state.letter()
        await eventually(lambda: state.token > held)


async def test_an_invalid_document_has_a_dead_letter_per_receiver(account, foreign, dispatched, state):
    got = break_on(account, post_save, name="first")
    break_on(account, post_save, name="second", on_failure="block")
    break_on(account, post_save, name="unimportant", on_failure="drop")
    row = {"_id": ObjectId(), "name": 5, "kept": bson.Int64(3)}
    async with dispatching(dispatched) as running:
        foreign["accounts"].insert_one(row)
        letters = await state.wait(2)
    assert [letter["receiver"] for letter in letters] == ["first", "second"]
    assert {(letter["reason"], letter["attempts"]) for letter in letters} == {("invalid", 0)}
    assert all("name" in letter["error"]["message"] for letter in letters)
    assert decoded(letters[0]["parts"]["document"]) == row
    assert got == []
    assert (running.stats.invalid, running.stats.dead_letters) == (1, 2)


async def test_an_undecodable_event_is_kept_as_bytes(account, foreign, dispatched, state):
    seen: list[str] = []

    @post_save(account, name="seeing")
    async def seeing(sender, instance, **kwargs):
        seen.append(instance.name)

    row = bson.encode({"_id": 1, "name": "Ada", "at": bson.Int64(2**60)}).replace(b"\x12at\0", b"\x09at\0")
    async with dispatching(dispatched):
        foreign["accounts"].insert_one(RawBSONDocument(row))
        foreign["accounts"].insert_one({"name": "next"})
        letter = await state.letter()
        await eventually(lambda: seen)
    assert seen == ["next"]
    assert (letter["receiver"], letter["reason"], letter["key"]) == ("seeing", "undecodable", 1)
    assert letter["parts"]["document"] == row
    assert (letter["fault"]["path"], letter["fault"]["type"]) == ("at", "date")
    for said in ("'at' in the document after the change", "date", "out of range", "DATETIME_AUTO", "retry"):
        assert said in letter["error"]["message"]


async def test_dead_letters_can_hold_documents_of_nearly_16_mb(account, foreign, dispatched, client, state):
    """The document is stored in chunks. A second dead letter of the same delivery removes these chunks."""
    break_on(account, post_save)
    row = {"_id": ObjectId(), "name": "Ada", "blob": bytes(range(256)) * (15_900_000 // 256)}
    async with dispatching(dispatched):
        before = state.token
        foreign["accounts"].insert_one(row)
        letter = await state.letter()
        store = LetterStore(group_of(client, state.database.name.removesuffix("_state"), "any"), Stats())
        assert letter["files"].keys() == {"document"}
        parts = await store.parts(letter)
        assert parts["document"] == bson.encode(row)
        await eventually(lambda: state.token > before)
    small = {name: value for name, value in letter.items() if name not in ("parts", "files")}
    await store.keep(Record(small, {"document": bson.encode({"_id": 1})}))
    assert state.database["held.chunks"].count_documents({}) == 0
    assert decoded((await state.letter())["parts"]["document"]) == {"_id": 1}


async def test_dead_letters_can_hold_any_id(account, foreign, dispatched, state):
    break_on(account, post_save)
    ids = [uuid.uuid4(), {"a": [1, None]}, "x" * 200_000, bson.Decimal128("1.0"), bson.Int64(5)]
    rows = [{"_id": id_, "name": "Ada"} for id_ in ids]
    async with dispatching(dispatched):
        foreign["accounts"].insert_many(rows)
        letters = await state.wait(len(ids))
    for row in rows:
        (letter,) = [one for one in letters if decoded(one["parts"]["document"]) == as_stored(row)]
        if "key" in letter:
            assert letter["key"] == as_stored(row)["_id"]
        else:
            assert decoded(letter["parts"]["key"]) == {"": row["_id"]}
    assert sum("key" in letter for letter in letters) == len(ids) - 1
