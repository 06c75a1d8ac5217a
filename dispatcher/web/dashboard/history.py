"""The last six hours of a group. Each minute a sample is taken: the counters and gauges of the live members.

Counters grow from the start of a member. The page computes rates from them: a rate is the difference of two
samples, divided by the seconds between the samples. The page shows gauges, such as the lag, without a rate.
"""

import asyncio
import json
from collections import deque
from typing import Any, Final

from dispatcher.operate.observer import Observer
from dispatcher.operate.status_model import GroupStatus

# Seconds between two samples, and how many of them are kept.
_STEP: Final = 60.0
_SAMPLES: Final = 360

_COUNTED: Final = ("read", "delivered", "failed", "retried", "in_flight", "latency")


class Samples:
    """The samples of a group. They are kept as JSON, which takes little memory."""

    def __init__(self) -> None:
        self._samples: deque[str] = deque(maxlen=_SAMPLES)

    async def keep(self, observer: Observer) -> None:
        """Take samples for ever."""
        while True:
            self._samples.append(json.dumps(sample_of(await observer.status())))
            await asyncio.sleep(_STEP)

    def as_json(self) -> str:
        """All samples, the oldest first."""
        return f"[{','.join(self._samples)}]"


def sample_of(status: GroupStatus) -> dict[str, Any]:
    """The counters and gauges of each live member, with the time of its report. Times are seconds since 1970."""
    at = status.at.timestamp()
    return {
        "at": at,
        "members": {
            one.id: {
                "at": at - one.seen_seconds,
                "lag_seconds": one.lag_seconds,
                **{name: one.stats.get(name) for name in _COUNTED},
            }
            for one in status.alive
        },
    }
