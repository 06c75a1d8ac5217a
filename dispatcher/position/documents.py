"""Reads the documents of positions, and computes the fields to write into them. No I/O.

Operators may edit documents. A malformed document ends the process with an error that names the document, the
field and the value: a dispatcher that does not know its position must not guess.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeVar

from dispatcher.core.events import LogPlace, Start
from dispatcher.core.identity import Identity
from dispatcher.core.resume_tokens import DIGEST, as_sent, data_of, token_time
from dispatcher.core.state import POSITIONS
from dispatcher.exceptions import PositionError
from dispatcher.position.inherited import Fact
from dispatcher.settings import MOST_PARTITIONS

NEVER: Final = datetime(9999, 12, 31)
"""The value of `version_started` in each position. Dispatchers of earlier versions can't read the collection
`held`. They claim no partition whose `version_started` is later than their own start, so this value stops them."""

_REMEDY: Final = (
    "Was it edited by hand? Fix the field. Or delete the document while no dispatcher runs: then this partition "
    "begins at the time of the next start, and earlier undelivered changes are skipped."
)
_REMEDY_LAYOUT: Final = "Was it edited by hand? Restore the field."

# Maximum characters of a value in an error message.
_LONGEST: Final = 200

# Seconds of a lease whose owner did not record its length.
_LEASE: Final = 10.0

# The owner of a partition after a forced move, until the former owner has noticed the loss of its lease.
_BY_HAND: Final = "moved by hand"

# The fields that a save writes.
_SAVED: Final = ("token", "cluster_time", "fingerprint", "ahead", "until", "inherited", "log", "saved_at")

# MongoDB's largest whole number.
_LARGEST: Final = (1 << 63) - 1


class Topic(NamedTuple):
    """A topic as the source of a group."""

    cluster_id: str
    name: str

    def __str__(self) -> str:
        return f"the topic {self.name!r} of the Kafka cluster {self.cluster_id!r}"


class Layout(NamedTuple):
    """The division of a group's work into partitions.

    Attributes:
        partitions: the present number of partitions.
        wanted: the requested number of partitions, if it differs.
        application: the application of the group, as `"package.module:registry"`; empty if it has no name.
        topic: the source of the group; None for change streams.
    """

    partitions: int
    wanted: int | None
    application: str
    topic: Topic | None = None


class Ownership(NamedTuple):
    """Which member holds a partition.

    Attributes:
        partition: its number, from 0 on.
        partitions: the number of partitions; 0 if the document does not have it.
        owner: the member that may write the position; None if no member holds the partition.
        term: grows with every change of ownership.
        beat: grows with every renewal of the lease.
        lease: seconds after which the lease is over if it is not renewed; None if its owner did not record them.
        identity: the owner's process.
        version: version of the application that held the partition last.
        version_since: the server's time at which a process of that version started; None if it is unknown.
    """

    partition: int
    partitions: int
    owner: str | None
    term: int
    beat: int
    lease: float | None
    identity: Identity
    version: str
    version_since: datetime | None

    @classmethod
    def read(cls, document: Mapping[str, Any], group: str, database: str) -> "Ownership":
        """Read the document of a position; the fields that a save writes may be missing.

        Raises:
            PositionError: the document is malformed; the error names the field.
        """
        reader = _Fields(document, f"{database}.{POSITIONS}", _REMEDY)
        number = str(document["_id"]).removeprefix(f"{group}:")
        if document["_id"] != f"{group}:{number}" or not (number.isdecimal() and number.isascii()):
            raise reader.malformed("_id", f"{group!r} or '{group}:<number of a partition>'")
        partition = reader.count("partition", 0, default=int(number))
        if partition != int(number):
            raise reader.malformed("partition", f"{number}, as its _id says")
        lease = reader.get("lease_seconds", (int, float), "a number of seconds")
        if lease is not None and not 0 < lease < float("inf"):
            raise reader.malformed("lease_seconds", "a number of seconds")
        return cls(
            partition=partition,
            partitions=reader.count("partitions", 1, MOST_PARTITIONS, default=0),
            owner=reader.text("owner", None),
            term=reader.count("term", 0, default=0),
            beat=reader.count("beat", 0, default=0),
            lease=lease,
            identity=Identity.read(document),
            version=reader.text("version"),
            version_since=reader.get("version_since", datetime, "a date"),
        )


class Position(NamedTuple):
    """The position of one partition: the fields of `Ownership`, and how far everything is finished.

    Attributes:
        token: everything up to it is finished; None if no position was saved yet.
        fingerprint: the fingerprint of the stream that the token belongs to.
        until: sorts after the tokens of all changes in `ahead`.
        ahead: hashes of the tokens of finished changes after `token`, see `core/resume_tokens.py`.
        inherited: finished changes under earlier layouts, see `position/inherited.py`.
        place: for a topic, a place up to which all accepted records are finished; None if it is unknown.
    """

    partition: int
    partitions: int
    owner: str | None
    term: int
    beat: int
    lease: float | None
    identity: Identity
    token: str | None
    fingerprint: str | None
    until: str
    ahead: bytes
    inherited: tuple[Fact, ...]
    version: str
    version_since: datetime | None
    place: LogPlace | None = None

    @classmethod
    def read(cls, document: Mapping[str, Any], group: str, database: str) -> "Position":
        """Read a document.

        Raises:
            PositionError: the document is malformed; the error names the field.
        """
        owned = Ownership.read(document, group, database)
        reader = _Fields(document, f"{database}.{POSITIONS}", _REMEDY)
        return cls(
            **owned._asdict(),
            token=reader.token("token"),
            fingerprint=reader.text("fingerprint", None),
            until=reader.token("until") or "",
            ahead=reader.digests("ahead"),
            inherited=tuple(reader.facts("inherited")),
            place=reader.place("log"),
        )

    def start(self, fingerprint: str) -> Start:
        """The place where a stream with this fingerprint continues.

        A token of another stream gives only a time. Then the reader must skip the changes up to the token.
        """
        assert self.token is not None
        if fingerprint == self.fingerprint:
            return Start(token=self.token, place=self.place)
        return Start(cluster_time=token_time(self.token))


class SavedPositions(NamedTuple):
    """The layout and the positions of one group.

    Attributes:
        layout: None if no dispatcher of the group ever ran, or if only versions without partitions ran.
        positions: the positions by partition. Deleted positions are missing.
    """

    layout: Layout | None
    positions: dict[int, Position]

    @classmethod
    def read(cls, documents: Iterable[Mapping[str, Any]], group: str, database: str) -> "SavedPositions":
        """Read the documents of a group.

        Raises:
            PositionError: a document is malformed; the error names the field.
        """
        return cls(*read_layout(documents, Position.read, group, database))


P = TypeVar("P", Ownership, Position)


def read_layout(
    documents: Iterable[Mapping[str, Any]],
    read: Callable[[Mapping[str, Any], str, str], P],
    group: str,
    database: str,
) -> tuple[Layout | None, dict[int, P]]:
    """Read the layout of a group, and its partitions by number.

    Args:
        documents: the documents of the group.
        read: reads the document of one partition.

    Raises:
        PositionError: a document is malformed; the error names the field.
    """
    layout = None
    partitions = {}
    for document in documents:
        if document["_id"] == group:
            layout = _layout_of(document, f"{database}.{POSITIONS}")
        else:
            one = read(document, group, database)
            partitions[one.partition] = one
    if layout is not None:
        for number, one in partitions.items():
            if not number < layout.partitions == (one.partitions or layout.partitions):
                raise _another_layout(number, one.partitions, layout, group, f"{database}.{POSITIONS}")
    return layout, partitions


def owned_as(seen: Ownership | Position) -> dict[str, Any]:
    """A filter that matches a position as long as its owner, term and beat are unchanged since it was read."""
    return {  # a field that is missing equals null
        "owner": seen.owner,
        "term": {"$in": [seen.term, None]} if seen.term == 0 else seen.term,
        "beat": {"$in": [seen.beat, None]} if seen.beat == 0 else seen.beat,
    }


def recorded(
    token: str, fingerprint: str = "", ahead: bytes = b"", until: str = "", place: LogPlace | None = None
) -> dict[str, Any]:
    """The fields of a position.

    Args:
        token: everything up to it is finished.
        fingerprint: the fingerprint of the stream that the token belongs to. If it is empty, only the time of the
            token is used.
        ahead: hashes of the tokens of finished changes after `token`.
        until: sorts after these tokens; empty if there are none.
        place: for a topic, a place up to which all accepted records are finished.
    """
    values = {
        "token": token,
        "cluster_time": token_time(token),
        "fingerprint": fingerprint,
        "ahead": ahead,
        "until": until or None,
    }
    return values if place is None else {**values, "log": place._asdict()}


def moved(position: Position, token: str | None, *, force: bool, place: LogPlace | None = None) -> dict[str, Any]:
    """The update of a position that an operator moves.

    Its term grows, so that the former owner can't overwrite it. After a forced move the partition stays held for
    one more lease time, because the former owner delivers until it notices the loss of its lease.

    Args:
        token: the token of the new position. With None the position is removed, and the next start records a new
            one.
        force: move the position even if a member holds the partition.
        place: for a topic, the place of the token; None if it is unknown.
    """
    owner = _BY_HAND if force and position.owner is not None else None
    taken: dict[str, Any] = {"owner": owner, "lease_seconds": position.lease or _LEASE}
    counted = {"term": 1, "beat": 1}
    if token is None:
        return {"$set": taken, "$inc": counted, "$unset": dict.fromkeys(_SAVED, "")}
    # No fingerprint is recorded: the token may belong to another stream.
    values, dates = {**taken, **recorded(token, place=place)}, {"saved_at": True, "released_at": True}
    gone = {"inherited": ""} if place is not None else {"inherited": "", "log": ""}
    return {"$set": values, "$inc": counted, "$unset": gone, "$currentDate": dates}


class _Fields:
    """Reads and checks the values of one document."""

    def __init__(self, document: Mapping[str, Any], place: str, remedy: str) -> None:
        self._document = document
        self._place = place
        self._remedy = remedy

    def malformed(self, field: str, wanted: str) -> PositionError:
        value = repr(self._document.get(field))
        shown = value if len(value) <= _LONGEST else f"{value[:_LONGEST]}..."
        return PositionError(
            f"The document {self._document['_id']!r} in {self._place} has {shown} as {field}, not {wanted}.",
            remedy=self._remedy,
        )

    def get(self, field: str, kind: type | tuple[type, ...], wanted: str, default: Any = None) -> Any:
        """A value of this type; the default if the field is missing or null."""
        value = self._document.get(field)
        if value is None:
            return default
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.malformed(field, wanted)
        return value

    def count(self, field: str, least: int, most: int | None = None, default: int | None = None) -> Any:
        """A whole number within bounds."""
        wanted = f"a whole number from {least} on" if most is None else f"a whole number from {least} to {most}"
        value = self.get(field, (int, float), wanted)
        if value is None:
            return default
        if not float(value).is_integer() or value < least or (most is not None and value > most):
            raise self.malformed(field, wanted)
        return int(value)

    def text(self, field: str, default: str | None = "") -> Any:
        """A string."""
        return self.get(field, str, "a string", default)

    def token(self, field: str) -> str | None:
        """A resume token."""
        value: str | None = self.text(field, None)
        if value is not None and not _is_token(value):
            raise self.malformed(field, "a resume token")
        return value

    def digests(self, field: str) -> bytes:
        """Hashes of resume tokens."""
        wanted = f"binary data of {DIGEST} bytes per token"
        value: bytes = self.get(field, bytes, wanted, b"")
        if len(value) % DIGEST:
            raise self.malformed(field, wanted)
        return value

    def place(self, field: str) -> LogPlace | None:
        """A place in a topic."""
        match self._document.get(field):
            case None:
                return None
            case {
                "topic_id": str(topic_id),
                "offset": int(offset),
                "term": int(term),
                "number": int(number),
            } if (
                0 <= offset <= _LARGEST
                and ((term == 0 and number == -1) or (0 < term <= _LARGEST and 0 <= number <= _LARGEST))
                and not any(isinstance(one, bool) for one in (offset, term, number))
            ):
                return LogPlace(topic_id, offset, term, number)
        raise self.malformed(
            field, "a place in a topic: the text topic_id, and whole numbers offset, term, number"
        )

    def topic(self, field: str) -> Topic | None:
        """A topic."""
        match self._document.get(field):
            case None:
                return None
            case {"cluster_id": str(cluster_id), "name": str(name)} if name:
                return Topic(cluster_id, name)
        raise self.malformed(field, "a topic: text in cluster_id and name")

    def facts(self, field: str) -> Iterator[Fact]:
        """Finished changes under earlier layouts."""
        wanted = "a list of finished changes of earlier layouts"
        for value in self.get(field, list, wanted, []):
            match value:
                case {
                    "partitions": int(partitions),
                    "partition": int(partition),
                    "token": str(token),
                    "until": str(until),
                    "ahead": bytes(ahead),
                } if (
                    0 <= partition < partitions <= MOST_PARTITIONS
                    and _is_token(token)
                    and _is_token(until)
                    and len(ahead) % DIGEST == 0
                ):
                    yield Fact(partitions, partition, token, until, ahead)
                case _:
                    raise self.malformed(field, wanted)


def _is_token(text: str) -> bool:
    """Returns whether a text has the form of a resume token."""
    try:
        as_sent(text)
        bytes.fromhex(data_of(text))
        token_time(text)
    except (ValueError, PositionError):
        return False
    return True


def _layout_of(document: Mapping[str, Any], place: str) -> Layout:
    reader = _Fields(document, place, _REMEDY_LAYOUT)
    partitions = reader.count("partitions", 1, MOST_PARTITIONS)
    if partitions is None:
        raise reader.malformed("partitions", f"a whole number from 1 to {MOST_PARTITIONS}")
    return Layout(
        partitions,
        reader.count("wanted", 1, MOST_PARTITIONS),
        reader.text("application"),
        reader.topic("topic"),
    )


def _another_layout(number: int, partitions: int, layout: Layout, group: str, place: str) -> PositionError:
    state = f"is one of {partitions} partitions" if partitions else "exists"
    return PositionError(
        f"The document {f'{group}:{number}'!r} in {place} {state}, but the document {group!r} says that there are "
        f"{layout.partitions} partitions: changes would be lost, or delivered twice.",
        remedy="Was one of the two edited by hand? Restore the earlier value of `partitions` in that document. To "
        "change the number without loss, use `dispatcher run --partitions`.",
    )
