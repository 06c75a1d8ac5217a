"""Values that Python can't have, in fields that a write is not about: it goes on and is told, whoever listens."""

import datetime
from contextlib import nullcontext
from typing import Any

import pytest
from bson.datetime_ms import DatetimeMS

import mongoz
from mongoz import U
from mongoz.signals import muted
from tests.support import without_transactions

KINDS = ("silent", "post", "both", "alone", "muted", "dispatched")
FAR = DatetimeMS(10**15)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def server(kind: str) -> Any:
    """Of the kind "alone" it takes no transactions."""
    with without_transactions() if kind == "alone" else nullcontext():
        yield


@pytest.fixture
def told() -> list[Any]:
    return []


@pytest.fixture
def Note(kind: str, registry: Any, dispatched: Any, database: str, told: list[Any]) -> Any:
    where = (dispatched if kind in ("muted", "dispatched") else registry).get_database(database)

    class Note(mongoz.Document):
        n: int = 0
        on: datetime.datetime | None = None
        box: dict[str, Any] = mongoz.Object(default=dict)

        class Meta:
            registry = where._registry
            database = where

    async def post(sender: Any, instance: Any, **kwargs: Any) -> None:
        told.append(instance)

    async def pre(sender: Any, instance: Any, **kwargs: Any) -> None: ...

    for name in ("update", "delete"):
        if kind != "silent":
            getattr(Note.signals, f"post_{name}").connect(post, name=f"post_{name}")
        if kind in ("both", "alone"):
            getattr(Note.signals, f"pre_{name}").connect(pre)
    return Note


CALLS: dict[str, Any] = {
    "update_count": lambda query: query.update_count(n=1),
    "update": lambda query: query.update(n=1),
    "inc": lambda query: query.update_count(U.inc("box.n")),
    "limited inc": lambda query: query.limit(5).update(U.inc("box.n")),
    "delete": lambda query: query.delete(),
    "limited delete": lambda query: query.limit(5).delete(),
}
ODD: dict[str, Any] = {
    "a date": {"on": FAR},
    "an undeclared date": {"when": FAR},
    "a date inside": {"box": {"at": FAR, "n": 1}},
    "a date in a list": {"days": [{"at": FAR}]},
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("call", CALLS)
async def test_bulk_calls_write_and_tell(
    Note: Any, kind: str, told: list[Any], foreign: Any, call: str, odd: str
) -> None:
    foreign.notes.insert_many([{"n": 0, "box": {}}, {"n": 0, "box": {}, **ODD[odd]}, {"n": 0, "box": {}}])
    with muted() if kind == "muted" else nullcontext():
        done = await CALLS[call](Note.objects)
    assert (done if isinstance(done, int) else len(done)) == 3
    if "delete" in call:
        assert foreign.notes.count_documents({}) == 0
    else:
        assert foreign.notes.count_documents({"$or": [{"n": 1}, {"box.n": {"$gte": 1}}]}) == 3
        # What the call is not about is as it was.
        path = {"a date": "on", "an undeclared date": "when", "a date inside": "box.at"}.get(odd, "days.at")
        assert foreign.notes.count_documents({path: FAR}) == 1
    assert len(told) == (0 if kind in ("silent", "muted") else 3)


async def test_what_is_told_has_the_value(Note: Any, kind: str, told: list[Any], foreign: Any) -> None:
    foreign.notes.insert_one({"n": 0, "on": FAR, "box": {}, "when": FAR})
    with muted() if kind == "muted" else nullcontext():
        (note,) = await Note.objects.update(n=1)
    for each in (note, *told):
        assert (each.n, each.on, each.when) == (1, FAR, FAR)


async def test_an_instance_is_updated(Note: Any, kind: str, told: list[Any], foreign: Any) -> None:
    note = await Note.objects.create()
    foreign.notes.update_one({}, {"$set": {"on": FAR, "box": {"at": FAR, "n": 1}}})
    with muted() if kind == "muted" else nullcontext():
        await note.update(U.inc("box.n"))
        await note.update(n=5)
    assert foreign.notes.count_documents({"n": 5, "box.n": 2, "box.at": FAR}) == 1
    assert note.box == {"at": FAR, "n": 2}
