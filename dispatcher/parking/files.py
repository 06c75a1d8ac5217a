"""Stores the parts of held deliveries that do not fit into their document, as files in GridFS.

A file is written before the document that names it, and deleted after this document. A file never changes: if the
document is written again, it names new files. A crash between two writes leaves a file that no document names.
The first `sweep` that finds such a file notes the time. A `sweep` at least an hour later deletes the file.

MongoDB commands raise the `PyMongoError` of the driver.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from time import monotonic
from typing import Any, Final

from bson import ObjectId
from gridfs import AsyncGridFSBucket
from gridfs.errors import CorruptGridFile, NoFile

from dispatcher.core.state import HELD, State
from dispatcher.parking.record import Record

# Maximum bytes of the parts inside a document; the server's limit for a document is 16 MB.
_INLINE: Final = 8_000_000
_CHUNK: Final = 4_000_000

# Seconds after which a file counts as unused, if no document names it. The document that names a file is written
# sooner than that, or never.
_PATIENCE: Final = 3_600.0


class Files:
    """Writes, reads and deletes the parts of held deliveries."""

    def __init__(self, state: State) -> None:
        held = state.held
        database = state.database.with_options(
            read_preference=held.read_preference, write_concern=held.write_concern, read_concern=held.read_concern
        )
        self._held = held
        self._bucket = AsyncGridFSBucket(database, HELD, chunk_size_bytes=_CHUNK)
        # Files without a document that names them, each with the time at which `sweep` found it first.
        self._unnamed: dict[Any, float] = {}

    async def write(self, record: Record) -> dict[str, Any]:
        """Write the parts that do not fit.

        Returns:
            The whole document. The caller writes it next.
        """
        inline, large = _divided(record.parts)
        document = {**record.fields, "parts": inline}
        if large:
            document["files"] = {part: await self.add(record.id, data) for part, data in large.items()}
        return document

    async def add(self, id_: str, data: bytes) -> ObjectId:
        """Write a part of the document with this `_id`. Returns the id of its file."""
        file: ObjectId = await self._bucket.upload_from_stream(id_, data)
        return file

    async def read(self, document: Mapping[str, Any]) -> dict[str, bytes]:
        """The parts of a document that was read from the database.

        Raises:
            ValueError: a part is missing.
        """
        parts = {name: bytes(data) for name, data in document["parts"].items()}
        for name, id_ in document.get("files", {}).items():
            try:
                parts[name] = await (await self._bucket.open_download_stream(id_)).read()
            except (NoFile, CorruptGridFile) as error:
                raise ValueError(
                    f"the file {id_!r} of its part {name[:100]!r} is missing in {HELD}.files"
                ) from error
        return parts

    async def sizes(self, document: Mapping[str, Any]) -> dict[str, int]:
        """The sizes of the parts that are files, in bytes."""
        files = document.get("files", {})
        found = self._bucket.find({"_id": {"$in": list(files.values())}})
        lengths = {file._id: file.length async for file in found}
        return {str(name): int(lengths.get(id_, 0)) for name, id_ in files.items()}

    async def delete(self, document: Mapping[str, Any]) -> None:
        """Delete the files of a document that was deleted or replaced."""
        await self._delete(document.get("files", {}).values())

    async def _delete(self, ids: Iterable[Any]) -> None:
        for id_ in ids:
            with suppress(NoFile):
                await self._bucket.delete(id_)

    async def sweep(self) -> None:
        """Delete the files that no document has named for an hour. A crash leaves such files."""
        found = {file._id: file.filename async for file in self._bucket.find({})}
        records = self._held.find({"_id": {"$in": list(found.values())}}, {"files": True})
        async for record in records:
            for id_ in record.get("files", {}).values():
                found.pop(id_, None)
        now = monotonic()
        self._unnamed = {id_: self._unnamed.get(id_, now) for id_ in found}
        await self._delete(id_ for id_, since in self._unnamed.items() if now - since >= _PATIENCE)


def _divided(parts: Mapping[str, bytes]) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Divides parts into inline parts and files. The key and the smallest parts that fit are inline."""
    inline: dict[str, bytes] = {}
    large: dict[str, bytes] = {}
    room = _INLINE
    for name, data in sorted(parts.items(), key=lambda part: (part[0] != "key", len(part[1]))):
        if name == "key" or len(data) <= room:
            inline[name] = data
            room -= len(data)
        else:
            large[name] = data
    return inline, large
