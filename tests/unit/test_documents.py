"""Fields and Meta of document classes, without a server and without I/O."""

import copy
import datetime
import json
import socket
from typing import Annotated, Any

import bson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

import mongoz
from mongoz.exceptions import AbstractDocumentError, ImproperlyConfigured, InvalidKeyError
from mongoz.persistence.rows.changes import find_changes
from mongoz.persistence.rows.hydration import hydrate

NO_DATABASE = (
    "'database' for the table not found in the Meta class or any of the superclasses. "
    "You must set the database in the Meta."
)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> mongoz.Registry:
    """A registry without a server, in a process without network."""

    def refuse(*_: Any) -> None:
        pytest.fail("defining documents must do no I/O")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return mongoz.Registry("mongodb://192.0.2.1")


def define(name: str = "User", *bases: type, fields: dict[str, Any] | None = None, **meta: Any) -> Any:
    fields = {"title": mongoz.String(default="")} if fields is None else fields
    namespace = {"__module__": __name__, "__qualname__": name, **fields, "Meta": type("Meta", (), meta)}
    return type(mongoz.Document)(name, bases or (mongoz.Document,), namespace)


class Part(mongoz.EmbeddedDocument):
    name: str = mongoz.String()


class Mixed(mongoz.Document):
    first: str = mongoz.Integer()  # type: ignore[assignment]
    second = mongoz.String()
    third: "int" = mongoz.Integer(default=3)
    plain: int = 4
    fifth = mongoz.Embed(Part, null=True)
    sixth: "Unknown" = mongoz.Boolean()  # type: ignore[name-defined]  # noqa: F821
    seventh = mongoz.ObjectId(null=True)


# -- fields ------------------------------------------------------------------------------------------


def test_the_type_of_the_field_takes_precedence_over_the_annotation() -> None:
    mixed = Mixed(first=1, second="b")
    assert (mixed.first, mixed.third, mixed.plain, mixed.sixth, mixed.seventh) == (1, 3, 4, False, None)
    with pytest.raises(ValidationError) as caught:
        Mixed(first="x", second=2)
    assert {error["loc"] for error in caught.value.errors()} == {("first",), ("second",)}


def test_fields_are_in_the_order_of_declaration() -> None:
    declared = ["id", "first", "second", "third", "plain", "fifth", "sixth", "seventh"]
    assert list(Mixed.model_fields) == list(Mixed.meta.fields) == declared
    assert list(Mixed(first=1, second="b").model_dump()) == declared

    class Child(Mixed):
        own = mongoz.String(default="")

    assert list(Child.model_fields) == [*declared, "own"]


def test_a_field_declared_as_an_object_id_has_no_default() -> None:
    document = define(fields={"owner": mongoz.ObjectId()})
    with pytest.raises(ValidationError):
        document()


@pytest.mark.parametrize("name", ["objects", "query", "meta", "signals", "save", "create", "update", "model_dump"])
@pytest.mark.parametrize("annotated", [True, False])
def test_reserved_names_are_refused(name: str, annotated: bool) -> None:
    namespace: dict[str, Any] = {name: mongoz.String()}
    if annotated:
        namespace["__annotations__"] = {name: str}
    with pytest.raises(ImproperlyConfigured, match=f"'{name}'.*alias="):
        define(fields=namespace)


def test_embedded_documents_keep_unknown_keys() -> None:
    document = define(fields={"part": mongoz.Embed(Part), "parts": mongoz.Array(Part)})
    loaded = hydrate(
        document,
        {"_id": 1 and bson.ObjectId(), "part": {"name": "a", "x": 1}, "parts": [{"name": "b", "y": {"z": 2}}]},
    )
    assert isinstance(loaded.part, Part)
    assert (loaded.part.x, loaded.parts[0].y) == (1, {"z": 2})
    assert loaded.model_dump()["parts"] == [{"name": "b", "y": {"z": 2}}]
    assert not hasattr(Part, "meta")
    assert not hasattr(Part, "objects")


# -- Meta --------------------------------------------------------------------------------------------


def test_a_registry_without_a_database_is_refused_when_the_class_is_defined(registry: mongoz.Registry) -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        define(registry=registry)
    assert caught.value.args[0] == NO_DATABASE
    assert registry.documents == {}
    define("Base", registry=registry, abstract=True)


def test_meta_inherits_only_some_options(registry: mongoz.Registry) -> None:
    base = define("Base", registry=registry, database="shop", abstract=True)
    user = define("User", base)
    admin = define("Admin", user, database="other", collection="bosses")
    child = define("Child", admin)
    assert (base.meta.abstract, user.meta.abstract) == (True, False)
    assert base.meta.collection is None
    assert user.meta.registry is admin.meta.registry is registry
    assert user.meta.database == registry.get_database("shop")
    assert [d.meta.collection.namespace for d in (user, admin, child)] == [
        "shop.users",
        "other.bosses",
        "other.childs",
    ]
    assert user.Meta is user.meta
    assert user().meta is user.meta
    assert user.get_collection() == user.meta.collection


def test_database_and_collection_may_be_objects(registry: mongoz.Registry) -> None:
    database = registry.get_database("shop")
    user = define(registry=registry, database=database, collection=database.get_collection("people"))
    assert user.meta.database is database
    assert user.meta.collection.namespace == "shop.people"


@pytest.mark.parametrize(
    "meta",
    [{"databse": "shop"}, {"registry": "mongodb://host"}, {"database": 5}, {"collection": 5}, {"tablename": "x"}],
)
def test_the_error_for_a_wrong_meta_option_names_the_option(meta: dict[str, Any]) -> None:
    (name,) = meta
    with pytest.raises(ImproperlyConfigured) as caught:
        define(**meta)
    assert name in str(caught.value)
    assert "User" in str(caught.value)
    if name == "databse":
        assert "'database'" in str(caught.value)


def test_a_class_without_fields_is_abstract(registry: mongoz.Registry) -> None:
    empty = define("Empty", fields={}, registry=registry, database="shop")
    assert empty.meta.abstract
    assert registry.documents == {}
    with pytest.raises(AbstractDocumentError):
        empty.get_collection()
    assert not define("Full", empty).meta.abstract


def test_a_document_without_a_registry_can_be_defined_and_instantiated() -> None:
    user = define()
    assert user(title="a").title == "a"
    with pytest.raises(ImproperlyConfigured, match="no registry"):
        user.get_collection()


def test_the_registry_finds_the_latest_class_of_a_name_and_lists_all(registry: mongoz.Registry) -> None:
    first = define(registry=registry, database="shop")
    second = define(registry=registry, database="shop")
    define("Base", registry=registry, database="shop", abstract=True)
    assert registry.documents == {"User": second}
    assert registry.all_documents == (first, second)
    assert first.signals is not second.signals


async def test_defining_documents_opens_no_client(registry: mongoz.Registry) -> None:
    user = define(registry=registry, database="shop")
    assert user(title="a").model_dump() == {"id": None, "title": "a"}
    user.objects.filter(title="a").query(user.title == "a").sort("title").limit(1)
    assert registry._clients == {}


# -- instances ---------------------------------------------------------------------------------------


def test_instances_are_compared_by_value_and_shown_by_id() -> None:
    user, id_ = define(), mongoz.ObjectId()
    one, two = hydrate(user, {"_id": id_, "title": "a"}), hydrate(user, {"_id": id_, "title": "a", "_mongoz": b""})
    assert one == two == user(id=id_, title="a") == user(_id=id_, title="a")
    assert one != user(id=id_, title="b")
    assert one.model_dump() == dict(one) == {"id": id_, "title": "a"}
    assert (str(one), repr(one)) == (f"User(id={id_})", f"User(id={id_}, title='a')")
    assert user().id is None
    assert copy.deepcopy(one) == one
    assert user.get_instance_name() == "user"


def test_assignment_is_validated() -> None:
    user = define(fields={"age": mongoz.Integer(maximum=5)})(age=1)
    with pytest.raises(ValidationError):
        user.age = 6
    assert user.age == 1


# -- changes -----------------------------------------------------------------------------------------

EQUAL_IN_PYTHON = [1, True, 1.0, bson.Int64(1)]
scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=5)
)
# Keys have no NUL and no surrogates; another test covers dots and dollars.
keys = st.text("abcdef", min_size=1, max_size=2)
values = st.recursive(
    scalars | st.sampled_from(EQUAL_IN_PYTHON),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=10,
)
rows = st.dictionaries(keys, values, max_size=5)


@given(rows, rows)
def test_the_changes_turn_the_snapshot_into_the_row(before: dict[str, Any], row: dict[str, Any]) -> None:
    before, row = {**before, "_id": 1}, {**row, "_id": 1}
    changed, removed = find_changes(before, row)
    after = {name: value for name, value in {**before, **changed}.items() if name not in removed}
    # The values are compared as bytes, because 1 == True == 1.0 in Python.
    assert {name: bson.encode({"": value}) for name, value in after.items()} == {
        name: bson.encode({"": value}) for name, value in row.items()
    }
    assert "_id" not in changed
    for name, value in changed.items():
        assert name not in before or bson.encode({"": before[name]}) != bson.encode({"": value})
    assert set(removed) == set(before) - set(row)


@given(rows)
def test_an_equal_value_is_not_a_change(row: dict[str, Any]) -> None:
    assert find_changes(copy.deepcopy(row), row) == ({}, ())
    assert find_changes(bson.decode(bson.encode(row)), row) == ({}, ())


@given(rows)
def test_without_a_snapshot_every_field_is_a_change(row: dict[str, Any]) -> None:
    assert find_changes(None, {**row, "_id": 1}) == (row, ())


@pytest.mark.parametrize("before", EQUAL_IN_PYTHON)
@pytest.mark.parametrize("after", EQUAL_IN_PYTHON)
def test_values_that_are_equal_in_python_but_not_in_bson_are_changes(before: Any, after: Any) -> None:
    same = type(before) is type(after)
    for wrap in (
        lambda v: v,
        lambda v: [v],
        lambda v: ["a", v],
        lambda v: [None, [v]],
        lambda v: {"a": {"b": [v]}},
    ):
        assert bool(find_changes({"x": wrap(before)}, {"x": wrap(after)}).changed) is not same


DAY = datetime.datetime(2024, 3, 31)


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        (DAY, DAY.replace(microsecond=999), True),
        (DAY, DAY.replace(microsecond=1_000), False),
        (DAY, DAY.replace(tzinfo=datetime.UTC), True),
        (DAY, DAY.replace(tzinfo=datetime.timezone(datetime.timedelta(hours=1))), False),
        (0.0, -0.0, False),
        (float("nan"), float("nan"), True),
        ([1, 2], [1, 2, 3], False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, False),
        (bson.ObjectId(b"a" * 12), mongoz.ObjectId(b"a" * 12), True),
    ],
)  # fmt: skip
def test_values_are_the_same_exactly_if_their_bson_is_the_same(before: Any, after: Any, same: bool) -> None:
    for wrap in (lambda v: v, lambda v: [v], lambda v: [[v], "a"]):
        changed = find_changes({"x": wrap(before)}, {"x": wrap(after)}).changed
        assert (changed == {}) is same


@pytest.mark.parametrize("key", ["a.b", "$a", "a."])
@pytest.mark.parametrize(("before", "row"), [({}, 1), ({"x": 1}, 2), ({"x": 1}, None), (None, 1)])
def test_a_changed_key_with_a_dot_or_a_dollar_is_refused(key: str, before: Any, row: Any) -> None:
    snapshot = before and {key: 1}
    with pytest.raises(InvalidKeyError, match="path or an operator"):
        find_changes(snapshot, {} if row is None else {key: row})
    assert find_changes({key: 1}, {key: 1}) == ({}, ())


def test_show_id_shows_the_id_despite_exclude():
    class Shown(mongoz.Document):
        name: str = mongoz.String()

    one = Shown(id=bson.ObjectId(), name="a")
    assert one.model_dump(exclude={"id"}) == {"name": "a"}
    assert one.model_dump(exclude={"id"}, show_id=True) == {"id": one.id, "name": "a"}
    assert one.model_dump(include={"name"}, show_id=True, mode="json") == {"id": str(one.id), "name": "a"}
    assert one.model_dump(exclude={"id"}, show_id=True, by_alias=True) == {"id": one.id, "name": "a"}


def test_dict_of_an_instance_equals_its_dump():
    class Inner(mongoz.EmbeddedDocument):
        city: str = mongoz.String()

    class Outer(mongoz.Document):
        inner: Inner = mongoz.Embed(Inner)
        many: list[Inner] = mongoz.Array(Inner, default=list)

    one = Outer(inner={"city": "Bonn"}, many=[{"city": "Rome"}], extra=1)
    assert dict(one) == one.model_dump()
    assert dict(one)["many"] == [{"city": "Rome"}]


def test_bson_types_become_json_at_any_depth():
    class Any_(mongoz.Document):
        data: dict = mongoz.Object(default=dict)

    id_ = bson.ObjectId()
    one = Any_(id=id_, data={"a": id_, "b": [bson.Decimal128("1.5")]}, undeclared=id_)
    expected = {"id": str(id_), "data": {"a": str(id_), "b": ["1.5"]}, "undeclared": str(id_)}
    assert one.model_dump(mode="json") == json.loads(one.model_dump_json()) == expected
    assert one.model_dump()["undeclared"] is id_
    assert Any_.model_validate_json(one.model_dump_json()).id == id_


class Blob(mongoz.EmbeddedDocument):
    data: Any = None
    by: bson.ObjectId | None = None


class Sent(mongoz.Document):
    """A document that refers to itself. Some of its fields have types of BSON, but no factory of mongoz."""

    data: Any = mongoz.Object(default=dict)
    by: bson.ObjectId | None = None
    paid: bson.Decimal128 | None = None
    blobs: list[Blob] = mongoz.Array(Blob, default=list)
    seen: dict[mongoz.ObjectId, int] = Field(default_factory=dict)
    photo: bytes = mongoz.Binary(max_length=9, default=b"")
    parent: "Sent | None" = None


def sent() -> tuple[Sent, dict[str, Any]]:
    """A document, and its JSON."""
    id_, text = bson.ObjectId(b"i" * 12), "69" * 12
    inner = {"data": [id_, b"abc", b"\xff"], "by": text, "undeclared": {"at": id_, "blob": b"\xff"}}
    expected = {"data": [text, "YWJj", "_w=="], "by": text, "undeclared": {"at": text, "blob": "_w=="}}
    values = {"by": text, "paid": "1.5", "blobs": [inner], "seen": {text: 1}, "photo": "/w==", "undeclared": id_}
    one = Sent(id=text, parent=Sent(id=id_, data={"n": bson.Decimal128("2")}), data=id_, **values)
    parent = Sent(id=id_).model_dump(mode="json") | {"data": {"n": "2"}}
    return one, {"id": text, "parent": parent, "data": text, **values, "blobs": [expected], "undeclared": text}


def test_the_constructor_and_assignment_convert_strings_of_json_to_bson_values():
    one, dumped = sent()
    assert one.id == one.by == next(iter(one.seen)) == one.blobs[0].by == bson.ObjectId(b"i" * 12)
    assert (one.paid, one.photo) == (bson.Decimal128("1.5"), b"\xff")
    one.by = str(one.id)
    assert one.by == one.id
    again = Sent(**dumped)
    assert again.model_dump(mode="json") == dumped
    with pytest.raises(ValidationError, match="an ObjectId, or its 24 hexadecimal digits"):
        one.by = "a"


@pytest.mark.parametrize("kind", [Sent, list[Sent], dict[str, Sent | None]])
def test_web_frameworks_get_the_same_json_as_dumps(kind: Any):
    """A type adapter passes no `fallback`, and uses a configuration of its own."""
    one, expected = sent()
    value = {Sent: one, list[Sent]: [one]}.get(kind, {"a": one})
    for dumped in (
        TypeAdapter(kind).dump_python(value, mode="json"),
        json.loads(TypeAdapter(kind).dump_json(value)),
    ):
        (found,) = [dumped] if kind is Sent else dumped if isinstance(dumped, list) else dumped.values()
        assert found == expected == json.loads(one.model_dump_json(by_alias=True))


def test_dumps_of_untyped_values_keep_the_options_of_the_call():
    one = Sent(data={"a": 1, "b": bson.ObjectId(b"i" * 12), "c": None, "d": object}, undeclared=Blob())
    options = {"include": {"data", "undeclared"}, "exclude": {"data": {"b"}}, "exclude_none": True}
    dumped = one.model_dump(mode="json", fallback=lambda value: value.__name__, **options)
    assert dumped == {"data": {"a": 1, "c": None, "d": "object"}, "undeclared": {}}


@pytest.mark.parametrize("mode", ["validation", "serialization"])
def test_json_schemas_have_the_name_id_without_underscore_and_the_pattern_of_object_ids(mode: Any):
    class Keyed(mongoz.Document):
        id: int = mongoz.Integer()

    schema = TypeAdapter(list[Sent]).json_schema(mode=mode)["$defs"]["Sent"]
    assert "_id" not in schema["properties"]
    for name in ("id", "by"):
        assert schema["properties"][name]["anyOf"][0]["pattern"] == "^[0-9a-fA-F]{24}$"
    own = Keyed.model_json_schema(mode=mode)
    assert (list(own["properties"]), own["required"]) == (["id"], ["id"])


def test_a_stored_string_is_refused_as_an_id():
    with pytest.raises(ValidationError, match="instance of ObjectId"):
        hydrate(Sent, {"_id": "69" * 12})
    with pytest.raises(ValidationError, match="instance of ObjectId"):
        hydrate(Sent, {"by": "69" * 12})
    assert hydrate(Sent, {"_id": bson.ObjectId(), "seen": {"69" * 12: 1}}).seen == {bson.ObjectId(b"i" * 12): 1}


def test_errors_name_fields_instead_of_aliases():
    class Aliased(mongoz.Document):
        number: int = mongoz.Integer(alias="n")

    for values in ({}, {"n": "x"}):
        with pytest.raises(ValidationError) as caught:
            Aliased(**values)
        assert caught.value.errors()[0]["loc"] == ("number",)


def test_a_redeclared_id_is_stored_as_the_id():
    class Numbered(mongoz.Document):
        id: int = mongoz.Integer()
        name: str = mongoz.String(default="")

    class Own(mongoz.Document):
        id = mongoz.ObjectId(null=True)
        name: str = mongoz.String(default="")

    assert Numbered(_id=3).id == Numbered(id=3).id == 3
    assert Numbered(id=3).model_dump(by_alias=True) == {"id": 3, "name": ""}
    oid = bson.ObjectId()
    assert Own(_id=oid).id == oid
    assert Own().id is None


class Keyed(BaseModel):
    id: int | None = None


ID_DECLARATIONS = {
    "annotation": {"__annotations__": {"id": int}},
    "annotation as text": {"__annotations__": {"id": "int"}},
    "default": {"__annotations__": {"id": int | None}, "id": None},
    "field of pydantic": {"__annotations__": {"id": int}, "id": Field(ge=0)},
    "factory of pydantic": {"__annotations__": {"id": int}, "id": Field(default_factory=int)},
    "field in the annotation": {"__annotations__": {"id": Annotated[int, Field(ge=0)]}},
    "field of ours": {"id": mongoz.Integer()},
}


def check_id(document: Any) -> None:
    assert document(_id=3).id == document(id=3).id == 3
    assert document(id=3).model_dump(by_alias=True) == {"id": 3, "name": ""}
    assert hydrate(document, {"_id": 3, "name": "x"}).id == 3


@pytest.mark.parametrize("declared", ID_DECLARATIONS)
def test_every_declaration_of_an_id_is_stored_as_the_id(declared):
    document = define(fields={**ID_DECLARATIONS[declared], "name": mongoz.String(default="")})
    check_id(document)
    check_id(define("Heir", document, fields={}))


@pytest.mark.parametrize("bases", [(Keyed, mongoz.Document), (type("Deeper", (Keyed,), {}), mongoz.Document)])
def test_an_id_that_a_base_class_declares_is_stored_as_the_id(bases):
    check_id(define("Own", *bases, fields={"name": mongoz.String(default="")}))


def test_string_annotations_of_local_classes_are_resolved():
    class LocalPart(mongoz.EmbeddedDocument):
        number: int = mongoz.Integer(default=1)

    class Whole(mongoz.Document):
        part: "LocalPart | None" = None
        parent: "Whole | None" = None
        name: str = mongoz.String(default="")

    assert Whole(part={"number": 2}).part.number == 2
    assert Whole(parent={"name": "a"}).parent.name == "a"


def test_the_repr_of_an_instance_is_short_and_hides_fields_with_repr_false() -> None:
    class Part(mongoz.EmbeddedDocument):
        n: int = mongoz.Integer()

    class Thing(mongoz.Document):
        name: str = mongoz.String()
        data: bytes = mongoz.Binary(max_length=100_000)
        parts: list[Part] = mongoz.Array(Part)
        password: str = mongoz.String(repr=False)

    thing = Thing(name="x" * 1000, data=b"y" * 50_000, parts=[Part(n=1)] * 500, password="secret", more=1)
    text = repr(thing)
    assert len(text) < 300
    for part in ("Thing(id=None, name='xxx", "50000 bytes", "parts=[Part(n=1), Part(n=1)", "...", "more=1)"):
        assert part in text
    assert "secret" not in text
    assert str(thing) == "Thing(id=None)"
