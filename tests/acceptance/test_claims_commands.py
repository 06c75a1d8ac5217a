"""`dispatcher claims`, and claims in `dispatcher status`."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dispatcher.exceptions import ExitCode
from tests.books import book

FENCED = {"fenced_at": datetime.now(UTC) - timedelta(minutes=3), "fenced_by": "dispatcher"}


@pytest.fixture
def state(foreign, database) -> Any:
    """The state of a group without processes."""
    found = foreign.client[f"{database}_state"]
    found.positions.insert_one({"_id": database, "group": database, "partitions": 1})
    return found


def test_the_list_of_processes_begins_with_the_newest_beat(dispatcher, state, database):
    assert dispatcher("claims", "list").out == "No process has claimed anything.\n"
    state.claims.insert_many(
        [
            book(database, 1, silent=7_200, **FENCED),
            book(database, 2, silent=3_600, open=[1, 3, 7, 7], released=[5]),
            book(database, 3),
            book("another", 4),
        ]
    )
    listed = dispatcher("claims", "list", "--json").json
    assert [one["pid"] for one in listed] == [3, 2, 1]
    assert [one["alive"] for one in listed] == [True, False, False]
    assert [(one["open"], one["released"]) for one in listed] == [(2, 0), (4, 1), (2, 0)]
    assert [one["fenced_by"] for one in listed] == [None, None, "dispatcher"]
    assert (listed[0]["process"], listed[0]["host"], listed[0]["seconds"]) == (f"{3:016x}", "web3", 600.0)
    shown = [line.split() for line in dispatcher("claims", "list").out.splitlines()]
    assert [words[1] for words in shown] == ["host", "web3", "web2", "web1"]
    assert [words[-1] for words in shown[1:3]] == ["alive", "silent"]
    assert "claims ended by a dispatcher" in " ".join(shown[3])
    assert "2 of 3; --limit 0 shows all." in dispatcher("claims", "list", "--limit", "2").out


def test_a_malformed_book_is_named_and_left_out(dispatcher, state, database):
    state.claims.insert_many([book(database, 1), book(database, 2, open="all")])
    listed = dispatcher("claims", "list", "--json")
    assert [one["pid"] for one in listed.json] == [1]
    assert "_state.claims is malformed: open:" in listed.error
    refused = dispatcher("claims", "release", f"{2:016x}", "--yes")
    assert refused.code == ExitCode.FAILED
    assert f"'{2:016x}'" in refused.error
    assert "Delete it" in refused.error


def test_the_claims_of_a_process_are_released_after_a_confirmation(dispatcher, state, database):
    process = f"{0xAB:016x}"
    state.claims.insert_many([book(database, 0xAB), book(database, 2, open=[])])
    asked = dispatcher("claims", "release", process, input="y\n")
    assert (asked.code, "--yes" in asked.error) == (ExitCode.USAGE, True)  # a pipe can't confirm
    assert state.claims.count_documents({"fenced_at": {"$exists": True}}) == 0
    released = dispatcher("claims", "release", process.upper(), "--yes").out
    assert f"Released 2 open claims of process {process} (web171, pid 171)." in released
    assert "goes on under a new id within 2 min" in released
    (ended,) = state.claims.find({"fenced_at": {"$exists": True}})
    assert (ended["_id"], ended["fenced_by"], ended["beat"]) == (process, "operator", 5)
    again = dispatcher("claims", "release", process)
    assert (again.code, "have ended already" in again.out) == (ExitCode.OK, True)
    told = {"process": process, "changed": False, "open": 2, "alive": False}
    assert dispatcher("claims", "release", process, "--json").json == told
    assert "claims ended by an operator" in dispatcher("claims", "list").out


def test_the_message_about_the_release_of_a_silent_process_mentions_no_new_id(dispatcher, state, database):
    state.claims.insert_one(book(database, silent=3_600))
    released = dispatcher("claims", "release", f"{1:016x}", "--yes")
    assert (released.code, "new id" in released.out) == (ExitCode.OK, False)


@pytest.mark.parametrize(
    ("process", "says"),
    [
        ("ffff", "has no claims of a process 'ffff'. `dispatcher claims list` lists"),
        ("", "has no claims of a process ''"),
        (f"{9:016x}", f"has no claims of a process '{9:016x}'"),
        ("000", f"The ids of several processes begin with '000': {1:016x} (web1, pid 1), {2:016x} (web2, pid 2)."),
    ],
)
def test_an_unknown_or_ambiguous_process_is_an_error(dispatcher, state, database, process, says):
    state.claims.insert_many([book(database, 1), book(database, 2), book("another", 9)])
    refused = dispatcher("claims", "release", process, "--yes")
    assert refused.code == ExitCode.NOT_FOUND
    assert says in refused.error
    assert state.claims.count_documents({"fenced_at": {"$exists": True}}) == 0


def test_the_status_shows_claims(dispatcher, state, database):
    assert "0 open, 0 processes" in dispatcher("status").out
    claims = {"waiting": 3, "oldest_seconds": 12.5, "processes": {f"{2:016x}": 3}}
    now = datetime.now(UTC)
    member = {"_id": "m1", "group": database, "host": "here", "pid": 7, "seen_at": now, "lease_seconds": 600}
    state.members.insert_one({**member, "stats": {"taken_over": 7, "claims": claims}})
    dead = {"_id": "m0", "seen_at": now - timedelta(days=1)}
    state.members.insert_one({**member, **dead, "stats": {"taken_over": 5, "claims": claims}})
    state.claims.insert_many([book(database, 1), book(database, 2, **FENCED), book(database, 3, **FENCED)])
    of_document = {"group": database, "receiver": "r", "due_at": now, "wall_time": now - timedelta(seconds=90)}
    waiting = ("claimed", "orphaned", "orphaned")
    state.held.insert_many([{**of_document, "lane": str(n), "state": one} for n, one in enumerate(waiting)])
    told = dispatcher("status", "--json").json["claims"]
    books = told.pop("books")
    assert [(one["pid"], one["waiting"], one["alive"]) for one in books] == [(2, 3, False), (1, 0, True)]
    assert 90 <= told.pop("oldest_seconds") < 600
    expected = {
        "processes": 1,
        "open": 2,
        "released": 0,
        "waiting": 3,
        "parked": 1,
        "taken_over": 7,
        "orphaned": 2,
    }
    assert told == expected
    shown = " ".join(dispatcher("status").out.split())
    assert (
        "claims 2 open, 1 process deliveries wait for them: 3 in memory, 1 parked, the oldest for 1 min" in shown
    )
    assert "7 taken over, 2 orphaned" in shown
    assert f"{2:016x} web2 2 " in shown
