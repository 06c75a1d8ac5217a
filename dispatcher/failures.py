"""Driver errors, classified in one place: what passes by itself, and what somebody must mend.

The codes and what they mean were measured on a 6.0 server; names are the server's own.
"""

from typing import Final, NamedTuple

from pymongo.errors import ConfigurationError, OperationFailure, PyMongoError

from dispatcher.exceptions import (
    AccessDenied,
    CannotConnect,
    DispatcherError,
    HistoryLost,
    PositionError,
    ServerError,
)

__all__ = ["FATAL_CODES", "fatal", "in_short"]


class _Verdict(NamedTuple):
    kind: type[DispatcherError]
    message: str
    remedy: str


_HISTORY_LOST: Final = _Verdict(
    HistoryLost,
    "The oplog of {address} does not reach back to the saved position any more, and the changes in between "
    "can not be delivered: {text}",
    "Delete the position document (`dispatcher position show` names it) to begin now, and enlarge the oplog.",
)
_BAD_TOKEN: Final = _Verdict(
    PositionError,
    "{address} does not accept the saved position: {text}",
    "Was the state copied from another deployment? Delete the position document to begin now.",
)
_NO_ACCESS: Final = _Verdict(
    AccessDenied,
    "{address} denies access: {text}",
    "Grant changeStream and find on the watched databases, and readWrite on the state database.",
)
_NOT_LET_IN: Final = _Verdict(
    AccessDenied,
    "{address} does not let us in: {text}",
    "Mend user, password and authSource in the URL.",
)
_TOO_LARGE: Final = _Verdict(
    ServerError,
    "A change event is larger than 16 MB, and {address} can not send it: {text}",
    "Turn off pre or post images of the collection that holds such large documents.",
)
_NOT_SUPPORTED: Final = _Verdict(
    ServerError,
    "{address} can not do what is asked of it: {text}",
    "Use MongoDB 6.0 or later, as a replica set.",
)

FATAL_CODES: Final[dict[int, _Verdict]] = {
    286: _HISTORY_LOST,  # ChangeStreamHistoryLost: the oplog begins after the token
    136: _HISTORY_LOST,  # CappedPositionLost: the same, met by a stream that was open meanwhile
    260: _BAD_TOKEN,  # InvalidResumeToken: for example an invalidate's, where it may not stand
    280: _BAD_TOKEN,  # ChangeStreamFatalError: the token's event does not turn up again
    9: _BAD_TOKEN,  # FailedToParse, and
    15: _BAD_TOKEN,  # Overflow, and
    50811: _BAD_TOKEN,  # (it has no name): what the server answers to a token that is garbage
    13: _NO_ACCESS,  # Unauthorized: not enough rights
    18: _NOT_LET_IN,  # AuthenticationFailed: wrong credentials
    10334: _TOO_LARGE,  # BSONObjectTooLarge: the event, images included, is over 16 MB
    40573: _NOT_SUPPORTED,  # $changeStream on a standalone server
    40324: _NOT_SUPPORTED,  # an aggregation stage that the server does not know
}


def fatal(error: PyMongoError, address: str) -> DispatcherError | None:
    """What the process must end with, or None for what is worth another try.

    Everything unknown is tried again, with growing pauses and in the log: a daemon must survive the failures
    that nobody thought of.

    Args:
        error: what the driver raised.
        address: host and port, for the message.
    """
    if isinstance(error, ConfigurationError):
        return CannotConnect(
            f"The connection to {address} is not configured right: {error}", remedy="Mend the URL."
        )
    verdict = FATAL_CODES.get(error.code or 0) if isinstance(error, OperationFailure) else None
    if verdict is None:
        return None
    details = getattr(error, "details", None) or {}
    text = str(details.get("errmsg", error)).rstrip(".")
    return verdict.kind(verdict.message.format(address=address, text=text), remedy=verdict.remedy)


def in_short(error: Exception) -> str:
    """A driver's error for a log line, without the server's whole reply and the topology."""
    text = str(error).partition(", full error")[0].partition(", Timeout:")[0]
    text = text.partition(" (configured timeouts:")[0]
    return f"{type(error).__name__}: {text}"
