"""Makes the arguments of receivers from a change, and extracts the BSON that the server sent."""

from functools import cache
from typing import Any, NamedTuple

import bson
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument

from dispatcher.core.bson_codec import RAW, lenient
from dispatcher.core.events import Calls, Change, Image, delivery_id_of
from dispatcher.core.undecodable import AFTER, UndecodableValue, decoded, exact_key
from mongoz.connection import Collection
from mongoz.fields.storage import stored_names
from mongoz.persistence.rows.hydration import hydrate, make_bare_instance
from mongoz.signals import Delivery
from mongoz.signals.receivers import importable_name
from mongoz.stamps import context_of

# Extracted parts of an event are not decoded.
_RAW = lenient(RAW)


class Originals(NamedTuple):
    """The documents of a change, as BSON, including the stamp.

    Attributes:
        document: the document after the change, or the current one if it was looked up; None if unknown.
        before: the document before the change; None if unknown.
    """

    document: bytes | None
    before: bytes | None


def originals_of(change: Change) -> Originals:
    """Extract from the event the documents that the server sent, even if they can't be decoded."""
    event = RawBSONDocument(change.raw, codec_options=_RAW)
    document, before = event.get("fullDocument"), event.get("fullDocumentBeforeChange")
    after = None if document is None else bytes(document.raw)
    return Originals(change.looked_up or after, None if before is None else bytes(before.raw))


def key_of(change: Change) -> Any:
    """The `_id` as the server sent it, without the application's codec; `UndecodedKey` if it can't be decoded."""
    return exact_key(change.raw_key) if change.raw else change.id


def with_documents(change: Change, originals: Originals, codec_options: CodecOptions[Any]) -> Change:
    """A stored change with its documents. Documents that can't be decoded are None."""
    document, before, fault = None, None, change.fault
    if change.image != "key" and originals.document is not None:
        try:
            document = decoded(originals.document, codec_options, AFTER)
        except UndecodableValue as error:
            fault = fault or error.fault
    if originals.before is not None:
        try:
            before = bson.decode(originals.before, codec_options=codec_options)
        except BaseException:  # the change is delivered without `previous`
            before = None
    return change._replace(document=document, before=before, fault=fault)


def untouched(change: Change, codec_options: CodecOptions[Any]) -> Change:
    """Copy a change, with documents that are decoded again.

    If an instance was made from the documents of the change, the instance or a receiver may have modified them.
    """
    if not change.raw:
        return change
    originals = originals_of(change)
    return change._replace(
        document=_decoded(originals.document, change.document, codec_options),
        before=_decoded(originals.before, change.before, codec_options),
    )


def _decoded(raw: bytes | None, used: dict[str, Any] | None, codec_options: CodecOptions[Any]) -> Any:
    """Decode a document again, unless the first decoding failed."""
    return None if raw is None or used is None else bson.decode(raw, codec_options=codec_options)


def keywords_of(change: Change, calls: Calls) -> tuple[Image, dict[str, Any]]:
    """Make the image and the keyword arguments of receivers.

    The instances keep the documents of the change, and modify them.

    Raises:
        UndecodableValue: the document can't be decoded.
        ValidationError: the document does not fit its model.
        BaseException: a validator of the application raised it.
    """
    document, signal, collection = calls.document, calls.signal, calls.collection
    if signal == "post_delete":
        before = None if change.before is None else _previous(document, change.before, collection)
        if before is None:  # the document is unknown or invalid: the delete is delivered without it
            _refuse_undecodable(change)
            return "key", {"instance": make_bare_instance(document, change.id, collection)}
        return "pre", {"instance": before}
    row = change.document
    if row is not None:
        instance = hydrate(document, row, collection)
    else:
        _refuse_undecodable(change)
        instance = make_bare_instance(document, change.id, collection)
    previous = None if change.before is None else _previous(document, change.before, collection)
    if signal == "post_save":
        return change.image, {"instance": instance, "created": calls.created, "previous": previous}
    attributes = _attributes(document)
    names = frozenset(attributes.get(name, name) for name in change.names)
    return change.image, {"instance": instance, "update_fields": names, "previous": previous}


class ChangeDelivery(Delivery):
    """The `delivery` of a change. Few receivers read its attributes, so they are computed at the first read.

    Args:
        source: the change, its calls, the name of the receiver, the image, the number of the attempt (from 1), the
            term, and whether a dead letter is retried. A tuple is passed faster than seven arguments.
    """

    __slots__ = ("_source",)

    def __init__(self, source: tuple[Change, Calls, str, Image, int, int, bool]) -> None:
        self._source: tuple[Change, Calls, str, Image, int, int, bool] | None = source

    def __getattr__(self, name: str) -> Any:
        """Compute all attributes. The watchdog may do the same in its thread at the same time."""
        if (source := self._source) is not None:
            change, calls, receiver, image, attempt, term, replayed = source
            super().__init__(
                delivery_id_of(change, calls.run),
                calls.signal,
                receiver,
                "takeover" if change.takeover else "stream",
                attempt,
                term,
                change.cluster_time,
                change.wall_time,
                image,
                replayed or bool(calls.run),
                None,
                change.superseded,
                context_of(change.context) if change.context else None,
            )
            self._source = None  # so a receiver that keeps the delivery does not keep the change
        return object.__getattribute__(self, name)


def _refuse_undecodable(change: Change) -> None:
    if change.fault is not None:
        raise UndecodableValue(change.fault)


def _previous(document: Any, row: dict[str, Any], collection: Collection | None) -> Any:
    try:
        return hydrate(document, row, collection)
    except Exception:  # the change is delivered without `previous`
        return None


@cache
def name_of(document: Any) -> str:
    """The name of a document class, equal in all processes. Cached, because finding it is slow for `__main__`."""
    return importable_name(document)


@cache
def _attributes(document: Any) -> dict[str, str]:
    return {stored: name for name, stored in stored_names(document).items()}
