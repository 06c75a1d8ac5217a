"""Single rules of claims, each with the real server."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pymongo
import pytest
from pymongo import AsyncMongoClient
from pymongo.errors import AutoReconnect, InvalidOperation
from pymongo.monitoring import CommandListener

import mongoz
from dispatcher.claims.store import ClaimStore
from mongoz.claims import beats as beats_module
from mongoz.claims.beats import BookRecorder
from mongoz.claims.book import HELD, Book
from mongoz.core.signals import post_save
from mongoz.stamps import FIELD, Stamp
from tests import kill_points
from tests.integration.claiming import SECONDS, Told, claiming, make, until_announced, until_passed
from tests.integration.test_replay import behind, run
from tests.support import dispatching, eventually, group_of


@pytest.fixture
async def registry(mongo: Any, database: str) -> AsyncIterator[mongoz.Registry]:
    async with claiming(mongo.url, database) as made:
        yield made


class TimePasses(CommandListener):
    """A clock that goes forward by a second when a command is sent, and by another second when it is answered."""

    def __init__(self) -> None:
        self.time = 1_000.0

    def started(self, event: Any) -> None:
        self.time += 1.0

    def succeeded(self, event: Any) -> None:
        self.time += 1.0

    def failed(self, event: Any) -> None: ...


def test_the_validity_of_a_book_counts_from_the_sending_of_its_beat(mongo, database, announced, monkeypatch):
    """A dispatcher may see the beat as soon as it is sent, and counts the timeout from then on."""
    clock = TimePasses()
    monkeypatch.setattr(beats_module, "now", lambda: clock.time)
    recorder = BookRecorder(
        database,
        f"{database}_state",
        lambda: pymongo.MongoClient(mongo.url, event_listeners=[clock]),
        lambda: (),
    )
    book = Book(SECONDS, lambda: clock.time)
    recorder.record(SimpleNamespace(book=book, note_attempt=lambda refusal: None))
    acknowledged = clock.time
    assert book.is_valid
    clock.time = acknowledged - 2.0 + HELD * SECONDS
    assert not book.is_valid
    recorder.finish()


async def test_a_fence_fails_if_the_book_has_a_later_beat_or_is_fenced(
    registry, database, foreign, announced, state, mongo
):
    await make(registry, database, [])(n=1).create()
    async with AsyncMongoClient(mongo.url) as client:
        store = ClaimStore(group_of(client, database))
        incarnation = registry.claims.book.incarnation
        seen = (await store.read([incarnation]))[incarnation]
        await eventually(lambda: state.claims.find_one()["beat"] > seen.beat, what="a later beat")
        assert await store.fence(incarnation, seen.beat) is None
        assert "fenced_at" not in state.claims.find_one()
        await asyncio.to_thread(registry.claims.close)
        assert await store.fence(incarnation, state.claims.find_one()["beat"]) is None, "the book has a fence"


async def test_a_beat_that_is_lower_than_the_recorded_beat_changes_nothing(registry, database, announced, state):
    """The book on the server already has a later beat, so the beat of the process does not match the book."""
    await make(registry, database, [])(n=1).create()
    state.claims.update_one({}, {"$set": {"beat": 1_000_000}})
    book = registry.claims.book
    await eventually(lambda: registry.claims.book is not book, what="a new book")
    assert book.is_over


async def test_claims_of_a_bulk_call_end_one_by_one(registry, database, announced):
    open_: list[tuple[int, ...]] = []

    async def look(name: str, instance: Any, delivery: Any) -> None:
        open_.append(registry.claims.book.snapshot().open)

    Item = make(registry, database, [], on_delivery=look)
    await Item.objects.create_many([Item(n=1), Item(n=2)])
    await Item.objects.all().update_many(n=3)
    await Item.objects.all().delete()
    assert open_ == [(1, 2), (2, 2), (3, 4), (4, 4), (5, 6), (6, 6)]


async def test_a_failed_attempt_of_a_bulk_delete_releases_no_claim(registry, database, announced, foreign):
    """Another transaction holds one of the documents, so the attempt certainly has no effect."""
    Item = make(registry, database, [])
    await Item.objects.create_many([Item(n=n) for n in range(3)])
    client = foreign.client
    with client.start_session() as session, session.start_transaction():
        foreign["items"].update_one({"n": 1}, {"$set": {"x": 1}}, session=session)
        deleting = asyncio.create_task(Item.objects.all().delete())
        await eventually(lambda: registry.claims.book.high > 6, what="a second attempt")
        session.abort_transaction()
        await deleting
    taken = registry.claims.book.snapshot()
    assert (taken.open, taken.released) == ((), ())


def unknown_commit() -> AutoReconnect:
    error = AutoReconnect("no answer")
    error._add_error_label("UnknownTransactionCommitResult")
    return error


async def test_an_unknown_commit_leaves_its_claims_open(registry, database, announced, monkeypatch):
    """The claims end when the outcome is known. If the commit took effect, the receivers run first."""
    told: Told = []
    Item = make(registry, database, told)
    answers = asyncio.Event()

    async def unanswered(session: Any) -> Any:
        return unknown_commit()

    async def later(session: Any) -> bool:
        await answers.wait()
        await session.commit_transaction()
        return True

    monkeypatch.setattr("mongoz.connection.transactions.commit", unanswered)
    monkeypatch.setattr("mongoz.connection.transactions.is_committed", later)
    with pytest.raises(AutoReconnect):
        async with registry.transaction():
            await Item(n=1).create()
    assert registry.claims.book.snapshot() == (1, (1, 1), ())
    answers.set()
    await eventually(lambda: told, what="the receiver runs")
    await eventually(lambda: registry.claims.book.snapshot() == (1, (), ()))


async def test_a_commit_that_the_end_of_the_loop_interrupts_releases_its_claims(registry, database, announced):
    """The commit may have taken effect."""
    Item = make(registry, database, [])

    async def write() -> None:
        async with registry.transaction() as session:
            await Item(n=1).create()
            commit = session.commit_transaction

            async def interrupted() -> None:
                await commit()
                raise asyncio.CancelledError

            session.commit_transaction = interrupted

    with pytest.raises(asyncio.CancelledError):
        await write()
    assert registry.claims.book.snapshot() == (1, (), (1,))


async def test_a_client_that_is_closed_during_a_commit_releases_the_claims(registry, database, announced):
    """The first attempt got no answer, and may have taken effect."""
    Item = make(registry, database, [])
    errors: list[Exception] = [unknown_commit(), InvalidOperation("closed")]

    async def commit() -> None:
        raise errors.pop(0)

    async def write() -> None:
        async with registry.transaction() as session:
            await Item(n=1).create()
            session.commit_transaction = commit

    with pytest.raises(InvalidOperation):
        await write()
    assert registry.claims.book.snapshot() == (1, (), (1,))


async def test_a_commit_that_the_application_makes_itself_releases_its_claims(
    registry, database, announced, foreign
):
    """The block raises after the commit, so the receivers do not run in this process. The write is committed."""
    Item = make(registry, database, [])

    async def write() -> None:
        async with registry.transaction() as session:
            await Item(n=1).create()
            await session.commit_transaction()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await write()
    assert foreign["items"].count_documents({}) == 1
    assert registry.claims.book.snapshot() == (1, (), (1,))


async def test_a_process_that_reads_from_secondaries_reads_the_announcement_from_the_primary(
    mongo, database, announced
):
    """This deployment has no secondary, so a read from a secondary would fail."""
    async with claiming(f"{mongo.url}&readPreference=secondary", database) as registry:
        await make(registry, database, [])(n=1).create()
        assert (registry.claims.book.high, registry.claims.unclaimed) == (1, {})


async def test_a_replay_does_not_wait_for_claims(registry, database, foreign, state, held):
    """The deliveries of a replay have ids of their own, so they need not wait for claims."""
    told: list[tuple[str, str, bool]] = []

    async def note(name: str, instance: Any, delivery: Any) -> None:
        told.append((name, delivery.id, delivery.replayed))

    make(registry, database, [], on_delivery=note)
    foreign.create_collection("items")
    async with dispatching(registry):
        await until_announced(state)
        begin = behind(foreign)
        await held.begin(held.Item(n=1).create())
        await eventually(lambda: [name for name, *_ in told] == ["durable"])
    stamp = Stamp.unpack(foreign["items"].find_one()[FIELD])
    await run(registry, "any", since=begin, until=behind(foreign))
    ((_, id_, replayed),) = [one for one in told if one[0] == "any"]
    assert replayed
    assert id_ != str(stamp.token)


async def test_an_index_removes_books_after_the_delivery_retention(registry, database, foreign, state):
    """Books are kept as long as the records of deliveries, so they outlive the oplog window."""
    make(registry, database, [])
    foreign.create_collection("items")
    async with dispatching(registry, delivery_retention=2.0):
        await until_announced(state)
    (index,) = [one for one in state.claims.list_indexes() if "expireAfterSeconds" in one]
    assert (dict(index["key"]), index["expireAfterSeconds"]) == ({"beat_at": 1}, 2 * 86_400)


async def test_an_open_claim_holds_back_only_receivers_of_the_same_name_for_the_same_document(
    registry, database, foreign, state, held
):
    """The open claim is to the receiver `any` of `post_save`.

    Only the receiver `any` of `post_update` has to wait.
    """
    served: Told = []
    Item = make(registry, database, served, others=False)

    @post_save(Item, name="other")
    async def other(sender: Any, instance: Any, **kwargs: Any) -> None:
        served.append(("post_save", "other", instance.n, "stream"))

    foreign.create_collection("items")
    async with dispatching(registry):
        await until_announced(state)
        await held.begin(held.Item(n=1).create())
        foreign["items"].insert_one({"n": 2})
        await eventually(lambda: ("post_save", "any", 2, "stream") in served)
        foreign["items"].update_one({"n": 1}, {"$set": {"n": 3}})
        foreign["items"].update_one({"n": 2}, {"$set": {"n": 4}})
        await eventually(lambda: ("post_update", "any", 4, "stream") in served)
        assert ("post_save", "other", 1, "stream") in served
        assert [one for one in served if one[2] == 3] == []
        await held.finish()
        await until_passed(state)
    assert ("post_update", "any", 3, "stream") in served
    assert [one for one in served if one[:3] == ("post_save", "any", 1)] == []


@pytest.mark.parametrize("call", kill_points.CALLS)
async def test_after_the_end_of_a_book_a_call_waits_for_the_new_book(
    registry, database, foreign, announced, state, call
):
    """A dispatcher fences the book, for example, while the process is stopped."""
    Item = kill_points.make(registry, database, lambda *told: None)
    await Item(id=kill_points.id_of(9), n=1).create()
    if rows := kill_points.existing(call)[:3]:
        foreign.items.insert_many(rows)
    before = registry.claims.book
    state.claims.update_one({}, {"$set": {"fenced_at": "now", "fenced_by": "dispatcher"}})
    before.end()
    await kill_points.CALLS[call].run(Item, 0)
    signals = kill_points.CALLS[call].signals
    assert (registry.claims.book.high, registry.claims.unclaimed) == (len(signals), {})
    assert registry.claims.book is not before


async def test_a_delete_that_is_tried_again_after_the_end_of_its_book_is_claimed(
    registry, database, foreign, announced, monkeypatch
):
    """The server aborts the transaction of a process that is stopped, so the delete is tried again."""
    Item = make(registry, database, [])
    item = await Item(n=1).create()
    before, make_claim = registry.claims.book, registry.claims.claim
    made: list[Any] = []
    with foreign.client.start_session() as other, other.start_transaction():
        foreign.items.update_one({}, {"$set": {"n": 2}}, session=other)  # the first attempt gets a write conflict

        def claim(*args: Any, **options: Any) -> Any:
            made.append(make_claim(*args, **options))
            if len(made) == 2:
                other.abort_transaction()
            before.end()
            return made[-1]

        monkeypatch.setattr(registry.claims, "claim", claim)
        await item.delete()
    assert (len(made), made[0].book, made[1].book) == (2, before, registry.claims.book)
    assert registry.claims.unclaimed == {}
