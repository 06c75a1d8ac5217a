"""Uses of mongoz in applications; mypy and pyright must find no error, and infer the asserted types."""

import datetime
import decimal
import uuid
from typing import Any, ClassVar, assert_type

import bson
from pymongo.asynchronous.client_session import AsyncClientSession

import mongoz
from dispatcher.testing import Dispatcher, RecordedDelivery, delete, deliver, insert, update
from mongoz import Document, EmbeddedDocument, fields
from mongoz.core.signals import post_delete, post_save, post_update, pre_delete, pre_save, pre_update
from mongoz.testing import Captured, Fired, capture

registry = mongoz.Registry("mongodb://localhost:27017")


class Address(EmbeddedDocument):
    city: str = mongoz.String(max_length=50)
    zip = mongoz.String(null=True)


class Adults(mongoz.Manager["User"]):
    """A manager that the application defines."""


class User(Document):
    name: str = mongoz.String(max_length=100, min_length=1, index=True, pattern="^A")
    nick = mongoz.String()
    email: str | None = mongoz.Email(null=True, unique=True)
    age: int = mongoz.Integer(minimum=0, maximum=150, default=0)
    weight = mongoz.Double(max_digits=5, decimal_places=2)
    balance: decimal.Decimal = fields.Decimal(max_digits=9, decimal_places=2)
    active = mongoz.Boolean(default=True)
    created: datetime.datetime = mongoz.DateTime(auto_now_add=True)
    born = mongoz.Date()
    wakes = fields.Time(null=False)
    token = mongoz.UUID(default_factory=uuid.uuid4)
    photo = fields.Binary(max_length=1000)
    settings: dict[str, Any] = mongoz.Object(default=dict)
    tags = mongoz.Array(str, default=list)
    notes: list[Any] = fields.ArrayList(null=True)
    address = mongoz.Embed(Address)
    homes: list[Address] = mongoz.Array(Address, default=list)
    work: Address | None = mongoz.Embed(Address, null=True)
    friend: mongoz.ObjectId = mongoz.ObjectId()
    boss: mongoz.ObjectId | None = fields.NullableObjectId()
    team: mongoz.ObjectId = fields.ForeignKey("Team", null=True)
    club: mongoz.Nullable[mongoz.ObjectId] = mongoz.ForeignKey("Team", null=True)
    kind: str = mongoz.String(choices=[("a", "A"), ("b", "B")])
    height: mongoz.Nullable[int] = mongoz.Integer(null=True)
    home: mongoz.Nullable[Address] = mongoz.Embed(Address, null=True)

    adults: ClassVar[Adults] = Adults()

    class Meta:
        registry = registry
        database = "shop"


class Child(User):
    school: str = mongoz.String()

    class Meta(User.Meta):
        database = "school"


class Purchase(Document):
    buyer: mongoz.ObjectId = mongoz.ForeignKey(User)


class Team(Document):
    id: Any = mongoz.String(alias="_id")
    name: str = mongoz.String()


def the_fields_have_their_python_types(user: User) -> None:
    assert_type(user.name, str)
    assert_type(user.nick, str)
    assert_type(user.email, str | None)
    assert_type(user.age, int)
    assert_type(user.weight, float)
    assert_type(user.balance, decimal.Decimal)
    assert_type(user.active, bool)
    assert_type(user.created, datetime.datetime)
    assert_type(user.born, datetime.date)
    assert_type(user.wakes, datetime.time)
    assert_type(user.token, uuid.UUID)
    assert_type(user.photo, bytes)
    assert_type(user.settings, dict[str, Any])
    assert_type(user.tags, list[str])
    assert_type(user.notes, list[Any])
    assert_type(user.address, Address)
    assert_type(user.address.city, str)
    assert_type(user.homes, list[Address])
    assert_type(user.work, Address | None)
    assert_type(user.friend, mongoz.ObjectId)
    assert_type(user.boss, mongoz.ObjectId | None)
    assert_type(user.id, mongoz.ObjectId | None)
    assert_type(user.height, int | None)
    assert_type(user.home, Address | None)
    assert_type(user.club, mongoz.ObjectId | None)


def the_factories_return_the_types_of_the_values() -> None:
    assert_type(mongoz.String(), str)
    assert_type(mongoz.Email(null=False), str)
    assert_type(mongoz.Integer(minimum=1), int)
    assert_type(mongoz.Double(), float)
    assert_type(fields.Decimal(max_digits=3, decimal_places=1), decimal.Decimal)
    assert_type(mongoz.Array(int), list[int])
    assert_type(fields.ArrayList(), list[Any])
    assert_type(mongoz.Embed(Address), Address)
    assert_type(mongoz.String(null=True), Any)
    assert_type(fields.Binary(max_length=5, null=True), Any)
    assert_type(mongoz.Embed(Address, null=True), Any)
    assert_type(fields.ForeignKey(User), Any)
    assert_type(mongoz.Object(), Any)


async def reading() -> None:
    assert_type(await User.objects.get(name="Ada"), User)
    assert_type(await User.objects.filter(age__gte=18).exclude(name="x").sort("age", 1).get(), User)
    assert_type(await Child.objects.filter(age__gte=18).limit(1).first(), Child | None)
    assert_type(await User.objects.last(), User | None)
    assert_type(await User.objects.get_or_none(name="Ada"), User | None)
    assert_type(await User.objects.all(), list[User])
    assert_type(await User.objects.filter(name="Ada"), list[User])
    assert_type(await User.objects, list[User])
    assert_type(await User.query(User.age >= 18, {"name": "Ada"}), list[User])
    assert_type(await User.query(User.address.city == "Bonn").first(), User | None)
    assert_type(await Child.query.all(), list[Child])
    assert_type(await User.objects.count(), int)
    assert_type(await User.objects.exists(name="Ada"), bool)
    assert_type(await User.get_document_by_id("65f0c0ffee0123456789abcd"), User)
    assert_type(await User.objects.using("other").get_document_by_id(bson.ObjectId()), User)
    assert_type(User.from_row({}), User)
    async for user in User.objects.filter(active=True):
        assert_type(user, User)
    async for child in Child.query({"age": 5}):
        assert_type(child, Child)


async def values(user: User) -> None:
    assert_type(
        await User.objects.filter(age=1).values(["name", User.age], exclude_none=True), list[dict[str, Any]]
    )
    assert_type(await User.query.values_list("name", flat=True), list[Any])
    assert_type(await User.objects.distinct_values(User.tags), list[Any])
    assert_type(await User.aggregate([{"$match": {"name": "Ada"}}]), list[dict[str, Any]])
    assert_type(await User.objects.only("name", User.age).first(), User | None)
    assert_type(await User.objects.defer("name").options(max_time_ms=5, hint="name").execute(), list[User])
    assert_type(await User.objects.where("this.age > 1").sort([("age", -1), ("name", 1)]).all(), list[User])
    assert_type(await User.objects.none().explain(), dict[str, Any])
    assert_type(await user.objects.first(), User | None)
    assert_type(await user.query().get(), User)
    assert_type(await user.refresh(), User)
    assert_type(user.model_copy(update={"name": "Bea"}), User)
    assert_type(user.model_dump(show_id=True, mode="json"), dict[str, Any])


async def registries() -> None:
    async def move(session: Any) -> int:
        return await User.objects.using_session(session).update_count(mongoz.U.inc("age"), active=True)

    async with registry.transaction(max_commit_time_ms=500) as session:
        assert_type(session, AsyncClientSession)
        await User(name="Ada").create(session=session)
    assert_type(await registry.run_transaction(move), int)
    assert_type(await registry.get_databases(), list[mongoz.Database])
    assert_type(registry.get_database("shop").get_collection("users"), mongoz.Collection)
    assert_type(await User.create_indexes(), list[str])
    assert_type(await User.list_indexes(), list[dict[str, Any]])
    assert_type(User.get_collection(), mongoz.Collection)
    async with mongoz.Registry("mongodb://localhost", driver="motor", dispatched=True) as other:
        assert_type(other, mongoz.Registry)


def blocking() -> None:
    assert_type(mongoz.run_sync(User.objects.count()), int)
    assert_type(mongoz.run_sync(User.objects.filter(age=1)), list[User])
    assert_type(mongoz.run_sync(User.objects.get(name="Ada")), User)


async def expressions() -> None:
    await User.query((User.age >= 18) & (User.name != "Ada"), User.created < datetime.datetime(2024, 1, 1))
    await User.query({User.name: "Ada"}).sort(User.age, mongoz.Order.DESCENDING)
    await User.query(mongoz.Q.or_(User.age == 1, mongoz.Q.eq(User.name, "Ada"))).sort(mongoz.Q.desc(User.age))
    await User.objects.raw({"age": {"$gt": 5}}, User.age > 5)


async def nullable_fields(user: User) -> None:
    await User.query((User.height > 3) & (User.home.city == "Bonn"), User.height == None)  # noqa: E711
    await User.query(mongoz.Q.gt(User.email, "b"), User.email == "b", User.email == None)  # noqa: E711
    await User.objects.sort(User.height, -1)
    User(height=None, home=Address(city="Bonn"))
    user.height = 5


async def references(user: User, purchase: Purchase) -> None:
    assert_type(await Purchase(buyer=user).create(), Purchase)
    assert_type(purchase.buyer, mongoz.ObjectId)
    purchase.buyer = user
    await Purchase.query(Purchase.buyer == user)


async def nullable_references(user: User, team: Team) -> None:
    await User(club=team).create()
    User(club=None, boss=None)
    user.club = team
    user.club = mongoz.ObjectId()
    await User.query((User.club == team) | (User.club == None))  # noqa: E711


async def writing(user: User, child: Child) -> None:
    assert_type(await User.objects.create(name="Ada"), User)
    assert_type(await Child.query.create(name="Ada"), Child)
    assert_type(await User(name="Ada", age=5, work=Address(city="Bonn")).create(), User)
    assert_type(await child.save(), Child)
    assert_type(await child.update(name="Ada"), Child)
    assert_type(await user.delete(), int)
    assert_type(await User.create_many([user]), list[User])
    assert_type(await User.objects.filter(age=1).update(age=2), list[User])
    assert_type(await User.objects.update_count(age=2), int)
    assert_type(await User.objects.delete(), int)
    assert_type(await User.objects.get_or_create({"age": 5}, name="Ada"), User)
    assert_type(await user.update(mongoz.U.push("tags", "a"), mongoz.U.inc(age=1), name="Ada"), User)
    assert_type(await User.objects.bulk_create([user]), list[User])
    assert_type(await User.query.bulk_update(mongoz.U.unset("kind")), list[User])
    assert_type(await User.objects.update_or_create({User.age: 5}, name="Ada"), tuple[User, bool])
    assert_type(await User.query(User.age > 5).aggregate([{"$count": "n"}]), list[dict[str, Any]])
    assert_type(await user.update(mongoz.U.set("address.city", "Bonn"), **{"homes.0.city": "Bonn"}), User)
    user.address = Address(city="Berlin")
    user.team = mongoz.ObjectId()


async def managers() -> None:
    assert_type(User.adults, Adults)
    assert_type(await User.adults.filter(name="Ada").get(), User)
    assert_type(User.objects, mongoz.Manager[User])
    assert_type(Child.query, mongoz.QuerySet[Child])


@post_save(User)
async def welcome(sender: type[User], instance: User, created: bool, **kwargs: Any) -> int:
    return 5


@pre_delete([User, Child])
async def refuse(sender: type[User], **kwargs: Any) -> None:
    raise ValueError(sender.meta.collection)


@pre_update(User)
async def check(
    sender: type[Document], instance: Document, update_fields: frozenset[str], **kwargs: Any
) -> None: ...


@post_save(User)
@post_update(User)
async def note(
    sender: type[User], instance: User, delivery: mongoz.Delivery, previous: User | None, **kwargs: Any
) -> str:
    return delivery.id


@post_save(User, batch=mongoz.Batch(size=10))
async def index(sender: type[User], batch: list[mongoz.BatchEvent], **kwargs: Any) -> None:
    assert_type(batch[0].delivery, mongoz.Delivery)


@post_delete([User, Purchase])
async def forget(sender: Any, instance: User | Purchase, **kwargs: Any) -> None: ...


class Service:
    async def on_save(self, sender: type[User], instance: User, **kwargs: Any) -> None: ...


async def receivers(user: User) -> None:
    pre_save(User)(Service().on_save)
    assert_type(await note(User, instance=user), str)
    assert_type(await welcome(User, user, created=True), int)
    assert_type(await refuse(User), None)
    assert_type(User.signals.post_save.disconnect(welcome), bool)
    User.meta.signals.on_verify = mongoz.Signal()


async def testing(user: User) -> None:
    with capture(User, User.signals.post_save, registry, silent=True) as captured:
        assert_type(captured, Captured)
    assert_type(
        captured.of(User).named("post_save").assert_fired("post_save", times=None, created=True), list[Fired]
    )
    assert_type(captured[0], Fired)
    async with Dispatcher(registry, raise_failures=False) as dispatcher:
        await dispatcher.until_idle(timeout=5)
        assert_type(await dispatcher.delivered(user, "post_save", times=2), list[RecordedDelivery])
        assert_type(await dispatcher.delivered(("users", 5), receiver=welcome), list[RecordedDelivery])
    await deliver(User, insert({"name": "Ada"}), receiver=welcome)
    await deliver(User, insert({"name": "Ada"}, context={"user": "ada", "dry": True, "request": 7}))
    with mongoz.context(user="ada", dry=True, request=7):
        await user.save()
    await deliver(User, update(user, changed=["name"], previous={"name": "Bea"}))
    assert_type(await deliver(User, delete(5)), list[RecordedDelivery])
