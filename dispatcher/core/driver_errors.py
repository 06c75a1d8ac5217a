"""Classifies driver errors as transient or permanent. An operator must fix the cause of a permanent error.

The codes were observed on a MongoDB 6.0 server. The comments have the server's names for the codes. An error with
an unknown code is treated as transient: a daemon must survive unforeseen failures.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final, NamedTuple

from pymongo.errors import ConfigurationError, ConnectionFailure, OperationFailure, PyMongoError

from dispatcher.core.error_text import chain_of, words_of
from dispatcher.exceptions import (
    AccessDenied,
    DispatcherError,
    HistoryLost,
    PositionError,
    ServerError,
)


class Kind(StrEnum):
    """The meaning of an error for the reader of a change stream."""

    PASSING = "passing"
    """A transient error of the server or the network. The command is sent again."""
    TOO_LARGE = "too_large"
    """An event is too large with its images. Maybe the server can send the event without them."""
    HISTORY_LOST = "history_lost"
    """The oplog no longer holds the changes after the position."""
    BAD_TOKEN = "bad_token"  # noqa: S105 - a resume token, not a password
    """The server does not accept the position: the position is malformed, or belongs to another deployment."""
    NO_ACCESS = "no_access"
    """The user lacks privileges."""
    NOT_LET_IN = "not_let_in"
    """The user or the password is wrong or no longer valid."""
    NOT_SUPPORTED = "not_supported"
    """This server lacks a feature that is needed."""
    UNKNOWN = "unknown"
    """The code is in none of the sets below. The error is handled like `PASSING`."""


PASSING_CODES: Final = frozenset(
    {
        6,  # HostUnreachable
        7,  # HostNotFound
        24,  # LockTimeout
        43,  # CursorNotFound: killed, timed out, or the server was restarted
        46,  # LockBusy
        50,  # MaxTimeMSExpired
        63,  # StaleShardVersion: chunks are being moved
        64,  # WriteConcernFailed: no majority can be reached
        89,  # NetworkTimeout
        91,  # ShutdownInProgress
        112,  # WriteConflict
        133,  # FailedToSatisfyReadPreference: mongos finds no primary
        134,  # ReadConcernMajorityNotAvailableYet: the server has just been started
        150,  # StaleEpoch
        175,  # QueryPlanKilled: the collection was dropped while it was read
        189,  # PrimarySteppedDown
        202,  # NetworkInterfaceExceededTimeLimit
        222,  # CloseChangeStream: mongos wants the stream to be reopened
        234,  # RetryChangeStream: like 222
        237,  # CursorKilled
        246,  # SnapshotUnavailable
        262,  # ExceededTimeLimit
        279,  # ClientDisconnect
        317,  # ConnectionPoolExpired
        365,  # TemporarilyUnavailable
        9001,  # SocketException
        10107,  # NotWritablePrimary
        11600,  # InterruptedAtShutdown
        11601,  # Interrupted: by killOp
        11602,  # InterruptedDueToReplStateChange
        13388,  # StaleConfig
        13435,  # NotPrimaryNoSecondaryOk
        13436,  # NotPrimaryOrSecondary: the node recovers or syncs
    }
)

TOO_LARGE_CODES: Final = frozenset(
    {
        10334,  # BSONObjectTooLarge: the event, images included, is over 16 MB
        7182500,  # (it has no name): one field alone is too large to be split
        47,  # NoMatchingDocument: a required image is missing. We require none, but a proxy may require some
    }
)

HISTORY_LOST_CODES: Final = frozenset(
    {
        286,  # ChangeStreamHistoryLost: the oplog begins after the token
        136,  # CappedPositionLost: like 286, for an open stream
        326,  # OplogQueryMinTsMissing: like 286, for a start at a time
    }
)

BAD_TOKEN_CODES: Final = frozenset(
    {
        260,  # InvalidResumeToken: for example, resumeAfter has the token of an invalidate event
        280,  # ChangeStreamFatalError: the event of the token is not found
        9,  # FailedToParse: the token is malformed
        15,  # Overflow: like 9
        50811,  # (it has no name): like 9
    }
)

NO_ACCESS_CODES: Final = frozenset({13})  # Unauthorized
NOT_LET_IN_CODES: Final = frozenset({18})  # AuthenticationFailed

NOT_SUPPORTED_CODES: Final = frozenset(
    {
        40573,  # $changeStream on a standalone server
        40324,  # an aggregation stage that the server does not know
        346,  # ChangeStreamNotEnabled: change streams are turned off in the deployment
    }
)

KINDS: Final[dict[int, Kind]] = {
    code: kind
    for kind, codes in (
        (Kind.PASSING, PASSING_CODES),
        (Kind.TOO_LARGE, TOO_LARGE_CODES),
        (Kind.HISTORY_LOST, HISTORY_LOST_CODES),
        (Kind.BAD_TOKEN, BAD_TOKEN_CODES),
        (Kind.NO_ACCESS, NO_ACCESS_CODES),
        (Kind.NOT_LET_IN, NOT_LET_IN_CODES),
        (Kind.NOT_SUPPORTED, NOT_SUPPORTED_CODES),
    )
    for code in codes
}
"""The kind of each known code."""


class _Verdict(NamedTuple):
    kind: type[DispatcherError]
    message: str
    remedy: str


_VERDICTS: Final = {
    Kind.HISTORY_LOST: _Verdict(
        HistoryLost,
        "The oplog of {address} does not reach back to the saved position any more, and the changes in between "
        "can not be delivered: {text}",
        "Start with --on-history-lost resume (continue from now, and note the gap) or backfill (deliver the "
        "current documents as well), and enlarge the oplog.",
    ),
    Kind.BAD_TOKEN: _Verdict(
        PositionError,
        "{address} does not accept the saved position: {text}",
        "Was the state copied from another deployment? Run `dispatcher position reset`: the next start begins at "
        "the present time.",
    ),
    Kind.NO_ACCESS: _Verdict(
        AccessDenied,
        "{address} denies access: {text}",
        "Grant changeStream and find on the watched databases, and readWrite on the state database.",
    ),
    Kind.NOT_LET_IN: _Verdict(
        AccessDenied,
        "{address} rejects the login: {text}",
        "Fix user, password and authSource in the URL.",
    ),
    Kind.TOO_LARGE: _Verdict(
        ServerError,
        "A change event is larger than 16 MB, and {address} can not send it: {text}",
        "Turn off pre or post images of the collection with these large documents.",
    ),
    Kind.NOT_SUPPORTED: _Verdict(
        ServerError,
        "{address} lacks a feature that the dispatcher needs: {text}",
        "Use MongoDB 6.0 or later, as a replica set.",
    ),
}


def kind_of(error: PyMongoError) -> Kind:
    """Classify an error of the driver.

    Some errors, such as a lost connection, have no code; only their class tells the kind. A command raises a
    ConfigurationError if the driver can't use the server: the name of the server is not resolved, or the server
    is starting, or its version is too old. A wrong URL raises an error earlier, when the client is created.
    """
    code = _details(error).get("code", getattr(error, "code", None))
    kind = KINDS.get(code, Kind.UNKNOWN) if isinstance(code, int) else Kind.UNKNOWN
    if kind is Kind.UNKNOWN and isinstance(error, ConnectionFailure | ConfigurationError):
        return Kind.PASSING
    return kind


def fatal(error: PyMongoError, address: str) -> DispatcherError | None:
    """The error that the process must end with; None if another attempt may succeed."""
    verdict = _VERDICTS.get(kind_of(error)) if isinstance(error, OperationFailure) else None
    if verdict is None:
        return None
    text = words_of(_details(error).get("errmsg", error)).rstrip(".")
    return verdict.kind(verdict.message.format(address=address, text=text), remedy=verdict.remedy)


def raise_if_fatal(error: BaseException, address: str) -> None:
    """Raise the error that the process must end with, if another attempt can't succeed."""
    verdict = fatal(error, address) if isinstance(error, PyMongoError) else None
    if verdict is not None:
        raise verdict from error


def drop_traceback(error: BaseException) -> None:
    """Remove the traceback of an error that was handled.

    The frames of the traceback hold the data that was being read, and frames of the driver hold the error. Only
    the garbage collector would free this cycle of references.
    """
    for one in chain_of(error):
        one.__traceback__ = None


def _details(error: PyMongoError) -> Mapping[str, Any]:
    """The server's answer; empty if there is none."""
    details = getattr(error, "details", None)
    return details if isinstance(details, Mapping) else {}


def in_short(error: Exception) -> str:
    """An error of the driver for a log line, without the server's reply and the topology."""
    text = words_of(error).partition(", full error")[0].partition(", Timeout:")[0]
    text = text.partition(" (configured timeouts:")[0]
    return f"{type(error).__name__}: {text}"
