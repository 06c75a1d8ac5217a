"""The keyword arguments of the field factories, group by group; type checkers and editors know them from here."""

import re
from collections.abc import Callable, Iterable
from typing import Any, TypedDict

from pydantic import AliasChoices, AliasPath

__all__ = ["Lengths", "Limits", "Moments", "Shared"]


class Shared(TypedDict, total=False):
    """What every field takes besides `null`: that makes None a valid value and the default.

    Attributes:
        default: a value, or a callable without arguments that makes one. None makes the field nullable.
        unique: add a unique index named after the field.
        index: add an index named after the field.
        sparse: documents without the field are not in that index.
        choices: `(value, label)` pairs, or groups of them as `(label, pairs)`; nothing else is accepted then.
        name: for people; the attribute's name where there is none.
        alias: the name under which it is stored, where that is not the attribute's.
        title: for JSON schemas.
        description: for JSON schemas.
        comment: for people.
        owner: for people.
        help_text: for people; also the description where there is none.
        read_only: for people and JSON schemas.
        pattern: a regular expression that is searched for; of what is no string, in `str(value)`.

    The others are those of `pydantic.Field`.
    """

    default: Any
    unique: bool
    index: bool
    sparse: bool
    choices: Iterable[Any] | None
    name: str | None
    alias: str | None
    title: str | None
    description: str | None
    comment: str | None
    owner: str | None
    help_text: str | None
    read_only: bool
    pattern: str | re.Pattern[str] | None

    default_factory: Callable[[], Any] | None
    validation_alias: str | AliasPath | AliasChoices | None
    serialization_alias: str | None
    alias_priority: int | None
    examples: list[Any] | None
    exclude: bool | None
    exclude_if: Callable[[Any], bool] | None
    deprecated: str | bool | None
    json_schema_extra: Any
    field_title_generator: Any
    discriminator: Any
    frozen: bool | None
    validate_default: bool | None
    repr: bool
    init: bool | None
    init_var: bool | None
    kw_only: bool | None
    strict: bool | None
    union_mode: Any
    fail_fast: bool | None
    coerce_numbers_to_str: bool | None
    allow_inf_nan: bool | None
    gt: Any
    ge: Any
    lt: Any
    le: Any


class Lengths(Shared, total=False):
    """Those of strings.

    Attributes:
        max_length: in characters.
        min_length: in characters.
    """

    max_length: int | None
    min_length: int | None


class Limits(Shared, total=False):
    """Those of numbers.

    Attributes:
        minimum: the smallest value allowed.
        maximum: the largest value allowed.
        multiple_of: every value is a multiple of it.
    """

    minimum: Any
    maximum: Any
    multiple_of: Any


class Moments(Shared, total=False):
    """Those of instants and days.

    Attributes:
        auto_now: set by every save and update.
        auto_now_add: set when the document is created. An explicit value is accepted by both.
    """

    auto_now: bool
    auto_now_add: bool
