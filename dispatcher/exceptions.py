"""All errors that the dispatcher raises on purpose, each with the exit code of the process.

    DispatcherError
    ├── ApplicationError          APP or an --import module cannot be used
    │   ├── NothingToDeliver      APP loads, but none of its receivers can run in a dispatcher
    │   └── GroupTaken            the group of dispatchers belongs to another application
    ├── ServerError               the MongoDB deployment cannot serve us
    │   ├── CannotConnect         no server answers at the address
    │   ├── NotAReplicaSet        the server is a standalone, or its replica set is not initiated
    │   └── AccessDenied          wrong credentials, or not enough rights
    ├── PositionError             a position cannot be used: the saved one, or a requested one
    │   └── HistoryLost           the oplog or the topic no longer reaches back to the position
    ├── KafkaError                Kafka cannot be used
    │   └── TopicError            the topic cannot be used
    ├── NotFound                  a named object does not exist
    │   ├── UnknownReceiver       no receiver has this name
    │   ├── UnknownRun            no replay or backfill has this id
    │   └── UnknownLetter         no dead letter has this id
    ├── FilterRefused             the server rejects a filter of the command line
    ├── OtherRun                  a run can't continue with other options
    ├── MalformedLetter           the document of a dead letter is malformed
    ├── NotRunning                no dispatcher of the group is alive to execute the command
    ├── StillRunning              a dispatcher of the group is alive and would undo the command
    ├── CannotListen              the address for HTTP is in use, or not an address of this machine
    ├── Cancelled                 a thread cancelled the dispatcher's own tasks
    ├── TooManyProcesses          --processes is too large for a new group without --partitions
    ├── NotInstalled              a required extra is not installed, or another package replaces ours
    ├── CannotWrite               the results can't be written to stdout
    ├── TooManyFiles              no file or connection can be opened any more
    ├── EmbeddedError             no private mongod or Kafka broker could be started
    └── DemoFailed                the demo lost a change

The message of an error names the problem and its place; its `remedy` tells the fix.
"""

from enum import IntEnum
from typing import ClassVar

__all__ = [
    "AccessDenied",
    "ApplicationError",
    "Cancelled",
    "CannotConnect",
    "CannotListen",
    "CannotWrite",
    "DemoFailed",
    "DispatcherError",
    "EmbeddedError",
    "ExitCode",
    "FilterRefused",
    "GroupTaken",
    "HistoryLost",
    "KafkaError",
    "MalformedLetter",
    "NotAReplicaSet",
    "NotFound",
    "NotInstalled",
    "NotRunning",
    "NothingToDeliver",
    "OtherRun",
    "PositionError",
    "ServerError",
    "StillRunning",
    "TooManyFiles",
    "TooManyProcesses",
    "TopicError",
    "UnknownLetter",
    "UnknownReceiver",
    "UnknownRun",
]


class ExitCode(IntEnum):
    """How a `dispatcher` command ended. Supervisors may rely on these numbers."""

    OK = 0
    """The command succeeded, or SIGTERM or SIGINT stopped it."""
    FAILED = 1
    """The command ran with a negative result, for example: the demo lost a change, or a position is too old."""
    USAGE = 2
    """A flag or argument could not be understood (typer's own code)."""
    APPLICATION = 10
    NOTHING_TO_DELIVER = 11
    CANNOT_CONNECT = 12
    NOT_A_REPLICA_SET = 13
    ACCESS_DENIED = 14
    SERVER = 15
    POSITION = 16
    HISTORY_LOST = 17
    GROUP_TAKEN = 18
    EMBEDDED = 19
    CANNOT_LISTEN = 20
    NOT_FOUND = 21
    NOT_RUNNING = 22
    STILL_RUNNING = 23
    NOT_INSTALLED = 24
    CANNOT_WRITE = 25
    TOO_MANY_FILES = 26
    KAFKA = 27
    TOPIC = 28
    CRASHED = 70
    """The dispatcher has a bug: please report it with the traceback. Another possible cause: a thread of a
    receiver or of a library has cancelled the dispatcher's own tasks."""
    FORCED = 130
    """A second SIGINT, SIGTERM or SIGQUIT ended the process immediately, or the orderly end of the process took
    too long. Nothing is lost; a few deliveries may repeat."""


class DispatcherError(Exception):
    """An error that an operator can fix.

    Args:
        message: the problem, with the value and the place.
        remedy: the fix, in one line.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.FAILED

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class ApplicationError(DispatcherError):
    """APP or an `--import` module cannot be used."""

    exit_code = ExitCode.APPLICATION


class NothingToDeliver(ApplicationError):
    """The application loads, but none of its receivers can run in a dispatcher."""

    exit_code = ExitCode.NOTHING_TO_DELIVER


class GroupTaken(ApplicationError):
    """The group of dispatchers belongs to another application."""

    exit_code = ExitCode.GROUP_TAKEN


class ServerError(DispatcherError):
    """The MongoDB deployment cannot serve the dispatcher."""

    exit_code = ExitCode.SERVER


class CannotConnect(ServerError):
    """No server answers at the address."""

    exit_code = ExitCode.CANNOT_CONNECT


class NotAReplicaSet(ServerError):
    """The server has no change streams: it is a standalone mongod, or its replica set is not initiated."""

    exit_code = ExitCode.NOT_A_REPLICA_SET


class AccessDenied(ServerError):
    """Wrong credentials, or not enough rights."""

    exit_code = ExitCode.ACCESS_DENIED


class PositionError(DispatcherError):
    """A position cannot be used: the saved one, or a requested one."""

    exit_code = ExitCode.POSITION


class HistoryLost(PositionError):
    """The oplog or the topic no longer reaches back to a position: to the saved one, or to a requested one."""

    exit_code = ExitCode.HISTORY_LOST


class KafkaError(DispatcherError):
    """Kafka cannot be used: no broker answers, a broker refuses the client, or a client property is wrong."""

    exit_code = ExitCode.KAFKA


class TopicError(KafkaError):
    """The topic cannot be used: for example it is missing, has another id, or holds records of other programs."""

    exit_code = ExitCode.TOPIC


class NotFound(DispatcherError):
    """A named object does not exist."""

    exit_code = ExitCode.NOT_FOUND


class UnknownReceiver(NotFound):
    """No receiver has this name."""


class UnknownRun(NotFound):
    """No replay or backfill has this id."""


class FilterRefused(DispatcherError):
    """The server rejects a filter of the command line."""

    exit_code = ExitCode.USAGE


class OtherRun(DispatcherError):
    """A run can't continue with options that differ from those of its beginning."""

    exit_code = ExitCode.USAGE


class UnknownLetter(NotFound):
    """No dead letter has this id."""


class MalformedLetter(DispatcherError):
    """The document of a dead letter is malformed."""


class NotRunning(DispatcherError):
    """No dispatcher of the group is alive to execute the command."""

    exit_code = ExitCode.NOT_RUNNING


class StillRunning(DispatcherError):
    """A dispatcher of the group is alive and would undo the command."""

    exit_code = ExitCode.STILL_RUNNING


class CannotListen(DispatcherError):
    """The address for HTTP is in use, or not an address of this machine."""

    exit_code = ExitCode.CANNOT_LISTEN


class NotInstalled(DispatcherError):
    """A required extra is not installed, or another package called `mongoz` is mixed with this one."""

    exit_code = ExitCode.NOT_INSTALLED


class CannotWrite(DispatcherError):
    """The results can't be written to stdout: the disk is full, or the terminal is gone."""

    exit_code = ExitCode.CANNOT_WRITE


class TooManyFiles(DispatcherError):
    """The process or the machine has no free file descriptors, so no file or connection can be opened."""

    exit_code = ExitCode.TOO_MANY_FILES


class EmbeddedError(DispatcherError):
    """No private mongod or Kafka broker could be started."""

    exit_code = ExitCode.EMBEDDED


class TooManyProcesses(DispatcherError):
    """`--processes` is too large for a new group without `--partitions`."""

    exit_code = ExitCode.USAGE


class Cancelled(DispatcherError):
    """A thread of a receiver or of a library has cancelled the dispatcher's own tasks."""

    exit_code = ExitCode.CRASHED


class DemoFailed(DispatcherError):
    """The demo lost a change."""
