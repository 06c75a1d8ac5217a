"""Garbage is collected at fixed intervals, even with few allocations."""

import gc
import weakref

from dispatcher.runtime.gc_tuning import collecting
from tests.support import eventually


class Cycle:
    """A reference cycle."""

    def __init__(self) -> None:
        self.itself = self


async def test_cycles_are_collected_at_fixed_intervals(monkeypatch):
    monkeypatch.setattr("dispatcher.runtime.gc_tuning._EVERY", 0.01)
    thresholds = gc.get_threshold()
    async with collecting():
        assert gc.get_threshold()[0] > thresholds[0]
        new = weakref.ref(Cycle())
        await eventually(lambda: new() is None)
        old = Cycle()
        seen = weakref.ref(old)
        gc.collect()  # moves the cycle to the oldest generation
        del old
        await eventually(lambda: seen() is None)
    assert gc.get_threshold() == thresholds
    assert gc.get_freeze_count() == 0
