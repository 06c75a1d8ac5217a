"""Errors in words. They may be of an application's classes; whatever those do when asked, this does not raise."""

import re
import traceback
from typing import Final

__all__ = ["text_of", "trace_of", "without_credentials"]

# Up to the last "@": a password that should have been escaped may hold any of the others.
_USER: Final = re.compile(r"""(\w://)[^\s"'<>]*@""")

# Options of a URL that are secrets.
_OPTION: Final = re.compile(r"""([?&](?:\w*password|authMechanismProperties)=)[^&\s"'<>]+""", re.IGNORECASE)


def text_of(error: BaseException) -> str:
    """Type and message of an error."""
    try:
        return _printable(f"{type(error).__name__}: {error}")
    except BaseException:  # of a class whose __str__ has a bug
        return type(error).__name__


def trace_of(error: BaseException) -> str:
    """The traceback, as Python prints it; at least the places that it came by."""
    try:
        return _printable("".join(traceback.format_exception(error)))
    except BaseException:  # asked for its causes, its notes, its truth
        places = "".join(traceback.format_tb(error.__traceback__))
        return f"Traceback (most recent call last):\n{_printable(places)}{text_of(error)}\n"


def _printable(text: str) -> str:
    """Without lone surrogates, which no file and no database takes."""
    return text.encode("utf-8", "backslashreplace").decode()


def without_credentials(text: str) -> str:
    """The text, with the secrets of URLs replaced by dots."""
    if "://" not in text:
        return text
    return _OPTION.sub(r"\1...", _USER.sub(r"\1...@", text))
