"""The values that stages pass to each other."""

from collections.abc import Callable, Coroutine, Hashable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from operator import itemgetter
from struct import Struct
from typing import Any, Final, Literal, NamedTuple

import bson
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions
from bson.timestamp import Timestamp

from dispatcher.core.bson_codec import RawEvent
from dispatcher.core.bson_elements import field, keyed, raw_field
from dispatcher.core.keys import document_key
from dispatcher.core.resume_tokens import data_of, token_at
from dispatcher.core.undecodable import Fault
from mongoz.connection import Collection
from mongoz.keys import canonical_of
from mongoz.signals.receivers import Receiver
from mongoz.stamps import Call, Stamp

Image = Literal["post", "current", "pre", "key"]
Namespace = tuple[str, str]
"""(database, collection)"""

DELIVERABLE: Final = frozenset({"insert", "update", "replace", "delete"})
"""Operations on single documents. Receivers get them."""

CALLED: Final = {
    ("insert", Call.CREATED): ("post_save", True),
    ("update", Call.SAVED): ("post_save", False),
    ("update", Call.UPDATED): ("post_update", False),
    ("delete", Call.DELETED): ("post_delete", False),
}
"""Maps the operation of an event, and the call in its origin stamp, to the signal and the value of `created`.

The ODM never sends a replace, so a replace never has a stamp of its own. A delete has the stamp of its marker."""

# `delivery_id` copies this hash: a copy takes a third of the time of a new hash.
_ID_HASH: Final = blake2b(digest_size=12)

# The names of the times in an event. No value of a client stands before them.
_CLUSTER_TIME: Final = b"\x11clusterTime\0"
_WALL_TIME: Final = b"\x09wallTime\0"
_TIMESTAMP: Final = Struct("<II")
_DATE: Final = b"\x0f\0\0\0\x09\0%b\0"  # a document with a date under the empty name

_KEYS: Final[CodecOptions[dict[str, Any]]] = CodecOptions(uuid_representation=UuidRepresentation.STANDARD)


class LogPlace(NamedTuple):
    """The place of a reader in one partition of a topic, see `kafka/acceptance.py`.

    Attributes:
        topic_id: distinguishes the topic from an earlier one with the same name.
        offset: the offset of the next record to read.
        term: the term of the last accepted record; 0 before the first one.
        number: the number of the last accepted record; -1 before the first one.
    """

    topic_id: str
    offset: int
    term: int
    number: int


class Start(NamedTuple):
    """The start of a source: after a token, at a time, or now if both are None.

    Attributes:
        place: for a topic, a place up to which all accepted records are finished; None if it is unknown.
    """

    token: str | None = None
    cluster_time: Timestamp | None = None
    place: LogPlace | None = None

    @property
    def after(self) -> str:
        """The source gives only changes whose tokens sort after this text. For a start now, the text is empty."""
        if self.token is not None:
            return self.token
        return "" if self.cluster_time is None else token_at(self.cluster_time)


TOO_LARGE: Final = "the server can't send a change whose _id has several megabytes"
"""The reason why a change stream lacks an event."""


class EventBatch(NamedTuple):
    """The result of one round trip to the server.

    Attributes:
        events: change events, undecoded; empty on an idle stream.
        token: a stream that resumes after this token continues after the batch.
        lost_after: the token before an event that can't be read. The batch begins after this event. None in nearly
            all cases.
        lost_why: the reason why the event can't be read, for people.
        place: for a topic, the place after this batch.
    """

    events: Sequence[RawEvent]
    token: str
    lost_after: str | None = None
    lost_why: str = TOO_LARGE
    place: LogPlace | None = None


class Change(NamedTuple):
    """One change event.

    Attributes:
        token: its resume token; tokens of one deployment sort in commit order.
        operation: `"insert"`, `"update"`, `"replace"`, `"delete"`; for an event of a whole collection or
            database, the operation on it, such as `"drop"`.
            `"untouched"`: an update or a replace that changed nothing but the stamp.
            `"marker"`: an `"untouched"` update that may announce a delete by the ODM.
            `"deferred"`: a placeholder for a change that comes after a marker of the same document. The change
            itself follows when the delete has arrived, or when it is certain that no delete follows.
            `"finished"`: an earlier process has finished it.
            `"elsewhere"`: its collection is not watched.
        namespace: (database, collection); the collection is "" for events of a whole database.
        cluster_time: the server's logical time of the commit.
        wall_time: the server's wall clock at the commit.
        document: the document after the change, if known.
        before: the document before the change, if the server keeps pre images.
        image: the kind of `document`, as in `Delivery.image`; `"key"` while the document is unknown.
        names: top-level stored names that an update changed or removed, without the stamp's name.
        stamp: the origin stamp in the event, if it is readable. It may be copied from another write, so only
            `origin` counts.
        size: bytes of the event as it was sent.
        raw: the event as it was sent. Dead letters and further instances are made from this event, because a
            receiver may have modified the documents of the first instance.
        looked_up: the document from a lookup, if the event had none.
        transaction: identifies the transaction of the change; None outside of transactions.
        origin: `stamp` if it is valid, see `stream/origins.py`; for a delete, the stamp of its marker.
        marker: for a delete, the token of its marker; empty if it has none.
        fault: the reason why `document`, `id` or `names` can't be decoded; None in nearly all cases.
        delivery_id: the id of the deliveries, if this id is not computed from the token; "" otherwise. For a late
            stamp, the id comes from the stamp (see `stream/origins.py`). For a held delivery, the id comes from
            the record of the delivery.
        is_claimed: the delivery is claimed by the writing process, and the claim is not decided yet.
        takeover: whether a dispatcher makes the delivery because the writing process has not finished it.
        superseded: in a takeover, whether a later write has changed or deleted the document. The receivers then
            get the present document, or only its id, because they may have run for the later write already.
        context: the values of `mongoz.context(...)` around the write, as JSON; "" if there are none. They come
            from `origin`. For a held delivery, they come from the record of the delivery.
    """

    token: str
    operation: str
    namespace: Namespace
    id: Any
    cluster_time: Timestamp
    wall_time: Any
    document: dict[str, Any] | None
    before: dict[str, Any] | None
    image: Image
    names: frozenset[str]
    stamp: Stamp | None
    size: int
    raw: bytes = b""
    looked_up: bytes | None = None
    transaction: Hashable | None = None
    origin: Stamp | None = None
    fault: Fault | None = None
    delivery_id: str = ""
    marker: str = ""
    is_claimed: bool = False
    takeover: bool = False
    superseded: bool = False
    context: str = ""

    @property
    def key(self) -> Hashable:
        """Changes with the same key are delivered one after another, in commit order."""
        try:
            return document_key(self.namespace, self.id)
        except Exception:  # the `_id` can't be decoded, or can't be encoded again
            return (self.namespace, None, canonical_of(self.raw_key))

    @property
    def raw_key(self) -> bytes:
        """The `_id` as the server sent it, as BSON: {"": _id}."""
        document_key = raw_field(self.raw, "documentKey") if self.raw else None
        found = None if document_key is None else field(document_key, "_id")
        return bson.encode({"": self.id}, codec_options=_KEYS) if found is None else keyed(found)

    @property
    def seconds(self) -> int:
        """The seconds of the cluster time."""
        return self.cluster_time.time

    def without_documents(self) -> "Change":
        """Copy the change without its event and its documents, which may be large."""
        return self._replace(document=None, before=None, raw=b"")


class StreamChange(Change):
    """A change whose times are decoded when they are read. Few receivers read them.

    The times are in `raw`. In the tuple, the place of `cluster_time` has its seconds, and the place of `wall_time`
    has the codec options.
    """

    __slots__ = ()

    @property
    def cluster_time(self) -> Timestamp:
        """The server's logical time of the commit."""
        at = self.raw.index(_CLUSTER_TIME) + len(_CLUSTER_TIME)
        increment, seconds = _TIMESTAMP.unpack_from(self.raw, at)
        return Timestamp(seconds, increment)

    @property
    def wall_time(self) -> Any:
        """The server's wall clock at the commit."""
        at = self.raw.index(_WALL_TIME) + len(_WALL_TIME)
        return bson.decode(_DATE % self.raw[at : at + 8], self[5])[""]

    seconds = property(itemgetter(4), doc="The seconds of the cluster time.")

    def without_documents(self) -> Change:
        """Copy the change without its event and its documents, which may be large. The times are decoded."""
        times = {"cluster_time": self.cluster_time, "wall_time": self.wall_time}
        return Change(*self)._replace(document=None, before=None, raw=b"", **times)


def key_from(namespace: Namespace, raw: bytes, codec_options: CodecOptions[Any]) -> Hashable:
    """`Change.key` of the changes of a document.

    Args:
        raw: the `_id` of the document, as BSON: {"": _id}.
    """
    try:
        return document_key(namespace, bson.decode(raw, codec_options=codec_options)[""])
    except Exception:
        return (namespace, None, canonical_of(raw))


def delivery_id_of(change: Change, run: str = "") -> str:
    """The id of the deliveries of a change. It is the same whenever the change is read again.

    Args:
        change: a change whose stamp `stream/origins.py` has checked.
        run: the id of a replay or a backfill, whose deliveries have ids of their own; "" for live deliveries.
    """
    return change.delivery_id if change.delivery_id and not run else delivery_id(change.token, run)


def delivery_id(token: str, run: str = "") -> str:
    """Like `delivery_id_of`, for a change of which only the token is known."""
    data = data_of(token)
    text = f"{run}:{data}" if run else data
    hashed = _ID_HASH.copy()
    hashed.update(text.encode("utf-8", "surrogatepass"))
    return hashed.hexdigest()


@dataclass(slots=True)
class Calls:
    """The receivers of one change that belong to one document class. No code modifies it.

    The attributes of a dataclass are read faster than those of a tuple.

    Attributes:
        document: the class. The receivers get instances of it.
        created: the argument `created` of `post_save` receivers.
        receivers: the receivers in the order of their connection.
        collection: the collection of the change; None if it is that of the document class. If a receiver saves
            the instance, the write must go to this collection.
        hops: the number of hops in the chain of writes that led to this change.
        run: the id of a replay or a backfill; "" for live deliveries.
    """

    document: Any
    signal: str
    created: bool
    receivers: tuple[Receiver, ...]
    collection: Collection | None = None
    hops: int = 0
    run: str = ""

    def with_receivers(self, *receivers: Receiver) -> "Calls":
        """Copy the calls, with other receivers."""
        return Calls(self.document, self.signal, self.created, receivers, self.collection, self.hops, self.run)


class Job:
    """The delivery of one change, and its place in the order of the stream.

    The stages call the methods of the job, and only these methods change its attributes. The exception is
    `passed`: the deliverer increases it directly.

    Attributes:
        change: the change; None after all deliveries, to free its memory while the job waits for earlier jobs.
        announces: 1 if the change is an update that announces a delete; -1 if it is the announced delete; else 0.
        marker: for a delete, the job of the update that announced it. Both are finished together.
        passed: the number of receivers that the deliverer is done with. Their deliveries succeeded, failed for
            good, or wait elsewhere: in MongoDB, for a claim, or in a batch.
        parts: the number of parts that are not finished. All calls together are one part. Each delivery
            that waits in a batch, or for a claim, is another part. (A delivery waits for a claim until it is
            certain whether the writing process makes the delivery.)
        awaited: the number of parts whose deliveries only the writing process may make, because their claims
            are undecided.
        was_awaited: whether a delivery that waited for a claim was made or parked.
        gathered: the number of deliveries in batches that are not finished.
        on_end: called by `finish_part` when the last part is finished; None if nobody waits for that.
    """

    __slots__ = (
        "announces",
        "awaited",
        "calls",
        "change",
        "gathered",
        "marker",
        "on_end",
        "parts",
        "passed",
        "size",
        "token",
        "was_awaited",
    )

    def __init__(self, token: str, change: Change | None = None, calls: tuple[Calls, ...] = ()) -> None:
        self.token = token
        self.change = change
        self.calls = calls
        self.size = 0 if change is None else change.size
        self.passed = 0
        self.marker: Job | None = None
        self.announces = 0
        self.parts = 1
        self.awaited = 0
        self.was_awaited = False
        self.gathered = 0
        self.on_end: Callable[[], None] | None = None

    # -- markers and deferred changes ------------------------------------------------------------------------

    def announce_delete(self) -> None:
        """Record that the change is an update that announces a delete."""
        self.announces = 1

    def settle(self, change: Change, calls: tuple[Calls, ...]) -> None:
        """Set the values that were not known yet when a marker or a deferred change was registered."""
        self.change, self.calls, self.size, self.announces = change, calls, change.size, 0

    def finish_with(self, marker: "Job") -> None:
        """Record that the job of this delete's marker ends together with this job."""
        self.marker, self.announces = marker, -1

    # -- parts -----------------------------------------------------------------------------------------------

    def wait_for_process(self) -> None:
        """Record that the claimed deliveries are a part. For now, only the writing process may make them."""
        self.parts, self.awaited = 1 + bool(self.calls), 1

    def split(self, parts: int = 1, *, awaited: bool = False) -> None:
        """Record that deliveries have become parts of their own.

        Args:
            awaited: whether only the writing process may make them for now.
        """
        self.parts += parts
        self.awaited += parts * awaited

    def end_wait(self) -> None:
        """Record that the claim of a part is decided, or that the part waits in the database."""
        self.awaited -= 1

    def note_made(self) -> None:
        """Record that a delivery that waited for a claim was made or parked."""
        self.was_awaited = True

    def gather(self) -> None:
        """Record that a delivery waits in a batch, as a part of its own."""
        self.parts += 1
        self.gathered += 1

    def end_gathering(self) -> None:
        """Record that a delivery of a batch is finished. `finish_part` follows."""
        self.gathered -= 1

    def finish_part(self) -> bool:
        """Record that a part is finished. Returns whether it was the last one."""
        self.parts -= 1
        if self.parts:
            return False
        self.change, self.calls = None, ()
        if self.marker is not None:
            self.marker.change = None
        if self.on_end is not None:
            self.on_end()
        return True

    def when_ended(self, listener: Callable[[], None]) -> None:
        """Record that the calls are finished. `listener` is called when the last part is finished.

        This is for a job without a place in the order of the stream. Call `finish_part` for each other part, too.
        """
        self.on_end = listener
        self.finish_part()

    @property
    def is_begun(self) -> bool:
        """Returns whether some deliveries of the change are finished, and others are left."""
        return self.passed > self.gathered or self.was_awaited

    @property
    def is_awaited(self) -> bool:
        """Returns whether only the writing process may make the deliveries that are left."""
        return self.parts == self.awaited

    @property
    def done(self) -> bool:
        """Returns whether nothing is left to do."""
        return self.change is None

    @property
    def left(self) -> Iterator[Calls]:
        """The calls that are left to do, each with a single receiver."""
        each = (calls.with_receivers(one) for calls in self.calls for one in calls.receivers)
        return islice(each, self.passed, None)


class Errand(NamedTuple):
    """Work on a document. It runs between the deliveries of the document's changes.

    Attributes:
        on_finished: called when the errand is finished, even if another worker had to finish it.
    """

    run: Callable[[], Coroutine[Any, Any, None]]
    on_finished: Callable[[], None] | None = None
