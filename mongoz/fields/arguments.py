"""The keyword arguments of the field factories, in groups, for type checkers and editors."""

import re
from collections.abc import Callable, Iterable
from typing import Any, TypedDict

from pydantic import AliasChoices, AliasPath

__all__ = ["Lengths", "Limits", "Moments", "Shared"]


class Shared(TypedDict, total=False):
    """The arguments of every field, besides `null`, which makes None a valid value and the default.

    Attributes:
        default: a value, or a callable without arguments that makes one. None makes the field nullable.
        unique: add a unique index named after the field.
        index: add an index named after the field.
        sparse: the index leaves out documents without the field.
        choices: the accepted values: `(value, label)` pairs, or groups of them as `(label, pairs)`.
        name: a name for error messages, and for readers of the code; by default the attribute's name.
        alias: the stored name; by default the attribute's name.
        title: a title, for JSON schemas.
        description: a description, for JSON schemas.
        comment: a comment, for readers of the code.
        owner: the owner of the field, for readers of the code.
        help_text: a help text, for readers of the code. It is also the description if `description` is not given.
        read_only: says in JSON schemas that the field is read-only; the ODM does not enforce it.
        pattern: a regular expression that must match a part of `str(value)`.

    The other arguments are passed to `pydantic.Field`.
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
    """The arguments of strings.

    Attributes:
        max_length: the largest number of characters.
        min_length: the smallest number of characters.
    """

    max_length: int | None
    min_length: int | None


class Limits(Shared, total=False):
    """The arguments of numbers.

    Attributes:
        minimum: the smallest valid value.
        maximum: the largest valid value.
        multiple_of: valid values are multiples of this number.
    """

    minimum: Any
    maximum: Any
    multiple_of: Any


class Moments(Shared, total=False):
    """The arguments of `DateTime` and `Date`.

    Attributes:
        auto_now: every save and update sets the field to now. `create()` sets it too, unless a value is given.
        auto_now_add: creating the document sets the field to now, unless a value is given.
    """

    auto_now: bool
    auto_now_add: bool
