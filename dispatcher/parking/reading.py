"""Reads the records of parked deliveries: the change, and the receiver in the present application."""

from collections.abc import Hashable
from datetime import UTC, datetime
from typing import Any, NamedTuple

from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument

from dispatcher.core.events import Calls, Change, key_from
from dispatcher.core.output.logs import log
from dispatcher.core.state import HELD
from dispatcher.core.state_checks import StateReader
from dispatcher.delivery.outcome import HoldReason, RetriedLetter, Waiting
from dispatcher.delivery.routes import Routes
from dispatcher.parking.record import change_of, raw_key_of


class ParkedDelivery(NamedTuple):
    """A parked delivery.

    Attributes:
        calls: the calls of one receiver; None if the application does not have the receiver any more.
        retried: the dead letter that the delivery repeats; None if it repeats none.
    """

    change: Change
    calls: Calls | None
    retried: RetriedLetter | None


class RecordReader:
    """Reads the records of parked deliveries.

    Args:
        database: the name of the state database, for log lines.
    """

    def __init__(self, database: str, routes: Routes, codec_options: CodecOptions[Any]) -> None:
        self._database = database
        self._routes = routes
        self._codec_options = codec_options
        self._orphans: set[tuple[str, str]] = set()

    def key(self, row: RawBSONDocument) -> Hashable:
        """The key under which the jobs of a delivery's document are queued.

        Raises:
            Exception: the record was edited by hand.
        """
        namespace = row["namespace"]
        raw = raw_key_of(bytes(row.raw), row["parts"])
        return key_from((namespace["db"], namespace["coll"]), raw, self._codec_options)

    def read(self, row: RawBSONDocument, parts: dict[str, bytes]) -> ParkedDelivery:
        """Decode a parked delivery.

        Raises:
            Exception: the record was edited by hand.
        """
        change = change_of(row, parts, self._codec_options)
        calls = self._routes.calls_to(
            row["document"],
            row["signal"],
            bytes.fromhex(row["receiver_id"]),
            change.namespace,
            created=bool(row["created"]),
            hops=int(row["hops"]),
            run=row.get("run") or "",
        )
        retried = RetriedLetter(row["_id"], int(row.get("retries", 0))) if "reason" in row else None
        return ParkedDelivery(change, calls, retried)

    def log_malformed(self, row: RawBSONDocument, error: Exception) -> None:
        """Log a record that was edited by hand, and can't be read."""
        reader = StateReader(self._database)
        reader.skip(HELD, row.get("_id"), error)
        reader.log()

    def log_orphaned(self, row: RawBSONDocument) -> None:
        """Log an orphaned delivery, once per receiver and document class: there may be many."""
        which = (row["receiver_id"], row["document"])
        if which not in self._orphans:
            self._orphans.add(which)
            log.warning(
                "a delivery is parked for a receiver that the application does not have; it stays parked",
                action="parked.orphaned",
                receiver=row["receiver"],
                document=row["document"],
                signal=row["signal"],
                remedy="connect a receiver that has this name, or has it in `formerly`",
            )


def recorded_attempts(row: RawBSONDocument) -> Waiting:
    """The recorded attempts at a delivery."""
    attempts, began = row.get("attempts"), row.get("first_attempt_at")
    if not isinstance(attempts, int) or not isinstance(began, datetime):
        return Waiting("retrying")
    reason: HoldReason = "retry_after" if row.get("state") == "retry_after" else "retrying"
    return Waiting(reason, 0.0, attempts, began.replace(tzinfo=UTC))
