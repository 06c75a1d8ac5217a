"""Scenes for single cases that random scenes rarely reach."""

from dataclasses import replace
from typing import Any, Final

from tests.listening.calls import (
    Call,
    Create,
    CreateMany,
    Delete,
    DeleteMany,
    Foreign,
    GetOrCreate,
    Query,
    Save,
    Scene,
    Update,
    UpdateMany,
    Values,
)
from tests.listening.documents import DEFAULTS

__all__ = ["DIRECTED"]

_ALL: Final = Query()
_ONES: Final = Query({"n": 1})
_SOME_ONES: Final = Query({"n": 1}, limit=2)
_ANY_A: Final = Query({"s": "A"}, any_case=True)


def _rows(*rows: Values) -> dict[int, dict[str, Any]]:
    return {number: {**DEFAULTS, **row} for number, row in enumerate(rows, 1)}


def _committed(*calls: Call, kind: str = "Bare") -> Scene:
    return Scene(kind, _rows({}, {"n": 2}), calls, "committed")


def _beside(kind: str, rows: dict[int, Any], call: Call, foreign: Foreign, *commands: int) -> list[Scene]:
    """One scene for each command. In it, the other client writes before this command."""
    return [Scene(kind, rows, (call,), None, foreign, at) for at in commands]


_INC: Final = (("inc", {"n": 1}),)
_INC_2: Final = (("inc", {"n": 2}),)
_PUSH: Final = (("push", {"tags": "x"}),)

_DUPLICATES: Final = [
    Scene("Bare", {}, (CreateMany("create_many", ({"id": 1}, {"id": 4}, {"id": 4}, {"id": 2})),)),
    Scene("Bare", _rows({"u": 1}), (CreateMany("bulk_create", ({"u": 0}, {"u": 1}, {"u": 2})),)),
    Scene("Bare", _rows({}, {}, {}), (UpdateMany("update", _ALL, {"u": 1}),)),
]

_ONCE: Final = [
    *(Scene("Bare", {}, (Create(how, {}),)) for how in ("create", "save", "objects")),
    Scene("Bare", {}, (CreateMany("create_many", ({}, {"id": 1})),)),
    Scene("Bare", _rows({}), (Save(1, {"n": 2}),)),
    Scene("Bare", _rows({}), (Update(1, {"n": 2}),)),
    Scene("Bare", _rows({}), (Delete(1),)),
    Scene("Bare", _rows({}, {}), (UpdateMany("update", _ALL, {"n": 2}),)),
    Scene("Bare", _rows({}, {}), (DeleteMany(_ALL),)),
]

# The receivers of each call get the instance as this call wrote it.
_WRITTEN_TWICE: Final = [
    _committed(Update(1, {"n": 3}), Update(1, {"n": 4})),
    _committed(Save(1, {"s": "b"}), Update(1, {}, _PUSH), Save(1, {"s": "c"})),
    _committed(Update(1, {"tags": ["x"]}), Delete(1)),
    _committed(Create("save", {}), Save("new", {"n": 3}), Update("new", {}, _INC)),
    _committed(CreateMany("create_many", ({}, {"n": 4})), Save(("new", 1), {"s": "b"}), Delete(("new", 0))),
    _committed(UpdateMany("update_many", _ALL, {}, _INC), UpdateMany("update", _ALL, {"s": "b"}, _PUSH)),
    replace(_committed(Update(1, {"n": 3}), Update(1, {"n": 4})), within="aborted"),
]

_OPERATIONS: Final = [
    Scene("Bare", _rows({}, {"n": 3}), (UpdateMany("update", _ALL, {"s": "b"}, (*_INC, *_PUSH)),)),
    Scene("Bare", _rows({}), (Update(1, {"s": "b"}, (*_INC, *_PUSH)),)),
    Scene("Bounded", _rows({"n": 3}), (Update(1, {}, _INC_2),)),
    Scene("Bounded", _rows({}, {"n": 3}), (UpdateMany("update_count", _ALL, {}, _INC_2),)),
    Scene("Bounded", _rows({"tags": ["x", "y"]}), (UpdateMany("update_many", _ALL, {}, _PUSH),)),
]

_VALIDATORS: Final = [
    Scene("Checked", _rows({}, {"n": 2}), (UpdateMany("update_count", _ALL, {}, _INC),)),
    Scene("Checked", _rows({"n": 2}), (Update(1, {}, _INC),)),
    Scene("Refusing", _rows({}), (UpdateMany("update", _ALL, {"m": 0}),)),
    Scene("Refusing", _rows({}), (UpdateMany("update_count", _ALL, {}, _INC_2),)),
    Scene("Deriving", _rows({}, {}), (UpdateMany("update_many", _ALL, {"n": 3}),)),
    Scene("Deriving", _rows({}, {}), (UpdateMany("update", _ALL, {}, _INC),)),
]

# Another client wrote these documents.
_MISFITS: Final = [
    Scene("Bare", _rows({}, {"n": "not a number"}), (UpdateMany("update", _ALL, {"s": "b"}),)),
    Scene("Bounded", _rows({"s": "long"}, {"n": 7}), (UpdateMany("update_many", _ALL, {"m": 3}, _PUSH),)),
    Scene("Deriving", _rows({"n": "not a number"}, {}), (UpdateMany("update_count", _ALL, {"u": None}),)),
    Scene("Bare", _rows({"n": "not a number"}, {}), (DeleteMany(_ALL),)),
]

# Between the read and the write another client changes whether a document matches.
_MOVES_OUT: Final = [
    scene
    for call in (
        UpdateMany("update", _ONES, {"m": 0}),
        UpdateMany("update_count", _SOME_ONES, {"m": 0}),
        DeleteMany(_ONES),
        DeleteMany(_SOME_ONES),
        DeleteMany(_ANY_A),
    )
    for scene in _beside("Bare", _rows({}, {}), call, Foreign("set", 2, {"n": 2, "s": "b"}), 1, 2, 3)
] + [  # similar scenes, with a single document
    *_beside("Bare", _rows({}), UpdateMany("update", _ONES, {"m": 0}), Foreign("set", 1, {"n": 2}), 2, 3),
    *_beside("Bare", _rows({}), UpdateMany("update_many", _ANY_A, {"m": 0}), Foreign("set", 1, {"s": "b"}), 2, 3),
    *_beside("Bare", _rows({}), DeleteMany(_ANY_A), Foreign("set", 1, {"s": "b"}), 2, 3),
]

# Between the read and the write another client changes the source of a derived value.
_DERIVED_OF: Final = [
    *_beside(
        "Deriving", _rows({}, {}), UpdateMany("update", _ALL, {}, _INC), Foreign("set", 2, {"n": 3}), 1, 2, 3
    ),
    *_beside(
        "Deriving", _rows({}), UpdateMany("update_many", _ALL, {"s": "b"}), Foreign("inc", 1, {"n": 1}), 1, 2
    ),
    *_beside("Deriving", _rows({}), Update(1, {}, _INC), Foreign("set", 1, {"n": 3}), 0, 1),
    *_beside("Refusing", _rows({}), UpdateMany("update", _ALL, {"n": 2}), Foreign("set", 1, {"m": 1}), 1, 2),
]

_CHECKED: Final = [
    *_beside("Checked", _rows({}, {}), UpdateMany("update", _ALL, {}, _INC), Foreign("set", 2, {"n": 2}), 1, 2, 3),
    *_beside("Checked", _rows({}), Update(1, {}, _INC), Foreign("set", 1, {"n": 2}), 0, 1),
]

# Between the read and the write another client changes a document so that the operation exceeds a bound.
_BOUNDS: Final = [
    *_beside(
        "Bounded", _rows({}, {"n": 2}), UpdateMany("update", _ALL, {}, _INC_2), Foreign("set", 2, {"n": 4}), 1, 2
    ),
    *_beside(
        "Bounded",
        _rows({}),
        UpdateMany("update_many", _ALL, {}, _PUSH),
        Foreign("set", 1, {"tags": ["x", "y"]}),
        1,
        2,
        3,
        4,
    ),
    *_beside("Bounded", _rows({"n": 2}), Update(1, {}, _INC_2), Foreign("set", 1, {"n": 4}), 0, 1),
    *_beside("Bounded", _rows({}), UpdateMany("update_many", _ALL, {"n": 0}), Foreign("inc", 1, {"n": -1}), 2),
]

# Between the read and the write another client changes another field: signals and results have the stored value.
_OTHER_FIELDS: Final = [
    *_beside("Bare", _rows({}, {}), UpdateMany("update", _ALL, {"s": "b"}), Foreign("set", 2, {"m": 0}), 1, 2, 3),
    *_beside("Bare", _rows({}), UpdateMany("update_many", _ALL, {}, _PUSH), Foreign("set", 1, {"m": 0}), 1, 2),
]

_OTHER_RACES: Final = [
    *_beside(
        "Bare", _rows({}), GetOrCreate({"u": 1}, {"s": "b"}), Foreign("insert", 4, {**DEFAULTS, "u": 1}), 1, 2
    ),
    *_beside("Bare", _rows({}), Save(1, {"n": 2}), Foreign("delete", 1), 0),
    *_beside("Bare", _rows({}), Delete(1), Foreign("delete", 1), 0, 1),
]

DIRECTED: Final[dict[str, list[Scene]]] = {
    "each call once": _ONCE,
    "duplicates": _DUPLICATES,
    "one instance is written twice": _WRITTEN_TWICE,
    "operations": _OPERATIONS,
    "validators": _VALIDATORS,
    "documents that do not fit the model": _MISFITS,
    "a document that does not match any more": _MOVES_OUT,
    "a value that is derived from another one": _DERIVED_OF,
    "a value that a validator refuses": _CHECKED,
    "bounds": _BOUNDS,
    "another field": _OTHER_FIELDS,
    "other races": _OTHER_RACES,
}
