"""The results of checks."""

from typing import Literal, NamedTuple

from dispatcher.exceptions import DispatcherError

Level = Literal["ok", "warning", "error"]


class Finding(NamedTuple):
    """The result of one check.

    Attributes:
        level: `"error"` if `run` or `relay` would fail, or would not deliver some changes; `"warning"` for
            other problems.
        remedy: what to do about a warning or an error; otherwise empty.
    """

    level: Level
    topic: str
    text: str
    remedy: str = ""

    @classmethod
    def of(cls, topic: str, error: DispatcherError) -> "Finding":
        """The finding about an error."""
        return cls("error", topic, error.message, error.remedy)
