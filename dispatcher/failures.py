"""Driver errors, classified in one place: what passes by itself, and what somebody must mend.

The codes and what they mean were measured on a 6.0 server; names are the server's own.
"""

from typing import Final

from pymongo.errors import ConfigurationError, OperationFailure, PyMongoError

from dispatcher.exceptions import (
    AccessDenied,
    CannotConnect,
    DispatcherError,
    HistoryLost,
    PositionError,
    ServerError,
)

__all__ = ["fatal"]

HISTORY_LOST: Final = {
    286: "ChangeStreamHistoryLost",  # the oplog begins after the token
    136: "CappedPositionLost",  # the same, met by a stream that was open meanwhile
}
BAD_TOKEN: Final = {
    260: "InvalidResumeToken",  # for example an invalidate's token where it may not stand
    280: "ChangeStreamFatalError",  # the token's event does not turn up: another pipeline, another deployment
    9: "FailedToParse",  # with 15: what the server answers to a token that is garbage
    15: "Overflow",
}
NO_ACCESS: Final = {
    13: "Unauthorized",  # not enough rights
    18: "AuthenticationFailed",  # wrong credentials
}
TOO_LARGE: Final = {
    10334: "BSONObjectTooLarge",  # the event, images included, is over 16 MB
}
NOT_SUPPORTED: Final = {
    40573: "Location40573",  # $changeStream on a standalone server
    40324: "Location40324",  # an aggregation stage that the server does not know
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
            f"The connection to {address} is configured wrongly: {error}", remedy="Mend the URL."
        )
    if not isinstance(error, OperationFailure):
        return None
    code, text = error.code or 0, str(error.details.get("errmsg", error) if error.details else error)
    if code in HISTORY_LOST:
        return HistoryLost(
            f"The oplog of {address} does not reach back to the saved position any more ({text}). "
            "The changes in between can not be delivered.",
            remedy="Delete the position (see `dispatcher position show`) to begin now; enlarge the oplog.",
        )
    if code in BAD_TOKEN:
        return PositionError(
            f"{address} does not accept the saved position ({BAD_TOKEN[code]}: {text}).",
            remedy="Was the state copied from another deployment? Delete the position to begin now.",
        )
    if code in NO_ACCESS:
        return AccessDenied(
            f"{address} denies access: {text}.",
            remedy="Grant changeStream and find on the watched databases, and readWrite on the state database.",
        )
    if code in TOO_LARGE:
        return ServerError(
            f"A change event is larger than 16 MB, and {address} can not send it ({text}).",
            remedy="Turn off pre or post images of the collection that holds such large documents.",
        )
    if code in NOT_SUPPORTED:
        return ServerError(
            f"{address} can't do what is asked of it: {text}",
            remedy="Use MongoDB 6.0 or later, as a replica set.",
        )
    return None
