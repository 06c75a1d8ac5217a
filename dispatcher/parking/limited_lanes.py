"""Lets parked lanes of receivers with limits wait for places, before an errand makes their deliveries.

A place permits one attempt. While a lane waits for a place, the deliveries of its document to other receivers are
made. A delivery is read from the database only if it will get a place soon.
"""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial

from dispatcher.pace.limit import AHEAD, Limit, Place


class LimitedLanes:
    """The lanes that the worker of one partition has taken, and whose receivers have limits.

    Args:
        limits: the limits, by the present and former names of the receivers.
    """

    def __init__(self, limits: Mapping[str, Limit]) -> None:
        self._limits = limits
        self._asking: dict[str, tuple[str, asyncio.Future[None]]] = {}
        # The places of errands. An errand that never begins leaves its place unused.
        self._places: dict[str, Place] = {}

    def __contains__(self, receiver: str) -> bool:
        return receiver in self._limits

    def delay(self, receiver: str) -> float:
        """The seconds until deliveries of a receiver should be read; 0 to read them now."""
        delay = self._limits[receiver].delay if receiver in self._limits else 0.0
        return max(0.0, delay - AHEAD / 2) if delay > AHEAD else 0.0

    def room(self, receiver: str, most: int) -> int:
        """The number of lanes of a receiver that should be read in addition to the lanes that wait.

        Args:
            most: the number that would be read if the receiver had no limits.
        """
        if receiver not in self._limits:
            return most
        return min(most, self._limits[receiver].ahead - sum(name == receiver for name, _ in self._asking.values()))

    def wait(self, receiver: str, lane: str, begin: Callable[[], None]) -> None:
        """Call a function as soon as a lane has a place for one attempt."""
        limit = self._limits[receiver]
        future = limit.ask()
        self._asking[lane] = receiver, future
        future.add_done_callback(partial(self._admitted, lane, limit, begin))

    def _admitted(self, lane: str, limit: Limit, begin: Callable[[], None], _future: object) -> None:
        if self._asking.pop(lane, None) is not None:  # otherwise `close` was faster
            self._places[lane] = Place(limit)
            begin()

    def place(self, lane: str) -> Place | None:
        """The place of a lane; None if the lane has none."""
        return self._places.get(lane)

    def end(self, lane: str) -> None:
        """Give back the place of a lane if no attempt has used it."""
        place = self._places.pop(lane, None)
        if place is not None:
            place.release()

    def close(self) -> None:
        """Give back all places that no attempt has used, and ask for no more."""
        asking, self._asking = self._asking, {}
        for receiver, future in asking.values():
            if self._limits[receiver].withdraw(future):
                self._limits[receiver].give_back()
        for lane in list(self._places):
            self.end(lane)
