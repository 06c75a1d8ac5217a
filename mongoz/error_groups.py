"""Raises several errors as one group."""

from collections.abc import Sequence

__all__ = ["raise_together"]


def raise_together(errors: Sequence[Exception], message: str) -> None:
    """Raise a single exception unchanged, several as a group.

    Raises:
        Exception: there is one.
        ExceptionGroup: there are several; with this message.
    """
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ExceptionGroup(message, errors)
