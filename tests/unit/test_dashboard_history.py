"""Rates and percentiles out of what members report."""

import pytest

from dispatcher.core.stats import BOUNDS
from dispatcher.web.dashboard.history import History, quantile


def stats(delivered: int = 0, **others) -> dict:
    return {"delivered": delivered, **others}


def counts(**by_bound: int) -> list[int]:
    found = [0] * (len(BOUNDS) + 1)
    for bound, count in by_bound.items():
        found[BOUNDS.index(float(bound[1:].replace("_", ".")))] = count
    return found


def test_rates_are_differences_by_the_time_between_reports():
    history = History()
    history.note(100.0, {"a": (100.0, stats(1_000, failed=4))})
    point = history.note(102.0, {"a": (102.0, stats(1_100, failed=5))})
    assert (point.delivered, point.failed) == (50.0, 0.5)


def test_a_group_is_the_sum_of_its_members():
    history = History()
    history.note(100.0, {"a": (100.0, stats(10, in_flight=3)), "b": (99.0, stats(500, in_flight=1))})
    point = history.note(104.0, {"a": (104.0, stats(50, in_flight=2)), "b": (103.0, stats(540, in_flight=5))})
    assert (point.delivered, point.in_flight) == (20.0, 7)


def test_a_member_that_is_new_does_not_count_what_it_did_before():
    history = History()
    history.note(100.0, {"a": (100.0, stats(10))})
    point = history.note(102.0, {"a": (102.0, stats(10)), "b": (102.0, stats(1_000_000))})
    assert point.delivered == 0


def test_one_that_is_gone_counts_no_more():
    history = History()
    history.note(100.0, {"a": (100.0, stats(0)), "b": (100.0, stats(0))})
    history.note(102.0, {"a": (102.0, stats(20)), "b": (102.0, stats(20))})
    assert history.note(104.0, {"a": (104.0, stats(40))}).delivered == 10


def test_a_report_that_is_seen_twice_is_one():
    history = History()
    history.note(100.0, {"a": (100.0, stats(0))})
    history.note(102.0, {"a": (103.0, stats(30))})
    assert history.note(104.0, {"a": (103.0, stats(30))}).delivered == 10


def test_rates_follow_within_some_seconds():
    history = History()
    delivered = 0
    for second in range(0, 60, 2):
        history.note(float(second), {"a": (float(second), stats(delivered))})
        delivered += 200
    for second in range(60, 74, 2):
        point = history.note(float(second), {"a": (float(second), stats(delivered))})
    assert point.delivered == 0


def test_percentiles_are_of_what_was_delivered_lately():
    history = History()
    slow = counts(_60_0=1_000)
    history.note(100.0, {"a": (100.0, stats(latency=slow))})
    both = [a + b for a, b in zip(slow, counts(_0_01=100), strict=True)]
    point = history.note(102.0, {"a": (102.0, stats(latency=both))})
    assert 0.005 < point.p50_seconds < point.p99_seconds <= 0.01


def test_nothing_delivered_has_no_percentile():
    history = History()
    assert history.note(100.0, {"a": (100.0, stats(latency=counts()))}).p99_seconds is None


@pytest.mark.parametrize("nonsense", [None, [1, 2], "x", {"0.1": 3}, ["a"] * 17])
def test_stats_of_another_version_are_counted_as_nothing(nonsense):
    history = History()
    said = {"delivered": nonsense, "latency": nonsense, "receivers": [nonsense], "partitions": {"0": nonsense}}
    point = history.note(100.0, {"a": (100.0, said)})
    assert (point.delivered, point.p50_seconds, history.receivers()) == (0, None, {})


def test_percentiles_are_computed_as_prometheus_does():
    assert quantile(0.5, counts(_0_01=10)) == pytest.approx(0.0075)  # in the middle of 5 to 10 ms
    assert quantile(0.75, counts(_0_001=50, _1_0=50)) == pytest.approx(0.75)
    beyond = [0] * len(BOUNDS) + [7]
    assert quantile(0.5, beyond) == BOUNDS[-1]
    assert quantile(0.5, [0] * (len(BOUNDS) + 1)) is None


def test_the_longest_lag_is_the_groups():
    history = History()
    reports = {
        "a": (100.0, stats(partitions={"0": {"lag_seconds": 1.5}, "1": {"lag_seconds": 0}})),
        "b": (100.0, stats(partitions={"2": {"lag_seconds": 9.0}})),
    }
    assert history.note(100.0, reports).lag_seconds == 9.0
    assert history.note(102.0, {"a": (102.0, stats())}).lag_seconds is None


def test_clients_get_what_they_do_not_have_yet():
    history = History()
    for second in range(5):
        history.note(float(second), {})
    everything, seen = history.since(-1)
    assert ([point.at for point in everything], seen) == ([0, 1, 2, 3, 4], 5)
    history.note(5.0, {})
    fresh, seen = history.since(seen)
    assert ([point.at for point in fresh], seen) == ([5], 6)
    assert history.since(seen) == ([], 6)


def test_who_saw_an_earlier_process_gets_everything():
    history = History()
    history.note(0.0, {})
    points, seen = history.since(5_000)
    assert (len(points), seen) == (1, 1)


def test_an_hour_is_kept():
    history = History()
    for number in range(2_000):
        history.note(number * 2.0, {})
    points, seen = history.since(0)
    assert (len(points), seen) == (1_800, 2_000)
    assert points[-1].at - points[0].at == pytest.approx(3_598)


def test_receivers_are_counted_over_all_members():
    def mail(delivered: int, seconds: float) -> dict:
        one = {"receiver": "shop.mail", "signal": "post_save", "delivered": delivered, "failed": 1, "retried": 0}
        return stats(receivers=[{**one, "duration_sum": seconds, "duration_count": delivered}])

    history = History()
    history.note(100.0, {"a": (100.0, mail(10, 1.0)), "b": (100.0, mail(0, 0.0))})
    history.note(110.0, {"a": (110.0, mail(30, 3.0)), "b": (110.0, mail(10, 0.5))})
    figures = history.receivers()["shop.mail", "post_save"]
    assert figures["delivered"] == 40
    assert figures["delivered_rate"] == 3
    assert figures["failed"] == 2
    assert figures["failed_rate"] == 0
    assert figures["duration_sum"] / figures["duration_count"] == pytest.approx(2.5 / 30)
