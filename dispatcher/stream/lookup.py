"""Looks up the current documents for updates whose events have no document, because no post images are kept."""

from collections import defaultdict
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Final

from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo import AsyncMongoClient
from pymongo.read_concern import ReadConcern

from dispatcher.core.bson_codec import RAW
from dispatcher.core.bson_elements import ARRAY, DOCUMENT, Element, elements, field, joined, keyed
from dispatcher.core.events import Change, Namespace
from dispatcher.core.output.logs import log
from dispatcher.core.retry import retry
from dispatcher.core.undecodable import AFTER, UndecodableValue, decoded
from mongoz.keys import canonical_of

# Number of documents per query. It depends on the average size of the documents that were found last.
_MOST: Final = 250  # the maximum
_FIRST: Final = 32  # as long as no size is known
_BYTES: Final = 4_000_000  # the intended sum of the sizes


_Documents = dict[tuple[Namespace, bytes], bytes]


class DocumentLookup:
    """Completes changes with their current documents, in slices: one query per slice and collection."""

    def __init__(self, client: AsyncMongoClient[Any], codec_options: CodecOptions[Any], address: str) -> None:
        self._client = client
        self._codec_options = codec_options
        self._address = address
        self._slice = _FIRST

    async def complete(self, changes: list[Change]) -> AsyncIterator[list[Change]]:
        """Yield the changes in slices. An update without a document gets the current document, if there is one.

        The larger the documents are, the fewer changes are in a slice. This limits the memory for the documents.
        """
        without = [change for change in changes if change.document is None]
        if not any(_lacks_document(change) for change in without):
            yield changes
            return
        begin = 0
        while begin < len(changes):
            part = changes[begin : begin + self._slice]
            begin += len(part)
            found = await self._look_up(part)
            yield [self._completed(change, found) for change in part]

    async def _look_up(self, changes: list[Change]) -> _Documents:
        missing: dict[Namespace, set[bytes]] = defaultdict(set)
        for change in changes:
            if _lacks_document(change):
                missing[change.namespace].add(canonical_of(change.raw_key))
        found: _Documents = {}
        for namespace, keys in missing.items():
            for row in await self._find(namespace, sorted(keys)):
                raw = bytes(row.raw)
                id_ = field(raw, "_id")
                assert id_ is not None  # each document has an _id
                found[namespace, canonical_of(keyed(id_))] = raw
        if found:
            average = sum(map(len, found.values())) // len(found)
            self._slice = max(1, min(_MOST, _BYTES // max(1, average)))
        return found

    async def _find(self, namespace: Namespace, keys: list[bytes]) -> list[RawBSONDocument]:
        collection = self._client[namespace[0]].get_collection(
            namespace[1], codec_options=RAW, read_concern=ReadConcern("majority")
        )
        query = _with_any_of(keys)

        async def find() -> list[RawBSONDocument]:
            return await collection.find(RawBSONDocument(query)).to_list(None)

        report = partial(
            log.warning,
            "documents of updates can't be read now, trying again",
            action="images.not_read",
            namespace=".".join(namespace),
        )
        return await retry(find, report, address=self._address)

    def _completed(self, change: Change, found: _Documents) -> Change:
        if not _lacks_document(change):
            return change
        row = found.get((change.namespace, canonical_of(change.raw_key)))
        if row is None:
            return change
        document, fault = None, None
        try:
            # Each change gets its own decoded document, because receivers may modify this document.
            document = decoded(row, self._codec_options, AFTER)
        except UndecodableValue as error:
            fault = error.fault
        size = change.size + len(row)
        return change._replace(document=document, image="current", size=size, looked_up=row, fault=fault)


def _lacks_document(change: Change) -> bool:
    return change.document is None and change.operation == "update" and change.fault is None


def _with_any_of(keys: list[bytes]) -> bytes:
    """A filter for `_id`s, built as BSON: some `_id`s can't be decoded, or would change when encoded again.

    The items of the array are numbered: otherwise MongoDB 6.0 would scan the index for ever.

    Args:
        keys: canonical `_id`s.
    """
    found = [next(elements(key)) for key in keys]
    ids = joined(*(one._replace(name=str(i).encode()) for i, one in enumerate(found)))
    wanted = joined(Element(b"$in", ARRAY, ids))
    return joined(Element(b"_id", DOCUMENT, wanted))
