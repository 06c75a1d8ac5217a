"""Tells for each receiver whether it gets a change, and if not, the reason.

The rules are those of `routes.py`. This module asks `Routes` step by step, and names the step at which a receiver
is left out.
"""

from typing import Any, Literal, NamedTuple

from dispatcher.core.events import Calls, Change
from dispatcher.delivery.routes import Routes
from mongoz.signals.receivers import Receiver

Reason = Literal["", "ran", "muted", "fields", "where", "process"]
"""The reason why a receiver does not get a change.

`""`: the receiver gets the change. `"ran"`: the writing process ran the receiver. `"muted"`: the write was muted.
`"fields"` and `"where"`: this option excludes the change. `"process"`: no dispatcher may call the receiver.
"""


class RoutingDecision(NamedTuple):
    """The decision about one receiver of a change.

    Attributes:
        document: the class whose instance the receiver gets.
        signal: the signal of the change.
        stamped: the ids of the receiver in stamps.
    """

    document: Any
    signal: str
    created: bool
    receiver: Receiver
    reason: Reason
    stamped: frozenset[bytes]


async def decisions(routes: Routes, change: Change) -> list[RoutingDecision]:
    """The decisions about all receivers of the document class that are connected to the signal of a change.

    Args:
        routes: the routes. They must be prepared, so that the server evaluates `where`.
        change: a change with its origin and its document. An update that changed only the stamp has no receivers.
    """
    called = routes.signal_of(change)
    if called is None:
        return []
    signal, created = called
    ((_, wanted),) = await routes.resolve([change])
    found, chosen = _receivers(routes.route(change)), _receivers(wanted)
    withheld = {name: reason for reason, name, _ in (() if change.origin is None else routes.withheld(change))}

    def reason_of(document: Any, receiver: Receiver) -> Reason:
        if (document, receiver) in chosen:
            return ""
        if not receiver.runs_in_dispatcher:
            return "process"
        if (document, receiver) in found:
            return "where"
        return withheld.get(receiver.name, "fields")

    return [
        RoutingDecision(
            listener.document,
            signal,
            created,
            receiver,
            reason_of(listener.document, receiver),
            listener.stamped.get(receiver, frozenset()),
        )
        for listener in routes.listening_to(change.namespace)
        for receiver in getattr(listener.document.meta.signals, signal).receivers
    ]


def _receivers(calls: tuple[Calls, ...]) -> set[tuple[Any, Receiver]]:
    return {(one.document, receiver) for one in calls for receiver in one.receivers}
