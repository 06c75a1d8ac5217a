"""Claimed receivers that the application of this dispatcher does not have.

Either this application is older than the application of the process that wrote, or the receiver was removed.
Deliveries to such a receiver stay parked until a dispatcher with the receiver starts.
"""

from functools import cache
from typing import Any, NoReturn

from dispatcher.core.events import Calls
from mongoz.claims.document import NamedReceiver
from mongoz.signals.receivers import Receiver


@cache
def calls_of_orphan(named: NamedReceiver, *, created: bool) -> Calls:
    """The call of a receiver that is known only by its names. The call can be parked, but not made."""
    module, _, name = named.sender.rpartition(".")
    document = type(name, (), {"__module__": module})
    receiver = Receiver(_absent, named.name, 0, id=named.id, former_ids=named.former)
    return Calls(document, named.signal, created, (receiver,))


def is_orphan(calls: Calls) -> bool:
    """Returns whether the application does not have the receiver."""
    return calls.receivers[0].function is _absent


async def _absent(sender: type, **_keywords: Any) -> NoReturn:
    raise AssertionError(f"{sender.__name__}: the application does not have this receiver")
