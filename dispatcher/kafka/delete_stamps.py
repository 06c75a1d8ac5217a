"""Finds the stamps of deletes in the events of a stream.

A deleted document has no field for a stamp. So the ODM stamps the document and deletes it, in one transaction: the
stream has an update, which is the marker, and then the delete. The relay copies the stamp of the marker to the
record of the delete, for all groups. It does not publish the marker, which changes nothing but the stamp.

So readers find the stamp in the record of the delete, and need not wait for the end of the transaction.
"""

from typing import Any, Final

from dispatcher.core.bson_codec import RawEvent
from dispatcher.core.bson_elements import field, raw_field, readable
from mongoz.stamps import FIELD, Call, Stamp

IN_TRANSACTION: Final = b"\x12txnNumber\0"
STAMPED: Final = b"\x05" + FIELD.encode() + b"\0"
"""Bytes that the events of all markers contain. Few other events contain them."""

Key = tuple[bytes, ...]


class DeleteStamps:
    """The stamps of the transaction that is being read.

    While `open` is empty, `take` needs only the markers: the caller may leave out all other events.

    Attributes:
        open: the stamps whose deletes have not come yet.
    """

    def __init__(self) -> None:
        self.open: dict[Key, bytes] = {}
        self._time: Any = None

    def take(self, event: RawEvent) -> bytes | None:
        """The stamp for the record of an event, often empty; None if the event is a marker."""
        time = event["clusterTime"]
        if time != self._time:  # the changes of a transaction follow each other, and have the same time
            self.open.clear()
            self._time = time
        operation = event["operationType"]
        if operation == "delete" and self.open:
            return self.open.pop(_key(event.raw), b"")
        if operation == "update" and "txnNumber" in event:
            raw = event.raw
            stamp = _marker_in(raw)
            if stamp:
                self.open[_key(raw)] = stamp
                return None
        return b""

    def give_up(self) -> None:
        """Record the end of the stream: no delete follows."""
        self.open.clear()


def _marker_in(raw: bytes) -> bytes:
    """The stamp of a marker: an update that changes nothing but the stamp. Empty for other updates."""
    description = readable(raw_field(raw, "updateDescription") or b"\x05\0\0\0\0")
    updated = description.get("updatedFields")
    if not isinstance(updated, dict) or list(updated) != [FIELD]:
        return b""
    if description.get("removedFields") or description.get("truncatedArrays"):
        return b""
    stamp = Stamp.unpack(updated[FIELD])
    return bytes(updated[FIELD]) if stamp is not None and stamp.call is Call.DELETED else b""


def _key(raw: bytes) -> Key:
    """Identifies the transaction and the document of an event."""
    key = field(raw_field(raw, "documentKey") or b"", "_id")
    number = field(raw, "txnNumber")
    names = raw_field(raw, "lsid") or b"", raw_field(raw, "ns") or b""
    return (*names, b"" if number is None else number.value, b"" if key is None else bytes(key))
