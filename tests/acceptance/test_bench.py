"""`make bench` in very short: it runs, and its result has the shape that others read. Figures are not judged."""

import json
import subprocess
import sys

import pytest

from benchmarks.figures import Pair, Row, Target, quantile
from tests.support import ROOT


def bench(*arguments):
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def test_the_result(mongo, tmp_path):
    path = tmp_path / "result.json"
    size = ("--rounds", "2", "--changes", "2000", "--writes", "40")
    run = bench("--quick", *size, "--json", str(path))
    assert run.returncode == 0, run.stderr
    for word in ("backlog", "latency, median", "latency, p99", "target", "MongoDB"):
        assert word in run.stdout
    result = json.loads(path.read_text())
    assert set(result) == {"format", "at", "machine", "plan", "rows"}
    assert result["plan"] == {"rounds": 2, "changes": 2000, "writes": 40, "rate": 200.0}
    assert {"processor", "cores", "load_before", "load_after", "mongodb", "pymongo"} <= set(result["machine"])
    assert [row["key"] for row in result["rows"]] == ["backlog", "latency_p50", "latency_p99"]
    for row in result["rows"]:
        assert len(row["ours"]) == len(row["limit"]) == len(row["ratios"]) == 2
        assert all(value > 0 for value in (*row["ours"], *row["limit"]))
        assert row["ratios"] == pytest.approx([a / b for a, b in zip(row["ours"], row["limit"], strict=True)])
        assert min(row["ratios"]) <= row["ratio"] <= max(row["ratios"])
        assert set(row["target"]) == {"limit", "tolerated", "better"}
    cpu = result["rows"][0]["details"]["cpu_us_per_change"]
    assert all(0 < value < 10_000 for value in (*cpu["ours"], *cpu["peer"]))


def test_a_flag_out_of_range():
    assert bench("--rounds", "0").returncode == 2


@pytest.mark.parametrize(
    ("better", "ratio", "met", "tolerated"),
    [
        ("higher", 0.8, True, True),
        ("higher", 0.7, False, True),
        ("higher", 0.4, False, False),
        ("lower", 0.8, True, True),
        ("lower", 1.5, False, True),
        ("lower", 2.5, False, False),
    ],
)
def test_targets(better, ratio, met, tolerated):
    target = Target(0.8, 0.5, "higher") if better == "higher" else Target(1.2, 2.0, "lower")
    assert (target.met_by(ratio), target.tolerates(ratio)) == (met, tolerated)
    assert (target.missed_by(ratio) <= 0) == met


def test_rows_and_quantiles():
    pairs = [Pair(1.0, 2.0), Pair(3.0, 2.0), Pair(4.0, 2.0)]
    row = Row("key", "what", "about", "peer", "ms", pairs, Target(1.2, 2.0, "lower"))
    assert (row.ratios, row.ratio, row.ours, row.theirs) == ([0.5, 1.5, 2.0], 1.5, 3.0, 2.0)
    hundred = list(range(1, 101))
    assert [quantile(hundred, share) for share in (0.5, 0.99, 1.0, 0.0)] == [50, 99, 100, 1]
    assert quantile([7.0], 0.99) == 7.0
