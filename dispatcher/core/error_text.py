"""Describes errors for logs, dead letters and spans. The texts have no secrets and a limited length.

An application may define the class of an error, and the methods of such a class may raise errors. The functions
here never raise an error.
"""

import traceback
from collections.abc import Callable, Iterator
from typing import Final

from dispatcher.core.redaction import LONGEST_TEXT, redacted, shortened

# Maximum length of a traceback, in characters.
_LONGEST_TRACE: Final = 50_000


def text_of(error: BaseException, limit: int = LONGEST_TEXT) -> str:
    """Type and message of an error.

    Args:
        limit: the approximate maximum number of characters. The type and the start of the message are kept.
    """
    return _described(lambda: f"{type(error).__name__}: {error}", limit) or type(error).__name__


def words_of(value: object) -> str:
    """A value as text. For an error, the text is the message without the type."""
    return _described(lambda: str(value), LONGEST_TEXT)


def trace_of(error: BaseException) -> str:
    """The traceback as Python prints it. If Python can't print the error, a short text replaces the error."""
    text = _described(lambda: "".join(traceback.format_exception(error)), _LONGEST_TRACE)
    if text:
        return text
    places = _described(lambda: "".join(traceback.format_tb(error.__traceback__)), _LONGEST_TRACE)
    return f"Traceback (most recent call last):\n{places}{text_of(error)}\n"


def _described(describe: Callable[[], str], limit: int) -> str:
    """The shortened text, or "" if `describe` raises.

    The text has no secrets. Lone surrogates are escaped, because they can't be stored.
    """
    try:
        text = describe()
    except BaseException:  # methods and properties of the error may raise anything
        return ""
    return redacted(shortened(text, limit)).encode("utf-8", "backslashreplace").decode()


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """An error and the errors that led to it, each once: causes, contexts, and members of exception groups."""
    seen: set[int] = set()
    rest: list[BaseException | None] = [error]
    while rest:
        one = rest.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            yield one
            rest += [one.__cause__, one.__context__]
            if isinstance(one, BaseExceptionGroup):
                rest += one.exceptions
