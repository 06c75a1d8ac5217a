"""Values that no driver decodes: the stream continues, and a dead letter has the reason."""

import asyncio
import json
import random
from types import SimpleNamespace
from typing import Any

import bson
import pytest
from bson import Binary, Timestamp
from bson.datetime_ms import DatetimeMS
from bson.raw_bson import RawBSONDocument
from pymongo import AsyncMongoClient
from typer.testing import CliRunner

import mongoz
from dispatcher.cli import app
from dispatcher.operate.dead_letters import Wanted, outcomes, request_retry
from dispatcher.runs import backfill, replay
from dispatcher.runs.player import workplace
from dispatcher.web.dashboard.letters import Letterbox
from mongoz.core.signals import post_delete, post_save, post_update
from mongoz.signals.options import Retry
from tests.integration.deliveries import IMAGES, State
from tests.malformed import IMAGELESS, WITH_IMAGES, stories, write
from tests.support import dispatching, eventually, group_of, settings_for

SHORT_UUID = {"u": Binary(b"123", 4)}


class Heard(list[SimpleNamespace]):
    @property
    def deliveries(self) -> set[str]:
        return {one.delivery.id for one in self}


def odd(registry: mongoz.Registry, database: str, name: str) -> Any:
    class Odd(mongoz.Document):
        id: Any = mongoz.Object(alias="_id", null=True)
        name: str = mongoz.String(default="")
        n: int = mongoz.Integer(default=0)
        data: Any = mongoz.Object(null=True)

        class Meta:
            abstract = False
            collection = name

        Meta.registry = registry  # type: ignore[attr-defined]
        Meta.database = database  # type: ignore[attr-defined]

    return Odd


def heard_on(*documents: Any) -> Heard:
    heard = Heard()

    async def witness(sender: Any, **kwargs: Any) -> None:
        heard.append(SimpleNamespace(**kwargs))

    for document in documents:
        for connect in (post_save, post_update, post_delete):
            connect(document, name="witness")(witness)
    return heard


@pytest.fixture
def collections(foreign):
    foreign.create_collection(WITH_IMAGES, **IMAGES)
    foreign.create_collection(IMAGELESS)


@pytest.fixture
def heard(dispatched, database, collections) -> Heard:
    return heard_on(*(odd(dispatched, database, name) for name in (WITH_IMAGES, IMAGELESS)))


@pytest.fixture
def state(foreign) -> State:
    return State(foreign)


def told(heard: Heard, state: State) -> set[str]:
    """The ids of the deliveries that were made or became dead letters."""
    return heard.deliveries | {letter["delivery_id"] for letter in state.letters}


SEED = 5
PLACES = ("_id", "data", "unknown", "last", "_mongoz")


@pytest.mark.slow
async def test_each_change_of_500_malformed_histories_has_a_delivery_or_a_dead_letter(
    heard, foreign, dispatched, state
):
    tales = list(stories(random.Random(SEED), 500))
    async with dispatching(dispatched) as running:
        changes = write(foreign, tales).total()
        await eventually(lambda: running.stats.read >= changes, within=60)
        await eventually(lambda: len(told(heard, state)) >= changes, within=60, what=f"{changes} changes")
    assert len(told(heard, state)) == changes
    letters = state.letters
    assert {letter["reason"] for letter in letters} <= {"undecodable", "invalid"}
    undecodable = [letter for letter in letters if letter["reason"] == "undecodable"]
    assert len(undecodable) > 300
    for letter in undecodable:
        fault = letter["fault"]
        assert letter["receiver"] == "witness"
        assert fault["path"], fault
        assert fault["path"].partition(".")[0] in PLACES, fault
        for said in (repr(fault["path"]), fault["type"], fault["why"], fault["remedy"]):
            assert said in letter["error"]["message"]


async def test_a_dispatcher_restarts_and_reads_malformed_documents_again(heard, foreign, dispatched, state):
    """A start reads earlier stamps and unfinished changes."""
    tales = list(stories(random.Random(SEED + 1), 150))
    async with dispatching(dispatched):
        begins = state.token
    changes = write(foreign, tales).total()
    for _ in range(2):
        state.rewind(begins)
        async with dispatching(dispatched):
            await eventually(lambda: len(told(heard, state)) >= changes, within=60, what=f"{changes} changes")
    assert len(told(heard, state)) == changes


@pytest.mark.parametrize("partitions", [3])
async def test_each_malformed_change_of_three_partitions_has_a_delivery_or_a_dead_letter(
    heard, foreign, dispatched, state, partitions
):
    tales = list(stories(random.Random(SEED + 2), 100))
    async with dispatching(dispatched, partitions=partitions):
        changes = write(foreign, tales).total()
        await eventually(lambda: len(told(heard, state)) >= changes, within=60, what=f"{changes} changes")
    assert len(told(heard, state)) == changes


async def test_backfill_and_replay_read_malformed_documents(heard, foreign, dispatched, state):
    began = foreign.client.admin.command("hello")["operationTime"]
    written = write(foreign, list(stories(random.Random(SEED + 3), 150)))
    documents = sum(foreign[name].count_documents({}) for name in (WITH_IMAGES, IMAGELESS))
    assert documents
    async with workplace(dispatched, settings_for(dispatched, attempts=1)) as place:
        run = await backfill.start(place, ["witness"], rate=None, resume=None, new=False)
        outcome = await run.work(asyncio.Event())
    assert outcome.finished
    assert outcome.delivered + outcome.failed == documents == len(told(heard, state))
    async with workplace(dispatched, settings_for(dispatched, attempts=1)) as place:
        options: dict[str, Any] = {"until": None, "asked": {}, "rate": None, "resume": None, "new": False}
        again = await replay.start(place, ["witness"], since=Timestamp(began.time, began.inc + 1), **options)
        outcome = await again.work(asyncio.Event())
    assert outcome.finished
    assert outcome.delivered + outcome.failed == written.total()
    assert len(told(heard, state)) == documents + written.total()


async def test_a_receiver_with_where_has_only_matching_dead_letters(foreign, dispatched, database, state):
    Odd = odd(dispatched, database, "odds")

    @post_save(Odd, name="picky", where={"name": "wanted", "$expr": {"$gt": [{"$strLenCP": "$name"}, 1]}})
    async def picky(sender: Any, **kwargs: Any) -> None: ...

    async with dispatching(dispatched) as running:
        for name in (b"wanted", b"unwanted", b"\xff\xff"):
            document = bson.encode({"name": "?" * len(name), **SHORT_UUID})
            foreign["odds"].insert_one(RawBSONDocument(document.replace(b"?" * len(name), name)))
        await eventually(lambda: running.stats.read == 3)
        letters = await state.wait(1)
    assert [bson.decode(one["parts"]["document"], _ANY)["name"] for one in letters] == ["wanted"]


_ANY: Any = bson.codec_options.CodecOptions(unicode_decode_error_handler="replace")


async def test_decoding_options_of_the_url_apply(mongo, foreign, database, state):
    """The remedy in the dead letter works."""
    undecodable = bson.encode({"_id": 1, "name": "AAAA", "data": bson.Int64(2**60)})
    undecodable = undecodable.replace(b"AAAA", b"caf\xe9").replace(b"\x12data\0", b"\x09data\0")
    async with mongoz.Registry(mongo.url, dispatched=database) as strict:
        heard_on(odd(strict, database, "odds"))
        async with dispatching(strict):
            foreign["odds"].insert_one(RawBSONDocument(undecodable))
            letter = await state.letter()
            assert letter["fault"]["path"] == "name"
            assert "unicode_decode_error_handler=replace" in letter["fault"]["remedy"]
            ((result, text),) = await retried(strict, database, letter["_id"])
            assert result == "refused"
            assert "'name' in the document after the change can't be decoded" in text
    url = f"{mongo.url}&datetime_conversion=DATETIME_AUTO&unicode_decode_error_handler=replace"
    async with mongoz.Registry(url, dispatched=database) as lenient:
        Odd = odd(lenient, database, "odds")
        heard = heard_on(Odd)
        async with dispatching(lenient):
            assert await retried(lenient, database, letter["_id"]) == [("delivered", "")]
            foreign["odds"].insert_one(RawBSONDocument(undecodable.replace(b"\x01\0\0\0\x02", b"\x02\0\0\0\x02")))
            await eventually(lambda: len(heard) == 2)
        assert (await Odd.objects.get(id=1)).name == "caf\ufffd"
    assert [(one.instance.name, one.instance.data) for one in heard] == [("caf\ufffd", DatetimeMS(2**60))] * 2


async def retried(registry: Any, database: str, *ids: str) -> list[tuple[str, str]]:
    async with AsyncMongoClient(registry.url) as client:
        asked = await request_retry(group_of(client, database), ids)
        found = [one async for one in outcomes(group_of(client, database), asked, within=30)]
    return [(one.result, one.text) for one in found]


@pytest.mark.slow
async def test_dead_letters_of_malformed_documents_are_listed_and_shown(
    mongo, heard, foreign, dispatched, database, state
):
    """The commands print the dead letters as text and as JSON, and the dashboard shows the dead letters."""
    tales = [one for one in stories(random.Random(SEED + 4), 60) if one.collection == WITH_IMAGES]
    async with dispatching(dispatched):
        changes = write(foreign, tales).total()
        await eventually(lambda: len(told(heard, state)) >= changes, within=60)
    place = ["--url", mongo.url, "--group", database, "--state-database", f"{database}_state"]

    def say(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["dead-letters", *arguments, *place])
        assert result.exit_code == 0, result.output
        return result.stdout

    def look() -> None:
        listed = json.loads(say("list", "--limit", "0", "--json"))
        assert len(listed) == len(state.letters)
        assert "undecodable" in say("list", "--limit", "0")
        for letter in state.letters:
            shown = json.loads(say("show", letter["_id"], "--json"))
            assert shown["reason"] == letter["reason"]
            assert say("show", letter["_id"])

    await asyncio.to_thread(look)
    async with AsyncMongoClient(mongo.url) as client:
        letterbox = Letterbox(group_of(client, database))
        page = await letterbox.page(Wanted(), None)
        assert page["letters"]
        for letter in state.letters:
            assert json.dumps(await letterbox.letter(letter["_id"]), default=str)


@pytest.mark.parametrize("on_failure", ["dead_letter", "block"])
async def test_documents_with_partly_decodable_ids_are_parked_and_delivered(mongo, foreign, database, on_failure):
    """Two ids that look alike with replacement characters stay two documents."""
    url = f"{mongo.url}&unicode_decode_error_handler=replace"
    gate = asyncio.Event()
    got: list[tuple[str, int]] = []
    async with mongoz.Registry(url, dispatched=database) as registry:
        Odd = odd(registry, database, "odds")

        @post_save(Odd, name="slow", retry=Retry(attempts=50, base=0.05, cap=0.1), on_failure=on_failure)
        @post_update(Odd, name="slow", retry=Retry(attempts=50, base=0.05, cap=0.1), on_failure=on_failure)
        async def slow(sender: Any, instance: Any, **kwargs: Any) -> None:
            if not gate.is_set():
                raise ValueError("not yet")
            got.append((instance.name, instance.n))

        async with dispatching(registry, park_after=0.01) as running:
            for number in (0, 1):
                odd_byte = bytes((0xFE + number,))
                raw = bson.encode({"_id": "A", "name": f"{number}", "n": 0}).replace(b"A\0", odd_byte + b"\0", 1)
                foreign["odds"].insert_one(RawBSONDocument(raw))
                key = bson.encode({"_id": "A"}).replace(b"A\0", odd_byte + b"\0", 1)
                foreign["odds"].update_one(RawBSONDocument(key), {"$set": {"n": 1}})
            await eventually(lambda: running.stats.parked >= 4, what="the deliveries are parked")
            gate.set()
            await eventually(lambda: len(got) == 4, within=30)
    assert [n for name, n in got if name == "0"] == sorted(n for name, n in got if name == "0")
    assert sorted(got)[1::2] == [("0", 1), ("1", 1)]


async def test_documents_whose_ids_have_unnumbered_arrays_are_looked_up(heard, foreign, dispatched):
    """MongoDB 6.0 scans the index of `_id` without end if one query asks for this `_id` and for another `_id`."""
    numbered = bson.encode({"_id": {"n": 1, "v": [None, None]}, "name": "odd"})
    odd_one = RawBSONDocument(numbered.replace(b"\x0a1\0", b"\x0ax\0"))
    foreign[IMAGELESS].insert_one(odd_one)
    foreign[IMAGELESS].insert_many([{"name": f"{n}"} for n in range(20)])
    async with dispatching(dispatched):
        foreign[IMAGELESS].update_many({}, {"$inc": {"n": 1}})
        await eventually(lambda: len(heard) == 21, what="the 21 updates are delivered")
    assert {one.delivery.image for one in heard} == {"current"}
    assert {one.instance.name for one in heard} == {"odd", *(f"{n}" for n in range(20))}
