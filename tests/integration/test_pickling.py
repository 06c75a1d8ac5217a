"""A pickled instance keeps its snapshot of the database."""

import pickle
from typing import Any

import pytest

import mongoz
from tests.conftest import DRIVER

# At module level, because pickle finds classes by name. The fixture `pets` gives them the database of the test.


class Home(mongoz.EmbeddedDocument):
    city: str = mongoz.String()


class Owner(mongoz.Document):
    name: str = mongoz.String()


class Pet(mongoz.Document):
    name: str = mongoz.String()
    age: int = mongoz.Integer(default=0)
    tags: list[str] = mongoz.Array(str, default=list)
    home: Any = mongoz.Embed(Home, null=True)
    price: Any = mongoz.Decimal(max_digits=5, decimal_places=2, null=True)
    owner: Any = mongoz.ForeignKey(Owner, null=True)


@pytest.fixture
def pets(registry: mongoz.Registry, database: str, foreign: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    for document in (Pet, Owner):
        place = registry.get_database(database)
        monkeypatch.setattr(document.meta, "registry", registry)
        monkeypatch.setattr(document.meta, "database", place)
        monkeypatch.setattr(document.meta, "collection", place.get_collection(f"{document.__name__.lower()}s"))
    return foreign.pets


def again(instance: Any) -> Any:
    return pickle.loads(pickle.dumps(instance))


async def test_a_pickle_keeps_the_loaded_snapshot(pets: Any) -> None:
    await Pet.objects.create(
        name="Rex", tags=["a"], home={"city": "Bonn", "other": 1}, price="1.5", undeclared=[1]
    )
    pet = await Pet.objects.get()
    copied = again(pet)
    assert type(copied) is Pet
    assert copied == pet
    assert copied.price.to_decimal() == pet.price
    pets.update_one({}, {"$set": {"age": 7}})  # a foreign change of another field must survive
    copied.name = "Max"
    copied.home.city = "Ulm"
    await copied.save()
    row = pets.find_one()
    assert (row["name"], row["age"], row["home"]) == ("Max", 7, {"city": "Ulm", "other": 1})


async def test_a_pickled_partial_instance_stays_partial(pets: Any) -> None:
    await Pet.objects.create(name="Rex", age=3)
    for query in (Pet.objects.only("name"), Pet.objects.defer("age", "tags")):
        copied = again(await query.get())
        assert type(copied) is Pet.proxy_document
        with pytest.raises(AttributeError, match="was not loaded"):
            _ = copied.age
        copied.name += "!"
        await copied.save()
    row = pets.find_one()
    assert (row["name"], row["age"]) == ("Rex!!", 3)


async def test_a_pickle_keeps_the_collection_and_attached_instances(
    pets: Any, database: str, foreign: Any
) -> None:
    elsewhere = f"{database}_state"
    owner = await Owner.objects.using(elsewhere).create(name="Ada")
    await Pet.objects.using(elsewhere).create(name="Rex", owner=owner)
    copied = again(await Pet.objects.using(elsewhere).filter(owner__name="Ada").get())
    assert [each.name for each in copied.owners] == ["Ada"]
    copied.name = "Max"
    await copied.save()
    assert foreign.client[elsewhere].pets.find_one()["name"] == "Max"
    assert pets.find_one() is None


async def test_an_instance_from_a_collection_of_another_registry_is_not_pickled(
    pets: Any, mongo: Any, database: str
) -> None:
    async with mongoz.Registry(mongo.url, driver=DRIVER) as other:
        pet = await Pet(name="Rex").create(other.get_database(database).get_collection("dogs"))
        with pytest.raises(pickle.PicklingError, match=rf"'{database}\.dogs' of another registry"):
            pickle.dumps(pet)


def test_a_pickled_unsaved_instance_stays_unsaved() -> None:
    assert again(Pet(name="Rex", id=None)) == Pet(name="Rex")
