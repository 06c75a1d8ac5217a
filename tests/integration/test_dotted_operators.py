"""Operations of `U` at dotted paths are validated like operations of whole fields."""

import dataclasses
import enum
from typing import Annotated, Any, Literal

import pytest
from pydantic import AfterValidator, Field, ValidationError, field_validator

import mongoz
from mongoz import Registry, U
from mongoz.exceptions import InvalidKeyError, OperatorInvalid


class Level(enum.IntEnum):
    low = 1
    high = 2


@dataclasses.dataclass
class Size:
    width: int = 1


class Part(mongoz.EmbeddedDocument):
    name: str = mongoz.String(default="")
    q: int = mongoz.Integer(default=0, maximum=10)
    price: float = mongoz.Double(default=1.0)
    on: bool = mongoz.Boolean(default=False)
    tags: list[str] = mongoz.Array(str, default=list)
    level: Level = Level.low
    mode: Literal[1, 2] = 1
    even: int = 0
    count: int = mongoz.Integer(default=0, alias="n")

    @field_validator("even")
    @classmethod
    def _is_even(cls, value: int) -> int:
        if value % 2:
            raise ValueError(f"{value} is odd")
        return value


class Strict(mongoz.EmbeddedDocument):
    kind: str = mongoz.String()
    n: int = mongoz.Integer(default=0)


@pytest.fixture
def Thing(registry: Registry, database: str) -> Any:
    here = registry.get_database(database)

    class Thing(mongoz.Document):
        p: Part = mongoz.Embed(Part, default=Part)
        maybe: Part | None = None
        ps: list[Part] = mongoz.Array(Part, default=list)
        m: dict[str, int] = Field(default_factory=dict)
        ages: dict[int, int] = Field(default_factory=dict)
        limited: dict[str, Annotated[int, Field(le=10)]] = Field(default_factory=dict)
        numbers: list[Annotated[int, Field(le=10)]] = Field(default_factory=list)
        pair: tuple[int, str] = (1, "x")
        size: Size = Size()
        strict: Strict = mongoz.Embed(Strict, default=lambda: Strict(kind="a"))
        stricts: list[Strict] = Field(default_factory=list)
        by_name: dict[str, Strict] = Field(default_factory=dict)
        data: Any = mongoz.Object(null=True)

        class Meta:
            registry = here.deployment
            database = here

    return Thing


def filled(Thing: Any) -> Any:
    return Thing(
        maybe=Part(),
        ps=[Part()],
        m={"k": 1},
        ages={1: 1},
        limited={"k": 10},
        numbers=[10],
        data={"n": 1, "list": []},
    )


REFUSED: dict[str, tuple[Any, Any]] = {
    "max of a text": (U.max("p.q", "zz"), ValidationError),
    "min of a text": (U.min("p.q", "zz"), ValidationError),
    "max beyond a bound": (U.max("p.q", 11), ValidationError),
    "max of None": (U.max("p.q", None), ValidationError),
    "max in an optional document": (U.max("maybe.q", "zz"), ValidationError),
    "max in a list": (U.max("ps.0.q", "zz"), ValidationError),
    "max of an item": (U.max("numbers.0", "zz"), ValidationError),
    "max of a key": (U.max("m.k", "zz"), ValidationError),
    "max of a new key": (U.max("m.other", "zz"), ValidationError),
    "max by an alias": (U.max("p.n", "zz"), ValidationError),
    "max in a dataclass": (U.max("size.width", "zz"), ValidationError),
    "max in a tuple": (U.max("pair.0", "zz"), ValidationError),
    "max that a validator refuses": (U.max("p.even", 3), ValidationError),
    "inc of a text": (U.inc("p.name"), OperatorInvalid),
    "inc of a flag": (U.inc("p.on"), OperatorInvalid),
    "inc by a fraction": (U.inc("p.q", 0.5), OperatorInvalid),
    "inc of a key by a fraction": (U.inc("m.k", 0.5), OperatorInvalid),
    "inc in a list by a fraction": (U.inc("ps.0.q", 0.5), OperatorInvalid),
    "inc beyond a bound": (U.inc("p.q", 11), ValidationError),
    "inc beyond a bound in a list": (U.inc("ps.0.q", 11), ValidationError),
    "inc beyond a bound of a key": (U.inc("limited.k", 1), ValidationError),
    "inc beyond a bound of an item": (U.inc("numbers.0", 1), ValidationError),
    "inc out of an enum": (U.inc("p.level", 2), ValidationError),
    "inc out of a literal": (U.inc("p.mode", 2), ValidationError),
    "inc that a validator refuses": (U.inc("p.even"), ValidationError),
    "push of a number": (U.push("p.tags", 5), ValidationError),
    "push in a list": (U.push("ps.0.tags", 5), ValidationError),
    "add_to_set of a number": (U.add_to_set("p.tags", 5), ValidationError),
    "a key of another type": (U.inc("ages.x"), InvalidKeyError),
    "an item beyond the end of a tuple": (U.max("pair.2", 1), InvalidKeyError),
    "unset of what is required": (U.unset("strict.kind"), InvalidKeyError),
    "unset of what is required in a tuple": (U.unset("pair.0"), ValidationError),
    "unset of an item": (U.unset("numbers.0"), ValidationError),
}


@pytest.mark.parametrize("change", REFUSED)
async def test_an_invalid_operation_is_refused_and_nothing_is_written(
    Thing: Any, foreign: Any, change: str
) -> None:
    thing = await filled(Thing).create()
    before = foreign.things.find_one()
    operation, error = REFUSED[change]
    for write in (thing.update, Thing.objects.update_count, Thing.objects.limit(1).update):
        with pytest.raises(error):
            await write(operation)
        assert foreign.things.find_one() == before


UNMADE: dict[str, tuple[Any, dict[str, Any]]] = {
    "an embedded document": (U.inc("strict.n"), {"$unset": {"strict": ""}}),
    "an embedded document by max": (U.max("strict.n", 5), {"$unset": {"strict": ""}}),
    "a skipped item": (U.max("numbers.2", 5), {"$set": {"numbers": [1]}}),
    "a document in a list": (U.max("stricts.0.n", 5), {"$set": {"stricts": []}}),
    "a document under a key": (U.max("by_name.k.n", 5), {"$set": {"by_name": {}}}),
}


@pytest.mark.parametrize("change", UNMADE)
async def test_no_operator_creates_an_incomplete_document(Thing: Any, foreign: Any, change: str) -> None:
    thing = await filled(Thing).create()
    operation, foreign_change = UNMADE[change]
    foreign.things.update_one({}, foreign_change)
    before = foreign.things.find_one()
    for write in (thing.update, Thing.objects.update_count, Thing.objects.limit(1).update):
        with pytest.raises(ValidationError, match="Thing with _id"):
            await write(operation)
        assert foreign.things.find_one() == before


async def test_the_error_names_the_field(Thing: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        await Thing.objects.update(U.max("p.n", "zz"))
    assert caught.value.title == "Thing"
    assert [line["loc"] for line in caught.value.errors()] == [("p", "count")]
    with pytest.raises(ValidationError) as caught:
        await Thing.objects.update(U.push("p.tags", "a", 5))
    assert [line["loc"] for line in caught.value.errors()] == [("p", "tags", 1)]
    with pytest.raises(OperatorInvalid, match=r"Thing\.p\.q is an integer"):
        await Thing.objects.update(U.inc("p.q", 0.5))
    with pytest.raises(InvalidKeyError, match=r"Thing\.ages can't have 'x' inside of it"):
        await Thing.objects.update(U.inc("ages.x"))


TAKEN: dict[str, tuple[Any, str, Any]] = {
    "a text that is a number": (U.max("p.q", "7"), "p.q", 7),
    "a fraction": (U.inc("p.price", 0.5), "p.price", 1.5),
    "an item": (U.push("p.tags", "a", "b"), "p.tags", ["a", "b"]),
    "a key": (U.inc("m.k"), "m.k", 2),
    "a new key": (U.inc("m.other", 3), "m.other", 3),
    "a key that is a number": (U.inc("ages.7"), "ages.7", 1),
    "a document in a list": (U.inc("ps.0.q", 3), "ps.0.q", 3),
    "an optional document": (U.inc("maybe.q", 3), "maybe.q", 3),
    "an enum": (U.max("p.level", Level.high), "p.level", 2),
    "a value that a validator takes": (U.max("p.even", 4), "p.even", 4),
    "a document that is there": (U.inc("strict.n", 2), "strict.n", 2),
    "a key of a document that is there": (U.unset("strict.n"), "strict", {"kind": "a"}),
    "a further item": (U.max("numbers.1", 5), "numbers", [10, 5]),
    "a dataclass": (U.inc("size.width"), "size.width", 2),
    "anything": (U.max("data.n", 2.5), "data.n", 2.5),
    "any list": (U.push("data.list", 1, "a"), "data.list", [1, "a"]),
    "an undeclared key": (U.max("data.deep.er", "x"), "data.deep.er", "x"),
}


@pytest.mark.parametrize("change", TAKEN)
async def test_a_valid_value_is_stored_as_the_model_converts_it(Thing: Any, foreign: Any, change: str) -> None:
    operation, path, expected = TAKEN[change]
    for way in ("instance", "query"):
        await Thing.objects.delete()
        thing = await filled(Thing).create()
        await (thing.update(operation) if way == "instance" else Thing.objects.update_count(operation))
        value = foreign.things.find_one()
        for step in path.split("."):
            value = value[int(step)] if isinstance(value, list) else value[step]
        assert value == expected
        assert type(value) is type(expected)
        await Thing.objects.get()


# -- rules of the whole list ------------------------------------------------------------------------------


class Bag(mongoz.EmbeddedDocument):
    tags: list[str] = mongoz.Array(str, min_length=2, max_length=3)


def two_at_least(items: list[str]) -> list[str]:
    if len(items) < 2:
        raise ValueError("two at least")
    return items


@pytest.mark.parametrize("heard", [False, True])
@pytest.mark.parametrize("path", ["bound", "annotated", "nullable", "checked", "bag.tags"])
async def test_length_rules_apply_to_the_resulting_list(
    registry: Registry, database: str, foreign: Any, path: str, heard: bool
) -> None:
    where = registry.get_database(database)

    class Shelf(mongoz.Document):
        bound: list[str] = mongoz.Array(str, min_length=2, max_length=3)
        annotated: Annotated[list[str], Field(min_length=2, max_length=3)]
        nullable: Annotated[list[str], Field(min_length=2, max_length=3)] | None = None
        checked: Annotated[list[str], AfterValidator(two_at_least), Field(max_length=3)]
        bag: Bag

        class Meta:
            registry = where.deployment
            database = where

    async def listen(sender: Any, instance: Any, **kwargs: Any) -> None: ...

    if heard:
        Shelf.signals.post_update.connect(listen)
    two = ["a", "b"]
    shelf = await Shelf.objects.create(bound=two, annotated=two, nullable=two, checked=two, bag=Bag(tags=two))

    async def comes_to(*changes: Any) -> Any:
        foreign.shelfs.update_one({}, {"$set": {path: two}})
        for change in changes:
            await Shelf.objects.update_count(change)
        found: Any = foreign.shelfs.find_one()
        for name in path.split("."):
            found = found[name]
        return found

    assert await comes_to(U.push(path, "c")) == ["a", "b", "c"]
    assert await comes_to(U.add_to_set(path, "c")) == ["a", "b", "c"]
    assert await comes_to(U.add_to_set(path, "b", "b", "a", "a")) == two
    with pytest.raises(ValidationError):
        await comes_to(U.push(path, "c", "d"))
    with pytest.raises(ValidationError):
        await comes_to(U.pull(path, "b"))
    with pytest.raises(ValidationError):
        await comes_to(U.push(path, 3))
    assert await comes_to() == two
    await shelf.update(U.push(path, "c"))
    assert foreign.shelfs.count_documents({path: ["a", "b", "c"]}) == 1
