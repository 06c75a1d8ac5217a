"""Errors in words. They may be of an application's classes; whatever those do when asked, this does not raise."""

import traceback

__all__ = ["text_of", "trace_of"]


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
