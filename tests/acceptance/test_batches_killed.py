"""A dispatcher that is killed in the middle of its batches: the next one repeats what has not ended."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.ledger import IMAGES, Ledger
from tests.support import Daemon, eventually_sync

APP = "tests.acceptance.apps.batches:registry"

DOCUMENTS, UPDATES = 40, 2


@pytest.fixture
def environment(mongo: Any, database: str, tmp_path: Path) -> dict[str, str]:
    return Ledger(tmp_path / "ledger", mongo.url, database).environment


def batches(tmp_path: Path, what: str) -> list[list[tuple[str, int, str]]]:
    """The events of the batches that have begun, or ended."""
    whole = (tmp_path / "ledger").read_text().splitlines(keepends=True)
    found = [json.loads(line) for line in whole if line.endswith("\n")]
    return [[(name, n, id_) for name, n, id_ in events] for said, events in found if said == what]


def events(tmp_path: Path, what: str) -> list[tuple[str, int, str]]:
    return [one for batch in batches(tmp_path, what) for one in batch]


def test_a_kill_repeats_the_events_of_open_batches_but_no_transaction(environment, foreign, tmp_path):
    """Nothing is lost. Repeated events keep their ids and the order of their document."""
    foreign.create_collection("accounts", **IMAGES)
    foreign.create_collection("counts")
    arguments = ("--lease", "2", "--save-interval", "0.1")
    killed = Daemon(APP, *arguments, cwd=tmp_path, **environment, LEDGER_SLOWNESS="0.6")
    try:
        killed.wait_started()
        accounts = foreign["accounts"]
        accounts.insert_many([{"name": f"{number}", "n": 0} for number in range(DOCUMENTS)])
        for _ in range(UPDATES):
            accounts.update_many({}, {"$inc": {"n": 1}})
        eventually_sync(lambda: len(batches(tmp_path, "end")) >= 2, what="some batches end")
        eventually_sync(lambda: len(batches(tmp_path, "begin")) > len(batches(tmp_path, "end")))
    finally:
        killed.kill()
    before = len(batches(tmp_path, "begin"))
    torn = {*events(tmp_path, "begin")} - {*events(tmp_path, "end")}
    assert torn, "the kill comes in the middle of a batch"
    wanted = {(f"{number}", n) for number in range(DOCUMENTS) for n in range(UPDATES + 1)}
    successor = Daemon(APP, *arguments, cwd=tmp_path, **environment)
    try:
        eventually_sync(lambda: {(name, n) for name, n, _ in events(tmp_path, "end")} >= wanted)
        eventually_sync(lambda: foreign["counts"].count_documents({}) == DOCUMENTS)
        assert successor.terminate() == 0
    finally:
        successor.kill()
    ids = defaultdict(set)
    for name, n, id_ in events(tmp_path, "begin"):
        ids[name, n].add(id_)
    assert {*ids} == wanted
    assert {len(own) for own in ids.values()} == {1}
    again = [one for batch in batches(tmp_path, "begin")[before:] for one in batch]
    assert torn <= {*again}
    for number in range(DOCUMENTS):
        own = [n for name, n, _ in again if name == f"{number}"]
        assert own == list(range(UPDATES + 1))[-len(own) :], "a suffix is repeated, in order"
    assert {row["n"] for row in foreign["counts"].find()} == {1}, "each transaction took effect once"
