"""A dispatcher takes over the claimed deliveries that the writing process did not finish."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pymongo.errors import PyMongoError

import mongoz
from dispatcher.claims.store import ClaimStore
from dispatcher.parking.store import HeldStore
from mongoz.claims.beats import BeatPause
from mongoz.claims.book import MOST_RELEASED
from mongoz.core.signals import post_save, post_update
from mongoz.stamps import Stamp
from tests.integration.claiming import SECONDS, Held, Told, claim_in, claiming, make, until_announced, until_passed
from tests.support import ROOT, dispatching, eventually


@pytest.fixture
async def registry(mongo: Any, database: str) -> AsyncIterator[mongoz.Registry]:
    """A registry with claims: the registry of the dispatcher.

    In tests without a dispatcher, it is the registry of the writing process.
    """
    async with claiming(mongo.url, database) as made:
        yield made


# -- the writing process


async def test_the_first_write_of_a_process_is_claimed(registry, database, foreign, announced, state):
    Item = make(registry, database, [])
    await Item(n=1).create()
    claim = claim_in(foreign.items.find_one())
    book = state.claims.find_one()
    assert book["_id"] == claim.incarnation.hex()
    assert claim.number == 1
    assert {bytes(one["id"]) for one in book["receivers"] if one["signal"] == "post_save"} == claim.receivers
    assert {one["name"] for one in book["receivers"]} == {"any"}
    assert (book["group"], book["seconds"], book["pid"]) == (database, SECONDS, os.getpid())


async def test_nothing_is_claimed_before_a_dispatcher_announces_takeovers(registry, database, foreign, caplog):
    Item = make(registry, database, [])
    await Item(n=1).create()
    assert claim_in(foreign.items.find_one()) is None
    assert registry.claims.unclaimed == {"not announced": 1}
    assert "no dispatcher of the group" in caplog.text


async def test_nothing_is_claimed_if_claims_are_turned_off(mongo, database, foreign, announced):
    async with claiming(mongo.url, database, claims=False) as registry:
        Item = make(registry, database, [])
        await Item(n=1).create()
    assert claim_in(foreign.items.find_one()) is None


@pytest.mark.parametrize("claims", [0, -1, "yes", 1e9, None])
def test_a_wrong_timeout_is_refused(claims):
    with pytest.raises(mongoz.ImproperlyConfigured, match="claims="):
        mongoz.Registry("mongodb://127.0.0.1", dispatched=True, claims=claims)


async def test_a_receiver_that_no_beat_has_named_is_not_claimed(registry, database, foreign, announced):
    told: Told = []
    Item = make(registry, database, told)
    await Item(n=1).create()

    @post_save(Item, name="late")
    async def late(sender: Any, instance: Any, **kwargs: Any) -> None: ...

    await Item(n=2).create()
    stamp = Stamp.unpack(foreign.items.find_one({"n": 2})["_mongoz"])
    assert len(stamp.receivers) == 2
    assert len(stamp.claim.receivers) == 1
    assert registry.claims.unclaimed == {"new receiver": 1}


async def test_a_registry_with_a_client_of_the_application_claims(mongo, driver, database, foreign, announced):
    import motor.motor_asyncio
    from pymongo import AsyncMongoClient

    make_client = AsyncMongoClient if driver == "pymongo" else motor.motor_asyncio.AsyncIOMotorClient
    client = make_client(mongo.url)
    async with claiming(client, database) as registry:
        await make(registry, database, [])(n=1).create()
        assert claim_in(foreign.items.find_one()) is not None
    closed = client.close()
    if closed is not None:
        await closed


async def raising(name: str, instance: Any, delivery: Any) -> None:
    raise ValueError(name)


async def write_all(Item: Any) -> None:
    """Makes every kind of call that runs receivers."""
    one = await Item(n=1).create()
    one.n = 2
    await one.save()
    await one.update(n=3)
    await Item.objects.create_many([Item(n=4), Item(n=5)])
    await Item.objects.filter(n=4).update_many(n=6)
    await Item.objects.get_or_create(n=7)
    await one.delete()
    await Item.objects.filter(n=6).delete()


async def test_claims_are_done_when_their_receivers_have_run(registry, database, announced):
    told: Told = []
    await write_all(make(registry, database, told))
    assert len(told) == 9
    taken = registry.claims.book.snapshot()
    assert (taken.high, taken.open, taken.released) == (9, (), ())


async def test_claims_are_done_when_their_receivers_have_raised(registry, database, announced):
    Item = make(registry, database, [], on_delivery=raising)
    for write in (Item(n=1).create(), Item.objects.create_many([Item(n=2), Item(n=3)])):
        with pytest.raises((ValueError, ExceptionGroup)):
            await write
    assert registry.claims.book.snapshot() == (3, (), ())


async def test_a_claim_of_a_refused_write_is_done(registry, database, foreign, announced):
    Item = make(registry, database, [])
    foreign.items.create_index("n", unique=True)
    await Item(n=1).create()
    with pytest.raises(PyMongoError):
        await Item(n=1).create()
    with pytest.raises(PyMongoError):
        await Item.objects.create_many([Item(n=2), Item(n=1), Item(n=3)])
    taken = registry.claims.book.snapshot()
    assert (taken.open, taken.released) == ((), ())


async def test_claims_of_an_aborted_transaction_are_done(registry, database, announced):
    told: Told = []
    Item = make(registry, database, told)

    async def abort() -> None:
        async with registry.transaction():
            await write_all(Item)
            assert registry.claims.book.has_open
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await abort()
    taken = registry.claims.book.snapshot()
    assert (told, taken.open, taken.released) == ([], (), ())
    assert taken.high > 0


async def test_claims_of_a_transaction_stay_open_until_their_receivers_end(registry, database, announced):
    open_: list[tuple[int, ...]] = []

    async def look(name: str, instance: Any, delivery: Any) -> None:
        open_.append(registry.claims.book.snapshot().open)

    Item = make(registry, database, [], on_delivery=look)
    async with registry.transaction():
        await Item(n=1).create()
        await Item(n=2).create()
    assert open_ == [(1, 2), (2, 2)]
    assert registry.claims.book.snapshot() == (2, (), ())


async def test_a_call_that_ends_with_its_event_loop_releases_its_claim(mongo, database, announced):
    """The end of the event loop cancels the receiver."""
    registry = claiming(mongo.url, database)
    entered = asyncio.Event()

    async def hang(name: str, instance: Any, delivery: Any) -> None:
        entered.set()
        await asyncio.sleep(3600)

    Item = make(registry, database, [], on_delivery=hang)

    async def tear() -> None:
        write = asyncio.ensure_future(Item(n=1).create())
        await entered.wait()
        del write

    def in_a_loop_of_its_own() -> Any:
        asyncio.run(tear())
        return registry.claims.book.snapshot()

    assert await asyncio.to_thread(in_a_loop_of_its_own) == (1, (), (1,))
    await asyncio.to_thread(registry.claims.close)


async def test_a_process_whose_book_is_fenced_claims_in_a_new_book(registry, database, foreign, announced, state):
    told: Told = []
    Item = make(registry, database, told)
    await Item(n=1).create()
    book = registry.claims.book
    state.claims.update_one({}, {"$set": {"fenced_at": 1}})
    await eventually(lambda: registry.claims.book is not book, what="a new book")
    assert book.is_over
    await eventually(lambda: registry.claims.book.is_valid, what="the first beat of the new book")
    await Item(n=2).create()
    assert claim_in(foreign.items.find_one({"n": 2})).incarnation == registry.claims.book.incarnation
    assert [n for _, _, n, _ in told] == [1, 2]


async def test_a_write_after_the_end_of_the_book_is_unclaimed_and_runs_its_receivers(
    registry, database, announced
):
    """The receiver `fence` ends the book. Later receivers still run, because an unclaimed write needs no book."""
    told: Told = []
    Item = make(registry, database, told)

    async def fence(sender: Any, instance: Any, **kwargs: Any) -> None:
        registry.claims.book.end()

    post_update(Item, name="fence", delivery="process")(fence)
    one = await Item(n=1).create()

    @post_update(Item, name="after", delivery="process")
    async def after(sender: Any, instance: Any, **kwargs: Any) -> None:
        told.append(("post_update", "after", instance.n, "process"))

    registry.claims.book.end()
    await one.update(n=2)  # unclaimed: the receivers run here
    assert [(name, n) for _, name, n, _ in told] == [("any", 1), ("any", 2), ("after", 2)]


async def test_a_process_with_many_released_claims_begins_a_new_book(registry, database, announced, state):
    Item = make(registry, database, [])
    await Item(n=1).create()
    book = registry.claims.book
    for _ in range(MOST_RELEASED + 1):
        book.claim()
    await eventually(lambda: registry.claims.book is not book, what="a new book")
    ended = {"_id": book.incarnation.hex(), "fenced_by": "process"}
    found = await eventually(lambda: state.claims.find_one(ended), what="the end of the book")
    assert (found["open"], len(found["released"])) == ([], MOST_RELEASED + 1)


async def test_closing_a_registry_ends_its_book(mongo, database, announced, state):
    async with claiming(mongo.url, database) as registry:
        await make(registry, database, [])(n=1).create()
    (book,) = state.claims.find()
    assert (book["high"], book["open"], book["fenced_by"]) == (1, [], "process")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
async def test_a_forked_child_begins_a_book_of_its_own(registry, database, announced):
    Item = make(registry, database, [])
    await Item(n=1).create()
    before = registry.claims.book
    claim = before.claim()
    pid = os.fork()
    if pid == 0:
        fine = registry.claims.book.incarnation != before.incarnation and not claim.may_start
        os._exit(0 if fine and not registry.claims.is_ready else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert claim.may_start
    assert registry.claims.book is before


# -- takeovers

WRITER = """
import asyncio, os, signal, sys
from tests.integration.claiming import claiming, make

url, database, call = sys.argv[1:]

async def die(name, instance, delivery):
    if delivery.signal != "post_save" or instance.n != 1:
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    registry = claiming(url, database)
    Item = make(registry, database, [], on_delivery=die)
    one = await Item(n=1).create()
    claims = registry.client[database + "_state"].claims
    while not await claims.find_one({"high": 1, "open": []}):
        await asyncio.sleep(0.05)
    if call == "create":
        await Item(n=2).create()
    elif call == "update":
        await one.update(n=2)
    elif call == "create_many":
        await Item.objects.create_many([Item(n=2), Item(n=3)])
    elif call == "delete":
        await one.delete()
    elif call == "transaction":
        async with registry.transaction():
            await Item(n=2).create()
            await Item(n=3).create()

asyncio.run(main())
"""


def kill_while_writing(url: str, database: str, call: str) -> None:
    arguments = [sys.executable, "-c", WRITER, url, database, call]
    environment = {**os.environ, "PYTHONPATH": str(Path(ROOT))}
    ended = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr


@pytest.mark.parametrize(
    ("call", "taken"),
    [
        ("create", {("post_save", 2)}),
        ("update", {("post_update", 2)}),
        ("create_many", {("post_save", 2), ("post_save", 3)}),
        ("delete", {("post_delete", None)}),
        ("transaction", {("post_save", 2), ("post_save", 3)}),
    ],
)
async def test_a_dispatcher_takes_over_what_a_killed_process_has_not_finished(
    call, taken, mongo, database, foreign, registry
):
    told: Told = []
    ids: set[str] = set()

    async def note(name: str, instance: Any, delivery: Any) -> None:
        if name == "any":
            ids.add(delivery.id)

    make(registry, database, told, on_delivery=note)
    foreign.create_collection("items")
    async with dispatching(registry, claim_timeout=1.0):
        await eventually(lambda: foreign.client[f"{database}_state"].positions.find_one({"claims": True}))
        await asyncio.to_thread(kill_while_writing, mongo.url, database, call)
        await eventually(lambda: len(told) >= 1 + 2 * len(taken), what="takeovers")
    found = [(signal_, n) for signal_, name, n, _ in told if name == "any"]
    assert sorted(found) == sorted(taken)
    assert {origin for _, name, _, origin in told if name == "any"} == {"takeover"}
    assert len(ids) == len(taken)
    if call != "delete":
        assert ids <= {str(Stamp.unpack(row["_mongoz"]).token) for row in foreign.items.find()}


async def test_a_dispatcher_runs_nothing_again_that_a_process_has_finished(registry, mongo, database, state):
    told: Told = []
    served: Told = []
    make(registry, database, served)
    async with claiming(mongo.url, database) as writing, dispatching(registry, claim_timeout=1.0):
        await eventually(lambda: state.positions.find_one({"claims": True}))
        await write_all(make(writing, database, told))
        await until_passed(state)
    assert [name for _, name, _, _ in served] == ["durable"] * 9
    assert [name for _, name, _, _ in told] == ["any"] * 9


async def test_other_receivers_do_not_wait_for_an_open_claim(registry, database, foreign, state, held):
    served: Told = []
    make(registry, database, served)
    foreign.create_collection("items")
    async with dispatching(registry):
        await until_announced(state)
        await held.begin(held.Item(n=1).create())
        await eventually(lambda: ("post_save", "durable", 1, "stream") in served)
        foreign.items.update_one({}, {"$set": {"n": 2}})
        await eventually(lambda: ("post_update", "durable", 2, "stream") in served)
        foreign.items.insert_one({"n": 3})
        await eventually(lambda: ("post_save", "any", 3, "stream") in served)
        assert ("post_update", "any", 2, "stream") not in served
        await held.finish()
        await eventually(
            lambda: ("post_update", "any", 2, "stream") in served, what="the delivery that waits for the claim"
        )
        await until_passed(state)
    assert [one for one in served if one[:3] == ("post_save", "any", 1)] == []


async def test_open_claims_do_not_stop_the_reading_of_the_stream(registry, database, foreign, state, held):
    """A process with many writes can have more open claims than the queue has places."""
    served: Told = []
    make(registry, database, served)
    foreign.create_collection("items")
    async with dispatching(registry, max_queued=3) as running:
        await until_announced(state)
        for number in range(10):
            await held.begin(held.Item(n=number).create())
        foreign.items.insert_one({"n": 99})
        await eventually(lambda: ("post_save", "any", 99, "stream") in served)
        await eventually(
            lambda: all(one.lag_seconds == one.lag_changes == 0 for one in running.service.gauges().values()),
            what="changes with open claims do not count as lag",
        )
        assert sum(one.queued for one in running.service.gauges().values()) == 10
        await held.finish()
        await until_passed(state)


async def test_a_delivery_that_waits_for_a_claim_causes_an_early_beat_and_an_early_read_of_the_book(
    registry, mongo, database, foreign, state, monkeypatch
):
    monkeypatch.setattr("mongoz.claims.beats.pause_after", lambda *_, **__: BeatPause(0.0, 0.0, 3_600.0))
    monkeypatch.setattr("dispatcher.claims.watch._PACE", 3_600.0)
    served: Told = []
    make(registry, database, served)
    foreign.create_collection("items")
    held = Held(mongo.url, database, claims=600.0)
    async with dispatching(registry), held.registry:
        await until_announced(state)
        await held.begin(held.Item(n=1).create())
        foreign.items.update_one({}, {"$set": {"n": 2}})
        await eventually(lambda: ("post_update", "durable", 2, "stream") in served)
        assert ("post_update", "any", 2, "stream") not in served
        await held.finish()
        await eventually(lambda: ("post_update", "any", 2, "stream") in served)
        await until_passed(state)


async def test_a_receiver_of_the_process_can_wait_for_a_receiver_of_the_dispatcher(
    registry, database, state, held
):
    served: Told = []
    make(registry, database, served)
    async with dispatching(registry):
        await until_announced(state)
        await held.begin(held.Item(n=1).create())
        await eventually(lambda: ("post_save", "durable", 1, "stream") in served)
        await held.finish()
        await until_passed(state)
    assert len(served) == 1


@pytest.mark.parametrize("outcome", ["the process finishes", "the process is fenced"])
async def test_receivers_that_have_run_while_a_claim_is_open_are_not_repeated_after_a_restart(
    outcome, registry, database, state, foreign, held
):
    served: Told = []
    make(registry, database, served)
    async with dispatching(registry):
        await until_announced(state)
        await held.begin(held.Item(n=1).create())
        await eventually(lambda: served)
    assert state.held.count_documents({"state": "claimed"}) == 1
    if outcome == "the process finishes":
        await held.finish()
    else:
        state.claims.update_one(held.book, {"$set": {"fenced_at": 1}})
    async with dispatching(registry):
        await eventually(lambda: not state.held.find_one(), what="the claim is decided")
        await until_passed(state)
    taken = [("post_save", "any", 1, "takeover")] if outcome == "the process is fenced" else []
    assert served == [("post_save", "durable", 1, "stream"), *taken]


@pytest.mark.parametrize("finishes", [True, False])
async def test_a_claimed_delivery_that_waits_for_long_is_parked_with_its_followers(
    finishes, registry, database, state, foreign, held
):
    served: Told = []
    make(registry, database, served)
    foreign.create_collection("items")
    async with dispatching(registry, park_after=0.1):
        await until_announced(state)
        await held.begin(held.Item(n=1).create())
        foreign.items.update_one({}, {"$set": {"n": 2}})
        await eventually(lambda: state.held.count_documents({}) == 2, what="the claim and its follower are parked")
        await until_passed(state)
        assert [one for one in served if one[1] == "any"] == []
        if finishes:
            await held.finish()
        else:
            state.claims.update_one(held.book, {"$set": {"fenced_at": 1}})
        await eventually(lambda: not state.held.find_one(), what="no delivery is parked")
    taken = [] if finishes else [("post_save", "any", 1, "takeover")]
    assert [one for one in served if one[1] == "any"] == [*taken, ("post_update", "any", 2, "stream")]


@pytest.fixture
async def patient(mongo: Any, database: str) -> AsyncIterator[Held]:
    """A writing process whose claims have a long timeout, so that they do not end on a busy machine."""
    made = Held(mongo.url, database, claims=20.0)
    yield made
    await made.finish()
    await made.registry.close()


@pytest.mark.parametrize("restarts", [False, True])
async def test_parked_claims_are_read_once_before_their_process_dies_and_once_after(
    restarts, registry, database, state, foreign, patient, monkeypatch
):
    """It does not matter how long the claims wait. Only a new dispatcher reads them once more, at its start."""
    monkeypatch.setattr("dispatcher.claims.waiting._LONGEST", 0.1)
    served: Told = []
    make(registry, database, served, others=False)
    foreign.create_collection("items")
    rows, books, due = Counted(HeldStore, "read"), Counted(ClaimStore, "read"), Counted(HeldStore, "make_due")
    for counted in (rows, books, due):
        monkeypatch.setattr(counted.owner, counted.name, counted.method)
    count, judged = 100, {"state": "claimed", "$expr": {"$gt": ["$due_at", {"$add": ["$$NOW", 60_000]}]}}

    async def until_judged() -> None:
        await eventually(lambda: state.held.count_documents(judged) == count, what="all claims are parked")
        before, seen = books.calls, rows.items
        await eventually(lambda: books.calls >= before + 3, what="the books are read again")
        assert rows.items == seen, "nothing is read while the claims are undecided"

    async with dispatching(registry):
        await until_announced(state)
        patient.writes += [asyncio.ensure_future(patient.Item(n=n).create()) for n in range(count)]
        await until_judged()
        if not restarts:
            state.claims.update_one(patient.book, {"$set": {"fenced_at": 1}})
            await eventually(lambda: not state.held.find_one(), what="no delivery is parked")
    if restarts:
        async with dispatching(registry):
            await until_judged()
            state.claims.update_one(patient.book, {"$set": {"fenced_at": 1}})
            await eventually(lambda: not state.held.find_one(), what="no delivery is parked")
    assert sorted(served) == [("post_save", "any", n, "takeover") for n in range(count)]
    assert rows.items <= (3 if restarts else 2) * count
    assert due.calls <= 5, "one command makes many deliveries due"


class Counted:
    """Counts the items of the lists that a method gets, and the calls with a list that is not empty."""

    def __init__(self, owner: Any, name: str) -> None:
        self.owner, self.name = owner, name
        self.calls = self.items = 0
        original = getattr(owner, name)

        async def method(instance: Any, several: Any, *args: Any) -> Any:
            self.calls += bool(several)
            self.items += len(several)
            return await original(instance, several, *args)

        self.method = method


async def test_an_open_claim_that_holds_the_position_does_not_stop_the_stream(
    registry, database, state, foreign, held, monkeypatch
):
    served: Told = []
    make(registry, database, served, others=False)
    monkeypatch.setattr("dispatcher.position.checkpoint._LONGEST_SPAN", 10)
    monkeypatch.setattr("dispatcher.claims.waiting._LONGEST", 1e9)
    monkeypatch.setattr("dispatcher.claims.waiting._LONG_WAIT", 0.1)
    foreign.create_collection("items")
    async with dispatching(registry):
        await until_announced(state)
        await held.begin(held.Item(n=1).create())
        foreign.items.insert_many([{"n": number} for number in range(2, 50)])
        await eventually(lambda: len(served) == 48, what="the other documents")
        assert state.held.count_documents({"state": "claimed"}) == 1
        await held.finish()
        await until_passed(state)
    assert len(served) == 48


async def test_done_claims_in_a_backlog_are_not_taken_over(registry, mongo, database, state, announced, foreign):
    told: Told = []
    served: Told = []
    make(registry, database, served, others=False)
    async with claiming(mongo.url, database) as writing:
        Item = make(writing, database, told)
        async with dispatching(registry):  # the group announces takeovers
            await until_announced(state)
        await Item.objects.create_many([Item(n=number) for number in range(300)])
    async with dispatching(registry):
        await until_passed(state)
    assert (len(told), served) == (300, [])


async def test_a_takeover_gets_the_current_document_if_a_later_write_of_the_odm_is_done(
    registry, mongo, database, state, foreign, held
):
    """The receiver keeps an index. A takeover must not put an older document into the index."""
    index: dict[Any, Any] = {}
    seen: list[tuple[str, bool, str]] = []

    async def note(name: str, instance: Any, delivery: Any) -> None:
        if name == "any":
            index[instance.id] = instance.n
            seen.append((delivery.image, delivery.superseded, delivery.origin))

    make(registry, database, [], on_delivery=note, others=False)
    foreign.create_collection("items")
    async with dispatching(registry, claim_timeout=1.0):
        await until_announced(state)
        await held.begin(held.Item(n=1).create())
        async with claiming(mongo.url, database) as other:
            Other = make(other, database, [], others=False)
            await (await Other.objects.get()).update(n=2)
        state.claims.update_one(held.book, {"$set": {"fenced_at": 1}})
        await eventually(lambda: seen, what="the takeover")
        await until_passed(state)
    assert seen == [("current", True, "takeover")]
    assert list(index.values()) == [2]


async def test_a_stopped_process_starts_nothing_after_its_takeover(registry, mongo, database, state, foreign):
    """Before its receiver begins, the process is stopped for longer than the timeout of its claims."""
    served: Told = []
    make(registry, database, served, others=False)
    foreign.create_collection("items")
    writer = f"""
import asyncio, os, signal
from tests.integration.claiming import claiming, make
from mongoz.core.signals import post_save
async def stop(name, instance, delivery):
    print("ran", name, instance.n, flush=True)
async def main():
    registry = claiming({mongo.url!r}, {database!r})
    Item = make(registry, {database!r}, [], on_delivery=stop, others=False)
    await Item(n=1).create()
    async def pause(sender, **kwargs):
        os.kill(os.getpid(), signal.SIGSTOP)
    post_save(Item, name="early", delivery="process")(pause)
    signal_ = Item.meta.signals.post_save
    signal_.disconnect(next(r.function for r in signal_.receivers if r.name == "any"))
    async def after(sender, instance, **kwargs):
        print("ran after", instance.n, flush=True)
    post_save(Item, name="any")(after)
    await Item(n=2).create()
    print("unclaimed", dict(registry.claims.unclaimed), flush=True)
asyncio.run(main())
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(ROOT))}
    async with dispatching(registry, claim_timeout=1.0):
        await until_announced(state)
        process = subprocess.Popen(
            [sys.executable, "-c", writer], env=environment, stdout=subprocess.PIPE, text=True
        )
        try:
            await eventually(lambda: ("post_save", "any", 2, "takeover") in served, what="the takeover")
            process.send_signal(signal.SIGCONT)
            output, _ = await asyncio.to_thread(process.communicate, timeout=60)
        finally:
            process.kill()
            process.wait()
        await until_passed(state)
    assert "ran after 2" not in output
    assert [one for one in served if one[2] == 2] == [("post_save", "any", 2, "takeover")]


async def test_a_receiver_that_the_dispatcher_lacks_is_parked_until_a_dispatcher_has_it(
    registry, mongo, database, state, foreign, held
):
    """The application gets its new version before the dispatcher does.

    So at first only the application has the receiver.
    """
    served: Told = []
    make(registry, database, served)
    foreign.create_collection("items")

    @post_save(held.Item, name="new")
    async def new(sender: Any, instance: Any, **kwargs: Any) -> None: ...

    async with dispatching(registry) as running:
        await until_announced(state)
        await held.begin(held.Item(n=1).create())
        state.claims.update_one(held.book, {"$set": {"fenced_at": 1}})
        orphan = await eventually(lambda: state.held.find_one({"state": "orphaned"}), what="the orphan is parked")
        await eventually(lambda: ("post_save", "any", 1, "takeover") in served)
        await until_passed(state)
        assert (running.stats.taken_over, running.stats.orphaned) == (1, 1)
    assert (orphan["receiver"], orphan["signal"]) == ("new", "post_save")
    assert orphan["delivery_id"] == str(Stamp.unpack(foreign.items.find_one()["_mongoz"]).token)
    state.held.update_one({}, {"$set": {"due_at": orphan["wall_time"]}})
    async with claiming(mongo.url, database) as newer:
        Item = make(newer, database, served)

        @post_save(Item, name="new")
        async def found(sender: Any, instance: Any, delivery: Any, **kwargs: Any) -> None:
            served.append((delivery.signal, "new", instance.n, delivery.origin))

        async with dispatching(newer):
            await eventually(lambda: ("post_save", "new", 1, "takeover") in served, what="the orphan is delivered")


async def test_a_dead_letter_of_a_takeover_keeps_its_id_and_its_origin(registry, database, state, foreign, held):
    origins: list[tuple[str, str, bool]] = []

    async def fail(name: str, instance: Any, delivery: Any) -> None:
        if name == "any":
            origins.append((delivery.id, delivery.origin, delivery.replayed))
            raise ValueError(name)

    make(registry, database, [], on_delivery=fail, others=False)
    async with dispatching(registry, park_after=0.0):
        await until_announced(state)
        await held.begin(held.Item(n=1).create())
        state.claims.update_one(held.book, {"$set": {"fenced_at": 1}})
        letter = await eventually(lambda: state.held.find_one({"state": "dead"}), what="the dead letter")
    token = str(Stamp.unpack(foreign.items.find_one()["_mongoz"]).token)
    assert letter["delivery_id"] == token
    assert letter["takeover"] == {"superseded": False}
    assert set(origins) == {(token, "takeover", False)}
