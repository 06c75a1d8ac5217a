"""Fields: what they accept, what they refuse, and what their factories refuse."""

import datetime
import uuid
from typing import Any

import bson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import mongoz
from mongoz.exceptions import FieldDefinitionError
from mongoz.fields.storage import stored


class Part(mongoz.EmbeddedDocument):
    name: str = mongoz.String(alias="n")
    count: int = mongoz.Integer(default=0)


def with_field(field: Any) -> Any:
    """A document with this one field, `x`."""
    namespace = {"__module__": __name__, "__qualname__": "Doc", "x": field}
    return type(mongoz.Document)("Doc", (mongoz.Document,), namespace)


def accepts(document: Any, value: Any) -> bool:
    """Whether construction and assignment accept it; they must agree, and name the field."""
    complaints = []
    for attempt in (lambda: document(x=value), lambda: setattr(document.model_construct(), "x", value)):
        try:
            attempt()
        except ValidationError as error:
            complaints.append({line["loc"][0] for line in error.errors()})
        else:
            complaints.append(set())
    assert complaints in ([set(), set()], [{"x"}, {"x"}])
    return complaints == [set(), set()]


ID = bson.ObjectId(b"i" * 12)
RULES: list[tuple[str, Any, list[Any], list[Any]]] = [
    ("String", mongoz.String(min_length=2, max_length=3), ["ab", "abc"], ["a", "abcd", 5, None]),
    ("pattern", mongoz.String(pattern="^a+$"), ["aa"], ["b"]),
    ("null", mongoz.String(null=True), ["a", None], [5]),
    ("Email", mongoz.Email(max_length=20), ["ada@example.org"], ["ada", "a@", "x" * 20 + "@example.org", None]),
    ("Integer", mongoz.Integer(minimum=0, maximum=10), [0, 10, "5", 5.0], [-1, 11, 1.5, "x", None]),
    ("zero", mongoz.Integer(maximum=0), [0, -1], [1]),
    ("multiple", mongoz.Integer(multiple_of=5), [0, 10], [7]),
    ("Double", mongoz.Double(minimum=0.5, maximum=1.5), [0.5, 1, "1.25"], [0.4, 1.6, "x"]),
    ("Boolean", mongoz.Boolean(), [True, False], [None, 5, "maybe"]),
    ("DateTime", mongoz.DateTime(), [datetime.datetime(2024, 1, 1), "2024-01-01T00:00:00"], ["x", None]),
    ("Date", mongoz.Date(), [datetime.date(2024, 1, 1), datetime.datetime(2024, 1, 1)], ["x", None]),
    ("UUID", mongoz.UUID(), [uuid.UUID(int=1), str(uuid.UUID(int=1))], ["x", None]),
    ("ObjectId", mongoz.ObjectId(), [ID, mongoz.ObjectId()], [str(ID), None, b"i" * 12]),
    ("Object", mongoz.Object(), [{}, {"a": [1]}, [1], "a string", 5], []),
    ("Array", mongoz.Array(int), [[], [1, 2]], [["x"], [None], 5, None, {}]),
    ("Array of parts", mongoz.Array(Part), [[], [{"n": "a"}, Part(name="a")]], [[{}], [5]]),
    ("Embed", mongoz.Embed(Part), [Part(name="a"), {"n": "a"}, {"name": "a", "more": 1}], [{}, 5, None]),
    ("nullable Embed", mongoz.Embed(Part, null=True), [None, {"n": "a"}], [{}]),
]


@pytest.mark.parametrize(
    ("field", "right", "wrong"), [rule[1:] for rule in RULES], ids=[rule[0] for rule in RULES]
)
def test_what_a_field_takes(field: Any, right: list[Any], wrong: list[Any]) -> None:
    document = with_field(field)
    assert [value for value in right if not accepts(document, value)] == []
    assert [value for value in wrong if accepts(document, value)] == []


def test_an_object_id_in_json_is_a_string() -> None:
    document = with_field(mongoz.ObjectId())
    assert document(x=ID).model_dump(mode="json")["x"] == str(ID)
    assert document(x=ID).model_dump()["x"] is ID
    assert document.model_json_schema()["properties"]["x"]["type"] == "string"


def test_json_schemas_tell_the_rules() -> None:
    schema = with_field(mongoz.Email(max_length=20)).model_json_schema()["properties"]["x"]
    assert {"type": "string", "format": "email", "maxLength": 20}.items() <= schema.items()


FACTORIES = {
    "String": mongoz.String,
    "Email": mongoz.Email,
    "Integer": mongoz.Integer,
    "Double": mongoz.Double,
    "DateTime": mongoz.DateTime,
    "Date": mongoz.Date,
    "UUID": mongoz.UUID,
    "ObjectId": mongoz.ObjectId,
    "Object": mongoz.Object,
    "Array": lambda **k: mongoz.Array(str, **k),
    "Embed": lambda **k: mongoz.Embed(Part, **k),
}


@pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)
def test_a_field_is_required_unless_it_is_nullable_or_has_a_default(factory: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        with_field(factory())()
    assert caught.value.errors()[0]["loc"] == ("x",)
    assert with_field(factory(null=True))().x is None
    assert with_field(factory(default=None, null=True))().x is None


@pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)
def test_shared_arguments_are_kept(factory: Any) -> None:
    document = with_field(
        factory(null=True, title="T", help_text="H", comment="C", owner="O", read_only=True, alias="y")
    )
    for fields in (document.model_fields, document().model_fields, document.meta.fields):
        field = fields["x"]
        assert isinstance(field, mongoz.fields.BaseField)
        assert (field.title, field.description, field.help_text) == ("T", "H", "H")
        assert (field.comment, field.owner, field.read_only, field.null, field.alias) == (
            "C",
            "O",
            True,
            True,
            "y",
        )


def test_booleans_are_false_by_default() -> None:
    assert with_field(mongoz.Boolean())().x is False
    assert with_field(mongoz.Boolean(default=True))().x is True
    assert with_field(mongoz.Boolean(null=True))().x is None


def test_defaults_are_values_or_callables_and_never_shared() -> None:
    assert with_field(mongoz.Integer(default=0))().x == 0
    made = iter([1, 2])
    document = with_field(mongoz.Integer(default=lambda: next(made)))
    assert [document().x, document().x] == [1, 2]
    for default in (list, ["a"]):
        document = with_field(mongoz.Array(str, default=default))
        first, second = document(), document()
        first.x.append("b")
        assert second.x == list(default if isinstance(default, list) else [])


@pytest.mark.parametrize(
    "declare",
    [
        lambda: mongoz.Integer(minimum=2, maximum=1),
        lambda: mongoz.Double(minimum=0.1, maximum=0),
        lambda: mongoz.DateTime(auto_now=True, auto_now_add=True),
        lambda: mongoz.Date(auto_now=True, auto_now_add=True),
        lambda: mongoz.Embed(dict),
        lambda: mongoz.Embed("Part"),
        lambda: mongoz.Embed(mongoz.Document),
        lambda: mongoz.String(max_lenght=5),
        lambda: mongoz.String(nul=True),
    ],
)
def test_declarations_that_contradict_themselves(declare: Any) -> None:
    with pytest.raises(FieldDefinitionError):
        declare()


def test_a_misspelt_argument_is_named_with_the_nearest() -> None:
    with pytest.raises(FieldDefinitionError, match=r"max_lenght.*max_length"):
        mongoz.String(max_lenght=5)


@pytest.mark.parametrize("factory", [mongoz.DateTime, mongoz.Date])
@pytest.mark.parametrize("option", ["auto_now", "auto_now_add"])
def test_automatic_moments_are_naive_utc_and_may_be_given(factory: Any, option: str) -> None:
    document = with_field(factory(**{option: True}))
    before = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
    made = document().x
    after = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
    if factory is mongoz.DateTime:
        assert made.tzinfo is None
        assert made.microsecond % 1000 == 0
        assert before - datetime.timedelta(milliseconds=1) <= made <= after
        assert document(x=datetime.datetime(2001, 1, 1)).x == datetime.datetime(2001, 1, 1)
    else:
        assert before.date() <= made <= after.date()


# -- storage -----------------------------------------------------------------------------------------

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.uuids()
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text(), inner)
        | st.builds(lambda name, extra: Part(n=name, extra=extra), st.text(), inner)
    ),
    max_leaves=20,
)


def containers(value: Any) -> set[int]:
    """The identities of everything inside that can be changed."""
    if isinstance(value, Part):
        return {id(value), id(value.__dict__)} | containers(value.__pydantic_extra__)
    if isinstance(value, dict):
        return {id(value)}.union(*map(containers, value.values()))
    if isinstance(value, list | tuple):
        return {id(value)}.union(*map(containers, value))
    return set()


@given(values)
def test_what_is_stored_shares_no_container(value: Any) -> None:
    result = stored(value)
    # Both are alive, so identities can be compared.
    assert not containers(result) & containers(value)
    assert stored(result) == result


@given(st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20))
def test_plain_values_are_stored_as_they_are(value: Any) -> None:
    assert stored(value) == value
    assert repr(stored(value)) == repr(value), "1 and True are equal, but not the same"


def test_models_are_stored_under_their_stored_names() -> None:
    part = Part(name="a", undeclared=[Part(name="b")])
    assert stored(part) == {"n": "a", "count": 0, "undeclared": [{"n": "b", "count": 0}]}
    assert stored((1, {"x": part}))[1]["x"]["n"] == "a"
