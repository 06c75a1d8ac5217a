"""Operators pause and resume one receiver or all receivers. Deliveries of a paused receiver are parked."""

import asyncio
from typing import Any

import pytest
from bson import ObjectId

from dispatcher.exceptions import UnknownReceiver
from dispatcher.operate import pauses
from dispatcher.operate.status_model import Pause
from mongoz.core.signals import post_save
from mongoz.signals.options import Retry
from tests.integration.deliveries import Parked, Strict, actions
from tests.support import dispatching, eventually, group_of

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def state(foreign: Any) -> Parked:
    return Parked(foreign)


@pytest.fixture
def group(client: Any, database: str, state: Parked) -> Any:
    """The commands `pause` and `resume`."""

    class Group:
        async def pause(self, receiver: str | None = None, known: Any = ()) -> bool:
            return await pauses.pause(group_of(client, database), receiver, by="ops", known=known)

        async def resume(self, receiver: str | None = None) -> bool:
            return await pauses.resume(group_of(client, database), receiver)

        async def pauses(self) -> list[Pause]:
            return await pauses.pauses(group_of(client, database))

    return Group()


async def test_a_resumed_receiver_gets_all_deliveries_in_order(account, foreign, dispatched, state, group, capsys):
    """Other receivers get their deliveries immediately, the position moves, and a restart changes nothing."""
    said = actions(capsys)
    strict = Strict(account)
    strict.mended = True
    seen: list[str] = []

    @post_save(account, name="next")
    async def next_one(sender, instance, **kwargs):
        seen.append(instance.name)

    ids = [ObjectId() for _ in range(3)]

    def write(start: int, stop: int) -> None:
        for number in range(start, stop):
            row = {"name": str(number), "amount": number}
            foreign["accounts"].replace_one({"_id": ids[number % 3]}, row, upsert=True)

    assert await group.pause("strict", known={"strict"})
    assert not await group.pause("strict", known={"strict"})
    async with dispatching(dispatched):
        write(0, 10)
        await eventually(lambda: len(state.rows) == 10 and len(seen) == 10)
        before = state.token
        assert {head["state"] for head in state.heads} == {"paused"}
    async with dispatching(dispatched):
        write(10, 20)
        await eventually(lambda: len(state.rows) == 20 and state.token > before)
        assert strict.attempts == []
        assert await group.resume("strict")
        assert not await group.resume("strict")
        for start in range(20, 60, 4):  # while the lanes are delivered
            write(start, start + 4)
            await asyncio.sleep(0)
        await eventually(lambda: len(strict.got) == 60 and state.empty)
        write(60, 61)
        await eventually(lambda: "60" in strict.got)
    for place in range(3):
        assert [name for name in strict.got if int(name) % 3 == place] == [str(n) for n in range(place, 61, 3)]
    assert len(seen) == len(strict.got) == 61
    assert {delivery.attempt for delivery in strict.deliveries} == {1}
    assert "dispatcher.paused" in said()
    assert "dispatcher.resumed" in said()


async def test_a_paused_receiver_gets_no_retries(account, foreign, dispatched, state, group):
    """Retries of deliveries in memory and of parked deliveries stop. After the pause the attempt numbers go on."""
    strict = Strict(account, retry=Retry(1000, base=0.02, cap=0.02))
    async with dispatching(dispatched):
        foreign["accounts"].insert_one({"name": "first"})
        await eventually(lambda: strict.attempts)
        await group.pause("strict", known={"strict"})
        await eventually(lambda: [head["state"] for head in state.heads] == ["paused"])
        tried = len(strict.attempts)
        strict.mended = True
        foreign["accounts"].insert_one({"name": "second"})
        await eventually(lambda: len(state.rows) == 2)
        assert len(strict.attempts) == tried
        await group.resume("strict")
        await eventually(lambda: len(strict.got) == 2 and state.empty)
    assert dict(strict.attempts)["first"] == tried + 1
    assert dict(strict.attempts)["second"] == 1


async def test_all_receivers_can_be_paused(account, foreign, dispatched, state, group):
    """The stream is not read, and nothing is lost. The position does not move, but it is saved regularly."""
    strict = Strict(account)
    strict.mended = True

    def saved() -> dict[str, Any]:
        return state.database["positions"].find_one({"partition": 0})

    async with dispatching(dispatched) as running:
        foreign["accounts"].insert_one({"name": "before"})
        await eventually(lambda: strict.got == ["before"])
        assert await group.pause()
        assert [(one.receiver, one.by) for one in await group.pauses()] == [(None, "ops")]
        await eventually(lambda: running.service.stats.read >= 1)
        await eventually(lambda: paused(running))
        first = saved()
        foreign["accounts"].insert_many([{"name": str(n)} for n in range(20)])
        await eventually(lambda: saved()["saved_at"] > first["saved_at"])
        await eventually(lambda: saved()["saved_at"] > first["saved_at"])
        assert strict.got == ["before"]
        held = running.service.position
    async with dispatching(dispatched) as running:
        await eventually(lambda: paused(running))
        await eventually(lambda: saved()["saved_at"] > first["saved_at"])
        assert strict.got == ["before"]
        assert running.service.position == held
        assert await group.resume()
        await eventually(lambda: len(strict.got) == 21)
    assert sorted(strict.got) == sorted(["before", *map(str, range(20))])


async def test_a_pause_survives_the_renaming_of_its_receiver(account, foreign, dispatched, state, group):
    """A new release renames the receiver. The receiver stays paused, and can be resumed by the new name."""
    id_ = ObjectId()
    old = Strict(account, name="old")
    old.mended = True
    await group.pause("old", known={"old"})
    async with dispatching(dispatched):
        foreign["accounts"].insert_one({"_id": id_, "name": "first"})
        await eventually(lambda: len(state.rows) == 1)
    account.signals.post_save.disconnect(old)
    new = Strict(account, name="new", formerly="old")
    new.mended = True
    async with dispatching(dispatched):
        foreign["accounts"].replace_one({"_id": id_}, {"name": "second"})
        foreign["accounts"].insert_one({"name": "other"})
        await eventually(lambda: len(state.rows) == 3)
        assert {head["state"] for head in state.heads} == {"paused"}
        assert not await group.pause("new"), "it is paused already"
        assert await group.resume("new")
        assert await group.pauses() == []
        await eventually(lambda: len(new.got) == 3 and state.empty)
    assert [name for name in new.got if name != "other"] == ["first", "second"]
    assert old.attempts == []


def paused(running: Any) -> bool:
    return running.service.held[0]._capacity.held


async def test_only_known_receivers_are_paused(group, state, foreign):
    state.database["held"].insert_one(
        {"group": foreign.name, "reason": "failed", "receiver": "shop.receivers.welcome"}
    )
    with pytest.raises(UnknownReceiver, match=r"Did you mean .shop\.receivers\.welcome") as caught:
        await group.pause("shop.receivers.wellcome")
    assert caught.value.remedy
    with pytest.raises(UnknownReceiver):
        await group.resume("nobody")
    assert await group.pauses() == []
    assert await group.pause("shop.receivers.welcome")
    assert not await group.resume()
    assert [one.receiver for one in await group.pauses()] == ["shop.receivers.welcome"]
