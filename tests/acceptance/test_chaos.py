"""Very short runs of some chaos scenarios, and tests of how the chaos tests judge a run."""

import json
import subprocess
import sys

import pytest

from tests.chaos.__main__ import SCENARIOS, parse, why_skipped
from tests.chaos.figures import Event, Evidence, causes, figures
from tests.ledger import Entry
from tests.support import ROOT

# `model` and `reconnects` have tests of their own below. The other scenarios take longer: CI runs `make chaos`.
SMALL = {
    "kills": ("--seed", "11", "--faults", "2", "--writes", "500"),
    "hostile": ("--seed", "11", "--faults", "10", "--writes", "400"),
}


def chaos(*arguments):
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.chaos", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize("scenario", SMALL)
def test_a_short_run_of_a_scenario_passes(mongo, scenario, tmp_path):
    where = tmp_path / "figures.json"
    result = chaos(scenario, "--documents", "100", "--json", str(where), *SMALL[scenario])
    assert result.returncode == 0, result.stdout + result.stderr
    (told,) = json.loads(where.read_text())
    assert (told["scenario"], told["holds"]) == (scenario, True)
    by_name = {figure["name"]: figure["value"] for figure in told["figures"]}
    assert by_name["lost"] == by_name["transactional effects doubled"] == 0
    assert by_name["deliveries by the daemon"] > 150
    assert by_name["longest stall"] > 0
    assert f"seed {SMALL[scenario][1]}: " in result.stdout


@pytest.mark.exhaustive
def test_a_short_run_of_the_model_passes(mongo, tmp_path):
    where = tmp_path / "figures.json"
    result = chaos("model", "--seed", "5", "--faults", "20", "--json", str(where))
    assert result.returncode == 0, result.stdout + result.stderr
    (told,) = json.loads(where.read_text())
    by_name = {figure["name"]: figure["value"] for figure in told["figures"]}
    assert (by_name["sequences"], by_name["lost"]) == (20, 0)
    assert by_name["deliveries"] == by_name["deliveries that the model expects"] > 50


@pytest.mark.exhaustive
def test_a_short_run_of_reconnects_loses_nothing(mongo, tmp_path):
    where = tmp_path / "figures.json"
    result = chaos("reconnects", "--faults", "300", "--writes", "50", "--json", str(where))
    assert result.returncode == 0, result.stdout + result.stderr
    (told,) = json.loads(where.read_text())
    by_name = {figure["name"]: figure["value"] for figure in told["figures"]}
    assert (by_name["reconnects"] >= 300, by_name["lost"]) == (True, 0)


def test_an_unknown_scenario_is_an_error():
    result = chaos("kill")
    assert result.returncode == 2
    assert "there is no scenario 'kill'" in result.stderr


@pytest.mark.parametrize(("arguments", "ci", "why"), [((), "", "make it"), ((), "1", ""), (("kafka",), "", "")])
def test_a_scenario_without_its_program_is_skipped_except_on_request_or_in_ci(monkeypatch, arguments, ci, why):
    monkeypatch.setenv("CI", ci)
    lacking = SCENARIOS["kafka"]._replace(missing=lambda: "make it")
    assert why_skipped(lacking, parse(arguments)) == why
    assert why_skipped(SCENARIOS["kills"], parse(arguments)) == ""


def entry(n, *, name="a", term=1, origin="stream", delivery=None, pid=7, **changes):
    plain = Entry(name, n, "post_update", delivery or f"{name}{n}", term, "post", origin, n)
    return plain._replace(**{"receiver": "note", "pid": pid, "began": n, **changes})


# The application's own writes of document a are 2 and 4; the daemon was killed after 3.
GOOD = [
    entry(0),
    entry(1),
    entry(2, term=0, origin="process"),
    entry(3),
    entry(1, term=2, at=10, began=10, pid=8),
    entry(3, term=2, at=11, began=11, pid=8),
    entry(4, term=0, origin="process"),
    entry(5, term=2, at=12, began=12, pid=8),
]
ALL = [0, 1, 2, 3, 4, 5]


def judged(entries=GOOD, **changes):
    known = {"foreign": {"a": [0, 1, 3, 5]}, "own": {"a": [2, 4]}, "books": {"a": ALL}, "wanted": 1}
    known |= {"events": [Event(9, "kill", 7)], "peak_mb": 60.0, "seconds": 1.0}
    counted = figures(Evidence(**{**known, "entries": entries, **changes}), faults="kills")
    return {figure.name: figure.value for figure in counted if not figure.holds}, counted


def test_correct_deliveries_pass():
    wrong, counted = judged()
    assert wrong == {}
    values = {figure.name: figure.value for figure in counted}
    assert values["repeated"] == values["  after: kill"] == 2
    assert (values["deliveries by the daemon"], values["deliveries in process"]) == (6, 2)
    assert values["transactional effects"] == 6


@pytest.mark.parametrize(
    ("entries", "wrong"),
    [
        (GOOD[:-1], {"lost": 1}),
        (GOOD[:6] + GOOD[7:], {"lost": 1}),
        ([GOOD[1], GOOD[0], *GOOD[2:]], {"out of order within a term": 3}),
        ([*GOOD[:4], GOOD[5], GOOD[4], *GOOD[6:]], {"out of order within a term": 2}),
        ([*GOOD[:5], *GOOD[6:]], {"out of order within a term": 1}),
        ([*GOOD[:4], entry(3), *GOOD[4:]], {"out of order within a term": 1, "  after: nothing": 1}),
        ([*GOOD[:4], entry(3, attempt=2), *GOOD[4:]], {}),
        ([*GOOD, entry(2, term=2)], {"delivered by both": 1, "delivered by the wrong one": 1}),
        ([*GOOD, entry(6, term=2)], {"never written": 1}),
        ([*GOOD, entry(4, term=0, origin="process")], {"repeated in process": 1, "out of order in process": 1}),
        ([*GOOD[:5], GOOD[5]._replace(delivery="x"), *GOOD[6:]], {"repeated with another id": 1}),
        ([*GOOD[:-1], GOOD[-1]._replace(delivery="a3")], {"repeated with another id": 1}),
        ([*GOOD[:-1], GOOD[-1]._replace(at=40 * 10**9)], {"longest stall": pytest.approx(40, abs=0.1)}),
        ([*GOOD, entry(5, at=30, began=20)], {"begun in a term that was over": 1}),
        ([*GOOD, entry(5, at=30, began=4)], {}),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else None,
)
def test_errors_of_plain_receivers_are_found(entries, wrong):
    assert judged(entries)[0] == wrong


@pytest.mark.parametrize(
    ("late", "seconds", "wrong"),
    [
        ([2], 10.1, {}),
        ([2], 9.9, {"delivered by both": 1, "delivered by the wrong one": 1}),
        ([2, 4], 10.1, {"delivered by both": 1, "delivered by the wrong one": 1}),
    ],
)
def test_only_a_write_in_doubt_may_be_delivered_by_both_the_application_and_the_daemon(late, seconds, wrong):
    repeated = [*GOOD, *(entry(n, term=2, at=13, began=13, pid=8) for n in late)]
    found, counted = judged(repeated, durations={("a", 2): seconds, ("a", 4): 0.1})
    assert found == wrong
    values = {figure.name: figure.value for figure in counted}
    assert values["writes in doubt"] == values["delivered by both in doubt"] == (seconds > 10)


def test_a_foreign_write_is_never_in_doubt():
    entries = [*GOOD, entry(5, term=0, origin="process", at=13, began=13)]
    assert judged(entries, durations={("a", 5): 60.0})[0] == {
        "delivered by both": 1,
        "delivered by the wrong one": 1,
    }


@pytest.mark.parametrize(
    ("book", "wrong"),
    [
        ([0, 1, 2, 3, 4], {"transactional effects lost": 1}),
        ([0, 1, 2, 3, 4, 5, 5], {"transactional effects doubled": 1}),
        ([0, 1, 3, 2, 4, 5], {"transactional effects out of order": 1}),
        ([*ALL, 6], {"transactional effects without a write": 1}),
    ],
)
def test_errors_of_a_transactional_receiver_are_found(book, wrong):
    assert judged(books={"a": book})[0] == wrong


def test_doomed_writes_must_become_dead_letters():
    doomed = {"note": {("a", 5)}, "book": {("a", 4)}}
    book, known = {"a": [0, 1, 2, 3, 5]}, {"doomed": doomed, "entries": GOOD[:-1]}
    assert judged(**known, books=book, letters=doomed)[0] == {}
    assert judged(**known, books=book, letters={"note": {("a", 5)}})[0] == {"dead letters missing": 1}
    assert judged(letters={"note": {("a", 5)}})[0] == {"dead letters of deliverable writes": 1}


def test_unexpected_ends_high_memory_and_missing_faults_are_found():
    assert judged(deaths=["it fell over"])[0] == {"unexpected ends of processes": 1}
    assert judged(peak_mb=151.0)[0] == {"peak memory of a daemon": 151.0}
    assert judged(wanted=2)[0] == {"kills": 1}


def test_the_cause_of_a_repetition_is_the_last_fault_of_the_previous_process():
    events = [Event(5, "stop", 7), Event(6, "kill", 9), Event(20, "kill", 8)]
    repeated = [entry(1, pid=7), entry(1, term=2, pid=8, at=10), entry(1, term=3, pid=6, at=30)]
    assert causes(repeated, events) == {"stop": 1, "kill": 1}
    gone = [*events[:2], Event(9, "left cleanly", 7), events[2]]
    assert causes(repeated, gone, {"left cleanly"}) == {"stop": 1, "kill": 1}
    assert causes(repeated, [Event(9, "left cleanly", 7)], {"left cleanly"}) == {"left cleanly": 2}
    assert causes([entry(1), entry(1, attempt=2), entry(1, term=2, pid=8)], []) == {
        "another attempt": 1,
        "nothing": 1,
    }
