"""Metrics for Prometheus: their values, their names, and the bounded number of series."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dispatcher.core.stats import (
    BOUNDS,
    MOST_RECEIVERS,
    ClaimGauges,
    Gauges,
    Histogram,
    Lag,
    RelayFigures,
    Stats,
    TopicFigures,
    TopicGauges,
    seconds_of,
    topic_headroom,
)
from dispatcher.operate.metrics import METRICS, Metrics, Snapshot
from dispatcher.operate.status_model import ClaimsStatus, GroupStatus, MemberStatus, Pause

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ROOT = Path(__file__).parents[2]
GAUGES = Gauges(True, 3, 7, 900, 1.5, 12.0, 990.0, 40.0)


def snapshot(stats: Stats | None = None, **changes) -> Snapshot:
    shot = Snapshot("billing", "1.2", 50.0, 1_000.0, stats or Stats(), {0: GAUGES, 1: GAUGES})
    return shot._replace(**changes)


def group(**changes) -> GroupStatus:
    return replace(GroupStatus("billing", NOW, 0.0, None), **changes)


def member(id_: str, *, alive: bool = True) -> MemberStatus:
    return MemberStatus(id_, "here", 1, "1", None, NOW, 0.0, alive, [], [], {}, None)


def scraped(shot: Snapshot) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Samples by name and labels, as Prometheus reads them."""
    families = text_string_to_metric_families(Metrics(lambda: shot).text().decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def value(samples, name: str, **labels: str) -> float:
    return samples[f"mongoz_dispatcher_{name}", tuple(sorted({"group": "billing", **labels}.items()))]


def test_prometheus_reads_counters_gauges_and_histograms():
    stats = Stats(read=5, reconnects=2)
    figures = stats.figures_of("shop.mail", "post_save")
    figures.delivered, figures.failed, figures.retried = 4, 1, 2
    for seconds in (0.0005, 0.02, 0.025, 1_000.0):
        figures.duration.observe(seconds)
    status = group(members=[member("a"), member("b"), member("c", alive=False)])
    samples = scraped(snapshot(stats, oplog_begins=900.0, oplog_ends=1_000.0, oplog_spare=7.0, status=status))
    mail = {"receiver": "shop.mail", "signal": "post_save"}
    assert value(samples, "changes_read_total") == 5
    assert value(samples, "stream_reconnects_total") == 2
    assert value(samples, "deliveries_total", **mail) == 4
    assert value(samples, "delivery_failures_total", **mail) == 1
    assert value(samples, "delivery_retries_total", **mail) == 2
    assert value(samples, "receiver_duration_seconds_bucket", le="0.001", **mail) == 1
    assert (
        value(samples, "receiver_duration_seconds_bucket", le="0.025", **mail) == 3
    )  # the bound belongs to the bucket
    assert value(samples, "receiver_duration_seconds_bucket", le="300.0", **mail) == 3
    assert value(samples, "receiver_duration_seconds_count", **mail) == 4
    assert value(samples, "receiver_duration_seconds_sum", **mail) == pytest.approx(1_000.0455)
    assert value(samples, "in_flight") == 6  # the sum of both partitions
    assert value(samples, "lag_seconds", partition="1") == 1.5
    assert value(samples, "position_age_seconds", partition="0") == 10
    assert value(samples, "position_saved_age_seconds", partition="0") == 10
    assert value(samples, "oplog_window_seconds") == 100
    assert value(samples, "oplog_headroom_seconds", partition="0") == 97
    assert value(samples, "members") == 2
    assert value(samples, "info", version="1.2", role="dispatcher") == 1


def test_unknown_values_are_absent():
    names = {name for name, _ in scraped(snapshot())}
    for name in ("oplog_window_seconds", "oplog_headroom_seconds", "members", "dead_letters", "parked_deliveries"):
        assert f"mongoz_dispatcher_{name}" not in names
    assert "mongoz_dispatcher_members" in {name for name, _ in scraped(snapshot(status=group()))}


def test_a_reader_of_a_topic_has_the_lag_of_the_broker_and_the_headroom_of_the_topic():
    stats = Stats(topic=TopicFigures(records=9, dropped={"duplicate": 3, "stale": 2, "ahead": 0}))
    topic = TopicGauges("", 40, 3_600.0, 700)
    here, there = (
        GAUGES._replace(topic=topic, waiting_seconds=0.5),
        GAUGES._replace(topic=topic._replace(trouble="no broker answers", lag_records=None, is_paused=True)),
    )
    shot = snapshot(stats, oplog_begins=900.0, oplog_ends=1_000.0, broker_errors=6)._replace(
        pipelines={0: here, 1: there}
    )
    samples = scraped(shot)
    assert value(samples, "topic_records_read_total") == 9
    assert value(samples, "topic_records_dropped_total", reason="duplicate") == 3
    assert value(samples, "topic_lag_records", partition="0") == 40
    assert ("mongoz_dispatcher_topic_lag_records", (("group", "billing"), ("partition", "1"))) not in samples
    assert value(samples, "topic_headroom_seconds", partition="0") == 3_590
    assert value(samples, "topic_retention_seconds") == 3_600
    assert value(samples, "topic_buffered_bytes") == 1_400
    assert value(samples, "topic_partitions_paused") == 1
    assert value(samples, "topic_connected") == 0
    assert value(samples, "broker_errors_total") == 6
    assert value(samples, "delivery_lag_seconds", partition="0") == 0.5
    assert value(scraped(shot._replace(pipelines={0: here})), "topic_connected") == 1
    names = {name for name, _ in samples}
    assert "mongoz_dispatcher_oplog_headroom_seconds" not in names  # the topic holds the position
    assert not any("relay" in name for name in names)


def test_the_headroom_of_a_topic_is_longer_if_nothing_waits_there():
    assert topic_headroom(3_600.0, 600.0, all_read=False) == 3_000
    assert topic_headroom(3_600.0, 600.0, all_read=True) == 3_600
    assert topic_headroom(None, 600.0, all_read=False) is None


def test_a_relay_has_metrics_of_its_own_and_none_about_deliveries():
    figures = RelayFigures(records=8, bytes=800, large_events=1, term=12)
    figures.terms["error"] += 2
    shot = snapshot(Stats(relay=figures))._replace(pipelines={0: GAUGES._replace(topic=TopicGauges())})
    samples = scraped(shot)
    assert value(samples, "info", version="1.2", role="relay") == 1
    assert value(samples, "relay_records_published_total") == 8
    assert value(samples, "relay_bytes_published_total") == 800
    assert value(samples, "relay_large_events_total") == 1
    assert value(samples, "relay_terms_total", cause="error") == 2
    assert value(samples, "relay_terms_total", cause="lease") == 0
    assert value(samples, "relay_term") == 12
    assert value(samples, "relay_lag_seconds") == 1.5
    assert value(samples, "relay_position_seconds") == 990
    assert value(samples, "relay_records_in_flight") == 7
    assert value(samples, "relay_bytes_in_flight") == 900
    assert value(samples, "topic_connected") == 1
    names = {name for name, _ in samples}
    assert not names & {f"mongoz_dispatcher_{name}" for name in ("lag_seconds", "delivery_lag_seconds")}
    standby = scraped(shot._replace(pipelines={}))
    assert value(standby, "relay_term") == 0
    assert "mongoz_dispatcher_relay_lag_seconds" not in {name for name, _ in standby}


def test_a_pause_is_a_metric():
    samples = scraped(snapshot(status=group(paused=[Pause(None, NOW, ""), Pause("shop.mail", NOW, "")])))
    assert (value(samples, "paused"), value(samples, "paused_receivers")) == (1, 1)
    assert value(scraped(snapshot()), "paused") == 0


def test_dispatchers_have_metrics_about_claims_and_relays_have_none():
    stats = Stats(taken_over=7, orphaned=2)
    claims = ClaimsStatus(processes=3, open=5, released=1, oldest_seconds=12.5)
    pipelines = {n: GAUGES._replace(claims=ClaimGauges(n, 1.0)) for n in (1, 2)}
    samples = scraped(snapshot(stats, pipelines=pipelines, status=group(claims=claims)))
    for name, expected in {
        "claims_taken_over_total": 7,
        "claims_orphaned_total": 2,
        "claims_waiting": 3,
        "oldest_claim_seconds": 12.5,
        "claims_open": 5,
        "claims_released": 1,
        "claiming_processes": 3,
    }.items():
        assert value(samples, name) == expected
    relay = snapshot(Stats(relay=RelayFigures()), status=group(claims=claims, is_relay=True))
    assert not {"mongoz_dispatcher_claims_waiting", "mongoz_dispatcher_claims_open"} & {
        n for n, _ in scraped(relay)
    }


def test_the_number_of_series_is_bounded():
    stats = Stats()
    for n in range(3 * MOST_RECEIVERS):
        stats.figures_of(f"receiver{n}", "post_save").delivered += 1
    samples = scraped(snapshot(stats))
    counted = {labels: n for (name, labels), n in samples.items() if name == "mongoz_dispatcher_deliveries_total"}
    assert len(counted) == MOST_RECEIVERS + 1
    assert sum(counted.values()) == 3 * MOST_RECEIVERS
    assert stats.figures_of("receiver0", "post_save").delivered == 1


def test_names_follow_the_conventions_of_prometheus():
    assert len({one.name for one in METRICS}) == len(METRICS)
    for one in METRICS:
        assert re.fullmatch(r"[a-z_]+", one.name), one.name
        assert not one.name.endswith("_total")
        assert one.kind != "histogram" or one.name.endswith(("_seconds", "_size"))
        assert one.help.endswith("."), one.name


def test_the_reference_lists_every_metric():
    page = (ROOT / "docs/reference/metrics.md").read_text()
    listed = [line for line in page.splitlines() if line.startswith("| `mongoz")]
    assert listed == [
        f"| `{m.full_name}` | {m.kind} | {', '.join(f'`{label}`' for label in m.labels)} | {m.help} |"
        for m in METRICS
    ]


def test_logs_have_the_counters_of_the_process_but_not_of_receivers():
    stats = Stats(read=1)
    stats.figures_of("shop.mail", "post_save")
    assert stats.as_dict()["read"] == 1
    assert "receivers" not in stats.as_dict()
    assert "clock_offset" not in stats.as_dict()


def test_every_value_belongs_to_one_bucket():
    histogram = Histogram()
    for seconds in (0.0, *BOUNDS, 1e9):
        histogram.observe(seconds)
    assert histogram.counts == [2, *[1] * (len(BOUNDS) - 1), 1]


# -- lag ---------------------------------------------------------------------------------------------


def test_an_up_to_date_stream_has_no_lag():
    lag = Lag()
    assert lag.seconds(10.0, 1_000.0, None) == 0  # before the first read
    lag.note_batch(10.0, 995.0, 3, more=False)  # an idle server's token is seconds old
    assert lag.seconds(11.0, 1_001.0, None) == 0
    assert lag.changes(11.0, 1_001.0, 0) == 0


def test_an_unfinished_change_counts_as_lag():
    lag = Lag()
    lag.note_batch(10.0, 1_000.0, 1, more=False)
    assert lag.seconds(12.0, 1_002.0, 999.5) == 2.5
    assert lag.changes(12.0, 1_002.0, 4) == 4


def test_the_changes_of_a_backlog_are_estimated_from_their_density():
    lag = Lag()
    for second in range(10):
        lag.note_batch(10.0, 500.0 + second, 200, more=True)
    assert lag.seconds(10.0, 1_000.0, 505.0) == 495
    assert lag.changes(10.0, 1_009.0, 50) == pytest.approx(50 + 500 * 200)
    lag.note_batch(11.0, 1_008.0, 5, more=False)
    assert lag.changes(11.0, 1_009.0, 0) == 0


def test_the_silence_of_a_stream_counts_as_lag():
    lag = Lag()
    lag.note_batch(10.0, 1_000.0, 0, more=False)
    assert lag.seconds(14.0, 1_004.0, None) == 0
    assert lag.seconds(30.0, 1_020.0, None) == 20


def test_dates_become_seconds_since_the_epoch():
    moment = datetime(2024, 2, 29, 12, 0, 0, 500_000, tzinfo=UTC)
    assert seconds_of(moment) == moment.timestamp()
    assert seconds_of(moment.replace(tzinfo=None)) == moment.timestamp()
    assert seconds_of(moment.astimezone(timezone(timedelta(hours=5)))) == moment.timestamp()
    assert seconds_of(None) is None
