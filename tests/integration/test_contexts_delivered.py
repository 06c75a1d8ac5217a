"""All deliveries of a write have the context of this write. Deliveries of other writes do not have it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from bson import ObjectId

import mongoz
from dispatcher.cli.letter_text import plain
from dispatcher.operate import dead_letters
from dispatcher.testing import Dispatcher
from mongoz.core.signals import post_delete, post_save, post_update
from mongoz.signals import muted
from mongoz.stamps import Stamp
from mongoz.testing import capture
from tests.integration.claiming import Held, claiming, make, until_announced
from tests.integration.deliveries import Parked, Strict, make_account
from tests.integration.test_replay import behind, run
from tests.support import dispatching, eventually, group_of

ADA = {"user": "ada", "admin": True, "request": 7}


class Seen:
    """Receivers of a document that note their contexts.

    Attributes:
        contexts: the origin, the signal and the context of each delivery.
    """

    def __init__(self, document: Any, *modes: str) -> None:
        self.contexts: list[tuple[str, str, Any]] = []
        for mode in modes:
            self._connect(document, mode)

    def _connect(self, document: Any, mode: str) -> None:
        async def note(sender: Any, instance: Any, delivery: Any, **kwargs: Any) -> None:
            context = None if delivery.context is None else dict(delivery.context)
            self.contexts.append((delivery.origin, delivery.signal, context))

        for signal in (post_save, post_update, post_delete):
            signal(document, name=mode, delivery=mode)(note)

    def take(self, origin: str) -> list[tuple[str, Any]]:
        """Removes the deliveries of this origin, and returns their signals and contexts."""
        taken = [(signal, context) for where, signal, context in self.contexts if where == origin]
        self.contexts = [one for one in self.contexts if one[0] != origin]
        return taken


async def in_transaction(registry: mongoz.Registry, *writes: Callable[[], Awaitable[Any]]) -> None:
    async with registry.transaction():
        for write in writes:
            await write()


SAVED, UPDATED, DELETED = "post_save", "post_update", "post_delete"

# For each call: a function that makes the call on a class with two documents, and the expected signals.
CALLS: dict[str, tuple[Callable[[Any, Any], Awaitable[Any]], list[str]]] = {
    "create": (lambda A, one: A(name="new").create(), [SAVED]),
    "save": (lambda A, one: one.save(), [SAVED]),
    "update": (lambda A, one: one.update(name="changed"), [UPDATED]),
    "delete": (lambda A, one: one.delete(), [DELETED]),
    "objects.create": (lambda A, one: A.objects.create(name="new"), [SAVED]),
    "get_or_create": (lambda A, one: A.objects.filter(name="new").get_or_create({"name": "new"}), [SAVED]),
    "update_or_create": (
        lambda A, one: A.objects.filter(name="one").update_or_create({"amount": 5}, name="one"),
        [UPDATED],
    ),
    "update_or_create, new": (lambda A, one: A.objects.update_or_create({"amount": 5}, name="new"), [SAVED]),
    "create_many": (lambda A, one: A.objects.create_many([A(name="new"), A(name="new")]), [SAVED] * 2),
    "update_many": (lambda A, one: A.objects.all().update_many(name="changed"), [UPDATED] * 2),
    "bulk_update": (lambda A, one: A.objects.all().bulk_update(name="changed"), [UPDATED] * 2),
    "update_count": (lambda A, one: A.objects.all().update_count(name="changed"), [UPDATED] * 2),
    "objects.delete": (lambda A, one: A.objects.all().delete(), [DELETED] * 2),
    "transaction": (
        lambda A, one: in_transaction(
            A.meta.registry, lambda: one.update(name="changed"), lambda: A.objects.all().delete()
        ),
        [UPDATED, DELETED, DELETED],
    ),
}


@pytest.mark.parametrize("modes", [("any", "dispatcher"), ("dispatcher",)], ids="-".join)
async def test_every_call_in_a_context_carries_the_context(dispatched, database, foreign, modes):
    """The calls carry a context even if no receiver runs in the process. Outside of a context they carry none."""
    foreign.create_collection("accounts", changeStreamPreAndPostImages={"enabled": True})
    account = make_account(dispatched, database)
    seen = Seen(account, *modes)
    async with Dispatcher(dispatched) as dispatcher:
        for call, (write, signals) in CALLS.items():
            for context in (ADA, None):
                await account.objects.create_many([account(name="one"), account(name="two")])
                one = await account.objects.filter(name="one").get()
                await dispatcher.until_idle()
                seen.contexts.clear()
                if context is None:
                    await write(account, one)
                else:
                    with mongoz.context(**context):
                        await write(account, one)
                await dispatcher.until_idle()
                expected = sorted((signal, str(context)) for signal in signals)
                for origin in ("stream", "process") if "any" in modes else ("stream",):
                    found = sorted((signal, str(each)) for signal, each in seen.take(origin))
                    assert found == expected, (call, origin)
                assert seen.contexts == [], call
                foreign["accounts"].delete_many({})


async def test_a_write_in_a_transaction_of_the_driver_carries_the_context(account, dispatched):
    seen = Seen(account, "any")
    one = await account(name="one").create()
    async with Dispatcher(dispatched) as dispatcher:
        seen.contexts.clear()
        async with dispatched.new_session() as session:
            await dispatched.adapter.start_transaction(session, {})
            with mongoz.context(**ADA):
                await one.update(name="changed", session=session)
            await session.commit_transaction()
        await dispatcher.until_idle()
    assert seen.contexts == [("stream", UPDATED, ADA)]


async def test_only_the_write_with_the_stamp_has_the_context(account, dispatched, foreign):
    """The stamp stays in the document, and other clients copy it."""
    seen = Seen(account, "dispatcher")
    accounts = foreign["accounts"]
    async with Dispatcher(dispatched) as dispatcher:
        with mongoz.context(**ADA):
            one = await account(name="one").create()
        row = accounts.find_one()
        assert Stamp.unpack(row["_mongoz"]).context
        accounts.update_one({}, {"$set": {"amount": 1}})
        accounts.update_one({}, {"$set": {**row, "amount": 2}})  # $set of a whole document, with its stamp
        accounts.update_one({}, [{"$set": {"amount": 3}}])
        accounts.replace_one({}, {**row, "amount": 4})
        accounts.insert_one({**row, "_id": ObjectId()})
        accounts.delete_one({"_id": one.id})
        accounts.insert_one(row)
        await dispatcher.until_idle()
    first, *others = seen.take("stream")
    assert first == (SAVED, ADA)
    assert [context for _, context in others] == [None] * 7


async def test_an_update_of_equal_values_in_a_context_is_delivered(account, dispatched):
    """In a context, the update writes a stamp, so the document changes. Otherwise it does not change."""
    fields: list[tuple[Any, Any]] = []

    @post_update(account, name="watch", delivery="dispatcher")
    async def watch(sender: Any, instance: Any, delivery: Any, update_fields: Any, **kwargs: Any) -> None:
        fields.append((delivery.context, update_fields))

    one = await account(name="one").create()
    async with Dispatcher(dispatched) as dispatcher:
        await one.update(name="one")
        with mongoz.context(**ADA):
            await one.update(name="one")
        await dispatcher.until_idle()
    assert fields == [(ADA, frozenset())]


async def test_a_later_write_without_a_context_has_none(account, dispatched, foreign):
    seen = Seen(account, "any", "dispatcher")
    async with Dispatcher(dispatched) as dispatcher:
        with mongoz.context(**ADA):
            one = await account(name="one").create()
        await one.update(amount=1)
        await one.save()
        await dispatcher.until_idle()
    assert seen.take("process") == seen.take("stream") == [(SAVED, ADA), (UPDATED, None), (SAVED, None)]
    assert Stamp.unpack(foreign["accounts"].find_one()["_mongoz"]).context == ""


async def test_a_plain_registry_writes_no_context(registry, database, foreign):
    account = make_account(registry, database)
    seen = Seen(account, "process")
    with mongoz.context(**ADA):
        await account(name="one").create()
        await account.objects.all().update_many(name="two")
    assert seen.take("process") == [(SAVED, ADA), (UPDATED, ADA)]
    assert foreign["accounts"].find_one({}, {"_id": 0}) == {"name": "two", "amount": 0, "tags": []}


async def test_a_muted_write_and_a_write_of_another_group_have_no_context(dispatched, database, foreign):
    account = make_account(dispatched, database)
    Seen(account, "any")
    async with mongoz.Registry(dispatched.url, dispatched=f"{database}_b") as theirs:
        seen = Seen(make_account(theirs, database), "any")
        async with Dispatcher(theirs) as dispatcher:
            with mongoz.context(**ADA), muted():
                await account(name="one").create()
                assert Stamp.unpack(foreign["accounts"].find_one()["_mongoz"]).context == ""
            with mongoz.context(**ADA):
                await account(name="two").create()
            await dispatcher.until_idle()
    assert seen.contexts == [("stream", SAVED, None)] * 2


async def test_a_receiver_in_the_dispatcher_may_set_a_context_of_its_own(account, dispatched, foreign):
    """A write of a receiver has a context only inside of a `context` block. Its stamp also counts the hops."""
    got: list[Any] = []

    @post_save(account, name="follow", delivery="dispatcher")
    async def follow(sender: Any, instance: Any, delivery: Any, **kwargs: Any) -> None:
        await instance.update(amount=1)
        with mongoz.context(**delivery.context, step=2):
            await instance.update(amount=2)

    @post_update(account, name="watch", delivery="dispatcher")
    async def watch(sender: Any, instance: Any, delivery: Any, **kwargs: Any) -> None:
        got.append(delivery.context)

    async with Dispatcher(dispatched) as dispatcher:
        with mongoz.context(**ADA):
            await account(name="one").create()
        await dispatcher.until_idle()
    stamp = Stamp.unpack(foreign["accounts"].find_one()["_mongoz"])
    assert got == [None, {**ADA, "step": 2}]
    assert (stamp.hops, stamp.receivers) == (1, frozenset())


@pytest.mark.usefixtures("quick")
async def test_parked_deliveries_dead_letters_and_retries_keep_the_context(
    account, dispatched, foreign, client, database
):
    strict = Strict(account, delivery="dispatcher", on_failure="dead_letter", retry=2)
    state = Parked(foreign)
    async with dispatching(dispatched, park_after=0.0):
        with mongoz.context(**ADA):
            await account(name="one").create()
        letter = await state.letter()
        assert letter["context"] == '{"user":"ada","admin":true,"request":7}'
        assert plain(letter)["context"] == ADA  # as `dead-letters show --json` prints it
        strict.mended = True
        group = group_of(client, database)
        asked = await dead_letters.request_retry(group)
        assert [one.result async for one in dead_letters.outcomes(group, asked, within=10)] == ["delivered"]
    assert len(strict.attempts) == 3
    (delivery,) = strict.deliveries
    assert (delivery.context, delivery.replayed) == (ADA, True)


@pytest.fixture
async def claimed(mongo: Any, database: str) -> AsyncIterator[mongoz.Registry]:
    """A registry with claims."""
    async with claiming(mongo.url, database) as made:
        yield made


@pytest.mark.parametrize("parks", [False, True])
async def test_a_takeover_has_the_context_of_the_write(claimed, database, foreign, mongo, parks, monkeypatch):
    if parks:
        monkeypatch.setattr("dispatcher.claims.waiting._LONGEST", 0.5)
        monkeypatch.setattr("dispatcher.claims.waiting._AGAIN", 0.05)
    got: list[Any] = []

    async def note(name: str, instance: Any, delivery: Any) -> None:
        got.append((delivery.origin, delivery.signal, delivery.context))

    state = foreign.client[f"{database}_state"]
    make(claimed, database, [], on_delivery=note, others=False)
    held = Held(mongo.url, database)
    async with dispatching(claimed):
        await until_announced(state)
        with mongoz.context(**ADA):
            await held.begin(held.Item(n=1).create())
        if parks:
            await eventually(lambda: state.held.find_one({"state": {"$ne": "dead"}}), what="the claim is parked")
        state.claims.update_one(held.book, {"$set": {"fenced_at": 1}})
        await eventually(lambda: got, what="the takeover")
    assert got == [("takeover", SAVED, ADA)]
    await held.finish()
    await held.registry.close()


async def test_a_replay_has_the_contexts_of_the_writes(account, dispatched, foreign):
    foreign.create_collection("accounts", changeStreamPreAndPostImages={"enabled": True})
    begin = behind(foreign)
    with mongoz.context(**ADA):
        one = await account(name="one").create()
        await one.update(amount=1)
    foreign["accounts"].update_one({}, {"$set": {"amount": 2}})
    with mongoz.context(user="bob"):
        await one.delete()
    seen = Seen(account, "dispatcher")
    await run(dispatched, since=begin)
    assert seen.take("stream") == [(SAVED, ADA), (UPDATED, ADA), (UPDATED, None), (DELETED, {"user": "bob"})]


async def test_a_capture_and_the_test_dispatcher_show_contexts(account, dispatched):
    Seen(account, "dispatcher")
    with capture(account) as captured:
        async with Dispatcher(dispatched) as dispatcher:
            with mongoz.context(**ADA):
                one = await account(name="one").create()
            (delivered,) = await dispatcher.delivered(one, "post_save")
    captured.assert_fired(account.signals.post_save, delivery__context=ADA)
    captured.assert_fired(account.signals.post_save, delivery__context__user="ada")
    captured.assert_not_fired(account.signals.post_save, delivery__context__user="bob")
    assert delivered.delivery.context == ADA
