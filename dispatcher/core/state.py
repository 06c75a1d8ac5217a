"""The dispatcher's own collections, in the database `mongoz_dispatcher` (a setting).

positions: one document per group, with its layout,

    _id              "<group>"
    group            the group of dispatchers
    partitions       number of partitions
    mended_at        the server's time at which a missing position was recorded, or a position was moved by hand
    wanted           the requested number of partitions; only while it differs from `partitions`
    application      the application that owns the group: "package.module:registry"

and one per partition.

    _id              "<group>:<partition>"
    group            the group of dispatchers
    partition        from 0 on
    partitions       number of partitions
    owner            the member that may write here; null if no member holds the partition
    term             grows with every change of ownership; `delivery.term`
    beat             grows with every renewal of the lease
    lease_seconds    after this time without a renewal, other processes take over
    host, pid, boot  of the owner, see `core/identity.py`
    claimed_at       the server's time at which the owner took over
    renewed_at       the server's time of the last renewal, for people
    released_at      the server's time of the last hand-over
    token            resume token (its `_data`): everything up to it is finished
    cluster_time     the token's time, from which another pipeline can start
    fingerprint      of the scope and pipeline that the token belongs to
    ahead            binary: hashes of tokens after `token` that are finished as well, see `core/resume_tokens.py`
    until            a text that sorts after these tokens; null if there are none
    inherited        finished changes of earlier layouts, see `position/inherited.py`
    saved_at         the server's time of the last save; advances on an idle stream too
    version          of the application whose process held the partition last
    version_since    the server's time at which a process of that version started
    version_started  a date in the far future, for dispatchers of earlier versions: see `position/documents.py`

members: one document per process; see `group/members.py` and `group/facts.py` for its fields.

held: one document per delivery that waits, or that failed for good; see `parking/store.py` for its fields.

held.files, held.chunks: the documents of held deliveries that do not fit into one document, in GridFS.

controls: requests of operators to running dispatchers; see `operate/pauses.py` for their fields.

gaps: one document per gap, that is, changes that can't be delivered; see `position/gaps.py` for its fields.

deliveries: one document per delivery to a transactional receiver, written in the receiver's own transaction.

    _id           {group, delivery, receiver, document}: `delivery.id`, id of the receiver, name of the class
    at            the time of the delivery; the server removes the document `delivery_retention` days later

sessions: one document per session in which a process runs transactional receivers.

    _id           the server's id of the session
    group         the group of dispatchers
    owner         the member that uses it

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

POSITIONS: Final = "positions"
DELIVERIES: Final = "deliveries"
SESSIONS: Final = "sessions"
GAPS: Final = "gaps"
HELD: Final = "held"
CONTROLS: Final = "controls"
MEMBERS: Final = "members"

WRITTEN: Final = (
    POSITIONS,
    MEMBERS,
    DELIVERIES,
    SESSIONS,
    GAPS,
    HELD,
    f"{HELD}.files",
    f"{HELD}.chunks",
)
"""The collections that a dispatcher writes to."""

CODEC_OPTIONS: Final[CodecOptions[dict[str, Any]]] = CodecOptions(
    uuid_representation=UuidRepresentation.STANDARD, datetime_conversion=DatetimeConversion.DATETIME_AUTO
)
"""Options for writes: the `_id` of an application's document may be of any type."""


class _LenientDocument(dict[str, Any]):
    """An answer of the server. An undecodable value does not affect the other values."""

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

    A write to any of them survives a failover.

    Args:
        client: opened for the running loop.
        address: of the server, for messages.
    """

    def __init__(self, client: AsyncMongoClient[Any], name: str, address: str = "the server") -> None:
        self.client = client
        self.address = address
        self.name = name
        self.database = client[name]
        self.positions = self._majority(POSITIONS)
        self.members = self._majority(MEMBERS)
        self.sessions = self._majority(SESSIONS)
        self.deliveries = self._majority(DELIVERIES)
        self.gaps = self._majority(GAPS)
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

        After an election the majority snapshot of the new primary may lack some of them for a moment.
        """
        return self._majority(name).with_options(
            read_concern=ReadConcern("local"), read_preference=ReadPreference.PRIMARY
        )

    def as_on_this_node(self, name: str) -> Collection:
        """A collection for reads that only display data: they do not wait for a majority."""
        return self.database.get_collection(name, codec_options=READING)

    async def create_indexes(self) -> None:
        """Create the indexes by which held deliveries are found."""
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

    async def keep_deliveries_for(self, days: float) -> None:
        """Let the server remove records of deliveries that are older than this."""
        seconds = round(days * _SECONDS_PER_DAY)
        try:
            await self.deliveries.create_index("at", name=_EXPIRY, expireAfterSeconds=seconds)
        except OperationFailure as error:
            if error.code not in _INDEX_CONFLICTS:
                raise
            # The index has another expiry time. A change needs collMod, which the role readWrite does not include.
            await self.deliveries.drop_index(_EXPIRY)
            await self.deliveries.create_index("at", name=_EXPIRY, expireAfterSeconds=seconds)


class Group(NamedTuple):
    """A group of dispatchers, and the database that holds its state."""

    state: State
    name: str
