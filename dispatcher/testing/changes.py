"""Makes changes by hand, and delivers them to receivers like a dispatcher, without a server."""

import asyncio
import itertools
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import bson
from bson.codec_options import CodecOptions
from bson.timestamp import Timestamp

from dispatcher.batches.attempt import run_batch
from dispatcher.batches.batches import Batches
from dispatcher.batches.run import BatchTools
from dispatcher.core.bson_codec import RawEvent
from dispatcher.core.events import Change, Errand, Job
from dispatcher.core.lease import Lease
from dispatcher.core.stats import Stats
from dispatcher.core.tasks import end
from dispatcher.delivery.capacity import Bounds, Capacity
from dispatcher.delivery.deliverer import Deliverer
from dispatcher.delivery.failure import Failures
from dispatcher.delivery.routes import Routes
from dispatcher.delivery.steps import Steps
from dispatcher.delivery.terms import Policy
from dispatcher.stream.decode import decode
from dispatcher.testing.recording import RecordedDelivery, Recorder, failures_of
from mongoz import Document
from mongoz.error_groups import raise_together
from mongoz.exceptions import SignalError
from mongoz.fields.storage import stored_names
from mongoz.persistence.rows.validation import new_row
from mongoz.signals.contexts import make_context
from mongoz.signals.names import POST
from mongoz.stamps import ContextValues
from mongoz.synonyms import nearest

__all__ = ["HandMade", "delete", "deliver", "insert", "replace", "update"]

_increments = itertools.count(1)

Row = Mapping[str, Any] | Document


@dataclass(frozen=True, slots=True)
class HandMade:
    """A change for `deliver`. Make it with `insert`, `update`, `replace` or `delete`."""

    operation: Literal["insert", "update", "replace", "delete"]
    document: Row
    previous: Row | None = None
    changed: tuple[str, ...] = ()
    image: Literal["post", "current", "key"] = "post"
    context: ContextValues | None = None


def insert(document: Row, *, context: ContextValues | None = None) -> HandMade:
    """The insert of a document: a `post_save` with `created=True`.

    Args:
        document: the stored document as a dict with stored names, or an instance. A dict without an `_id` gets a
            new one.
        context: the values of `mongoz.context(...)` around the write.
    """
    return HandMade("insert", document, context=context)


def replace(document: Row, *, previous: Row | None = None, context: ContextValues | None = None) -> HandMade:
    """The replacement of a document: a `post_save` with `created=False`.

    Args:
        document: the new document, see `insert`.
        previous: the document before the change (the pre image).
        context: see `insert`.
    """
    return HandMade("replace", document, previous, context=context)


def update(
    document: Row,
    *,
    changed: Iterable[str],
    previous: Row | None = None,
    image: Literal["post", "current", "key"] = "post",
    context: ContextValues | None = None,
) -> HandMade:
    """An update of some fields: a `post_update`.

    Args:
        document: the whole document after the update, see `insert`.
        changed: names of the changed fields, or paths inside of them, for example `"address.city"`. A name that is
            not in `document` means a removed field.
        previous: the document before the change (the pre image).
        image: the version of the document that the dispatcher has. `"post"`: the post image; `"current"`: the
            current document, which the dispatcher looked up; `"key"`: only the id, because the document no longer
            exists.
        context: see `insert`.
    """
    return HandMade("update", document, previous, tuple(changed), image, context)


def delete(id_: Any, *, before: Row | None = None, context: ContextValues | None = None) -> HandMade:
    """The deletion of a document: a `post_delete`.

    Args:
        id_: its `_id`.
        before: the deleted document (the pre image). Without it the instance has only its id.
        context: see `insert`.
    """
    return HandMade("delete", {"_id": id_}, before, context=context)


async def deliver(
    document: type[Document],
    change: HandMade,
    *,
    receiver: Callable[..., Awaitable[Any]] | str | None = None,
    timeout: float = 30.0,  # noqa: ASYNC109 - the time limit of a receiver, as in the settings
    raise_failures: bool = True,
) -> list[RecordedDelivery]:
    """Deliver a hand-made change to the receivers of a document, as the dispatcher does.

    The change becomes a change event, which the code of the dispatcher processes. This needs neither a server
    nor a running dispatcher. The receivers are called once each, in the order of their connection; batch receivers
    get a batch of one event, after the other receivers. `where` is ignored, because only a server can evaluate it.

    Args:
        document: the document class. The change is in its collection. Other classes with the same collection do
            not get the change.
        change: the result of `insert`, `replace`, `update` or `delete`.
        receiver: deliver only to this receiver: the function, or its name; None for all receivers.
        timeout: the time limit of a receiver in seconds.
        raise_failures: raise the exceptions of receivers. Otherwise they are in the result.

    Returns:
        The deliveries; none if the options of the receivers exclude this change.

    Raises:
        SignalError: the receiver is not connected to a `post_*` signal of the document.
        RetryAfter: one receiver asked for another attempt.
        ValueError: the change has a context that no write can have.
        Exception: one receiver failed, or the document does not fit its model.
        ExceptionGroup: several receivers failed.

    Examples:
        >>> await deliver(User, update({"_id": 1, "name": "Ada"}, changed={"name"}), receiver=reindex)
    """
    _check_receiver(document, receiver)
    registry = document.meta.require_collection().database.deployment
    decoded = _decoded(document, change, registry.codec_options)
    calls = [
        each.with_receivers(*(one for one in each.receivers if receiver in (None, one.function, one.name)))
        for each in Routes([document], registry.dispatched or "default").route(decoded)
    ]
    recorder = Recorder()
    recorded = recorder.record(decoded, [each for each in calls if each.receivers])
    await _work(Job(decoded.token, decoded, recorded), timeout, registry.codec_options)
    for record in recorder.deliveries:
        if record.outcome == "postponed":  # there is no later attempt
            record.outcome = "failed"
    failures = [error for _, error in failures_of(recorder.deliveries)]
    if raise_failures:
        raise_together(failures, f"{len(failures)} of {len(recorder.deliveries)} receivers failed")
    return recorder.deliveries


def _decoded(document: type[Document], change: HandMade, codec_options: CodecOptions[Any]) -> Change:
    """The change that a dispatcher would decode."""
    collection = document.meta.require_collection()
    event = bson.encode(
        _event(document, change, (collection.database.name, collection.name)), codec_options=codec_options
    )
    decoded = decode(RawEvent(event), codec_options)
    if change.image == "current":
        decoded = decoded._replace(image="current")
    if change.context:
        decoded = decoded._replace(context=make_context(dict(change.context)).text)
    return decoded


async def _work(job: Job, timeout: float, codec_options: CodecOptions[Any]) -> None:  # noqa: ASYNC109 - as above
    """Make the deliveries of a job with the stages of a dispatcher."""
    policy, capacity, stats = Policy(1, timeout, once=True), Capacity(Bounds(1, 1, 1)), Stats()
    steps = Steps(policy, Lease.for_ever(), capacity, stats, codec_options)
    failing = Failures(1, stats, pause=capacity.pause)
    deliverer = Deliverer(1, policy, capacity, stats, codec_options, steps=steps, failures=failing)
    errands: list[Errand] = []
    batches = Batches(
        BatchTools(1, policy, capacity, stats, codec_options, failing, None),
        steps.batched(run_batch, None),
        places=1,
        add=lambda _key, errand: errands.append(errand),
        on_finished=lambda _job: None,
    )
    deliverer.gather_in(batches)
    watch = asyncio.create_task(deliverer.watch(), name="watch-timeouts")
    try:
        # A receiver may cancel the task in which it runs, so it gets its own task.
        await asyncio.create_task(deliverer.work(job), name="hand-made-change")
        for errand in errands:  # a batch of one event, because the capacity has no room for more
            await asyncio.create_task(errand.run(), name="hand-made-batch")
    finally:
        await end([watch])


def _check_receiver(document: type[Document], receiver: object) -> None:
    connected = [one for name in POST for one in getattr(document.meta.signals, name).receivers]
    ours = [one for one in connected if one.runs_in_dispatcher]
    if any(receiver in (None, one.function, one.name) for one in ours):
        return
    if receiver is None:
        raise SignalError(
            f"{document.__name__} has no post_save, post_update or post_delete receiver that a dispatcher may "
            "run. Is the module with the receivers imported?"
        )
    label = receiver if isinstance(receiver, str) else getattr(receiver, "__qualname__", repr(receiver))
    if any(receiver in (one.function, one.name) for one in connected):
        raise SignalError(f"{label} is connected with delivery='process': no dispatcher ever runs it.")
    raise SignalError(
        f"{label} is not connected to post_save, post_update or post_delete of {document.__name__}."
        f"{nearest(str(label), [one.name for one in ours])}"
    )


def _event(document: type[Document], change: HandMade, namespace: tuple[str, str]) -> dict[str, Any]:
    """The change event in the form of the server."""
    row = _row(change.document)
    now, increment = int(time.time()), next(_increments)
    event: dict[str, Any] = {
        "_id": {"_data": f"82{now:08X}{increment:08X}2B{secrets.token_hex(12).upper()}04"},
        "operationType": change.operation,
        "clusterTime": Timestamp(now, increment),
        "wallTime": datetime.now(UTC),
        "ns": {"db": namespace[0], "coll": namespace[1]},
        "documentKey": {"_id": row["_id"]},
    }
    if change.operation != "delete" and change.image != "key":
        event["fullDocument"] = row
    if change.previous is not None:
        event["fullDocumentBeforeChange"] = {**_row(change.previous), "_id": row["_id"]}
    if change.operation == "update":
        event["updateDescription"] = _description(document, change.changed, row)
    return event


def _description(document: type[Document], changed: Iterable[str], row: dict[str, Any]) -> dict[str, Any]:
    names = stored_names(document)
    updated, removed = {}, []
    for path in changed:
        top, dot, rest = path.partition(".")
        stored = f"{names.get(top, top)}{dot}{rest}"
        try:
            updated[stored] = _dig(row, stored.split("."))
        except LookupError:
            removed.append(stored)
    return {"updatedFields": updated, "removedFields": removed, "truncatedArrays": []}


def _dig(value: Any, steps: list[str]) -> Any:
    for step in steps:
        if isinstance(value, list) and step.isdigit():
            value = value[int(step)]
        elif isinstance(value, Mapping):
            value = value[step]
        else:
            raise LookupError(step)
    return value


def _row(document: Row) -> dict[str, Any]:
    row = new_row(document) if isinstance(document, Document) else dict(document)
    return row if "_id" in row else {"_id": bson.ObjectId(), **row}
