"""The samples that the plots of the dashboard show."""

import json
from collections import deque
from datetime import UTC, datetime
from typing import Any

import pytest

from dispatcher.operate.status_model import GroupStatus, MemberStatus
from dispatcher.web.dashboard.history import Samples, sample_of

AT = datetime(2026, 1, 1, tzinfo=UTC)


def member(id_: str, *, alive: bool = True, seen: float = 0.0, **stats: Any) -> MemberStatus:
    return MemberStatus(id_, "here", 1, "1", None, AT, seen, alive, [0], [], stats, None)


def group(*members: MemberStatus) -> GroupStatus:
    status = GroupStatus("g", AT, 0.0, None)
    status.members = list(members)
    return status


def test_a_sample_has_the_counters_and_report_times_of_live_members():
    partitions = {"0": {"lag_seconds": 1.5}, "1": {"lag_seconds": 9.0}}
    counted = {"read": 9, "delivered": 7, "failed": 1, "retried": 2, "in_flight": 3, "latency": [1, 2]}
    sample = sample_of(group(member("a", seen=2.0, partitions=partitions, **counted), member("b", alive=False)))
    at = AT.timestamp()
    assert sample == {"at": at, "members": {"a": {"at": at - 2.0, "lag_seconds": 9.0, **counted}}}


def test_a_member_without_a_report_has_no_lag():
    assert sample_of(group(member("a")))["members"]["a"]["lag_seconds"] is None


class Observed:
    """Returns this number of statuses in order. Then it raises an error, which ends the sampling."""

    def __init__(self, count: int) -> None:
        self.left = deque(range(count))

    async def status(self) -> GroupStatus:
        return group(member("a", delivered=self.left.popleft()))


async def test_the_history_keeps_six_hours_with_one_sample_a_minute(monkeypatch: pytest.MonkeyPatch):
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("dispatcher.web.dashboard.history.asyncio.sleep", sleep)
    history = Samples()
    assert history.as_json() == "[]"
    with pytest.raises(IndexError):
        await history.keep(Observed(400))  # type: ignore[arg-type]
    samples = json.loads(history.as_json())
    assert [one["members"]["a"]["delivered"] for one in samples] == list(range(40, 400))
    assert set(slept) == {60.0}
