"""The history that the plots of the dashboard show."""

import json
import tracemalloc
from collections import deque
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dispatcher.core.stats import BOUNDS, MOST_RECEIVERS
from dispatcher.operate.status_model import GroupStatus, MemberStatus
from dispatcher.web.dashboard import history as history_module
from dispatcher.web.dashboard.history import STEPS, History, sample_of

AT = datetime(2026, 1, 1, tzinfo=UTC)
BUCKETS = len(BOUNDS) + 1


def member(id_: str, *, alive: bool = True, seen: float = 0.0, **stats: Any) -> MemberStatus:
    return MemberStatus(id_, "here", 1, "1", None, AT, seen, alive, [0], [], stats, None)


def group(*members: MemberStatus, minute: int = 0) -> GroupStatus:
    status = GroupStatus("g", AT + timedelta(minutes=minute), 0.0, None)
    status.members = list(members)
    return status


def counted(receiver: str, delivered: int, failed: int = 0, retried: int = 0) -> dict[str, Any]:
    figures = {"delivered": delivered, "failed": failed, "retried": retried}
    return {"receiver": receiver, "signal": "post_save", **figures}


def shown(*statuses: GroupStatus) -> dict[str, Any]:
    history = History()
    for status in statuses:
        history.note(status)
    told: dict[str, Any] = json.loads(history.as_json())
    return told


def test_a_sample_has_the_counters_and_report_times_of_live_members():
    partitions = {"0": {"lag_seconds": 1.5}, "1": {"lag_seconds": 9.0}}
    stats = {"read": 9, "delivered": 7, "failed": 1, "retried": 2, "in_flight": 3, "latency": [1, 2]}
    sample = sample_of(group(member("a", seen=2.0, partitions=partitions, **stats), member("b", alive=False)))
    at = AT.timestamp()
    assert sample == {"at": at, "members": {"a": {"at": at - 2.0, "lag_seconds": 9.0, **stats}}}


def test_a_step_has_the_growth_of_the_counters_of_all_members_and_the_largest_lag():
    def both(minute: int, delivered: int) -> GroupStatus:
        latency = [delivered] + [0] * (BUCKETS - 1)
        late = {"0": {"lag_seconds": 7.5}}
        first = member("a", delivered=delivered, read=10 * delivered, latency=latency, partitions=late)
        return group(first, member("b", delivered=2 * delivered, failed=minute), minute=minute)

    told = shown(both(0, 100), both(1, 130))
    (step,) = told["steps"]
    assert (step["at"], step["seconds"], step["lag_seconds"]) == (AT.timestamp() + 60, 60.0, 7.5)
    assert (step["read"], step["delivered"], step["failed"], step["retried"]) == (300, 90, 1, 0)
    assert step["latency"] == [30] + [0] * (BUCKETS - 1)
    assert told["bounds"] == list(BOUNDS)
    assert told["last"]["members"]["b"]["delivered"] == 260


def test_no_step_contains_counts_from_before_a_member_was_seen():
    new = group(
        member("a", delivered=5), member("b", delivered=1_000_000, receivers=[counted("mail", 9)]), minute=1
    )
    fallen = group(member("a", delivered=1), minute=2)  # a has started again, and b has left
    told = shown(group(member("a", delivered=5)), new, fallen)
    assert [step["delivered"] for step in told["steps"]] == [0, 0]
    assert told["receivers"] == {}


def test_each_receiver_has_its_counters_in_each_step():
    told = shown(
        group(member("a", receivers=[counted("mail", 10)])),
        group(member("a", receivers=[counted("mail", 15, failed=2)]), minute=1),
        group(member("a", receivers=[counted("mail", 16, failed=2, retried=4), counted("index", 3)]), minute=2),
        group(member("a", receivers=[counted("mail", 16, failed=2, retried=4), counted("index", 4)]), minute=3),
    )
    assert told["receivers"] == {
        "mail post_save": {"delivered": [5, 1, 0], "failed": [2, 0, 0], "retried": [0, 4, 0]},
        "index post_save": {"delivered": [0, 3, 1], "failed": [0, 0, 0], "retried": [0, 0, 0]},
    }


def test_a_receiver_that_is_gone_for_six_hours_is_forgotten():
    history = History()
    for delivered in range(3):
        history.note(group(member("a", receivers=[counted("mail", delivered)])))
    for minute in range(3, STEPS + 1):
        history.note(group(member("a"), minute=minute))
    assert sum(json.loads(history.as_json())["receivers"]["mail post_save"]["delivered"]) == 2
    for minute in range(STEPS, STEPS + 4):
        history.note(group(member("a"), minute=minute))
    told = json.loads(history.as_json())
    assert (told["receivers"], len(told["steps"])) == ({}, STEPS)


@pytest.mark.parametrize("nonsense", [None, "x", [1], {"0.1": 3}, ["a"] * BUCKETS])
def test_counters_of_another_version_are_ignored(nonsense: Any):
    odd = {"read": nonsense, "delivered": nonsense, "latency": nonsense, "receivers": nonsense}
    told = shown(group(member("a", **odd)), group(member("a", **odd), minute=1))
    (step,) = told["steps"]
    assert (step["read"], step["delivered"], sum(step["latency"]), step["lag_seconds"]) == (0, 0, 0, None)


RECEIVERS = 5


def busy(minute: int, receivers: int = RECEIVERS) -> GroupStatus:
    named = [counted(f"shop.receivers.number_{n}", 10_000 * minute, minute, minute) for n in range(receivers)]
    stats = {"read": 10**6 * minute, "delivered": 10**6 * minute, "latency": [1_000 * minute] * BUCKETS}
    return group(member("a", receivers=named, **stats), member("b", **stats), minute=minute)


def test_the_memory_of_the_history_is_bounded():
    """The documentation says: 0.2 MB without receivers, 1.2 MB with 200."""
    history = History()
    tracemalloc.start()
    try:
        for minute in range(STEPS + 20):
            history.note(busy(minute))
        own = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, history_module.__file__)])
    finally:
        tracemalloc.stop()
    told = json.loads(history.as_json())
    assert {len(series["delivered"]) for series in told["receivers"].values()} == {STEPS}
    assert (len(told["steps"]), len(told["receivers"])) == (STEPS, RECEIVERS)
    # Threads of other tests use memory too. Objects from the free lists of the interpreter are not counted.
    used = sum(one.size for one in own.statistics("filename"))
    assert 20_000 < used < 300_000 + 5_500 * RECEIVERS


def test_the_history_keeps_a_limited_number_of_receivers():
    told = shown(*(busy(minute, receivers=MOST_RECEIVERS + 20) for minute in range(3)))
    assert len(told["receivers"]) == MOST_RECEIVERS


class Observed:
    """Returns this number of statuses in order. Then it raises an error, which ends the history."""

    def __init__(self, count: int) -> None:
        self.left = deque(range(count))

    async def status(self) -> GroupStatus:
        minute = self.left.popleft()
        return group(member("a", delivered=minute * minute), minute=minute)


async def test_the_history_has_one_step_a_minute(monkeypatch: pytest.MonkeyPatch):
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("dispatcher.web.dashboard.history.asyncio.sleep", sleep)
    history = History()
    assert json.loads(history.as_json()) == {"bounds": list(BOUNDS), "steps": [], "receivers": {}, "last": None}
    with pytest.raises(IndexError):
        await history.keep(Observed(4))  # type: ignore[arg-type]
    assert [step["delivered"] for step in json.loads(history.as_json())["steps"]] == [1, 3, 5]
    assert set(slept) == {60.0}
