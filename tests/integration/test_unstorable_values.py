"""Values without a BSON type, or out of the range of the BSON type: the error names the field and the value."""

import decimal
from typing import Any

import pytest

import mongoz
from mongoz import Registry

TOO_LARGE = decimal.Decimal("1E+7000")


class Part(mongoz.EmbeddedDocument):
    price: decimal.Decimal = decimal.Decimal(1)


@pytest.fixture
def Thing(registry: Registry, database: str) -> Any:
    here = registry.get_database(database)

    class Thing(mongoz.Document):
        price: decimal.Decimal = decimal.Decimal(1)
        part: Part = mongoz.Embed(Part, default=Part)
        data: Any = mongoz.Object(null=True)

        class Meta:
            registry = here.deployment
            database = here

    return Thing


VALUES: dict[str, tuple[dict[str, Any], type[Exception], list[str]]] = {
    "a decimal": ({"price": TOO_LARGE}, ArithmeticError, ["Thing.price is Decimal('1E+7000')"]),
    "an embedded decimal": (
        {"part": Part(price=TOO_LARGE)},
        ArithmeticError,
        ["Part.price is Decimal('1E+7000')", "Thing.part is"],
    ),
    "a surrogate": ({"data": {"text": "\ud800"}}, UnicodeError, ["Thing.data is {'text': '\\ud800'}"]),
    "a surrogate in an undeclared value": ({"other": "\ud800"}, UnicodeError, ["Thing.other is '\\ud800'"]),
    "an integer": ({"data": {"n": 2**70}}, OverflowError, [f"Thing.data is {{'n': {2**70}}}"]),
}


CALLS = [(way, values) for way in ("create", "save", "create_many", "update") for values in VALUES]
CALLS.remove(("update", "a surrogate in an undeclared value"))  # an update accepts only declared fields


async def write(there: Any, way: str, given: dict[str, Any]) -> None:
    if way == "create":
        await type(there)(**given).create()
    elif way == "create_many":
        await type(there).create_many([type(there)(), type(there)(**given)])
    elif way == "update":
        await there.update(**given)
    else:
        for name, value in given.items():
            setattr(there, name, value)
        await there.save()


@pytest.mark.parametrize(("way", "values"), CALLS)
async def test_the_error_names_field_and_value(Thing: Any, foreign: Any, values: str, way: str) -> None:
    given, kind, says = VALUES[values]
    there = await Thing.objects.create()
    before = foreign.things.find_one()
    with pytest.raises(kind) as caught:
        await write(there, way, given)
    for text in says:
        assert sum(text in note for note in caught.value.__notes__) == 1
    assert list(foreign.things.find()) == [before]
