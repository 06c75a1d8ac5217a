"""A writing process can't reach the state database, but can write documents."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pymongo
import pytest
from pymongo.monitoring import CommandListener, CommandStartedEvent

import mongoz
from mongoz.claims import wait as wait_module
from mongoz.claims.beats import BookRecorder, pause_after
from mongoz.claims.book import Book
from mongoz.connection.deployment import Deployment
from mongoz.core.signals import post_save
from mongoz.stamps import Stamp
from tests.integration.claiming import SECONDS, claiming, until_announced, until_passed
from tests.proxy import Proxy, proxied
from tests.support import dispatching, eventually


class Beats(CommandListener):
    """Collects the commands of the thread that records claims."""

    def __init__(self) -> None:
        self.commands: list[Any] = []

    def started(self, event: CommandStartedEvent) -> None:
        self.commands.append(event.command)

    def succeeded(self, event: Any) -> None: ...

    def failed(self, event: Any) -> None: ...


@pytest.fixture
async def proxy(mongo: Any) -> AsyncIterator[Proxy]:
    """A proxy between writing processes and the state database."""
    async with proxied(mongo.url) as made:
        yield made


@pytest.fixture
def beats(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Beats:
    """Registries record their claims through the proxy. They write documents without the proxy."""
    made = Beats()

    def connect(deployment: Deployment) -> Any:
        return pymongo.MongoClient(proxy.url, maxPoolSize=1, event_listeners=[made])

    monkeypatch.setattr(Deployment, "_open_synchronous_client", connect)
    return made


@pytest.fixture
async def registry(mongo: Any, database: str) -> AsyncIterator[mongoz.Registry]:
    """The registry of the dispatcher."""
    async with claiming(mongo.url, database) as made:
        yield made


@pytest.fixture
def seconds() -> float:
    """The timeout of the writing process."""
    return SECONDS


@pytest.fixture
async def writing(mongo: Any, database: str, beats: Beats, seconds: float) -> AsyncIterator[mongoz.Registry]:
    """The registry of the writing process."""
    async with claiming(mongo.url, database, claims=seconds) as made:
        yield made


class World:
    """Receivers in the writing process and in the dispatcher. A test can hold `first` in the writing process.

    Attributes:
        told: receiver, value of `n`, id, and origin of each delivery that has begun.
    """

    def __init__(self, registry: mongoz.Registry, writing: mongoz.Registry, database: str) -> None:
        self.told: list[tuple[str, int, str, str]] = []
        self.entered = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()
        self.Item = self.make(writing, database)
        self.make(registry, database)

    def make(self, registry: mongoz.Registry, database: str) -> Any:
        class Item(mongoz.Document):
            n: int = mongoz.Integer()

            Meta = type("Meta", (), {"registry": registry, "database": database, "collection": "items"})

        def connect(name: str) -> None:
            @post_save(Item, name=name)
            async def receive(sender: Any, instance: Any, delivery: Any, **kwargs: Any) -> None:
                self.told.append((name, instance.n, delivery.id, delivery.origin))
                if delivery.origin == "process" and name == "first":
                    self.entered.set()
                    await self.go.wait()

        connect("first")
        connect("second")
        return Item

    def hold(self) -> None:
        """Let the next call of `first` in the writing process wait for `go`."""
        self.entered.clear()
        self.go.clear()

    def told_of(self, n: int) -> list[tuple[str, str]]:
        """Receiver and origin of each delivery of a document, sorted."""
        return sorted((name, origin) for name, number, _, origin in self.told if number == n)

    def ids_of(self, n: int) -> set[str]:
        return {id_ for _, number, id_, _ in self.told if number == n}


@pytest.fixture
def world(registry: mongoz.Registry, writing: mongoz.Registry, database: str, foreign: Any) -> World:
    foreign.create_collection("items")
    return World(registry, writing, database)


IN_PROCESS = [("first", "process"), ("second", "process")]
TAKEN = [("first", "takeover"), ("second", "takeover")]


async def held_write(world: World, n: int) -> "asyncio.Task[Any]":
    """Starts a write, and returns when the receiver `first` waits in the writing process."""
    world.hold()
    task = asyncio.create_task(world.Item(n=n).create())
    await world.entered.wait()
    return task


def stamp_of(foreign: Any, n: int) -> Stamp:
    stamp = Stamp.unpack(foreign["items"].find_one({"n": n})["_mongoz"])
    assert stamp is not None
    return stamp


async def test_a_write_without_a_first_beat_is_unclaimed_and_runs_its_receivers(
    world, registry, writing, foreign, state, proxy, monkeypatch, caplog
):
    """The write waits for the first beat, but only for a short time."""
    monkeypatch.setattr(wait_module, "_MOST", 0.2)
    proxy.refuse()
    async with dispatching(registry):
        await until_announced(state)
        await world.Item(n=1).create()
        assert stamp_of(foreign, 1).claim is None
        assert writing.claims.unclaimed == {"no beat": 1}
        proxy.accept()
        await eventually(lambda: writing.claims.book.is_valid, what="the first beat")
        await world.Item(n=2).create()
        assert stamp_of(foreign, 2).claim is not None
        await until_passed(state)
    assert world.told_of(1) == world.told_of(2) == IN_PROCESS
    assert "not protected" in caplog.text


@pytest.mark.slow
async def test_a_process_that_is_cut_off_leaves_its_receivers_to_the_dispatcher(
    world, registry, writing, foreign, state, proxy
):
    """The dispatcher may repeat the running receiver under the same id.

    The process must start no other receiver.
    """
    async with dispatching(registry, claim_timeout=1.0):
        await until_announced(state)
        task = await held_write(world, 1)
        book = writing.claims.book
        proxy.refuse()
        await eventually(lambda: len(world.told) == 3, what="the takeover")
        world.go.set()
        await task
        await world.Item(n=2).create()  # unclaimed, so its receivers run here
        assert stamp_of(foreign, 2).claim is None
        assert writing.claims.unclaimed["no beat"] == 1
        proxy.accept()
        await eventually(lambda: writing.claims.book is not book and writing.claims.book.is_valid)
        await world.Item(n=3).create()
        assert stamp_of(foreign, 3).claim.incarnation == writing.claims.book.incarnation
        await until_passed(state)
    assert world.told_of(1) == sorted([("first", "process"), *TAKEN])
    assert world.told_of(2) == world.told_of(3) == IN_PROCESS
    assert {n: len(world.ids_of(n)) for n in (1, 2, 3)} == {1: 1, 2: 1, 3: 1}


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [12.0])
async def test_a_cut_that_is_shorter_than_the_timeout_changes_nothing(
    world, registry, writing, state, proxy, foreign
):
    async with dispatching(registry, claim_timeout=1.0):
        await until_announced(state)
        task = await held_write(world, 1)
        book = writing.claims.book
        beat = state.claims.find_one()["beat"]
        proxy.cut_before_request("update", times=3)
        await eventually(lambda: proxy.lost == 3, what="lost beats")
        await eventually(lambda: state.claims.find_one()["beat"] > beat + 2, what="later beats")
        world.go.set()
        await task
        await until_passed(state)
        assert writing.claims.book is book
    assert world.told_of(1) == IN_PROCESS


async def test_a_beat_whose_answer_is_lost_counts_when_the_next_beat_is_answered(
    world, registry, writing, state, proxy, foreign
):
    """The driver repeats a beat once, so the test loses both answers to the beat that inserts the book."""
    proxy.cut_after_request("update", times=2)
    async with dispatching(registry, claim_timeout=1.0):
        await until_announced(state)
        await world.Item(n=1).create()
        await eventually(lambda: writing.claims.book.is_valid, what="a beat")
        assert proxy.lost == 2
        await world.Item(n=2).create()
        assert stamp_of(foreign, 2).claim is not None
        assert state.claims.count_documents({}) == 1
        await until_passed(state)
    assert world.told_of(1) == world.told_of(2) == IN_PROCESS


@pytest.mark.slow
async def test_a_beat_that_lands_after_the_fence_changes_nothing(world, registry, writing, state, proxy, foreign):
    """The network holds the beat back while the dispatcher takes the claims over."""
    async with dispatching(registry, claim_timeout=1.0):
        await until_announced(state)
        task = await held_write(world, 1)
        book = writing.claims.book
        proxy.stall()
        await eventually(lambda: len(world.told) == 3, what="the takeover")
        fenced = state.claims.find_one({"_id": book.incarnation.hex()})
        assert fenced["fenced_by"] == "dispatcher"
        world.go.set()
        await task
        proxy.flow()
        await eventually(lambda: writing.claims.book is not book and writing.claims.book.is_valid)
        assert state.claims.find_one({"_id": book.incarnation.hex()}) == fenced
        await until_passed(state)
    assert world.told_of(1) == sorted([("first", "process"), *TAKEN])
    assert len(world.ids_of(1)) == 1


@pytest.mark.slow
async def test_a_process_whose_book_is_deleted_is_taken_over_after_one_timeout(
    world, registry, writing, state, foreign
):
    async with dispatching(registry, claim_timeout=1.0):
        await until_announced(state)
        task = await held_write(world, 1)
        book = writing.claims.book
        state.claims.delete_one({"_id": book.incarnation.hex()})
        await eventually(lambda: writing.claims.book is not book, what="a new book")
        world.go.set()
        await task
        await eventually(lambda: len(world.told) == 3, what="the takeover")
        await until_passed(state)
    assert world.told_of(1) == sorted([("first", "process"), *TAKEN])
    assert len(world.ids_of(1)) == 1


async def test_beats_are_acknowledged_by_a_majority(world, registry, writing, state, beats):
    """A primary that is cut off from its replica set accepts beats, but the majority never sees these beats."""
    async with dispatching(registry):
        await until_announced(state)
        await world.Item(n=1).create()
    sent = [command for command in beats.commands if "update" in command]
    assert sent
    assert {command["writeConcern"]["w"] for command in sent} == {"majority"}


@pytest.mark.parametrize("is_open", [True, False])
def test_beats_are_frequent_only_while_claims_are_open(is_open, mongo, database, state):
    state.positions.insert_one({"_id": database, "claims": True})
    recorded = SimpleNamespace(book=Book(SECONDS), note_attempt=lambda refusal: None)
    recorder = BookRecorder(database, f"{database}_state", lambda: pymongo.MongoClient(mongo.url), lambda: ())
    recorder.record(recorded)
    claim = recorded.book.claim()
    if not is_open:
        claim.done()
    assert recorder.record(recorded) == pause_after(SECONDS, is_waiting=is_open)
    claim.done()
    recorder.finish()
