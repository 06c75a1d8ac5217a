"""The worker of parked deliveries queries again when the next delivery is due."""

import asyncio
from time import monotonic
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest
from pymongo.errors import AutoReconnect

from dispatcher.core.stats import Stats
from dispatcher.core.tasks import end
from dispatcher.parking import worker
from dispatcher.parking.gate import Parking
from dispatcher.parking.lane import Lane
from dispatcher.parking.limited_lanes import LimitedLanes
from dispatcher.parking.worker import ParkingWorker
from tests.support import PATIENCE

LANE = Lane("lane", "blocked", None, "first", 10)


def worker_with(due: tuple[list[Lane], float | None], first: dict[str, Any]) -> ParkingWorker:
    """A worker whose position is "m".

    The query finds the lanes and the seconds in `due`, and the lane has the delivery `first`.
    """
    held = Mock(due=AsyncMock(return_value=due), read=AsyncMock(return_value={"first": first} if first else {}))
    parking = Parking(held, (), term=1, stats=Stats(), pause=AsyncMock(), position=lambda: "m")
    parking.own_id = "me"
    made = ParkingWorker(
        held,
        Mock(busy=("r",), stuck=set(), hastened={}, is_ours=parking.is_ours),
        Mock(key=Mock(return_value="key")),
        Mock(names={}),
        deliver=AsyncMock(),
        add=Mock(),
        may_begin=lambda: True,
        places=10,
        limited=LimitedLanes({}),
    )
    return made


OWN, PASSED, AHEAD = ({"by": by, "token": token} for by, token in (("me", "z"), ("other", "a"), ("other", "z")))


@pytest.mark.parametrize(
    ("due", "first", "seconds"),
    [
        (([], None), {}, worker._RARELY),
        (([], 4.0), {}, 4.0),
        (([], 400.0), {}, worker._RARELY),
        (([LANE], None), OWN, worker._RARELY),
        (([LANE], 4.0), PASSED, 4.0),
        (([LANE], None), AHEAD, worker._AGAIN),  # the position has not passed the delivery yet
        (([LANE], None), {}, worker._AGAIN),  # the delivery has just been deleted
    ],
)
async def test_the_next_query_comes_when_the_next_delivery_is_due(due, first, seconds):
    assert await worker_with(due, first)._take_all() == seconds


async def test_a_malformed_delivery_does_not_delay_the_deliveries_after_it():
    """The query has found as many lanes as there are places.

    No errand begins, so no end of an errand wakes the worker.
    """
    made = worker_with(([LANE], 0.0), OWN)
    made.resize(1)
    made._held.skip = AsyncMock(return_value=True)  # type: ignore[method-assign]
    made._reader.key = Mock(side_effect=ValueError)  # type: ignore[method-assign]
    assert await made._take_all() == 0.0


async def test_a_decided_claim_is_made_due_after_its_errand():
    """At its end the errand saves the due time of its delivery. This would overwrite an earlier change."""
    made = worker_with(([LANE], None), OWN)
    made._held.make_due = AsyncMock()  # type: ignore[method-assign]
    await made._take_all()
    made._parking.hastened.update({"lane": "first", "other": "second"})
    await made._take_all()
    made._held.make_due.assert_awaited_once_with(["second"])
    made._end("r", LANE)
    made._held.due.return_value = ([], None)
    await made._take_all()
    await made._take_all()
    assert [call.args for call in made._held.make_due.await_args_list] == [(["second"],), (["first"],)]


async def test_decided_claims_whose_write_fails_are_made_due_later():
    made = worker_with(([], None), {})
    made._parking.hastened["lane"] = "first"
    made._held.make_due = AsyncMock(side_effect=[AutoReconnect("a step-down"), None])  # type: ignore[method-assign]
    with pytest.raises(AutoReconnect):
        await made._take_all()
    await made._take_all()
    assert made._held.make_due.await_count == 2
    assert not made._parking.hastened


async def test_further_places_are_used_immediately():
    made = worker_with(([], None), {})
    made._next = due = monotonic() + PATIENCE
    made.resize(5)
    assert made._next == due
    made.resize(50)
    assert made._next <= monotonic()


async def test_a_failed_search_for_deliveries_of_former_owners_is_repeated(monkeypatch):
    monkeypatch.setattr(worker, "_SOON", 0.0)
    made, searched = worker_with(([], None), {}), asyncio.Event()
    made._parking.load = AsyncMock(side_effect=[AutoReconnect("a step-down"), None])  # type: ignore[method-assign]
    made._parking.forget = lambda *_: searched.set()  # type: ignore[method-assign]
    task = asyncio.create_task(made.run())
    async with asyncio.timeout(PATIENCE):
        await searched.wait()
    await end([task])
    assert made._parking.load.await_count == 2
