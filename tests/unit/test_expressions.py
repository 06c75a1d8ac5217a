"""Expressions, `Q` and `Document.field` compile to filters, without a server."""

import enum
import re
from typing import Annotated, Any

import bson
import pytest

import mongoz
from mongoz.exceptions import FieldDefinitionError, InvalidKeyError, MongozException, OperatorInvalid
from mongoz.queries.conditions import OPERATORS
from mongoz.queries.expressions import Expression, FieldProxy, Order, SortExpression, compile_condition
from mongoz.queries.q import Q

OID = bson.ObjectId("65f0c0ffee0123456789abcd")


class Geo(mongoz.EmbeddedDocument):
    lat: float = mongoz.Double()
    key: str = mongoz.String(default="")
    path: str = mongoz.String(default="")
    annotation: str = mongoz.String(default="")
    document: str = mongoz.String(default="")
    name: str = mongoz.String(default="", alias="_name")


class City(mongoz.EmbeddedDocument):
    name: str = mongoz.String(alias="n")
    alias: str = mongoz.String(default="")
    geo: Any = mongoz.Embed(Geo, null=True)


class Person(mongoz.Document):
    name: str = mongoz.String()
    age: int = mongoz.Integer(null=True)
    active: bool = mongoz.Boolean()
    mail: str = mongoz.Email(null=True)
    family: str = mongoz.String(null=True, alias="last_name")
    home: Any = mongoz.Embed(City, null=True)
    places: list[City] = mongoz.Array(City, default=list)
    tags: list[str] = mongoz.Array(str, default=list)
    friends: Any = mongoz.Array(mongoz.ObjectId, default=list)
    owner: Any = mongoz.ObjectId(null=True)
    payload: Any = mongoz.Object(null=True)


def compiled(thing: Any) -> Any:
    return compile_condition(Person, thing)


# -- Q and Expression --------------------------------------------------------------------------------

SIMPLE = [
    (Q.eq, "x", {"$eq": "x"}),
    (Q.neq, "x", {"$ne": "x"}),
    (Q.not_, "x", {"$ne": "x"}),
    (Q.not_, bson.Regex("x"), {"$not": {"$eq": bson.Regex("x")}}),
    (Q.in_, ["x", "y"], {"$in": ["x", "y"]}),
    (Q.in_, ("x",), {"$in": ["x"]}),
    (Q.not_in, ["x"], {"$nin": ["x"]}),
    (Q.gt, "x", {"$gt": "x"}),
    (Q.gte, "x", {"$gte": "x"}),
    (Q.lt, "x", {"$lt": "x"}),
    (Q.lte, "x", {"$lte": "x"}),
    (Q.contains, "x.y", {"$regex": r"x\.y"}),
    (Q.icontains, "x.y", {"$regex": r"x\.y", "$options": "i"}),
    (Q.startswith, "x$", {"$regex": r"^x\$"}),
    (Q.istartswith, "x", {"$regex": "^x", "$options": "i"}),
    (Q.endswith, "x", {"$regex": r"x\z"}),
    (Q.iendswith, "x", {"$regex": r"x\z", "$options": "i"}),
    (Q.pattern, r"\w+ 2", {"$regex": r"\w+ 2"}),
    (Q.pattern, re.compile("a.b", re.I | re.S), {"$regex": "a.b", "$options": "is"}),
    (Q.pattern, bson.Regex("a", "mx"), {"$regex": "a", "$options": "mx"}),
    (Q.exists, True, {"$exists": True}),
    (Q.exists, False, {"$exists": False}),
]


@pytest.mark.parametrize(("make", "value", "condition"), SIMPLE)
def test_q_accepts_names_and_fields(make: Any, value: Any, condition: Any) -> None:
    assert compiled(make("name", value)) == {"name": condition}
    assert compiled(make(Person.name, value)) == {"name": condition}
    assert make("name", value).compile() == make(Person.name, value).compile() == {"name": condition}
    assert compiled(make("home.name", value)) == compiled(make(Person.home.name, value)) == {"home.n": condition}
    assert compiled(make("family", value)) == compiled(make("last_name", value)) == {"last_name": condition}


def test_q_where_is_javascript() -> None:
    for code in ("this.age > 3", bson.Code("this.age > 3")):
        assert compiled(Q.where("age", code)) == {"$where": code}
    for wrong in (None, 3, {"$code": "1"}, ["1"]):
        with pytest.raises(OperatorInvalid, match="JavaScript"):
            Q.where("age", wrong)


def test_q_asc_and_desc_are_sort_expressions() -> None:
    assert Q.asc("name") == SortExpression("name", Order.ASCENDING)
    assert Q.desc(Person.name) == SortExpression(Person.name, Order.DESCENDING)


def test_an_expression_accepts_every_spelling_of_an_operator() -> None:
    spellings = {
        "eq": ["$eq", "eq", "exact"], "neq": ["$ne", "ne", "neq", "not", "not_"], "in_": ["$in", "in", "in_"],
        "not_in": ["$nin", "nin", "not_in"], "gt": ["$gt", "gt"], "gte": ["$gte", "gte"], "lt": ["$lt", "lt"],
        "lte": ["$lte", "lte"], "pattern": ["$regex", "regex", "pattern"], "exists": ["$exists", "exists"],
        "contains": ["contains"], "iendswith": ["iendswith"],
    }  # fmt: skip
    for name, others in spellings.items():
        value: Any = ["x"] if name.endswith(("in", "in_")) and name != "contains" else "x"
        value = True if name == "exists" else value
        for other in others:
            assert compiled(Expression("name", other, value)) == compiled(getattr(Q, name)("name", value)), other
    with pytest.raises(OperatorInvalid, match="'startswith'"):
        Expression("name", "startwith", "x").compile()
    with pytest.raises(OperatorInvalid):
        Expression("name", 3, "x").compile()  # type: ignore[arg-type]


def test_expressions_take_options_and_mongodbs_own_operators() -> None:
    for options in ("i", {"$options": "i"}):
        assert compiled(Expression("name", "$regex", "x", options)) == {"name": {"$regex": "x", "$options": "i"}}
        assert Expression("name", "contains", ".", options).compile() == {
            "name": {"$regex": r"\.", "$options": "i"}
        }
    assert compiled(Expression("tags", "$size", 2)) == {"tags": {"$size": 2}}
    assert compiled(Expression(Person.places, "$elemMatch", {"n": "x"})) == {"places": {"$elemMatch": {"n": "x"}}}
    assert compiled(Expression("age", "$not", {"$gt": 3})) == {"age": {"$not": {"$gt": 3}}}


def test_conditions_combine() -> None:
    a, b, c = Q.eq("age", 1), Person.family == "x", {"name": {"$gt": "a"}}
    one, two, three = {"age": {"$eq": 1}}, {"last_name": {"$eq": "x"}}, {"name": {"$gt": "a"}}
    assert compiled(a & b) == compiled(Q.and_(a, b)) == compiled(Q.and_([a, b])) == {"$and": [one, two]}
    assert compiled(a | b) == compiled(Q.or_(a, b)) == compiled(Q.or_((a, b))) == {"$or": [one, two]}
    assert compiled(Q.nor_(a, [b], c)) == {"$nor": [one, two, three]}
    assert compiled(~a) == {"$nor": [one]}
    assert compiled(a & c) == compiled(a & c) == {"$and": [one, three]}
    assert compiled(c | a) == {"$or": [three, one]}
    assert compiled(c & a) == {"$and": [three, one]}
    assert compiled(~(a | b) & c) == {"$and": [{"$nor": [{"$or": [one, two]}]}, three]}
    assert compiled(Expression(None, "$or", [a, b])) == {"$or": [one, two]}
    assert (a | b).compile() == {"$or": [one, two]}


def test_values_that_are_no_conditions_do_not_combine() -> None:
    a = Q.eq("age", 1)
    for wrong in (lambda: a & 3, lambda: "x" | a, lambda: a and a, lambda: not a, lambda: bool(a | a)):
        with pytest.raises(TypeError):
            wrong()  # type: ignore[no-untyped-call]
    for junction in (Q.and_, Q.or_, Q.nor_):
        for nothing in ((), ([],)):
            with pytest.raises(OperatorInvalid, match="at least one"):
                junction(*nothing)
        for other in ("age", Person.age, 3, None, ["x"]):
            with pytest.raises(InvalidKeyError, match="expressions"):
                junction(a, other)
    with pytest.raises(OperatorInvalid, match="at least one"):
        Expression(None, "$or", []).compile()


@pytest.mark.parametrize("make", [Q.gt, Q.gte, Q.lt, Q.lte])
@pytest.mark.parametrize("value", [True, False, None, bson.Regex("x"), re.compile("x")])
def test_values_without_an_order_are_refused(make: Any, value: Any) -> None:
    for key in ("age", Person.age):
        with pytest.raises(OperatorInvalid, match="order"):
            make(key, value)


@pytest.mark.parametrize("value", ["x", None, 3, {"a": 1}, {"a"}, iter([])])
@pytest.mark.parametrize("make", [Q.in_, Q.not_in])
def test_in_takes_lists_and_tuples_only(make: Any, value: Any) -> None:
    with pytest.raises(AssertionError) as caught:
        make("name", value)
    assert isinstance(caught.value, OperatorInvalid)


def test_a_key_that_is_no_name_of_a_field_is_refused() -> None:
    for wrong in (None, 3, object(), ["name"]):
        with pytest.raises(InvalidKeyError, match=r"Document\.field"):
            Q.eq(wrong, 1)
    with pytest.raises(InvalidKeyError, match="'name'"):
        compiled(Q.eq("nmae", 1))


# -- values and fields ---------------------------------------------------------------------------------


def test_contains_depends_on_the_field() -> None:
    for field, value, condition in [
        ("name", "x", {"$regex": "x"}),
        ("mail", "x", {"$regex": "x"}),
        ("age", 3, {"$eq": 3}),
        ("active", True, {"$eq": True}),
        ("tags", "x", {"$eq": "x"}),
        ("tags.0", "x", {"$regex": "x"}),
        ("tags", ["x", "y"], {"$eq": ["x", "y"]}),
        ("owner", str(OID), {"$eq": OID}),
        ("home", City(name="x"), {"$eq": {"n": "x", "alias": "", "geo": None}}),
        ("payload", "x", {"$regex": "x"}),
        ("payload.a.b", "x", {"$regex": "x"}),
        ("payload", {"$gt": ""}, {"$eq": {"$gt": ""}}),
    ]:
        assert compiled(Q.contains(field, value)) == {field: condition}, field
    assert compiled(Q.contains(Person.places, [City(name="x")])) == {
        "places": {"$eq": [{"n": "x", "alias": "", "geo": None}]}
    }
    assert compiled(Q.icontains(Person.tags, "x.")) == {"tags": {"$regex": r"^x\.\z", "$options": "i"}}
    for value in (3, None, {"$gt": ""}, ["x"]):
        with pytest.raises(OperatorInvalid, match="str"):
            compiled(Q.contains("name", value))


@pytest.mark.parametrize("field", ["age", "active", "owner", "home", "tags", "places", "home.geo.lat", "id"])
def test_a_pattern_needs_strings(field: str) -> None:
    with pytest.raises(FieldDefinitionError, match="no strings"):
        compiled(Q.pattern(field, "x"))
    proxy: Any = Person
    for step in field.split("."):
        proxy = getattr(proxy, step)
    with pytest.raises(FieldDefinitionError):
        Q.pattern(proxy, "x")


def test_an_id_may_be_given_as_a_hexadecimal_string() -> None:
    for key in ("id", "_id", "pk", Person.id):
        assert compiled(Q.eq(key, str(OID))) == {"_id": {"$eq": OID}}
        assert compiled(Q.in_(key, [str(OID), 3])) == {"_id": {"$in": [OID, 3]}}
        assert compiled({key: str(OID)}) == {"_id": OID}
        assert compiled({key: {"$nin": [str(OID)], "$gt": str(OID)}}) == {"_id": {"$nin": [OID], "$gt": OID}}
        assert compiled({key: {"$not": {"$eq": str(OID)}}}) == {"_id": {"$not": {"$eq": OID}}}
    assert compiled(Person.owner == str(OID)) == {"owner": {"$eq": OID}}
    assert compiled(Q.contains("friends", str(OID))) == {"friends": {"$eq": OID}}
    assert compiled(Q.eq("name", str(OID))) == {"name": {"$eq": str(OID)}}
    assert compiled(Person.id == Person(id=OID, name="x")) == {"_id": {"$eq": OID}}
    with pytest.raises(OperatorInvalid, match="no id"):
        compiled(Person.owner == Person(name="x"))


class Color(enum.Enum):
    RED = "red"


def test_values_are_compared_as_stored() -> None:
    city = City(name="x", geo=Geo(lat=1))
    kept = {
        "n": "x", "alias": "",
        "geo": {"lat": 1.0, "key": "", "path": "", "annotation": "", "document": "", "_name": ""},
    }  # fmt: skip
    assert compiled(Person.home == city) == {"home": {"$eq": kept}}
    assert compiled(Q.in_("home", [city])) == {"home": {"$in": [kept]}}
    assert compiled(Q.eq("places", [city])) == {"places": {"$eq": [kept]}}
    assert compiled(Person.name == Color.RED) == {"name": {"$eq": "red"}}
    assert compiled({"home": city, "name": {"$in": (Color.RED,)}}) == {"home": kept, "name": {"$in": ["red"]}}


# -- dicts -------------------------------------------------------------------------------------------


def test_a_dict_is_a_mongodb_query() -> None:
    assert compiled({}) == {}
    assert compiled({Person.age: {"$gt": 3}, Person.home.name: "x"}) == {"age": {"$gt": 3}, "home.n": "x"}
    assert compiled({"family": "x", "home.name": "y", "undeclared": 1}) == {
        "last_name": "x",
        "home.n": "y",
        "undeclared": 1,
    }
    assert compiled({"$or": [{Person.id: str(OID)}, {"pk": OID}, Person.age > 3]}) == {
        "$or": [{"_id": OID}, {"_id": OID}, {"age": {"$gt": 3}}]
    }
    expression = {"$expr": {"$gt": ["$age", 3]}, "$comment": "x", "$and": [{"$nor": [{"id": str(OID)}]}]}
    assert compiled(expression) == {**expression, "$and": [{"$nor": [{"_id": OID}]}]}
    assert compiled({"name": re.compile("x")}) == {"name": re.compile("x")}
    assert compiled({"places": {"$elemMatch": {"n": "x"}}}) == {"places": {"$elemMatch": {"n": "x"}}}


@pytest.mark.parametrize("wrong", ["age > 3", 3, None, [{"age": 3}], Person.age, Q.asc("age"), True])
def test_a_value_that_is_neither_expression_nor_dict_is_no_query(wrong: Any) -> None:
    with pytest.raises(InvalidKeyError, match="expressions and dicts"):
        compiled(wrong)


def test_keys_of_a_query_that_are_no_names_are_refused() -> None:
    with pytest.raises(InvalidKeyError, match=r"Document\.field"):
        compiled({3: 3})


# -- Document.field ----------------------------------------------------------------------------------


def test_operators_of_fields_return_expressions() -> None:
    field = Person.age
    assert isinstance(field, FieldProxy)
    for expression, condition in [
        (field == 3, {"$eq": 3}), (field != 3, {"$ne": 3}), (field < 3, {"$lt": 3}), (field <= 3, {"$lte": 3}),
        (field > 3, {"$gt": 3}), (field >= 3, {"$gte": 3}), (field == None, {"$eq": None}),  # noqa: E711 - a condition
        (field == {"$gt": 3}, {"$eq": {"$gt": 3}}),
    ]:  # fmt: skip
        assert isinstance(expression, Expression)
        assert expression.compile() == compiled(expression) == {"age": condition}
    for compare in (lambda: field > None, lambda: field <= None):
        with pytest.raises(InvalidKeyError, match="None"):
            compare()  # type: ignore[no-untyped-call]


def test_a_field_can_be_used_as_a_key() -> None:
    assert hash(Person.age) == hash(Person.age) != hash(Person.name)
    assert Person.age == Person.age
    assert Person.age != Person.name
    assert {Person.age: 1, Person.name: 2, "age": 3}[Person.age] == 1
    assert len({Person.age, Person.age, Person.home.name, Person.home.name}) == 2
    assert Person.age in [Person.name, Person.age]


@pytest.mark.parametrize(
    ("proxy", "path"),
    [
        (lambda: Person.id, "_id"),
        (lambda: Person.family, "last_name"),
        (lambda: Person.home.name, "home.n"),
        (lambda: Person.home.n, "home.n"),
        (lambda: Person.home.alias, "home.alias"),
        (lambda: Person.home.geo.lat, "home.geo.lat"),
        (lambda: Person.home.geo.key, "home.geo.key"),
        (lambda: Person.home.geo.path, "home.geo.path"),
        (lambda: Person.home.geo.annotation, "home.geo.annotation"),
        (lambda: Person.home.geo.document, "home.geo.document"),
        (lambda: Person.home.geo.name, "home.geo._name"),
        (lambda: Person.home.geo._name, "home.geo._name"),
        (lambda: Person.places.name, "places.n"),
        (lambda: Person.places[0].geo.lat, "places.0.geo.lat"),
        (lambda: getattr(Person.tags, "3"), "tags.3"),
        (lambda: Person.payload.any.thing, "payload.any.thing"),
        (lambda: Person.payload["any"]["thing"], "payload.any.thing"),
    ],
)  # fmt: skip
def test_a_field_gives_access_to_its_nested_fields(proxy: Any, path: str) -> None:
    assert str(proxy()) == path
    assert (proxy() == None).compile() == {path: {"$eq": None}}  # noqa: E711 - a condition
    assert repr(proxy()).startswith("Person.")


@pytest.mark.parametrize(
    ("proxy", "hint"),
    [
        (lambda: Person.home.nmae, "'name'"),
        (lambda: Person.home.geo.latt, "'lat'"),
        (lambda: Person.places.aliass, "'alias'"),
        (lambda: Person.home[0], "name"),
        (lambda: Person.name.first, "name.first"),
        (lambda: Person.tags.x, "tags.x"),
        (lambda: Person.tags[0][0], "tags.0.0"),
        (lambda: Person.owner.name, "owner.name"),
        (lambda: Person.id.hex, "id.hex"),
    ],
)
def test_an_unknown_nested_field_is_named(proxy: Any, hint: str) -> None:
    with pytest.raises(InvalidKeyError, match=re.escape(hint)):
        proxy()


def test_a_field_is_not_a_container() -> None:
    for use in (lambda: iter(Person.tags), lambda: "x" in Person.tags, lambda: len(Person.tags)):
        with pytest.raises(TypeError):
            use()  # type: ignore[no-untyped-call]
    with pytest.raises(AttributeError):
        Person.payload.__wrapped__  # noqa: B018 - what inspect asks for


def test_annotations_of_all_kinds_are_understood() -> None:
    class Odd(mongoz.Document):
        text: Annotated[str | None, "described"] = None
        rows: list[list[City]] | None = None
        either: City | str | None = None
        bare: list = []  # noqa: RUF012 - pydantic copies it
        table: dict[str, City] = {}  # noqa: RUF012

    assert compile_condition(Odd, Q.pattern("text", "x")) == {"text": {"$regex": "x"}}
    assert str(Odd.rows[0][1].name) == "rows.0.1.n"
    assert str(Odd.rows.name) == "rows.n"
    assert str(Odd.either.name) == "either.n"
    assert str(Odd.bare[0].anything) == "bare.0.anything"
    assert str(Odd.table.bonn.anything) == "table.bonn.anything"
    assert compile_condition(Odd, Q.contains("either", "x")) == {"either": {"$regex": "x"}}
    with pytest.raises(InvalidKeyError):
        Odd.rows[0][1][2]


def test_q_has_every_operator() -> None:
    assert set(OPERATORS) - {"date"} <= set(vars(Q))
    for operator in OPERATORS:
        with pytest.raises((MongozException, TypeError)):
            Q.__dict__.get(operator, Q.eq)("name", object())


def test_access_before_a_class_is_complete_is_not_cached() -> None:
    class Early(mongoz.Document):
        name: str = mongoz.String()
        home: "Late | None" = None

    assert str(Early.home.n) == "home.n"

    class Late(mongoz.EmbeddedDocument):
        name: str = mongoz.String(alias="n")

    Early.model_rebuild(_types_namespace={"Late": Late})
    assert str(Early.home.name) == "home.n"
    with pytest.raises(InvalidKeyError, match="'name'"):
        Early.home.nam  # noqa: B018 - reading it is the test
