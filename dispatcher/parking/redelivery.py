"""Retries dead letters: a dead letter becomes a delivery that waits, and its attempts are counted anew.

The delivery keeps its place in the order: after earlier waiting deliveries of its document, and before later ones.
"""

import asyncio
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any, Final, NamedTuple

from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo.errors import PyMongoError

from dispatcher.core.bson_codec import RawEvent
from dispatcher.core.driver_errors import in_short, raise_if_fatal
from dispatcher.core.error_text import text_of, words_of
from dispatcher.core.events import Calls, Change, Errand
from dispatcher.core.lease import Lease
from dispatcher.core.output.logs import log
from dispatcher.core.undecodable import Undecodable
from dispatcher.delivery.routes import Routes
from dispatcher.exceptions import DispatcherError
from dispatcher.parking.gate import Parking
from dispatcher.parking.letters import LetterStore
from dispatcher.parking.record import Record, change_of, record_of
from dispatcher.parking.retry_requests import RetryRequests
from dispatcher.stream.decode import decode
from mongoz.signals.receivers import Receiver

# Maximum bytes of the dead letters that are in memory at the same time. A single dead letter may be larger.
_BYTES: Final = 4_000_000

# The fields that are copied when a dead letter of an event is split into one dead letter per receiver.
_FAILURE: Final = ("attempts", "reason", "error", "first_attempt_at", "last_attempt_at", "retry_requested_at")


class _Refused(Exception):
    """A dead letter can't be retried; the message tells the reason."""


class Redelivery(NamedTuple):
    """Handles the requested retries of one partition's dead letters.

    Args:
        lease: the lease of the partition.
        may_begin: returns whether another retry may begin.
    """

    lease: Lease
    letters: LetterStore
    requests: RetryRequests
    parking: Parking
    routes: Routes
    add: Callable[[Hashable, Errand], None]
    may_begin: Callable[[], bool]
    codec_options: CodecOptions[Any]

    async def run(self) -> None:
        """Handle requests until the task is cancelled."""
        while True:
            try:
                taken = await self._take() if self.may_begin() else 0
            except PyMongoError as error:
                raise_if_fatal(error, self.letters.address)
                taken = 0
                log.warning(
                    "dead letters can't be read now, trying again",
                    action="dead_letter.unavailable",
                    error=in_short(error),
                )
            if not taken:
                await self.requests.wait()

    async def _take(self) -> int:
        """Handle the next requests: park or refuse each dead letter. Returns the number of requests."""
        taken, size = 0, 0
        parked: list[asyncio.Future[None]] = []
        for id_ in await self.requests.of(self.lease.partition, self.lease.partitions):
            letter = await self.letters.requested_letter(id_)
            if letter is None:
                continue
            parts: dict[str, bytes] = {}
            try:
                parts = await self.letters.parts(letter)
                if letter["receiver"] is None:
                    await self._split(letter, parts)
                else:
                    parked.append(self._begin(letter["_id"], *self._found(letter, parts)))
            except _Refused as refused:
                await self._refuse(id_, str(refused))
            except (PyMongoError, DispatcherError):
                raise
            except Exception as error:  # the document was edited by hand
                await self._refuse(id_, f"The document of the dead letter is malformed: {text_of(error)}")
            taken += 1
            size += sum(map(len, parts.values()))
            if size > _BYTES:
                if parked:
                    await asyncio.wait(parked)
                parked, size = [], 0
        if parked:
            await asyncio.wait(parked)
        return taken

    async def _refuse(self, letter: str, reason: str) -> None:
        await self.letters.refuse(letter, reason)
        log.warning(
            "a dead letter can't be tried again", action="dead_letter.refused", letter=letter, reason=reason
        )

    def _found(self, letter: RawBSONDocument, parts: Mapping[str, bytes]) -> tuple[Change, Calls]:
        """Decode the change of a dead letter, and find its receiver in the present application."""
        change = change_of(letter, parts, self.codec_options)
        if change.fault is not None:
            raise _Refused(f"It still can't be delivered: {change.fault}")
        calls = self.routes.calls_to(
            letter["document"],
            letter["signal"],
            bytes.fromhex(letter["receiver_id"]),
            change.namespace,
            created=letter["created"],
            # The operator has probably fixed the receivers that trigger each other. If not, the delivery fails
            # again at the maximum of hops.
            hops=0 if letter["reason"] == "too_many_hops" else letter["hops"],
            run=letter.get("run") or "",
        )
        if calls is None:
            raise _Refused(
                f"The application has no receiver {letter['receiver']!r} of {letter['signal']} of "
                f"{letter['document']} any more. Connect a receiver that has this name, or has it in `formerly`."
            )
        return change, calls

    def _begin(self, letter: str, change: Change, calls: Calls) -> "asyncio.Future[None]":
        """Queue an errand that parks the dead letter. It waits for earlier jobs of the letter's document."""
        done = asyncio.get_running_loop().create_future()
        park = partial(self._park, letter, change, calls)
        self.add(change.key, Errand(park, partial(done.set_result, None)))
        return done

    async def _park(self, letter: str, change: Change, calls: Calls) -> None:
        if await self.parking.retry(change, calls, letter):
            log.info(
                "a dead letter is tried again",
                action="dead_letter.retried",
                letter=letter,
                receiver=calls.receivers[0].name,
            )

    # -- dead letters of undecodable events ------------------------------------------------------------------

    async def _split(self, letter: RawBSONDocument, parts: Mapping[str, bytes]) -> None:
        """Replace the dead letter of an event by one per receiver, if the event can be decoded now.

        The next call of `_take` handles the new dead letters.
        """
        try:
            change = decode(RawEvent(parts["event"]), self.codec_options)
        except Undecodable as error:
            raise _Refused(f"The event still can't be decoded: {words_of(error)}") from error
        if change.fault is not None:
            raise _Refused(f"The event still can't be decoded: {change.fault}")
        ((_, all_calls),) = await self.routes.resolve([change])
        kept = {name: letter[name] for name in _FAILURE}
        for calls in all_calls:
            for receiver in calls.receivers:
                await self.letters.keep(self._letter(change, calls, receiver, kept))
        await self.letters.drop(letter["_id"])

    def _letter(self, change: Change, calls: Calls, receiver: Receiver, kept: Mapping[str, Any]) -> Record:
        record = record_of(change, calls, receiver, term=self.parking.term, group=self.letters.group)
        record.fields.update(kept)
        return record
