"""Choices of fields: refused values, their errors, and labels."""

import enum
from typing import Any

import pytest
from pydantic import ValidationError

import mongoz
from mongoz.exceptions import FieldDefinitionError
from mongoz.fields import Array, Embed, Integer, ObjectId, String

KINDS = (("K1", "Feature"), ("S1", "Short"))
GROUPED = [("Audio", (("vinyl", "Vinyl"), ("cd", "CD"))), ("Video", [("dvd", "DVD")]), ("unknown", "Unknown")]


class Role(mongoz.EmbeddedDocument):
    kind: str = String(choices=KINDS)


class Movie(mongoz.Document):
    movie_type: str = String(choices=KINDS, alias="type")
    medium: str = String(choices=GROUPED, null=True, max_length=10)
    year: int = Integer(choices=[(1, "One"), (2, "Two")], default=1)
    lead: Role = Embed(Role, null=True)
    roles: list[Role] = Array(Role, default=list)


class Color(enum.StrEnum):
    RED = "red"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("movie_type", "K2"),
        ("movie_type", ""),
        ("movie_type", 5),
        ("movie_type", None),
        ("medium", "Audio"),
        ("year", 3),
    ],
)
def test_a_value_that_is_no_choice_raises_a_plain_value_error_in_the_constructor(field: str, value: Any) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared in full
        Movie(**{"movie_type": "K1", field: value})
    assert type(caught.value) is ValueError
    assert str(caught.value) == f"Invalid choice for field '{field}'. Input provided as '{value}'"
    assert caught.value.__suppress_context__, "the traceback has no frame of pydantic"


def test_a_wrong_choice_in_an_embedded_document_raises_a_plain_value_error_at_any_depth() -> None:
    for construct in (
        lambda: Role(kind="K2"),
        lambda: Movie(movie_type="K1", lead={"kind": "K2"}),
        lambda: Movie(movie_type="K1", roles=[{"kind": "K1"}, {"kind": "K2"}]),
        lambda: Movie(type="K1", lead={"kind": "K2"}, year="x y"),
    ):
        with pytest.raises(ValueError, match=r"^Invalid choice for field '(kind|year)'") as caught:
            construct()
        assert type(caught.value) is ValueError


def test_errors_that_do_not_concern_choices_are_validation_errors_of_pydantic() -> None:
    with pytest.raises(ValidationError) as caught:
        Movie()
    assert [(line["type"], line["loc"]) for line in caught.value.errors()] == [("missing", ("movie_type",))]
    with pytest.raises(ValidationError):
        Movie(movie_type="K1", roles=5)


def test_assigning_or_loading_a_wrong_choice_raises_a_validation_error() -> None:
    movie, role = Movie(movie_type="K1"), Role(kind="K1")
    attempts = [
        (lambda: setattr(movie, "movie_type", "K2"), ("movie_type",)),
        (lambda: setattr(movie, "lead", {"kind": "K2"}), ("lead", "kind")),
        (lambda: setattr(role, "kind", "K2"), ("kind",)),
        (lambda: Movie.from_row({"type": "K2"}), ("movie_type",)),
        (lambda: Movie.model_validate({"type": "K2"}), ("movie_type",)),
    ]
    for attempt, place in attempts:
        with pytest.raises(ValidationError, match=r"Invalid choice for field .*Input provided as 'K2'") as caught:
            attempt()
        assert caught.value.errors()[0]["loc"] == place
    assert (movie.movie_type, movie.lead, role.kind) == ("K1", None, "K1")


def test_a_value_of_any_list_or_group_of_choices_is_accepted() -> None:
    movie = Movie(type="S1", medium="cd", year="2")
    assert (movie.movie_type, movie.medium, movie.year) == ("S1", "cd", 2)
    movie.medium = None
    movie.medium = "unknown"


def test_the_display_method_returns_the_label_of_the_value() -> None:
    movie = Movie(movie_type="K1", medium="dvd", lead=Role(kind="S1"))
    assert movie.get_movie_type_display() == "Feature"
    assert movie.get_medium_display() == "DVD"
    assert movie.get_year_display() == "One"
    assert movie.lead.get_kind_display() == "Short"
    movie.medium = None
    assert movie.get_medium_display() is None
    movie.__dict__["year"] = 1999  # stored before the choices were declared
    assert movie.get_year_display() == "1999"
    assert not hasattr(movie, "get_lead_display")


def test_a_display_method_of_the_application_takes_precedence() -> None:
    class Mixin:
        def get_b_display(self) -> str:
            return "mixed in"

    class Own(Mixin, mongoz.Document):
        a: str = String(choices=KINDS)
        b: str = String(choices=KINDS)

        def get_a_display(self) -> str:
            return "own"

    class Child(Own):
        a: str = String(choices=[("x", "X")])
        c: str = String(choices=[("y", "Y")])

    child = Child(a="x", b="K1", c="y")
    assert [child.get_a_display(), child.get_b_display(), child.get_c_display()] == ["own", "mixed in", "Y"]


def test_a_subclass_inherits_choices_and_may_change_them() -> None:
    class Base(mongoz.Document):
        kind: str = String(choices=KINDS)

        class Meta:
            abstract = True

    class Same(Base):
        pass

    class Other(Base):
        kind: str = String(choices=[("K1", "Other")])

    class Free(Base):
        kind: str = String()

    assert Same(kind="K1").get_kind_display() == "Feature"
    assert Other(kind="K1").get_kind_display() == "Other"
    assert Free(kind="any").get_kind_display() == "any"
    with pytest.raises(ValueError, match="Invalid choice"):
        Other(kind="S1")


def test_the_field_object_has_its_choices() -> None:
    assert Movie.model_fields["movie_type"].choices == KINDS
    assert Movie.model_fields["medium"].choices == tuple(GROUPED)
    assert Movie.model_fields["lead"].choices is None
    properties = Movie.model_json_schema()["properties"]
    assert properties["type"]["enum"] == ["K1", "S1"]
    assert properties["medium"]["enum"] == ["vinyl", "cd", "dvd", "unknown", None]


def test_choices_may_be_enums_ids_and_generators() -> None:
    one = ObjectId()

    class Paint(mongoz.Document):
        color: str = String(choices=((c, c.name) for c in Color), default=Color.RED)
        owner: ObjectId = ObjectId(choices=[(one, "One")], null=True)

    assert Paint(color="red", owner=one).get_color_display() == "RED"
    assert Paint(owner=one).get_owner_display() == "One"
    with pytest.raises(ValueError, match="Invalid choice for field 'owner'"):
        Paint(owner=ObjectId())


def test_empty_choices_mean_no_choices() -> None:
    class Any_(mongoz.Document):
        x: str = String(choices=())

    assert Any_(x="anything").x == "anything"


@pytest.mark.parametrize(
    "choices",
    [
        "ab",
        5,
        {"a": "A"},
        ["a", "b"],
        ["ab"],
        [("a",)],
        [("a", "A", "more")],
        [("Group", [("a", "A"), "b"])],
        [("Group", [("Deeper", [("a", "A")])])],
        [None],
    ],
)
def test_malformed_choices_are_refused(choices: Any) -> None:
    with pytest.raises(FieldDefinitionError, match="choices are"):
        String(choices=choices)


def test_a_default_must_be_a_choice() -> None:
    with pytest.raises(FieldDefinitionError, match="'K2' is not among the choices"):
        String(choices=KINDS, default="K2")
