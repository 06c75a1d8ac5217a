"""Retries of dead letters keep the order of changes, have new attempts, and each retry reports its outcome."""

import asyncio
import contextlib
from typing import Any

import bson
import pytest
from bson import ObjectId, Timestamp

import mongoz
from dispatcher.core.stats import Stats
from dispatcher.delivery.outcome import Failure
from dispatcher.exceptions import UnknownLetter
from dispatcher.operate import dead_letters, pauses
from dispatcher.parking import files
from dispatcher.parking.gate import Parking
from dispatcher.parking.letters import LetterStore
from dispatcher.parking.record import undecodable_event
from dispatcher.parking.store import HeldStore
from mongoz.core.signals import post_update
from mongoz.signals.options import Retry
from tests.integration.deliveries import Parked, Strict, make_account
from tests.support import dispatching, eventually, group_of

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def state(foreign: Any) -> Parked:
    return Parked(foreign)


@pytest.fixture
def retry(client: Any, database: str, state: Parked) -> Any:
    """Requests a retry and waits for the outcome, as the command does."""

    async def retry(*ids: str, within: float = 10.0) -> list[tuple[str, str]]:
        group = group_of(client, database)
        asked = await dead_letters.request_retry(group, list(ids) or None)
        return [(one.result, one.text) async for one in dead_letters.outcomes(group, asked, within=within)]

    return retry


def strict_on(document: Any, *signals: Any, **options: Any) -> Strict:
    return Strict(document, *signals, **{"on_failure": "dead_letter", "retry": 1, **options})


async def test_a_delivered_dead_letter_is_removed(account, foreign, dispatched, state, retry, monkeypatch):
    """The retry is the same delivery. A dead letter with files is removed completely."""
    monkeypatch.setattr(files, "_INLINE", 1_000)
    monkeypatch.setattr(files, "_CHUNK", 1_000)
    strict = strict_on(account)
    async with dispatching(dispatched):
        foreign["accounts"].insert_one({"name": "Ada", "blob": bytes(2_500)})
        letter = await state.letter()
        assert letter["files"].keys() == {"document"}
        assert state.database["held.chunks"].count_documents({}) == 3
        strict.mended = True
        assert await retry(letter["_id"]) == [("delivered", "")]
        await eventually(lambda: state.empty)
    (delivery,) = strict.deliveries
    assert (delivery.id, delivery.attempt, delivery.replayed) == (letter["delivery_id"], 1, True)
    assert state.letters == []
    assert all(state.database[name].count_documents({}) == 0 for name in ("held", "held.files", "held.chunks"))


async def test_a_dead_letter_that_fails_again_is_rewritten(account, foreign, dispatched, state, retry):
    strict = strict_on(account, retry=Retry(3, base=0.01))
    async with dispatching(dispatched):
        foreign["accounts"].insert_one({"name": "Ada"})
        before = await state.letter()
        assert await retry() == [("failed", "ValueError: not yet")]
        assert await retry() == [("failed", "ValueError: not yet")]
        await eventually(lambda: state.empty)
        (letter,) = state.letters
    assert [attempt for _, attempt in strict.attempts] == [1, 2, 3] * 3
    assert (letter["_id"], letter["attempts"], letter["retries"]) == (before["_id"], 3, 2)
    assert letter["first_attempt_at"] > before["last_attempt_at"]
    assert not {"retry_requested_at", "retrying_since", "retry_refused"} & letter.keys()


async def test_a_failed_retry_stays_a_dead_letter_despite_on_failure_drop(
    account, foreign, dispatched, state, retry
):
    strict = strict_on(account)
    async with dispatching(dispatched):
        foreign["accounts"].insert_one({"name": "Ada"})
        await state.letter()
    account.signals.post_save.disconnect(strict)
    strict_on(account, on_failure="drop")
    async with dispatching(dispatched):
        assert await retry() == [("failed", "ValueError: not yet")]
    assert len(state.letters) == 1


async def test_a_retry_keeps_the_commit_order_among_parked_deliveries(
    account, foreign, dispatched, state, retry, client, database
):
    strict = strict_on(account)
    group = group_of(client, database)
    id_ = ObjectId()
    async with dispatching(dispatched):
        for number in range(3):
            foreign["accounts"].replace_one({"_id": id_}, {"name": str(number)}, upsert=True)
        await state.wait(3)
        await pauses.pause(group, "strict", known={"strict"})
        await eventually(lambda: state.database["controls"].count_documents({}) == 1)
        for number in range(3, 6):
            foreign["accounts"].replace_one({"_id": id_}, {"name": str(number)})
        await eventually(lambda: len(state.rows) + len(state.letters) == 6)
        assert {result for result, _ in await retry(within=0.0)} == {"waiting"}
        await eventually(lambda: len(state.rows) == 6)
        strict.mended = True
        await pauses.resume(group, "strict")
        await eventually(lambda: state.empty)
    assert strict.got == [str(n) for n in range(6)]
    assert state.letters == []


@pytest.mark.slow
async def test_a_retry_may_be_requested_without_a_dispatcher(account, foreign, dispatched, state, retry):
    strict = strict_on(account)
    async with dispatching(dispatched):
        foreign["accounts"].insert_many([{"name": str(n)} for n in range(60)])  # more than one batch
        await state.wait(60)
    strict.mended = True
    assert {result for result, _ in await retry(within=0.0)} == {"waiting"}
    async with dispatching(dispatched):
        await eventually(lambda: not state.letters and state.empty)
    assert sorted(strict.got, key=int) == [str(n) for n in range(60)]


async def test_a_renamed_receiver_gets_its_dead_letters_and_a_removed_receiver_does_not(
    account, foreign, dispatched, state, retry
):
    gone = strict_on(account, name="gone")
    old = strict_on(account, name="old")
    async with dispatching(dispatched):
        foreign["accounts"].insert_one({"name": "Ada"})
        two = await state.wait(2)
    account.signals.post_save.disconnect(gone)
    account.signals.post_save.disconnect(old)
    new = strict_on(account, name="new", formerly="old")
    async with dispatching(dispatched):
        by_name = dict(zip([one["receiver"] for one in two], await retry(*[one["_id"] for one in two])))  # noqa: B905
        results = {result for result, _ in by_name.values()}
        assert results == {"failed", "refused"}
        new.mended = True
        renamed = next(one for one in two if one["receiver"] == "old")
        assert await retry(renamed["_id"]) == [("delivered", "")]
    (letter,) = state.letters
    assert letter["receiver"] == "gone"
    assert "no receiver 'gone' of post_save" in letter["retry_refused"]["text"]
    assert [delivery.receiver for delivery in new.deliveries] == ["new"]


@pytest.mark.parametrize("asked", ["before the start", "later"])
async def test_a_dead_letter_joins_deliveries_parked_under_an_earlier_name(
    account, foreign, dispatched, state, retry, monkeypatch, asked
):
    """The lane keeps the earlier name of the receiver. Parked deliveries are loaded before any retry."""
    load = Parking.load

    async def slow_load(self: Any) -> None:
        # The retry must not write its row before the load. So this wait must end at its time limit.
        with contextlib.suppress(AssertionError):
            await eventually(lambda: len(state.rows) == 2, within=0.3)
        await load(self)

    old = strict_on(account, name="old")
    id_ = ObjectId()
    async with dispatching(dispatched):
        foreign["accounts"].insert_one({"_id": id_, "name": "letter"})
        letter = await state.letter()
    account.signals.post_save.disconnect(old)
    blocking = strict_on(account, name="old", on_failure="block")
    async with dispatching(dispatched):
        foreign["accounts"].replace_one({"_id": id_}, {"name": "parked"})
        await eventually(lambda: state.rows)
    account.signals.post_save.disconnect(blocking)
    slow = Retry(1, base=60, cap=60)
    new = strict_on(account, name="new", formerly="old", on_failure="block", retry=slow)
    if asked != "later":
        monkeypatch.setattr(Parking, "load", slow_load)
        await retry(letter["_id"], within=0.0)
    async with dispatching(dispatched):
        if asked == "later":
            await eventually(lambda: new.attempts)
            await retry(letter["_id"], within=0.0)
        await eventually(lambda: len(state.rows) == 2)
        assert len({row["lane"] for row in state.rows}) == 1
        assert {row["receiver"] for row in state.rows} == {"old"}
        await eventually(lambda: len(state.heads) == 1)
    new.mended = True
    state.database["held"].update_many(state.HEADS, {"$currentDate": {"due_at": True}})
    async with dispatching(dispatched):
        await eventually(lambda: state.empty)
    assert new.got == ["letter", "parked"]
    assert state.letters == []


async def test_a_retry_succeeds_after_the_model_accepts_the_document(
    mongo, dispatched, database, foreign, state, retry
):
    """The document was invalid; the next version of the application has another model."""
    strict_on(make_account(dispatched, database))
    async with dispatching(dispatched):
        foreign["accounts"].insert_one({"name": "A" * 50})
        assert (await state.letter())["reason"] == "invalid"
        ((result, text),) = await retry()
        assert result == "failed"
        assert "name" in text
        assert (state.letters[0]["reason"], state.letters[0]["retries"]) == ("invalid", 1)
    async with mongoz.Registry(mongo.url, dispatched=database) as next_version:
        strict = strict_on(make_account(next_version, database, longest=50))
        strict.mended = True
        async with dispatching(next_version):
            assert await retry() == [("delivered", "")]
    assert strict.got == ["A" * 50]


async def test_a_retry_succeeds_after_the_event_can_be_decoded(
    account, foreign, dispatched, state, retry, client, database
):
    """The event becomes a dead letter for each receiver, and these dead letters are retried."""
    strict = strict_on(account)
    strict.mended = True
    broken = strict_on(account, name="broken")
    event = {
        "_id": {"_data": "8200000001000000012B042C0100296E5A1004"},
        "operationType": "insert",
        "clusterTime": Timestamp(1, 1),
        "wallTime": bson.decode(bson.encode({"": ObjectId().generation_time}))[""],
        "ns": {"db": database, "coll": "accounts"},
        "documentKey": {"_id": 1},
        "fullDocument": {"_id": ObjectId(), "name": "Ada"},
    }
    failure = Failure(ValueError("a date beyond Python's"), event["wallTime"], 0, "undecodable")
    store = LetterStore(group_of(client, database), Stats())
    token = event["_id"]["_data"]
    await store.keep(undecodable_event(bson.encode(event), failure, token=token, term=1, group=database))
    undecodable = bson.encode({**event, "at": bson.Int64(2**60)}).replace(b"\x12at\0", b"\x09at\0")
    await store.keep(undecodable_event(undecodable, failure, token=f"{token}05", term=1, group=database))
    async with dispatching(dispatched):
        results = await retry()
        reasons = dict(results)
        assert reasons.keys() == {"delivered", "refused"}
        assert "can't be decoded" in reasons["refused"]
        await eventually(lambda: strict.got == ["Ada"] and state.empty)
    left = {letter["receiver"]: letter for letter in state.letters}
    assert left.keys() == {"broken", None}
    assert (left["broken"]["reason"], left["broken"]["retries"]) == ("failed", 1)
    assert len(broken.attempts) == 1


async def test_dead_letters_of_an_endless_chain_can_be_retried(account, foreign, dispatched, state, retry):
    endless = True
    amounts: list[int] = []

    @post_update(account, name="endless")
    async def update(sender, instance, **kwargs):
        amounts.append(instance.amount)
        if endless:
            await instance.update(amount=instance.amount + 1)

    async with dispatching(dispatched):
        id_ = foreign["accounts"].insert_one({"name": "Ada"}).inserted_id
        foreign["accounts"].update_one({"_id": id_}, {"$set": {"amount": 1}})
        assert (await state.letter())["reason"] == "too_many_hops"
        endless = False
        assert await retry() == [("delivered", "")]
    assert amounts[-1] == 18


async def test_unknown_dead_letters_are_reported_before_any_retry(account, foreign, dispatched, state, retry):
    strict_on(account)
    async with dispatching(dispatched) as running:
        foreign["accounts"].insert_one({"name": "Ada"})
        letter = await state.letter()
        await eventually(lambda: running.stats.dead_letters == 1)
        with pytest.raises(UnknownLetter, match="no dead letter 'nothing', 'like-that'"):
            await retry(letter["_id"], "nothing", "like-that")
    assert "retry_requested_at" not in state.letters[0]


async def test_a_retry_keeps_the_commit_order_while_the_worker_reads_its_lane(
    account, foreign, dispatched, state, client, database, monkeypatch
):
    """The dead letter becomes the first delivery of the lane after the worker has read the later delivery."""
    strict, id_ = strict_on(account), ObjectId()
    group = group_of(client, database)
    async with dispatching(dispatched):
        foreign["accounts"].insert_one({"_id": id_, "name": "0"})
        await state.wait(1)
    await pauses.pause(group, "strict", known={"strict"})
    async with dispatching(dispatched):
        foreign["accounts"].replace_one({"_id": id_}, {"name": "1"})
        await eventually(lambda: len(state.rows) == 1)
        read = HeldStore.read

        async def slow(self: HeldStore, ids: Any) -> Any:
            rows = await read(self, ids)
            if ids and not any("lane" in one for one in state.letters):
                await dead_letters.request_retry(group)
                while len(state.rows) == 1:
                    await asyncio.sleep(0.01)
            return rows

        monkeypatch.setattr(HeldStore, "read", slow)
        strict.mended = True
        await pauses.resume(group, "strict")
        await eventually(lambda: state.empty)
    assert strict.got == ["0", "1"]
