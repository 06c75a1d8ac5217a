"""Claims of processes that fork, block their event loop, die together, or have different receivers."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import mongoz
from mongoz.core.signals import post_save
from mongoz.stamps import Stamp
from tests.integration.claiming import SECONDS, Told, claim_in, claiming, make, until_announced, until_passed
from tests.support import PATIENCE, ROOT, dispatching, eventually

BACKLOG = int(os.environ.get("CLAIMS_BACKLOG") or 3_000)
"""The writes of three processes before they are killed; 1,000,000 takes minutes."""


@pytest.fixture
async def registry(mongo: Any, database: str) -> AsyncIterator[mongoz.Registry]:
    """The registry of the dispatcher."""
    async with claiming(mongo.url, database) as made:
        yield made


START = """
import asyncio, os, signal, sys, time, pymongo
from mongoz.core.signals import post_save
from tests.integration.claiming import claiming, make

url, database, *rest = sys.argv[1:]

def tell(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
"""


@contextmanager
def process(script: str, *arguments: object) -> "Iterator[subprocess.Popen[str]]":
    """A writing process, which ends with the block."""
    running = subprocess.Popen(
        [sys.executable, "-c", START + script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield running
    finally:
        running.kill()
        running.communicate()


async def line_of(running: "subprocess.Popen[str]") -> str:
    assert running.stdout is not None
    return (await asyncio.to_thread(running.stdout.readline)).strip()


def incarnation_of(foreign: Any, n: int) -> bytes:
    stamp = Stamp.unpack(foreign["items"].find_one({"n": n})["_mongoz"])
    assert stamp is not None
    assert stamp.claim is not None
    return stamp.claim.incarnation


FORKING = """
async def receive(name, instance, delivery):
    if instance.n == 1:
        pid = os.fork()
        if pid == 0:
            asyncio._set_running_loop(None)
            asyncio.run(in_child())
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    tell("ran", instance.n, os.getpid() == parent)
    if instance.n == 3:
        os.kill(os.getpid(), signal.SIGKILL)

async def in_child():
    await Item(n=2).create()
    await registry.close()

async def main():
    await Item(n=1).create()
    await Item(n=3).create()

parent = os.getpid()
registry = claiming(url, database)
Item = make(registry, database, [], on_delivery=receive, others=False)
asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
async def test_a_fork_in_the_middle_of_a_claim_leaves_the_claim_to_the_parent(
    registry, mongo, database, state, foreign
):
    """The child writes with a new book. The parent finishes its open claim, and dies during its next claim."""
    served: Told = []
    make(registry, database, served, others=False)
    foreign.create_collection("items")
    async with dispatching(registry, claim_timeout=1.0):
        await until_announced(state)
        with process(FORKING, mongo.url, database) as forking:
            ran = [await line_of(forking) for _ in range(3)]
            assert await asyncio.to_thread(forking.wait, 60) == -signal.SIGKILL
        await eventually(lambda: served, what="the takeover")
        await until_passed(state)
    assert ran == ["ran 2 False", "ran 1 True", "ran 3 True"]
    assert [one for one in served if one[2] == 3] == [("post_save", "any", 3, "takeover")]
    assert [one for one in served if one[2] == 2] == []
    assert incarnation_of(foreign, 1) == incarnation_of(foreign, 3) != incarnation_of(foreign, 2)


async def test_threads_with_event_loops_of_their_own_share_a_book_for_each_registry(
    mongo, database, announced, state, foreign
):
    """No two claims of a book have the same number, and every claim ends."""
    told: Told = []
    registries = [claiming(mongo.url, database), claiming(mongo.url, database)]
    items = [make(one, database, told, others=False) for one in registries]

    async def write(Item: Any) -> None:
        await asyncio.gather(*(Item(n=n).create() for n in range(20)))

    def in_loops(Item: Any) -> None:
        for _ in range(2):
            asyncio.run(write(Item))

    await asyncio.gather(*(asyncio.to_thread(in_loops, Item) for Item in (*items, *items)))
    assert [one.claims.book.snapshot() for one in registries] == [(80, (), ())] * 2
    claims = [claim_in(row) for row in foreign["items"].find()]
    assert len({(one.incarnation, one.number) for one in claims}) == len(told) == 160
    for one in registries:
        await one.close()
    assert sorted((book["high"], book["fenced_by"]) for book in state.claims.find()) == [(80, "process")] * 2


ENDING = """
registry = claiming(url, database)
Item = make(registry, database, [], others=False)

async def write():
    await Item(n=1).create()
    await Item(n=2).create()
"""

ENDS = {
    "the end of the script": "asyncio.run(write())",
    "sys.exit": "asyncio.run(write()); sys.exit(3)",
    "an exception": "asyncio.run(write()); raise ZeroDivisionError",
    "an interrupt": """
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets background processes ignore the signal

async def interrupted():
    await write()
    signal.raise_signal(signal.SIGINT)
    await asyncio.sleep(60)

asyncio.run(interrupted())
""",
    "the end of a child of multiprocessing": """
import multiprocessing
child = multiprocessing.get_context("fork").Process(target=lambda: asyncio.run(write()))
child.start()
child.join()
""",
}


@pytest.mark.parametrize("end", ENDS)
async def test_a_process_that_ends_in_order_records_the_end_of_its_book(mongo, database, announced, state, end):
    """Otherwise receivers that have ended in the last second would run again."""
    with process(ENDING + ENDS[end], mongo.url, database) as ending:
        await asyncio.to_thread(ending.wait, 60)
    (book,) = state.claims.find()
    assert (book["high"], book["open"], book["released"], book.get("fenced_by")) == (2, [], [], "process")


BLOCKING = """
async def receive(name, instance, delivery):
    time.sleep(float(rest[0]))
    tell("ran", instance.n)

async def main():
    async with claiming(url, database) as registry:
        Item = make(registry, database, [], on_delivery=receive, others=False)
        await Item(n=1).create()
        await Item(n=2).create()
    tell("unclaimed", dict(registry.claims.unclaimed))

asyncio.run(main())
"""


@pytest.mark.slow
async def test_a_receiver_that_blocks_its_loop_for_longer_than_the_timeout_keeps_its_claim(
    registry, mongo, database, state, foreign
):
    """A thread makes the beats, so a blocked event loop does not stop the beats."""
    served: Told = []
    make(registry, database, served, others=False)
    foreign.create_collection("items")
    async with dispatching(registry, claim_timeout=1.0):
        await until_announced(state)
        with process(BLOCKING, mongo.url, database, 1.5 * SECONDS) as blocking:
            told = [await line_of(blocking) for _ in range(3)]
        await until_passed(state)
    assert told == ["ran 1", "ran 2", "unclaimed {}"]
    assert served == []
    assert incarnation_of(foreign, 1) == incarnation_of(foreign, 2)
    assert [row.get("fenced_by") for row in state.claims.find()] == ["process"]


DYING = """
count, place = int(rest[0]), int(rest[1])

def a_beat_has_recorded_finished_deliveries():
    with pymongo.MongoClient(url) as client:
        books = client[f"{database}_state"]["claims"]
        while not books.find_one({"pid": os.getpid(), "high": {"$gt": 0}, "open.0": {"$gt": 1}}):
            time.sleep(0.01)

async def receive(name, instance, delivery):
    ran.append(instance.n)
    if instance.n == first + count // 2:
        await asyncio.to_thread(a_beat_has_recorded_finished_deliveries)
    if instance.n == last:
        tell("ran", *ran)
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    registry = claiming(url, database)
    Item = make(registry, database, [], on_delivery=receive, others=False)
    for start in range(first, last + 1, 1000):
        await Item.objects.create_many([Item(n=n) for n in range(start, min(start + 1000, last + 2))])

first = place * (count + 1)
last, ran = first + count - 1, []
asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.timeout(300 + BACKLOG // 200)
async def test_writes_of_three_dead_processes_are_delivered_after_a_time_without_dispatchers(
    registry, mongo, database, state, foreign
):
    """Only deliveries that ended after the last beat of their process may run twice."""
    served: Told = []
    make(registry, database, served, others=False)
    foreign.create_collection("items")
    async with dispatching(registry):
        await until_announced(state)
    count = BACKLOG // 3
    ran: list[int] = []
    for place in range(3):
        with process(DYING, mongo.url, database, count, place) as dying:
            ran += map(int, (await line_of(dying)).split()[1:])
            assert await asyncio.to_thread(dying.wait, 60) == -signal.SIGKILL
    written = [row["n"] for row in foreign["items"].find({}, {"n": 1})]
    assert len(ran) == 3 * count <= len(written)
    now = state.client.admin.command("ping")["operationTime"]
    passed = {"cluster_time": {"$gte": now}}
    async with dispatching(registry, claim_timeout=1.0):
        await eventually(lambda: state.positions.find_one(passed), within=PATIENCE + BACKLOG // 1_000)
    taken = [n for _, _, n, _ in served]
    assert len(taken) == len(set(taken))
    assert {*ran, *taken} == set(written)
    assert {place * (count + 1) + count - 1 for place in range(3)} <= set(taken)
    assert len(taken) < len(written)
    assert {origin for *_, origin in served} == {"takeover"}


async def test_a_receiver_that_is_connected_later_is_taken_over(registry, mongo, database, state, foreign):
    """The dispatcher has read the book of the process before the process named the receiver in the book.

    A later change of the written document arrives before the dispatcher reads the book again.
    """
    served: Told = []
    waits = asyncio.Event()

    def connect(Item: Any, name: str, told: Told | None) -> None:
        @post_save(Item, name=name)
        async def receive(sender: Any, instance: Any, delivery: Any, **kwargs: Any) -> None:
            if told is None:
                await waits.wait()
            else:
                told.append((delivery.signal, name, instance.n, delivery.origin))

    connect(make(registry, database, served), "late", served)
    foreign.create_collection("items")
    async with claiming(mongo.url, database) as writing, dispatching(registry, claim_timeout=1.0):
        Item = make(writing, database, [])
        await until_announced(state)
        await Item(n=1).create()
        await until_passed(state)
        connect(Item, "late", None)
        await eventually(lambda: len(writing.claims.book.named) == 4, what="a beat with the new receiver")
        task = asyncio.create_task(Item(n=2).create())
        await eventually(lambda: foreign["items"].update_one({"n": 2}, {"$set": {"n": 3}}).matched_count)
        await eventually(lambda: ("post_save", "durable", 2, "stream") in served)
        state.claims.update_one({}, {"$set": {"fenced_at": 1}})
        await eventually(lambda: ("post_save", "late", 2, "takeover") in served, what="the takeover")
        waits.set()
        await task
        await until_passed(state)
    assert sorted(one[1:] for one in served if one[2] == 2) == [
        ("any", 2, "takeover"),
        ("durable", 2, "stream"),
        ("late", 2, "takeover"),
    ]


async def test_a_receiver_that_is_disconnected_later_is_taken_over(registry, mongo, database, state, foreign):
    """The process has an open claim to the receiver, so its later beats name the receiver, too."""
    served: Told = []
    make(registry, database, served, others=False)
    foreign.create_collection("items")
    waits = asyncio.Event()

    async def wait(name: str, instance: Any, delivery: Any) -> None:
        await waits.wait()

    async with claiming(mongo.url, database) as writing:
        Item = make(writing, database, [], on_delivery=wait, others=False)
        async with dispatching(registry):
            await until_announced(state)
        task = asyncio.create_task(Item(n=1).create())
        await eventually(lambda: state.claims.find_one({"open": [1, 1]}), what="the open claim")
        post = Item.meta.signals.post_save
        post.disconnect(post.receivers[0].function)
        beat = state.claims.find_one()["beat"]
        await eventually(lambda: state.claims.find_one()["beat"] > beat + 1, what="beats after the disconnect")
        state.claims.update_one({}, {"$set": {"fenced_at": 1}})
        async with dispatching(registry):
            await eventually(lambda: served == [("post_save", "any", 1, "takeover")], what="the takeover")
        waits.set()
        await task


@pytest.mark.slow
async def test_an_older_dispatcher_never_finishes_the_delivery_of_a_new_receiver(
    registry, mongo, database, state, foreign
):
    """The older dispatcher starts several times.

    Then a newer dispatcher makes the delivery with the id of the write.
    """
    served: Told = []
    make(registry, database, served, others=False)
    foreign.create_collection("items")
    waits = asyncio.Event()

    async with claiming(mongo.url, database) as writing:
        Item = make(writing, database, [], others=False)

        @post_save(Item, name="new")
        async def new(sender: Any, instance: Any, **kwargs: Any) -> None:
            await waits.wait()

        async with dispatching(registry):
            await until_announced(state)
            task = asyncio.create_task(Item(n=1).create())
            await eventually(lambda: state.claims.find_one({"open": [1, 1]}), what="the open claim")
            state.claims.update_one({}, {"$set": {"fenced_at": 1}})
            await eventually(lambda: state.held.find_one({"state": "orphaned"}), what="the orphan is parked")
            await until_passed(state)
        for _ in range(2):
            state.held.update_one({}, {"$set": {"due_at": foreign.client.admin.command("hello")["localTime"]}})
            async with dispatching(registry):
                foreign["items"].insert_one({"n": 2})
                await until_passed(state)
            assert state.held.count_documents({"receiver": "new"}) == 1
        waits.set()
        await task
    ids: list[str] = []
    async with claiming(mongo.url, database) as newer:
        Newer = make(newer, database, [], others=False)

        @post_save(Newer, name="new")
        async def found(sender: Any, instance: Any, delivery: Any, **kwargs: Any) -> None:
            if instance.n == 1:
                ids.append(delivery.id)

        state.held.update_one({}, {"$set": {"due_at": foreign.client.admin.command("hello")["localTime"]}})
        async with dispatching(newer):
            await eventually(lambda: ids, what="the orphan is delivered")
            await eventually(lambda: state.held.find_one() is None, what="the record ends")
    assert ids == [str(Stamp.unpack(foreign["items"].find_one({"n": 1})["_mongoz"]).token)]
