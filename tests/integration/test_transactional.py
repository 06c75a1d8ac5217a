"""transactional=True: the writes of a receiver in MongoDB happen once although deliveries are repeated."""

import asyncio
from time import monotonic
from typing import Any

import pytest
from bson import ObjectId
from pymongo.errors import OperationFailure, PyMongoError

import mongoz
from dispatcher.exceptions import AccessDenied
from mongoz import U
from mongoz.core.signals import post_save
from mongoz.signals.options import Retry
from tests.integration.deliveries import State, make_account
from tests.support import dispatching, eventually

COMMIT = {"failCommands": ["commitTransaction"]}


@pytest.fixture
async def either(mongo: Any, database: str, driver: str) -> Any:
    """A dispatched registry on each driver."""
    async with mongoz.Registry(mongo.url, driver=driver, dispatched=database) as made:
        yield made


@pytest.fixture
def total(dispatched: mongoz.Registry, database: str, foreign: Any) -> Any:
    """A document class for writes of receivers, without receivers of its own."""
    foreign["totals"].insert_one({"name": "all"})
    return make_account(dispatched, database, "totals")


@pytest.fixture
def state(foreign: Any) -> State:
    return State(foreign)


async def add(total: Any, instance: Any) -> None:
    """Add the amount of the instance to the total. A repetition would make the total too large."""
    await total.objects.filter(name="all").update(U.inc(amount=instance.amount))


async def test_a_session_that_cannot_be_registered_uses_up_no_attempt(dispatched, account, foreign, state):
    """An election lasts longer than the attempts. The receiver has not begun, so it has not failed."""
    told: list[str] = []

    @post_save(account, name="adding", transactional=True, retry=Retry(attempts=2, base=0.01, cap=0.02))
    async def adding(sender, instance, delivery, **kwargs):
        told.append(instance.name)
        assert delivery.attempt == 1

    namespace = f"{state.database.name}.sessions"
    election = {"failCommands": ["update"], "errorCode": 10107, "namespace": namespace}
    async with dispatching(dispatched):
        foreign.client.admin.command("configureFailPoint", "failCommand", mode={"times": 12}, data=election)
        foreign["accounts"].insert_one({"name": "ada"})
        await eventually(lambda: told == ["ada"])
    assert state.database["held"].count_documents({}) == 0


async def test_a_repeated_delivery_has_no_further_effect(either, database, foreign, state):
    """The position is older than the commit, as after a crash between the commit and the save of the position."""
    account, total = make_account(either, database), make_account(either, database, "totals")
    foreign["totals"].insert_one({"name": "all"})
    once: list[str] = []
    plain: list[str] = []

    @post_save(account, name="adding", transactional=True)
    async def adding(sender, instance, delivery, **kwargs):
        once.append(delivery.id)
        await add(total, instance)  # joins the transaction automatically
        await either.client[database]["log"].insert_one({"of": delivery.id}, session=delivery.session)

    @post_save(account, name="plain")
    async def plain_one(sender, delivery, **kwargs):
        assert delivery.session is None
        plain.append(delivery.id)

    async with dispatching(either):
        before = state.token
        foreign["accounts"].insert_one({"name": "Ada", "amount": 5})
        await eventually(lambda: len(plain) == 1)
    state.rewind(before)
    async with dispatching(either):
        await eventually(lambda: len(plain) == 2)
    assert plain == once * 2
    assert foreign["totals"].find_one()["amount"] == 5
    assert foreign["log"].count_documents({}) == 1
    (record,) = state.database["deliveries"].find()
    assert (record["_id"]["delivery"], record["_id"]["group"]) == (once[0], database)


async def test_a_renamed_receiver_does_not_repeat_its_effects(account, total, foreign, dispatched, state):
    done: list[str] = []

    async def adding(sender: Any, instance: Any, **kwargs: Any) -> None:
        await add(total, instance)

    post_save(account, name="old", transactional=True)(adding)
    post_save(account, name="watching")(appending_to(done))
    async with dispatching(dispatched):
        before = state.token
        foreign["accounts"].insert_one({"name": "Ada", "amount": 5})
        await eventually(lambda: len(done) == 1)
    account.signals.post_save.disconnect(adding)
    post_save(account, name="new", formerly="old", transactional=True)(adding)
    state.rewind(before)
    async with dispatching(dispatched) as running:
        await eventually(lambda: running.stats.delivered == 2)
    assert foreign["totals"].find_one()["amount"] == 5


def appending_to(calls: list[str]) -> Any:
    async def watching(sender: Any, instance: Any, **kwargs: Any) -> None:
        calls.append(instance.name)

    return watching


async def test_a_failed_attempt_has_no_effect(account, total, foreign, dispatched, state):
    sessions: list[Any] = []

    @post_save(account, name="flaky", transactional=True, retry=Retry(5, base=0.01))
    async def flaky(sender, instance, delivery, **kwargs):
        sessions.append(delivery.session)
        assert delivery.session.client is dispatched.client
        await add(total, instance)
        if delivery.attempt < 3:
            raise ValueError("not yet")

    async with dispatching(dispatched) as running:
        foreign["accounts"].insert_one({"name": "Ada", "amount": 5})
        await eventually(lambda: running.stats.delivered == 1)
    assert len(sessions) == 3
    assert foreign["totals"].find_one()["amount"] == 5


async def test_a_dead_lettered_delivery_has_no_effect(account, total, foreign, dispatched, state):
    @post_save(account, name="broken", transactional=True, retry=2)
    async def broken(sender, instance, **kwargs):
        await add(total, instance)
        raise ValueError("never")

    async with dispatching(dispatched):
        foreign["accounts"].insert_one({"name": "Ada", "amount": 5})
        letter = await state.letter()
    assert letter["attempts"] == 2
    assert "amount" not in foreign["totals"].find_one()
    assert state.database["deliveries"].count_documents({}) == 0


@pytest.mark.parametrize("wrapped", [False, True])
async def test_a_write_conflict_is_no_failed_attempt(account, total, foreign, dispatched, wrapped):
    """The transaction runs again with a new instance, even if another error hides the conflict."""
    runs: list[tuple[int, list[str]]] = []

    @post_save(account, name="adding", transactional=True, retry=1)
    async def adding(sender, instance, delivery, **kwargs):
        runs.append((delivery.attempt, list(instance.tags)))
        instance.tags.append("seen")
        await total.objects.filter(name="other").count()  # starts the snapshot
        if len(runs) == 1:  # another client is faster
            foreign["totals"].update_one({"name": "all"}, {"$inc": {"amount": 1}})
        try:
            await add(total, instance)
        except PyMongoError as error:
            if wrapped:
                raise RuntimeError("the total is busy") from error
            raise

    async with dispatching(dispatched) as running:
        foreign["accounts"].insert_one({"name": "Ada", "amount": 5})
        await eventually(lambda: running.stats.delivered == 1)
    assert runs == [(1, []), (1, [])]
    assert foreign["totals"].find_one()["amount"] == 6
    assert (running.stats.failed, running.stats.retried) == (0, 0)


async def test_a_parked_delivery_that_conflicts_has_not_failed(account, foreign, dispatched, state):
    """The conflicts of the second attempt last longer than an attempt may take."""
    attempts: list[int] = []
    conflicts = Conflicts()

    @post_save(account, name="conflicting", transactional=True, retry=Retry(2, base=0.01, cap=0.01), timeout=0.3)
    async def conflicting(sender, delivery, **kwargs):
        attempts.append(delivery.attempt)
        if delivery.attempt == 1:
            raise ValueError("the first attempt")
        conflicts.meet()

    async with dispatching(dispatched, park_after=0) as running:
        foreign["accounts"].insert_one({"name": "Ada"})
        await eventually(lambda: running.stats.delivered == 1)
    assert (attempts[0], set(attempts[1:]), state.letters, running.stats.failed) == (1, {2}, [], 0)


class Conflicts:
    """Raises conflicts for a second, which is longer than an attempt may take."""

    def __init__(self) -> None:
        self.until = 0.0

    def meet(self) -> None:
        self.until = self.until or monotonic() + 1.0
        if monotonic() < self.until:
            error = OperationFailure("a conflict", 112)
            error._add_error_label("TransientTransactionError")
            raise error


@pytest.mark.parametrize("committed", [False, True])
async def test_the_outcome_of_a_commit_is_found_if_the_error_does_not_show_the_outcome(
    account, total, foreign, dispatched, committed
):
    """The record of the delivery shows whether the server committed."""
    admin = foreign.client.admin
    runs: list[int] = []
    # With an error code the server does not commit. With a write concern error it commits before it answers.
    concern = {"writeConcernError": {"code": 64, "errmsg": "no majority in time"}}
    fault = concern if committed else {"errorCode": 50}

    @post_save(account, name="adding", transactional=True, retry=1)
    async def adding(sender, instance, delivery, **kwargs):
        runs.append(delivery.attempt)
        if len(runs) == 1:
            admin.command("configureFailPoint", "failCommand", mode={"times": 6}, data=COMMIT | fault)
        await add(total, instance)

    try:
        async with dispatching(dispatched) as running:
            foreign["accounts"].insert_one({"name": "Ada", "amount": 5})
            await eventually(lambda: running.stats.delivered + running.stats.failed == 1)
    finally:
        admin.command("configureFailPoint", "failCommand", mode="off")
    assert foreign["totals"].find_one()["amount"] == 5
    assert running.stats.failed == 0
    if committed:
        assert runs == [1]


async def test_a_transaction_ends_at_the_time_limit(account, total, foreign, dispatched, state):
    @post_save(account, name="hanging", transactional=True, retry=1, timeout=0.2)
    async def hanging(sender, instance, **kwargs):
        await add(total, instance)
        await asyncio.Event().wait()

    async with dispatching(dispatched):
        foreign["accounts"].insert_one({"name": "Ada", "amount": 5})
        letter = await state.letter()
        assert "longer than 0.2 s" in letter["error"]["message"]
        # The transaction holds no locks any more.
        foreign["totals"].update_one({"name": "all"}, {"$inc": {"amount": 1}})
    assert foreign["totals"].find_one()["amount"] == 1


async def test_a_transactional_receiver_is_called_for_each_of_two_classes_on_one_collection(
    dispatched, database, foreign, state
):
    """A receiver of an abstract document has one id, and is called for both classes."""

    class Base(mongoz.Document):
        name: str = mongoz.String()

        class Meta:
            abstract = True

        Meta.registry = dispatched  # type: ignore[attr-defined]
        Meta.database = database  # type: ignore[attr-defined]

    class One(Base):
        class Meta:
            collection = "accounts"

    class Two(Base):
        class Meta:
            collection = "accounts"

    calls: list[str] = []

    @post_save(Base, name="both", transactional=True)
    async def both(sender, instance, **kwargs):
        calls.append(sender.__name__)

    async with dispatching(dispatched) as running:
        foreign["accounts"].insert_one({"_id": ObjectId(), "name": "Ada"})
        await eventually(lambda: running.stats.delivered == 2)
    assert sorted(calls) == ["One", "Two"]


async def test_records_are_kept_as_long_as_the_setting_says(account, foreign, dispatched, state):
    @post_save(account, name="adding", transactional=True)
    async def adding(sender, **kwargs):
        pass

    for days, seconds in ((14.0, 1_209_600), (30.0, 2_592_000), (30.0, 2_592_000)):
        async with dispatching(dispatched, delivery_retention=days):
            (index,) = [one for one in state.database["deliveries"].list_indexes() if "expireAfterSeconds" in one]
            assert (dict(index["key"]), index["expireAfterSeconds"]) == ({"at": 1}, seconds)


async def test_no_deliveries_are_recorded_without_transactional_receivers(account, foreign, dispatched, state):
    post_save(account, name="watching")(appending_to([]))
    async with dispatching(dispatched):
        assert "deliveries" not in state.database.list_collection_names()


async def test_an_unwritable_state_is_reported_at_the_start(account, foreign, dispatched):
    @post_save(account, name="adding", transactional=True)
    async def adding(sender, **kwargs):
        pass

    admin = foreign.client.admin
    failing = {"failCommands": ["createIndexes"], "errorCode": 13, "appName": "mongoz-dispatcher"}
    admin.command("configureFailPoint", "failCommand", mode="alwaysOn", data=failing)
    try:
        with pytest.raises(AccessDenied) as caught:
            async with dispatching(dispatched):
                pass
    finally:
        admin.command("configureFailPoint", "failCommand", mode="off")
    assert "state database" in caught.value.remedy


@pytest.mark.slow
async def test_many_concurrent_deliveries_can_write_the_same_few_documents(
    account, foreign, dispatched, database, capsys
):
    """Three hundred deliveries increment twenty documents. Up to a hundred deliveries run at the same time.

    Each delivery needs one attempt.
    """
    totals = make_account(dispatched, database, "totals")
    names = [str(number) for number in range(20)]
    foreign["totals"].insert_many([{"name": name, "amount": 0} for name in names])
    attempts: set[int] = set()

    @post_save(account, name="adding", transactional=True, retry=1)
    async def adding(sender, instance, delivery, **kwargs):
        attempts.add(delivery.attempt)
        total = await totals.objects.get(name=instance.name)
        await total.update(U.inc(amount=1))

    async with dispatching(dispatched, concurrency=100) as running:
        foreign["accounts"].insert_many([{"name": names[n % 20]} for n in range(300)])
        await eventually(lambda: running.stats.delivered + running.stats.failed == 300)
    assert (running.stats.failed, running.stats.retried, attempts) == (0, 0, {1})
    assert [one["amount"] for one in foreign["totals"].find()] == [15] * 20
    (figures,) = running.stats.receivers.values()
    assert figures.conflicts > 0
    captured = capsys.readouterr()
    assert (captured.out + captured.err).count("delivery.conflict") == 1
