"""Looking up what the server did not send: the documents of updates on collections without post images."""

from collections import defaultdict
from collections.abc import Hashable
from typing import Any

import stamina
from bson.codec_options import CodecOptions
from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError
from pymongo.read_concern import ReadConcern

from dispatcher.events import Change, Namespace, document_key
from dispatcher.failures import fatal

__all__ = ["Images"]


class Images:
    """Completes changes with the current document; one query per collection and call.

    Args:
        client: opened for the running loop.
        codec_options: the registry's.
        address: of the server, for messages.
    """

    def __init__(self, client: AsyncMongoClient[Any], codec_options: CodecOptions[Any], address: str) -> None:
        self._client = client
        self._codec_options = codec_options
        self._address = address

    async def complete(self, changes: list[Change]) -> list[Change]:
        """The same changes; updates that had no document have the current one, if it still exists.

        Raises:
            DispatcherError: what no repetition can mend.
        """
        missing: dict[Namespace, dict[Hashable, Any]] = defaultdict(dict)
        for change in changes:
            if change.document is None and change.operation == "update":
                missing[change.namespace][change.key] = change.id
        if not missing:
            return changes
        found: dict[Hashable, dict[str, Any]] = {}
        for namespace, ids in missing.items():
            found |= await self._look_up(namespace, ids)
        return [self._completed(change, found) for change in changes]

    async def _look_up(self, namespace: Namespace, ids: dict[Hashable, Any]) -> dict[Hashable, dict[str, Any]]:
        collection = self._client[namespace[0]].get_collection(
            namespace[1], codec_options=self._codec_options, read_concern=ReadConcern("majority")
        )
        query = {"_id": {"$in": list(ids.values())}}
        rows: list[dict[str, Any]] = []
        try:
            async for attempt in stamina.retry_context(
                on=self._is_transient, attempts=None, timeout=None, wait_initial=0.1, wait_max=10.0
            ):
                with attempt:
                    rows = await collection.find(query).to_list(None)
        except PyMongoError as error:
            verdict = fatal(error, self._address)
            assert verdict is not None  # everything else is tried again
            raise verdict from error
        return {document_key(namespace, row["_id"]): row for row in rows}

    def _is_transient(self, error: Exception) -> bool:
        return isinstance(error, PyMongoError) and fatal(error, self._address) is None

    @staticmethod
    def _completed(change: Change, found: dict[Hashable, dict[str, Any]]) -> Change:
        if change.document is not None or change.operation != "update":
            return change
        document = found.get(change.key)
        # Each change gets a copy: its instance takes the row over.
        return change if document is None else change._replace(document=dict(document), image="current")
