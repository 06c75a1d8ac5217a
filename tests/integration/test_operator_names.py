"""Operators name dead letters by short ids, and receivers by known names."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from pymongo import AsyncMongoClient
from typer.testing import CliRunner

from dispatcher.cli import app
from dispatcher.core.state import Group, State
from dispatcher.core.stats import Stats
from dispatcher.exceptions import DispatcherError, ExitCode, UnknownLetter
from dispatcher.operate.dead_letters import Wanted, ids_of, letters_of, resolve
from dispatcher.parking.letters import LetterStore
from dispatcher.parking.record import Record, short_id
from dispatcher.parking.store import HeldStore

DELIVERY = "57135bc4c0aa57135bc4c0aa"


@pytest.fixture
async def kept(mongo, database) -> AsyncIterator[Group]:
    async with AsyncMongoClient(mongo.url) as client:
        yield Group(State(client, f"{database}_state"), database)


def id_of(receiver: int) -> str:
    return f"{DELIVERY}:{receiver:016x}:shop.User"


def fields(group: str, receiver: int, **changes: Any) -> dict[str, Any]:
    at = datetime.now(UTC)
    return {
        "_id": id_of(receiver),
        "group": group,
        "receiver": f"shop.receiver{receiver}",
        "delivery_id": DELIVERY,
        "last_attempt_at": at,
        "token": "82",
        "state": "dead",
        "reason": "failed",
        **changes,
    }


async def test_dead_letters_of_one_change_have_different_short_ids(kept):
    store = LetterStore(kept, Stats())
    for receiver in range(20):
        await store.keep(Record(fields(kept.name, receiver), {}))
    ids = [short_id(id_of(receiver)) for receiver in range(20)]
    assert len({id_[:6] for id_ in ids}) == 20
    for receiver, id_ in enumerate(ids):
        for text in (id_, id_[:6], id_of(receiver), id_of(receiver)[:-3]):
            assert await resolve(kept, [text]) == [id_of(receiver)]
    with pytest.raises(UnknownLetter, match=f"Several dead letters begin with '{DELIVERY}'") as raised:
        await resolve(kept, [DELIVERY])
    assert "(shop.receiver" in raised.value.message
    named = raised.value.message.rpartition(": ")[2].split(" ")[0]
    assert named in ids
    for nobody in ("", "nothing", ids[0] + "0"):
        with pytest.raises(UnknownLetter, match="has no dead letter"):
            await resolve(kept, [nobody])
    assert "short_id" not in (await letters_of(kept, Wanted(), 1))[0]


async def test_a_rewritten_dead_letter_keeps_its_short_id(kept):
    store = LetterStore(kept, Stats())
    for retries in (0, 1):
        await store.keep(Record(fields(kept.name, 1, retries=retries), {}))
    (found,) = await kept.state.database.held.find().to_list()
    assert (found["short_id"], found["retries"]) == (short_id(id_of(1)), 1)


async def test_dead_letters_of_earlier_versions_are_found(kept, foreign):
    state = foreign.client[kept.state.name].dead_letters
    state.insert_many([fields(kept.name, receiver) for receiver in range(3)])  # without a short id
    await HeldStore(kept).recover()
    for receiver in range(3):
        for text in (short_id(id_of(receiver)), short_id(id_of(receiver))[:6], id_of(receiver)):
            assert await resolve(kept, [text]) == [id_of(receiver)]
    assert len(await ids_of(kept, Wanted(receiver="shop.receiver1"))) == 1


def two_alike() -> tuple[str, str]:
    """Ids of two dead letters whose short ids differ only after the third character."""
    seen: dict[str, str] = {}
    for receiver in range(10_000):
        id_ = id_of(receiver)
        before = seen.setdefault(short_id(id_)[:3], id_)
        if before != id_ and short_id(before)[3] != short_id(id_)[3]:
            return before, id_
    raise AssertionError("a hash of 3 characters has 4096 values")


def test_the_beginning_of_an_id_is_accepted_if_it_is_unique(mongo, database, foreign):
    held = foreign.client[f"{database}_state"].held
    alike = two_alike()
    for number, id_ in enumerate(alike):
        held.insert_one(fields(database, number, _id=id_, parts={}, short_id=short_id(id_)))
    foreign.client[f"{database}_state"].positions.insert_one({"_id": f"{database}:0", "group": database})
    place = ["--url", mongo.url, "--state-database", f"{database}_state", "--group", database, "--json"]
    listed = json.loads(CliRunner().invoke(app, ["dead-letters", "list", *place]).stdout)
    assert {one["_id"]: one["id"] for one in listed} == {id_: short_id(id_) for id_ in alike}
    for command in (["show"], ["retry"], ["drop", "--yes"]):
        ran = CliRunner().invoke(app, ["dead-letters", *command, short_id(alike[0])[:3], *place])
        assert isinstance(ran.exception, UnknownLetter)
        assert all(short_id(id_) in ran.exception.message for id_ in alike)
    assert held.count_documents({}) == 2
    for id_ in alike:
        shown = CliRunner().invoke(app, ["dead-letters", "show", short_id(id_)[:4], *place])
        assert json.loads(shown.stdout)["_id"] == id_
    dropped = CliRunner().invoke(app, ["dead-letters", "drop", short_id(alike[0])[:4], "--yes", *place])
    named = {"id": short_id(alike[0]), "letter": alike[0]}
    assert json.loads(dropped.stdout) == {"dropped": [named], "kept": []}
    assert [one["_id"] for one in held.find()] == [alike[1]]


@pytest.fixture
def group(mongo, database, foreign) -> list[str]:
    """A group with a position, a member, a dead letter and a lane; returns the arguments that name the group."""
    state = foreign.client[f"{database}_state"]
    known = {"id": "00aa", "name": "search.index", "signal": "post_save", "document": "shop.User"}
    known["formerly"] = ["find"]
    state.positions.insert_one({"_id": f"{database}:0", "group": database, "partition": 0})
    state.members.insert_one({"_id": "m", "group": database, "receivers": [known], "seen_at": datetime.now(UTC)})
    state.held.insert_one(fields(database, 1, parts={}, short_id=short_id(id_of(1))))
    state.held.insert_one({"_id": "x", "group": database, "lane": "l", "receiver": "shop.waits"})
    return ["--url", mongo.url, "--state-database", f"{database}_state", "--group", database]


COMMANDS = {
    "pause": ["pause", "NAME"],
    "resume": ["resume", "NAME"],
    "list": ["dead-letters", "list", "--receiver", "NAME"],
    "retry": ["dead-letters", "retry", "--receiver", "NAME"],
    "drop": ["dead-letters", "drop", "--receiver", "NAME", "--yes"],
}


def invoke(command: list[str], name: str, place: list[str]) -> Any:
    return CliRunner().invoke(app, [name if word == "NAME" else word for word in command] + place)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=list(COMMANDS))
def test_an_unknown_receiver_is_an_error_with_a_suggestion(group, command):
    ran = invoke(command, "serch.index", group)
    assert isinstance(ran.exception, DispatcherError), ran.output
    assert ran.exception.exit_code == ExitCode.NOT_FOUND
    assert "'serch.index'" in ran.exception.message
    assert "Did you mean 'search.index'?" in ran.exception.message
    assert ran.exception.remedy


@pytest.mark.parametrize("name", ["search.index", "find", "shop.receiver1", "shop.waits"])
def test_receivers_are_known_from_members_former_names_dead_letters_and_lanes(group, name):
    ran = invoke(COMMANDS["list"], name, group)
    assert (ran.exit_code, ran.exception) == (0, None), ran.output
    ran = invoke(COMMANDS["pause"], name, group)
    assert f"{name} is paused" in ran.output


def test_the_json_output_has_the_short_id_and_the_whole_id(group):
    (told,) = json.loads(invoke(["dead-letters", "list", "--json"], "", group).output)
    assert (told["id"], told["_id"]) == (short_id(id_of(1)), id_of(1))
    assert "short_id" not in told
    shown = invoke(["dead-letters", "show", told["id"]], "", group)
    assert shown.exit_code == 0, shown.output
    assert id_of(1) in shown.output
    assert short_id(id_of(1)) in invoke(["dead-letters", "list"], "", group).output
