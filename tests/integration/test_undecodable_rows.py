"""Fields that Python can't decode: writes to other fields succeed and reach the receivers."""

import datetime
import uuid
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import bson
import pytest
from bson.binary import Binary
from bson.codec_options import CodecOptions
from bson.datetime_ms import DatetimeMS
from bson.raw_bson import RawBSONDocument
from pydantic import field_validator, model_validator

import mongoz
from dispatcher.core.bson_elements import elements
from mongoz import U
from mongoz.signals import muted
from tests.support import without_transactions

KINDS = ("silent", "post", "both", "alone", "muted", "dispatched")
FAR = DatetimeMS(10**15)
SHORT = Binary(b"123", 4)  # an invalid UUID
ODD_TEXT = "no Unicode"
IDS = {"UUID": SHORT, "date": FAR, "document": {"of": SHORT}}
RAW = CodecOptions(document_class=RawBSONDocument)


def as_stored(document: dict[str, Any]) -> RawBSONDocument:
    """A document with a text that is not UTF-8."""
    return RawBSONDocument(bson.encode(document).replace(ODD_TEXT.encode(), b"\xff\xfe Unicode"))


def stored_fields(foreign: Any, *without: str) -> list[dict[str, bytes]]:
    """The bytes of all fields but those in `without`, for each document in the order of ids."""
    rows = foreign.notes.with_options(codec_options=RAW).find(sort=[("_id", 1)])
    fields = [{one.name.decode(): one.value for one in elements(row.raw)} for row in rows]
    return [{name: raw for name, raw in each.items() if name not in (*without, "_mongoz")} for each in fields]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def server(kind: str) -> Any:
    """With the kind "alone" the server has no transactions."""
    with without_transactions() if kind == "alone" else nullcontext():
        yield


@pytest.fixture
def told() -> list[Any]:
    return []


@pytest.fixture
def rules(request: pytest.FixtureRequest) -> str:
    """The rules of the model: none, a validator of the changed fields, or a validator of all fields."""
    return getattr(request, "param", "none")


def check(value: Any) -> Any:
    return value


RULES: dict[str, dict[str, Any]] = {
    "none": {},
    "of fields": {"check": field_validator("n", "box")(check)},
    "of all": {"check": model_validator(mode="after")(check)},
}


@pytest.fixture
def Note(kind: str, rules: str, registry: Any, dispatched: Any, database: str, told: list[Any]) -> Any:
    where = (dispatched if kind in ("muted", "dispatched") else registry).get_database(database)

    class Base(mongoz.Document):
        n: int = 0
        on: datetime.datetime | None = None
        key: uuid.UUID | None = None
        text: str = ""
        box: dict[str, Any] = mongoz.Object(default=dict)

        class Meta:
            abstract = True

    meta = type("Meta", (), {"registry": where.deployment, "database": where})
    Note: Any = type("Note", (Base,), {"Meta": meta, "__module__": __name__, **RULES[rules]})

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
    "collated": lambda query: query.options(collation={"locale": "en"}).limit(5).update(n=1),
    "collated delete": lambda query: query.options(collation={"locale": "en"}).limit(5).delete(),
}

ODD: dict[str, Any] = {
    "a date": {"on": FAR},
    "an undeclared date": {"when": FAR},
    "a date inside": {"box": {"at": FAR, "n": 1}},
    "a date in a list": {"days": [{"at": FAR}]},
    "a UUID": {"key": SHORT},
    "an undeclared UUID": {"what": SHORT},
    "a UUID inside": {"box": {"of": SHORT, "n": 1}},
    "UUIDs in a list": {"many": [{"of": [SHORT, Binary(b"", 4)]}]},
    "a text": {"text": ODD_TEXT},
    "an undeclared text": {"what": ODD_TEXT},
    "a text inside": {"box": {"of": ODD_TEXT, "n": 1}},
    "a text and a UUID": {"text": ODD_TEXT, "key": SHORT},
}


def mostly_exhaustive(names: Iterable[Any], quick: set[str]) -> list[Any]:
    """All names. The names that are not in `quick` are marked as exhaustive."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.exhaustive) for name in names]


@pytest.mark.parametrize("odd", mostly_exhaustive(ODD, {"a date", "a UUID inside", "a text"}))
@pytest.mark.parametrize("call", [call for call in CALLS if "collated" not in call])
async def test_bulk_calls_write_and_fire_signals(
    Note: Any, kind: str, told: list[Any], foreign: Any, call: str, odd: str
) -> None:
    await write_and_tell(Note, kind, told, foreign, call, odd)


@pytest.mark.parametrize(
    "odd", mostly_exhaustive(["an undeclared UUID", "a UUID inside", "a text", "a text inside"], {"a text"})
)
@pytest.mark.parametrize("call", ["update", "inc", "collated", "collated delete"])
@pytest.mark.parametrize("rules", ["of fields", "of all"], indirect=True)
async def test_bulk_calls_write_and_fire_signals_with_rules_of_the_model(
    Note: Any, kind: str, told: list[Any], foreign: Any, call: str, odd: str
) -> None:
    await write_and_tell(Note, kind, told, foreign, call, odd)


@pytest.mark.parametrize("odd", mostly_exhaustive(IDS, {"UUID"}))
@pytest.mark.parametrize("call", CALLS)
async def test_an_undecodable_id_is_written_and_delivered(
    Note: Any, kind: str, told: list[Any], foreign: Any, call: str, odd: Any
) -> None:
    foreign.notes.insert_many([{"_id": id_, "n": 0, "box": {"n": 0}} for id_ in (bson.ObjectId(), IDS[odd], 1)])
    with muted() if kind == "muted" else nullcontext():
        done = await CALLS[call](Note.objects)
    assert (done if isinstance(done, int) else len(done)) == 3
    assert foreign.notes.count_documents({"n": 0, "box.n": 0}) == 0
    assert len(told) == (0 if kind in ("silent", "muted") else 3)


async def write_and_tell(Note: Any, kind: str, told: list[Any], foreign: Any, call: str, odd: str) -> None:
    for more in ({}, ODD[odd], {}):
        foreign.notes.insert_one(as_stored({"_id": bson.ObjectId(), "n": 0, "box": {"n": 0}, **more}))
    what = "box" if "inc" in call else "n"
    before = stored_fields(foreign, what)
    with muted() if kind == "muted" else nullcontext():
        done = await CALLS[call](Note.objects)
    assert (done if isinstance(done, int) else len(done)) == 3
    assert len(told) == (0 if kind in ("silent", "muted") else 3)
    if "delete" in call:
        assert foreign.notes.count_documents({}) == 0
        return
    assert foreign.notes.count_documents({"$or": [{"n": 1}, {"box.n": {"$gte": 1}}]}) == 3
    # Fields outside of the call are unchanged.
    assert stored_fields(foreign, what) == before
    inside = {key: value for key, value in ODD[odd].get("box", {}).items() if key != "n" and value != ODD_TEXT}
    assert foreign.notes.count_documents({f"box.{key}": value for key, value in inside.items()}) >= 1


async def test_signals_have_the_written_value(Note: Any, kind: str, told: list[Any], foreign: Any) -> None:
    foreign.notes.insert_one({"n": 0, "on": FAR, "box": {}, "when": FAR})
    with muted() if kind == "muted" else nullcontext():
        (note,) = await Note.objects.update(n=1)
    for each in (note, *told):
        assert (each.n, each.on, each.when) == (1, FAR, FAR)


async def test_an_instance_with_undecodable_fields_can_be_updated(
    Note: Any, kind: str, told: list[Any], foreign: Any
) -> None:
    note = await Note.objects.create()
    foreign.notes.update_one({}, {"$set": {"on": FAR, "box": {"at": FAR, "n": 1}}})
    with muted() if kind == "muted" else nullcontext():
        await note.update(U.inc("box.n"))
        await note.update(n=5)
    assert foreign.notes.count_documents({"n": 5, "box.n": 2, "box.at": FAR}) == 1
    assert note.box == {"at": FAR, "n": 2}
    assert await note.update(n=6) is note
    await note.save()


@pytest.mark.parametrize("rules", ["none", "of fields", "of all"], indirect=True)
@pytest.mark.parametrize("odd", [SHORT, ODD_TEXT], ids=["UUID", "text"])
async def test_an_operation_works_although_the_document_has_undecodable_fields(
    Note: Any, kind: str, told: list[Any], foreign: Any, odd: Any
) -> None:
    note = await Note.objects.create()
    foreign.notes.replace_one({}, as_stored({"_id": note.id, "n": 0, "box": {"of": odd, "n": 1}}))
    with muted() if kind == "muted" else nullcontext():
        await note.update(U.inc("box.n"))
    assert foreign.notes.count_documents({"box.n": 2}) == 1
    assert note.box["n"] == 2
    assert len(told) == (0 if kind in ("silent", "muted") else 1)
