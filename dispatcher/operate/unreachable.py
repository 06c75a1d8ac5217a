"""Finds receivers that are connected but can never be called.

MongoDB commands raise the `PyMongoError` of the driver.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure

from dispatcher.core.driver_errors import Kind, kind_of
from dispatcher.delivery.routes import Routes
from dispatcher.exceptions import ServerError
from dispatcher.stream.collections import WatchedCollection, watched_collections
from dispatcher.stream.scope import scope_of
from mongoz import Document, Registry
from mongoz.fields.storage import stored_names
from mongoz.signals.names import POST
from mongoz.signals.receivers import Receiver
from mongoz.synonyms import closest


class Unreachable(NamedTuple):
    """A receiver that is never called.

    Attributes:
        place: the document and the signal.
    """

    receiver: str
    place: str
    text: str
    remedy: str


def unreachable_receivers(registry: Registry, routes: Routes) -> Iterator[Unreachable]:
    """Find the unreachable receivers that can be found without the server."""
    yield from _of_abstract_documents()
    yield from _of_other_registries(registry)
    for document, signal, receiver in _connected(routes):
        place = f"{document.__name__}.{signal}"
        names = stored_names(document)
        if receiver.options.fields and {names.get(name, name) for name in receiver.options.fields} <= {"_id"}:
            yield Unreachable(
                receiver.name,
                place,
                "fields= lists only the id, which never changes",
                "List other fields, or omit fields=.",
            )
        for name, meant in _misspelt(document, receiver.options.where or {}):
            yield Unreachable(
                receiver.name,
                place,
                f"where= uses {name!r}, but no field of {document.__name__} is stored under this name",
                f"Write {meant!r}.",
            )


def without_changes(watched: Iterable[WatchedCollection], routes: Routes) -> Iterator[Unreachable]:
    """Find the receivers of views and time series, which have no changes."""
    for one in watched:
        if one.kind in ("", "collection") or not one.is_named:
            continue
        for listener in routes.listening_to(one.namespace):
            for signal, receivers in listener.receivers.items():
                for receiver in receivers:
                    yield Unreachable(
                        receiver.name,
                        f"{listener.document.__name__}.{signal}",
                        f"{one.name} is a {one.kind}, which has no changes",
                        "Point Meta.collection and Meta.watch to plain collections, or disconnect the receiver.",
                    )


async def require_changes(client: AsyncMongoClient[Any], routes: Routes) -> None:
    """Raise an error for receivers of views and time series."""
    try:
        watched = await watched_collections(client, scope_of(routes))
    except OperationFailure as error:
        if kind_of(error) is Kind.NO_ACCESS:  # the user may not list collections
            return
        raise
    for one in without_changes(watched, routes):
        raise ServerError(f"{one.receiver} of {one.place} never runs: {one.text}.", remedy=one.remedy)


def _connected(routes: Routes) -> Iterator[tuple[Any, str, Receiver]]:
    for listener in routes.listeners:
        for signal, receivers in listener.receivers.items():
            for receiver in receivers:
                yield listener.document, signal, receiver


def _of_abstract_documents() -> Iterator[Unreachable]:
    for document in _descendants(Document):
        if not document.meta.abstract or any(not one.meta.abstract for one in _descendants(document)):
            continue
        for signal, receiver in _own(document):
            yield Unreachable(
                receiver.name,
                f"{document.__name__}.{signal}",
                f"{document.__name__} is abstract, and no imported document inherits from it",
                "Import the module with the documents that inherit from it (--import), or connect the receiver to "
                "one of these documents.",
            )


def _of_other_registries(registry: Registry) -> Iterator[Unreachable]:
    for document in _descendants(Document):
        if document.meta.abstract or document.meta.registry is registry:
            continue
        for signal, receiver in _own(document):
            yield Unreachable(
                receiver.name,
                f"{document.__name__}.{signal}",
                f"{document.__name__} belongs to "
                f"{'another registry' if document.meta.registry is not None else 'no registry'}",
                "Name APP's registry in the Meta of the document, or run a dispatcher for the other registry.",
            )


def _own(document: Any) -> Iterator[tuple[str, Receiver]]:
    """The receivers of a document itself, without the receivers of its parents."""
    for signal in POST:
        connected = getattr(document.meta.signals, signal)
        for receiver in connected.receivers:
            if receiver.runs_in_dispatcher and receiver.function in connected:
                yield signal, receiver


def _descendants(document: Any) -> Iterator[Any]:
    for child in document.__subclasses__():
        yield child
        yield from _descendants(child)


def _misspelt(document: Any, where: Any) -> Iterator[tuple[str, str]]:
    """Yield the names in `where` that seem misspelt, each with the stored name that it resembles.

    Documents can hold more fields than their model. So a name that resembles no field can be right.
    """
    names = stored_names(document)
    known = {"_id", *names.values()}
    for name in where:
        top = name.partition(".")[0]
        if top.startswith("$") or top in known:
            continue
        meant = closest(top, known, names)
        if meant is not None:
            yield top, meant
