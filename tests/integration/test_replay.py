"""Replays of past changes: receivers, signals, repetitions, and refusals before any change."""

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest
from bson import Timestamp

import mongoz
from dispatcher.core.events import EventBatch, Start
from dispatcher.core.resume_tokens import token_at, token_time
from dispatcher.exceptions import HistoryLost, UnknownReceiver, UnknownRun
from dispatcher.runs import replay
from dispatcher.runs.player import RunOutcome, workplace
from dispatcher.stream.change_stream import ChangeStreamSource
from mongoz.core.signals import post_delete, post_save, post_update
from mongoz.signals import muted
from tests.integration.deliveries import IMAGES, State, make_account
from tests.support import dispatching, eventually, settings_for


def listen(document: Any, name: str, **options: Any) -> list[SimpleNamespace]:
    calls: list[SimpleNamespace] = []

    async def receiver(sender: Any, instance: Any, delivery: Any, **kwargs: Any) -> None:
        known = delivery.image != "key"
        calls.append(SimpleNamespace(delivery=delivery, name=instance.name if known else None, **kwargs))

    for connect in (post_save, post_update, post_delete):
        connect(document, name=name, **options)(receiver)
    return calls


def signals(calls: list[SimpleNamespace]) -> list[tuple[str, str | None]]:
    return [(call.delivery.signal, call.name) for call in calls]


def behind(foreign: Any) -> Timestamp:
    """The first cluster time after all writes."""
    latest = foreign.client.admin.command("hello")["operationTime"]
    return Timestamp(latest.time, latest.inc + 1)


async def run(registry: Any, *receivers: str, stop: asyncio.Event | None = None, **options: Any) -> RunOutcome:
    """One replay, as the command runs it."""
    given = {"since": None, "until": None, "asked": {"since": None, "until": None}, "rate": None}
    options = {**given, "resume": None, "new": False, **options}
    settings = {name: options.pop(name) for name in ("attempts", "concurrency", "max_queued") if name in options}
    async with workplace(registry, settings_for(registry, **settings)) as place:
        one = await replay.start(place, receivers, **options)
        return await one.work(stop or asyncio.Event())


async def test_a_replay_delivers_past_changes_with_their_signals(foreign, dispatched, account):
    """The replay delivers foreign and own changes, but no muted changes.

    Own deletes have the stamps of their markers.
    """
    foreign.create_collection("accounts", **IMAGES)
    begin = behind(foreign)
    calls = listen(account, "watcher")
    id_ = foreign["accounts"].insert_one({"name": "foreign"}).inserted_id
    own = await account.objects.create(name="own")
    own.name = "saved"
    await own.save()
    await own.update(name="updated")
    with muted(account):
        await account.objects.create(name="muted")
    foreign["accounts"].update_one({"_id": id_}, {"$set": {"name": "changed"}})
    await own.delete()
    foreign["accounts"].delete_one({"_id": id_})
    await account.objects.create(name="last")
    assert len(calls) == 5  # ran in process
    calls.clear()
    outcome = await run(dispatched, since=begin)
    calls.sort(key=lambda call: call.delivery.cluster_time)
    assert signals(calls) == [
        ("post_save", "foreign"),
        ("post_save", "own"),
        ("post_save", "saved"),
        ("post_update", "updated"),
        ("post_update", "changed"),
        ("post_delete", "updated"),
        ("post_delete", "changed"),
        ("post_save", "last"),
    ]
    assert [call.created for call in calls if call.delivery.signal == "post_save"] == [True, True, False, True]
    assert {(c.delivery.replayed, c.delivery.origin, c.delivery.attempt) for c in calls} == {(True, "stream", 1)}
    assert (outcome.finished, outcome.delivered, outcome.failed) == (True, 8, 0)
    # Another run has other ids.
    ids = {call.delivery.id for call in calls}
    await run(dispatched, since=begin)
    assert len({call.delivery.id for call in calls} - ids) == 8


async def test_a_replay_delivers_the_changes_at_the_end_of_its_range(foreign, dispatched, account, monkeypatch):
    """The token of an empty batch may have the time of changes that follow the batch."""
    calls = listen(account, "watcher")
    begin = behind(foreign)
    with foreign.client.start_session() as session:
        foreign["accounts"].insert_one({"name": "last"}, session=session)
        end = session.operation_time
    batches = ChangeStreamSource.batches

    async def late(self: ChangeStreamSource, start: Start) -> AsyncGenerator[EventBatch]:
        yield EventBatch([], token_at(Timestamp(end.time - 1, 1)))
        yield EventBatch([], token_at(end))
        async for batch in batches(self, start):
            yield batch

    monkeypatch.setattr(ChangeStreamSource, "batches", late)
    await run(dispatched, since=begin, until=end)
    assert signals(calls) == [("post_save", "last")]


async def test_a_replay_does_not_affect_the_position_and_live_deliveries(foreign, dispatched, account):
    calls = listen(account, "watcher")
    async with dispatching(dispatched):
        begin = token_time(State(foreign).token)
        foreign["accounts"].insert_many([{"name": f"{n}"} for n in range(50)])
        await eventually(lambda: len(calls) == 50)
    position = State(foreign).database["positions"].find_one({"_id": f"{dispatched.dispatched}:0"})
    async with mongoz.Registry(dispatched.url, dispatched=dispatched.dispatched) as elsewhere:
        twin = make_account(elsewhere, foreign.name)
        again = listen(twin, "watcher")
        await run(elsewhere, since=begin)
    assert sorted(call.name for call in again) == sorted(call.name for call in calls)
    assert {call.delivery.id for call in again}.isdisjoint({call.delivery.id for call in calls})
    assert {call.delivery.term for call in again} == {call.delivery.term for call in calls}
    found = State(foreign).database["positions"].find_one({"_id": f"{dispatched.dispatched}:0"})
    assert (found["token"], found["term"]) == (position["token"], position["term"])


async def test_a_replay_is_limited_to_the_named_receivers_and_range(foreign, dispatched, account):
    first, second = listen(account, "first"), listen(account, "second")
    foreign["accounts"].insert_one({"name": "too early"})
    begin = behind(foreign)
    foreign["accounts"].insert_one({"name": "in time"})
    end = behind(foreign)
    foreign["accounts"].insert_one({"name": "too late"})
    await run(dispatched, "second", since=begin, until=Timestamp(end.time, end.inc - 1))
    assert first == []
    assert [call.name for call in second] == ["in time"]


async def test_a_stopped_replay_continues_and_transactional_effects_happen_once(foreign, dispatched, account):
    calls: list[str] = []

    @post_save(account, name="counts", transactional=True)
    async def counts(sender, instance, delivery, **kwargs):
        calls.append(instance.name)
        await dispatched.client[foreign.name]["effects"].insert_one(
            {"of": instance.name}, session=delivery.session
        )

    foreign.create_collection("effects")
    begin = behind(foreign)
    foreign["accounts"].insert_many([{"name": f"{n}"} for n in range(120)])
    stop = asyncio.Event()
    stopping = asyncio.create_task(eventually(lambda: len(calls) >= 20))
    stopping.add_done_callback(lambda _: stop.set())
    first = await run(dispatched, since=begin, stop=stop, rate=200, max_queued=10)
    assert not first.finished
    # As after SIGKILL before the first save of the progress.
    State(foreign).database["controls"].update_one({"run": first.run}, {"$set": {"progress": {}}})
    second = await run(dispatched, since=begin)
    assert (second.run, second.finished) == (first.run, True)
    assert sorted(calls, key=int) == [f"{n}" for n in range(120)]
    assert foreign["effects"].count_documents({}) == 120


async def test_a_refused_replay_changes_nothing(foreign, dispatched, account):
    listen(account, "watcher")
    begin = behind(foreign)
    with pytest.raises(UnknownReceiver, match="Did you mean 'watcher'"):
        await run(dispatched, "wacher", since=begin)
    with pytest.raises(UnknownRun, match="no replay 'none'"):
        await run(dispatched, resume="none")
    point = {"failCommands": ["getMore"], "errorCode": 286, "appName": "mongoz-dispatcher"}
    foreign.client.admin.command("configureFailPoint", "failCommand", mode={"times": 1}, data=point)
    try:
        with pytest.raises(HistoryLost, match=r"does not hold the changes since .* reaches back to") as caught:
            await run(dispatched, since=begin)
    finally:
        foreign.client.admin.command("configureFailPoint", "failCommand", mode="off")
    assert "--since" in caught.value.remedy
    assert State(foreign).database["controls"].count_documents({"kind": "run"}) == 0
