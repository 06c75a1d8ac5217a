"""The rates and percentiles that the page computes from counters, in a browser."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from dispatcher.core.stats import BOUNDS
from dispatcher.web import dashboard

ASSETS = Path(dashboard.__file__).parent / "assets"
LOAD = """async ([name, source]) => {
  window[name] = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
}"""
POINTS = """([bounds, samples]) => {
  const rates = new window.rates.Rates(bounds);
  return samples.map((sample) => rates.point(sample));
}"""
RECEIVER = """(reports) => {
  const windows = new window.rates.Windows();
  for (const report of reports) windows.add({ mail: report });
  const mail = windows.get("mail");
  return [mail.rate("delivered"), mail.rate("failed"), mail.mean("duration_sum", "duration_count")];
}"""


@pytest.fixture(scope="module")
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context()
    page = context.new_page()
    for name in ("rates", "series"):
        page.evaluate(LOAD, [name, (ASSETS / f"{name}.js").read_text()])
    yield page
    context.close()


@pytest.fixture
def points(page: Page) -> Any:
    """Computes points from samples. A sample has the reports of members, with the times of the reports."""

    def points_of(*samples: dict[str, tuple[float, dict[str, Any]]]) -> list[dict[str, Any]]:
        said = [
            {
                "at": max((at for at, _ in sample.values()), default=0.0),
                "members": {id_: {"at": at, "lag_seconds": None, **stats} for id_, (at, stats) in sample.items()},
            }
            for sample in samples
        ]
        return page.evaluate(POINTS, [list(BOUNDS), said])

    return points_of


def counts(**by_bound: int) -> list[int]:
    found = [0] * (len(BOUNDS) + 1)
    for bound, count in by_bound.items():
        found[BOUNDS.index(float(bound[1:].replace("_", ".")))] = count
    return found


def test_a_rate_is_a_difference_divided_by_the_time_between_reports(points):
    first = {"a": (100.0, {"delivered": 1_000, "failed": 4})}
    *_, point = points(first, {"a": (102.0, {"delivered": 1_100, "failed": 5})})
    assert (point["delivered"], point["failed"], point["retried"]) == (50.0, 0.5, 0)
    assert points(first)[0]["delivered"] == 0


def test_the_rate_of_a_group_is_the_sum_over_its_members(points):
    *_, point = points(
        {"a": (100.0, {"delivered": 10, "in_flight": 3}), "b": (99.0, {"delivered": 500, "in_flight": 1})},
        {"a": (104.0, {"delivered": 50, "in_flight": 2}), "b": (103.0, {"delivered": 540, "in_flight": 5})},
    )
    assert (point["delivered"], point["in_flight"]) == (20.0, 7)


@pytest.mark.slow
def test_a_new_member_does_not_count_its_earlier_deliveries(points):
    new = {"a": (102.0, {"delivered": 10}), "b": (102.0, {"delivered": 1_000_000})}
    assert points({"a": (100.0, {"delivered": 10})}, new)[-1]["delivered"] == 0


def test_a_member_that_left_does_not_count(points):
    *_, point = points(
        {"a": (100.0, {"delivered": 0}), "b": (100.0, {"delivered": 0})},
        {"a": (102.0, {"delivered": 20}), "b": (102.0, {"delivered": 20})},
        {"a": (104.0, {"delivered": 40})},
    )
    assert point["delivered"] == 10


def test_a_repeated_report_counts_once(points):
    said = {"a": (103.0, {"delivered": 30})}
    assert points({"a": (100.0, {"delivered": 0})}, said, said)[-1]["delivered"] == 10


def test_a_rate_is_zero_some_seconds_after_the_last_delivery(points):
    busy = [{"a": (float(second), {"delivered": 100 * second})} for second in range(0, 60, 2)]
    quiet = [{"a": (float(second), {"delivered": 6_000})} for second in range(60, 74, 2)]
    *_, point = points(*busy, *quiet)
    assert point["delivered"] == 0


def test_samples_a_minute_apart_have_the_rate_of_that_minute(points):
    delivered = [0, 600, 600, 1_800]
    found = points(*({"a": (60.0 * n, {"delivered": count})} for n, count in enumerate(delivered)))
    assert [point["delivered"] for point in found] == [0, 10, 0, 20]


def test_percentiles_describe_only_the_latest_deliveries(points):
    slow = counts(_60_0=1_000)
    both = [a + b for a, b in zip(slow, counts(_0_01=100), strict=True)]
    *_, point = points({"a": (100.0, {"latency": slow})}, {"a": (102.0, {"latency": both})})
    assert 0.005 < point["p50_seconds"] < point["p99_seconds"] <= 0.01
    assert points({"a": (100.0, {"latency": counts()})})[0]["p99_seconds"] is None


@pytest.mark.parametrize("nonsense", [None, [1, 2], "x", {"0.1": 3}, ["a"] * 17])
def test_counters_of_another_version_are_ignored(points, nonsense):
    said = {"delivered": nonsense, "latency": nonsense, "lag_seconds": nonsense, "in_flight": nonsense}
    *_, point = points({"a": (100.0, said)}, {"a": (102.0, said)})
    assert (point["delivered"], point["p50_seconds"], point["lag_seconds"], point["in_flight"]) == (
        0,
        None,
        None,
        0,
    )


def test_a_step_of_the_history_becomes_a_point(page):
    step = {
        "at": 60.0,
        "seconds": 30.0,
        "lag_seconds": None,
        "read": 90,
        "delivered": 60,
        "failed": 3,
        "retried": 0,
    }
    point = page.evaluate(
        "(args) => window.rates.pointOf(...args)", [{**step, "latency": counts(_0_01=10)}, BOUNDS]
    )
    assert (point["at"], point["read"], point["delivered"], point["failed"]) == (60.0, 3, 2, 0.1)
    assert (point["lag_seconds"], point["p50_seconds"]) == (None, pytest.approx(0.0075))
    counters = {"delivered": [30, 0], "failed": [0, 6], "retried": [0, 0]}
    steps = [{"at": 60.0, "seconds": 30.0}, {"at": 120.0, "seconds": 60.0}]
    assert page.evaluate("(args) => window.rates.pointsOf(...args)", [counters, steps]) == [
        {"at": 60, "delivered": 1, "failed": 0, "retried": 0},
        {"at": 120, "delivered": 0, "failed": 0.1, "retried": 0},
    ]


@pytest.mark.parametrize(
    ("rates", "share"), [((3, 1, 0), 0.25), ((0, 1, 1), 1), ((5, 0, 0), 0), ((0, 0, 0), None)]
)
def test_an_error_rate_is_the_share_of_attempts_that_failed(page, rates, share):
    point = dict(zip(("delivered", "failed", "retried"), rates, strict=True))
    assert page.evaluate("(point) => window.rates.errorRate(point)", point) == share


def test_a_series_keeps_fifteen_minutes_in_full_and_six_hours_by_the_minute(page):
    kept = page.evaluate(
        """() => {
          const series = new window.series.Series([{ at: 0 }, { at: 60 }]);
          for (let at = 62; at <= 8 * 3600; at += 2) series.add({ at });
          series.add({ at: 100 });
          return [series.since(1e9), series.since(900)].map((points) => points.map((point) => point.at));
        }"""
    )
    end = 8 * 3600
    assert kept[1] == list(range(end - 900, end + 1, 2))
    old = [at for at in kept[0] if at < end - 900]
    assert old[0] >= end - 6 * 3600
    assert {b - a for a, b in pairwise(old)} == {60}
    assert len(kept[0]) < 900


def test_series_of_receivers_that_are_gone_are_forgotten(page):
    found = page.evaluate(
        """() => {
          const many = new window.series.ManySeries({ mail: [{ at: 1 }], gone: [{ at: 1 }] });
          many.add({ mail: { at: 2 }, new: { at: 2 } });
          return ["mail", "gone", "new"].map((key) => many.since(key, 60).length);
        }"""
    )
    assert found == [2, 0, 1]


def test_percentiles_are_computed_as_prometheus_does(page):
    def quantile(share: float, counted: list[int]) -> float | None:
        return page.evaluate("(args) => window.rates.quantile(...args)", [share, counted, list(BOUNDS)])

    assert quantile(0.5, counts(_0_01=10)) == pytest.approx(0.0075)  # the middle of 5 to 10 ms
    assert quantile(0.75, counts(_0_001=50, _1_0=50)) == pytest.approx(0.75)
    assert quantile(0.5, [0] * len(BOUNDS) + [7]) == BOUNDS[-1]
    assert quantile(0.5, [0] * (len(BOUNDS) + 1)) is None


def test_the_lag_of_a_group_is_the_longest_lag_of_its_members(points):
    both = {"a": (100.0, {"lag_seconds": 1.5}), "b": (100.0, {"lag_seconds": 9.0})}
    assert [point["lag_seconds"] for point in points(both, {"a": (102.0, {})})] == [9.0, None]


def test_a_receiver_has_rates_and_the_average_duration_of_its_latest_attempts(page):
    def report(at: float, delivered: int, seconds: float) -> dict[str, Any]:
        counted = {"delivered": delivered, "failed": 2, "duration_sum": seconds, "duration_count": delivered}
        return {"at": at, **counted}

    delivered, failed, duration = page.evaluate(RECEIVER, [report(100.0, 10, 1.0), report(110.0, 40, 3.5)])
    assert (delivered, failed) == (3, 0)
    assert duration == pytest.approx(2.5 / 30)
    fallen = [report(100.0, 10, 1.0), report(110.0, 4, 0.5)]  # a member left
    assert page.evaluate(RECEIVER, fallen) == [0, 0, None]
