"""The Prometheus and Grafana files of deploy/: every name exists, and alerts fire exactly when they should."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dispatcher.operate.metrics import METRICS
from tests.conftest import need

DEPLOY = Path(__file__).parents[2] / "deploy"
ALERTS = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]

# The labels that Prometheus, its client, its alerting and a supervisor add.
ADDED_LABELS = {"group", "instance", "job", "le", "process"}


def exposed() -> dict[str, set[str]]:
    """The names of all series, with the labels of each."""
    series: dict[str, set[str]] = {}
    for metric in METRICS:
        endings = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
        for ending in endings:
            series[metric.full_name + ending] = {*metric.labels, *ADDED_LABELS}
    return series


def expressions() -> Iterator[tuple[str, str]]:
    """The name of each alert, panel or variable, with its expression."""
    for rule in RULES:
        yield rule["alert"], rule["expr"]
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"]


def labels_of(expression: str) -> set[str]:
    grouped = re.findall(r"\b(?:by|on|group_left) ?\(([^)]*)\)", expression)
    return {label.strip() for labels in grouped for label in labels.split(",")} - {""}


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_every_metric_and_label_exists(where: str, expression: str):
    series = exposed()
    named = set(re.findall(r"\bmongoz_dispatcher_\w+", expression))
    assert named
    assert named <= set(series), f"{where}: no such metric"
    assert labels_of(expression) <= set.union(*(series[name] for name in named)), f"{where}: no such label"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_the_texts_of_an_alert_use_only_labels_of_its_expression(rule: dict[str, Any]):
    text = " ".join(rule["annotations"].values())
    used = set(re.findall(r"\$labels\.(\w+)", text))
    aggregated = re.match(r"\w+ by \(([^)]*)\)|histogram_quantile", rule["expr"])
    left = labels_of(rule["expr"]) if aggregated else set.union(*exposed().values())
    assert used <= left
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert set(rule["annotations"]) == {"summary", "description"}


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_legends_use_only_labels_that_exist(panel: dict[str, Any]):
    for target in panel["targets"]:
        for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
            assert label in labels_of(target["expr"]) | {"instance"}, panel["title"]


def test_panels_do_not_overlap():
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert all(x < 24 for x, _ in cells)
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def promtool(*arguments: str) -> str:
    done = subprocess.run([need("promtool"), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_the_configuration():
    promtool("check", "config", str(DEPLOY / "prometheus" / "prometheus.yml"))


def test_promtool_accepts_the_queries_of_the_dashboard(tmp_path: Path):
    rules = [
        {"record": f"panel:{number}", "expr": re.sub(r"\$__rate_interval", "1m", expression)}
        for number, (_, expression) in enumerate(expressions())
        if not expression.startswith("label_values")
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", str(file))


# -- when alerts fire --------------------------------------------------------------------------------

MAIL = 'receiver="shop.mail",signal="post_save"'
ZERO = 'partition="0"'
MINUTES = 200  # the length of each series

# A healthy group: values of each series per minute, in promtool's notation.
HEALTHY = {
    ("info", 'version="1",role="dispatcher"'): "1",
    ("partitions", ""): "1",
    ("partitions_held", ""): "1",
    ("stream_connected", ZERO): "1",
    ("lag_seconds", ZERO): "1",
    ("oplog_headroom_seconds", ZERO): "3600",
    ("oplog_window_seconds", ""): "3600",
    ("position_saved_age_seconds", ZERO): "1",
    ("gaps_total", ""): "2",
    ("dead_letters_written_total", ""): "3",
    ("deliveries_total", MAIL): "0+600",
    ("delivery_retries_total", MAIL): "0+6",
    ("receiver_duration_seconds_bucket", f'{MAIL},le="0.01"'): "0+600",
    ("receiver_duration_seconds_bucket", f'{MAIL},le="60.0"'): "0+600",
    ("receiver_duration_seconds_bucket", f'{MAIL},le="+Inf"'): "0+600",
    ("receiver_health", f'{MAIL},health="delivering"'): "1",
    ("event_loop_delay_seconds", ""): "0.01",
    ("parked_deliveries", ""): "7",
    ("oldest_claim_seconds", ""): "20",
    ("paused", ""): "0",
    ("paused_receivers", ""): "0",
    ("stream_reconnects_total", ""): "1",
    ("lease_changes_total", ""): "1",
    ("topic_connected", ""): "1",
    ("topic_headroom_seconds", ZERO): "3600",
    ("topic_retention_seconds", ""): "3600",
    ("relay_members", ""): "2",
    ("relay_lag_seconds", ""): "1",
    ("relay_terms_total", 'cause="error"'): "2",
}

# The series that make each alert fire, where they differ from HEALTHY. None: the series is missing.
FIRING: dict[str, dict[tuple[str, str], str | None]] = {
    "DispatcherAbsent": dict.fromkeys(HEALTHY),
    "DispatcherPartitionsUnheld": {("partitions", ""): "2"},
    "DispatcherDisconnected": {("stream_connected", ZERO): "0"},
    "DispatcherLagging": {("lag_seconds", ZERO): "61"},
    "DispatcherOplogRunsOut": {("oplog_headroom_seconds", ZERO): "1700"},
    "DispatcherPositionNotSaved": {("position_saved_age_seconds", ZERO): "61"},
    "DispatcherGap": {("gaps_total", ""): "0+1"},
    "DispatcherDeadLetters": {("dead_letters_written_total", ""): "0+1"},
    "DispatcherReceiverFails": {("receiver_health", f'{MAIL},health="failing"'): "1"},
    "DispatcherReceiverBlocked": {("receiver_health", f'{MAIL},health="blocked"'): "1"},
    "DispatcherReceiverSlow": {("receiver_duration_seconds_bucket", f'{MAIL},le="0.01"'): "0+500"},
    "DispatcherEventLoopBlocked": {("event_loop_delay_seconds", ""): "1.5"},
    "DispatcherParkedGrows": {("parked_deliveries", ""): "0+1"},
    "DispatcherClaimsWait": {("oldest_claim_seconds", ""): "301"},
    "DispatcherPausedForLong": {("paused_receivers", ""): "1"},
    "DispatcherReconnects": {("stream_reconnects_total", ""): "0+1"},
    "DispatcherLeasesChange": {("lease_changes_total", ""): "0+1"},
    "RelayAbsent": {("relay_members", ""): "0"},
    "RelayLagging": {("relay_lag_seconds", ""): "61"},
    "RelayTermsFail": {("relay_terms_total", 'cause="error"'): "0+1"},
    "TopicRefused": {("topic_connected", ""): "0", ("stream_connected", ZERO): "0"},
    "TopicRunsOut": {("topic_headroom_seconds", ZERO): "1700"},
}


def test_every_alert_has_a_case():
    assert list(FIRING) == [rule["alert"] for rule in RULES]
    assert {f"mongoz_dispatcher_{name}" for name, _ in HEALTHY} <= set(exposed())


def case(changes: dict[tuple[str, str], str | None], expected: list[str], *, processes: bool) -> dict[str, Any]:
    """A test for promtool: these alerts fire after three hours, and no others.

    Args:
        processes: whether the dispatcher has a supervisor, with a second process that is a standby.
    """
    series = []
    for (name, labels), values in {**HEALTHY, **changes}.items():
        if values is None:
            continue
        for process in ("1", "2") if processes else ("",):
            if process == "2" and labels == ZERO:
                continue
            held = "0" if (process, name) == ("2", "partitions_held") else values
            steady = held if "+" in held else f"{held}+0"
            own = "".join([f",{labels}" if labels else "", f',process="{process}"' if process else ""])
            labelled = f'mongoz_dispatcher_{name}{{group="shop",instance="a:8787",job="dispatcher"{own}}}'
            series.append({"series": labelled, "values": f"{steady}x{MINUTES}"})
    samples = [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in expected]
    asked = 'group by (alertname) (ALERTS{alertstate="firing"})'
    return {
        "interval": "1m",
        "input_series": series,
        "promql_expr_test": [{"expr": asked, "eval_time": "185m", "exp_samples": samples}],
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "processes",
    [False, pytest.param(True, marks=pytest.mark.exhaustive)],
    ids=["one process", "two processes"],
)
def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path, processes: bool):
    healthy = case({}, [], processes=processes)
    cases = [healthy, *(case(changes, [alert], processes=processes) for alert, changes in FIRING.items())]
    only_relay = {("info", 'version="1",role="dispatcher"'): None, ("info", 'version="1",role="relay"'): "1"}
    cases.append(case(only_relay, ["DispatcherAbsent"], processes=processes))
    file = tmp_path / "cases.yml"
    rules = str(DEPLOY / "prometheus" / "alerts.yml")
    file.write_text(yaml.safe_dump({"rule_files": [rules], "evaluation_interval": "1m", "tests": cases}))
    promtool("test", "rules", str(file))
