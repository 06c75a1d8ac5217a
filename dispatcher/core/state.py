"""The dispatcher's own collections, in the database `mongoz_dispatcher` (a setting).

positions: one document per group, which says how its work is divided,

    _id              "<group>"
    group            the group of dispatchers
    partitions       how many parts there are
    mended_at        the server's time at which a position was recorded anew, or moved by hand
    wanted           how many there should be; only while that is another number
    application      that the group belongs to: "package.module:registry"

and one per partition.

    _id              "<group>:<partition>"
    group            the group of dispatchers
    partition        from 0 on
    partitions       how many there are
    owner            the member that may write here; null if nobody holds it
    term             grows with every change of ownership; `delivery.term`
    beat             grows with every renewal of the lease
    lease_seconds    after which others take over, if the lease is not renewed
    host, pid, boot  of the owner, see `core/identity.py`
    claimed_at       the server's time at which the owner took over
    renewed_at       the same of the last renewal, for people
    released_at      the same of the last hand-over
    token            resume token (its `_data`): everything up to it is finished
    cluster_time     the token's time, from which another pipeline can start
    fingerprint      of the scope and pipeline that the token belongs to
    ahead            binary: hashes of tokens behind `token` that are finished already, see `core/resume_tokens.py`
    until            what sorts behind these tokens; null if there are none
    inherited        what partitions of earlier layouts had finished, see `position/inherited.py`
    saved_at         the server's time of the last save; advances on an idle stream too
    version          of the application that held it last
    version_started  the server's time at which a process of that version started

members: one document per process; `group/members.py` has the fields that others read, `group/layout.py` the rest.

dead_letters: one document per delivery that failed for good; see `parking/dead_letters.py` for its fields.

dead_letter_chunks: the documents of letters that would not fit into one document.

    _id           "<_id of the letter>:<name of the part>:<number>"; the number has four digits, from 0000
    data          binary, at most 8 MB

parked_lanes, parked, parked_chunks: deliveries that wait; see `parking/store.py` for their fields.

controls: what operators ask of running dispatchers; see `operate/pauses.py` for their fields.

gaps: one document per gap, changes that nobody could deliver; see `position/gaps.py` for its fields.

deliveries: one document per delivery to a transactional receiver, written in the receiver's own transaction.

    _id           {group, delivery, receiver, document}: `delivery.id`, id of the receiver, name of the class
    at            when; the server removes it `delivery_retention` days later

sessions: one document per session in which a process runs transactional receivers.

    _id           the server's id of the session
    group         the group of dispatchers
    owner         the member whose process it is
"""

from typing import Any, Final

from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.raw_bson import RawBSONDocument
from pymongo import AsyncMongoClient, ReadPreference
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import OperationFailure
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from dispatcher.core.bson_elements import readable

__all__ = [
    "CODEC_OPTIONS",
    "CONTROLS",
    "DEAD_LETTERS",
    "DEAD_LETTER_CHUNKS",
    "DELIVERIES",
    "GAPS",
    "MEMBERS",
    "PARKED",
    "PARKED_CHUNKS",
    "PARKED_LANES",
    "POSITIONS",
    "READING",
    "SESSIONS",
    "WRITTEN",
    "controls",
    "dead_letter_chunks",
    "dead_letters",
    "deliveries",
    "gaps",
    "index_state",
    "keep_deliveries_for",
    "members",
    "parked",
    "parked_chunks",
    "parked_lanes",
    "positions",
    "sessions",
]

POSITIONS: Final = "positions"
DEAD_LETTERS: Final = "dead_letters"
DEAD_LETTER_CHUNKS: Final = "dead_letter_chunks"
DELIVERIES: Final = "deliveries"
SESSIONS: Final = "sessions"
GAPS: Final = "gaps"
CONTROLS: Final = "controls"
MEMBERS: Final = "members"
PARKED: Final = "parked"
PARKED_LANES: Final = "parked_lanes"
PARKED_CHUNKS: Final = "parked_chunks"

WRITTEN: Final = (
    POSITIONS,
    MEMBERS,
    DEAD_LETTERS,
    DEAD_LETTER_CHUNKS,
    DELIVERIES,
    SESSIONS,
    GAPS,
    PARKED,
    PARKED_LANES,
    PARKED_CHUNKS,
)
"""The collections that a dispatcher writes to."""

CODEC_OPTIONS: Final[CodecOptions[dict[str, Any]]] = CodecOptions(
    uuid_representation=UuidRepresentation.STANDARD, datetime_conversion=DatetimeConversion.DATETIME_AUTO
)
"""How state is written: the `_id` of an application's document may be of any type."""


class _Anything(dict[str, Any]):
    """An answer of the server, whatever it holds: a value that no driver decodes takes no others along."""

    # The driver then hands over bytes, as it does for a RawBSONDocument.
    _type_marker: Final = RawBSONDocument._type_marker

    def __init__(self, raw: bytes, codec_options: CodecOptions[Any] | None = None) -> None:
        super().__init__(readable(bytes(raw), tz_aware=codec_options is not None and codec_options.tz_aware))


READING: Final[CodecOptions[Any]] = CODEC_OPTIONS.with_options(document_class=_Anything)
"""How state is read."""

_SECONDS_PER_DAY: Final = 86_400
_EXPIRY: Final = "expiry"
_INDEX_CONFLICTS: Final = frozenset({85, 86})  # IndexOptionsConflict, IndexKeySpecsConflict

_Collection = AsyncCollection[dict[str, Any]]


def positions(client: AsyncMongoClient[Any], database: str) -> _Collection:
    """The collection of positions: what is written there survives a failover, and what is read did."""
    return _durable(client, database, POSITIONS)


def dead_letters(client: AsyncMongoClient[Any], database: str) -> _Collection:
    """The collection of dead letters."""
    return _durable(client, database, DEAD_LETTERS)


def dead_letter_chunks(client: AsyncMongoClient[Any], database: str) -> _Collection:
    """The collection of what does not fit into dead letters."""
    return _durable(client, database, DEAD_LETTER_CHUNKS)


def deliveries(client: AsyncMongoClient[Any], database: str) -> _Collection:
    """The collection of records that a transactional receiver ran."""
    return _durable(client, database, DELIVERIES)


def gaps(client: AsyncMongoClient[Any], database: str) -> _Collection:
    """The collection of changes that nobody could deliver."""
    return _durable(client, database, GAPS)


def controls(client: AsyncMongoClient[Any], database: str) -> _Collection:
    """The collection of what operators ask of running dispatchers."""
    return _current(client, database, CONTROLS)


def members(client: AsyncMongoClient[Any], database: str) -> _Collection:
    """The collection of dispatcher processes."""
    return _durable(client, database, MEMBERS)


def parked(client: AsyncMongoClient[Any], database: str) -> _Collection:
    """The collection of deliveries that wait."""
    return _current(client, database, PARKED)


def parked_lanes(client: AsyncMongoClient[Any], database: str) -> _Collection:
    """The collection of the lanes in which they wait."""
    return _current(client, database, PARKED_LANES)


def parked_chunks(client: AsyncMongoClient[Any], database: str) -> _Collection:
    """The collection of what does not fit into deliveries that wait."""
    return _current(client, database, PARKED_CHUNKS)


def _current(client: AsyncMongoClient[Any], database: str, name: str) -> _Collection:
    """A collection from which is read whatever was written, by whoever was told that it was.

    After an election the new primary's majority view may lie behind that for a moment.
    """
    return _durable(client, database, name).with_options(
        read_concern=ReadConcern("local"), read_preference=ReadPreference.PRIMARY
    )


def sessions(client: AsyncMongoClient[Any], database: str) -> _Collection:
    """The collection of the sessions of transactional receivers."""
    return _durable(client, database, SESSIONS)


def _durable(client: AsyncMongoClient[Any], database: str, name: str) -> _Collection:
    return client[database].get_collection(
        name,
        codec_options=READING,
        write_concern=WriteConcern("majority"),
        read_concern=ReadConcern("majority"),
    )


async def index_state(client: AsyncMongoClient[Any], database: str) -> None:
    """Have the server find the deliveries whose time has come, however many wait, and letters to be tried again.

    Raises:
        PyMongoError: as the driver has it.
    """
    await parked_lanes(client, database).create_index([("group", 1), ("receiver", 1), ("due_at", 1)], name="due")
    await dead_letters(client, database).create_index(
        [("group", 1), ("retry_requested_at", 1)],
        name="requested",
        partialFilterExpression={"retry_requested_at": {"$exists": True}},
    )
    await dead_letters(client, database).create_index([("group", 1), ("short_id", 1)], name="short_id")


async def keep_deliveries_for(client: AsyncMongoClient[Any], database: str, days: float) -> None:
    """Have the server remove the records of deliveries when they are older than that.

    Raises:
        PyMongoError: as the driver has it.
    """
    collection = deliveries(client, database)
    seconds = round(days * _SECONDS_PER_DAY)
    try:
        await collection.create_index("at", name=_EXPIRY, expireAfterSeconds=seconds)
    except OperationFailure as error:
        if error.code not in _INDEX_CONFLICTS:
            raise
        # It keeps them for another time. Changing an index needs collMod, which readWrite does not include.
        await collection.drop_index(_EXPIRY)
        await collection.create_index("at", name=_EXPIRY, expireAfterSeconds=seconds)
