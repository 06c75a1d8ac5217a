"""Follows the committed writes of a collection, and reads their stamps."""

import threading
import time
from datetime import UTC, datetime
from typing import Any, Final

from pymongo.collection import Collection

from mongoz.stamps import FIELD, Stamp, receiver_id
from mongoz.stamps import Call as Method
from tests.chaos.writers_figures import RECEIVERS, Commit

__all__ = ["CommitLog"]

_SENDER: Final = "tests.chaos.writers_app.Order"
_NAMES: Final = {
    receiver_id((_SENDER, signal, name)): name
    for signal in ("post_save", "post_update", "post_delete")
    for name in RECEIVERS
}


class CommitLog(threading.Thread):
    """Reads the change stream of a collection in a thread of its own.

    Attributes:
        commits: the writes so far, in the order of their commits.
        failure: the error that ended the thread, or None.
    """

    def __init__(self, collection: Collection[dict[str, Any]]) -> None:
        super().__init__(name="commits", daemon=True)
        self.commits: list[Commit] = []
        self.failure: Exception | None = None
        self._stream = collection.watch(max_await_time_ms=100)
        self._markers: dict[Any, Stamp] = {}
        self._is_stopping = False
        # All records have times of the monotonic clock. The server is on this machine, so its times are converted.
        self._epoch = time.time_ns() - time.monotonic_ns()

    def run(self) -> None:
        try:
            with self._stream:
                while not self._is_stopping:
                    if (event := self._stream.try_next()) is not None:
                        self._read(event)
        except Exception as error:
            self.failure = error
            raise

    def stop(self) -> None:
        """Ends the thread."""
        self._is_stopping = True
        if self.is_alive():
            self.join()

    def _read(self, event: dict[str, Any]) -> None:
        id_ = event["documentKey"]["_id"]
        if event["operationType"] == "delete":
            self._add(event, None, self._markers.pop(id_, None))
            return
        if event["operationType"] == "update":
            written = event["updateDescription"]["updatedFields"]
        else:
            written = event["fullDocument"]
        stamp = Stamp.unpack(written.get(FIELD))
        if "n" in written:
            self._add(event, written["n"], stamp)
        elif stamp is not None and stamp.call is Method.DELETED:
            self._markers[id_] = stamp

    def _add(self, event: dict[str, Any], n: int | None, stamp: Stamp | None) -> None:
        document, at = str(event["documentKey"]["_id"]), _nanoseconds(event["wallTime"]) - self._epoch
        if stamp is None:
            self.commits.append(Commit(document, n, at))
            return
        claim = stamp.claim
        claimed = frozenset(_NAMES[id_] for id_ in claim.receivers) if claim else frozenset[str]()
        incarnation = claim.incarnation.hex() if claim else ""
        self.commits.append(Commit(document, n, at, str(stamp.token), incarnation, claimed))


def _nanoseconds(wall_time: datetime) -> int:
    return int(wall_time.replace(tzinfo=UTC).timestamp() * 1e3) * 1_000_000
