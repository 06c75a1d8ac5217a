"""Protocol for the services that `claims/waiting.py` needs from the package `parking`.

Both packages are in one layer, so `claims` can't import `parking`.
"""

from collections.abc import Mapping
from typing import Protocol

from dispatcher.core.events import Calls, Change
from dispatcher.delivery.outcome import Waiting
from mongoz.signals.receivers import Receiver


class ParkingGate(Protocol):
    """Parks deliveries, see `parking/gate.py`."""

    async def holds(self, change: Change, calls: Calls, receiver: Receiver) -> bool:
        """Write a delivery to the database if it must wait for other deliveries. Returns whether it must wait."""

    async def park(self, change: Change, calls: Calls, receiver: Receiver, waiting: Waiting) -> None:
        """Write to the database a delivery that must wait. After this call, the delivery survives a failover."""

    def hasten(self, lanes: Mapping[str, str]) -> None:
        """Make the next attempt at claimed deliveries soon, because their claims are decided.

        Args:
            lanes: the lanes of the deliveries, each with the `_id` of its delivery.
        """
