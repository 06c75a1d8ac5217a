"""Small random scenes that hypothesis can shrink to a readable size."""

from collections.abc import Sequence
from typing import Any, Final

from hypothesis import strategies as st

from tests.listening.calls import (
    Call,
    Create,
    CreateMany,
    Delete,
    DeleteMany,
    Foreign,
    GetOrCreate,
    Place,
    Query,
    Save,
    Scene,
    Update,
    UpdateMany,
)
from tests.listening.documents import DEFAULTS, KINDS, fits

__all__ = ["GROUPS", "scenes"]

Strategy = st.SearchStrategy[Any]

# Few values, so filters, bounds and foreign writes interact.
_NUMBERS: Final = st.integers(0, 4)
_VALUES: Final[dict[str, Strategy]] = {
    "n": st.sampled_from([0, 1, 2, 3, 4, 5, -1]),
    "m": _NUMBERS,
    "s": st.sampled_from(["a", "b", "c", "long"]),
    "tags": st.lists(st.sampled_from(["x", "y"]), max_size=2),
    "u": st.none() | st.integers(0, 2),
}


def _some(least: int = 0, most: int = 2) -> Strategy:
    """New values for some fields."""
    names = st.lists(st.sampled_from(sorted(_VALUES)), min_size=least, max_size=most, unique=True)
    return names.flatmap(lambda names: st.fixed_dictionaries({name: _VALUES[name] for name in names}))


@st.composite
def _rows(draw: Any, kind: str, *, least: int, valid: bool) -> dict[int, Any]:
    """Valid documents, and sometimes documents that only another client can write."""
    rows: dict[int, Any] = {}
    for number in range(1, draw(st.integers(least, 3)) + 1):
        row: dict[str, Any] = {**DEFAULTS, **draw(_some(most=3))}
        if row["u"] in {other["u"] for other in rows.values()}:
            row["u"] = None
        if kind == "Touched":
            row["at"] = "then"
        if draw(st.integers(0, 3)) == 3:
            row["undeclared"] = 1
        if not valid and draw(st.integers(0, 4)) == 4:
            row["n"] = "not a number"
        if not fits(kind, row) and (valid or draw(st.integers(0, 3)) != 3):
            row |= {"n": 1, "m": 2, "s": "a"}
        rows[number] = row
    return rows


_FILTERS: Final[list[Strategy]] = [
    st.fixed_dictionaries({"n__gt": _NUMBERS}),
    st.fixed_dictionaries({"n__lt": _NUMBERS}),
    st.fixed_dictionaries({"n": _NUMBERS}),
    st.fixed_dictionaries({"s": st.sampled_from(["a", "b", "A", "long"])}),
    st.fixed_dictionaries({"u__in": st.just([0, 1])}),
    st.fixed_dictionaries({"id": st.integers(1, 4)}),
    st.fixed_dictionaries({"tags": st.just("x")}),
]
_QUERIES: Final = st.builds(
    Query,
    st.one_of(st.just({}), *_FILTERS),
    st.none() | st.tuples(st.sampled_from(["n", "s"]), st.sampled_from([1, -1])),
    st.sampled_from([0, 0, 0, 1]),
    st.sampled_from([0, 0, 0, 1, 2]),
    st.sampled_from([False, False, False, True]),
)

_OPERATION: Final = st.one_of(
    st.tuples(st.just("inc"), st.fixed_dictionaries({"n": st.sampled_from([1, -1, 2, -2, 4])})),
    st.tuples(st.just("inc"), st.fixed_dictionaries({"m": st.sampled_from([1, -1, -2])})),
    st.tuples(st.sampled_from(["min", "max"]), st.fixed_dictionaries({"n": _NUMBERS})),
    st.tuples(
        st.sampled_from(["push", "pull", "add_to_set"]),
        st.fixed_dictionaries({"tags": st.sampled_from(["x", "y"])}),
    ),
    st.tuples(st.just("unset"), st.sampled_from([{"u": 1}, {"n": 1}, {"s": 1}])),
)


@st.composite
def _changes(draw: Any) -> tuple[Any, Any]:
    """At least one value or operation. No field has two of them."""
    most_values, most_operations = draw(st.sampled_from([(2, 0), (0, 2), (2, 2), (1, 1)]))
    operations = draw(st.lists(_OPERATION, min_size=min(1, most_operations), max_size=most_operations))
    values = draw(_some(least=0 if operations else 1, most=most_values))
    taken, kept = set(values), []
    for operator, about in operations:
        if not taken & set(about):
            taken |= set(about)
            kept.append((operator, about))
    return values, tuple(kept)


def _new() -> Strategy:
    """Values of a new document, with or without an id."""
    return st.tuples(_some(most=3), st.sampled_from([None, 1, 4, 4])).map(
        lambda drawn: drawn[0] if drawn[1] is None else {"id": drawn[1], **drawn[0]}
    )


def _creating(numbers: Sequence[Place]) -> Strategy:
    many = st.builds(
        CreateMany,
        st.sampled_from(["create_many", "bulk_create", "document"]),
        st.lists(_new(), max_size=3).map(tuple),
    )
    lookups = st.one_of(st.fixed_dictionaries({name: _VALUES[name]}) for name in ("s", "u", "n"))
    get = st.builds(GetOrCreate, lookups, _some())
    return st.one_of(st.builds(Create, st.sampled_from(["create", "save", "objects"]), _new()), many, many, get)


def _writing(numbers: Sequence[Place]) -> Strategy:
    if not numbers:
        return _creating(numbers)
    number = st.sampled_from(numbers)
    update = st.builds(lambda number, changes: Update(number, *changes), number, _changes())
    return st.one_of(update, update, st.builds(Save, number, _some()), st.builds(Delete, number))


def _updating(numbers: Sequence[Place]) -> Strategy:
    how = st.sampled_from(["update", "update_many", "bulk_update", "update_count"])
    return st.builds(lambda how, query, changes: UpdateMany(how, query, *changes), how, _QUERIES, _changes())


def _deleting(numbers: Sequence[Place]) -> Strategy:
    return st.builds(DeleteMany, _QUERIES)


GROUPS: Final = {"creating": _creating, "instances": _writing, "updating": _updating, "deleting": _deleting}

_FOREIGN: Final = st.one_of(
    st.builds(Foreign, st.just("set"), st.integers(1, 3), _some(least=1)),
    st.builds(
        Foreign, st.just("inc"), st.integers(1, 3), st.fixed_dictionaries({"n": st.sampled_from([1, -1, 3, -3])})
    ),
    st.builds(Foreign, st.just("unset"), st.integers(1, 3), st.sampled_from([{"n": 1}, {"s": 1}, {"tags": 1}])),
    st.builds(Foreign, st.just("delete"), st.integers(1, 3)),
    st.builds(
        Foreign,
        st.sampled_from(["insert", "replace"]),
        st.sampled_from([1, 4]),
        _some().map(lambda values: {**DEFAULTS, **values}),
    ),
)


@st.composite
def scenes(draw: Any, group: str, *, foreign: bool) -> Scene:
    """Scenes of a group of calls, with or without a foreign write."""
    kind = draw(st.sampled_from([*KINDS, "Bounded", "Refusing", "Deriving"]))
    by_query = group in ("updating", "deleting")
    rows = draw(_rows(kind, least=group != "creating", valid=not by_query))
    within = draw(st.sampled_from([None, None, None, "committed", "committed", "aborted"]))
    calls: list[Call] = [draw(GROUPS[group](sorted(rows)))]
    if within is not None:
        makers = list(GROUPS.values()) if not by_query else [_updating, _deleting]
        more = st.sampled_from(makers).flatmap(lambda make: make(sorted(rows)))
        calls += [draw(_again(calls[0]) | more) for _ in range(draw(st.sampled_from([1, 0, 2])))]
    if not foreign:
        return Scene(kind, rows, tuple(calls), within)
    other = draw(_meeting(kind, sorted(rows), calls[0]) | _FOREIGN)
    return Scene(kind, rows, tuple(calls), within, other, draw(st.sampled_from([1, 0, 2, 1, 3])))


def _again(call: Call) -> Strategy:
    """Calls on an instance written by an earlier call."""
    if isinstance(call, CreateMany):
        return _writing([("new", place) for place in range(len(call.models))])
    if isinstance(call, Create):
        return _writing(["new"])
    place = call.loads()
    return st.nothing() if place is None else _writing([place])


def _meeting(kind: str, numbers: list[int], call: Call) -> Strategy:
    """Writes of another client that change whether a document matches, or the source of a derived value."""
    names = [lookup.partition("__")[0] for lookup in call.query.filter] if call.query else []
    names += {"Bounded": ["n", "tags"], "Refusing": ["m", "n"], "Deriving": ["n"]}.get(kind, [])
    chosen = [
        st.builds(Foreign, st.just("set"), st.sampled_from(numbers), st.fixed_dictionaries({name: _VALUES[name]}))
        for name in dict.fromkeys(names)
        if name in _VALUES and numbers
    ]
    return st.one_of(chosen)
