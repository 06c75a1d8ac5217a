"""Contexts: blocks whose writes carry values to their receivers. A block applies to the task that enters it."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

from mongoz.stamps import ContextValues, context_of

__all__ = ["Contexts", "WriteContext", "context", "contexts", "current_context", "make_context"]

_LONGEST: Final = 1_024
_TOO_LONG: Final = f"All values, also those of outer blocks, may have at most {_LONGEST:,} bytes as JSON"
_MOST_SHOWN: Final = 60

_TRACE: Final = "traceparent"


@dataclass(frozen=True, slots=True)
class WriteContext:
    """The context of a write. Two contexts with the same text are equal.

    Attributes:
        values: the values that receivers get, read-only.
        text: the values as JSON, for the stamp.
    """

    values: ContextValues = field(compare=False)
    text: str


_current: ContextVar[WriteContext | None] = ContextVar("mongoz_context", default=None)


class Contexts:
    """Whether this process uses contexts at all.

    Attributes:
        is_used: a context was entered in this process. While the flag is False, writes don't look for a context.
    """

    __slots__ = ("is_used",)

    def __init__(self) -> None:
        self.is_used = False


contexts: Final = Contexts()


@contextmanager
def context(**values: str | int | bool) -> Iterator[None]:
    """A block whose writes carry these values, in this task and in tasks that it starts.

    Receivers find the values as `delivery.context`, a read-only mapping. On a dispatched registry, each write in
    the block has a stamp with the values, for receivers in the dispatcher. The values stay in the document until
    its next stamped write. Every client that can read the document can read them, so put no secrets into them.

    A block inside of another adds its values, and replaces values with the same names. If OpenTelemetry has a
    current span at the time of a write, the write carries its `traceparent` (W3C Trace Context) too.

    Args:
        **values: strings, integers and booleans. Together with the values of outer blocks, they may have at most
            1,024 bytes as JSON.

    Raises:
        ValueError: a value has another type, or the values are too long.

    Examples:
        >>> with mongoz.context(user="ada", reason="refund"):
        ...     await order.update(status="cancelled")
    """
    outer = _current.get()
    entered = make_context(values if outer is None else {**outer.values, **values})
    contexts.is_used = True
    token = _current.set(entered)
    try:
        yield
    finally:
        _current.reset(token)


def current_context() -> WriteContext | None:
    """The context of a write that this task makes now; None if it has no values."""
    if not contexts.is_used:
        return None
    found = _current.get()
    if found is None:
        return None
    trace = _traceparent()
    if trace and trace != found.values.get(_TRACE):
        found = _made({**found.values, _TRACE: trace})
    return found if found.values else None


def make_context(values: dict[str, Any]) -> WriteContext:
    """Check the values of a context, and make it.

    Raises:
        ValueError: a value has another type, or the values are too long.
    """
    for name, value in values.items():
        if problem := _problem_of(name, value):
            raise ValueError(f"mongoz.context(): {_shown(name)} is {_shown(value)}. {problem}")
    made = _made(values)
    size = len(made.text.encode())
    if size > _LONGEST:
        longest = max(values, key=lambda name: len(_json({name: values[name]}).encode()))
        names = ", ".join(map(_shown, values))
        raise ValueError(
            f"mongoz.context(): {_shown(longest)} is {_shown(values[longest])}. {_TOO_LONG}, and these have "
            f"{size:,}: {names}. Shorten this value, or pass an id instead of the content."
        )
    return made


def _problem_of(name: str, value: object) -> str:
    """The problem of a value, and its remedy; empty if there is none."""
    if not isinstance(value, str | int):
        return (
            f"A context takes str, int and bool only, and this is {type(value).__name__}. "
            "Pass str(...) of the value, or leave it out."
        )
    if isinstance(value, int) and value.bit_length() > _LONGEST * 8:  # Python does not convert it to text
        return f"{_TOO_LONG}. Pass a smaller number."
    try:
        f"{name}{value}".encode()
    except UnicodeEncodeError:
        return (
            "The text has half of a surrogate pair, which UTF-8 can't encode. "
            "Pass text.encode(errors='replace').decode()."
        )
    return ""


def _made(values: dict[str, Any]) -> WriteContext:
    text = _json(values)
    made = context_of(text)  # plain values, as the dispatcher gets them: no members of enums
    assert made is not None
    return WriteContext(made, text)


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"))


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # an int with thousands of digits
        return "an int with thousands of digits"
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 3]}..."


def _traceparent() -> str:
    """The W3C `traceparent` of OpenTelemetry's current span; empty without a span.

    An application that has not imported the package has no span.
    """
    current_span = getattr(sys.modules.get("opentelemetry.trace"), "get_current_span", None)
    if current_span is None:
        return ""
    span = current_span().get_span_context()
    if not span.is_valid:
        return ""
    return f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags & 0xFF:02x}"
