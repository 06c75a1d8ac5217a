"""The dispatcher's own collections, in the database `mongoz_dispatcher` (a setting).

docs/reference/state.md lists the fields of the documents.

    positions     one document per group, with its layout, and one per partition
    members       one document per process
    held          one document per delivery that waits, or that failed for good: see `parking/store.py`
    held.files, held.chunks     parts of deliveries that do not fit into one document of `held`, in GridFS
    controls      requests of operators to running dispatchers, and runs (replays and backfills)
    gaps          one document per gap: changes that can't be delivered
    deliveries    one document per delivery to a transactional receiver, written in the receiver's own transaction
    claims        one document per incarnation of a writing process, see `mongoz/claims/document.py`
    sessions      one document per session in which a process opens transactions for deliveries
    relays        one document per topic of a relay, with the position up to which changes are published
    relayed.files, relayed.chunks     change events that do not fit into a record of a topic, in GridFS

MongoDB commands raise the `PyMongoError` of the driver.
"""

from typing import Any, Final, NamedTuple

from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.raw_bson import RawBSONDocument
from pymongo import AsyncMongoClient, ReadPreference
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import OperationFailure
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from dispatcher.core.bson_elements import readable
from mongoz.claims import document

POSITIONS: Final = "positions"
DELIVERIES: Final = "deliveries"
SESSIONS: Final = "sessions"
GAPS: Final = "gaps"
HELD: Final = "held"
CONTROLS: Final = "controls"
MEMBERS: Final = "members"
CLAIMS: Final = document.CLAIMS
RELAYS: Final = "relays"
RELAYED: Final = "relayed"

OPEN_BACKFILL: Final = {
    "kind": "run",
    "what": "backfill",
    "status": "running",
    "divided": None,
    "$or": [{"asked.partition": {"$ne": None}}, {"handed": True}],
}
"""Matches documents in `controls`: the backfills, and parts of backfills, that the dispatchers work on."""

WRITTEN: Final = (
    POSITIONS,
    MEMBERS,
    DELIVERIES,
    SESSIONS,
    CLAIMS,
    GAPS,
    HELD,
    f"{HELD}.files",
    f"{HELD}.chunks",
    RELAYS,
    f"{RELAYED}.files",
    f"{RELAYED}.chunks",
)
"""The collections that a dispatcher writes to."""

CODEC_OPTIONS: Final[CodecOptions[dict[str, Any]]] = CodecOptions(
    uuid_representation=UuidRepresentation.STANDARD, datetime_conversion=DatetimeConversion.DATETIME_AUTO
)
"""Options for writes. A write can contain the `_id` of an application's document, for example a UUID."""


class _LenientDocument(dict[str, Any]):
    """A document that the server sent. It is decoded even if it holds undecodable values, see `readable`."""

    # Because of this marker, the driver passes bytes, as for a RawBSONDocument.
    _type_marker: Final = RawBSONDocument._type_marker

    def __init__(self, raw: bytes, codec_options: CodecOptions[Any] | None = None) -> None:
        super().__init__(readable(bytes(raw), tz_aware=codec_options is not None and codec_options.tz_aware))


READING: Final[CodecOptions[Any]] = CODEC_OPTIONS.with_options(document_class=_LenientDocument)
"""Options for reads."""

_SECONDS_PER_DAY: Final = 86_400
_EXPIRY: Final = "expiry"
_INDEX_CONFLICTS: Final = frozenset({85, 86})  # IndexOptionsConflict, IndexKeySpecsConflict

Collection = AsyncCollection[dict[str, Any]]


class State:
    """The collections of one state database, each with its codec, its read concern and its write concern.

    After a write to one of these collections has returned, the write survives a failover.

    Args:
        client: opened for the running loop.
        address: the address of the server, for messages.
    """

    def __init__(self, client: AsyncMongoClient[Any], name: str, address: str = "the server") -> None:
        self.client = client
        self.address = address
        self.name = name
        self.database = client[name]
        self.positions = self._majority(POSITIONS)
        self.members = self._majority(MEMBERS)
        self.sessions = self._majority(SESSIONS)
        self.claims = self._majority(CLAIMS)
        self.deliveries = self._majority(DELIVERIES)
        self.gaps = self._majority(GAPS)
        self.relays = self.newest(RELAYS)
        self.controls = self.newest(CONTROLS)
        self.held = self.newest(HELD)

    def _majority(self, name: str) -> Collection:
        """A collection whose reads return only data that survives a failover."""
        return self.database.get_collection(
            name,
            codec_options=READING,
            write_concern=WriteConcern("majority"),
            read_concern=ReadConcern("majority"),
        )

    def newest(self, name: str) -> Collection:
        """A collection whose reads return every acknowledged write.

        A read with the read concern `majority` can miss some of these writes for a moment after an election.
        """
        return self._majority(name).with_options(
            read_concern=ReadConcern("local"), read_preference=ReadPreference.PRIMARY
        )

    def as_on_this_node(self, name: str) -> Collection:
        """A collection for reads that only display data: they do not wait for a majority."""
        return self.database.get_collection(name, codec_options=READING)

    async def create_indexes(self) -> None:
        """Create the indexes of held deliveries, and an index for queries of books that are not fenced."""
        await self.held.create_index([("group", 1), ("lane", 1), ("token", 1), ("run", 1)], name="order")
        for name, fields, present in (
            ("due", ("group", "receiver", "due_at"), "due_at"),
            ("newest", ("group", "last_attempt_at", "_id"), "reason"),
            ("requested", ("group", "retry_requested_at"), "retry_requested_at"),
            ("short_id", ("group", "short_id"), "short_id"),
        ):
            keys = [(field, 1) for field in fields]
            only = {present: {"$exists": True}}
            await self.held.create_index(keys, name=name, partialFilterExpression=only)
        await self.claims.create_index([("group", 1), ("fenced_at", 1)], name="unfinished")

    async def keep_deliveries_for(self, days: float) -> None:
        """Let the server remove records of deliveries that are older than this number of days."""
        await _expire(self.deliveries, "at", days)

    async def keep_claims_for(self, days: float) -> None:
        """Let the server remove the books of processes whose last beat is older than this number of days."""
        await _expire(self.claims, "beat_at", days)


async def _expire(collection: Collection, field: str, days: float) -> None:
    seconds = round(days * _SECONDS_PER_DAY)
    try:
        await collection.create_index(field, name=_EXPIRY, expireAfterSeconds=seconds)
    except OperationFailure as error:
        if error.code not in _INDEX_CONFLICTS:
            raise
        # The index has another expiry time. collMod could set it, but readWrite does not include this right.
        await collection.drop_index(_EXPIRY)
        await collection.create_index(field, name=_EXPIRY, expireAfterSeconds=seconds)


class Group(NamedTuple):
    """A group of dispatchers, and the database that holds its state."""

    state: State
    name: str
