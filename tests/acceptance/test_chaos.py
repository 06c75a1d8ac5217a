"""`make chaos` in short, and that its judgement would not miss anything."""

import subprocess
import sys

import pytest

from tests.chaos.figures import Evidence, figures
from tests.ledger import Entry
from tests.support import ROOT


def test_three_kills(mongo):
    result = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.chaos", "--kills", "3", "--writes", "1500", "--seed", "11"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "seed 11: 1,500 writes on 200 documents, 3 kills" in result.stdout
    for figure in ("lost", "out of order", "repeated by the daemon", "longest stall", "peak memory of a daemon"):
        assert f"\n {figure} " in result.stdout


def entry(n, *, name="a", term=1, origin="stream", delivery=None):
    return Entry(name, n, "post_update", delivery or f"{name}{n}", term, "post", origin, n)


# Of document a, 2 and 4 are the application's own writes; the daemon was killed after 3.
GOOD = [
    entry(0),
    entry(1),
    entry(2, term=0, origin="process"),
    entry(3),
    entry(1, term=2),
    entry(3, term=2),
    entry(4, term=0, origin="process"),
    entry(5, term=2),
]


def judged(entries, **changes):
    known = {"foreign": {"a": [0, 1, 3, 5]}, "own": {"a": [2, 4]}, "kills": 1, "deaths": [], "peak_mb": 60.0}
    counted = figures(Evidence(**{**known, "entries": entries, "seconds": 1.0, **changes}))
    return {figure.name: figure.value for figure in counted if not figure.holds}, counted


def test_what_is_right_is_not_called_wrong():
    wrong, counted = judged(GOOD)
    assert wrong == {}
    values = {figure.name: figure.value for figure in counted}
    assert values["repeated by the daemon"] == 2
    assert (values["deliveries by the daemon"], values["deliveries in process"]) == (6, 2)


@pytest.mark.parametrize(
    ("entries", "wrong"),
    [
        (GOOD[:-1], {"lost": 1}),
        (GOOD[:6] + GOOD[7:], {"lost": 1}),
        ([GOOD[1], GOOD[0], *GOOD[2:]], {"out of order": 3}),
        ([*GOOD[:4], GOOD[5], GOOD[4], *GOOD[6:]], {"out of order": 2}),
        ([*GOOD[:5], *GOOD[6:]], {"out of order": 1}),
        ([*GOOD, entry(2, term=2)], {"delivered by both": 1, "delivered by the wrong one": 1}),
        ([*GOOD, entry(6, term=2)], {"never written": 1}),
        ([*GOOD, entry(4, term=0, origin="process")], {"repeated in process": 1, "out of order in process": 1}),
        ([*GOOD[:5], entry(3, term=2, delivery="x"), *GOOD[6:]], {"repeated with another id": 1}),
        ([*GOOD[:-1], entry(5, term=2, delivery="a3")], {"repeated with another id": 1}),
        ([*GOOD[:-1], GOOD[-1]._replace(at=40 * 10**9)], {"longest stall": pytest.approx(40, abs=0.1)}),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else None,
)
def test_what_is_wrong_is_found(entries, wrong):
    assert judged(entries)[0] == wrong


def test_what_else_must_not_be():
    assert judged(GOOD, deaths=["it fell over"])[0] == {"ended other than it should": 1}
    assert judged(GOOD, peak_mb=151.0)[0] == {"peak memory of a daemon": 151.0}
