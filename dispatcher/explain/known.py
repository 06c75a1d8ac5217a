"""What the state of a group tells about the deliveries of some changes. Nothing is written.

The state has no list of past deliveries. So a delivery counts as finished if the position has passed its change,
the delivery is neither parked nor a dead letter, and the state has no record of its transaction.

MongoDB commands raise the `PyMongoError` of the driver.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple

from dispatcher.claims.verdict import ClaimVerdict, verdict_of
from dispatcher.core.events import Change, delivery_id_of
from dispatcher.core.partitions import partition_of
from dispatcher.core.redaction import redacted
from dispatcher.core.resume_tokens import digest_of, holds, token_time
from dispatcher.core.state import Group
from dispatcher.delivery.instances import key_of, name_of
from dispatcher.delivery.outcome import HoldReason
from dispatcher.explain.reasons import RoutingDecision
from dispatcher.kafka.relay_state import RelayStore
from dispatcher.operate.pauses import pauses
from dispatcher.parking.lane import lane_id
from dispatcher.parking.record import event_record_id, short_id
from dispatcher.parking.store import WAITING
from dispatcher.position.documents import Position, SavedPositions
from dispatcher.position.inherited import Inherited
from dispatcher.position.store import PositionStore
from mongoz.claims.document import BookState

# Fields of held deliveries that are not read: they are large.
_LARGE: Final = {"parts": False, "files": False, "error.traceback": False}

_STATES: Final[Mapping[HoldReason | Literal["following"], str]] = {
    "following": "it waits for an earlier delivery of the document, which is parked",
    "retrying": "its last attempt failed, and it is tried again",
    "retry_after": "its receiver asked for another attempt later",
    "limited": "concurrency= or rate= of its receiver allows no further attempt now",
    "blocked": 'it failed, and on_failure="block" makes the later changes of the document wait',
    "paused": "its receiver is paused",
    "retry": "the retry of a dead letter waits",
    "interrupted": "a dispatcher ended after other receivers had got the change",
    "orphaned": "no dispatcher has the receiver",
    "malformed": "its record in the state was edited, and can't be read",
    "claimed": "the process that wrote may still make it",
}


class DeliveryOutcome(NamedTuple):
    """What is known about the delivery of one change to one receiver.

    Attributes:
        state: `"dead letter"`, `"parked"`, `"paused"`, `"ran"`, `"claimed"`, `"delivered"`, `"finished"`,
            `"waits"` or `"not published"`.
        text: details about the state; empty if there are none.
        letter: the short id of the dead letter; None if there is none.
        due_at: the server's time from which a parked delivery may be attempted; None if the delivery is not
            parked, or waits for an earlier one.
    """

    state: str
    text: str = ""
    letter: str | None = None
    due_at: datetime | None = None


class PartitionProgress(NamedTuple):
    """How far the group is with the documents of one partition.

    Attributes:
        passed: the cluster time of the position; None without a position.
        holder: the process that holds the partition; None if no process holds it.
    """

    partition: int
    partitions: int
    passed: datetime | None
    holder: str | None


class ExplainedDelivery(NamedTuple):
    """A delivery that an operator asks about.

    Attributes:
        hashed: the hash of the document's `_id`.
        claim: whether the writing process has claimed the delivery.
    """

    change: Change
    hashed: int
    decision: RoutingDecision
    claim: bool = False

    @property
    def ids(self) -> list[str]:
        """The id of the delivery, in a list. The id of a claimed delivery is the token of the write."""
        origin = self.change.origin
        return [delivery_id_of(self.change) if origin is None or not self.claim else str(origin.token)]

    @property
    def held_ids(self) -> list[str]:
        """The `_id`s that the delivery may have while it is parked or a dead letter."""
        document = name_of(self.decision.document)
        return [f"{one}:{id_.hex()}:{document}" for one in self.ids for id_ in self.decision.receiver.ids]

    @property
    def recorded_ids(self) -> list[tuple[str, str, str]]:
        """The `_id`s that the record of a transactional delivery may have."""
        document = name_of(self.decision.document)
        return [(one, id_.hex(), document) for one in self.ids for id_ in self.decision.receiver.ids]

    def lanes(self, group: str) -> list[str]:
        """The ids of the lanes in which an earlier, parked delivery holds this delivery back."""
        receiver, key = self.decision.receiver, key_of(self.change)
        names = (receiver.name, *receiver.options.formerly)
        document = name_of(self.decision.document)
        return [lane_id(group, name, document, self.change.namespace, key) for name in names]


class UnreadEvent(NamedTuple):
    """An event that can't be decoded. One dead letter represents all of its deliveries."""

    token: str
    hashed: int

    @property
    def held_id(self) -> str:
        """The `_id` of its dead letter."""
        return event_record_id(self.token)


class Knowledge(NamedTuple):
    """The state of a group at one moment, as far as it concerns some deliveries.

    Attributes:
        paused: names of paused receivers. If the set contains None, everything is paused.
        published: for a topic, the token up to which the relay has published, empty if it has not published yet;
            None for change streams.
        books: the documents of claims, by incarnation.
        held: deliveries that wait or are dead letters, by `_id`.
        lanes: lanes with deliveries that wait.
        delivered: records of transactional deliveries.
    """

    group: str
    saved: SavedPositions
    paused: frozenset[str | None]
    published: str | None
    books: Mapping[bytes, Mapping[str, Any]]
    held: Mapping[str, Mapping[str, Any]]
    lanes: frozenset[str]
    delivered: frozenset[tuple[str, str, str]]

    @property
    def published_at(self) -> datetime | None:
        """For a topic, the time up to which the relay has published; None if it has not published yet."""
        return token_time(self.published).as_datetime() if self.published else None

    def progress(self, hashed: int) -> PartitionProgress | None:
        """How far the group is with a document. None if no dispatcher of the group ever ran.

        Args:
            hashed: the hash of its `_id`.
        """
        position, layout = self._position(hashed), self.saved.layout
        if position is None or layout is None:
            return None
        passed = None if position.token is None else token_time(position.token).as_datetime()
        identity = position.identity
        holder = None if position.owner is None else f"{identity.host}, pid {identity.pid}"
        return PartitionProgress(position.partition, layout.partitions, passed, holder)

    def is_finished(self, token: str, hashed: int) -> bool:
        """Returns whether the group has finished a change."""
        position = self._position(hashed)
        if position is None or position.token is None:
            return False
        return (
            token <= position.token
            or holds(position.ahead, digest_of(token))
            or Inherited(position.inherited).has_finished(token, hashed)
        )

    def outcome(self, one: ExplainedDelivery) -> DeliveryOutcome:
        """What is known about a delivery."""
        if one.claim and (told := self._claimed(one)) is not None:
            return told
        held = next((self.held[id_] for id_ in one.held_ids if id_ in self.held), None)
        if held is not None:
            return _held(held)
        if not self.delivered.isdisjoint(one.recorded_ids):
            return DeliveryOutcome("delivered", "its transaction is committed")
        if self.is_finished(one.change.token, one.hashed):
            return DeliveryOutcome(
                "finished", "the position has passed the change; the delivery is neither parked nor dead"
            )
        return self._waiting(one)

    def event_outcome(self, one: "UnreadEvent") -> DeliveryOutcome:
        """What is known about the deliveries of an event that can't be decoded."""
        held = self.held.get(one.held_id)
        if held is not None:
            return _held(held)
        if self.is_finished(one.token, one.hashed):
            return DeliveryOutcome("finished", "its dead letter was dropped, or deleted because of its age")
        return DeliveryOutcome("waits", "the position is before the change")

    def _waiting(self, one: ExplainedDelivery) -> DeliveryOutcome:
        """Why a delivery is not made yet."""
        receiver, token = one.decision.receiver, one.change.token
        if not self.lanes.isdisjoint(one.lanes(self.group)):
            return DeliveryOutcome("waits", "an earlier delivery of the document is parked")
        if None in self.paused:
            return DeliveryOutcome("paused", "everything is paused")
        if not self.paused.isdisjoint((receiver.name, *receiver.options.formerly)):
            return DeliveryOutcome("paused", "the receiver is paused")
        if self.published is not None and token > self.published:
            return DeliveryOutcome("not published", "the relay has not published the change yet")
        progress = self.progress(one.hashed)
        if progress is None or progress.holder is None:
            return DeliveryOutcome("waits", "no dispatcher holds the partition of the document")
        return DeliveryOutcome(
            "waits",
            "the position is before the change: the delivery is in progress, or the change is not read yet",
        )

    def _claimed(self, one: ExplainedDelivery) -> DeliveryOutcome | None:
        """The outcome of a claimed delivery; None if a dispatcher makes it."""
        claim = None if one.change.origin is None else one.change.origin.claim
        if claim is None:
            return DeliveryOutcome("ran", "in the writing process")
        book = self.books.get(claim.incarnation, {})
        verdict = verdict_of(BookState.read(book) if book else None, claim.number)
        process = f"{book.get('host', 'unknown host')}, pid {book.get('pid', 'unknown')}"
        if verdict is ClaimVerdict.DONE:
            return DeliveryOutcome("ran", f"in the writing process ({process})")
        if verdict is ClaimVerdict.WAIT and not self.is_finished(one.change.token, one.hashed):
            return DeliveryOutcome("claimed", f"the writing process runs it, or will run it ({process})")
        return None

    def _position(self, hashed: int) -> Position | None:
        layout = self.saved.layout
        return None if layout is None else self.saved.positions.get(partition_of(hashed, layout.partitions))


def _held(row: Mapping[str, Any]) -> DeliveryOutcome:
    """The outcome of a delivery that waits, or that is a dead letter."""
    error = row.get("error") or {}
    message = (redacted(str(error.get("message", ""))).splitlines() or [""])[0]
    failure = f"{error['type']}: {message}" if error.get("type") else ""
    if row.get("reason") is not None:
        text = f"{row['reason']} after {row.get('attempts', 0)} attempts{': ' * bool(failure)}{failure}"
        if "retry_requested_at" in row or "retrying_since" in row:
            text += "; a retry is requested"
        return DeliveryOutcome("dead letter", text, letter=short_id(row["_id"]))
    state: Any = row.get("state")
    text = _STATES.get(state, str(state))
    return DeliveryOutcome("parked", f"{text}{': ' * bool(failure)}{failure}", due_at=row.get("due_at"))


async def knowledge_of(
    group: Group, deliveries: Sequence[ExplainedDelivery], events: Sequence[UnreadEvent]
) -> Knowledge:
    """Read what the state knows about some deliveries, and about events that can't be decoded."""
    state = group.state
    saved = await PositionStore(group).load()
    topic = None if saved.layout is None else saved.layout.topic
    relay = None if topic is None else await RelayStore(state, topic.name).load()
    claims = {one.change.origin.claim for one in deliveries if one.change.origin is not None}
    books = {one.incarnation.hex(): one.incarnation for one in claims if one is not None}
    held_ids = [*(id_ for one in deliveries for id_ in one.held_ids), *(one.held_id for one in events)]
    held = await state.held.find({"_id": {"$in": held_ids}}, _LARGE).to_list()
    lanes = [lane for one in deliveries for lane in one.lanes(group.name)]
    waiting = await state.held.distinct("lane", {"group": group.name, **WAITING, "lane": {"$in": lanes}})
    records = [
        {"group": group.name, "delivery": delivery, "receiver": receiver, "document": document}
        for one in deliveries
        if one.decision.receiver.options.transactional
        for delivery, receiver, document in one.recorded_ids
    ]
    recorded = await state.deliveries.find({"_id": {"$in": records}}).to_list()
    found = await state.claims.find({"_id": {"$in": [*books]}, "group": group.name}).to_list()
    return Knowledge(
        group.name,
        saved,
        frozenset(one.receiver for one in await pauses(group)),
        None if topic is None else ("" if relay is None else relay.position.token),
        {books[one["_id"]]: one for one in found},
        {one["_id"]: one for one in held},
        frozenset(waiting),
        frozenset((one["_id"]["delivery"], one["_id"]["receiver"], one["_id"]["document"]) for one in recorded),
    )
