"""Completes the commands in messages, so that they work when an operator pastes them into a shell.

A message names a command between backquotes: `dispatcher setup APP`. The operator has named the application and
the server on the command line of the running command. Only the package `cli` knows how to repeat them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

Completer = Callable[[str, bool], str]
"""Completes the commands in a text. The bool is the argument `elsewhere` of `completed`."""

_completer: Final[ContextVar[Completer | None]] = ContextVar("completer", default=None)


@contextmanager
def completing(by: Completer) -> Iterator[None]:
    """Complete the commands in messages inside of the block."""
    before = _completer.set(by)
    try:
        yield
    finally:
        _completer.reset(before)


def completed(text: str, *, elsewhere: bool = False) -> str:
    """Complete the commands in a text with values of the running command, for example the application.

    Args:
        elsewhere: whether the reader (of a log, for example) may have other environment variables. Then the
            commands also contain the values that the running command has from its environment variables.
    """
    complete = _completer.get()
    return text if complete is None else complete(text, elsewhere)
