"""Raises several errors as one group."""

from collections.abc import Sequence

__all__ = ["raise_together"]


def raise_together(errors: Sequence[Exception], message: str) -> None:
    """Raise a single exception unchanged, and several exceptions as a group.

    Raises:
        Exception: `errors` has one error.
        ExceptionGroup: `errors` has several errors. The group has this message.
    """
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ExceptionGroup(message, errors)
