"""Options of a URL: wrong options are named, and the application's options do not harm a dispatcher."""

import asyncio
from typing import Any

import pytest

import mongoz
from dispatcher.core.clients import Clients
from dispatcher.core.tasks import end
from dispatcher.exceptions import CannotConnect, ServerError
from dispatcher.operate.check import check
from dispatcher.runtime.service import Service
from mongoz import U
from mongoz.connection.address import first_seed, without_options
from mongoz.core.signals import post_delete, post_save, post_update
from mongoz.exceptions import ImproperlyConfigured
from tests.support import PATIENCE, dispatching, eventually, settings_for

# Options in the URLs of applications. Transactions do not support most of these options.
HARMLESS = (
    "w=0",
    "w=1&journal=false",
    "readConcernLevel=linearizable",
    "readConcernLevel=available",
    "readPreference=secondary",
    "readPreference=nearest&maxStalenessSeconds=120",
    "maxPoolSize=1",
    "timeoutMS=2000",
)


def document_of(registry: mongoz.Registry, database: str) -> Any:
    class User(mongoz.Document):
        name: str = mongoz.String()
        age: int = mongoz.Integer(default=0)

        Meta = type("Meta", (), {"registry": registry, "database": database, "collection": "users"})

    return User


@pytest.mark.parametrize("options", HARMLESS)
async def test_options_of_the_application_do_not_harm_a_dispatcher(mongo, database, foreign, options):
    separator = "&" if "?" in mongo.url else "?"
    registry = mongoz.Registry(f"{mongo.url}{separator}{options}", dispatched=database)
    User = document_of(registry, database)
    told = []

    @post_save(User, name="plain", delivery="dispatcher")
    async def plain(sender, instance, **kwargs):
        told.append(("plain", instance.name))

    @post_save(User, name="transactional", transactional=True)
    async def transactional(sender, instance, delivery, **kwargs):
        await registry.client[database].copies.insert_one({"name": instance.name}, session=delivery.session)
        told.append(("transactional", instance.name))

    foreign.create_collection("copies")
    async with dispatching(registry, partitions=8):
        foreign.users.insert_many([{"name": str(n)} for n in range(8)])
        await eventually(lambda: len(told) >= 16, within=60)
    assert sorted(set(told)) == sorted((kind, str(n)) for kind in ("plain", "transactional") for n in range(8))
    assert foreign.copies.count_documents({}) == 8


@pytest.mark.parametrize("options", ["readConcernLevel=linearizable", "w=0", "readPreference=primaryPreferred"])
async def test_transactions_use_the_nearest_supported_options(mongo, database, foreign, options):
    separator = "&" if "?" in mongo.url else "?"
    async with mongoz.Registry(f"{mongo.url}{separator}{options}", dispatched=database) as registry:
        User = document_of(registry, database)
        told = []
        for signal in (post_update, post_delete):

            @signal(User, name=f"told.{len(told)}.{signal.__name__}")
            async def receive(sender, instance, **kwargs):
                told.append(instance.name)

        foreign.users.insert_many([{"name": "a"}, {"name": "b"}])
        async with registry.transaction():
            user = await User.objects.get(name="a")
            await user.update(U.inc(age=1))
        assert told == ["a"]
        assert foreign.users.find_one({"name": "a"})["age"] == 1
        if options != "w=0":  # otherwise the outcome of the delete is unknown
            await user.delete()
            assert told == ["a", "a"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("replicaset=rs0&maxPoolSize=1&foo=1", "Unknown option 'foo'"),
        ("readPreferenze=secondary", "Unknown option 'readpreferenze'"),
        ("maxPoolSize=x", "The value of maxpoolsize must be an integer"),
        ("readPreference=foo", "foo is not a valid read preference"),
    ],
)
@pytest.mark.parametrize("scheme", ["mongodb", "mongodb+srv"])
def test_a_wrong_option_is_named(scheme, options, says):
    with pytest.raises(ImproperlyConfigured, match=says) as caught:
        mongoz.Registry(f"{scheme}://ada:s3cret@db.example.com/?{options}")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("url", ["mongodb://ada:s3c?ret=1@db/", "mongodb://ada:s3c?ret=1@db/?replicaSet=rs0"])
def test_an_error_does_not_show_the_part_of_a_password_after_a_question_mark(url):
    with pytest.raises(ImproperlyConfigured) as caught:
        first_seed(url)
    assert "ret" not in str(caught.value).replace("Write", "")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("maxStalenessSeconds=10", "Read preference primary cannot be combined with maxStalenessSeconds"),
        ("w=0&journal=true", "Cannot set w to 0 and j to True"),
    ],
)
async def test_contradicting_options_are_named_at_the_start(database, options, says):
    registry = mongoz.Registry(f"mongodb://127.0.0.1:1/?{options}", dispatched=database)
    with pytest.raises(CannotConnect, match=says) as caught:
        Clients(registry, settings_for(registry))
    assert "options" in caught.value.remedy


async def test_the_error_of_a_failed_connection_does_not_name_the_read_preference(database):
    registry = mongoz.Registry("mongodb://127.0.0.1:1/?readPreference=secondary", dispatched=database)

    @post_save(document_of(registry, database), name="told")
    async def told(sender, **kwargs):
        pass

    service = Service(registry, settings_for(registry, connect_timeout=0.2))
    with pytest.raises(CannotConnect, match=r"No MongoDB server answers at 127\.0\.0\.1:1 ") as caught:
        await service.run(asyncio.Event())
    assert "econdary" not in str(caught.value)


def test_an_srv_url_may_have_srv_options():
    url = "mongodb+srv://ada:s3cret@cluster.example.com/shop?srvMaxHosts=2&srvServiceName=db&retryWrites=true"
    assert first_seed(url) == ("cluster.example.com", None)


def test_options_can_be_removed_from_a_url():
    url = "mongodb://ada:p%3Fw@a,b:2/db?replicaSet=rs0&W=0&readPreference=secondary"
    assert without_options(url, {"w", "readpreference"}) == "mongodb://ada:p%3Fw@a,b:2/db?replicaSet=rs0"
    assert without_options("mongodb://a/?w=0", {"w"}) == "mongodb://a/"
    assert without_options("mongodb://a", {"w"}) == "mongodb://a"


async def test_a_small_pool_for_many_receivers_is_named(mongo, database, foreign, capsys):
    registry = mongoz.Registry(f"{mongo.url}&maxPoolSize=1", dispatched=database)

    @post_save(document_of(registry, database), name="told")
    async def told(sender, **kwargs):
        pass

    settings = settings_for(registry)
    found = [finding async for finding in check(registry, settings) if finding.topic == "connections"]
    assert "100 receivers run at the same time, and share maxPoolSize=1" in found[0].text
    async with dispatching(registry):
        pass
    assert "connections.few" in capsys.readouterr().out
    few = [finding async for finding in check(registry, settings_for(registry, concurrency=1))]
    assert not [finding for finding in few if finding.topic == "connections"]


@pytest.mark.parametrize("kind", ["timeseries", "view"])
async def test_a_start_refuses_collections_without_change_events(mongo, database, foreign, kind):
    """The dispatcher would deliver nothing."""
    options = {"timeseries": {"timeField": "at"}} if kind == "timeseries" else {"viewOn": "others", "pipeline": []}
    foreign.create_collection("users", **options)
    registry = mongoz.Registry(mongo.url, dispatched=database)

    @post_save(document_of(registry, database), name="told")
    async def told(sender, **kwargs):
        pass

    with pytest.raises(
        ServerError, match=f"told of User.post_save never runs: {database}.users is a {kind}"
    ) as caught:
        await Service(registry, settings_for(registry)).run(asyncio.Event())
    assert "Meta.collection" in caught.value.remedy
    assert foreign.client[f"{database}_state"].list_collection_names() == []


async def test_a_process_may_hold_more_change_streams_than_a_pool_of_the_driver_has_connections(mongo, database):
    """One member may hold all 256 partitions. Each stream occupies a connection while it waits for changes."""
    separator = "&" if "?" in mongo.url else "?"
    async with (
        mongoz.Registry(f"{mongo.url}{separator}maxPoolSize=3", dispatched=database) as registry,
        Clients(registry, settings_for(registry)).watching_client() as watching,
    ):
        streams = [await watching[database].users.watch(max_await_time_ms=60_000) for _ in range(120)]
        waiting = [asyncio.create_task(stream.try_next()) for stream in streams]
        active = {"$match": {"ns": f"{database}.users", "op": "getmore", "active": True}}

        async def all_wait() -> bool:
            found = await registry.client.admin.aggregate([{"$currentOp": {}}, active, {"$count": "count"}])
            return bool([True async for one in found if one["count"] == len(streams)])

        async with asyncio.timeout(PATIENCE):
            while not await all_wait():
                await asyncio.sleep(0.1)
        await end(waiting)
