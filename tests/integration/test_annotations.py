"""Values of every pydantic annotation are unchanged after a round trip, or the class is refused."""

# ruff: noqa: E501, UP007, UP045 - tables with all common spellings of annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import ipaddress
import pathlib
import re
import threading
import typing
import uuid
import zoneinfo
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, Optional, TypeVar, Union
from unittest import mock

import bson
import pydantic
import pytest
from pydantic import BaseModel, ConfigDict, Field
from pydantic.dataclasses import dataclass as pydantic_dataclass
from typing_extensions import TypeAliasType, TypedDict

import mongoz
from mongoz import FieldDefinitionError, Registry, U
from mongoz.core.signals import post_save, post_update, pre_save, pre_update
from mongoz.persistence.rows.validation import validated_row

D = decimal.Decimal
DAY = datetime.date(2024, 2, 29)
NOON = datetime.datetime(2024, 2, 29, 12, 0, 0, 123000)
UTC_NOON = NOON.replace(tzinfo=datetime.UTC)
KEY = uuid.UUID("12345678-1234-5678-1234-567812345678")
OID = bson.ObjectId()
T = TypeVar("T")


class Plain(enum.Enum):
    RED = "red"
    ONE = 1


class Text(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


class Number(enum.IntEnum):
    ONE = 1
    TWO = 2


class Flags(enum.Flag):
    A = 1
    B = 2


class Part(mongoz.EmbeddedDocument):
    price: decimal.Decimal
    where: pathlib.Path | None = None


class Model(BaseModel):
    price: decimal.Decimal
    took: datetime.timedelta = datetime.timedelta(0)
    tags: set[str] = set()
    children: "list[Model]" = []


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    day: datetime.date
    tags: set[int]
    key: uuid.UUID


class Box(BaseModel, Generic[T]):
    inside: T


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: decimal.Decimal


class Dog(BaseModel):
    kind: Literal["dog"]
    age: int


@dataclasses.dataclass
class Point:
    x: decimal.Decimal
    y: list[datetime.timedelta] = dataclasses.field(default_factory=list)


@pydantic_dataclass
class Aliased:
    size: Annotated[int, Field(alias="Size")]


class Pair(NamedTuple):
    a: int
    b: decimal.Decimal


class Typed(TypedDict):
    a: decimal.Decimal
    b: datetime.timedelta


Miles = NewType("Miles", decimal.Decimal)
Prices = TypeAliasType("Prices", list[decimal.Decimal])


class Kept(str):
    """A string class of an application."""


KEPT: list[tuple[Any, Any, Any]] = [
    # annotation, a value, another value
    (int, 3, -(2**62)), (float, 1.5, float("inf")), (str, "a\n\0", ""), (bool, True, False), (bytes, b"\0\xff", b""),
    (complex, 1 + 2j, 0j), (fractions.Fraction, fractions.Fraction(1, 3), fractions.Fraction(2)),
    (D, D("1.50"), D("-9e30")), (Optional[D], D("0.1"), None), (D | None, None, D("1")), (list[D], [D("1.0")], []),
    (dict[str, D], {"a": D("1")}, {}), (Miles, D("1"), D("2")), (Prices, [D("1")], [D("2"), D("3")]),
    (Annotated[D, Field(gt=0)], D("1"), D("2")), (pydantic.condecimal(max_digits=5), D("1.25"), D("3")),
    (D | int, D("1.5"), 3), (D | float, 1.5, D("2.5")), (D | str, "1.5", D("2.5")), (tuple[D, ...], (D("1"),), ()),
    (datetime.date, DAY, datetime.date.min), (datetime.datetime, NOON, datetime.datetime(1, 1, 1)),
    (datetime.time, datetime.time(1, 2, 3, 4), datetime.time(0, 0, tzinfo=datetime.UTC)),
    (datetime.timedelta, datetime.timedelta(days=-1, microseconds=7), datetime.timedelta(hours=36)),
    (list[datetime.timedelta | None], [None, datetime.timedelta(1)], []),
    (pydantic.AwareDatetime, UTC_NOON, UTC_NOON - datetime.timedelta(1)), (pydantic.NaiveDatetime, NOON, NOON.min),
    (pydantic.PastDate, DAY, datetime.date.min), (pydantic.PastDatetime, NOON, NOON.min),
    (uuid.UUID, KEY, uuid.UUID(int=0)), (pydantic.UUID4, uuid.uuid4(), uuid.uuid4()), (set[uuid.UUID], {KEY}, set()),
    (pathlib.Path, pathlib.Path("/a/b"), pathlib.Path()), (pathlib.PurePosixPath, pathlib.PurePosixPath("a"), pathlib.PurePosixPath("/")),
    (list[pathlib.Path], [pathlib.Path("x")], []), (Optional[pathlib.Path], None, pathlib.Path("y")),
    (ipaddress.IPv4Address, ipaddress.IPv4Address("127.0.0.1"), ipaddress.IPv4Address("10.0.0.1")),
    (ipaddress.IPv6Network, ipaddress.IPv6Network("2001:db8::/32"), ipaddress.IPv6Network("::/0")),
    (ipaddress.IPv4Interface, ipaddress.IPv4Interface("10.0.0.1/8"), ipaddress.IPv4Interface("10.0.0.2/8")),
    (pydantic.IPvAnyAddress, ipaddress.ip_address("::1"), ipaddress.ip_address("10.0.0.1")),
    (pydantic.AnyUrl, pydantic.AnyUrl("https://a.b/c?d=1"), pydantic.AnyUrl("ftp://x/")),
    (pydantic.HttpUrl, pydantic.HttpUrl("https://a.b"), pydantic.HttpUrl("http://c.d/e")),
    (pydantic.PostgresDsn, pydantic.PostgresDsn("postgres://u:p@h:1/d"), pydantic.PostgresDsn("postgres://h/d")),
    (pydantic.MongoDsn, pydantic.MongoDsn("mongodb://a:1,b:2/d"), pydantic.MongoDsn("mongodb://a")),
    (list[pydantic.HttpUrl], [pydantic.HttpUrl("https://a.b")], []),
    (pydantic.SecretStr, pydantic.SecretStr("s"), pydantic.SecretStr("")), (pydantic.SecretBytes, pydantic.SecretBytes(b"s"), pydantic.SecretBytes(b"")),
    (pydantic.Secret[int], pydantic.Secret[int](3), pydantic.Secret[int](4)),
    (pydantic.EmailStr, "a@example.org", "b@example.org"),
    (pydantic.NameEmail, pydantic.NameEmail("Ada", "a@example.org"), pydantic.NameEmail("B", "b@example.org")),
    (zoneinfo.ZoneInfo, zoneinfo.ZoneInfo("Europe/Berlin"), zoneinfo.ZoneInfo("UTC")), (pydantic.ByteSize, pydantic.ByteSize(1024), pydantic.ByteSize(5)),
    (re.Pattern, re.compile("a.c", re.I | re.M), re.compile("")), (re.Pattern[str], re.compile("x"), re.compile("y", re.S)),
    (Optional[re.Pattern], None, re.compile("b$")), (list[re.Pattern[str]], [re.compile("x")], []),
    (Plain, Plain.RED, Plain.ONE), (Text, Text.RED, Text.BLUE), (Number, Number.ONE, Number.TWO), (Flags, Flags.A | Flags.B, Flags.A),
    (Optional[Plain], None, Plain.RED), (list[Number], [Number.TWO], []), (Text | str, "green", "x"), (set[Plain], {Plain.RED, Plain.ONE}, set()),
    (Literal["a", 1, True, None], "a", None), (Literal[Text.RED], Text.RED, Text.RED), (Literal[Plain.RED, Plain.ONE], Plain.ONE, Plain.RED),
    (set[int], {3, 1, 2}, set()), (frozenset[str], frozenset("abc"), frozenset()), (set[D], {D("1.5"), D("2")}, set()),
    (tuple[int, str], (1, "a"), (2, "b")), (tuple[D, datetime.timedelta], (D("1"), datetime.timedelta(1)), (D("2"), datetime.timedelta(2))),
    (collections.deque[int], collections.deque([1, 2]), collections.deque()), (Sequence[D], [D("1")], []),
    (list[set[tuple[int, D]]], [{(1, D("2"))}], []), (Union[list[int], None], [1], None),
    (dict[int, str], {1: "a", -2: "b"}, {}), (dict[uuid.UUID, D], {KEY: D("1")}, {}), (dict[Plain, int], {Plain.RED: 1}, {}),
    (dict[Number, int], {Number.ONE: 1}, {}), (dict[Text, list[D]], {Text.RED: [D("1")]}, {}), (dict[datetime.date, int], {DAY: 1}, {}),
    (dict[datetime.datetime, int], {NOON: 1}, {}), (dict[bool, int], {True: 1, False: 0}, {}), (dict[float, int], {1.5: 1}, {}),
    (dict[D, D], {D("1.50"): D("1")}, {}), (dict[pathlib.Path, int], {pathlib.Path("a.b/c"): 1}, {}),
    (dict[ipaddress.IPv4Address, int], {ipaddress.IPv4Address("1.2.3.4"): 1}, {}), (dict[datetime.timedelta, int], {datetime.timedelta(1): 1}, {}),
    (Mapping[str, D], {"a": D("1")}, {}), (collections.OrderedDict[str, int], collections.OrderedDict(b=1, a=2), collections.OrderedDict()),
    (collections.defaultdict[str, list[D]], collections.defaultdict(list, {"a": [D("1")]}), collections.defaultdict(list)),
    (collections.Counter[str], collections.Counter("aab"), collections.Counter()), (dict[str, dict[int, set[str]]], {"a": {1: {"x"}}}, {}),
    (Part, Part(price=D("1"), where=pathlib.Path("x")), Part(price=D("2"))), (list[Part], [Part(price=D("1"))], []), (Part | None, None, Part(price=D("3"))),
    (Model, Model(price=D("1"), tags={"b", "a"}, children=[Model(price=D("2"))]), Model(price=D("3"))), (dict[int, Model], {1: Model(price=D("1"))}, {}),
    (Strict, Strict(day=DAY, tags={1}, key=KEY), Strict(day=DAY, tags=set(), key=KEY)), (Box[D], Box[D](inside=D("1")), Box[D](inside=D("2"))),
    (Box[set[datetime.timedelta]], Box[set[datetime.timedelta]](inside={datetime.timedelta(1)}), Box[set[datetime.timedelta]](inside=set())),
    (Cat | Dog, Cat(kind="cat", lives=D("9")), Dog(kind="dog", age=1)),
    (Annotated[Cat | Dog, Field(discriminator="kind")], Dog(kind="dog", age=1), Cat(kind="cat", lives=D("1"))),
    (Point, Point(D("1"), [datetime.timedelta(1)]), Point(D("2"))), (list[Point], [Point(D("1"))], []), (Aliased, Aliased(Size=1), Aliased(Size=2)),
    (Pair, Pair(1, D("2")), Pair(3, D("4"))), (Typed, {"a": D("1"), "b": datetime.timedelta(1)}, {"a": D("2"), "b": datetime.timedelta(2)}),
    (pydantic.Json, {"a": [1]}, "x"), (pydantic.Json[list[D]], [D("1")], []), (pydantic.StrictInt, 1, 2), (pydantic.StrictStr, "a", "b"),
    (Annotated[datetime.date, pydantic.Strict()], DAY, datetime.date.min), (Annotated[set[int], pydantic.Strict()], {1}, set()),
    (Annotated[D, pydantic.Strict()], D("1"), D("2")), (pydantic.conset(int, max_length=3), {1}, set()), (pydantic.conlist(D), [D("1")], []),
    (bson.ObjectId, OID, bson.ObjectId()), (mongoz.ObjectId, OID, bson.ObjectId()), (bson.Int64, bson.Int64(3), bson.Int64(4)),
    (bson.Decimal128, bson.Decimal128("1.0"), bson.Decimal128("2")), (bson.Binary, bson.Binary(b"x"), bson.Binary(b"x", 5)),
    (bson.Regex, bson.Regex("a", "i"), bson.Regex("b")), (bson.Timestamp, bson.Timestamp(1, 2), bson.Timestamp(3, 4)), (bson.Code, bson.Code("f"), bson.Code("g")),
    (Any, {"a": [1, "x", None]}, 3), (object, "x", 4), (dict, {"a": 1}, {}), (list, [1, "a"], []), (dict[str, Any], {"a": [1]}, {}),
]  # fmt: skip


def document(registry: Registry, database: str, annotation: Any, **more: Any) -> Any:
    """A document class with a field `value` of this type, and a number `n`."""
    here = registry.get_database(database)
    namespace = {"__module__": __name__, "__annotations__": {"value": annotation, "n": int}, "n": 0, **more}
    namespace["Meta"] = type("Meta", (), {"registry": registry, "database": here, "collection": "things"})
    return type(mongoz.Document)("Thing", (mongoz.Document,), namespace)


@pytest.mark.parametrize("heard", [pytest.param(False, marks=pytest.mark.slow), True], ids=["silent", "heard"])
@pytest.mark.parametrize(
    ("annotation", "value", "other"), KEPT, ids=[f"{number}-{str(row[0])[:40]}" for number, row in enumerate(KEPT)]
)
async def test_values_are_unchanged_after_a_round_trip(
    registry: Registry, database: str, foreign: Any, annotation: Any, value: Any, other: Any, heard: bool
) -> None:
    Thing = document(registry, database, annotation)
    previous: list[Any] = []

    async def hear(sender: Any, instance: Any, **kwargs: Any) -> None:
        previous.append(kwargs.get("previous"))

    if heard:
        for signal in (pre_save, post_save, pre_update, post_update):
            signal(Thing)(hear)
    takes_text = "Json" in str(annotation)
    first = Thing.model_construct(value=value, n=0) if takes_text else Thing(value=value)
    await first.create()

    def same(found: Any, wanted: Any) -> bool:
        return bool(found == wanted) and type(found) is type(wanted)

    loaded = await Thing.objects.get()
    assert same(loaded.value, value), loaded.value
    row = foreign.things.find_one()
    loaded.n = 1
    await loaded.save()
    assert foreign.things.find_one() == row | {"n": 1}  # an untouched value is unchanged
    assert same((await loaded.refresh()).value, value)
    (shown,) = await Thing.objects.values(["value"])
    if not isinstance(
        value, BaseModel | list | dict | tuple | set | frozenset | collections.deque | Point | Aliased
    ):
        assert same(shown["value"], value)  # the driver returns containers as lists and dicts
    if not takes_text:
        loaded.value = other
        await loaded.save()
        assert same((await Thing.objects.get()).value, other)
        await loaded.update(value=value)
        assert same((await Thing.objects.get()).value, value)
        await Thing.objects.filter(n=1).update(value=other)
        assert same((await Thing.objects.only("value").get()).value, other)
        await Thing.create_many([Thing(value=value, n=2)])
        assert same((await Thing.objects.get(n=2)).value, value)
    if not (isinstance(value, float) or annotation in (Any, object) or takes_text):
        assert await Thing.objects.filter(value=value).count() >= 1
        assert await Thing.objects.filter(value__in=[value]).count() >= 1
    for told in previous:
        assert told is None or same(told.value, value) or same(told.value, other)


REFUSED: list[tuple[Any, str]] = [
    (threading.Lock().__class__, "no type for lock"), (Callable[[], int], "no data"), (type[int], "no data"), (Iterable[int], "no data"),
    (Iterator[int], "no data"), (typing.Generator[int, None, None], "no data"), (pydantic.ImportString, "no data"),
    (pydantic.Base64Bytes, "decoded again"), (pydantic.Base64Str, "decoded again"), (re.Pattern[bytes], "patterns of bytes"), (bytearray, "no type for bytearray"),
    (datetime.date | datetime.datetime, "date and of datetime|datetime and of date"), (str | pathlib.Path, "stored as string"),
    (Optional[pathlib.Path | str], "stored as string"), (int | datetime.timedelta, "stored as int"), (list[int] | set[int], "stored as array"),
    (str | pydantic.SecretStr, "stored as string"), (pydantic.HttpUrl | str, "stored as string"), (datetime.time | str, "stored as string"),
    (Plain | str, "stored as string"), (D | bson.Decimal128, "stored as decimal"), (Model | dict[str, int], "stored as object"),
    (dict[tuple[int, int], int], "list of pairs"), (dict[int | str, int], "told apart"), (dict[None, int], "list of pairs"), (dict[bytes, int], "list of pairs"),
    (list[dict[str, threading.Thread]], "no type for Thread"), (tuple[int, Callable[..., Any]], "no data"),
    (enum.Enum("Days", {"ONE": datetime.date(2024, 1, 1)}), "Days.ONE has the value"), (enum.Enum("Pairs", {"ONE": (1, 2)}), "Pairs.ONE"),
    (Literal[b"x"] | Callable[[], int], "no data"), (memoryview, "no type for memoryview"), (range, "no type for range"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("annotation", "says"), REFUSED, ids=[f"{number}-{str(row[0])[:40]}" for number, row in enumerate(REFUSED)]
)
@pytest.mark.parametrize("base", [mongoz.Document, mongoz.EmbeddedDocument])
def test_a_class_with_an_unstorable_annotation_is_refused(base: Any, annotation: Any, says: str) -> None:
    with pytest.raises(FieldDefinitionError, match=rf"^Thing\.value can't be stored: .*({says})") as caught:
        type(base)("Thing", (base,), {"__module__": __name__, "__annotations__": {"value": annotation}})
    assert re.search(r"(Use|Have|Give) ", str(caught.value))


async def test_attributes_that_are_not_fields_are_never_stored(
    registry: Registry, database: str, foreign: Any
) -> None:
    here = registry.get_database(database)
    calls: list[str] = []

    class Mixin:
        @functools.cached_property
        def mixed(self) -> str:
            return "mixed"

    class Thing(Mixin, mongoz.Document):
        name: str = mongoz.String()
        part: Any = mongoz.Embed(Part, null=True)
        _secret: threading.Lock = pydantic.PrivateAttr(default_factory=threading.Lock)

        @functools.cached_property
        def shouted(self) -> str:
            calls.append(self.name)
            return self.name.upper()

        @property
        def quiet(self) -> str:
            return self.name.lower()

        @pydantic.computed_field
        def length(self) -> int:
            return len(self.name)

        class Meta:
            registry = here.deployment
            database = here

    def read(thing: Any) -> None:
        assert (thing.mixed, thing.quiet, thing.length) == ("mixed", thing.name.lower(), len(thing.name))
        assert thing.shouted
        assert thing._secret is not None

    expected = {"_id", "name", "part"}
    thing = Thing(name="a")
    read(thing)
    thing.name = "b"
    await thing.create()
    assert foreign.things.find_one().keys() == expected
    read(thing)
    thing.name = "c"
    thing.undeclared = 1
    read(thing)
    await thing.save()
    await thing.update(name="d")
    copied = thing.model_copy()
    copied.name = "e"
    read(copied)
    await copied.save()
    loaded = await Thing.objects.get()
    read(loaded)
    await loaded.update(name="f")
    assert foreign.things.find_one().keys() == expected | {"undeclared"}
    assert foreign.things.find_one()["name"] == "f"
    assert thing.shouted == "A"  # the cached value stays
    assert "shouted" not in thing.model_dump() | loaded.model_dump()
    assert calls[0] == "a"


async def test_an_undeclared_key_named_like_a_cached_property_is_kept(
    registry: Registry, database: str, foreign: Any
) -> None:
    here = registry.get_database(database)

    class Thing(mongoz.Document):
        name: str = mongoz.String()

        @functools.cached_property
        def shouted(self) -> str:
            return self.name.upper()

        class Meta:
            registry = here.deployment
            database = here

    foreign.things.insert_one({"name": "a", "shouted": "theirs"})
    thing = await Thing.objects.get()
    assert thing.shouted == "A"
    thing.name = "b"
    await thing.save()
    assert foreign.things.find_one({}, {"_id": 0}) == {"name": "b", "shouted": "theirs"}


@pytest.mark.parametrize(
    "options",
    [
        {"alias": "v"}, {"validation_alias": "v"}, {"serialization_alias": "v"},
        {"validation_alias": "v", "serialization_alias": "w"}, {"validation_alias": pydantic.AliasChoices("v", "w")},
        {"exclude": True}, {"frozen": True}, {"strict": True},
    ],
    ids=str,
)  # fmt: skip
async def test_values_of_fields_with_pydantic_aliases_and_options_are_kept(
    registry: Registry, database: str, foreign: Any, options: Any
) -> None:
    Thing = document(registry, database, int, value=Field(**options))
    made = await Thing.model_validate({"v": 3, "value": 3}).create()
    loaded = await Thing.objects.get()
    assert loaded.value == 3
    assert await Thing.objects.filter(value=3).count() == 1
    assert len(foreign.things.find_one().keys() - {"_id", "n", "value", "v"}) == 0
    if not options.get("frozen"):
        await made.update(value=4)
        assert (await Thing.objects.get()).value == 4


async def test_a_future_date_is_readable_after_that_date(registry: Registry, database: str, foreign: Any) -> None:
    Thing = document(registry, database, pydantic.FutureDatetime | None)
    with pytest.raises(pydantic.ValidationError):
        Thing(value=NOON)
    soon = datetime.datetime(2999, 1, 1)
    thing = await Thing.objects.create(value=soon)
    foreign.things.update_one({}, {"$set": {"value": NOON}})
    loaded = await Thing.objects.get(id=thing.id)
    assert loaded.value == NOON
    await loaded.update(n=3)


async def test_undeclared_values_without_a_bson_type_are_refused(registry: Registry, database: str) -> None:
    Thing = document(registry, database, dict[str, Any])
    for value in (pathlib.Path("x"), datetime.timedelta(1), ipaddress.ip_address("::1"), {1: "a"}):
        with pytest.raises(bson.errors.InvalidDocument) as caught:
            await Thing(value={"in": value}).create()
        assert "Thing.value" in caught.value.__notes__[0]
    assert await Thing.objects.count() == 0


@pytest.mark.parametrize("listening", [False, True])
@pytest.mark.parametrize("value", [pathlib.Path("x"), datetime.timedelta(1)])
async def test_updates_refuse_undeclared_values_without_a_bson_type(
    registry: Registry, database: str, value: Any, listening: bool
) -> None:
    Thing = document(registry, database, Any)
    Listed = document(registry, database, list[Any])
    if listening:
        for one in (Thing, Listed):
            one.signals.pre_update.connect(mock.AsyncMock())
    thing = await Thing.objects.create(value=1)
    for update in (
        thing.update(value=value),
        Thing.objects.update(value=value),
        Thing.objects.update_count(value={"in": [value]}),
        thing.update(U.max(value=value)),
    ):
        with pytest.raises(bson.errors.InvalidDocument):
            await update
    assert (await Thing.objects.get()).value == 1
    await Thing.objects.update(value=[])
    for operation in (U.push(value=value), U.add_to_set(value=value), U.pull(value=value)):
        with pytest.raises(bson.errors.InvalidDocument):
            await Listed.objects.update(operation)
    assert (await Listed.objects.get()).value == []


def test_a_timedelta_without_an_exact_number_of_seconds_is_refused(registry: Registry, database: str) -> None:
    Thing = document(registry, database, datetime.timedelta)
    with pytest.raises(ValueError, match="too long to be stored as a number of seconds"):
        validated_row(Thing(value=datetime.timedelta.max))
