"""`update_or_create`: one document, changed or new."""

import asyncio
from typing import Any

import pytest
from pydantic import ValidationError

import mongoz
from mongoz import Registry
from mongoz.exceptions import InvalidKeyError, MultipleDocumentsReturned, WriteConflict
from mongoz.persistence import errors
from mongoz.queries import writes


class Address(mongoz.EmbeddedDocument):
    city: str = mongoz.String()
    street: str | None = mongoz.String(null=True)


@pytest.fixture(params=["plain", "dispatched"])
def User(request: pytest.FixtureRequest, registry: Registry, dispatched: Registry, database: str) -> Any:
    here = (registry if request.param == "plain" else dispatched).get_database(database)

    class User(mongoz.Document):
        email: str = mongoz.String(unique=True)
        name: str = mongoz.String(default="", max_length=10, alias="n")
        visits: int = mongoz.Integer(default=0)
        address: Address | None = mongoz.Embed(Address, null=True)

        class Meta:
            registry = here.deployment
            database = here
            autogenerate_index = True

    return User


async def test_a_document_is_created_if_no_document_matches_and_updated_otherwise(User: Any, foreign: Any) -> None:
    made, created = await User.objects.update_or_create({User.name: "Ada"}, email="a")
    assert (created, made.name, made.email) == (True, "Ada", "a")
    foreign.users.update_one({}, {"$set": {"visits": 7}})
    changed, created = await User.query(User.email == "a").update_or_create({"n": "Bea"})
    assert (created, changed.id, changed.name, changed.visits) == (False, made.id, "Bea", 7)
    same, created = await User.objects.filter(email="a").update_or_create()
    assert (created, same) == (False, changed)
    assert foreign.users.count_documents({"n": "Bea", "visits": 7}) == 1


async def test_dotted_defaults_create_and_update_a_part(User: Any, foreign: Any) -> None:
    lookups = {"email": "a", "address.street": "x"}
    for city, expected in (("Bonn", True), ("Lyon", False)):
        user, created = await User.objects.update_or_create({"address.city": city}, **lookups)
        assert (created, user.address) == (expected, Address(city=city, street="x"))
    assert [row["address"] for row in foreign.users.find()] == [{"city": "Lyon", "street": "x"}]


async def test_wrong_values_and_names_write_nothing(User: Any, foreign: Any) -> None:
    await User.create_many([User(email="a"), User(email="b")])
    before = list(foreign.users.find())
    for email in ("a", "new"):
        with pytest.raises(ValidationError):
            await User.objects.update_or_create({"name": "x" * 11}, email=email)
        with pytest.raises(InvalidKeyError, match="Did you mean 'name'"):
            await User.objects.update_or_create({"nam": "x"}, email=email)
        with pytest.raises(InvalidKeyError, match="id"):
            await User.objects.update_or_create({"id": 1}, email=email)
    with pytest.raises(MultipleDocumentsReturned):
        await User.objects.update_or_create({"name": "x"}, visits=0)
    assert list(foreign.users.find()) == before


@pytest.mark.parametrize("method", ["get_or_create", "update_or_create"])
async def test_a_query_with_skip_is_refused_and_an_empty_query_creates(
    User: Any, foreign: Any, method: str
) -> None:
    await User.objects.create(email="a")
    with pytest.raises(InvalidKeyError, match=r"no skip\(\)"):
        await getattr(User.objects.skip(1), method)({"name": "x"}, email="a")
    await getattr(User.objects.none(), method)({"name": "x"}, email="b")
    assert [row["n"] for row in foreign.users.find(sort=[("email", 1)])] == ["", "x"]


async def test_concurrent_calls_leave_one_document_and_each_call_returns_its_own_value(
    User: Any, foreign: Any
) -> None:
    await User.create_indexes()
    done = await asyncio.gather(*(User.objects.update_or_create({"visits": n}, email="a") for n in range(12)))
    assert sum(created for _, created in done) == 1
    assert len({user.id for user, _ in done}) == 1
    assert sorted(user.visits for user, _ in done) == list(range(12))
    assert foreign.users.count_documents({}) == 1


async def change(foreign: Any) -> None:
    foreign.users.update_one({}, {"$set": {"email": "other"}})


async def delete(foreign: Any) -> None:
    foreign.users.delete_one({})


@pytest.mark.parametrize("meanwhile", [change, delete])
async def test_a_document_that_no_longer_matches_is_not_updated(User: Any, foreign: Any, meanwhile: Any) -> None:
    old = await User.objects.create(email="a")
    told: list[str] = []

    @User.signals.pre_update.connect
    async def interfere(sender: Any, instance: Any, **kwargs: Any) -> None:
        await meanwhile(foreign)

    for name in ("post_save", "post_update"):

        async def note(sender: Any, told: list[str] = told, name: str = name, **kwargs: Any) -> None:
            told.append(name)

        getattr(User.signals, name).connect(note, name=name)
    user, created = await User.objects.update_or_create({"visits": 5}, email="a")
    assert (created, user.id == old.id, user.visits) == (True, False, 5)
    assert told == ["post_save"]
    assert foreign.users.count_documents({"_id": old.id, "visits": 5}) == 0


async def test_a_race_that_never_ends_is_given_up(
    User: Any, foreign: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writes, "ATTEMPTS", 3)
    assert errors.ATTEMPTS > 3
    await User.objects.create(email="a")
    names = iter(range(10))

    @User.signals.pre_update.connect
    async def interfere(sender: Any, instance: Any, **kwargs: Any) -> None:
        foreign.users.delete_many({})
        foreign.users.insert_one({"email": "a", "n": str(next(names))})

    with pytest.raises(WriteConflict, match="3 times"):
        await User.objects.update_or_create({"visits": 5}, email="a")
    assert foreign.users.count_documents({"visits": 5}) == 0


async def test_update_or_create_joins_a_transaction(User: Any, foreign: Any) -> None:
    await User.objects.create(email="a")
    await User.create_indexes()

    async def fail() -> None:
        async with User.meta.registry.transaction():
            await User.objects.update_or_create({"visits": 5}, email="a")
            await User.objects.update_or_create({"visits": 5}, email="b")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    assert [(row["email"], row["visits"]) for row in foreign.users.find()] == [("a", 0)]
