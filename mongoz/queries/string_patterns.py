"""Matching of strings: regular expressions that say exactly what a lookup says."""

import re
from typing import Any, Final

import bson

from mongoz.queries.operands import ValueRefused

__all__ = ["ends", "equals", "has", "matches", "starts"]

_LONGEST: Final = 10_000  # characters; the server compiles a bit more, depending on what they are
_FLAGS: Final = {"i": re.IGNORECASE, "m": re.MULTILINE, "s": re.DOTALL, "x": re.VERBOSE}


def has(text: str, *, ignoring_case: bool) -> dict[str, Any]:
    """The text is somewhere in the string."""
    return _literally("", text, "", ignoring_case)


def starts(text: str, *, ignoring_case: bool) -> dict[str, Any]:
    """The string starts with the text; the server can use an index if the case matters."""
    return _literally("^", text, "", ignoring_case)


def ends(text: str, *, ignoring_case: bool) -> dict[str, Any]:
    r"""The string ends with the text. `\z`, since `$` also matches before a newline at the end."""
    return _literally("", text, r"\z", ignoring_case)


def equals(text: str, *, ignoring_case: bool) -> dict[str, Any]:
    """The string is the text."""
    return _literally("^", text, r"\z", ignoring_case)


def matches(pattern: Any) -> dict[str, Any]:
    """The string matches a regular expression, in MongoDB's dialect (PCRE).

    Args:
        pattern: a str, or a compiled one, whose flags are kept.

    Raises:
        ValueRefused: anything else.
    """
    flags = 0
    if isinstance(pattern, re.Pattern | bson.Regex):
        pattern, flags = pattern.pattern, int(pattern.flags)
    if not isinstance(pattern, str) or isinstance(pattern, bson.Code):
        raise ValueRefused(f"A pattern is a str or a compiled one of str, not {pattern!r}.")
    return _regex(pattern, "".join(letter for letter, flag in _FLAGS.items() if flags & flag))


def _literally(before: str, text: str, after: str, ignoring_case: bool) -> dict[str, Any]:
    if len(text) > _LONGEST:
        raise ValueRefused(f"{text[:40]!r}... is too long to match with: {len(text)} characters, of {_LONGEST}.")
    return _regex(f"{before}{re.escape(text)}{after}", "i" if ignoring_case else "")


def _regex(pattern: str, options: str) -> dict[str, Any]:
    regex = {"$regex": pattern.replace("\0", r"\x00")}  # the server takes none with a null character
    return {**regex, "$options": options} if options else regex
