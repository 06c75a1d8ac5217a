"""The last six hours of a group, in steps of a minute, for the plots of the page.

A step has the growth of each counter, added up for all live members, and the largest lag. So the size of a step
does not depend on the number of members. The page divides the growth by the seconds of the step, and shows the
result as a rate.

The memory is bounded. Each of the `STEPS` steps takes at most 0.4 kB for the group, and three counters of four
bytes for each receiver. At most `MOST_RECEIVERS` receivers are kept. Measured: 0.2 MB without receivers, 1.2 MB
with 200.
"""

import asyncio
import json
from array import array
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Final

from dispatcher.core.stats import BOUNDS, MOST_RECEIVERS
from dispatcher.operate.observer import Observer
from dispatcher.operate.status_model import GroupStatus, number

STEPS: Final = 360
"""The number of steps that are kept."""

# Seconds of a step.
_STEP: Final = 60.0

_COUNTED: Final = ("read", "delivered", "failed", "retried")
_OF_RECEIVERS: Final = ("delivered", "failed", "retried")

# Maximum value of a receiver's counter in one step.
_MOST: Final = 2**32 - 1


class History:
    """The steps of a group."""

    def __init__(self) -> None:
        self._steps: deque[str] = deque(maxlen=STEPS)
        self._receivers: dict[str, dict[str, array[int]]] = {}
        self._last: dict[str, Any] | None = None
        self._counters: dict[str, dict[str, tuple[float, ...]]] = {}

    async def keep(self, observer: Observer) -> None:
        """Add a step every minute, for ever."""
        while True:
            self.note(await observer.status())
            await asyncio.sleep(_STEP)

    def note(self, status: GroupStatus) -> None:
        """Add a step that ends now. The first status is only the beginning of the first step."""
        sample, counters = sample_of(status), _counters_of(status)
        if self._last is not None:
            self._steps.append(json.dumps(_step(self._last, sample)))
            self._add_receivers(counters)
        self._last, self._counters = sample, counters

    def _add_receivers(self, counters: Mapping[str, Mapping[str, tuple[float, ...]]]) -> None:
        """Add the growth of the receivers' counters since the last status."""
        grown: dict[str, list[float]] = {}
        for member, receivers in counters.items():
            before = self._counters.get(member)
            for receiver, counted in receivers.items():
                sums = grown.setdefault(receiver, [0.0] * len(_OF_RECEIVERS))
                # The first report of a member adds nothing. A new receiver of a known member begins at zero.
                earlier = counted if before is None else before.get(receiver, (0.0,) * len(counted))
                for i, (now, then) in enumerate(zip(counted, earlier, strict=True)):
                    sums[i] += max(0.0, now - then)
        steps = len(self._steps)
        for receiver in grown:
            if receiver not in self._receivers and len(self._receivers) < MOST_RECEIVERS:
                self._receivers[receiver] = {name: array("I", [0] * (steps - 1)) for name in _OF_RECEIVERS}
        for receiver, series in list(self._receivers.items()):
            values = grown.get(receiver, [0.0] * len(_OF_RECEIVERS))
            for one, value in zip(series.values(), values, strict=True):
                one.append(min(_MOST, int(value)))
                del one[:-steps]
            if receiver not in grown and not any(map(any, series.values())):
                del self._receivers[receiver]

    def as_json(self) -> str:
        """The bounds of the latency buckets, all steps from the oldest on, and the receivers' counters by step.

        The text also has the last sample. From this sample and the present counters, the page computes its first
        rate.
        """
        receivers = {
            name: {counter: one.tolist() for counter, one in series.items()}
            for name, series in self._receivers.items()
        }
        further = json.dumps({"bounds": BOUNDS, "receivers": receivers, "last": self._last})
        return f'{further[:-1]}, "steps": [{",".join(self._steps)}]}}'


def sample_of(status: GroupStatus) -> dict[str, Any]:
    """The counters and gauges of each live member, with the time of its report. Times are seconds since 1970."""
    at = status.at.timestamp()
    return {
        "at": at,
        "members": {
            one.id: {
                "at": at - one.seen_seconds,
                "lag_seconds": one.lag_seconds,
                "in_flight": one.stats.get("in_flight"),
                "latency": one.stats.get("latency"),
                **{name: one.stats.get(name) for name in _COUNTED},
            }
            for one in status.alive
        },
    }


def _step(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The growth of the counters between two samples. Only members that are in both samples count."""
    pairs = [(before["members"][id_], one) for id_, one in after["members"].items() if id_ in before["members"]]
    lags = [lag for one in after["members"].values() if isinstance(lag := one["lag_seconds"], int | float)]
    return {
        "at": round(after["at"], 1),
        "seconds": round(after["at"] - before["at"], 1),
        "lag_seconds": max(lags, default=None),
        **{name: int(_grown((number(a[name]), number(b[name])) for a, b in pairs)) for name in _COUNTED},
        "latency": [int(_grown((a[i], b[i]) for a, b in _latencies(pairs))) for i in range(len(BOUNDS) + 1)],
    }


def _latencies(pairs: Iterable[tuple[Any, Any]]) -> list[tuple[list[float], list[float]]]:
    """The latencies by bucket, before and after. Pairs with the buckets of another version are left out."""
    length = len(BOUNDS) + 1
    known = [(a["latency"], b["latency"]) for a, b in pairs]
    return [
        ([number(one) for one in a], [number(one) for one in b])
        for a, b in known
        if isinstance(a, list) and isinstance(b, list) and len(a) == len(b) == length
    ]


def _grown(pairs: Iterable[tuple[float, float]]) -> float:
    """The sum of the growths. A counter that falls has started again from zero: it adds nothing to the sum."""
    return sum(max(0.0, after - before) for before, after in pairs)


def _counters_of(status: GroupStatus) -> dict[str, dict[str, tuple[float, ...]]]:
    """The counters of the receivers of each live member."""
    return {
        member.id: {
            f"{one['receiver']} {one.get('signal')}": tuple(number(one.get(name)) for name in _OF_RECEIVERS)
            for one in member.counted
        }
        for member in status.alive
    }
