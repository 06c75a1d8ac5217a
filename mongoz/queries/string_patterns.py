"""Regular expressions for lookups on strings."""

import re
from typing import Any, Final

import bson

from mongoz.queries.operands import ValueRefused

__all__ = ["ends", "equals", "has", "matches", "starts"]

_MAX_LENGTH: Final = 10_000  # characters; the server's limit is higher, and depends on the characters
_FLAGS: Final = {"i": re.IGNORECASE, "m": re.MULTILINE, "s": re.DOTALL, "x": re.VERBOSE}


def has(text: str, *, ignoring_case: bool) -> dict[str, Any]:
    """The string contains the text."""
    return _literal_pattern("", text, "", ignoring_case)


def starts(text: str, *, ignoring_case: bool) -> dict[str, Any]:
    """The string starts with the text; the server can use an index unless case is ignored."""
    return _literal_pattern("^", text, "", ignoring_case)


def ends(text: str, *, ignoring_case: bool) -> dict[str, Any]:
    r"""The string ends with the text. The pattern uses `\z`: `$` also matches before a newline at the end."""
    return _literal_pattern("", text, r"\z", ignoring_case)


def equals(text: str, *, ignoring_case: bool) -> dict[str, Any]:
    """The string is the text."""
    return _literal_pattern("^", text, r"\z", ignoring_case)


def matches(pattern: Any) -> dict[str, Any]:
    """The string matches a regular expression, in MongoDB's dialect (PCRE).

    Args:
        pattern: a str or a compiled pattern. The flags of a compiled pattern apply.

    Raises:
        ValueRefused: the pattern is neither.
    """
    flags = 0
    if isinstance(pattern, re.Pattern | bson.Regex):
        pattern, flags = pattern.pattern, int(pattern.flags)
    if not isinstance(pattern, str) or isinstance(pattern, bson.Code):
        raise ValueRefused(f"A pattern is a str or a compiled pattern of str, not {pattern!r}.")
    return _regex(pattern, "".join(letter for letter, flag in _FLAGS.items() if flags & flag))


def _literal_pattern(before: str, text: str, after: str, ignoring_case: bool) -> dict[str, Any]:
    if len(text) > _MAX_LENGTH:
        raise ValueRefused(
            f"{text[:40]!r}... is too long for a pattern: {len(text)} characters; the limit is {_MAX_LENGTH}."
        )
    return _regex(f"{before}{re.escape(text)}{after}", "i" if ignoring_case else "")


def _regex(pattern: str, options: str) -> dict[str, Any]:
    regex = {"$regex": pattern.replace("\0", r"\x00")}  # the server refuses a null character
    return {**regex, "$options": options} if options else regex
