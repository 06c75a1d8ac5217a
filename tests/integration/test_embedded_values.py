"""Embedded documents as values of conditions."""

from typing import Any

import pytest

import mongoz
from mongoz import Q, Registry


class City(mongoz.EmbeddedDocument):
    name: str = mongoz.String()
    code: str | None = mongoz.String(null=True, alias="c")


class Address(mongoz.EmbeddedDocument):
    street: str = mongoz.String()
    city: City = mongoz.Embed(City)
    floors: list[City] = mongoz.Array(City, default=list)


@pytest.fixture
async def User(registry: Registry, database: str) -> Any:
    class User(mongoz.Document):
        address: Address | None = mongoz.Embed(Address, null=True)
        homes: list[Address] = mongoz.Array(Address, default=list)
        data: Any = mongoz.Object(null=True)

        Meta = type("Meta", (), {"registry": registry, "database": database})

    address = Address(street="a", city=City(name="Bonn", code="BN"), floors=[City(name="x")], more=1)
    await User.objects.create(address=address, homes=[address], data={"a": 1, "b": 2})
    return User


GIVEN = {
    "more": 1,
    "floors": [{"code": None, "name": "x"}],
    "city": {"code": "BN", "name": "Bonn"},
    "street": "a",
}
STORED = {"floors": [{"c": None, "name": "x"}], "street": "a", "more": 1, "city": {"c": "BN", "name": "Bonn"}}


@pytest.mark.parametrize("given", [GIVEN, STORED])
async def test_the_order_of_the_keys_of_a_dict_does_not_matter(User: Any, given: dict[str, Any]) -> None:
    for query in (
        User.objects.filter(address=given),
        User.objects.filter(address__in=[given]),
        User.objects.filter(homes=[given]),
        User.objects.filter(homes__contains=given),
        User.query(User.address == given),
        User.query(Q.eq("address", given)),
        User.query({"address": given}),
        User.query({"homes": {"$elemMatch": {"$eq": given}}}),
        User.objects.filter(**{"address.city": given["city"]}),
    ):
        assert await query.count() == 1
    for query in (User.objects.exclude(address=given), User.objects.filter(address__not=given)):
        assert await query.count() == 0
    assert (await User.objects.get_or_create(address=given)).homes
    assert await User.objects.count() == 1


async def test_a_dict_matches_only_a_whole_equal_value(User: Any) -> None:
    for given in (
        {"street": "a"},
        {},
        {"$gt": ""},
        {"$ne": None},
        {**GIVEN, "other": 1},
        {**GIVEN, "street": "b"},
    ):
        assert await User.objects.filter(address=given).count() == 0
    # A field of type `dict` has no model that sorts the keys, and MongoDB compares the order of the keys, too.
    assert await User.objects.filter(data={"a": 1, "b": 2}).count() == 1
    assert await User.objects.filter(data={"b": 2, "a": 1}).count() == 0
