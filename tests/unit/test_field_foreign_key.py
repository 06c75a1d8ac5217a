"""References: accepted values, and when a path is resolved."""

import sys
import types
from typing import Any

import bson
import pytest
from pydantic import ValidationError

import mongoz
from mongoz.exceptions import FieldDefinitionError
from mongoz.fields import Array, Embed, ForeignKey, ForeignKeyField, String


class Producer(mongoz.Document):
    name: str = String()


class BigProducer(Producer):
    pass


class Studio(mongoz.Document):
    name: str = String()


class Credit(mongoz.EmbeddedDocument):
    by: mongoz.ObjectId = ForeignKey(Producer)


class Base(mongoz.Document):
    producer: mongoz.ObjectId = ForeignKey(Producer)
    studio: mongoz.ObjectId = ForeignKey(f"{__name__}.Studio", null=True, index=True)
    near: mongoz.ObjectId = ForeignKey("Later", null=True)
    credits: list[Credit] = Array(Credit, default=list)

    class Meta:
        abstract = True


class Movie(Base):
    title: str = String(null=True)


class Later(mongoz.Document):
    credit: Credit = Embed(Credit, null=True)


ID = bson.ObjectId(b"i" * 12)


def test_a_reference_accepts_ids_and_instances() -> None:
    producer = Producer(id=ID, name="Ada")
    movie = Movie(producer=producer, studio=ID, credits=[{"by": BigProducer(id=ID, name="B")}])
    assert movie.producer is ID
    assert movie.credits[0].by is ID
    other = mongoz.ObjectId()
    movie.producer = other
    assert movie.producer is other
    movie.producer = producer  # type: ignore[assignment]
    assert movie.producer is ID
    movie.studio = Studio(id=other, name="S")
    assert movie.studio is other
    movie.studio = None
    movie.near = Later(id=ID)
    assert movie.near is ID
    assert movie.model_dump(mode="json")["producer"] == str(ID)


@pytest.mark.parametrize("value", ["x" * 24, None, 5, {"id": ID}, Credit(by=ID), b"i" * 12])
def test_a_reference_refuses_other_values(value: Any) -> None:
    movie = Movie(producer=ID)
    for attempt in (lambda: Movie(producer=value), lambda: setattr(movie, "producer", value)):
        with pytest.raises(ValidationError) as caught:
            attempt()
        assert caught.value.errors()[0]["loc"] == ("producer",)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("producer", Producer(name="new"), "This Producer has no id yet: save it first"),
        ("producer", Studio(id=ID, name="S"), "Input should be a Producer or its ObjectId, not a Studio"),
        ("studio", Producer(id=ID, name="P"), r"Input should be a .*\.Studio or its ObjectId, not a Producer"),
    ],
)
def test_an_instance_without_an_id_or_of_another_class_is_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Movie(**{"producer": ID, field: value})


@pytest.mark.parametrize("document", [Base, Movie])
def test_the_field_has_its_target(document: Any) -> None:
    found = document.model_fields
    assert all(isinstance(found[name], ForeignKeyField) for name in ("producer", "studio", "near"))
    assert found["producer"].refer_to is Producer
    assert found["studio"].refer_to == f"{__name__}.Studio"
    assert [found[name].to for name in ("producer", "studio", "near")] == [Producer, Studio, Later]
    assert found["studio"].to is found["studio"].to
    assert [found["studio"].null, found["studio"].index, found["producer"].null] == [True, True, False]
    assert found["studio"].document is document
    assert Credit.model_fields["by"].to is Producer


def test_a_path_is_imported_on_first_use_and_once() -> None:
    class Doc(mongoz.Document):
        ref: mongoz.ObjectId = ForeignKey("tests_of_a_late_module.models.Thing")

    assert Doc(ref=ID).ref is ID, "validation does not need the target"
    field = Doc.model_fields["ref"]
    with pytest.raises(FieldDefinitionError, match=r"Doc\.ref refers to 'tests_of_a_late_module.models.Thing'"):
        _ = field.to
    package, module = types.ModuleType("tests_of_a_late_module"), types.ModuleType("tests_of_a_late_module.models")
    module.Thing = Producer  # type: ignore[attr-defined]
    package.__path__ = []
    package.models = module  # type: ignore[attr-defined]
    sys.modules |= {package.__name__: package, module.__name__: module}
    try:
        assert field.to is Producer
    finally:
        del sys.modules[package.__name__], sys.modules[module.__name__]
    assert field.to is Producer, "the target is cached"


@pytest.mark.parametrize("path", ["Nobody", "os.path.join", f"{__name__}.Credit", f"{__name__}.Nobody"])
def test_a_target_that_is_no_document_is_named(path: str) -> None:
    class Doc(mongoz.Document):
        ref: mongoz.ObjectId = ForeignKey(path)

    with pytest.raises(
        FieldDefinitionError, match=rf"Doc\.ref refers to '{path}', which can't be found: .*name of a"
    ):
        _ = Doc.model_fields["ref"].to


def test_a_bare_name_means_a_document_of_the_same_registry() -> None:
    made = mongoz.Registry("mongodb://localhost")

    class Doc(mongoz.Document):
        ref: mongoz.ObjectId = ForeignKey("Thing")

        class Meta:
            registry = made
            database = "shop"

    class Thing(mongoz.Document):
        name: str = String()

        class Meta:
            registry = made
            database = "shop"

    assert Doc.model_fields["ref"].to is Thing
    assert Doc(ref=Thing(id=ID, name="t")).ref is ID
