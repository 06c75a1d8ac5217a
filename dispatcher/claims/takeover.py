"""The changes that a dispatcher delivers in the place of a writing process.

The receivers get the token of the write as `delivery.id`, as they would have got it in the process. After that
write, other processes may have written the document again, and run the same receivers. If a takeover then
delivered the old document, the old document could replace the newer one, for example in a search index. So the
receivers get the current document if it has the stamp of a later write of the ODM. They get only the id if the
document does not exist any more.
"""

from functools import partial
from typing import Any

from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo import AsyncMongoClient, ReadPreference
from pymongo.read_concern import ReadConcern

from dispatcher.core.bson_codec import RAW
from dispatcher.core.bson_elements import elements, field, keyed, readable
from dispatcher.core.events import Change
from dispatcher.core.output.logs import log
from dispatcher.core.retry import retry
from dispatcher.core.undecodable import AFTER, UndecodableValue, decoded
from mongoz.stamps import FIELD, Stamp


class Takeovers:
    """Prepares changes for takeovers.

    Args:
        client: the client of the deployment with the documents.
        codec_options: for reading documents.
        address: the address of the server, for messages.
    """

    def __init__(self, client: AsyncMongoClient[Any], codec_options: CodecOptions[Any], address: str) -> None:
        self._client = client
        self._codec_options = codec_options
        self._address = address

    async def prepare(self, change: Change) -> Change:
        """Make the change that receivers get in a takeover. The origin of `change` must have a claim."""
        assert change.origin is not None
        taken = claimed(change)._replace(is_claimed=False, takeover=True)
        report = partial(
            log.warning,
            "the document of a claimed write can't be read now, trying again",
            action="claims.not_read",
        )
        raw = await retry(partial(self._find, change), report, address=self._address)
        return superseded(taken, raw, self._codec_options)

    async def _find(self, change: Change) -> bytes | None:
        database, name = change.namespace
        collection = self._client[database].get_collection(
            name, codec_options=RAW, read_concern=ReadConcern("majority"), read_preference=ReadPreference.PRIMARY
        )
        only = RawBSONDocument(keyed(next(elements(change.raw_key)), "_id"))
        found: RawBSONDocument | None = await collection.find_one(only)
        return None if found is None else bytes(found.raw)


def claimed(change: Change) -> Change:
    """The change for the claimed receivers. They get the token of the write as `delivery.id`."""
    assert change.origin is not None
    return change._replace(delivery_id=str(change.origin.token), is_claimed=True)


def superseded(change: Change, raw: bytes | None, codec_options: CodecOptions[Any]) -> Change:
    """The change with the current document if the same receivers may have got a later write; otherwise `change`.

    Args:
        change: a change that is taken over.
        raw: the document as it is now; None if it does not exist.
        codec_options: for reading the document.
    """
    assert change.origin is not None
    if change.operation == "delete":  # a later write may have inserted the document again
        return change if raw is None or _token_in(raw) is None else change._replace(superseded=True)
    if raw is None:
        return change._replace(document=None, looked_up=None, image="key", superseded=True)
    if _token_in(raw) in (None, change.origin.token):
        return change
    document, fault = None, None
    try:
        document = decoded(raw, codec_options, AFTER)
    except UndecodableValue as error:
        fault = error.fault
    return change._replace(document=document, looked_up=raw, image="current", fault=fault, superseded=True)


def _token_in(raw: bytes) -> Any:
    """The token of the stamp in a document; None if it has no stamp."""
    found = field(raw, FIELD)
    stamp = None if found is None else Stamp.unpack(readable(keyed(found))[""])
    return None if stamp is None else stamp.token
