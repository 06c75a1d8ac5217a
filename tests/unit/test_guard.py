"""The verdicts of `benchmarks.guard`. These tests give the counts of instructions. CI counts real instructions."""

import json

import pytest

from benchmarks.guard import RECORDS, judge, main

COUNTS = {
    "await": 1_000.0, "send": 3_000.0, "validate": 1_000.0, "hydrate": 2_000.0, "make": 1_000.0,
    "create_silent": 2_000.0, "create_heard": 4_000.0, "create_stamped": 5_000.0, "create_claimed": 5_500.0,
    "create_context": 6_000.0, "save": 9_000.0, "update": 8_000.0, "loop": 1_000.0, "deliver": 4_000.0,
    "deliver_batch": 4_500.0, "deliver_limited": 4_200.0, "deliver_context": 4_600.0, "own": 2_000.0,
    "own_claimed": 2_500.0, "publish": 500.0, "read_topic": 300.0,
}  # fmt: skip


@pytest.mark.parametrize(("counted", "holds"), [(2_900.0, True), (3_449.0, True), (3_451.0, False)])
def test_more_than_15_percent_above_the_record_fails(counted, holds):
    (send, *_) = judge(COUNTS | {"send": counted}, {"send": 3.0})
    assert send.holds is holds


def test_a_slower_python_does_not_change_the_verdict():
    (send, *_) = judge({name: count * 3 for name, count in COUNTS.items()}, {"send": 3.0})
    assert send.holds
    assert send.ratio == 3.0


def test_a_count_without_a_record_fails():
    assert not any(verdict.holds for verdict in judge(COUNTS, {}))


def test_every_counted_operation_has_a_record():
    assert json.loads(RECORDS.read_text("utf-8")).keys() == {verdict.name for verdict in judge(COUNTS, {})}


@pytest.mark.parametrize(("ci", "code"), [("", 0), ("true", 2)])
def test_without_valgrind_only_ci_fails(monkeypatch, capsys, ci, code):
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr("benchmarks.guard.shutil.which", lambda name: None)
    assert main([]) == code
    said = capsys.readouterr().err
    assert "apt-get install valgrind" in said or "Linux" in said
