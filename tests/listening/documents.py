"""Documents with different rules for values, and the kinds of receivers."""

from typing import Any, Final, NamedTuple, Self

from pydantic import field_validator, model_validator

import mongoz

__all__ = ["COLLECTION", "DEFAULTS", "KINDS", "LISTENED", "SILENT", "WAYS", "Way", "as_loaded", "fits", "make"]

KINDS: Final = ("Bare", "Bounded", "Checked", "Refusing", "Deriving", "Touched")

COLLECTION: Final = "things"
DEFAULTS: Final[dict[str, Any]] = {"n": 1, "m": 2, "s": "a", "tags": [], "u": None}


class Way(NamedTuple):
    """A kind of receivers.

    Attributes:
        name: the name of the kind.
        signals: the signals of the receivers.
        dispatched: whether the registry is dispatched.
        delivery: the delivery of the `post_*` receivers.
        muted: whether calls are muted.
        transactions: whether the server lets bulk calls use transactions.
    """

    name: str
    signals: tuple[str, ...] = ()
    dispatched: bool = False
    delivery: str = "any"
    muted: bool = False
    transactions: bool = True


_PRE: Final = ("pre_save", "pre_update", "pre_delete")
_POST: Final = ("post_save", "post_update", "post_delete")

SILENT: Final = Way("nobody listens")
LISTENED: Final = (
    Way("a post receiver listens", _POST),
    Way("a pre receiver listens", _PRE),
    Way("pre and post receivers listen", _PRE + _POST),
    Way("a post receiver listens, without transactions", _POST, transactions=False),
    Way("muted", _POST, dispatched=True, muted=True),
    Way("muted, and nobody listens", dispatched=True, muted=True),
    Way("a post receiver listens, stamped", _POST, dispatched=True),
    Way("the dispatcher listens", _POST, dispatched=True, delivery="dispatcher"),
)
WAYS: Final = (SILENT, *LISTENED)


def make(registry: mongoz.Registry, database: str) -> dict[str, Any]:
    """The document classes by kind; all use one collection."""
    meta = type("Meta", (), {"registry": registry, "database": database, "collection": COLLECTION})

    class Thing(mongoz.Document):
        n: int = mongoz.Integer(default=1)
        m: int = mongoz.Integer(default=2)
        s: str = mongoz.String(default="a")
        tags: list[str] = mongoz.Array(str, default=list)
        u: int | None = mongoz.Integer(null=True)

        class Meta:
            abstract = True

    class Bare(Thing):
        Meta = meta

    class Bounded(Thing):
        n: int = mongoz.Integer(minimum=0, maximum=4, default=1)
        s: str = mongoz.String(max_length=3, default="a")
        tags: list[str] = mongoz.Array(str, max_length=2, default=list)

        Meta = meta

    class Checked(Thing):
        Meta = meta

        @field_validator("n")
        @classmethod
        def _not_three(cls, value: int) -> int:
            if value == 3:
                raise ValueError("n is three")
            return value

    class Refusing(Thing):
        Meta = meta

        @model_validator(mode="after")
        def _ordered(self) -> Self:
            if self.n > self.m:
                raise ValueError("n is more than m")
            return self

    class Deriving(Thing):
        Meta = meta

        @model_validator(mode="after")
        def _derive(self) -> Self:
            self.__dict__["m"] = 2 * self.n
            return self

    class Touched(Thing):
        at: Any = mongoz.DateTime(auto_now=True)

        Meta = meta

    return {document.__name__: document for document in (Bare, Bounded, Checked, Refusing, Deriving, Touched)}


def fits(kind: str, row: dict[str, Any]) -> bool:
    """Whether a row is valid for this kind, and has the form that documents of this kind write."""
    row = {**DEFAULTS, **row}
    if not isinstance(row["n"], int):
        return False
    match kind:
        case "Bounded":
            return bool(0 <= row["n"] <= 4 and len(row["s"]) <= 3 and len(row["tags"]) <= 2)
        case "Checked":
            return bool(row["n"] != 3)
        case "Refusing":
            return bool(row["n"] <= row["m"])
        case "Deriving":
            return bool(row["m"] == 2 * row["n"])
    return True


def as_loaded(kind: str, row: dict[str, Any]) -> dict[str, Any]:
    """The values of an instance that a document class of this kind loads from a row."""
    n = row.get("n", DEFAULTS["n"])
    return {**row, "m": 2 * n} if kind == "Deriving" and isinstance(n, int) else row
