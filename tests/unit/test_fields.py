"""Fields: accepted values, refused values, and refused declarations."""

import datetime
import inspect
import re
import uuid
from functools import partial
from typing import Annotated, Any, ClassVar

import bson
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import mongoz
from mongoz import fields
from mongoz.exceptions import FieldDefinitionError, ImproperlyConfigured
from mongoz.fields.arguments import Lengths, Limits, Shared
from mongoz.fields.storage import stored


class Part(mongoz.EmbeddedDocument):
    name: str = mongoz.String(alias="n")
    count: int = mongoz.Integer(default=0)


def with_field(field: Any) -> Any:
    """A document with this one field, `x`."""
    namespace = {"__module__": __name__, "__qualname__": "Doc", "x": field}
    return type(mongoz.Document)("Doc", (mongoz.Document,), namespace)


def accepts(document: Any, value: Any) -> bool:
    """Whether the constructor and assignment accept the value. Both must agree. Their errors name the field."""
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
    ("look-around", mongoz.String(pattern="^(?!x)a+$"), ["aa"], ["xa", "b"]),
    ("compiled pattern", mongoz.String(pattern=re.compile("^A+$", re.I)), ["aa"], ["b"]),
    ("pattern of a number", mongoz.Integer(pattern=r"^\d{4}$"), [2024, "2024"], [5, None]),
    ("nullable pattern of a number", mongoz.Integer(pattern=r"^\d{4}$", null=True), [2024, None], [5]),
    ("zero", mongoz.Integer(maximum=0), [0, -1], [1]),
    ("multiple", mongoz.Integer(multiple_of=5), [0, 10], [7]),
    ("Double", mongoz.Double(minimum=0.5, maximum=1.5), [0.5, 1, "1.25"], [0.4, 1.6, "x"]),
    (
        "digits",
        mongoz.Double(max_digits=4, decimal_places=2),
        [12.34, 99, 0.5, 0, -1.5],
        [1.234, 123.4, 1e9, float("nan")],
    ),
    ("Boolean", mongoz.Boolean(), [True, False], [None, 5, "maybe"]),
    ("DateTime", mongoz.DateTime(), [datetime.datetime(2024, 1, 1), "2024-01-01T00:00:00"], ["x", None]),
    ("Date", mongoz.Date(), [datetime.date(2024, 1, 1), datetime.datetime(2024, 1, 1)], ["x", None]),
    ("Time", fields.Time(), [datetime.time(12, 30), "12:30:00.5"], ["x", None]),
    (
        "Binary",
        fields.Binary(max_length=3),
        [b"", b"\xff\x00a", "/wBh"],
        [b"abcd", 5, None, "_wBh", "YWJjZA==", "a"],
    ),
    ("UUID", mongoz.UUID(), [uuid.UUID(int=1), str(uuid.UUID(int=1))], ["x", None]),
    ("ObjectId", mongoz.ObjectId(), [ID, mongoz.ObjectId(), str(ID)], [None, b"i" * 12, "6" * 23, "x" * 24]),
    ("NullableObjectId", fields.NullableObjectId(), [ID, None, str(ID).upper()], ["", str(ID) + "0"]),
    ("ForeignKey", fields.ForeignKey("shop.Order"), [ID, mongoz.ObjectId(), str(ID)], ["x", None, Part(name="a")]),
    ("nullable ForeignKey", fields.ForeignKey("shop.Order", null=True), [ID, None, str(ID)], ["", "None"]),
    ("Object", mongoz.Object(), [{}, {"a": [1]}, [1], "a string", 5], [None]),
    ("nullable Object", mongoz.Object(null=True), [{}, "a string", None], []),
    ("ArrayList", fields.ArrayList(), [[], [1, "a", [b"b", {"c": None}]]], [None, "abc", {}, 5]),
    ("Array of lists", mongoz.Array(list[int]), [[], [[1], []]], [[1]]),
    ("short Array", mongoz.Array(int, max_length=1), [[], [1]], [[1, 2]]),
    ("Array", mongoz.Array(int), [[], [1, 2]], [["x"], [None], 5, None, {}]),
    ("Array of parts", mongoz.Array(Part), [[], [{"n": "a"}, Part(name="a")]], [[{}], [5]]),
    ("Embed", mongoz.Embed(Part), [Part(name="a"), {"n": "a"}, {"name": "a", "more": 1}], [{}, 5, None]),
    ("nullable Embed", mongoz.Embed(Part, null=True), [None, {"n": "a"}], [{}]),
]


@pytest.mark.parametrize(
    ("field", "right", "wrong"), [rule[1:] for rule in RULES], ids=[rule[0] for rule in RULES]
)
def test_a_field_accepts_its_values_and_refuses_others(field: Any, right: list[Any], wrong: list[Any]) -> None:
    document = with_field(field)
    assert [value for value in right if not accepts(document, value)] == []
    assert [value for value in wrong if accepts(document, value)] == []


def test_an_object_id_in_json_is_a_string() -> None:
    document = with_field(mongoz.ObjectId())
    assert document(x=ID).model_dump(mode="json")["x"] == str(ID)
    assert document(x=ID).model_dump()["x"] is ID
    assert document.model_json_schema()["properties"]["x"]["type"] == "string"


def test_json_schemas_have_the_rules() -> None:
    schema = with_field(mongoz.Email(max_length=20)).model_json_schema()["properties"]["x"]
    assert {"type": "string", "format": "email", "maxLength": 20}.items() <= schema.items()


FACTORIES: dict[str, Any] = {
    "String": mongoz.String,
    "Email": mongoz.Email,
    "Integer": mongoz.Integer,
    "Double": mongoz.Double,
    "Decimal": partial(fields.Decimal, max_digits=5, decimal_places=2),
    "DateTime": mongoz.DateTime,
    "Date": mongoz.Date,
    "Time": fields.Time,
    "Binary": partial(fields.Binary, max_length=9),
    "UUID": mongoz.UUID,
    "ObjectId": mongoz.ObjectId,
    "ForeignKey": partial(fields.ForeignKey, "shop.Order"),
    "Object": mongoz.Object,
    "Array": partial(mongoz.Array, str),
    "ArrayList": fields.ArrayList,
    "Embed": partial(mongoz.Embed, Part),
}
ALL_FACTORIES = {**FACTORIES, "Boolean": mongoz.Boolean, "NullableObjectId": fields.NullableObjectId}


@pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)
def test_a_field_is_required_unless_it_is_nullable_or_has_a_default(factory: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        with_field(factory())()
    assert caught.value.errors()[0]["loc"] == ("x",)
    assert with_field(factory(null=True))().x is None
    assert with_field(factory(default=None, null=True))().x is None


KEPT = {
    "null": True, "unique": True, "index": True, "sparse": True, "title": "T", "help_text": "H", "comment": "C",
    "owner": "O", "read_only": True, "alias": "y", "name": "N", "choices": ((ID, "one"), (5, "five")),
}  # fmt: skip


@pytest.mark.parametrize("factory", ALL_FACTORIES.values(), ids=ALL_FACTORIES)
def test_shared_arguments_are_kept(factory: Any) -> None:
    document = with_field(factory(**KEPT))
    heir = type(document)("Heir", (document,), {"__module__": __name__, "__qualname__": "Heir"})
    for found in (document.model_fields, document().model_fields, document.meta.fields, heir.meta.fields):
        field = found["x"]
        assert isinstance(field, fields.BaseField)
        assert {key: getattr(field, key) for key in KEPT} == KEPT
        assert field.description == "H"
    assert heir.model_fields["x"].document is heir
    schema = document.model_json_schema()["properties"]["y"]
    assert (schema["readOnly"], schema["title"], schema["description"]) == (True, "T", "H")


@pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)
def test_shared_arguments_of_a_required_field_are_kept(factory: Any) -> None:
    field = with_field(factory(comment="C", unique=True, choices=[(1, "one")])).model_fields["x"]
    assert (field.comment, field.unique, field.choices, field.is_required()) == ("C", True, ((1, "one"),), True)


@pytest.mark.parametrize("factory", ALL_FACTORIES.values(), ids=ALL_FACTORIES)
def test_omitted_arguments_have_their_defaults(factory: Any) -> None:
    field = with_field(factory()).model_fields["x"]
    assert field.name == "x"
    assert [field.unique, field.index, field.sparse, field.read_only] == [False] * 4
    assert [field.choices, field.comment, field.owner, field.help_text, field.alias] == [None] * 5
    field.index = True
    assert not with_field(factory()).model_fields["x"].index


@pytest.mark.parametrize("mode", ["validation", "serialization"])
@pytest.mark.parametrize("factory", ALL_FACTORIES.values(), ids=ALL_FACTORIES)
def test_every_field_has_a_json_schema(factory: Any, mode: Any) -> None:
    for null in (False, True):
        assert "x" in with_field(factory(null=null)).model_json_schema(mode=mode)["properties"]


@pytest.mark.parametrize("factory", ALL_FACTORIES.values(), ids=ALL_FACTORIES)
def test_a_default_of_none_makes_a_field_nullable(factory: Any) -> None:
    document = with_field(factory(default=None))
    assert document.meta.fields["x"].null
    assert document().x is document(x=None).x is None


@pytest.mark.parametrize("factory", ALL_FACTORIES.values(), ids=ALL_FACTORIES)
def test_every_field_takes_a_pattern(factory: Any) -> None:
    document = with_field(factory(pattern="never", null=True))
    assert document(x=None).x is None


def test_fields_declared_with_pydantic_are_fields_of_the_document() -> None:
    class Doc(mongoz.Document):
        a: int = 5
        b: str | None = pydantic.Field(default=None, alias="bb", max_length=2)
        c: Annotated[int, pydantic.Field(ge=1)]
        d: "Any"

    for document in (Doc, type(Doc)("Heir", (Doc,), {"__module__": __name__, "__qualname__": "Heir"})):
        found = document.model_fields
        assert all(isinstance(field, fields.BaseField) for field in found.values())
        assert [found[name].null for name in "abcd"] == [False, True, False, True]
        assert (found["b"].alias, found["b"].name, found["b"].index) == ("bb", "b", False)
        assert document(c=1, d=None).model_dump() == {"id": None, "a": 5, "b": None, "c": 1, "d": None}
        assert not accepts_c(document, 0)


def accepts_c(document: Any, value: Any) -> bool:
    try:
        document(c=value, d=None)
    except ValidationError:
        return False
    return True


def test_the_typed_arguments_include_all_arguments_of_pydantic() -> None:
    shared = set(Shared.__annotations__)
    pydantics = set(inspect.signature(pydantic.Field).parameters) - {"extra"}
    for name in shared:
        fields.String(**{name: None})
    own = set(Lengths.__annotations__) | set(Limits.__annotations__) | {"max_digits", "decimal_places"}
    assert pydantics - shared - own == set(), "type checkers refuse these arguments"


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
        lambda: mongoz.Integer(minimum="1"),
        lambda: mongoz.Integer(multiple_of=0),
        lambda: mongoz.Double(max_digits=1, decimal_places=2),
        lambda: mongoz.String(min_length=2, max_length=1),
        lambda: mongoz.String(max_length=-1),
        lambda: mongoz.String(max_length="5"),
        lambda: mongoz.String(pattern="("),
        lambda: mongoz.String(default="a", default_factory=str),
        lambda: mongoz.String(default=lambda value: value),
        lambda: mongoz.Embed(Part, default=Part),
        lambda: mongoz.Integer(max_length=5),
        lambda: mongoz.String(auto_now=True),
        fields.Binary,
        lambda: fields.Binary(max_length="5"),
        lambda: mongoz.Array(mongoz.String()),
        lambda: mongoz.Array(mongoz.String),
        lambda: fields.ForeignKey(Part),
        lambda: fields.ForeignKey(5),
        lambda: fields.ForeignKey("no name"),
        lambda: fields.ForeignKey(""),
        lambda: mongoz.Embed(dict),
        lambda: mongoz.Embed("Part"),
        lambda: mongoz.Embed(mongoz.Document),
        lambda: mongoz.String(max_lenght=5),
        lambda: mongoz.String(nul=True),
    ],
)
def test_contradicting_declarations_are_refused(declare: Any) -> None:
    with pytest.raises(FieldDefinitionError):
        declare()


def test_a_misspelt_argument_is_named_with_the_nearest_one() -> None:
    with pytest.raises(FieldDefinitionError, match=r"max_lenght.*max_length"):
        mongoz.String(max_lenght=5)


@pytest.mark.parametrize("factory", [mongoz.DateTime, mongoz.Date])
@pytest.mark.parametrize("option", ["auto_now", "auto_now_add"])
def test_automatic_times_are_naive_utc_and_a_given_time_takes_precedence(factory: Any, option: str) -> None:
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
    fixed = with_field(factory(**{option: True}, default=None)).model_fields["x"]
    assert fixed.get_default(call_default_factory=True) is not None, "the automatic time replaces the default None"
    assert [fixed.auto_now, fixed.auto_now_add] == [option == "auto_now", option == "auto_now_add"]


def test_bytes_are_base64_in_json() -> None:
    document = with_field(fields.Binary(max_length=3))
    made = document(x=b"\xff\x00a")
    assert made.model_dump()["x"] == b"\xff\x00a"
    assert document.model_validate_json(made.model_dump_json()).x == made.x
    with pytest.raises(ValidationError):
        document.model_validate_json('{"x": "?"}')


@pytest.mark.parametrize("name", ["copy", "model_dump", "json", "__embedded__"])
def test_a_field_of_an_embedded_document_can_not_hide_an_attribute_of_pydantic(name: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=f"'{name}'.*EmbeddedDocument.*alias="):
        type(mongoz.EmbeddedDocument)(
            "Bad",
            (mongoz.EmbeddedDocument,),
            {"__module__": __name__, "__qualname__": "Bad", name: fields.String()},
        )


def test_class_variables_are_not_fields() -> None:
    class Doc(mongoz.Document):
        x: int = mongoz.Integer()
        signals: ClassVar[Any] = 5
        query: "ClassVar[Any]" = 6

    assert set(Doc.model_fields) == {"id", "x"}


def test_embedded_documents_keep_undeclared_keys_and_nest() -> None:
    class Room(mongoz.EmbeddedDocument):
        parts: list[Part] = mongoz.Array(Part)
        best: Part | None = mongoz.Embed(Part, null=True)
        size: int | None = None

    class House(mongoz.Document):
        rooms: list[Room] = mongoz.Array(Room, default=list)
        hall: Room = mongoz.Embed(Room)

    house = House(hall={"parts": [{"n": "door", "color": "red"}], "smell": "of wood"})
    assert isinstance(house.hall.parts[0], Part)
    house.rooms = [{"parts": [], "best": {"name": "bed"}}]  # type: ignore[list-item]
    house.rooms[0].best = {"n": "lamp"}  # type: ignore[assignment]
    assert isinstance(house.rooms[0].best, Part)
    with pytest.raises(ValidationError):
        house.rooms[0].size = "many"  # type: ignore[assignment]
    assert stored(house) == {
        "_id": None,
        "rooms": [{"parts": [], "best": {"n": "lamp", "count": 0}, "size": None}],
        "hall": {
            "parts": [{"n": "door", "count": 0, "color": "red"}],
            "best": None,
            "size": None,
            "smell": "of wood",
        },
    }


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
    """The identities of all nested mutable values."""
    if isinstance(value, Part):
        return {id(value), id(value.__dict__)} | containers(value.__pydantic_extra__)
    if isinstance(value, dict):
        return {id(value)}.union(*map(containers, value.values()))
    if isinstance(value, list | tuple):
        return {id(value)}.union(*map(containers, value))
    return set()


@given(values)
def test_stored_values_share_no_container_with_the_instance(value: Any) -> None:
    result = stored(value)
    # Both values are alive, so identities can be compared.
    assert not containers(result) & containers(value)
    assert stored(result) == result


@given(st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20))
def test_plain_values_are_stored_unchanged(value: Any) -> None:
    assert stored(value) == value
    assert repr(stored(value)) == repr(value), "1 and True are equal, but not the same"


def test_fields_of_nested_models_are_stored_under_their_stored_names() -> None:
    part = Part(name="a", undeclared=[Part(name="b")])
    assert stored(part) == {"n": "a", "count": 0, "undeclared": [{"n": "b", "count": 0}]}
    assert stored((1, {"x": part}))[1]["x"]["n"] == "a"


def test_nullable_is_the_union_with_none_at_run_time() -> None:
    class Piece(mongoz.EmbeddedDocument):
        n: "mongoz.Nullable[int]" = mongoz.Integer(null=True)

    class Thing(mongoz.Document):
        part: mongoz.Nullable[Piece] = mongoz.Embed(Piece, null=True)
        size: mongoz.Nullable[int] = mongoz.Integer(null=True, maximum=5)
        plain: mongoz.Nullable[int] = None
        late: mongoz.Nullable["Piece"] = None

    assert mongoz.Nullable[int] == int | None
    thing = Thing(part={"n": 3}, size="5", plain="1", late={"n": None})
    assert (thing.part, thing.size, thing.plain, thing.late) == (Piece(n=3), 5, 1, Piece())
    with pytest.raises(ValidationError):
        Thing(size=6)
    assert Thing().model_dump() == {"id": None, "part": None, "size": None, "plain": None, "late": None}
