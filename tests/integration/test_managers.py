"""Managers of applications: their base query, their attachment, and inheritance."""

from typing import Any, ClassVar

import pytest

import mongoz
from mongoz.core.db.documents.managers import QuerySetManager
from mongoz.core.db.querysets.base import Manager, QuerySet
from mongoz.exceptions import AbstractDocumentError, ImproperlyConfigured


class Active(QuerySetManager):
    def get_queryset(self) -> Any:
        return super().get_queryset().filter(active=True)


class Adults(Manager):
    def get_queryset(self) -> Any:
        return super().get_queryset().filter(age__gte=18)

    def named(self, name: str) -> Any:
        """A custom method that refined queries keep."""
        return self.filter(name=name)


class Older(Manager):
    """A manager with a constructor and a state of its own."""

    def __init__(self, age: int) -> None:
        self.age = age

    def get_queryset(self) -> Any:
        return super().get_queryset().filter(age__gt=self.age)


def make(registry: mongoz.Registry, database: str) -> Any:
    options = {"registry": registry, "database": database}

    class Base(mongoz.Document):
        name: str = mongoz.String()
        age: int = mongoz.Integer(default=0)
        active: bool = mongoz.Boolean(default=True)

        actives: ClassVar[QuerySetManager] = Active()
        inactives: ClassVar[Any] = QuerySetManager()
        adults: ClassVar[Manager] = Adults()

        Meta = type("Meta", (), {**options, "abstract": True})

    class User(Base):
        extra: str = mongoz.String(default="")

        older = Older(30)

    return User


@pytest.fixture
async def User(registry: mongoz.Registry, database: str) -> Any:
    made = make(registry, database)
    for name, age, active in (("Ada", 20, True), ("Bob", 40, False), ("Cyd", 10, True)):
        await made.objects.create(name=name, age=age, active=active)
    return made


async def names(query: Any) -> str:
    return "".join(sorted(found.name[0] for found in await query))


async def test_each_manager_starts_with_its_base_query(User: Any) -> None:
    assert await names(User.objects) == "ABC"
    assert await names(User.actives) == "AC"
    assert await names(User.actives.all()) == "AC"
    assert await names(User.inactives) == "ABC", "a manager without a base query finds all documents"
    assert await names(User.adults) == "AB"
    assert await names(User.older) == "B"
    assert await names(User.actives.filter(age__gt=15)) == "A"
    assert await names(User.adults.filter(active=False).sort("name").limit(1)) == "B"
    assert await names(User.actives(User.age > 15)) == "A"
    assert await names(User.actives.get_queryset()) == "AC"


async def test_all_methods_that_run_a_query_use_the_base_query(User: Any) -> None:
    assert await User.actives.count() == 2
    assert await User.older.count() == 1
    assert [found.name async for found in User.actives.sort("name")] == ["Ada", "Cyd"]
    assert not await User.actives.exists(name="Bob")
    assert await User.actives.get_or_none(name="Bob") is None
    assert (await User.adults.named("Bob").get()).age == 40
    assert (await User.adults.filter(age__lt=30).named("Ada").get()).age == 20
    assert await User.actives.sort("name").values_list("name", flat=True) == ["Ada", "Cyd"]
    assert (await User.actives.create(name="Dan", age=1)).id
    assert await User.actives.count() == 3
    assert await User.actives.delete() == 3
    assert await names(User.objects) == "B"


def test_managers_and_their_queries_keep_their_class(registry: mongoz.Registry) -> None:
    User = make(registry, "never_connected")
    assert isinstance(User.objects, Manager)
    assert isinstance(User.adults, Adults)
    assert isinstance(User.adults.filter(name="x").limit(1), Adults)
    assert isinstance(User.actives, Active)
    assert not isinstance(User.actives, Manager)
    assert isinstance(User.query, QuerySet)
    assert mongoz.QuerySetManager is QuerySetManager
    assert set(User.model_fields) == {"id", "name", "age", "active", "extra"}
    assert set(User(name="x").model_dump()) == set(User.model_fields)


async def test_managers_work_on_instances(User: Any) -> None:
    bob = await User.objects.get(name="Bob")
    assert await names(bob.actives) == "AC"
    assert await names(bob.older) == "B"
    partial = await User.objects.only("name").get(name="Bob")
    assert await names(partial.adults) == "AB"
    assert [type(found) for found in await partial.objects.limit(1)] == [User]


async def test_a_subclass_has_the_managers_on_its_own_collection(User: Any) -> None:
    class Admin(User):
        rights: str = mongoz.String(default="all")

    await Admin.objects.create(name="Zoe", age=50)
    assert await names(Admin.adults) == "Z"
    assert [type(found) for found in await Admin.older] == [Admin]
    assert await names(User.older) == "B"


@pytest.mark.parametrize("manager", [Active(), Adults()], ids=["QuerySetManager", "Manager"])
@pytest.mark.parametrize("annotation", [ClassVar[Any], "ClassVar[Manager]", Manager, None], ids=str)
async def test_a_manager_may_have_the_name_objects(
    registry: mongoz.Registry, database: str, manager: Any, annotation: Any
) -> None:
    namespace: dict[str, Any] = {
        "__module__": __name__,
        "__qualname__": "User",
        "__annotations__": {"name": str, **({} if annotation is None else {"objects": annotation})},
        "name": mongoz.String(),
        "age": mongoz.Integer(),
        "active": mongoz.Boolean(default=True),
        "objects": manager,
        "Meta": type("Meta", (), {"registry": registry, "database": database}),
    }
    User: Any = type(mongoz.Document)("User", (mongoz.Document,), namespace)
    assert set(User.model_fields) == {"id", "name", "age", "active"}
    ada = await User.objects.create(name="Ada", age=18)
    await User(name="Bob", age=1, active=False).create()
    assert await User.objects.filter(name="Ada").get() == ada
    assert await names(User.objects) == "A"
    assert await names(User.query()) == "AB", "query() does not use the manager `objects`"
    assert await User.get_document_by_id(ada.id) == ada


def test_an_abstract_document_has_at_most_one_manager(registry: mongoz.Registry) -> None:
    options = {"registry": registry, "database": "never_connected"}
    with pytest.raises(ImproperlyConfigured, match=r"Base is abstract and has 2 managers: adults, older"):

        class Base(mongoz.Document):
            name: str = mongoz.String()
            adults: ClassVar[Any] = Adults()
            older: ClassVar[Any] = Older(3)

            Meta = type("Meta", (), {**options, "abstract": True})

    class Concrete(mongoz.Document):
        age: int = mongoz.Integer()
        adults: ClassVar[Any] = Adults()
        older: ClassVar[Any] = Older(3)

        Meta = type("Meta", (), options)

    assert isinstance(Concrete.older, Older)


async def test_an_unattached_manager_is_an_error(registry: mongoz.Registry) -> None:
    with pytest.raises(ImproperlyConfigured, match="Manager belongs to no document"):
        Manager().filter(name="x")
    with pytest.raises(ImproperlyConfigured, match="Older belongs to no document"):
        await Older(3)
    abstract = make(registry, "never_connected").__mro__[1]
    with pytest.raises(AbstractDocumentError):
        await abstract.actives


def test_queries_and_managers_can_be_attributes_of_any_class(registry: mongoz.Registry) -> None:
    User = make(registry, "never_connected")

    class Service:
        adults = User.objects.filter(age__gte=18)
        lost = Adults()

    assert Service.adults._plan.conditions
    assert Service().adults is Service.adults
    assert isinstance(Service.lost, Adults)
