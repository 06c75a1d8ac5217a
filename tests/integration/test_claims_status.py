"""Operators see the claims of writing processes, and can release the claims with a command."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import pytest
from pymongo import AsyncMongoClient

import mongoz
from dispatcher.claims.store import ClaimStore
from dispatcher.core.state import Group
from dispatcher.operate.claims import release
from dispatcher.operate.status import read_status
from mongoz.claims.document import BookState
from tests.acceptance.commands import run_command
from tests.books import book
from tests.integration.claiming import Told, claim_in, claiming, make, until_announced
from tests.support import PATIENCE, dispatching, eventually, group_of

FENCED = {"fenced_at": datetime(2026, 1, 1), "fenced_by": "process"}


@pytest.fixture
async def group(mongo: Any, database: str) -> AsyncIterator[Group]:
    async with AsyncMongoClient(mongo.url) as client:
        yield group_of(client, database)


@pytest.fixture
async def registry(mongo: Any, database: str) -> AsyncIterator[mongoz.Registry]:
    """The registry of the dispatcher."""
    async with claiming(mongo.url, database) as made:
        yield made


# -- the status


async def test_the_status_counts_open_claims_only_of_books_that_have_not_ended(group, state, database):
    state.claims.insert_many(
        [
            book(database, 1, released=[7]),
            book(database, 2, silent=7_200, open=[1, 1, 5, 9]),
            book(database, 3, silent=7_200, open=[]),  # this process was killed without an open claim
            book(database, 4, **FENCED),
            book("another", 5),
        ]
    )
    claims = (await read_status(group)).claims
    assert (claims.processes, claims.open, claims.released) == (1, 8, 1)
    assert [(one.pid, one.open, one.alive) for one in claims.books] == [(2, 6, False), (1, 2, True)]


@pytest.mark.parametrize(("books", "at_least"), [(3, ["claims"]), (2, [])])
async def test_a_status_counts_a_bounded_number_of_books(group, state, database, books, at_least, monkeypatch):
    monkeypatch.setattr("dispatcher.operate.claims._MOST_BOOKS", 3)
    monkeypatch.setattr("dispatcher.operate.claims._SHOWN", 1)
    state.claims.insert_many([book(database, number) for number in range(books)])
    status = await read_status(group)
    assert (status.claims.open, len(status.claims.books), status.at_least) == (2 * books, 1, at_least)


async def test_the_status_reads_books_by_an_index(group, state, database):
    await group.state.create_indexes()
    state.claims.insert_many([book(database, number, **FENCED) for number in range(50)])
    await read_status(group)
    uses = {one["name"]: one["accesses"]["ops"] for one in state.claims.aggregate([{"$indexStats": {}}])}
    assert uses["unfinished"] == 1


async def claims_when(group: Group, condition: Any) -> Any:
    """The claims of the status, as soon as a condition is true."""
    async with asyncio.timeout(PATIENCE):
        while not condition(claims := (await read_status(group)).claims):
            await asyncio.sleep(0.05)
    return claims


async def test_a_delivery_that_waits_is_shown_with_its_process(registry, group, database, foreign, state, held):
    served: Told = []
    make(registry, database, served, others=False)
    foreign.create_collection("items")
    async with dispatching(registry, lease=1.0) as running:
        await until_announced(state)
        await held.begin(held.Item(n=1).create())
        foreign.items.update_one({}, {"$set": {"n": 2}})  # the delivery of this change waits for the claim
        claims = await claims_when(group, lambda found: found.waiting == 2)
        process = held.book["_id"]
        assert [(one.process, one.waiting) for one in claims.books] == [(process, 2)]
        assert claims.oldest_seconds > 0
        assert running.service.observer.snapshot().pipelines[0].claims.processes == {process: 2}
        await held.finish()
        await eventually(lambda: served == [("post_update", "any", 2, "stream")])
        claims = await claims_when(group, lambda found: found.waiting == 0 and found.open == 0)
        assert (claims.oldest_seconds, claims.taken_over) == (0.0, 0)


# -- a release by an operator


async def test_a_released_process_goes_on_with_a_new_book(registry, group, mongo, database, foreign, state, held):
    served: Told = []
    make(registry, database, served, others=False)
    foreign.create_collection("items")
    async with dispatching(registry, lease=1.0) as running:
        await until_announced(state)
        await held.begin(held.Item(n=1).create())
        process = held.book["_id"]
        await eventually(lambda: state.claims.find_one({"_id": process, "open": [1, 1]}), what="a beat")
        place = ("--url", mongo.url, "--state-database", f"{database}_state")
        ended = await asyncio.to_thread(run_command, "claims", "release", process[:8], "--yes", *place)
        assert ended.code == 0, ended.error
        assert f"Released 1 open claim of process {process}" in ended.out
        await eventually(lambda: served == [("post_save", "any", 1, "takeover")], what="the takeover")
        assert state.claims.find_one({"_id": process})["fenced_by"] == "operator"
        await eventually(lambda: held.book["_id"] != process, what="a new book")
        await held.finish()
        await eventually(lambda: held.registry.claims.book.is_valid, what="the first beat of the new book")
        await held.Item(n=2).create()
        assert claim_in(foreign.items.find_one({"n": 2})).incarnation.hex() == held.book["_id"]
        assert [n for _, _, n, _ in held.told] == [1, 2]
        assert running.stats.taken_over == 1
        await claims_when(group, lambda found: found.taken_over == 1)


async def test_a_beat_during_a_release_does_not_prevent_the_release(group, state, database, monkeypatch):
    state.claims.insert_one(book(database))
    beats = [6]
    read = ClaimStore.read

    async def read_before_a_beat(self: ClaimStore, incarnations: Any) -> dict[bytes, BookState | None]:
        found = await read(self, incarnations)
        if beats:
            state.claims.update_one({}, {"$set": {"beat": beats.pop()}})
        return found

    monkeypatch.setattr(ClaimStore, "read", read_before_a_beat)
    assert await release(group, f"{1:016x}")
    ended = state.claims.find_one()
    assert (ended["fenced_by"], ended["beat"]) == ("operator", 6)
    assert not await release(group, f"{1:016x}")
