"""Explains what happened to the changes of one document. Nothing is written, and no receiver is called.

MongoDB commands raise the `PyMongoError` of the driver.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from bson.timestamp import Timestamp
from pymongo.errors import PyMongoError

from dispatcher.core.clients import Clients
from dispatcher.core.events import Change, Namespace, delivery_id, delivery_id_of
from dispatcher.core.state import Group, State
from dispatcher.delivery.application import group_of, routes_of
from dispatcher.delivery.instances import name_of
from dispatcher.delivery.routes import Routes
from dispatcher.delivery.where import Conditions
from dispatcher.exceptions import NotFound
from dispatcher.explain.document_changes import PastChange, WantedDocument, changes_of
from dispatcher.explain.known import ExplainedDelivery, Knowledge, PartitionProgress, UnreadEvent, knowledge_of
from dispatcher.explain.reasons import RoutingDecision, decisions
from dispatcher.settings import Settings
from mongoz import Registry


@dataclass
class ReceiverReport:
    """One receiver of a change.

    Attributes:
        receiver: the name of the receiver; `"all receivers"` if the event can't be decoded.
        reason: why the receiver does not get the change, see `reasons.Reason`; empty if it gets the change.
        state: what is known, see `known.DeliveryOutcome`; `"not called"` if the receiver does not get the change.
        text: details about the reason or the state, in words.
    """

    receiver: str
    document: str
    reason: str
    state: str
    text: str
    letter: str | None = None
    due_at: datetime | None = None


@dataclass
class ChangeReport:
    """One change of the document.

    Attributes:
        id: the `_id` of the document; None if the event can't be decoded.
        by: who wrote the change.
        signal: the signal of its receivers; empty if the change has no receivers.
        finished: whether the group has finished the change.
        progress: how far the group is with the document; None if no dispatcher of the group ever ran.
    """

    id: Any
    token: str
    delivery_id: str
    at: datetime
    operation: str
    signal: str
    update_fields: list[str]
    by: str
    hops: int
    finished: bool
    progress: PartitionProgress | None
    receivers: list[ReceiverReport] = field(default_factory=list)


@dataclass
class DocumentReport:
    """The changes of a document, the oldest first.

    Attributes:
        tried: the `_id`s that were tried.
        topic: the topic from which the group reads; None for change streams.
        published: for a topic, the time up to which the relay has published; None if it has not published yet.
    """

    group: str
    namespace: str
    tried: list[Any]
    since: datetime
    topic: str | None
    published: datetime | None
    changes: list[ChangeReport]


async def explain(
    registry: Registry, settings: Settings, namespace: Namespace, keys: Sequence[Any], since: Timestamp
) -> DocumentReport:
    """Explain the changes of a document since a time.

    Args:
        registry: the registry of the application, with all receivers connected.
        keys: all `_id`s that the text in the command can mean.

    Raises:
        NotFound: the application has no receivers of the collection, or the document has no change since the time.
        HistoryLost: the oplog does not reach back to the time.
    """
    name = group_of(registry, settings)
    clients, routes = Clients(registry, settings), routes_of(registry, settings, name)
    async with clients.patient_client() as client:
        await clients.check(client)
    async with clients.lasting_client() as client, clients.watching_client() as watching, registry:
        group = Group(State(client, settings.state_database, clients.address), name)
        wanted, options = WantedDocument(namespace, keys, since), registry.codec_options
        try:
            await routes.prepare(Conditions(group.state, options))
            found = await changes_of(watching, group.state, routes, wanted, options)
            if not found:
                raise await _without_change(group.state, wanted)
            return await _report(group, routes, wanted, found)
        except PyMongoError as error:
            raise clients.verdict(error) from error


async def _report(
    group: Group, routes: Routes, wanted: WantedDocument, found: Sequence[PastChange]
) -> DocumentReport:
    decided = [[] if one.change is None else await decisions(routes, one.change) for one in found]
    deliveries = [
        _delivery(one.change, one.hashed, decision)
        for one, some in zip(found, decided, strict=True)
        for decision in some
        if one.change is not None
    ]
    events = [UnreadEvent(one.token, one.hashed) for one in found if one.change is None]
    known = await knowledge_of(group, deliveries, events)
    layout = known.saved.layout
    topic = None if layout is None or layout.topic is None else layout.topic.name
    return DocumentReport(
        group.name,
        ".".join(wanted.namespace),
        [*wanted.keys],
        wanted.since.as_datetime(),
        topic,
        known.published_at,
        [_change_report(one, some, known, group.name) for one, some in zip(found, decided, strict=True)],
    )


def _change_report(one: PastChange, some: Sequence[RoutingDecision], known: Knowledge, group: str) -> ChangeReport:
    change = one.change
    if change is None:
        operation, by, hops, names, key, id_ = (
            "undecodable",
            "an unknown client",
            0,
            [],
            None,
            delivery_id(one.token),
        )
        receivers = [_event_report(UnreadEvent(one.token, one.hashed), known)]
    else:
        receivers = [_receiver_report(_delivery(change, one.hashed, each), known) for each in some]
        operation, by = change.operation, _writer(change, group)
        hops = 0 if change.origin is None else change.origin.hops
        names, key, id_ = sorted(change.names), change.id, delivery_id_of(change)
    return ChangeReport(
        key,
        one.token,
        id_,
        one.time.as_datetime(),
        operation,
        some[0].signal if some else "",
        names,
        by,
        hops,
        known.is_finished(one.token, one.hashed),
        known.progress(one.hashed),
        receivers,
    )


def _event_report(one: UnreadEvent, known: Knowledge) -> ReceiverReport:
    """The report about an event that can't be decoded. Its receivers are unknown."""
    state, text, letter, due_at = known.event_outcome(one)
    return ReceiverReport("all receivers", "", "", state, f"the event can't be decoded: {text}", letter, due_at)


def _delivery(change: Change, hashed: int, decision: RoutingDecision) -> ExplainedDelivery:
    claim = None if change.origin is None else change.origin.claim
    claimed = claim is not None and not claim.receivers.isdisjoint(decision.stamped)
    return ExplainedDelivery(change, hashed, decision, claimed)


def _receiver_report(one: ExplainedDelivery, known: Knowledge) -> ReceiverReport:
    receiver, reason = one.decision.receiver, one.decision.reason
    fields = ", ".join(sorted(receiver.options.fields))
    texts = {
        "muted": "the write was muted",
        "fields": f"none of its fields changed: {fields}",
        "where": "its where does not match the document",
        "process": 'it runs in the writing process only (delivery="process")',
    }
    name, document = receiver.name, name_of(one.decision.document)
    if reason in texts:
        return ReceiverReport(name, document, reason, "not called", texts[reason])
    if reason == "ran" and not one.claim:
        return ReceiverReport(name, document, reason, "ran", "in the writing process")
    state, text, letter, due_at = known.outcome(one)
    return ReceiverReport(name, document, reason, state, text, letter, due_at)


def _writer(change: Change, group: str) -> str:
    """Who wrote a change, as far as its stamp tells."""
    origin, stamp = change.origin, change.stamp
    if origin is not None:
        late = ", with a stamp that came too late" if change.delivery_id else ""
        return ("a receiver in a dispatcher" if origin.hops else "the application") + late
    if stamp is None or change.operation == "delete":
        return "another client"
    if stamp.group != group:
        return f"the application of the group {stamp.group!r}, or another client that copied its stamp"
    return "another client that copied a stamp of the application"


async def _without_change(state: State, wanted: WantedDocument) -> NotFound:
    """The error about a document without a change."""
    database, collection = wanted.namespace
    exists = await state.client[database][collection].find_one({"_id": {"$in": [*wanted.keys]}}, {"_id": True})
    tried = ", ".join(map(repr, wanted.keys))
    there = "No document with this _id exists" if exists is None else "The document exists"
    return NotFound(
        f"{database}.{collection} has no change of a document with _id {tried} since "
        f"{wanted.since.as_datetime():%Y-%m-%dT%H:%M:%SZ}. {there}.",
        remedy="Look further back with --since, as far as the oplog reaches. Write an _id of another type as "
        """extended JSON: '{"$uuid": "..."}'.""",
    )
