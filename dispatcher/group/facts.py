"""Computes the fields that a member writes about itself when it joins its group."""

from hashlib import sha256
from typing import Any

from dispatcher.delivery.routes import Routes
from dispatcher.group.members import FORMAT
from dispatcher.settings import Settings
from dispatcher.stream.scope import scope_of
from mongoz.signals.options import Options


def version_of(routes: Routes) -> str:
    """A hash that identifies the version of the application: collections, receivers, and format of the state."""
    receivers = sorted(receiver.id.hex() for receiver in routes.receivers)
    return sha256(" ".join([str(FORMAT), scope_of(routes).fingerprint, *receivers]).encode()).hexdigest()[:16]


def pace_of(options: Options) -> dict[str, Any]:
    """The limits of a receiver, and the size of its batches, for people and for JSON.

    None means that the receiver has no such limit, or no batches.
    """
    return {
        "concurrency": options.concurrency,
        "rate": None if options.rate is None else str(options.rate),
        "batch": None if options.batch is None else options.batch.size,
    }


def facts_of(routes: Routes, settings: Settings, version: str, application: str) -> dict[str, Any]:
    """The fields of a member that do not change while it lives."""
    return {
        "application": application,
        "version": version,
        "format": FORMAT,
        "claims": True,
        "backfills": True,
        "lease_seconds": settings.lease,
        "receivers": [
            {
                "id": receiver.id.hex(),
                "former_ids": [id_.hex() for id_ in receiver.former_ids],
                "name": receiver.name,
                "formerly": list(receiver.options.formerly),
                "signal": signal,
                "document": listener.document.__name__,
                **pace_of(receiver.options),
            }
            for listener in routes.listeners
            for signal, receivers in listener.receivers.items()
            for receiver in receivers
        ],
    }
