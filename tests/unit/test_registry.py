"""Arguments of the registry, without a server. No message shows a password."""

from typing import Any

import pytest
from bson.binary import UuidRepresentation
from bson.codec_options import DatetimeConversion
from pydantic import MongoDsn

import mongoz
from mongoz.connection.drivers import adapter_named
from mongoz.exceptions import ImproperlyConfigured


@pytest.mark.parametrize(
    ("url", "host", "port", "address"),
    [
        ("mongodb://db.example.org", "db.example.org", 27017, "db.example.org:27017"),
        ("mongodb://user:secret@one:1,two:2/shop?replicaSet=rs0", "one", 1, "one:1"),
        ("mongodb://[::1]:5", "::1", 5, "::1:5"),
        ("mongodb://user:p%40ss@host/", "host", 27017, "host:27017"),
        # The test needs no network: .invalid has no records.
        (
            "mongodb+srv://user:secret@cluster.invalid/shop?retryWrites=true",
            "cluster.invalid",
            None,
            "cluster.invalid",
        ),
    ],
)
def test_the_first_seed_is_the_address(url: str, host: str, port: int | None, address: str) -> None:
    registry = mongoz.Registry(url)
    assert (registry.host, registry.port, registry.address, registry.url) == (host, port, address, url)
    assert "secret" not in repr(registry)


@pytest.mark.parametrize(
    "url",
    [
        "", "localhost", "mongodb://", "http://user:secret@host", "user:secret@host", "mongodb://user:secret@",
        "mongodb://user:secret@host:port", "mongodb://user:secret@host:99999", "mongodb://user:secr@et@host",
        "mongodb://user:se/cret@host", "mongodb://user:s?ecret@host", "mongodb://user:secret%zz@host",
        "mongodb://host:port/?tlsCertificateKeyFilePassword=secret", "mongodb://[::1", "mongodb+srv://",
        "mongodb+srv://[::1", "mongodb+srv://user:secret@", "mongodb+srv://user:secret@[::1",
    ],
)  # fmt: skip
def test_an_invalid_url_is_refused_without_showing_credentials(url: str) -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        mongoz.Registry(url)
    assert "MongoDB URL" in str(caught.value)
    for part in ("secret", "secr@et", "user:se", "user:s", "ecret", "cret"):
        # The remedy shows an example of a URL.
        assert part not in str(caught.value).replace("user:password", "")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    "url", [None, 5, b"mongodb://user:secret@host", MongoDsn("mongodb://user:secret@host"), object()]
)
def test_a_value_that_is_neither_url_nor_client_is_refused(url: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="takes a URL") as caught:
        mongoz.Registry(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "group"),
    [(False, None), (True, "default"), ("billing", "billing"), ("a.b-c_1", "a.b-c_1"), ("x" * 63, "x" * 63)],
)
def test_dispatched_names_the_group(value: Any, group: str | None) -> None:
    assert mongoz.Registry("mongodb://host", dispatched=value).dispatched == group


def test_a_registry_is_not_dispatched_by_default() -> None:
    assert mongoz.Registry("mongodb://host").dispatched is None


@pytest.mark.parametrize("value", ["", " ", "a b", "-a", "ä", "x" * 64, "a\n", 1, 0, [], b"billing"])
def test_invalid_values_of_dispatched_are_refused(value: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="dispatched="):
        mongoz.Registry("mongodb://host", dispatched=value)


def test_the_driver_is_chosen_by_name() -> None:
    assert mongoz.Registry("mongodb://host").driver == "pymongo"
    assert mongoz.Registry("mongodb://host", driver="motor", event_loop=None).driver == "motor"
    with pytest.raises(ImproperlyConfigured, match=r"'mongo'.*motor, pymongo"):
        mongoz.Registry("mongodb://host", driver="mongo")


def test_without_a_running_loop_there_is_no_client() -> None:
    registry = mongoz.Registry("mongodb://host")
    collection = registry.get_database("shop").get_collection("users")
    for use in (lambda: registry.client, lambda: collection._collection, lambda: collection.database._db):
        with pytest.raises(ImproperlyConfigured, match="No event loop is running"):
            use()


def test_databases_and_collections_are_got_by_name() -> None:
    registry, other = mongoz.Registry("mongodb://host"), mongoz.Registry("mongodb://host")
    database = registry.get_database("shop")
    assert database == registry.get_database("shop")
    assert database != registry.get_database("other")
    assert database != other.get_database("shop")
    assert database != "shop"
    users = database.get_collection("users")
    assert users == registry.get_database("shop").get_collection("users")
    assert users != database.get_collection("orders")
    assert (users.name, users.namespace, users.database) == ("users", "shop.users", database)
    assert len({database, registry.get_database("shop"), users, database.get_collection("users")}) == 2


def test_point_to_works_before_the_first_use() -> None:
    registry = mongoz.Registry("mongodb://one")
    registry.point_to("mongodb://two:5")
    assert registry.address == "two:5"
    with pytest.raises(ImproperlyConfigured, match="does not parse"):
        registry.point_to("two")
    assert registry.address == "two:5"


@pytest.mark.parametrize("driver", ["pymongo", "motor"])
@pytest.mark.parametrize(
    ("option", "seconds"), [("", 5), ("connectTimeoutMS=7000", 7), ("connecttimeoutms=7000", 7)]
)
async def test_defaults_of_a_process_apply_to_options_missing_in_the_url(driver, option, seconds):
    async with mongoz.Registry(f"mongodb://127.0.0.1:1/?{option}", driver=driver) as registry:
        registry.prefer(connectTimeoutMS=5_000)
        bare = registry.client.delegate if driver == "motor" else registry.client
        assert bare.options.pool_options.connect_timeout == seconds


async def test_point_to_after_the_first_use_is_refused() -> None:
    async with mongoz.Registry("mongodb://127.0.0.1:1") as registry:
        assert registry.client is not None
        with pytest.raises(ImproperlyConfigured, match="connected already"):
            registry.point_to("mongodb://two")


@pytest.mark.parametrize("option", ["retryWrites=false", "retrywrites=false"])
async def test_a_dispatched_registry_needs_retryable_writes(option):
    url = f"mongodb://localhost/?{option}"
    with pytest.raises(ImproperlyConfigured, match="Remove retryWrites=false"):
        mongoz.Registry(url, dispatched=True)
    mongoz.Registry(url)
    mongoz.Registry("mongodb://localhost/?retryWrites=true", dispatched=True)
    for driver in ("pymongo", "motor"):
        with pytest.raises(ImproperlyConfigured, match="Remove retryWrites=false"):
            mongoz.Registry(adapter_named(driver).connect(url), dispatched=True)
        mongoz.Registry(adapter_named(driver).connect("mongodb://localhost"), dispatched=True)
    registry = mongoz.Registry("mongodb://localhost", dispatched=True)
    with pytest.raises(ImproperlyConfigured, match="Remove retryWrites=false"):
        registry.point_to(url)


@pytest.mark.parametrize(
    ("option", "name", "value"),
    [
        ("datetime_conversion=DATETIME_AUTO", "datetime_conversion", DatetimeConversion.DATETIME_AUTO),
        ("datetime_conversion=2", "datetime_conversion", DatetimeConversion(2)),
        ("Datetime_Conversion=DATETIME_CLAMP", "datetime_conversion", DatetimeConversion.DATETIME_CLAMP),
        ("unicode_decode_error_handler=replace", "unicode_decode_error_handler", "replace"),
        ("tz_aware=true", "tz_aware", True),
    ],
)
def test_decoding_options_of_the_url_apply(option, name, value):
    """As in the driver, the options apply to every database of the registry."""
    for scheme in ("mongodb://localhost/?", "mongodb+srv://cluster.invalid/?"):
        registry = mongoz.Registry(f"{scheme}retryWrites=true&{option}")
        assert getattr(registry.codec_options, name) == value
        assert registry.codec_options.uuid_representation == UuidRepresentation.STANDARD


@pytest.mark.parametrize(
    ("option", "known"),
    [
        ("datetime_conversion=datetime_auto", "DATETIME_AUTO"),
        ("datetime_conversion=9", "DATETIME_AUTO"),
        ("unicode_decode_error_handler=question", "replace"),
    ],
)
def test_an_unknown_value_of_a_decoding_option_is_refused(option, known):
    name, _, value = option.partition("=")
    with pytest.raises(
        ImproperlyConfigured, match=f"{name}='{value}' in the MongoDB URL is invalid; valid are .*{known}"
    ):
        mongoz.Registry(f"mongodb://user:secret@localhost/?{option}")
