"""Declarations of indexes, and the indexes of a document."""

from typing import Any

import pymongo
import pytest
from pymongo.collation import Collation

import mongoz
from mongoz import Index, IndexType, Order
from mongoz.exceptions import ImproperlyConfigured


def names(document: Any) -> list[str]:
    return [index.name for index in document.meta.indexes]


def test_an_index_of_one_key_has_the_name_of_the_key_and_default_options() -> None:
    index = Index("name")
    assert (index.key, index.keys, index.name) == ("name", [("name", pymongo.ASCENDING)], "name")
    assert (index.unique, index.sparse, index.background) == (False, False, False)
    assert dict(index.document) == {"name": "name", "key": {"name": 1}}
    assert isinstance(index, pymongo.IndexModel)


def test_an_index_may_have_several_keys_and_all_kinds_of_keys() -> None:
    index = Index(keys=[("year", Order.DESCENDING), ("genre", Order.ASCENDING)])
    assert index.name == "year_genre"
    assert list(index.document["key"].items()) == [("year", -1), ("genre", 1)]
    kinds = {"GEO2D": "2d", "GEOSPHERE": "2dsphere", "HASHED": "hashed", "TEXT": "text"}
    for kind, stored in kinds.items():
        assert getattr(IndexType, kind) == stored
        assert Index(keys=[("a.b", getattr(IndexType, kind))]).document["key"] == {"a.b": stored}
    assert Index(keys=("a", ["b", -1])).keys == [("a", 1), ("b", -1)]


def test_options_of_an_index_are_passed_to_the_driver() -> None:
    index = Index(
        "name",
        name="by_name",
        unique=True,
        sparse=True,
        background=True,
        expireAfterSeconds=5,
        collation=Collation("de"),
    )
    assert (index.name, index.unique, index.sparse, index.background) == ("by_name", True, True, True)
    document = dict(index.document)
    assert document.pop("collation")["locale"] == "de"
    assert document == {
        "name": "by_name",
        "key": {"name": 1},
        "unique": True,
        "sparse": True,
        "background": True,
        "expireAfterSeconds": 5,
    }


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "either one key"),
        ({"key": "a", "keys": [("b", 1)]}, "either one key"),
        ({"keys": []}, "keys are a list"),
        ({"key": ""}, "a key is the name"),
        ({"key": ["a"]}, "a key is the name"),
        ({"keys": "abc"}, "keys are a list"),
        ({"keys": [("a",)]}, "keys are a list"),
        ({"keys": [(1, 1)]}, "keys are a list"),
        ({"keys": [("a", None)]}, "keys are a list"),
    ],
)
def test_a_malformed_key_is_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(mongoz.IndexError, match=says):
        Index(**arguments)


def test_indexes_are_compared_by_value() -> None:
    assert Index("a") == Index(keys=[("a", 1)])
    assert len({Index("a"), Index("a"), Index("b")}) == 2
    assert Index("a") != Index("a", unique=True)
    assert Index("a") != "a"
    assert Index(keys=["a", "b"], name="x") != Index(keys=["b", "a"], name="x"), "the order of keys matters"


def field(**marks: Any) -> Any:
    return mongoz.String(default="", **marks)


def test_the_indexes_of_fields_come_before_those_of_meta() -> None:
    given = [Index("year"), Index(keys=[("year", Order.DESCENDING), ("name", Order.ASCENDING)])]

    class Movie(mongoz.Document):
        name: str = field(index=True)
        email: str = field(unique=True, sparse=True)
        year: int = mongoz.Integer()

        class Meta:
            indexes = given

    assert names(Movie) == ["name", "email", "year", "year_name"]
    assert [index.unique for index in Movie.meta.indexes] == [False, True, False, False]
    assert [index.sparse for index in Movie.meta.indexes] == [False, True, False, False]
    assert Movie.meta.indexes is not given
    Movie.meta.indexes.append(Index("more"))
    assert [index.name for index in given] == ["year", "year_name"], "the given list is unchanged"
    assert names(Movie)[-1] == "more"


def test_indexes_may_be_a_tuple_and_are_inherited() -> None:
    class Base(mongoz.Document):
        name: str = field(index=True)

        class Meta:
            abstract = True
            indexes = (Index("a"), Index("b"))

    class Middle(Base):
        class Meta:
            abstract = True
            indexes = (Index("c"),)

    class Leaf(Middle):
        other: str = field(index=True)

        class Meta:
            indexes = (Index("d"),)

    assert names(Base) == ["name", "a", "b"]
    assert names(Middle) == ["name", "c", "a", "b"]
    assert names(Leaf) == ["name", "other", "d", "c", "a", "b"]
    Base.meta.indexes.clear()
    assert names(Middle) == ["name", "c", "a", "b"], "a class keeps the indexes of its definition"


def test_an_index_inherited_twice_is_one_index() -> None:
    class Base(mongoz.Document):
        name: str = mongoz.String()

        class Meta:
            abstract = True
            indexes = (
                Index("name"),
                Index("x"),
            )

    class One(Base):
        class Meta:
            abstract = True

    class Two(Base):
        class Meta:
            abstract = True
            indexes = (Index("x"),)

    class Both(One, Two):
        class Meta(Base.Meta):
            indexes = (
                *Base.meta.indexes,
                Index("y"),
            )

    assert names(Two) == ["x", "name"]
    assert names(Both) == ["name", "x", "y"]


def test_two_indexes_of_the_same_name_are_an_error() -> None:
    base: Any = None

    def define(*indexes: Index, **fields: Any) -> None:
        options = {"indexes": list(indexes), "abstract": True}
        body = {"Meta": type("Meta", (), options), "__annotations__": dict.fromkeys(fields, str), **fields}
        type(mongoz.Document)("Movie", (base or mongoz.Document,), {"__module__": __name__, **body})

    define(Index("a"), Index("b"))
    for indexes, fields in [
        ((Index("a"), Index("a")), {}),
        ((Index("a"), Index("b", name="a")), {}),
        ((Index("name"),), {"name": field(index=True)}),
        ((Index("x", name="name"),), {"name": field(unique=True)}),
    ]:
        with pytest.raises(mongoz.IndexError, match="Movie has two indexes named") as caught:
            define(*indexes, **fields)
        assert isinstance(caught.value, mongoz.MongozException)
        assert not isinstance(caught.value, LookupError), "it is not the built-in IndexError"

    class Base(mongoz.Document):
        name: str = mongoz.String()

        class Meta:
            abstract = True
            indexes = (Index("name"),)

    base = Base
    define(Index("name"))
    with pytest.raises(mongoz.IndexError, match="two indexes named 'name'"):
        define(Index("name", unique=True))


@pytest.mark.parametrize("value", ["name", {"name": 1}, {Index("name")}, Index("name"), None, 5])
def test_indexes_that_are_not_a_list_are_refused(value: Any) -> None:
    options = {"indexes": value}
    with pytest.raises(ImproperlyConfigured, match=r"Meta\.indexes of Movie must be a list or a tuple"):

        class Movie(mongoz.Document):
            name: str = mongoz.String()
            Meta = type("Meta", (), options)


@pytest.mark.parametrize("value", ["name", ("name", 1), pymongo.IndexModel("name"), None])
def test_items_that_are_not_an_index_are_refused(value: Any) -> None:
    options = {"indexes": [Index("ok"), value]}
    with pytest.raises(ValueError, match=r"Meta\.indexes of Movie must contain mongoz\.Index only"):

        class Movie(mongoz.Document):
            name: str = mongoz.String()
            Meta = type("Meta", (), options)


def test_the_driver_gets_the_stored_names_of_fields() -> None:
    class Address(mongoz.EmbeddedDocument):
        city: str = mongoz.String(alias="c")

    class Person(mongoz.Document):
        name: str = mongoz.String(alias="n")
        address: Address = mongoz.Embed(Address)

    index = Index(
        keys=["name", "address.city", "id", "unknown", "address.unknown", "$**"], unique=True, hidden=True
    )
    compiled = index.for_document(Person).document
    assert list(compiled["key"]) == ["n", "address.c", "_id", "unknown", "address.unknown", "$**"]
    assert (compiled["unique"], compiled["hidden"]) == (True, True)
    assert compiled["name"] == "name_address.city_id_unknown_address.unknown_$**"
    assert next(iter(index.document["key"])) == "name", "the declaration is unchanged"


def test_an_index_of_the_id_is_left_out() -> None:
    class Movie(mongoz.Document):
        id: Any = field(unique=True)
        name: str = mongoz.String()

    assert Movie.meta.indexes == []


def test_only_indexes_of_fields_can_be_switched_off() -> None:
    class Movie(mongoz.Document):
        name: str = field(index=True)
        email: str = field(unique=True)
        year: int = mongoz.Integer()

        class Meta:
            indexes = (Index("year"),)

    assert [index.name for index in Movie.meta.wanted_indexes()] == ["name", "email", "year"]
    Movie.meta.fields["name"].index = False
    assert [index.name for index in Movie.meta.wanted_indexes()] == ["email", "year"]
    Movie.meta.fields["email"].index = False
    assert [index.name for index in Movie.meta.wanted_indexes()] == ["year"]
    assert names(Movie) == ["name", "email", "year"]


def test_an_index_is_switched_off_for_one_class_only() -> None:
    class Base(mongoz.Document):
        name: str = field(index=True)

    class Child(Base):
        pass

    Child.meta.fields["name"].index = False
    assert [index.name for index in Base.meta.wanted_indexes()] == ["name"]
    assert Child.meta.wanted_indexes() == []


class Reply(mongoz.EmbeddedDocument):
    text: str = mongoz.String(index=True, alias="t")
    replies: list["Reply"] = mongoz.Array(Any, default=list)
    nested: "Reply | None" = None


class Address(mongoz.EmbeddedDocument):
    city: str = mongoz.String(index=True)
    code: str | None = mongoz.String(null=True, unique=True, sparse=True, alias="c")
    street: str = mongoz.String()


class Person(mongoz.EmbeddedDocument):
    id: int = mongoz.Integer(index=True)
    home: Address = mongoz.Embed(Address)


def test_fields_of_embedded_documents_have_indexes_wherever_they_are_embedded() -> None:
    class Order(mongoz.Document):
        buyer: Person | None = mongoz.Embed(Person, null=True, alias="b")
        stops: list[Address] = mongoz.Array(Address, index=True)
        reply: Reply | None = None
        name: str = field(unique=True)

        class Meta:
            indexes = (Index("stops.street"),)

    assert names(Order) == [
        *("buyer.id", "buyer.home.city", "buyer.home.code", "stops", "stops.city", "stops.code"),
        *("reply.text", "name", "stops.street"),
    ]
    found = {index.name: index for index in Order.meta.indexes}
    assert (found["stops.code"].unique, found["stops.code"].sparse, found["stops.city"].unique) == (
        True,
        True,
        False,
    )
    keys = {name: list(index.for_document(Order).document["key"]) for name, index in found.items()}
    assert (keys["buyer.home.code"], keys["reply.text"]) == (["b.home.c"], ["reply.t"])


def test_the_index_of_an_embedded_field_is_declared_once_and_can_be_switched_off() -> None:
    class Part(mongoz.EmbeddedDocument):
        n: int = mongoz.Integer(index=True)

    with pytest.raises(mongoz.IndexError, match=r"two indexes named 'part\.n'"):

        class Twice(mongoz.Document):
            part: Part = mongoz.Embed(Part)

            class Meta:
                indexes = (Index("part.n"),)

    class Base(mongoz.Document):
        part: Part = mongoz.Embed(Part)

        class Meta:
            abstract = True

    class Thing(Base):
        more: Part = mongoz.Embed(Part)

    assert names(Thing) == ["part.n", "more.n"]
    Part.model_fields["n"].index = False
    assert Thing.meta.wanted_indexes() == []
    assert names(Thing) == ["part.n", "more.n"]
