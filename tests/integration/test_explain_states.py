"""What `explain` tells about claimed, transactional, limited and undecodable deliveries, and about partitions."""

import asyncio
import os
import time
from typing import Any, get_args

import bson
import pytest
from bson import ObjectId, Timestamp
from bson.raw_bson import RawBSONDocument

import mongoz
from dispatcher.cli.explain import _print
from dispatcher.core.undecodable import Undecodable
from dispatcher.delivery.outcome import HoldReason
from dispatcher.explain import known
from dispatcher.explain.report import DocumentReport, ReceiverReport, explain
from dispatcher.stream import reader
from mongoz import Batch
from mongoz.core.signals import post_save
from tests.integration.claiming import Held, claiming, make, until_announced
from tests.integration.deliveries import Indexer, Parked, make_account
from tests.support import PATIENCE, dispatching, eventually, settings_for

ID = ObjectId()


@pytest.fixture
def parked(foreign: Any) -> Parked:
    return Parked(foreign)


async def explained(registry: Any, collection: str, id_: Any) -> DocumentReport:
    since = Timestamp(int(time.time()) - 60, 0)
    return await explain(registry, settings_for(registry), (registry.dispatched, collection), [id_], since)


def receivers(report: DocumentReport, place: int = -1) -> dict[str, ReceiverReport]:
    return {one.receiver: one for one in report.changes[place].receivers}


def states(report: DocumentReport, place: int = -1) -> dict[str, str]:
    return {name: one.state for name, one in receivers(report, place).items()}


def test_explain_has_a_text_for_each_reason_to_wait():
    assert {*known._STATES} == {*get_args(HoldReason), "following"}


async def until_told(registry: Any, collection: str, id_: Any, wanted: dict[str, str]) -> DocumentReport:
    """The report, as soon as it has these states."""
    async with asyncio.timeout(PATIENCE):
        while states(report := await explained(registry, collection, id_)) != wanted:
            await asyncio.sleep(0.02)
    return report


async def test_the_report_names_the_process_that_claimed_a_delivery(held: Held, state: Any, mongo, database):
    """While the receiver runs, the delivery is claimed, and the position waits."""
    another = claiming(mongo.url, database, claims=False)
    make(another, database, [])
    async with dispatching(held.registry):
        await until_announced(state)
        item = held.Item(id=ObjectId(), n=1)  # a dispatcher may call a receiver before `create` returns
        await held.begin(item.create())
        report = await until_told(another, "items", item.id, {"any": "claimed", "durable": "waits"})
        assert f"pid {os.getpid()}" in receivers(report)["any"].text
        await held.finish()
        report = await until_told(another, "items", item.id, {"any": "ran", "durable": "finished"})
        assert f"pid {os.getpid()}" in receivers(report)["any"].text


async def test_a_transactional_delivery_has_a_record(account, foreign, dispatched):
    """Another receiver waits, so the position has not passed the change. The record exists already."""
    gate = asyncio.Event()

    @post_save(account, name="counts", transactional=True)
    async def counts(sender, instance, delivery, **kwargs): ...

    @post_save(account, name="waits", delivery="dispatcher")
    async def waits(sender, **kwargs):
        await gate.wait()

    other = another_application(dispatched, account)
    async with dispatching(dispatched):
        foreign["accounts"].insert_one({"_id": ID, "name": "a"})
        report = await until_told(other, "accounts", ID, {"counts": "delivered", "waits": "waits"})
        assert receivers(report)["counts"].text == "its transaction is committed"
        gate.set()
        await until_told(other, "accounts", ID, {"counts": "delivered", "waits": "finished"})


def another_application(dispatched: Any, account: Any) -> Any:
    """The same application with a registry of its own, because `explain` closes its registry at the end."""
    registry = mongoz.Registry(dispatched.url, dispatched=dispatched.dispatched)
    document = make_account(registry, dispatched.dispatched)
    for name in ("post_save", "post_update"):
        for one in getattr(account.signals, name).receivers:
            given = {
                key: getattr(one.options, key) for key in ("batch", "concurrency", "transactional", "delivery")
            }
            getattr(document.signals, name).connect(one.function, name=one.name, **given)
    return registry


async def test_a_delivery_beyond_the_concurrency_is_parked_and_explained(account, foreign, dispatched, parked):
    gate = asyncio.Event()

    @post_save(account, name="limited", concurrency=1)
    async def limited(sender, **kwargs):
        await gate.wait()

    other = another_application(dispatched, account)
    async with dispatching(dispatched):
        foreign["accounts"].insert_one({"name": "first"})
        foreign["accounts"].insert_one({"_id": ID, "name": "a"})
        report = await until_told(other, "accounts", ID, {"limited": "parked"})
        assert "concurrency= or rate=" in receivers(report)["limited"].text
        gate.set()
        await until_told(other, "accounts", ID, {"limited": "finished"})


async def test_an_event_in_a_batch_waits_and_is_then_finished(account, foreign, dispatched):
    indexer = Indexer(account, Batch(size=10, wait=0.05))
    indexer.gate.clear()
    other = another_application(dispatched, account)
    async with dispatching(dispatched):
        foreign["accounts"].insert_one({"_id": ID, "name": "a"})
        await eventually(lambda: indexer.running)
        report = await until_told(other, "accounts", ID, {"indexer": "waits"})
        assert "in progress" in receivers(report)["indexer"].text
        indexer.gate.set()
        await until_told(other, "accounts", ID, {"indexer": "finished"})


async def test_an_undecodable_document_is_a_dead_letter_of_each_receiver(account, foreign, dispatched, parked):
    Indexer(account, Batch(size=10, wait=0.01))

    @post_save(account, name="plain")
    async def plain(sender, **kwargs): ...

    broken = bson.encode({"_id": ID, "name": "AAAA"}).replace(b"AAAA", b"\xff\xfe\xff\xfe")
    async with dispatching(dispatched):
        foreign["accounts"].insert_one(RawBSONDocument(broken))
        letters = await parked.wait(2)
    report = await explained(dispatched, "accounts", ID)
    assert states(report) == {"indexer": "dead letter", "plain": "dead letter"}
    assert {one.letter for one in receivers(report).values()} == {one["short_id"] for one in letters}
    assert all(one.text.startswith("undecodable after 0 attempts") for one in receivers(report).values())


async def test_an_event_that_can_not_be_decoded_is_one_dead_letter(
    account, foreign, dispatched, parked, monkeypatch, capsys
):
    """Its receivers are unknown. The dead letter represents all of them."""
    decode = reader.decode

    def refuse(event: Any, *others: Any) -> Any:
        change = decode(event, *others)
        if change.id == ID:
            raise Undecodable(change.token, ID, "the event is larger than 16 MB")
        return change

    monkeypatch.setattr(reader, "decode", refuse)
    monkeypatch.setattr(reader, "decoded_together", lambda events, *_: [None] * len(events))

    @post_save(account, name="plain")
    async def plain(sender, **kwargs): ...

    foreign["accounts"].insert_one({"name": "before the first start"})
    async with dispatching(dispatched):
        foreign["accounts"].insert_one({"_id": ID, "name": "a"})
        letter = await parked.letter()
        await eventually(lambda: parked.token >= letter["token"])
    report = await explained(dispatched, "accounts", ID)
    (change,) = report.changes
    assert (change.operation, change.id, change.delivery_id) == ("undecodable", None, letter["delivery_id"])
    assert states(report) == {"all receivers": "dead letter"}
    assert receivers(report)["all receivers"].letter == letter["short_id"]
    parked.database["held"].delete_one({"_id": letter["_id"]})
    assert states(await explained(dispatched, "accounts", ID)) == {"all receivers": "finished"}
    capsys.readouterr()
    _print(report)
    told = " ".join(capsys.readouterr().out.split())
    assert f"all receivers: dead letter {letter['short_id']}, the event can't be decoded" in told
    assert "larger than 16 MB" in told
    assert "None" not in told
    assert "no receiver listens" not in told


async def test_each_document_is_explained_by_the_position_of_its_partition(account, foreign, dispatched):
    """A delivery is finished if the position of its own partition has passed it. Other partitions may wait."""
    gate = asyncio.Event()

    @post_save(account, name="plain")
    async def plain(sender, instance, **kwargs):
        if instance.name == "slow":
            await gate.wait()

    ids = [ObjectId() for _ in range(12)]
    other = another_application(dispatched, account)
    async with dispatching(dispatched, partitions=3):
        foreign["accounts"].insert_one({"_id": ids[0], "name": "slow"})
        slow = (await until_told(other, "accounts", ids[0], {"plain": "waits"})).changes[0].progress
        foreign["accounts"].insert_many([{"_id": id_, "name": "quick"} for id_ in ids[1:]])
        quick = {}
        for id_ in ids[1:]:
            report = await until_told(other, "accounts", id_, {"plain": "finished"})
            quick[id_] = report.changes[0].progress
        gate.set()
    assert slow is not None
    assert slow.partitions == 3
    assert len({one.partition for one in (slow, *quick.values())}) == 3
    assert f"pid {os.getpid()}" in slow.holder
    elsewhere = [id_ for id_, one in quick.items() if one.partition != slow.partition]
    assert elsewhere
