"""What the stages hand to each other."""

from collections.abc import Hashable
from typing import Any, Literal, NamedTuple

from bson.raw_bson import RawBSONDocument
from bson.timestamp import Timestamp

from dispatcher.keys import document_key
from mongoz.signals.receivers import Receiver
from mongoz.stamps import Stamp

__all__ = ["Batch", "Calls", "Change", "Image", "Job", "Namespace", "Start"]

Image = Literal["post", "current", "pre", "key"]
Namespace = tuple[str, str]
"""(database, collection)"""


class Start(NamedTuple):
    """Where a change stream begins: after a token, or at a time; at neither it begins now."""

    token: str | None = None
    cluster_time: Timestamp | None = None


class Batch(NamedTuple):
    """What one round trip to the server brought.

    Attributes:
        events: change events, undecoded; empty on an idle stream.
        token: resuming after it continues behind this batch.
    """

    events: list[RawBSONDocument]
    token: str


class Change(NamedTuple):
    """One change event.

    Attributes:
        token: its resume token; tokens of one deployment sort in commit order.
        operation: `"insert"`, `"update"`, `"replace"`, `"delete"`, or what happens to whole collections.
        namespace: (database, collection); the collection is "" for events of a whole database.
        id: the `_id`.
        cluster_time: the server's logical time of the commit.
        wall_time: the server's wall clock then.
        document: the document after the change, if known.
        before: the document before the change, if the server keeps pre images.
        image: what `document` is (`"key"` while it is unknown).
        names: top-level stored names that an update changed or removed, the stamp's left out.
        stamp: the origin stamp that the write itself brought, if it is readable.
        size: bytes of the event as it was sent.
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

    @property
    def key(self) -> Hashable:
        """Changes with the same key are delivered one after another, in commit order."""
        return document_key(self.namespace, self.id)


class Calls(NamedTuple):
    """The receivers of one change that belong to one document class.

    Attributes:
        document: the class; its instances are what the receivers get.
        signal: name of the signal.
        created: what `post_save` receivers are told.
        receivers: in connection order.
    """

    document: Any
    signal: str
    created: bool
    receivers: tuple[Receiver, ...]


class Job:
    """One change on its way through the lanes, and its place in the order of the stream.

    Attributes:
        token: of the change.
        change: None once it is finished, so that a long wait behind a slow job costs little memory.
        calls: who gets it.
        done: nothing of it is left to do.
    """

    __slots__ = ("calls", "change", "done", "token")

    def __init__(self, token: str, change: Change | None = None, calls: tuple[Calls, ...] = ()) -> None:
        self.token = token
        self.change = change
        self.calls = calls
        self.done = change is None
