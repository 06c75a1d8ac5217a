"""Partial instances of only() and defer(): loaded fields, missing fields, and saves."""

import copy
import datetime
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import ValidationError, computed_field, field_validator, model_validator

import mongoz
from mongoz.core.signals import post_save, pre_save
from mongoz.exceptions import FieldDefinitionError, InvalidKeyError


class City(mongoz.EmbeddedDocument):
    name: str = mongoz.String()


def make(registry: mongoz.Registry, database: str) -> Any:
    class Person(mongoz.Document):
        name: str = mongoz.String(max_length=20)
        age: int = mongoz.Integer(minimum=0)
        tags: list[str] = mongoz.Array(str, default=list)
        city: Any = mongoz.Embed(City, null=True)
        family: str = mongoz.String(null=True, alias="last_name")
        seen: datetime.datetime = mongoz.DateTime(auto_now=True)

        Meta = type("Meta", (), {"registry": registry, "database": database})

        @model_validator(mode="before")
        @classmethod
        def before(cls, values: Any) -> Any:
            assert not isinstance(values, dict) or "age" in values, "a model validator needs all fields"
            return values

        @model_validator(mode="after")
        def after(self) -> Any:
            assert self.age >= 0
            return self

        @field_validator("name")
        @classmethod
        def no_digits(cls, value: str) -> str:
            if any(letter.isdigit() for letter in value):
                raise ValueError("digits in a name")
            return value

        @computed_field
        @property
        def birth(self) -> int:
            return 2000 - self.age

        def model_post_init(self, context: Any) -> None:
            assert self.age >= 0

    return Person


@pytest.fixture
async def Person(mongo: Any, database: str, driver: str) -> AsyncIterator[Any]:
    async with mongoz.Registry(mongo.url, driver=driver) as registry:
        made = make(registry, database)
        for name, age in (("Ada", 1), ("Bob", 2)):
            await made.objects.create(name=name, age=age, tags=["a"], city=City(name="Bonn"), family=name.upper())
        yield made


async def test_a_field_that_is_not_loaded_is_an_attribute_error(Person: Any) -> None:
    for query in (Person.objects.only("name"), Person.query.defer("age", "tags", "city", "last_name", "seen")):
        row = await query.get(name="Ada")
        assert row.name == "Ada"
        assert row.id is not None
        for name in ("age", "tags", "city", "family", "seen"):
            with pytest.raises(AttributeError, match=rf"Person\.{name} was not loaded for Person.*refresh\(\)"):
                getattr(row, name)
            assert not hasattr(row, name)
        assert row.model_dump() == dict(row) == {"id": row.id, "name": "Ada"}
        assert row.model_dump(mode="json") == {"id": str(row.id), "name": "Ada"}
        assert "Ada" in row.model_dump_json()
        assert (str(row), repr(row)) == (f"Person(id={row.id})", f"Person(id={row.id}, name='Ada')")
        with pytest.raises(AttributeError, match="nope"):
            row.nope  # noqa: B018
        with pytest.raises(AttributeError, match="age was not loaded"):
            row.birth  # noqa: B018


async def test_every_terminal_returns_partial_instances(Person: Any) -> None:
    query = Person.objects.only("name").sort("name")
    rows = [
        *await query, *await query.execute(), *[row async for row in query], await query.first(),
        await query.last(), await query.get(name="Bob"), await query.get_or_none(name="Bob"),
        await query.skip(1).last(), await query.get_document_by_id((await query.first()).id),
    ]  # fmt: skip
    assert [row.name for row in rows] == ["Ada", "Bob"] * 4 + ["Bob", "Bob", "Bob", "Ada"]
    for row in rows:
        assert type(row) is Person.proxy_document
        assert isinstance(row, Person)
        assert set(row.__dict__) == {"id", "name"}


async def test_partial_instances_have_a_subclass_that_the_registry_does_not_list(Person: Any) -> None:
    proxy = Person.proxy_document
    assert proxy is Person.proxy_document is proxy.proxy_document
    assert issubclass(proxy, Person)
    assert proxy.meta is Person.meta
    assert proxy.signals is Person.signals
    assert Person.meta.document is Person
    assert Person.meta.registry.documents["Person"] is Person
    assert proxy not in Person.meta.registry.all_documents
    assert proxy.model_fields["name"] is Person.model_fields["name"]

    class Child(Person):
        more: str = mongoz.String(default="")

    assert Child.proxy_document is not proxy
    assert "more" in Child.proxy_document.model_fields


async def test_the_server_sends_only_the_selected_fields(Person: Any, foreign: Any) -> None:
    foreign.persons.insert_one({"name": "Mal", "age": "no number"})
    assert [row.name for row in await Person.objects.only("name").sort("name")] == ["Ada", "Bob", "Mal"]
    assert len(await Person.objects.defer("age")) == 3
    with pytest.raises(ValidationError, match="age"):
        await Person.objects.only("age")


async def test_a_selected_but_missing_field_has_its_default(Person: Any, foreign: Any) -> None:
    foreign.persons.insert_one({"name": "Mal", "age": 3})
    row = await Person.objects.only("name", "tags", "family").get(name="Mal")
    assert (row.tags, row.family) == ([], None)
    await row.save()
    stored = foreign.persons.find_one({"name": "Mal"})
    assert set(stored) == {"_id", "name", "age", "seen"}, "defaults are not written, unless they are assigned"
    row.tags.append("new")
    row.family = None
    await row.save()
    stored = foreign.persons.find_one({"name": "Mal"})
    assert (stored["tags"], stored["last_name"], stored["age"]) == (["new"], None, 3)
    foreign.persons.insert_one({"name": "Nil"})
    with pytest.raises(ValidationError, match=r"Person loaded from .*persons with _id ObjectId.*\n") as caught:
        await Person.objects.only("age").get(name="Nil")
    assert caught.value.errors()[0]["loc"] == ("age",)
    assert caught.value.errors()[0]["type"] == "missing"


async def test_assigned_values_are_validated(Person: Any) -> None:
    row = await Person.objects.only("name").get(name="Ada")
    for name, value in (("age", -1), ("age", "x"), ("name", "Ada 2"), ("name", "x" * 21), ("tags", [1])):
        with pytest.raises(ValidationError):
            setattr(row, name, value)
    row.age = "7"
    assert row.age == 7
    assert row.model_dump() == {"id": row.id, "name": "Ada", "age": 7}
    row.city = {"name": "Rome"}
    assert row.city.name == "Rome"


async def test_save_writes_the_assigned_fields(Person: Any, foreign: Any) -> None:
    row = await Person.objects.only("name", "tags").get(name="Ada")
    foreign.persons.update_one({"name": "Ada"}, {"$set": {"name": "Eve", "last_name": "E"}})
    row.age = 70
    row.tags.append("b")
    await row.save()
    stored = foreign.persons.find_one({"_id": row.id})
    assert (stored["name"], stored["age"], stored["last_name"]) == ("Eve", 70, "E")
    assert stored["tags"] == ["a", "b"]
    assert stored["city"] == {"name": "Bonn"}
    await row.save()
    assert foreign.persons.find_one({"_id": row.id})["age"] == 70


async def test_partial_instances_can_be_updated_and_deleted(Person: Any, foreign: Any) -> None:
    row = await Person.objects.defer("tags", "seen").get(name="Ada")
    await row.update(age=5, family="A")
    assert (row.age, row.family) == (5, "A")
    stored = foreign.persons.find_one({"_id": row.id})
    assert (stored["age"], stored["last_name"], stored["tags"], stored["name"]) == (5, "A", ["a"], "Ada")
    other = await Person.objects.only("name").get(name="Bob")
    await other.update(age=9)
    assert foreign.persons.find_one({"_id": other.id})["age"] == 9
    assert await other.delete() == 1
    assert await Person.objects.count() == 1


async def test_refresh_loads_the_missing_fields(Person: Any) -> None:
    row = await Person.objects.only("name").get(name="Ada")
    await row.refresh()
    assert (row.age, row.tags, row.city.name) == (1, ["a"], "Bonn")
    assert row == await Person.objects.get(name="Ada")
    row.age = 3
    await row.save()
    assert (await Person.objects.get(name="Ada")).age == 3


async def test_a_partial_instance_can_not_become_a_new_document(Person: Any) -> None:
    row = await Person.objects.only("name", "age").get(name="Ada")
    row.id = None
    with pytest.raises(AttributeError, match="was not loaded"):
        await row.save()
    with pytest.raises(AttributeError, match="was not loaded"):
        await row.create()
    assert await Person.objects.count() == 2


async def test_partial_instances_send_the_signals_of_their_document(Person: Any) -> None:
    seen: list[Any] = []

    @pre_save(Person)
    async def before(sender: Any, **kwargs: Any) -> None:
        seen.append((sender, kwargs["instance"].name))

    @post_save(Person)
    async def after(sender: Any, **kwargs: Any) -> None:
        seen.append((sender, kwargs["previous"].name))

    row = await Person.objects.only("name").get(name="Ada")
    row.name = "Eve"
    await row.save()
    assert seen == [(Person, "Eve"), (Person, "Ada")]


async def test_a_copy_of_a_partial_instance_is_partial_and_equal(Person: Any) -> None:
    query = Person.objects.only("name", "tags")
    row, again = await query.get(name="Ada"), await query.get(name="Ada")
    assert row == again
    for copied in (copy.copy(row), copy.deepcopy(row), row.model_copy(deep=True)):
        assert copied == row
        assert not hasattr(copied, "age")
    copied = copy.deepcopy(row)
    copied.tags.append("x")
    assert copied != row


async def test_only_and_defer_exclude_each_other(Person: Any) -> None:
    for query in (Person.objects.only("name"), Person.query.only(Person.name, "age")):
        with pytest.raises(FieldDefinitionError, match="exclude each other"):
            query.defer("age")
    with pytest.raises(FieldDefinitionError, match="exclude each other"):
        Person.objects.defer("age").only("name")
    for build in (Person.objects.only, Person.objects.defer):
        with pytest.raises(InvalidKeyError, match="'name'"):
            build("nmae")
    with pytest.raises(InvalidKeyError, match="whole fields"):
        Person.objects.defer("city.name")


async def test_only_and_defer_accept_names_aliases_pk_and_field_expressions(Person: Any) -> None:
    assert set((await Person.objects.only("last_name", Person.age).first()).__dict__) == {"id", "family", "age"}
    assert set((await Person.objects.only("pk").first()).__dict__) == {"id"}
    deferred = await Person.objects.defer("id", "name").defer("tags", Person.family).first()
    assert set(deferred.__dict__) == {"id", "age", "city", "seen"}
    assert set((await Person.objects.only("name").only("age").first()).__dict__) == {"id", "age"}


async def test_defer_loads_undeclared_keys_and_only_does_not(Person: Any, foreign: Any) -> None:
    foreign.persons.insert_one({"name": "Mal", "age": 3, "nickname": "M"})
    assert (await Person.objects.defer("tags").get(name="Mal")).nickname == "M"
    row = await Person.objects.only("name").get(name="Mal")
    assert not hasattr(row, "nickname")
    row.name = "Mel"
    await row.save()
    assert foreign.persons.find_one({"name": "Mel"})["nickname"] == "M"


async def test_an_instance_with_only_an_id_says_that_other_fields_were_not_loaded(Person: Any) -> None:
    from mongoz.persistence.rows.hydration import make_bare_instance

    with pytest.raises(AttributeError, match=r"Person.age was not loaded"):
        make_bare_instance(Person, mongoz.ObjectId()).age  # noqa: B018
