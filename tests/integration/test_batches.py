"""A batch receiver gets many events in one call.

Each event has its own delivery id and its own failures. The events of a document stay in order.
"""

import asyncio
from typing import Any

import pytest
from bson import ObjectId

from mongoz import Batch, BatchError
from mongoz.core.signals import post_delete, post_save, post_update
from mongoz.signals.options import Retry
from tests.integration.deliveries import Indexer, Parked
from tests.support import dispatching, eventually


@pytest.fixture
def state(foreign: Any) -> Parked:
    return Parked(foreign)


def rows(*names: str) -> list[dict[str, Any]]:
    return [{"name": name, "amount": 0} for name in names]


async def test_a_batch_closes_when_it_is_full_or_its_wait_ends(account, foreign, dispatched):
    indexer = Indexer(account, Batch(size=3, wait=0.2))
    async with dispatching(dispatched):
        foreign["accounts"].insert_many(rows("0", "1", "2", "3"))
        await eventually(lambda: len(indexer.done) == 4)
    assert [len(batch) for batch in indexer.batches] == [3, 1]
    assert indexer.batches == [["0", "1", "2"], ["3"]]
    assert len({delivery.id for delivery in indexer.deliveries}) == 4


async def test_an_event_has_the_keywords_of_its_signal(account, foreign, dispatched):
    """One batch has the events of all signals that the function is connected to, in commit order."""
    got: list[Any] = []

    @post_save(account, name="search", batch=Batch(size=3, wait=60))
    @post_update(account, name="search", batch=Batch(size=3, wait=60), fields=["amount"])
    @post_delete(account, name="search", batch=Batch(size=3, wait=60))
    async def search(sender, batch, **kwargs):
        assert sender is account
        assert kwargs == {}
        got.append(list(batch))

    id_ = ObjectId()
    async with dispatching(dispatched):
        foreign["accounts"].insert_one({"_id": id_, "name": "a", "amount": 0})
        foreign["accounts"].update_one({"_id": id_}, {"$set": {"name": "b"}})
        foreign["accounts"].update_one({"_id": id_}, {"$set": {"amount": 2}})
        foreign["accounts"].delete_one({"_id": id_})
        await eventually(lambda: got)
    ((saved, updated, deleted),) = got
    assert [event.delivery.signal for event in (saved, updated, deleted)] == [
        "post_save",
        "post_update",
        "post_delete",
    ]
    assert (saved.created, updated.created, deleted.created) == (True, False, False)
    assert (saved.update_fields, updated.update_fields) == (frozenset(), {"amount"})
    assert {event.instance.id for event in (saved, updated, deleted)} == {id_}
    assert len({event.delivery.id for event in (saved, updated, deleted)}) == 3
    assert {event.delivery.origin for event in (saved, updated, deleted)} == {"stream"}


async def test_other_receivers_do_not_wait_for_a_batch(account, foreign, dispatched, state):
    """Later changes reach other receivers. The position waits for the batch."""
    indexer = Indexer(account, Batch(size=10, wait=0.0))
    indexer.gate.clear()
    plain: list[str] = []

    @post_save(account, name="plain")
    async def receive(sender, instance, **kwargs):
        plain.append(instance.name)

    id_ = ObjectId()
    async with dispatching(dispatched) as running:
        foreign["accounts"].insert_one({"_id": id_, "name": "0", "amount": 0})
        await eventually(lambda: indexer.running)
        before = running.service.position
        for name in ("1", "2", "3"):
            foreign["accounts"].replace_one({"_id": id_}, {"name": name, "amount": 0})
        await eventually(lambda: plain == ["0", "1", "2", "3"])
        assert running.service.position == before
        assert indexer.batches == [["0"]]
        indexer.gate.set()
        await eventually(lambda: indexer.done == ["0", "1", "2", "3"])
        await eventually(lambda: running.service.position > before)
    assert indexer.batches[1:] == [["1", "2", "3"]], "a document is in one batch at a time"


async def test_batches_of_different_documents_run_at_the_same_time(account, foreign, dispatched):
    indexer = Indexer(account, Batch(size=1, wait=0.0))
    indexer.gate.clear()
    async with dispatching(dispatched):
        foreign["accounts"].insert_many(rows("0", "1", "2"))
        await eventually(lambda: indexer.running == 3)
        indexer.gate.set()
        await eventually(lambda: len(indexer.done) == 3)


async def test_a_batch_is_repeated_as_a_whole_and_then_halved(account, foreign, dispatched, state):
    """The whole batch has two attempts. Then the batch is halved until the bad event is alone."""

    def fails(batch: Any) -> Exception | None:
        return ValueError("bad") if any(event.instance.name == "2" for event in batch) else None

    indexer = Indexer(account, Batch(size=4, wait=60), fails=fails)
    async with dispatching(dispatched) as running:
        foreign["accounts"].insert_many(rows("0", "1", "2", "3"))
        letter = await state.letter()
        await eventually(lambda: sorted(indexer.done) == ["0", "1", "3"])
    assert indexer.batches == [
        ["0", "1", "2", "3"],
        ["0", "1", "2", "3"],
        ["0", "1"],
        ["2", "3"],
        ["2"],
        ["3"],
    ]
    assert (letter["reason"], letter["attempts"], letter["error"]["message"]) == ("failed", 2, "ValueError: bad")
    figures = running.stats.figures_of("indexer", "post_save")
    assert (figures.delivered, figures.failed) == (3, 1)


async def test_a_batch_error_names_the_events_that_failed(account, foreign, dispatched, state):
    """The other events of the batch are done, and are not repeated."""

    def fails(batch: Any) -> Exception | None:
        bad = {n: KeyError(event.instance.name) for n, event in enumerate(batch) if event.instance.name in "13"}
        return BatchError(bad) if bad else None

    indexer = Indexer(account, Batch(size=4, wait=60), fails=fails)
    async with dispatching(dispatched):
        foreign["accounts"].insert_many(rows("0", "1", "2", "3"))
        letters = await state.wait(2)
    assert indexer.batches == [["0", "1", "2", "3"], ["1", "3"]]
    assert indexer.done == ["0", "2"]
    assert {letter["error"]["message"] for letter in letters} == {"KeyError: '1'", "KeyError: '3'"}
    assert {letter["attempts"] for letter in letters} == {2}


@pytest.mark.parametrize("transactional", [False, True])
async def test_after_a_failed_event_the_later_events_of_its_document_are_repeated(
    account, foreign, dispatched, transactional
):
    """Otherwise the receiver would get the older state last. Events of other documents are not repeated."""
    busy = True

    def fails(batch: Any) -> Exception | None:
        bad = {n: ValueError("busy") for n, event in enumerate(batch) if event.instance.name == "a0" and busy}
        return BatchError(bad) if bad else None

    options = {"transactional": transactional, "retry": Retry(9, base=0.1, cap=0.1)}
    indexer = Indexer(account, Batch(size=5, wait=60), fails=fails, **options)
    ids = [ObjectId(), ObjectId()]
    async with dispatching(dispatched):
        for version in (0, 1):
            for id_, name in zip(ids, "ab", strict=True):
                document = {"name": f"{name}{version}", "amount": 0}
                foreign["accounts"].replace_one({"_id": id_}, document, upsert=True)
        foreign["accounts"].insert_one({"name": "c0", "amount": 0})
        await eventually(lambda: "b1" in indexer.done)
        busy = False
        await eventually(lambda: indexer.done[-2:] == ["a0", "a1"])
    assert sorted(indexer.batches[0]) == ["a0", "a1", "b0", "b1", "c0"]
    assert all(batch == ["a0", "a1"] or sorted(batch) == ["b0", "b1", "c0"] for batch in indexer.batches[1:])


async def test_an_event_with_an_invalid_document_enters_no_batch(account, foreign, dispatched, state):
    indexer = Indexer(account, Batch(size=2, wait=60))
    async with dispatching(dispatched):
        foreign["accounts"].insert_many([{"name": "0"}, {"name": ["no text"]}, {"name": "2"}])
        await eventually(lambda: len(indexer.done) == 2)
        letter = await state.letter()
    assert indexer.batches == [["0", "2"]]
    assert letter["reason"] == "invalid"


async def test_each_attempt_gets_new_instances(account, foreign, dispatched):
    seen: list[list[Any]] = []

    @post_save(account, name="modifies", batch=Batch(size=2, wait=60), retry=Retry(3, base=0.01))
    async def modifies(sender, batch, **kwargs):
        seen.append([(event.instance.name, list(event.instance.tags)) for event in batch])
        for event in batch:
            event.instance.name = "modified"
            event.instance.tags.append("modified")
        batch.clear()
        if len(seen) < 3:
            raise ValueError

    async with dispatching(dispatched):
        foreign["accounts"].insert_many([{"name": name, "tags": ["a"]} for name in "01"])
        await eventually(lambda: len(seen) == 3)
    assert seen == [[("0", ["a"]), ("1", ["a"])]] * 3


async def test_receivers_before_and_after_a_batch_receiver_do_not_share_its_instance(account, foreign, dispatched):
    seen: list[str] = []

    async def modify(sender, instance, **kwargs):
        seen.append(instance.name)
        instance.name = "modified"

    post_save(account, name="before")(modify)
    indexer = Indexer(account, Batch(size=1, wait=60))

    @post_save(account, name="after")
    async def after(sender, instance, **kwargs):
        seen.append(instance.name)

    async with dispatching(dispatched):
        foreign["accounts"].insert_one({"name": "0"})
        await eventually(lambda: indexer.done and len(seen) == 2)
    assert (indexer.done, seen) == (["0"], ["0", "0"])


async def test_events_that_wait_long_are_parked_one_by_one_and_form_batches_again(
    account, foreign, dispatched, state
):
    """Each document has its own lane, in which later changes wait too. The parked events come back in batches."""
    broken = True

    def fails(batch: Any) -> Exception | None:
        return ConnectionError("down") if broken else None

    indexer = Indexer(account, Batch(size=10, wait=0.1), fails=fails, retry=Retry(50, base=0.05, cap=0.5))
    ids = [ObjectId() for _ in range(4)]
    async with dispatching(dispatched, park_after=0.0):
        foreign["accounts"].insert_many([{"_id": id_, "name": f"{n}.0", "amount": 0} for n, id_ in enumerate(ids)])
        await eventually(lambda: len(state.heads) == 4)
        for version in (1, 2):
            for n, id_ in enumerate(ids):
                foreign["accounts"].replace_one({"_id": id_}, {"name": f"{n}.{version}", "amount": 0})
        await eventually(lambda: len(state.rows) == 12)
        assert {head["state"] for head in state.heads} == {"retrying"}
        broken = False
        await eventually(lambda: state.empty)
    assert sorted(indexer.done) == sorted(f"{n}.{version}" for n in range(4) for version in range(3))
    for n in range(4):
        assert [name for name in indexer.done if name.startswith(f"{n}.")] == [f"{n}.0", f"{n}.1", f"{n}.2"]
    assert max(len(batch) for batch in indexer.batches if set(batch) <= set(indexer.done)) >= 4


async def test_all_batches_that_fit_into_the_queue_run_at_the_same_time(account, foreign, dispatched):
    """The queue has room for two batches. A running batch takes only the room of its deliveries."""
    gates: list[asyncio.Event] = []

    @post_save(account, name="index", batch=Batch(size=5, wait=60))
    async def index(sender, batch, **kwargs):
        gates.append(asyncio.Event())
        await gates[-1].wait()

    async with dispatching(dispatched, max_queued=10) as running:
        foreign["accounts"].insert_many(rows(*"abcdefghijklmnopqrst"))
        for number in range(4):  # one batch ends while another one runs
            await eventually(lambda number=number: len(gates) >= min(number + 2, 4), what="two batches run")
            gates[number].set()
        await eventually(lambda: running.stats.delivered == 20)
    assert len(gates) == 4
