"""The reserved field `_mongoz`: users neither see nor set an origin stamp."""

from typing import Any

import pytest
from pymongo import InsertOne

import mongoz
from mongoz import ImproperlyConfigured, InvalidKeyError, Registry
from mongoz.core.signals import post_save, post_update
from mongoz.queries.update_operators import U
from mongoz.stamps import FIELD


@pytest.fixture
def documents(dispatched: Registry, database: str) -> Any:
    here = dispatched.get_database(database)

    class User(mongoz.Document):
        name: str = mongoz.String()
        data: Any = mongoz.Object(null=True)

        class Meta:
            registry = dispatched
            database = here

    class Post(mongoz.Document):
        user: Any = mongoz.ForeignKey(User)

        class Meta:
            registry = dispatched
            database = here

    heard: list[Any] = []

    @post_update([User, Post], name="hear_update")
    @post_save([User, Post], name="hear")
    async def hear(sender: Any, instance: Any, update_fields: Any = (), **kwargs: Any) -> None:
        heard.append((instance, update_fields))

    return User, Post, heard


def holds(value: Any) -> bool:
    if isinstance(value, dict):
        return FIELD in value or value.get("k") == FIELD or any(map(holds, value.values()))
    return isinstance(value, list | tuple) and any(map(holds, value))


async def test_no_read_shows_a_stamp(documents: Any, foreign: Any) -> None:
    User, Post, heard = documents
    user = await User.objects.create(name="a")
    await user.update(U.unset("data"), name="b")
    post = await Post.objects.create(user=user)
    assert FIELD in foreign.users.find_one()
    assert FIELD in foreign.posts.find_one()
    lookup = {"from": "users", "localField": "user", "foreignField": "_id", "as": "users"}
    pipelines: list[list[dict[str, Any]]] = [
        [],
        [{"$match": {"name": "b"}}, {"$limit": 1}],
        [{"$group": {"_id": "$name", "rows": {"$push": "$$ROOT"}, "first": {"$first": "$$ROOT"}}}],
        [{"$project": {"in": {"deep": [["$$ROOT"]]}}}],
        [{"$project": {"pairs": {"$objectToArray": "$$ROOT"}}}],
        [{"$facet": {"one": [{"$limit": 1}], "two": []}}],
    ]
    shown: list[Any] = [await User.aggregate(pipeline) for pipeline in pipelines]
    shown.append(await Post.aggregate([{"$lookup": lookup}, {"$unwind": "$users"}]))
    assert all(rows and rows[0] for rows in shown)
    joined = await Post.objects.filter(user__name="b").get()
    instances = [user, post, joined, *joined.users, *(instance for instance, _ in heard)]
    instances += [await User.objects.get(), await User.objects.only("name").get(), await user.refresh()]
    for instance in instances:
        shown += [instance.model_dump(), instance.model_dump(mode="json"), dict(instance), instance.__dict__]
        shown += [instance.__pydantic_extra__, vars(instance)]
    shown += [await User.objects.values(), await Post.objects.filter(user__name="b").values(["user__name"])]
    shown += [await User.objects.values_list(), await User.objects.distinct_values("data")]
    assert not holds(shown)
    assert all(FIELD not in fields for _, fields in heard)


REFUSED = {
    "constructor": lambda User: User(name="a", **{FIELD: b"x"}),
    "create": lambda User: User.objects.create(name="a", **{FIELD: b"x"}),
    "query create": lambda User: User.query.create(name="a", **{FIELD: b"x"}),
    "defaults": lambda User: User.objects.get_or_create({FIELD: b"x"}, name="a"),
    "defaults of an update": lambda User: User.objects.update_or_create({FIELD: b"x"}, name="a"),
    "lookup": lambda User: User.objects.get_or_create(name="a", **{FIELD: b"x"}),
    "condition": lambda User: User.query({FIELD: b"x"}, {"name": "a"}).get_or_create(),
    "model_validate": lambda User: User.model_validate({"name": "a", FIELD: b"x"}).create(),
    "json": lambda User: User.model_validate_json(f'{{"name": "a", "{FIELD}": "x"}}').save(),
    "construct": lambda User: User.model_construct(name="a", **{FIELD: b"x"}).create(),
    "many": lambda User: User.create_many([User.model_validate({"name": "a", FIELD: b"x"})]),
    "unset": lambda User: User.objects.update(U.unset(FIELD)),
    "push": lambda User: User.objects.update(U.push(FIELD, 1)),
    "filter": lambda User: User.objects.filter(**{FIELD: b"x"}),
    "sort": lambda User: User.objects.sort(FIELD),
    "values": lambda User: User.objects.values([FIELD]),
    "only": lambda User: User.objects.only(FIELD),
    "distinct": lambda User: User.objects.distinct_values(FIELD),
}


@pytest.mark.parametrize("way", REFUSED)
async def test_a_stamp_can_be_neither_set_nor_queried(documents: Any, foreign: Any, way: str) -> None:
    User, _, _ = documents

    async def attempt() -> None:
        made = REFUSED[way](User)
        if hasattr(made, "__await__"):
            await made

    with pytest.raises(InvalidKeyError, match=FIELD):
        await attempt()
    assert foreign.users.count_documents({}) == 0


async def test_an_instance_does_not_accept_a_stamp(documents: Any, foreign: Any) -> None:
    User, _, _ = documents
    user = await User.objects.create(name="a")
    with pytest.raises(InvalidKeyError, match=FIELD):
        await user.update(**{FIELD: b"x"})
    with pytest.raises(InvalidKeyError, match=FIELD):
        await User.objects.update(**{FIELD: b"x"})
    before = foreign.users.find_one()[FIELD]
    with pytest.raises(InvalidKeyError, match=FIELD):
        user._mongoz = b"x"
    with pytest.raises(InvalidKeyError, match=FIELD):
        setattr(User(name="c"), FIELD, None)
    await user.update(name="b")
    assert foreign.users.find_one()[FIELD] not in (before, b"x")
    user.model_extra.update({FIELD: b"x"})
    with pytest.raises(InvalidKeyError, match=FIELD):
        await user.save()
    with pytest.raises(InvalidKeyError, match=FIELD):
        await user.update(name="d")
    assert foreign.users.find_one()["name"] == "b"
    user.model_extra.pop(FIELD)
    assert not holds(user.model_dump())


def test_no_field_is_stored_under_the_reserved_name(dispatched: Registry, database: str) -> None:
    for given in ({"alias": FIELD}, {"serialization_alias": FIELD}):
        with pytest.raises(ImproperlyConfigured, match=rf"Thing\.x can't be stored as '{FIELD}'"):
            type("Thing", (mongoz.Document,), {"__module__": __name__, "x": mongoz.String(**given)})


async def test_raw_requests_are_unchanged(documents: Any, foreign: Any) -> None:
    User, _, _ = documents
    await User.bulk_write([InsertOne({"name": "a", FIELD: b"x"})])
    assert foreign.users.find_one()[FIELD] == b"x"
    assert (await User.objects.get()).model_dump().keys() == {"id", "name", "data"}
