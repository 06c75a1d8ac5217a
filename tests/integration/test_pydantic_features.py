"""Features of pydantic in documents: aliases, root models, computed fields, defaults, validators, serializers."""

import dataclasses
import datetime
import math
from collections.abc import Callable
from enum import Enum, StrEnum
from typing import Annotated, Any, Literal, NotRequired

import pytest
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    RootModel,
    Tag,
    ValidationError,
    ValidationInfo,
    computed_field,
    create_model,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.alias_generators import to_camel
from typing_extensions import TypeAliasType, TypedDict

import mongoz

DAY = datetime.date(2020, 1, 1)

# -- Models ------------------------------------------------------------------------------------------


class Stay(BaseModel):
    nights: int
    begins: datetime.date | None = None


class OneStay(RootModel[Stay]):
    pass


class Stays(RootModel[list[Stay]]):
    pass


class StaysByName(RootModel[dict[str, Stay]]):
    pass


class Json(RootModel[dict[str, "Json"] | list["Json"] | str | int | None]):
    pass


class Nested(RootModel[list["Nested"]]):
    pass


class Color(StrEnum):
    RED = "red"
    BLUE = "blue"


def as_color(name: str) -> Color:
    return Color(name)


def as_tuple(values: list[int]) -> tuple[int, ...]:
    return tuple(values)


Tree = TypeAliasType("Tree", "dict[str, Tree] | None")


@dataclasses.dataclass
class Point:
    x: int
    day: datetime.date = datetime.date(1999, 1, 1)


class Seen(TypedDict):
    x: int
    day: NotRequired[datetime.date]


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    mice: int


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    balls: int


def kind_of(value: Any) -> Any:
    return value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)


Pet = Annotated[Annotated[Cat, Tag("cat")] | Annotated[Dog, Tag("dog")], Discriminator(kind_of)]


class Part(mongoz.EmbeddedDocument):
    count: int

    @computed_field(alias="twice")
    @property
    def double(self) -> int:
        return 2 * self.count


@pytest.fixture
def meta(registry: mongoz.Registry, database: str) -> Callable[[str], Any]:
    """Returns a function that makes the Meta of a class for a collection."""
    return lambda collection: type(
        "Meta", (), {"registry": registry, "database": database, "collection": collection}
    )


# -- Generated aliases -------------------------------------------------------------------------------


async def test_an_alias_generator_does_not_rename_the_id(meta: Any, foreign: Any) -> None:
    class Home(mongoz.EmbeddedDocument):
        model_config = ConfigDict(alias_generator=to_camel)
        zip_code: str

    class Person(mongoz.Document):
        model_config = ConfigDict(alias_generator=to_camel)
        first_name: str
        home_address: Home
        shoe_size: int = mongoz.Integer(default=40, index=True)
        Meta = meta("people")

    class Employee(Person):
        staff_number: int = 1
        Meta = meta("employees")

    for kind in (Person, Employee):
        made = await kind.objects.create(first_name="Ada", home_address={"zipCode": "1"})
        row = foreign[kind.meta.collection.name].find_one()
        assert row.pop("staffNumber", 1) == 1
        assert row == {"_id": made.id, "firstName": "Ada", "homeAddress": {"zipCode": "1"}, "shoeSize": 40}
        found = await kind.objects.get(**{"home_address.zip_code": "1"}, shoe_size__gt=1)
        assert found == made
        found.first_name = "Bea"
        found.home_address.zip_code = "2"
        await found.save()
        await found.update(**{"home_address.zip_code": "3"})
        row = foreign[kind.meta.collection.name].find_one()
        assert (row["firstName"], row["homeAddress"]) == ("Bea", {"zipCode": "3"})
        for dump in (found.model_dump(), found.model_dump(by_alias=True)):
            assert dump["id"] == made.id
            assert kind.model_validate(dump) == found
        assert kind.model_validate_json(found.model_dump_json(by_alias=True)) == found


# -- Root models -------------------------------------------------------------------------------------


@pytest.fixture
def Booking(meta: Any) -> Any:
    class Booking(mongoz.Document):
        one: OneStay
        many: Stays = Stays([])
        named: StaysByName = StaysByName({})
        maybe: Stays | None = None
        notes: Json = Json(None)
        nested: Nested = Nested([])
        tree: Tree = None
        Meta = meta("bookings")

    return Booking


async def test_a_root_model_is_stored_as_its_root(Booking: Any, foreign: Any) -> None:
    stay = {"nights": 1, "begins": DAY}
    made = await Booking.objects.create(
        one=stay, many=[stay], named={"a": stay}, notes={"x": [1, {"y": "z"}]}, nested=[[], [[]]], tree={"t": None}
    )
    stored = {"nights": 1, "begins": datetime.datetime(2020, 1, 1)}
    row = foreign.bookings.find_one()
    assert (row["one"], row["many"], row["named"], row["maybe"]) == (stored, [stored], {"a": stored}, None)
    assert (row["notes"], row["nested"], row["tree"]) == ({"x": [1, {"y": "z"}]}, [[], [[]]], {"t": None})
    found = await Booking.objects.get()
    assert found == made
    assert Booking.model_validate_json(found.model_dump_json()) == found
    await found.save()
    assert foreign.bookings.find_one() == row
    found.many.root.append(Stay(nights=2))
    await found.save()
    assert [stay["nights"] for stay in foreign.bookings.find_one()["many"]] == [1, 2]


async def test_queries_and_updates_reach_into_root_models(Booking: Any) -> None:
    stay = Stay(nights=1, begins=DAY)
    made = await Booking.objects.create(one=stay, many=[stay], named={"a": stay}, notes={"x": 1})
    found = {"one.nights": 1, "many.begins": DAY, "named.a.begins": DAY, "notes.x": 1}
    for name, value in found.items():
        assert await Booking.objects.filter(**{name: value}).count() == 1, name
    assert await Booking.query(Booking.one.begins == DAY, Booking.many.nights == 1).count() == 1
    await made.update(
        mongoz.U.push("many", {"nights": 3}),
        **{"one.nights": 4, "named.b": {"nights": 5}, "named.a.nights": 6},
    )
    assert made.one == OneStay(Stay(nights=4, begins=DAY))
    assert made.many == Stays([stay, Stay(nights=3)])
    assert {name: stay.nights for name, stay in made.named.root.items()} == {"a": 6, "b": 5}
    await Booking.objects.update(many=[{"nights": 7}], maybe=Stays([stay]))
    assert (await Booking.objects.get()).many == Stays([Stay(nights=7)])


async def test_distinct_values_are_instances_of_the_declared_types(meta: Any) -> None:
    class Title(RootModel[str]):
        pass

    class Trip(mongoz.Document):
        title: Title
        stay: Stay
        one: OneStay
        many: Stays
        point: Point
        points: list[Point]
        part: Part = mongoz.Embed(Part)
        Meta = meta("trips")

    stay, point = Stay(nights=1, begins=DAY), Point(1, DAY)
    made = await Trip.objects.create(
        title="a", stay=stay, one=stay, many=[stay], point=point, points=[point], part={"count": 1}
    )
    found = {name: await Trip.objects.distinct_values(name) for name in Trip.model_fields if name != "id"}
    assert found == {
        "title": [Title("a")],
        "stay": [stay],
        "one": [OneStay(stay)],
        "many": [stay],
        "point": [point],
        "points": [point],
        "part": [made.part],
    }
    assert await Trip.objects.distinct_values("many.begins") == [DAY]


async def test_keys_of_typed_dicts_have_the_declared_types(meta: Any) -> None:
    class Visit(mongoz.Document):
        seen: Seen
        Meta = meta("visits")

    made = await Visit.objects.create(seen={"x": 1})
    await made.update(**{"seen.day": "2020-01-01", "seen.x": "2"})
    assert made.seen == {"x": 2, "day": DAY}
    with pytest.raises(ValidationError, match=r"seen\.x"):
        await made.update(**{"seen.x": "many"})
    assert (await Visit.objects.get()).seen == {"x": 2, "day": DAY}

    class Wrong(TypedDict):
        call: NotRequired[Callable[[], int]]

    with pytest.raises(mongoz.FieldDefinitionError, match="is no data"):

        class Holder(mongoz.EmbeddedDocument):
            held: Wrong


@pytest.mark.parametrize("root", [list[Callable[[], int]], dict[str, datetime.date | datetime.datetime]])
def test_a_root_model_with_an_unstorable_root_is_refused(root: Any) -> None:
    class Root(RootModel[root]):  # type: ignore[valid-type]
        pass

    with pytest.raises(mongoz.FieldDefinitionError, match="held can't be stored"):

        class Holder(mongoz.EmbeddedDocument):
            held: Root


async def test_values_that_need_validation_as_a_whole_are_loaded_as_a_whole(meta: Any) -> None:
    class Owner(mongoz.EmbeddedDocument):
        name: str
        pet: Pet

    class House(mongoz.Document):
        stay: OneStay
        pet: Pet
        owner: Owner
        points: list[Point]
        seen: Seen | None
        Meta = meta("houses")

    stay, pet, seen = Stay(nights=1, begins=DAY), Dog(balls=3), {"x": 1, "day": DAY}
    await House.objects.create(
        stay=stay, pet=pet, owner={"name": "Ada", "pet": pet}, points=[Point(1, DAY)], seen=seen
    )
    found = await House.objects.only("points.x", "seen.x").get()
    assert (found.points, found.seen) == ([Point(1, DAY)], seen)
    for names in (["stay.nights", "pet.balls", "owner.pet.balls"], ["stay.nights", "stay", "pet", "owner.pet"]):
        found = await House.objects.only(*names).get()
        assert (found.stay.root, found.pet, found.owner.pet) == (stay, pet, pet)
        with pytest.raises(AttributeError, match="name was not loaded"):
            print(found.owner.name)


# -- Keys of mappings --------------------------------------------------------------------------------


async def test_keys_that_are_enum_members_or_literals_keep_their_type(meta: Any, foreign: Any) -> None:
    class Size(Enum):
        SMALL = 1
        LARGE = 2

    class Stock(mongoz.Document):
        by_size: dict[Size, int]
        by_shelf: dict[Literal[1, 2, "top"], int]
        by_state: dict[bool, int]
        Meta = meta("stocks")

    made = await Stock.objects.create(by_size={Size.SMALL: 5}, by_shelf={1: 6, "top": 7}, by_state={True: 8})
    row = foreign.stocks.find_one()
    assert (row["by_size"], row["by_shelf"], row["by_state"]) == ({"1": 5}, {"1": 6, "top": 7}, {"True": 8})
    found = await Stock.objects.get()
    assert found == made
    await found.update(**{"by_size.2": 9, "by_shelf.2": 10})
    assert (found.by_size[Size.LARGE], found.by_shelf[2]) == (9, 10)
    with pytest.raises(mongoz.InvalidKeyError, match="can't have '3' inside"):
        await found.update(**{"by_size.3": 1})


# -- Validators --------------------------------------------------------------------------------------


async def test_a_validator_that_reads_another_field_sees_the_stored_value_of_that_field(meta: Any) -> None:
    class Range(mongoz.Document):
        low: int
        high: int

        @field_validator("high")
        @classmethod
        def check(cls, high: int, info: ValidationInfo) -> int:
            if high < info.data["low"]:
                raise ValueError("high is below low")
            return high

        Meta = meta("ranges")

    made = await Range.objects.create(low=3, high=5)
    found = await Range.objects.only("high").get()
    found.high = 1
    for write in (
        found.save(),
        made.update(mongoz.U.inc(high=-9)),
        made.update(high=2),
        Range.objects.update(mongoz.U.inc(high=-9)),
        Range.objects.update(high=2),
    ):
        with pytest.raises(ValidationError, match="high is below low"):
            await write
    found.high = 4
    await found.save()
    await Range.objects.update(mongoz.U.inc(high=1))
    assert await Range.objects.values(["low", "high"]) == [{"low": 3, "high": 5}]


# -- Computed fields ---------------------------------------------------------------------------------


async def test_an_instance_made_from_a_dump_is_equal_and_computed_fields_are_not_stored(
    meta: Any, foreign: Any
) -> None:
    class Order(mongoz.Document):
        part: Part
        parts: list[Part] = []  # noqa: RUF012 - pydantic copies it

        @computed_field
        @property
        def total(self) -> int:
            return self.part.count

        Meta = meta("orders")

    class Checked(Order):
        @model_validator(mode="after")
        def check(self) -> Any:
            return self

        Meta = meta("checked")

    for kind in (Order, Checked):
        made = await kind.objects.create(part={"count": 1}, parts=[{"count": 2}])
        dumps = (made.model_dump(), made.model_dump(by_alias=True), made.model_dump(mode="json"))
        assert [dump["total"] for dump in dumps] == [1, 1, 1]
        copies = [kind.model_validate(dump) for dump in dumps]
        copies += [kind(**dumps[0]), kind.model_validate_json(made.model_dump_json(by_alias=True))]
        for copy in copies:
            assert copy == made
            assert await copy.save() == made
        await made.update(part=made.part.model_dump(), parts=[part.model_dump() for part in made.parts])
        collection = foreign[kind.meta.collection.name]
        assert collection.find_one() == {"_id": made.id, "part": {"count": 1}, "parts": [{"count": 2}]}


async def test_a_stored_key_named_like_a_computed_field_is_kept(meta: Any, foreign: Any) -> None:
    class Order(mongoz.Document):
        count: int

        @computed_field
        @property
        def total(self) -> int:
            return self.count

        Meta = meta("orders")

    foreign.orders.insert_one({"count": 1, "total": 7})
    found = await Order.objects.get()
    found.count = 2
    await found.save()
    assert foreign.orders.find_one() == {"_id": found.id, "count": 2, "total": 7}
    assert found.total == 2


# -- Defaults ----------------------------------------------------------------------------------------


async def test_a_factory_that_uses_other_fields_fills_partial_rows(meta: Any, foreign: Any) -> None:
    class Box(mongoz.Document):
        width: int
        height: int = mongoz.Integer(default_factory=lambda data: data["width"] + 1)
        Meta = meta("boxes")

    foreign.boxes.insert_one({"width": 2})
    assert (await Box.objects.get()).height == 3
    assert (await Box.objects.only("height", "width").get()).height == 3
    found = await Box.objects.only("height").get()
    with pytest.raises(AttributeError, match="height was not loaded"):
        print(found.height)


async def test_a_failing_factory_is_an_error_in_partial_rows_too(meta: Any, foreign: Any) -> None:
    class Box(mongoz.Document):
        label: str = Field(default_factory=lambda: {}["missing"])  # type: ignore[misc]
        Meta = meta("boxes")

    foreign.boxes.insert_one({})
    with pytest.raises(KeyError, match="missing"):
        await Box.objects.only("label").get()


@pytest.mark.parametrize("config", [{"validate_default": True}, {}], ids=["class", "fields"])
async def test_validated_defaults_allow_partial_updates_and_rows(config: Any, meta: Any, foreign: Any) -> None:
    class Box(mongoz.Document):
        model_config = ConfigDict(**config)
        width: int = Field(default="5", validate_default=True)  # type: ignore[assignment]
        label: str = mongoz.String(default="a", validate_default=True)
        Meta = meta("boxes")

    made = await Box.objects.create()
    await Box.objects.update(label="b")
    await made.update(label="c")
    foreign.boxes.update_one({}, {"$unset": {"width": 1}})
    found = await Box.objects.only("width").get()
    assert (found.width, made.width) == (5, 5)
    with pytest.raises(AttributeError, match="label was not loaded"):
        print(found.label)


# -- Frozen models, serializers, classes made by calls -----------------------------------------------


async def test_documents_that_are_frozen_or_have_frozen_fields_or_parts_can_be_written(meta: Any) -> None:
    class Size(BaseModel):
        model_config = ConfigDict(frozen=True)
        width: int

    class Plan(mongoz.Document):
        code: str = Field(frozen=True)
        size: Size
        count: int = 0
        Meta = meta("plans")

    class Fixed(mongoz.Document):
        model_config = ConfigDict(frozen=True)
        code: str
        Meta = meta("fixed")

    made = await Plan.objects.create(code="a", size={"width": 1})
    made.count = 2
    await made.save()
    await made.update(**{"size.width": 3})
    assert await made.refresh() == await Plan.objects.get(code="a")
    assert (made.count, made.size.width) == (2, 3)
    with pytest.raises(ValidationError, match="frozen"):
        made.code = "b"
    fixed = await Fixed(code="a").create()
    assert fixed.id is not None
    assert hash(fixed) == hash(await Fixed.objects.get())
    await Fixed.objects.update(code="b")
    assert (await fixed.refresh()).code == "b"
    assert await fixed.delete() == 1


@pytest.mark.parametrize(
    ("config", "new", "expected"),
    [
        ({"strict": True}, {"count": "5"}, "valid integer"),
        ({"str_max_length": 3}, {"name": "long"}, "at most 3 characters"),
        ({"allow_inf_nan": False}, {"size": math.inf}, "finite number"),
        ({"str_strip_whitespace": True}, {"name": " a "}, {"name": "a"}),
        ({"str_to_upper": True}, {"names": ["a"]}, {"names": ["A"]}),
    ],
    ids=lambda one: next(iter(one)) if isinstance(one, dict) else "",
)
async def test_updates_follow_the_config_of_the_class(
    config: Any, new: dict[str, Any], expected: Any, meta: Any, foreign: Any
) -> None:
    class Thing(mongoz.Document):
        model_config = ConfigDict(**config)
        count: int = 1
        size: float = 1.0
        name: str = ""
        names: list[str] = Field(default_factory=list)
        Meta = meta("things")

    thing = await Thing().create()
    before, row = thing.model_copy(), foreign.things.find_one()
    if isinstance(expected, str):
        with pytest.raises(ValidationError, match=expected):
            await thing.update(**new)
        assert (thing, foreign.things.find_one()) == (before, row)
    else:
        await thing.update(**new)
        assert foreign.things.find_one() == row | expected
        assert await Thing.objects.get() == thing


async def test_a_list_changed_in_place_follows_the_config_of_the_class(meta: Any, foreign: Any) -> None:
    class Thing(mongoz.Document):
        model_config = ConfigDict(str_max_length=3)
        names: list[str] = Field(default_factory=list)
        Meta = meta("things")

    thing = await Thing().create()
    thing.names.append("long")
    with pytest.raises(ValidationError, match="at most 3 characters"):
        await thing.save()
    assert foreign.things.find_one() == {"_id": thing.id, "names": []}


async def test_a_save_writes_no_field_that_only_the_config_of_the_class_changes(meta: Any, foreign: Any) -> None:
    class Thing(mongoz.Document):
        model_config = ConfigDict(str_strip_whitespace=True)
        name: str
        count: int = 0
        Meta = meta("things")

    foreign.things.insert_one({"name": " a ", "count": 0})
    thing = await Thing.objects.get()
    foreign.things.update_one({}, {"$set": {"name": "b"}})
    thing.count = 1
    await thing.save()
    assert thing.name == "a"
    assert foreign.things.find_one() == {"_id": thing.id, "name": "b", "count": 1}


async def test_an_updated_instance_has_what_its_validators_return(meta: Any, foreign: Any) -> None:
    class Thing(mongoz.Document):
        sizes: Annotated[list[int], AfterValidator(as_tuple)]
        kind: Annotated[str, AfterValidator(as_color)]
        Meta = meta("things")

    thing = await Thing(sizes=[1], kind="red").create()
    await thing.update(sizes=[2, 1], kind="blue")
    assert (thing.sizes, thing.kind) == ((2, 1), Color.BLUE)  # type: ignore[comparison-overlap]
    assert type(thing.kind) is Color
    assert foreign.things.find_one() == {"_id": thing.id, "sizes": [2, 1], "kind": "blue"}
    assert await Thing.objects.get() == thing


async def test_an_update_changes_only_its_fields_although_the_class_has_its_own_setattr(
    meta: Any, foreign: Any
) -> None:
    class Page(mongoz.Document):
        title: str = ""
        slug: str = ""
        hits: int = 0
        _titles: tuple[str, ...] = ()
        Meta = meta("pages")

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name == "title":
                super().__setattr__("slug", value.lower())
                super().__setattr__("_titles", (*self._titles, value))

    page = await Page(title="A", slug="a").create()
    await page.update(title="B")
    assert (page.title, page.slug) == ("B", "a")
    assert foreign.pages.find_one() == {"_id": page.id, "title": "B", "slug": "a", "hits": 0}
    with pytest.raises(ValidationError, match="valid integer"):
        await page.update(title="C", hits="many")
    assert (page.title, page.slug, page._titles) == ("B", "a", ())


async def test_serializers_do_not_change_what_is_stored(meta: Any, foreign: Any) -> None:
    class Entry(mongoz.Document):
        at: datetime.datetime
        count: int

        @field_serializer("at")
        def year(self, at: datetime.datetime) -> int:
            return at.year

        Meta = meta("entries")

    class Hidden(Entry):
        @model_serializer
        def nothing(self) -> dict[str, Any]:
            return {}

        Meta = meta("hidden")

    for kind in (Entry, Hidden):
        made = await kind.objects.create(at=datetime.datetime(2020, 1, 1), count=1)
        await made.update(count=2)
        made.count = 3
        await made.save()
        row = foreign[kind.meta.collection.name].find_one()
        assert row == {"_id": made.id, "at": datetime.datetime(2020, 1, 1), "count": 3}
        assert await kind.objects.get() == made


async def test_a_class_made_by_create_model_is_a_document(meta: Any) -> None:
    class Base(mongoz.Document):
        name: str
        Meta = meta("made")

    Made = create_model("Made", __base__=Base, count=(int, 1), day=(datetime.date | None, None))
    made = await Made.objects.create(name="a", day=DAY)
    assert await Made.query(Made.day == DAY, Made.count == 1).get() == made
