"""Errors in words. They may be of an application's classes; whatever those do when asked, this does not raise.

What is said of them holds no secrets and has a bearable length, wherever it goes: a log, a dead letter, a span.
"""

import traceback
from collections.abc import Callable, Iterator
from typing import Final

from dispatcher.core.redaction import LONGEST_TEXT, redacted, shortened

__all__ = ["chain_of", "text_of", "trace_of", "words_of"]

# Characters of a traceback.
_LONGEST_TRACE: Final = 50_000


def text_of(error: BaseException, limit: int = LONGEST_TEXT) -> str:
    """Type and message of an error.

    Args:
        error: any.
        limit: characters that stay, about; the type and the beginning of the message are among them.
    """
    return _described(lambda: f"{type(error).__name__}: {error}", limit) or type(error).__name__


def words_of(value: object) -> str:
    """A value as text; of an error its message alone."""
    return _described(lambda: str(value), LONGEST_TEXT)


def trace_of(error: BaseException) -> str:
    """The traceback, as Python prints it; at least the places that it came by."""
    told = _described(lambda: "".join(traceback.format_exception(error)), _LONGEST_TRACE)
    if told:
        return told
    places = _described(lambda: "".join(traceback.format_tb(error.__traceback__)), _LONGEST_TRACE)
    return f"Traceback (most recent call last):\n{places}{text_of(error)}\n"


def _described(describe: Callable[[], str], limit: int) -> str:
    """Cut, without secrets and lone surrogates, which no file and no database takes; "" if describing fails."""
    try:
        text = describe()
    except BaseException:  # an error whose __str__ raises, or that is asked for its causes, its notes, its truth
        return ""
    return redacted(shortened(text, limit)).encode("utf-8", "backslashreplace").decode()


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """An error and all errors that led to it: causes, contexts, and the members of groups. Each once."""
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
