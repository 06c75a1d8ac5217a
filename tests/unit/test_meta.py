"""Options of `class Meta`, and their inheritance."""

from typing import Any, ClassVar

import pytest

import mongoz
from mongoz.exceptions import AbstractDocumentError, ImproperlyConfigured

NO_DATABASE = (
    "'database' for the table not found in the Meta class or any of the superclasses. "
    "You must set the database in the Meta."
)


@pytest.fixture
def registry() -> mongoz.Registry:
    return mongoz.Registry("mongodb://nowhere.invalid")


def define(*parents: type, name: str = "Movie", **options: Any) -> Any:
    """A document with one field, and with these options in its Meta. Without options it has no Meta."""
    body: dict[str, Any] = {"__annotations__": {"name": str}, "name": mongoz.String(), "__module__": __name__}
    if options:
        body["Meta"] = type("Meta", (), options)
    return type(mongoz.Document)(name, parents or (mongoz.Document,), body)


def test_options_accept_names_and_objects(registry: mongoz.Registry) -> None:
    database = registry.get_database("shop")
    by_name = define(registry=registry, database="shop")
    by_object = define(registry=registry, database=database, collection=database.get_collection("movies"))
    for Movie in (by_name, by_object):
        assert Movie.meta.registry is registry
        assert isinstance(Movie.meta.database, mongoz.Database)
        assert isinstance(Movie.meta.collection, mongoz.Collection)
        assert Movie.meta.database == database
        assert Movie.meta.collection == Movie.get_collection() == database.get_collection("movies")
        assert Movie.meta is Movie.Meta
        assert Movie.meta.signals is Movie.signals
    assert define(registry=registry, database="shop", collection="films").meta.collection.name == "films"


def test_with_a_registry_there_must_be_a_database(registry: mongoz.Registry) -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        define(registry=registry)
    assert caught.value.args[0] == NO_DATABASE
    assert "Movie" in str(caught.value)
    assert registry.documents == {}
    Base = define(registry=registry, abstract=True)
    with pytest.raises(ImproperlyConfigured):
        define(Base)
    assert define(Base, database="shop").meta.database.name == "shop"


def test_subclasses_inherit_all_options_except_abstract_and_collection(registry: mongoz.Registry) -> None:
    Base = define(registry=registry, database="shop", abstract=True, autogenerate_index=True, name="Base")
    Movie = define(Base)
    assert Movie.meta.registry is registry
    assert Movie.meta.database == Base.meta.database
    assert Movie.meta.abstract is False, "abstract is not inherited"
    assert Movie.meta.autogenerate_index is True
    assert Movie.meta.collection.name == "movies"
    assert define(Movie, name="Film", collection="x").meta.collection.name == "x"
    assert define(Movie, name="Film").meta.collection.name == "films", "each class has its own collection"
    assert define(Base, autogenerate_index=False).meta.autogenerate_index is False
    assert define(name="Loose").meta.autogenerate_index is False


def test_a_class_without_own_fields_has_the_inherited_ones(registry: mongoz.Registry) -> None:
    Base = define(registry=registry, database="shop", abstract=True)

    class Film(Base):
        pass

    assert not Film.meta.abstract
    assert set(Film.meta.fields) == {"id", "name"}


def test_a_class_without_fields_is_abstract(registry: mongoz.Registry) -> None:
    options = {"registry": registry}

    class Base(mongoz.Document):
        Meta = type("Meta", (), options)

    assert Base.meta.abstract
    assert Base.meta.collection is None
    assert registry.documents == {}
    with pytest.raises(AbstractDocumentError, match="Base is abstract"):
        Base.get_collection()


async def test_calls_without_a_registry_are_errors() -> None:
    Movie = define()
    movie = Movie(name="Up")
    assert (Movie.meta.registry, Movie.meta.database, Movie.meta.collection) == (None, None, None)
    for call in (movie.create, movie.save, Movie.objects.count, Movie.create_indexes):
        with pytest.raises(ImproperlyConfigured, match="Movie has no registry"):
            await call()


def test_a_name_stands_for_its_latest_class_and_all_classes_are_listed(registry: mongoz.Registry) -> None:
    first = define(registry=registry, database="shop")
    second = define(registry=registry, database="shop", collection="x")
    define(registry=registry, database="shop", abstract=True)
    assert registry.documents == {"Movie": second}
    assert registry.all_documents == (first, second)
    assert first.signals is not second.signals


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("registry", "mongodb://host", "must be a mongoz.Registry"),
        ("database", 5, "a name or a Database"),
        ("collection", 5, "a name or a Collection"),
        ("colection", "movies", r"no option 'colection'\. Did you mean 'collection'\?"),
        ("watch", "archive.users", "must be a list of namespaces"),
    ],
)
def test_invalid_options_are_refused(option: str, value: Any, says: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=says):
        define(**{option: value})


def test_meta_must_be_a_class() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"Movie\.Meta must be a class with options"):
        type(mongoz.Document)("Movie", (mongoz.Document,), {"__module__": __name__, "Meta": mongoz.String()})


def test_a_database_of_another_registry_is_refused(registry: mongoz.Registry) -> None:
    other = mongoz.Registry("mongodb://other.invalid")
    database = other.get_database("shop")
    with pytest.raises(ImproperlyConfigured, match=r"Meta\.database of Movie is .* of another registry"):
        define(registry=registry, database=database)
    with pytest.raises(ImproperlyConfigured, match=r"Meta\.collection of Movie is .* of another registry"):
        define(registry=registry, database="shop", collection=database.get_collection("x"))
    Movie = define(define(registry=other, database=database, abstract=True), registry=registry)
    assert Movie.meta.database == registry.get_database("shop"), "the child has this database in its own registry"


def test_meta_may_inherit_from_the_parents_meta(registry: mongoz.Registry) -> None:
    Base = define(registry=registry, database="shop", abstract=True, indexes=[mongoz.Index("x")])

    class Movie(Base):
        class Meta(Base.Meta):
            collection: ClassVar[str] = "films"

    assert not Movie.meta.abstract
    assert Movie.meta.registry is registry
    assert [index.name for index in Movie.meta.indexes] == ["x"]
    assert Movie.meta.collection == registry.get_database("shop").get_collection("films")
