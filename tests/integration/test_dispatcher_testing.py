"""`dispatcher.testing`: waiting for deliveries, hand-made changes, fixtures, and error messages."""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId
from pydantic import ValidationError
from pymongo import MongoClient

import mongoz
from dispatcher.embedded.server import EmbeddedMongo, embedded_mongo
from dispatcher.exceptions import ApplicationError, CannotConnect, HistoryLost, NothingToDeliver
from dispatcher.settings import Settings
from dispatcher.testing import DeliveryTimeout, Dispatcher, delete, deliver, insert, replace, update
from mongoz.core.signals import post_delete, post_save, post_update
from mongoz.exceptions import SignalError
from mongoz.signals.options import Retry
from mongoz.testing import capture
from tests.support import ROOT, eventually

ONE, TWO, THREE, SEVEN = (ObjectId(f"{number:024x}") for number in (1, 2, 3, 7))


def make(registry: mongoz.Registry, in_database: str, name: str = "User") -> Any:
    class User(mongoz.Document):
        name: str = mongoz.String(max_length=40)
        age: int = mongoz.Integer(default=0)
        nick: str = mongoz.String(null=True, alias="nickname")

        class Meta:
            abstract = True

    meta = type("Meta", (), {"registry": registry, "database": in_database, "abstract": False})
    return type(mongoz.Document)(name, (User,), {"__module__": __name__, "__qualname__": name, "Meta": meta})


@pytest.fixture
def User(dispatched: mongoz.Registry, database: str) -> Any:
    return make(dispatched, database)


@pytest.fixture
def welcomed(User: Any) -> list[str]:
    """The names received by a `post_save` receiver."""
    names: list[str] = []

    @post_save(User, name="welcome")
    async def welcome(sender: Any, instance: Any, **kwargs: Any) -> None:
        await asyncio.sleep(0.01)
        names.append(instance.name)

    return names


# -- until_idle --------------------------------------------------------------------------------------------------


async def test_later_attempts_of_a_parked_delivery_update_its_record(dispatched, User, foreign):
    """`until_idle` reports a blocked delivery as failed, but the attempts of the delivery continue."""
    fails = True

    @post_save(User, name="strict", on_failure="block", retry=Retry(1, base=0.01, cap=0.02))
    async def strict(sender: Any, instance: Any, **kwargs: Any) -> str:
        if fails:
            raise ValueError("not yet")
        return instance.name

    async with Dispatcher(dispatched) as dispatcher:
        foreign["users"].insert_one({"name": "Ada"})
        with pytest.raises(ExceptionGroup, match="not yet"):
            await dispatcher.until_idle()
        fails = False
        (delivery,) = dispatcher.deliveries
        await eventually(lambda: delivery.outcome == "delivered")
    assert (delivery.result, delivery.error) == ("Ada", None)
    assert delivery.attempts == delivery.kwargs["delivery"].attempt > 1


async def test_until_idle_waits_for_every_write_before_it(dispatched, User, welcomed, foreign):
    async with Dispatcher(dispatched) as dispatcher:
        foreign["users"].insert_many([{"name": f"n{number}"} for number in range(50)])
        await dispatcher.until_idle()
        assert len(welcomed) == 50
        foreign["users"].insert_one({"name": "last"})
        await dispatcher.until_idle()
        assert welcomed[50:] == ["last"]
    assert {(each.receiver, each.signal, each.outcome) for each in dispatcher.deliveries} == {
        ("welcome", "post_save", "delivered")
    }


async def test_until_idle_is_fast_without_changes(dispatched, User, welcomed):
    async with Dispatcher(dispatched) as dispatcher:
        took = []
        for _ in range(10):
            began = time.monotonic()
            await dispatcher.until_idle()
            took.append(time.monotonic() - began)
        assert min(took) < 0.5  # an idle stream answers only after a second
    assert dispatcher.deliveries == ()


async def test_until_idle_waits_for_the_writes_of_receivers(dispatched, User, database, foreign):
    Note = make(dispatched, database, "Note")
    done = []

    @post_save(User, name="writes a note", delivery="dispatcher")
    async def writes(sender: Any, instance: Any, **kwargs: Any) -> None:
        await asyncio.sleep(0.05)
        await Note.objects.create(name=f"note on {instance.name}")

    @post_save(Note, name="reads notes")
    async def reads(sender: Any, instance: Any, **kwargs: Any) -> None:
        await asyncio.sleep(0.05)
        done.append(instance.name)

    async with Dispatcher(dispatched) as dispatcher:
        foreign["users"].insert_one({"name": "Ada"})
        await dispatcher.until_idle()
        assert done == ["note on Ada"]


async def test_receivers_that_ran_in_process_are_not_run_again(dispatched, User, welcomed):
    async with Dispatcher(dispatched) as dispatcher:
        ada = await User.objects.create(name="Ada")
        await dispatcher.until_idle()
        assert dispatcher.deliveries == ()
        with pytest.raises(DeliveryTimeout) as caught:
            await dispatcher.delivered(ada, "post_save", timeout=0.05)
    assert welcomed == ["Ada"]
    assert "Read, but without a receiver (or the receiver ran in the writing process)" in str(caught.value)
    read = f"insert of {User.meta.collection.namespace} {ada.id!r}"
    assert f"{read}: no receiver gets this change" in str(caught.value)


async def test_a_dispatcher_calls_receivers_that_a_silent_capture_suppressed(dispatched, User, welcomed, foreign):
    @post_save(User, name="second")
    async def second(sender: Any, **kwargs: Any) -> None: ...

    async with Dispatcher(dispatched) as dispatcher:
        with capture(User, silent=True) as captured:
            ada = await User.objects.create(name="Ada")
            assert welcomed == []
        with capture(User) as loud:
            bea = await User.objects.create(name="Bea")
        assert "_mongoz" in foreign["users"].find_one({"_id": bea.id})
        await dispatcher.until_idle()
    captured.assert_fired(User.signals.post_save, instance__id=ada.id)
    loud.assert_fired(User.signals.post_save, instance=bea)
    assert sorted(welcomed) == ["Ada", "Bea"]
    assert [(each.receiver, each.id) for each in dispatcher.deliveries] == [
        ("welcome", ada.id),
        ("second", ada.id),
    ]


async def test_captures_see_bulk_writes_deletes_and_transactions(dispatched, User):
    with capture(User) as captured:
        await User.objects.create_many([User(name="Ada"), User(name="Bea")])
        async with dispatched.transaction():
            await User.objects.create(name="Cleo")
            assert len(captured.named("post_save")) == 2
        await User.objects.filter(name="Ada").update(age=1)
        await User.objects.filter(name="Bea").delete()
        captured.assert_fired("post_save", times=3, created=True)
        captured.assert_fired("post_update", update_fields={"age"}, instance__name="Ada")
        captured.assert_fired("post_delete", instance__name="Bea")
        captured.clear()
        with pytest.raises(ValueError, match="no"):  # noqa: PT012 - the block of the transaction raises
            async with dispatched.transaction():
                await User.objects.create(name="Dora")
                raise ValueError("no")
        captured.assert_not_fired("post_save")


async def test_a_change_outside_of_where_is_no_delivery(dispatched, User, foreign):
    @post_save(User, name="adults", where={"age": {"$gte": 18}})
    async def adults(sender: Any, **kwargs: Any) -> None: ...

    async with Dispatcher(dispatched) as dispatcher:
        foreign["users"].insert_many([{"name": "Ada", "age": 36}, {"name": "Bea", "age": 6}])
        await dispatcher.until_idle()
    assert [each.instance.name for each in dispatcher.deliveries] == ["Ada"]


async def test_a_hanging_receiver_is_in_the_report(dispatched, User, foreign):
    hold = asyncio.Event()

    @post_save(User, name="hangs")
    async def hangs(sender: Any, **kwargs: Any) -> None:
        await hold.wait()

    async with Dispatcher(dispatched) as dispatcher:
        id_ = foreign["users"].insert_one({"name": "Ada"}).inserted_id
        with pytest.raises(DeliveryTimeout) as caught:
            await dispatcher.until_idle(timeout=0.3)
        hold.set()
        await dispatcher.until_idle()
    message = str(caught.value)
    assert message.startswith("The dispatcher is not idle after 0.3 s.\nEverything up to ")
    assert "1 deliveries are open" in message
    assert (
        f"Not finished:\n  post_save of {User.meta.collection.namespace} {id_!r} to hangs: running for " in message
    )


# -- delivered ---------------------------------------------------------------------------------------------------


async def test_delivered_waits_for_one_document(dispatched, User, welcomed, foreign, database):
    @post_update(User, name="renamed")
    async def renamed(sender: Any, **kwargs: Any) -> str:
        return "done"

    async with Dispatcher(dispatched) as dispatcher:
        ada, other = ObjectId(), ObjectId()
        foreign["users"].insert_many([{"_id": ada, "name": "Ada"}, {"_id": other, "name": "Bea"}])
        (delivery,) = await dispatcher.delivered((User, ada), "post_save")
        assert (delivery.receiver, delivery.signal, delivery.id) == ("welcome", "post_save", ada)
        assert (delivery.outcome, delivery.attempts, delivery.error) == ("delivered", 1, None)
        assert (delivery.document, delivery.collection) == (User, f"{database}.users")
        assert delivery.kwargs["created"] is True
        assert delivery.instance.name == "Ada"
        assert delivery.delivery.origin == "stream"
        user = await User.objects.get(id=ada)
        foreign["users"].update_one({"_id": ada}, {"$set": {"name": "Ada 2"}})
        foreign["users"].update_one({"_id": ada}, {"$set": {"nickname": "A"}})
        updates = await dispatcher.delivered(user, User.signals.post_update, times=2)
        assert [each.kwargs["update_fields"] for each in updates] == [{"name"}, {"nick"}]
        assert updates[0].result == "done"
        for place in ("users", f"{database}.users"):
            found = await dispatcher.delivered((place, ada), times=3)
            assert [each.signal for each in found] == ["post_save", "post_update", "post_update"]
        assert await dispatcher.delivered((User, ada), receiver=renamed) == updates
        assert await dispatcher.delivered((User, ada), receiver="renamed", times=2) == updates
        dispatcher.clear()
        with pytest.raises(DeliveryTimeout, match=r"^Anything of .* was not delivered within 0\.05 s"):
            await dispatcher.delivered(user, timeout=0.05)


async def test_a_timeout_lists_the_changes_and_deliveries(dispatched, User, welcomed, foreign, database):
    async with Dispatcher(dispatched) as dispatcher:
        with pytest.raises(DeliveryTimeout) as caught:
            await dispatcher.delivered((User, 5), "post_delete", times=2, timeout=0.05, receiver="welcome")
        assert str(caught.value).startswith(
            f"post_delete of {database}.users 5 to welcome was not delivered 2 times within 0.05 s.\nEverything "
        )
        assert str(caught.value).endswith(f"No change was read. The watched collections: {database}.users.")
        foreign["users"].insert_one({"_id": SEVEN, "name": "Ada"})
        await dispatcher.until_idle()
        with pytest.raises(DeliveryTimeout) as caught:
            await dispatcher.delivered((User, 5), timeout=0.05)
        assert f"Delivered:\n  post_save of {database}.users {SEVEN!r} to welcome: delivered" in str(caught.value)


async def test_targets_that_can_not_be_waited_for_are_refused(dispatched, User, welcomed):
    async with Dispatcher(dispatched) as dispatcher:
        with pytest.raises(SignalError, match=r"No dispatcher delivers 'pre_save'"):
            await dispatcher.delivered((User, ONE), "pre_save")
        with pytest.raises(SignalError, match=r"No receiver listens to a collection 'user'\. Did you mean"):
            await dispatcher.delivered(("user", 1))
        with pytest.raises(SignalError, match=r"No receiver welcom runs here\. Did you mean 'welcome'"):
            await dispatcher.delivered((User, ONE), receiver="welcom")


# -- failures ----------------------------------------------------------------------------------------------------


@pytest.fixture
def failing(User: Any) -> Any:
    @post_save(User, name="fails")
    async def fails(sender: Any, instance: Any, **kwargs: Any) -> None:
        if instance.name.startswith("bad"):
            raise ValueError(f"no {instance.name}")

    return fails


async def test_until_idle_raises_exceptions_of_receivers_once(dispatched, User, failing, foreign):
    async with Dispatcher(dispatched) as dispatcher:
        foreign["users"].insert_many(
            [{"_id": ONE, "name": "bad"}, {"_id": TWO, "name": "worse"}, {"_id": THREE, "name": "bad 2"}]
        )
        with pytest.raises(ExceptionGroup) as caught:
            await dispatcher.until_idle()
        await dispatcher.until_idle()
    assert [str(error) for error in caught.value.exceptions] == ["no bad", "no bad 2"]
    place = User.meta.collection.namespace
    assert str(caught.value).startswith(
        "2 deliveries failed:\n"
        f"  post_save of {place} {ONE!r} to fails: failed: ValueError: no bad\n"
        f"  post_save of {place} {THREE!r} to fails: failed: ValueError: no bad 2 ("
    )
    assert caught.value.exceptions[0].__notes__ == [f"in the delivery of post_save of {place} {ONE!r} to fails"]
    assert [each.id for each in dispatcher.failures] == [ONE, THREE]


async def test_delivered_raises_at_the_first_failure(dispatched, User, failing, foreign):
    async with Dispatcher(dispatched) as dispatcher:
        foreign["users"].insert_one({"_id": ONE, "name": "bad"})
        with pytest.raises(ExceptionGroup, match="A delivery failed"):
            await dispatcher.delivered((User, ONE))


async def test_failures_that_no_call_raised_are_raised_at_the_end(dispatched, User, failing, foreign):
    with pytest.raises(ExceptionGroup, match="no bad"):  # noqa: PT012 - the end of the block raises
        async with Dispatcher(dispatched) as dispatcher:
            foreign["users"].insert_one({"_id": ONE, "name": "bad"})
            foreign["users"].insert_one({"_id": TWO, "name": "good"})
            await dispatcher.delivered((User, TWO))
            while not dispatcher.failures:
                await asyncio.sleep(0.005)


async def test_failures_are_not_raised_if_raise_failures_is_false(dispatched, User, failing, foreign):
    async with Dispatcher(dispatched, raise_failures=False) as dispatcher:
        foreign["users"].insert_one({"_id": ONE, "name": "bad"})
        await dispatcher.until_idle()
        with pytest.raises(
            DeliveryTimeout, match=r"Failed:\n  post_save of .* to fails: failed: ValueError: no bad"
        ):
            await dispatcher.delivered((User, ONE), timeout=0.05)
    (failure,) = dispatcher.failures
    assert isinstance(failure.error, ValueError)


async def test_an_exception_of_the_test_itself_is_raised_instead_of_failures(dispatched, User, failing, foreign):
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block raises
        async with Dispatcher(dispatched) as dispatcher:
            foreign["users"].insert_one({"_id": ONE, "name": "bad"})
            while not dispatcher.failures:
                await asyncio.sleep(0.005)
            1 / 0  # noqa: B018


async def test_a_document_that_does_not_fit_its_model_is_a_failure(dispatched, User, failing, foreign):
    async with Dispatcher(dispatched) as dispatcher:
        foreign["users"].insert_one({"_id": ONE, "name": "x" * 41})
        with pytest.raises(ExceptionGroup) as caught:
            await dispatcher.until_idle()
    (error,) = caught.value.exceptions
    assert isinstance(error, ValidationError)
    assert "at most 40 characters" in str(caught.value)


async def test_a_successful_retry_is_not_a_failure(dispatched, User, foreign):
    attempts = []

    @post_save(User, name="flaky")
    async def flaky(sender: Any, delivery: Any, **kwargs: Any) -> None:
        attempts.append(delivery.attempt)
        if len(attempts) == 1:
            raise ValueError("not yet")

    async with Dispatcher(dispatched, Settings(attempts=3)) as dispatcher:
        foreign["users"].insert_one({"name": "Ada"})
        await dispatcher.until_idle()
    (delivery,) = dispatcher.deliveries
    assert (attempts, delivery.attempts, delivery.outcome, delivery.error) == ([1, 2], 2, "delivered", None)


async def test_a_receiver_that_is_too_slow_has_failed(dispatched, User, foreign):
    @post_save(User, name="slow")
    async def slow(sender: Any, **kwargs: Any) -> None:
        await asyncio.Event().wait()

    async with Dispatcher(dispatched, Settings(attempts=1, timeout=0.1)) as dispatcher:
        foreign["users"].insert_one({"name": "Ada"})
        with pytest.raises(ExceptionGroup) as caught:
            await dispatcher.until_idle()
    assert isinstance(caught.value.exceptions[0], TimeoutError)


async def test_deliveries_that_are_cancelled_at_the_end_have_not_failed(dispatched, User, foreign):
    @post_save(User, name="slow")
    async def slow(sender: Any, **kwargs: Any) -> None:
        await asyncio.Event().wait()

    async with Dispatcher(dispatched, Settings(grace=0.05)) as dispatcher:
        foreign["users"].insert_one({"name": "Ada"})
        while not dispatcher.deliveries or dispatcher.deliveries[0].outcome != "running":
            await asyncio.sleep(0.005)
    assert [each.outcome for each in dispatcher.deliveries] == ["cancelled"]


# -- the dispatcher itself ---------------------------------------------------------------------------------------


async def test_an_application_without_deliveries_is_an_error_at_the_start(registry, dispatched, database, mongo):
    with pytest.raises(NothingToDeliver):
        async with Dispatcher(dispatched):
            pass
    plain = make(registry, database, "Plain")
    post_save(plain, name="listen")(_listen)
    with pytest.raises(ApplicationError, match="not dispatched"):
        async with Dispatcher(registry):
            pass
    nowhere = mongoz.Registry("mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=100", dispatched=True)
    post_save(make(nowhere, database), name="listen")(_listen)
    with pytest.raises(CannotConnect):
        async with Dispatcher(nowhere, Settings(connect_timeout=0.2)):
            pass


async def _listen(sender: Any, **kwargs: Any) -> None: ...


async def test_a_plain_registry_is_accepted_with_deliver_everything(registry, database, foreign):
    User = make(registry, database)
    post_save(User, name="listen")(_listen)
    async with Dispatcher(registry, Settings(deliver_everything=True)) as dispatcher:
        ada = await User.objects.create(name="Ada")
        await dispatcher.delivered(ada)


async def test_another_url_can_be_given(mongo, database, foreign):
    registry = mongoz.Registry("mongodb://127.0.0.1:1/", dispatched=database)
    post_save(make(registry, database), name="listen")(_listen)
    async with Dispatcher(registry, url=mongo.url) as dispatcher:
        foreign["users"].insert_one({"_id": ONE, "name": "Ada"})
        await dispatcher.delivered(("users", ONE))


async def test_the_state_is_removed_at_the_end(dispatched, User, welcomed, foreign, mongo):
    with MongoClient(mongo.url) as client:
        before = set(client.list_database_names())
        async with Dispatcher(dispatched) as dispatcher:
            foreign["users"].insert_one({"name": "Ada"})
            await dispatcher.until_idle()
            assert dispatcher.service.settings.state_database in client.list_database_names()
        assert dispatcher.service.settings.state_database not in client.list_database_names()
        assert set(client.list_database_names()) - before <= {foreign.name}
    assert foreign.list_collection_names() == ["users"]


async def test_with_a_state_database_the_next_dispatcher_continues(dispatched, User, welcomed, foreign, database):
    settings = Settings(state_database=f"{database}_state", attempts=1)
    async with Dispatcher(dispatched, settings) as dispatcher:
        foreign["users"].insert_one({"name": "Ada"})
        await dispatcher.until_idle()
    foreign["users"].insert_one({"name": "Bea"})
    async with Dispatcher(dispatched, settings) as dispatcher:
        await dispatcher.until_idle()
    assert welcomed == ["Ada", "Bea"]


async def test_errors_of_the_daemon_are_raised_by_the_next_call(dispatched, User, welcomed, foreign):
    async with Dispatcher(dispatched) as dispatcher:
        with _history_lost(foreign), pytest.raises(HistoryLost):  # noqa: PT012 - one of the calls
            for _ in range(500):
                await dispatcher.until_idle()


async def test_errors_of_the_daemon_are_raised_at_the_end(dispatched, User, welcomed, foreign):
    with pytest.raises(HistoryLost):
        await _lose_history(dispatched, foreign)
    with pytest.raises(ZeroDivisionError) as caught:
        await _lose_history(dispatched, foreign, then=lambda: 1 / 0)
    assert "The dispatcher had ended before: HistoryLost" in caught.value.__notes__[0]


async def _lose_history(registry: Any, foreign: Any, then: Callable[[], Any] | None = None) -> None:
    async with Dispatcher(registry) as dispatcher:
        with _history_lost(foreign):
            await asyncio.wait([dispatcher._task])
        if then:
            then()


@contextlib.contextmanager
def _history_lost(foreign: Any) -> Iterator[None]:
    failing = {"failCommands": ["getMore"], "errorCode": 286, "appName": "mongoz-dispatcher"}
    foreign.client.admin.command("configureFailPoint", "failCommand", mode="alwaysOn", data=failing)
    try:
        yield
    finally:
        foreign.client.admin.command("configureFailPoint", "failCommand", mode="off")


async def test_a_second_dispatcher_on_the_same_state_is_refused(dispatched, User, welcomed, foreign, database):
    """The second dispatcher would stay a standby of the first one."""
    settings = Settings(state_database=f"{database}_state", connect_timeout=0.5)
    async with Dispatcher(dispatched, settings):
        with pytest.raises(DeliveryTimeout, match=f"Another dispatcher .* {database} .* this state database"):
            async with Dispatcher(dispatched, settings):
                pass
        foreign["users"].insert_one({"name": "Ada"})
        await eventually(lambda: welcomed)


@pytest.mark.slow
async def test_a_dead_server_does_not_make_the_test_hang(database):
    with embedded_mongo() as server:
        registry = mongoz.Registry(server.url, dispatched=database)
        post_save(make(registry, database), name="listen")(_listen)
        async with Dispatcher(registry) as dispatcher:
            await dispatcher.until_idle()
            server.stop()
            with pytest.raises(DeliveryTimeout, match=r"not idle after 0\.5 s"):
                await dispatcher.until_idle(timeout=0.5)
            died = time.monotonic()
    assert time.monotonic() - died < 60  # about 7 s, 5 of them to save the position


# -- hand-made changes -------------------------------------------------------------------------------------------


@pytest.fixture
def offline() -> Any:
    """A document class of a registry without a server."""
    return make(mongoz.Registry("mongodb://127.0.0.1:1/", dispatched="offline"), "nowhere")


@pytest.fixture
def calls(offline: Any) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []

    async def watcher(sender: Any, **kwargs: Any) -> None:
        seen.append({"sender": sender, **kwargs})

    for connect in (post_save, post_update, post_delete):
        connect(offline, name="watcher")(watcher)
    return seen


async def test_a_receiver_gets_the_same_arguments_as_from_a_dispatcher(offline, calls):
    await deliver(offline, insert({"_id": ONE, "name": "Ada", "nickname": "A"}))
    row = {"_id": ONE, "name": "Bea", "age": 3}
    await deliver(offline, replace(row, previous={"name": "Ada"}))
    await deliver(offline, update(row, changed=["name", "nick"], previous={"name": "Ada"}))
    await deliver(offline, delete(ONE, before=row))
    inserted, replaced, updated, deleted = calls
    assert all(call["sender"] is offline for call in calls)
    assert set(inserted) == {"sender", "instance", "created", "previous", "delivery"}
    assert (inserted["instance"].id, inserted["instance"].name, inserted["instance"].nick) == (ONE, "Ada", "A")
    assert (inserted["created"], replaced["created"]) == (True, False)
    assert (inserted["previous"], replaced["previous"].name) == (None, "Ada")
    assert (updated["update_fields"], updated["previous"].name) == ({"name", "nick"}, "Ada")
    assert (deleted["instance"].name, deleted["delivery"].image) == ("Bea", "pre")
    assert [call["delivery"].signal for call in calls] == ["post_save", "post_save", "post_update", "post_delete"]
    assert len({call["delivery"].id for call in calls}) == 4
    assert inserted["delivery"].cluster_time < replaced["delivery"].cluster_time
    assert inserted["delivery"].wall_time is not None
    assert (inserted["delivery"].origin, inserted["delivery"].receiver) == ("stream", "watcher")


async def test_a_hand_made_change_may_have_any_image(offline, calls):
    await deliver(offline, delete(ONE))
    await deliver(offline, update({"_id": TWO, "name": "Ada"}, changed=["name"], image="current"))
    await deliver(offline, update({"_id": THREE}, changed=["name"], image="key"))
    assert [call["delivery"].image for call in calls] == ["key", "current", "key"]
    assert [call["instance"].id for call in calls] == [ONE, TWO, THREE]
    with pytest.raises(AttributeError):
        _ = calls[2]["instance"].name


async def test_a_hand_made_insert_takes_an_instance_or_a_dict_and_gets_an_id(offline, calls):
    await deliver(offline, insert(offline(name="Ada", nick="A")))
    await deliver(offline, insert({"name": "Bea"}))
    assert [(call["instance"].name, call["instance"].nick) for call in calls] == [("Ada", "A"), ("Bea", None)]
    assert all(isinstance(call["instance"].id, ObjectId) for call in calls)


async def test_a_dotted_name_in_changed_counts_as_its_field(offline, calls):
    row = {"_id": ONE, "name": "Ada", "address": {"city": "Bonn", "lines": ["a"]}}
    await deliver(offline, update(row, changed=["address.city", "address.lines.0", "address.gone"]))
    assert calls[0]["update_fields"] == {"address"}


async def test_a_hand_made_change_may_have_a_context(offline, calls):
    for change in (
        insert({"name": "Ada"}, context={"user": "ada"}),
        update({"_id": ONE, "name": "Bea"}, changed={"name"}, context={"user": "bea", "dry": True}),
        replace({"_id": ONE, "name": "Cleo"}),
        delete(ONE, context={"request": 7}),
    ):
        await deliver(offline, change)
    contexts = [call["delivery"].context for call in calls]
    assert contexts == [{"user": "ada"}, {"user": "bea", "dry": True}, None, {"request": 7}]
    with pytest.raises(ValueError, match=r"'amount' is 1\.5"):
        await deliver(offline, insert({"name": "Ada"}, context={"amount": 1.5}))


async def test_one_receiver_can_be_selected(offline, calls):
    @post_save(offline, name="other")
    async def other(sender: Any, instance: Any, **kwargs: Any) -> str:
        return f"hello {instance.name}"

    (delivery,) = await deliver(offline, insert({"name": "Ada"}), receiver=other)
    assert (delivery.receiver, delivery.result, delivery.outcome) == ("other", "hello Ada", "delivered")
    assert len(await deliver(offline, insert({"name": "Ada"}), receiver="watcher")) == 1
    assert len(await deliver(offline, insert({"name": "Ada"}))) == 2
    assert await deliver(offline, delete(ONE), receiver=other) == []
    assert len(calls) == 2


async def test_errors_of_receivers_are_raised(offline):
    @post_save(offline, name="fails")
    async def fails(sender: Any, **kwargs: Any) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await deliver(offline, insert({"name": "Ada"}))
    (delivery,) = await deliver(offline, insert({"name": "Ada"}), raise_failures=False)
    assert (delivery.outcome, str(delivery.error), delivery.attempts) == ("failed", "no", 1)

    @post_save(offline, name="fails, too")
    async def fails_too(sender: Any, **kwargs: Any) -> None:
        raise KeyError("too")

    with pytest.raises(ExceptionGroup, match="2 of 2 receivers failed"):
        await deliver(offline, insert({"name": "Ada"}))
    with pytest.raises(ValidationError, match="at most 40 characters"):
        await deliver(offline, insert({"name": "x" * 41}))


async def test_a_hanging_receiver_times_out(offline):
    @post_save(offline, name="hangs")
    async def hangs(sender: Any, **kwargs: Any) -> None:
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await deliver(offline, insert({"name": "Ada"}), timeout=0.05)


async def test_documents_without_receivers_and_wrong_receivers_are_refused(offline):
    async def stranger(sender: Any, **kwargs: Any) -> None: ...

    with pytest.raises(SignalError, match="User has no post_save, post_update or post_delete receiver"):
        await deliver(offline, insert({"name": "Ada"}))
    post_save(offline, name="here only", delivery="process")(stranger)
    with pytest.raises(SignalError, match=r"stranger is connected with delivery='process'"):
        await deliver(offline, insert({"name": "Ada"}), receiver=stranger)
    post_save(offline, name="listen")(_listen)
    with pytest.raises(SignalError, match=r"lisen is not connected to .* of User\. Did you mean 'listen'"):
        await deliver(offline, insert({"name": "Ada"}), receiver="lisen")


# -- fixtures ----------------------------------------------------------------------------------------------------

CONFTEST = 'pytest_plugins = ["dispatcher.testing.fixtures"]\n'
TESTS = """
from pymongo import MongoClient

names = set()

def test_a(mongodb_url, mongodb_database):
    names.add(mongodb_database)
    with MongoClient(mongodb_url) as client:
        assert client.admin.command("hello")["setName"]
        assert client[mongodb_database].things.count_documents({}) == 0
        client[mongodb_database].things.insert_one({})
    print("URL", mongodb_url)

def test_b(mongodb, mongodb_database):
    assert mongodb.client.admin.command("hello")["setName"]
    assert mongodb_database not in names
    assert not names & set(mongodb.client.list_database_names())
    print("URL", mongodb.url)
"""


def run_pytest(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_them.py").write_text(TESTS)
    clean = {name: value for name, value in os.environ.items() if name != "CI" and not name.startswith("PYTEST")}
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-rA",
            "-p",
            "no:cacheprovider",
            *arguments,
            "test_them.py",
        ],
        cwd=folder,
        env={**clean, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_fixtures_use_the_server_named_in_the_environment(tmp_path: Path, mongo: EmbeddedMongo):
    ran = run_pytest(tmp_path, MONGOZ_TEST_URL=mongo.url)
    assert ran.returncode == 0, ran.stdout
    assert ran.stdout.count(f"URL {mongo.url}") == 2


@pytest.mark.slow
def test_fixtures_start_a_server_for_each_worker(tmp_path: Path, mongo: EmbeddedMongo):
    ran = run_pytest(tmp_path, "-n", "2", "--dist", "each", "--tx", "2*popen")
    assert ran.returncode == 0, ran.stdout
    urls = [line for line in ran.stdout.splitlines() if line.startswith("URL")]
    assert len(urls) == 4
    assert len(set(urls)) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "code", "said"),
    [
        ({"MONGOZ_MONGOD": "/no/mongod"}, 0, ["2 skipped", "no MongoDB server: MONGOZ_MONGOD names /no/mongod"]),
        ({"MONGOZ_MONGOD": "/no/mongod", "CI": "1"}, 1, ["2 errors", "or name one in MONGOZ_TEST_URL"]),
        (
            {"MONGOZ_TEST_URL": "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=100&connectTimeoutMS=100"},
            1,
            ["2 errors", "MONGOZ_TEST_URL names a server that can't be used"],
        ),
    ],
)
def test_without_a_server_fixtures_skip_tests_and_fail_in_ci(
    environment: dict[str, str], code: int, said: list[str], tmp_path: Path
):
    ran = run_pytest(tmp_path, **environment)
    assert ran.returncode == code, ran.stdout
    for text in said:
        assert text in ran.stdout
