"""Transactions of dead members are aborted, so other members do not wait for them."""

import asyncio
from typing import Any

import pytest
from pymongo import AsyncMongoClient

import mongoz
from dispatcher.group.sessions import GroupSessions
from dispatcher.group.view import read_group
from mongoz.core.signals import post_save
from tests.integration.deliveries import Parked, Strict, make_account
from tests.support import dispatching, eventually, group_of


@pytest.fixture
def opened(foreign: Any) -> Any:
    """The recorded sessions."""
    return foreign.client[f"{foreign.name}_state"]["sessions"]


@pytest.fixture(params=["pymongo", "motor"])
async def either(request: Any, mongo: Any, database: str) -> Any:
    """A dispatched registry on each driver."""
    async with mongoz.Registry(mongo.url, driver=request.param, dispatched=database) as made:
        yield made


async def test_a_transaction_of_a_dead_member_is_ended(dispatched, database, foreign, client, opened):
    """A SIGKILL leaves a transaction open. If nobody ends it, its locks block a repetition for a minute."""
    account, booked = make_account(dispatched, database), []
    foreign["totals"].insert_one({"_id": 1, "n": 0})

    @post_save(account, name="adding", transactional=True)
    async def adding(sender, instance, delivery, **kwargs):
        totals = dispatched.client[database]["totals"]
        await totals.update_one({"_id": 1}, {"$inc": {"n": 1}}, session=delivery.session)
        booked.append(instance.name)

    async with client.start_session() as session:
        await session.start_transaction()
        await GroupSessions(group_of(client, database), "dead").announce(session)
        await client[database]["totals"].update_one({"_id": 1}, {"$inc": {"n": 100}}, session=session)
        async with dispatching(dispatched):
            foreign["accounts"].insert_one({"name": "Ada"})
            await eventually(lambda: booked, within=30)
            await eventually(lambda: foreign["totals"].find_one()["n"] == 1)
            await eventually(lambda: opened.count_documents({"owner": "dead"}) == 0)


async def test_sessions_are_recorded_while_they_are_used(either, database, foreign, opened):
    account, together = make_account(either, database), asyncio.Barrier(3)

    @post_save(account, name="waiting", transactional=True)
    async def waiting(sender, instance, **kwargs):
        await together.wait()

    async with dispatching(either) as running:
        foreign["accounts"].insert_many([{"name": "Ada"}, {"name": "Bob"}])
        await together.wait()
        rows = list(opened.find())
        assert len(rows) == 2
        assert {(row["group"], row["owner"]) for row in rows} == {(database, running.service.member_id)}
    assert opened.count_documents({}) == 0


async def test_the_session_in_which_parked_deliveries_are_deleted_is_recorded(
    account, dispatched, foreign, opened
):
    strict, parked = Strict(account, refuses=lambda instance: True), Parked(foreign)
    async with dispatching(dispatched) as running:
        foreign["accounts"].insert_one({"name": "Ada"})
        await eventually(lambda: parked.heads)
        assert opened.count_documents({}) == 0
        strict.mended = True
        await eventually(lambda: parked.empty)
        assert opened.distinct("owner") == [running.service.member_id]


async def test_a_session_is_recorded_once(client: AsyncMongoClient[Any], database, foreign, opened):
    mine = GroupSessions(group_of(client, database), "me")
    async with client.start_session() as session:
        await mine.announce(session)
        opened.delete_many({})
        await mine.announce(session)
    assert opened.count_documents({}) == 0


async def test_sessions_of_live_members_and_other_groups_are_kept(client, database, opened):
    mine = GroupSessions(group_of(client, database), "me")
    async with client.start_session() as one, client.start_session() as other:
        await mine.announce(one)
        await GroupSessions(group_of(client, database, "another group"), "x").announce(other)
        assert [found.owner for found in (await read_group(group_of(client, database))).sessions] == ["me"]
        await mine.end([])
    assert opened.count_documents({}) == 2
