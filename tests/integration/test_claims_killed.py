"""A process is killed, is stopped, or loses its event loop at each await of each call.

Every claimed delivery runs to its end nevertheless.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import mongoz
from tests.integration.claiming import claiming, until_announced, until_passed
from tests.kill_points import (
    CALLS,
    CLAIMED,
    SECONDS,
    Family,
    Ran,
    effects,
    existing,
    family,
    make,
    number_of,
    numbers,
    ran,
)
from tests.support import dispatching, eventually

pytestmark = pytest.mark.slow


@pytest.fixture
async def registry(mongo: Any, database: str) -> AsyncIterator[mongoz.Registry]:
    async with claiming(mongo.url, database) as made:
        yield made


@pytest.fixture
def no_transactions_left(foreign: Any) -> Iterator[None]:
    """Ends the transactions of killed processes; the server would end them after a minute."""
    yield
    foreign.client.admin.command("killAllSessions", [])


class World:
    """One call, its writing processes, and the dispatcher's deliveries."""

    def __init__(self, call: str, registry: mongoz.Registry, database: str, foreign: Any, state: Any) -> None:
        self.call = call
        self.items = foreign["items"]
        self.state = state
        self.served: list[Ran] = []
        self.children = 0
        self.ledger: list[Ran] = []
        foreign.create_collection("items")
        if rows := existing(call):
            self.items.insert_many(rows)
        make(registry, database, lambda *told: self.served.append(ran(*told)))

    @property
    def wanted(self) -> set[tuple[str, int]]:
        """Signal and number of each write that took effect."""
        rows = {number_of(row["_id"]): row["n"] for row in self.items.find({}, {"n": 1})}
        return effects(self.call, self.children, rows)

    async def all_ran(self, processes: Family) -> None:
        """Waits until all deliveries of the writes that took effect have run to their ends."""

        def is_complete() -> bool:
            self.ledger = processes.ledger
            ends = {
                (one.receiver, one.signal, one.key) for one in (*self.ledger, *self.served) if one.what == "end"
            }
            return all((name, *write) in ends for name in (*CLAIMED, "durable") for write in self.wanted)

        await eventually(is_complete, what="all deliveries run")

    def check(self) -> None:
        """Checks that each write that took effect has correct deliveries, and that no other deliveries ended.

        A delivery is correct if it ran to its end, under one id, and at most once in each process.
        """
        everywhere = [one for one in (*self.ledger, *self.served) if self.numbers.get(one.key) == one.signal]
        ended = {(one.receiver, one.signal, one.key) for one in everywhere if one.what == "end"}
        wanted = self.wanted
        assert ended == {(name, *write) for name in (*CLAIMED, "durable") for write in wanted}
        ids: dict[tuple[str, int], set[str]] = {}
        for one in everywhere:
            if one.receiver in CLAIMED:
                ids.setdefault((one.signal, one.key), set()).add(one.id)
        assert {len(some) for some in ids.values()} == {1}
        for told in (self.ledger, self.served):
            begun = Counter((one.receiver, one.signal, one.key) for one in told if one.what == "begin")
            assert max(begun.values(), default=0) <= 1

    @property
    def numbers(self) -> dict[int, str]:
        """The numbers of the call's documents, each with its signal."""
        return numbers(self.call, self.children)

    def taken(self) -> list[Ran]:
        """The takeovers that have begun."""
        return [one for one in self.served if one.what == "begin" and one.origin == "takeover"]


@pytest.fixture(params=CALLS)
def world(
    request: Any, registry: mongoz.Registry, database: str, foreign: Any, state: Any, no_transactions_left: None
) -> World:
    return World(request.param, registry, database, foreign, state)


async def test_a_process_that_is_killed_at_any_await_loses_no_delivery(world, registry, mongo, database, tmp_path):
    async with dispatching(registry, claim_timeout=1.0):
        await until_announced(world.state)
        with family(mongo.url, database, world.call, "kill", tmp_path / "ledger") as processes:
            world.children = await asyncio.to_thread(processes.children)
            await world.all_ran(processes)
            await until_passed(world.state)
            await world.all_ran(processes)
    world.check()
    assert world.taken()
    assert 0 < len(world.wanted) < len(world.numbers), "some kills prevent the write, and others do not"


async def test_a_process_that_is_stopped_at_any_await_starts_nothing_after_its_takeover(
    world, registry, mongo, database, tmp_path
):
    """The process is stopped for longer than its timeout. Only the interrupted receiver may run twice."""
    async with dispatching(registry, claim_timeout=1.0):
        await until_announced(world.state)
        with family(mongo.url, database, world.call, "stop", tmp_path / "ledger") as processes:
            world.children = await asyncio.to_thread(processes.children)
            over = time.monotonic() + SECONDS
            await world.all_ran(processes)
            await eventually(lambda: time.monotonic() > over, what="the timeout")
            await asyncio.to_thread(processes.go_on)
            await world.all_ran(processes)
            await until_passed(world.state)
            await world.all_ran(processes)
    world.check()
    assert world.taken()
    served = {(one.receiver, one.signal, one.key) for one in world.served}
    late = {(one.receiver, one.signal, one.key) for one in world.ledger if one.resumed and one.what == "begin"}
    assert late & served == set()


async def test_a_loop_that_ends_at_any_await_leaves_its_deliveries_to_dispatchers_immediately(
    world, registry, mongo, database, tmp_path
):
    """The process writes again in a second loop. No dispatcher fences its book or takes over that write."""
    async with dispatching(registry, claim_timeout=1.0):
        await until_announced(world.state)
        with family(mongo.url, database, world.call, "tear", tmp_path / "ledger") as processes:
            world.children = await asyncio.to_thread(processes.children)
            await world.all_ran(processes)
            await until_passed(world.state)
            await world.all_ran(processes)
            fenced = {row.get("fenced_by") for row in world.state.claims.find()}
            await asyncio.to_thread(processes.go_on)
    world.check()
    assert world.taken()
    assert fenced <= {None, "process"}  # the last child ended its own book
    again = {one.key for one in world.ledger if one.key % 10 == 9}
    assert len(again) == world.children
    assert {one.key for one in world.taken()} & again == set()
