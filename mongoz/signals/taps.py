"""Who looks on at signals without being one of their receivers: tests."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mongoz.signals.receivers import Receiver

__all__ = ["Tap", "looking_on", "running"]


def _always() -> bool:
    return True


@dataclass(frozen=True, eq=False, slots=True)
class Tap:
    """What `Signal.tap` takes.

    Attributes:
        receiver: is awaited before all receivers, with what they get. What it returns goes nowhere.
        silences: the receivers don't run in this process meanwhile; they stay connected.
        listens: whether it looks on in the current task; asked whenever the signal is sent or a write planned.
    """

    receiver: Receiver
    silences: bool = False
    listens: Callable[[], bool] = _always


def looking_on(taps: Iterable[Tap]) -> tuple[Receiver, ...]:
    """What those taps want called that look on in the current task."""
    return tuple(tap.receiver for tap in taps if tap.listens())


def running(taps: Iterable[Tap], receivers: tuple[Receiver, ...]) -> tuple[Receiver, ...]:
    """Those of a signal's receivers that the taps let run in the current task: all, or none."""
    return () if any(tap.silences and tap.listens() for tap in taps) else receivers
