"""The signals of every write of the ODM, as in the guide."""

from typing import Any

import pytest
from pymongo import InsertOne

import mongoz
from mongoz.signals import muted

SIGNALS = ("pre_save", "post_save", "pre_update", "post_update", "pre_delete", "post_delete")
CREATED = {"pre_save": [True], "post_save": [True]}
CREATED_TWO = {"pre_save": [True, True], "post_save": [True, True]}
SAVED = {"pre_save": [False], "post_save": [False]}
UPDATED = {"pre_update": [None], "post_update": [None]}
UPDATED_TWO = {"pre_update": [None, None], "post_update": [None, None]}
DELETED = {"pre_delete": [None], "post_delete": [None]}
DELETED_TWO = {"pre_delete": [None, None], "post_delete": [None, None]}


async def save_changed(User, ada):
    ada.age = 9
    await ada.save()


def two_users(User):
    return [User(name="Cyd"), User(name="Dan")]


# name -> (the call, the expected signals: for each signal, the value of `created` in each call of its receiver)
INSTANCE = {
    "create": (lambda User, ada: User(name="Cyd").create(), CREATED),
    "save of a new one": (lambda User, ada: User(name="Cyd").save(), CREATED),
    "save": (save_changed, SAVED),
    "save without changes": (lambda User, ada: ada.save(), SAVED),
    "update": (lambda User, ada: ada.update(age=3), UPDATED),
    "update of nothing": (lambda User, ada: ada.update(), {}),
    "update of a part": (lambda User, ada: ada.update(**{"data.x": 1}), UPDATED),
    "update with operations": (lambda User, ada: ada.update(mongoz.U.inc(age=1)), UPDATED),
    "delete": (lambda User, ada: ada.delete(), DELETED),
    "refresh": (lambda User, ada: ada.refresh(), {}),
}
CLASS = {
    "Document.create_many": (lambda User, ada: User.create_many(two_users(User)), CREATED_TWO),
    "Document.bulk_write": (lambda User, ada: User.bulk_write([InsertOne({"name": "x"})]), {}),
    "Document.aggregate": (lambda User, ada: User.aggregate([{"$match": {}}]), {}),
}
QUERY = {
    "create": (lambda q, User: q.create(name="Cyd"), CREATED),
    "create_many": (lambda q, User: q.create_many(two_users(User)), CREATED_TWO),
    "bulk_create": (lambda q, User: q.bulk_create(two_users(User)), CREATED_TWO),
    "update": (lambda q, User: q.update(age=3), UPDATED_TWO),
    "update_many": (lambda q, User: q.update_many(age=3), UPDATED_TWO),
    "bulk_update": (lambda q, User: q.bulk_update(age=3), UPDATED_TWO),
    "update_count": (lambda q, User: q.update_count(age=3), UPDATED_TWO),
    "update of a part": (lambda q, User: q.update(**{"data.x": 1}), UPDATED_TWO),
    "update with operations": (lambda q, User: q.update(mongoz.U.inc(age=1)), UPDATED_TWO),
    "update of some": (lambda q, User: q.filter(name="Bob").update_count(age=3), UPDATED),
    "update of the first": (lambda q, User: q.sort("name").limit(1).update(age=3), UPDATED),
    "update of none": (lambda q, User: q.filter(name="nobody").update(age=3), {}),
    "delete": (lambda q, User: q.delete(), DELETED_TWO),
    "delete of some": (lambda q, User: q.filter(name="Bob").delete(), DELETED),
    "delete of the second": (lambda q, User: q.sort("name").skip(1).delete(), DELETED),
    "delete of none": (lambda q, User: q.filter(name="nobody").delete(), {}),
    "get_or_create, a miss": (lambda q, User: q.filter(name="Cyd").get_or_create({"age": 1}), CREATED),
    "get_or_create, a hit": (lambda q, User: q.filter(name="Bob").get_or_create({"age": 1}), {}),
    "update_or_create, a miss": (lambda q, User: q.filter(name="Cyd").update_or_create({"age": 1}), CREATED),
    "update_or_create, a hit": (lambda q, User: q.filter(name="Bob").update_or_create({"age": 1}), UPDATED),
    "update_or_create, no defaults": (lambda q, User: q.filter(name="Bob").update_or_create(), {}),
}
CASES = [
    *(pytest.param(lambda U, a, f=f: f(U, a), told, id=f"instance: {n}") for n, (f, told) in INSTANCE.items()),
    *(pytest.param(lambda U, a, f=f: f(U, a), told, id=n) for n, (f, told) in CLASS.items()),
    *(pytest.param(lambda U, a, f=f: f(U.objects, U), told, id=f"objects: {n}") for n, (f, told) in QUERY.items()),
    *(pytest.param(lambda U, a, f=f: f(U.query(), U), told, id=f"query(): {n}") for n, (f, told) in QUERY.items()),
]


def make(registry, database) -> Any:
    class User(mongoz.Document):
        name: str = mongoz.String()
        age: int = mongoz.Integer(default=0)
        data: dict[str, int] = mongoz.Object(default=dict)

        Meta = type("Meta", (), {"registry": registry, "database": database})

    return User


@pytest.fixture
def User(registry, database) -> Any:
    return make(registry, database)


@pytest.fixture
async def UserOfEachDriver(mongo, driver, database) -> Any:
    async with mongoz.Registry(mongo.url, driver=driver) as registry:
        yield make(registry, database)


class Told(dict[str, list[Any]]):
    """For each signal, the value of `created` in each call of its receiver; None if the call has no `created`."""

    def __init__(self, document: Any) -> None:
        self.keywords: dict[str, set[str]] = {}
        for name in SIGNALS:
            getattr(document.signals, name).connect(self.receiver(name))

    def receiver(self, name: str) -> Any:
        async def receive(sender: Any, **kwargs: Any) -> None:
            assert isinstance(kwargs["instance"], sender)
            assert kwargs["instance"].id is not None or name == "pre_save"
            self.setdefault(name, []).append(kwargs.get("created"))
            self.keywords[name] = set(kwargs)

        return receive


@pytest.mark.parametrize(("call", "expected"), CASES)
async def test_each_write_fires_the_signals_of_the_matrix(UserOfEachDriver, call, expected):
    User = UserOfEachDriver
    ada = await User.objects.create(name="Ada", age=1)
    await User.objects.create(name="Bob", age=2)
    told = Told(User)
    await call(User, ada)
    assert told == expected
    for name in told:
        assert ("delivery" in told.keywords[name]) == name.startswith("post_")


@pytest.mark.parametrize(("call", "expected"), CASES)
async def test_a_muted_call_fires_nothing_and_still_writes(request, User, foreign, call, expected):
    ada = await User.objects.create(name="Ada", age=1)
    await User.objects.create(name="Bob", age=2)
    told = Told(User)
    before = list(foreign.users.find())
    with muted():
        await call(User, ada)
    assert told == {}
    writes = {name for name in expected if name.startswith("post_")}
    if writes and "without changes" not in request.node.name:
        assert list(foreign.users.find()) != before


@pytest.mark.parametrize(("call", "expected"), [case for case in CASES if case.values[1]])
async def test_a_raising_pre_receiver_prevents_the_write(User, foreign, call, expected):
    kind = next(name for name in expected if name.startswith("pre_"))
    ada = await User.objects.create(name="Ada", age=1)
    await User.objects.create(name="Bob", age=2)
    before = list(foreign.users.find())

    @getattr(User.signals, kind).connect
    async def refuse(sender, **kwargs):
        raise PermissionError(kind)

    with pytest.raises(PermissionError):
        await call(User, ada)
    assert list(foreign.users.find()) == before


@pytest.mark.parametrize(("call", "expected"), CASES)
async def test_changes_of_a_pre_receiver_are_written(User, foreign, call, expected):
    ada = await User.objects.create(name="Ada", age=1)
    await User.objects.create(name="Bob", age=2)

    async def change(sender, instance, **kwargs):
        instance.name = "changed"

    User.signals.pre_save.connect(change)
    User.signals.pre_update.connect(change)
    await call(User, ada)
    writes = len(expected.get("pre_save", []) + expected.get("pre_update", []))
    assert foreign.users.count_documents({"name": "changed"}) == writes
