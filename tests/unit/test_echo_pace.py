"""The pace of receivers that are triggered by their own writes, when clocks change."""

from datetime import UTC, datetime
from typing import Any

import pytest
from bson import ObjectId, Timestamp

from dispatcher.core.events import Calls, Change, Job
from dispatcher.core.lease import Lease
from dispatcher.core.stats import Stats
from dispatcher.delivery.capacity import Bounds, Capacity
from dispatcher.delivery.deliverer import Deliverer
from dispatcher.delivery.failure import Failures
from dispatcher.delivery.steps import Steps
from dispatcher.delivery.terms import Policy
from mongoz import Document, String
from mongoz.connection.codec import CODEC_OPTIONS
from mongoz.signals.receivers import make_receiver


class Thing(Document):
    name: str = String()


@pytest.mark.parametrize("offset", [0.0, 3_600.0, -3_600.0])
async def test_the_pace_works_again_after_a_wrong_clock_was_corrected(offset, monkeypatch):
    """The clock is wrong for one delivery. The next deliveries are triggered by writes of their receiver."""
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    committed = datetime.now(UTC)

    async def receive(sender: Any, **_: Any) -> None:
        nonlocal committed
        committed = datetime.now(UTC)

    stats, capacity, policy = Stats(), Capacity(Bounds(1, 1, 1)), Policy(1, 30.0)
    monkeypatch.setattr(capacity, "pause", pause)
    steps = Steps(policy, Lease.for_ever(), capacity, stats, CODEC_OPTIONS)
    failures = Failures(1, stats, pause=pause)
    deliverer = Deliverer(1, policy, capacity, stats, CODEC_OPTIONS, steps=steps, failures=failures)
    receiver = make_receiver(receive, signal="post_save", sender=None, sequence=0, options={})
    id_, stats.clock_offset = ObjectId(), offset
    for number in range(20):
        time = Timestamp(int(committed.timestamp()), number + 1)
        row = {"_id": id_, "name": "a"}
        change = Change("82", "insert", ("d", "c"), id_, time, committed, row, None, "post", frozenset(), None, 1)
        await deliverer.work(Job("82", change, (Calls(Thing, "post_save", True, (receiver,)),)))
        stats.clock_offset = 0.0
    assert pauses
