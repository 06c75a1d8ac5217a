"""What is saved of a group, read with suspicion: somebody may have edited it by hand.

Nothing is changed or delivered on the word of a document that makes no sense. It is named instead, with the field
and what it holds.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

from dispatcher.core.events import Start, token_time
from dispatcher.core.identity import Identity
from dispatcher.core.partitions import MOST
from dispatcher.core.resume_tokens import DIGEST, as_sent, data_of
from dispatcher.core.state import POSITIONS
from dispatcher.exceptions import PositionError
from dispatcher.position.inherited import Fact

__all__ = ["Layout", "Position", "Saved"]

_REMEDY: Final = (
    "Was it edited by hand? Mend the field. Or delete the document while no dispatcher runs: then this partition "
    "begins now, and what was not delivered before is skipped."
)
_REMEDY_LAYOUT: Final = "Was it edited by hand? Mend the field to what it was."

# Characters of a value in a message.
_LONGEST: Final = 200


class Layout(NamedTuple):
    """How a group's work is divided.

    Attributes:
        partitions: how many there are.
        wanted: how many there should be, if that is another number.
        application: that the group belongs to, as `"package.module:registry"`; empty if it never said.
    """

    partitions: int
    wanted: int | None
    application: str


class Position(NamedTuple):
    """What is saved of one partition.

    Attributes:
        partition: which.
        partitions: of how many; 0 if that was not said.
        owner: the member that may write here; None if nobody holds it.
        term: grows with every change of ownership.
        beat: grows with every renewal of the lease.
        lease: seconds after which a lease that was not renewed is over; None if its owner did not say.
        identity: the owner's process.
        token: everything up to it is finished; None if nothing was ever saved.
        fingerprint: of the stream that the token belongs to.
        until: what sorts behind the tokens of all changes that `ahead` is about.
        ahead: hashes of tokens behind `token` that are finished as well, see `core/resume_tokens.py`.
        inherited: what else is, from times when the work was divided in another way.
        version: of the application that held it last.
        version_started: the server's time at which a process of that version started; None if it never said.
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
    version_started: datetime | None

    def start(self, fingerprint: str) -> Start:
        """Where to read on with a stream of this fingerprint.

        After another stream's token only its time can be used; whoever reads must then skip what is not
        behind the token.
        """
        assert self.token is not None
        if fingerprint == self.fingerprint:
            return Start(token=self.token)
        return Start(cluster_time=token_time(self.token))


class Saved(NamedTuple):
    """All that is saved of one group.

    Attributes:
        layout: None if no dispatcher of the group ever ran, or only ones that knew of no partitions.
        positions: by partition. One that somebody deleted is missing.
    """

    layout: Layout | None
    positions: dict[int, Position]

    @classmethod
    def read(cls, documents: list[dict[str, Any]], group: str, database: str) -> "Saved":
        """What the documents of a group say.

        Raises:
            PositionError: one of them makes no sense; it names the field.
        """
        place = f"{database}.{POSITIONS}"
        layout = None
        positions = {}
        for document in documents:
            if document["_id"] == group:
                layout = _layout_of(document, place)
            else:
                position = _position_of(document, place, group)
                positions[position.partition] = position
        if layout is not None:
            for number, position in positions.items():
                if not number < layout.partitions == (position.partitions or layout.partitions):
                    raise _another_layout(number, position, layout, group, place)
        return cls(layout, positions)


class _Reader:
    """Takes values out of one document."""

    def __init__(self, document: Mapping[str, Any], place: str, remedy: str) -> None:
        self._document = document
        self._place = place
        self._remedy = remedy

    def nonsense(self, field: str, wanted: str) -> PositionError:
        value = repr(self._document.get(field))
        shown = value if len(value) <= _LONGEST else f"{value[:_LONGEST]}..."
        return PositionError(
            f"The document {self._document['_id']!r} in {self._place} has {shown} as {field}, not {wanted}.",
            remedy=self._remedy,
        )

    def get(self, field: str, kind: type | tuple[type, ...], wanted: str, default: Any = None) -> Any:
        """A value of this type; the default if there is none."""
        value = self._document.get(field)
        if value is None:
            return default
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.nonsense(field, wanted)
        return value

    def count(self, field: str, least: int, most: int | None = None, default: int | None = None) -> Any:
        """A whole number within bounds."""
        wanted = f"a whole number from {least} on" if most is None else f"a whole number from {least} to {most}"
        value = self.get(field, (int, float), wanted)
        if value is None:
            return default
        if not float(value).is_integer() or value < least or (most is not None and value > most):
            raise self.nonsense(field, wanted)
        return int(value)

    def text(self, field: str, default: str | None = "") -> Any:
        """A string."""
        return self.get(field, str, "a string", default)

    def token(self, field: str) -> str | None:
        """A resume token."""
        value: str | None = self.text(field, None)
        if value is not None and not _is_token(value):
            raise self.nonsense(field, "a resume token")
        return value

    def digests(self, field: str) -> bytes:
        """Hashes of several of them."""
        wanted = f"binary, {DIGEST} bytes for each of some tokens"
        value: bytes = self.get(field, bytes, wanted, b"")
        if len(value) % DIGEST:
            raise self.nonsense(field, wanted)
        return value

    def facts(self, field: str) -> Iterator[Fact]:
        """What was finished under other layouts."""
        wanted = "a list of what earlier layouts finished"
        for value in self.get(field, list, wanted, []):
            match value:
                case {
                    "partitions": int(partitions),
                    "partition": int(partition),
                    "token": str(token),
                    "until": str(until),
                    "ahead": bytes(ahead),
                } if (
                    0 <= partition < partitions <= MOST
                    and _is_token(token)
                    and _is_token(until)
                    and len(ahead) % DIGEST == 0
                ):
                    yield Fact(partitions, partition, token, until, ahead)
                case _:
                    raise self.nonsense(field, wanted)


def _is_token(text: str) -> bool:
    """Whether it looks like a resume token."""
    try:
        as_sent(text)
        bytes.fromhex(data_of(text))
        token_time(text)
    except (ValueError, PositionError):
        return False
    return True


def _layout_of(document: Mapping[str, Any], place: str) -> Layout:
    reader = _Reader(document, place, _REMEDY_LAYOUT)
    partitions = reader.count("partitions", 1, MOST)
    if partitions is None:
        raise reader.nonsense("partitions", f"a whole number from 1 to {MOST}")
    return Layout(partitions, reader.count("wanted", 1, MOST), reader.text("application"))


def _another_layout(number: int, position: Position, layout: Layout, group: str, place: str) -> PositionError:
    said = f"is one of {position.partitions} partitions" if position.partitions else "is there"
    return PositionError(
        f"The document {f'{group}:{number}'!r} in {place} {said}, but the document {group!r} says that there are "
        f"{layout.partitions} partitions: changes would be lost, or delivered twice.",
        remedy=f"Was one of them edited by hand? Set partitions of {group!r} to what it was; "
        "`dispatcher run --partitions` changes the number without loss.",
    )


def _position_of(document: Mapping[str, Any], place: str, group: str) -> Position:
    reader = _Reader(document, place, _REMEDY)
    number = str(document["_id"]).removeprefix(f"{group}:")
    if document["_id"] != f"{group}:{number}" or not (number.isdecimal() and number.isascii()):
        raise reader.nonsense("_id", f"{group!r}, or that with a colon and the number of a partition")
    partition = reader.count("partition", 0, default=int(number))
    if partition != int(number):
        raise reader.nonsense("partition", f"{number}, as its _id says")
    lease = reader.get("lease_seconds", (int, float), "a number of seconds")
    if lease is not None and not 0 < lease < float("inf"):
        raise reader.nonsense("lease_seconds", "a number of seconds")
    return Position(
        partition=partition,
        partitions=reader.count("partitions", 1, MOST, default=0),
        owner=reader.text("owner", None),
        term=reader.count("term", 0, default=0),
        beat=reader.count("beat", 0, default=0),
        lease=lease,
        identity=Identity.read(document),
        token=reader.token("token"),
        fingerprint=reader.text("fingerprint", None),
        until=reader.token("until") or "",
        ahead=reader.digests("ahead"),
        inherited=tuple(reader.facts("inherited")),
        version=reader.text("version"),
        version_started=reader.get("version_started", datetime, "a date"),
    )
