"""A very short run of `make bench` has a result of the documented shape. The test does not judge the figures."""

import json
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from benchmarks import peers
from benchmarks.busy import Busy, Point, measure_busy
from benchmarks.cli import _Run, main
from benchmarks.contestants import BenchmarkFailed
from benchmarks.figures import Measured, Pair, Row, Target, quantile
from benchmarks.growth import DIMENSIONS, Grown
from benchmarks.pages import write_growth, write_results
from benchmarks.plan import Plan
from benchmarks.report import verdict_of
from benchmarks.setting import Setting
from benchmarks.turns import Comparison, Side, measured_rows
from benchmarks.workers import Worker
from benchmarks.workloads.shape import Shape
from tests.support import ROOT

OUR_ROWS = [
    "load",
    *("create", "create_heard", "create_made", "create_stamped", "create_claimed", "create_claimed_heard"),
    *("delete_stamped", "delete_many_stamped", "save", "update"),
    *("send", "backlog", "backlog_busy"),
]
SUITES = ["load", "writes", "signals", "backlog"]  # other suites start many processes; CI measures all
PEER_ROWS = {"load_motor", "load_beanie", "load_mongoengine", "send_django", "send_blinker"}
MACHINE = dict.fromkeys(
    ("processor", "cores", "memory_gb", "system", "load_before", "load_after", "mongodb", "python", "pymongo",
     "pydantic", "uvloop", "mongoz-dispatcher"), "x",
) | {"peers": None}  # fmt: skip
SIZES = {
    "rounds": 1,
    "long_rounds": 1,
    "documents": 300,
    "loads": 2,
    "operations": 10,
    "sends": 1000,
    "changes": 2000,
    "writes": 40,
    "long": 2000,
    "claimed": 200,
    "waits": 100,
    "indexed": 100,
    "burst": 20,
    "large": 10,
    "computed": 40,
    "members": 2,
    "partitions": 8,
    "counted": 2,
}


def bench(*arguments):
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def sizes(**changes):
    return [
        word for name, value in (SIZES | changes).items() for word in (f"--{name.replace('_', '-')}", str(value))
    ]


def check_rows(rows, rounds):
    for row in rows:
        number = 1 if row["key"].startswith("memory") else rounds
        assert len(row["ours"]) == len(row["limit"]) == len(row["ratios"]) == number
        assert all(value > 0 for value in (*row["ours"], *row["limit"]))
        assert row["ratios"] == pytest.approx([a / b for a, b in zip(row["ours"], row["limit"], strict=True)])
        assert min(row["ratios"]) <= row["ratio"] <= max(row["ratios"])
        assert row["cpu"]
        for one in (row, row["cpu"]):
            if isinstance(one, str):
                continue
            assert len(one["ratios"]) == number
            assert all(value > 0 for value in (*one["ours"], *one["limit"]))
            if one["target"] is None:
                assert one["met"] is one["tolerated"] is None
            else:
                assert set(one["target"]) == {"limit", "tolerated", "better"}
                assert {type(one["met"]), type(one["tolerated"])} == {bool}


@pytest.mark.exhaustive
def test_a_run_prints_the_table_and_writes_all_rows(mongo, tmp_path):
    path = tmp_path / "result.json"
    run = bench(*SUITES, "--quick", "--no-peers", *sizes(), "--json", str(path))
    assert run.returncode == 0, run.stderr
    for word in ("load", "create, stamped", "send", "backlog", "CPU target"):
        assert word in run.stdout
    assert ">= 0.35x" in run.stdout
    assert "<= 1.1x" in run.stdout
    assert "MongoDB" in run.stdout
    assert "[d async for d in collection.find()]" in run.stdout  # not interpreted as markup
    assert "--peers has them" in run.stdout
    result = json.loads(path.read_text())
    assert set(result) == {"format", "at", "machine", "plan", "rows"}
    assert result["plan"] == SIZES | {"rate": 200.0}
    assert {"processor", "cores", "load_before", "load_after", "mongodb", "pymongo"} <= set(result["machine"])
    assert result["machine"]["peers"] is None
    assert [row["key"] for row in result["rows"]] == OUR_ROWS
    check_rows(result["rows"], 1)
    rows = {row["key"]: row for row in result["rows"]}
    cpu = rows["backlog"]["cpu"]
    assert all(0 < value < 10_000 for value in (*cpu["ours"], *cpu["limit"]))
    assert (rows["create"]["target"]["better"], rows["load"]["target"]["better"]) == ("lower", "higher")
    assert rows["save"]["target"] is None


@pytest.mark.slow
@pytest.mark.skipif(peers.existing_peers() is None, reason="`python -m benchmarks signals --peers` installs them")
def test_a_run_with_peers_has_rows_against_each_peer(mongo, tmp_path):
    path = tmp_path / "result.json"
    run = bench("load", "signals", "--quick", *sizes(), "--json", str(path))
    assert run.returncode == 0, run.stderr
    result = json.loads(path.read_text())
    assert {row["key"] for row in result["rows"]} == {"load", "send", *PEER_ROWS}
    check_rows(result["rows"], 1)
    versions = result["machine"]["peers"]
    assert set(versions) == set(peers.PACKAGES)
    for name, packages in versions.items():
        assert f"{name} {packages[name]}" in run.stdout
        assert peers.PACKAGES.keys() & packages.keys() == {name}  # each peer has its own environment


@pytest.mark.slow
def test_suites_can_be_chosen(mongo, tmp_path):
    path = tmp_path / "result.json"
    assert bench("signals", "--no-peers", *sizes(rounds=2), "--json", str(path)).returncode == 0
    rows = json.loads(path.read_text())["rows"]
    assert [row["key"] for row in rows] == ["send"]
    check_rows(rows, 2)
    unknown = bench("signal")
    assert unknown.returncode == 2
    assert "load, writes, signals, backlog, latency" in unknown.stderr


@pytest.mark.slow
def test_the_environment_of_a_peer_is_made_again_if_its_packages_change(tmp_path, monkeypatch):
    """An environment is created once, and again when its packages change."""
    said, directory, packages = [], tmp_path / "peers", tmp_path / "packages.txt"
    packages.touch()
    monkeypatch.setattr(peers, "PACKAGES", {"one": ("--requirement", str(packages))})  # no package from a registry
    assert peers.existing_peers(directory) is None
    made = peers.set_up_peers(said.append, directory)
    assert made.versions == {"one": {}}
    assert made.python("one") == str(directory / "one" / "bin" / "python")
    assert len(said) == 1
    assert peers.set_up_peers(said.append, directory).versions == made.versions
    assert len(said) == 1
    monkeypatch.setattr(peers, "PACKAGES", {"one": ("./not-there",)})
    assert peers.existing_peers(directory) is None
    with pytest.raises(BenchmarkFailed, match=r"(?s)environment of one .*--no-peers does without.*not-there"):
        peers.set_up_peers(said.append, directory)
    assert peers.existing_peers(directory) is None  # an incomplete environment does not count


def test_peers_have_the_same_dependency_versions():
    """Both sides use the same version of a shared package."""

    def pins(name):
        lines = (ROOT / name).read_text().splitlines()
        return dict(line.lower().split("==") for line in lines if line and not line.startswith("#"))

    ours, theirs = pins("constraints.txt"), pins("benchmarks/peers.txt")
    common = ours.keys() & theirs.keys()
    assert {"pymongo", "pydantic", "pydantic_core", "uvloop", "email-validator"} <= common
    assert {name: ours[name] for name in common} == {name: theirs[name] for name in common}


def test_a_failing_side_is_an_error():
    with Worker(sys.executable, "nowhere", "mongodb://localhost") as worker:
        with pytest.raises(BenchmarkFailed, match=r"(?s)nowhere ended.*No module named"):
            worker.wait_ready()
        with pytest.raises(BenchmarkFailed, match="nowhere ended"):
            worker.measure("load", 1)


def test_a_side_with_too_few_documents_is_an_error(mongo):
    """A wrong count makes a wrong rate."""
    side = Side("mongoz_odm", "find")
    comparison = Comparison("key", "what", "about", "peer", side, side, "/s")
    plan = Plan(
        rounds=1,
        long_rounds=1,
        changes=1,
        writes=1,
        documents=1,
        loads=1,
        operations=1,
        sends=1,
        long=1,
        waits=1,
        indexed=1,
        burst=1,
        large=1,
        computed=1,
        members=1,
        partitions=1,
        counted=1,
        claimed=1,
    )
    with pytest.raises(BenchmarkFailed, match="987654321 documents should be loaded"):
        measured_rows(Setting(mongo.url, plan, None, lambda _: None), [comparison], portions=1, count=987654321)


def test_a_flag_out_of_range_is_an_error():
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
def test_a_ratio_meets_or_misses_its_target(better, ratio, met, tolerated):
    target = Target(0.8, 0.5, "higher") if better == "higher" else Target(1.2, 2.0, "lower")
    assert (target.met_by(ratio), target.tolerates(ratio)) == (met, tolerated)
    assert (target.missed_by(ratio) <= 0) == met


def make_row(pairs, target, cpu="none", key="key", what="what"):
    return Row(key=key, what=what, about="about", peer="peer", unit="/s", pairs=pairs, target=target, cpu=cpu)


@pytest.mark.parametrize(
    ("seconds", "cpu", "limit", "verdict", "is_tolerated"),
    [
        (0.9, 0.9, 1.0, "met", True),
        (9.0, 0.9, 1.0, "met, time missed", True),  # a busy machine
        (0.9, 1.2, 1.0, "missed 20%", True),
        (0.9, 1.4, 1.0, "missed 40%", False),
        (9.0, 0.9, None, "missed 800%", False),
        (0.9, 9.0, None, "met", True),
    ],
)
def test_the_verdict_uses_the_processor_time_if_that_time_has_a_target(seconds, cpu, limit, verdict, is_tolerated):
    target = None if limit is None else Target.cost(limit)
    row = make_row(
        [Pair(seconds, 1.0)], Target(1.0, 2.0, "lower"), Measured(pairs=[Pair(cpu, 1.0)], target=target)
    )
    assert verdict_of(row) == verdict
    assert row.judged.is_tolerated is is_tolerated


def test_a_target_without_a_tolerance_never_fails_a_check():
    row = make_row([Pair(9.0, 1.0)], Target(1.0, None, "lower"))
    assert (row.is_met, row.is_tolerated, verdict_of(row)) == (False, True, "missed 800%")


@pytest.mark.parametrize(("cpu", "code"), [(1.2, 0), (1.4, 1)])
def test_a_check_fails_if_the_processor_time_is_beyond_the_tolerance(monkeypatch, tmp_path, capsys, cpu, code):
    measured = Measured(pairs=[Pair(cpu, 1.0)], target=Target.cost(1.0))
    rows = [make_row([Pair(1.0, 1.0)], None, measured), make_row([Pair(1.0, 1.0)], None)]
    monkeypatch.setattr("benchmarks.cli._measure", lambda *_: _Run(rows, MACHINE, Plan(**SIZES), []))
    assert main(["load", "--check", "--json", str(tmp_path / "result.json")]) == code
    assert ("1.40 of processor time is beyond 1.3" in capsys.readouterr().out) == bool(code)


def test_a_run_of_all_suites_writes_all_pages_even_if_a_suite_fails(mongo, monkeypatch, tmp_path, capsys):
    def fail(_setting):
        raise BenchmarkFailed("The daemon ended.")

    row = make_row([Pair(1.0, 1.0)], None)
    point = Point(10.0, 1.0, 2.0, 70.0, 40.0)
    grown = [Grown(one, [point for _ in one.values]) for one in DIMENSIONS]
    monkeypatch.setattr("benchmarks.cli._SUITES", {"first": fail, "second": lambda _: [row]})
    monkeypatch.setattr("benchmarks.cli.measure_growth", lambda *_, **__: grown)
    arguments = ["--no-peers", "--pages", str(tmp_path), "--json", str(tmp_path / "result.json")]
    assert main(arguments) == 2
    assert "The daemon ended." in capsys.readouterr().err
    assert {path.name for path in tmp_path.glob("*.md")} == {"results.md", "growth.md"}
    assert [one["key"] for one in json.loads((tmp_path / "result.json").read_text())["rows"]] == ["key"]


def test_a_row_has_the_medians_of_its_pairs():
    pairs = [Pair(1.0, 2.0), Pair(3.0, 2.0), Pair(4.0, 2.0)]
    row = make_row(pairs, Target(1.2, 2.0, "lower"))
    assert (row.ratios, row.ratio, row.ours, row.theirs) == ([0.5, 1.5, 2.0], 1.5, 3.0, 2.0)
    hundred = list(range(1, 101))
    assert [quantile(hundred, share) for share in (0.5, 0.99, 1.0, 0.0)] == [50, 99, 100, 1]
    assert quantile([7.0], 0.99) == 7.0


def test_each_page_has_its_rows_and_plots(tmp_path):
    target = Target(1.5, 1.0, "higher")
    rows = [
        make_row([Pair(3, 2), Pair(4, 2)], target, key=key, what=what)
        for key, what in (("a", "a < b"), ("kafka_b", "on Kafka"))
    ]
    result = {"machine": MACHINE, "at": "today", "plan": {"rounds": 2}, "rows": [{"key": row.key} for row in rows]}
    write_results(rows, result, tmp_path)
    for page, row, key in (("results", "a < b", "a"), ("kafka", "on Kafka", "kafka_b")):
        text = (tmp_path / f"{page}.md").read_text()
        assert f"| {row} | peer | 4/s | 2/s | 1.75x | 1.50..2.00 | >= 1.5x | - |  |  | met |" in text
        assert len([line for line in text.splitlines() if "met |" in line]) == 1
        assert f"- {row}, peer: about. No CPU ratio: none" in text
        assert json.loads((tmp_path / f"{page}.json").read_text())["rows"] == [{"key": key}]
    earlier = (tmp_path / "results.md").read_text()
    write_results(rows[1:], result, tmp_path)
    assert (tmp_path / "results.md").read_text() == earlier  # a run of one suite keeps the other pages
    growth = [Grown(one, [Point(10.0 * v, 1.0, 2.0, 70.0, 40.0) for v in one.values]) for one in DIMENSIONS]
    write_growth(growth, MACHINE, "today", tmp_path)
    pictures = [*tmp_path.glob("*.svg")]
    assert len(pictures) == 2 + 2 * len(DIMENSIONS)
    for picture in pictures:
        ElementTree.parse(picture)
    page = (tmp_path / "growth.md").read_text()
    assert all(one.says in page for one in DIMENSIONS)


@pytest.mark.slow
def test_a_busy_application_is_measured(mongo):
    shape = Shape(receivers=2, collections=2)
    point = measure_busy(mongo.url, Busy(shape, changes=300, dispatchers=2, timed=False))
    assert point.rate > 0
    assert 20 < point.memory_mb < 1_000
