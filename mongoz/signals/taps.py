"""Taps: functions that observe a signal in tests. They are not among its receivers."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mongoz.signals.receivers import Receiver

__all__ = ["Tap", "active_observers", "unsilenced"]


def _always() -> bool:
    return True


@dataclass(frozen=True, eq=False, slots=True)
class Tap:
    """An observer of a signal, for `Signal.tap`.

    Attributes:
        receiver: awaited before all receivers, with the same keywords. Its result is ignored.
        silences: True keeps the receivers from running in the tasks that the tap observes. They stay connected.
        is_active: returns whether the tap observes the current task. It is called whenever the signal is sent or a
            write is planned.
    """

    receiver: Receiver
    silences: bool = False
    is_active: Callable[[], bool] = _always


def active_observers(taps: Iterable[Tap]) -> tuple[Receiver, ...]:
    """The receivers of the taps that observe the current task."""
    return tuple(tap.receiver for tap in taps if tap.is_active())


def unsilenced(taps: Iterable[Tap], receivers: tuple[Receiver, ...]) -> tuple[Receiver, ...]:
    """The receivers that run in the current task: none if a tap silences them, else all."""
    return () if any(tap.silences and tap.is_active() for tap in taps) else receivers
