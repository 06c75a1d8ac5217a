"""Saves change events as files in the state database if they do not fit into a record of a topic.

The relay writes the file before it publishes the record that names it. The id of the file is a hash of the event's
token, so every term of the relay writes the same file. Files outlive their records by a day.

MongoDB commands raise the `PyMongoError` of the driver.
"""

from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from hashlib import blake2b
from typing import Final

from bson import Binary
from gridfs import AsyncGridFSBucket
from gridfs.errors import CorruptGridFile, FileExists, NoFile
from pymongo.errors import DuplicateKeyError

from dispatcher.core.output.logs import log
from dispatcher.core.resume_tokens import shortened
from dispatcher.core.retry import retry
from dispatcher.core.state import RELAYED, State
from dispatcher.kafka.envelope import LargeEvent

_CHUNK: Final = 4_000_000
_ID: Final = 16

# Time for which a file is kept after the end of the topic's retention. Brokers remove records late.
_MARGIN: Final = timedelta(days=1)


class LargeEvents:
    """The large events of one topic."""

    def __init__(self, state: State, topic: str) -> None:
        newest = state.newest(RELAYED)
        database = state.database.with_options(
            read_preference=newest.read_preference,
            write_concern=newest.write_concern,
            read_concern=newest.read_concern,
        )
        self._files = state.newest(f"{RELAYED}.files")
        self._bucket = AsyncGridFSBucket(database, RELAYED, chunk_size_bytes=_CHUNK)
        self._topic = topic
        self._address = state.address

    async def add(self, token: str, event: bytes) -> LargeEvent:
        """Write the file of an event, unless it exists. In both cases, the time until its deletion begins now.

        Args:
            token: the token of the event.
        """
        id_ = blake2b(f"{self._topic}\0{token}".encode(), digest_size=_ID).digest()
        large = LargeEvent(shortened(token), id_, len(event))
        if await self.read(large) is None:
            try:
                await self._upload(id_, event)
            except (FileExists, DuplicateKeyError):  # a process was killed while it wrote the file
                with suppress(NoFile):
                    await self._bucket.delete(Binary(id_))
                await self._upload(id_, event)
        # Set the date of the file to now, by the server's clock. An earlier term may have written the file long
        # ago, and the driver dates a new file by the clock of this machine.
        await self._files.update_one({"_id": Binary(id_)}, {"$currentDate": {"uploadDate": True}})
        return large

    async def read(self, large: LargeEvent) -> bytes | None:
        """The bytes of an event; None if the file is missing."""
        try:
            found = await (await self._bucket.open_download_stream(Binary(large.id))).read()
        except (NoFile, CorruptGridFile):
            return None
        return found if len(found) == large.size else None

    async def read_patiently(self, large: LargeEvent) -> bytes | None:
        """Read an event, like `read`. If the server does not answer, try again."""
        report = partial(
            log.warning,
            "a large event can't be read now, trying again",
            action="large_event.not_read",
            size=large.size,
        )
        return await retry(partial(self.read, large), report, address=self._address)

    async def delete_old(self, retention: float, now: datetime) -> int:
        """Delete the files whose records the brokers have removed. Returns their number.

        Args:
            retention: seconds for which the topic keeps records. With `inf`, no file is deleted.
            now: the time by the clock of the server.
        """
        if retention == float("inf"):
            return 0
        latest, count = now - timedelta(seconds=retention) - _MARGIN, 0
        async for file in self._bucket.find({"filename": self._topic, "uploadDate": {"$lt": latest}}):
            with suppress(NoFile):
                await self._bucket.delete(file._id)
                count += 1
        return count

    async def _upload(self, id_: bytes, event: bytes) -> None:
        await self._bucket.upload_from_stream_with_id(Binary(id_), self._topic, event)
