"""When the worker of parked deliveries queries again."""

from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest
from bson.codec_options import DEFAULT_CODEC_OPTIONS

from dispatcher.parking import worker
from dispatcher.parking.store import Lane
from dispatcher.parking.worker import ParkingWorker

LANE = Lane("lane", "blocked", None, "first", 10)


def worker_with(due: tuple[list[Lane], float | None], first: dict[str, Any]) -> ParkingWorker:
    """A worker whose position is "m". The query finds these lanes and seconds, and this first delivery."""
    held = Mock(due=AsyncMock(return_value=due), read=AsyncMock(return_value={"first": first} if first else {}))
    parking = Mock(busy=("r",), stuck=set(), own_id="me")
    made = ParkingWorker(
        held,
        parking,
        Mock(),
        deliver=AsyncMock(),
        add=Mock(),
        may_begin=lambda: True,
        position=lambda: "m",
        places=10,
        codec_options=DEFAULT_CODEC_OPTIONS,
    )
    made._key = Mock(return_value="key")  # type: ignore[method-assign]
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
        (([LANE], None), AHEAD, worker._AGAIN),  # the position has not passed it yet
        (([LANE], None), {}, worker._AGAIN),  # it has just been deleted
    ],
)
async def test_the_next_query_comes_when_the_next_delivery_is_due(due, first, seconds):
    assert await worker_with(due, first)._take_all() == seconds
