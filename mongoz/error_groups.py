"""Several errors at once: raised as one group."""

from collections.abc import Sequence

__all__ = ["raise_together"]


def raise_together(errors: Sequence[Exception], message: str) -> None:
    """Raise what went wrong: a single exception as it is, several as a group.

    Raises:
        Exception: the only one.
        ExceptionGroup: several, under this message.
    """
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ExceptionGroup(message, errors)
