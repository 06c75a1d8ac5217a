"""`dispatcher position set` and `reset` with a stopped, a killed and a running daemon."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import Timestamp

from dispatcher.exceptions import ExitCode
from tests.acceptance.commands import Dispatcher
from tests.ledger import APP, Ledger
from tests.support import Daemon, daemon, eventually_sync


@pytest.fixture
def ledger(mongo, database, tmp_path) -> Ledger:
    return Ledger(tmp_path / "ledger", mongo.url, database)


@pytest.fixture
def state(foreign) -> Any:
    return foreign.client[f"{foreign.name}_state"]


@pytest.fixture
def start(ledger, database, tmp_path):
    def start(*arguments: str) -> Any:
        environment = {**ledger.environment, "DISPATCHER_STATE_DATABASE": f"{database}_state"}
        return daemon(APP, "--save-interval", "0.05", *arguments, cwd=tmp_path, **environment)

    return start


def write(foreign: Any, *numbers: int) -> None:
    foreign["accounts"].insert_many([{"name": f"a{n}", "n": n} for n in numbers])


def delivered(ledger: Ledger) -> list[int]:
    return [entry.n for entry in ledger()]


def wait_for(ledger: Ledger, *numbers: int) -> None:
    eventually_sync(lambda: sorted(delivered(ledger)) == sorted(numbers), what=f"{numbers} are delivered")


def saved(running: Daemon, state: Any, group: str) -> None:
    """Stops the daemon cleanly, and checks that no lease is held."""
    assert running.terminate() == ExitCode.OK
    assert [one["owner"] for one in state.positions.find({"group": group, "partition": {"$exists": 1}})] == [None]


def just_now() -> str:
    """A time just before all writes of a test. Large writes of earlier tests may have removed older history."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@pytest.mark.slow
def test_a_move_back_repeats_deliveries_and_a_move_forward_records_a_gap(
    ledger, foreign, state, start, dispatcher: Dispatcher, database
):
    begin = just_now()
    with start() as running:
        running.wait_started()
        write(foreign, 1, 2)
        wait_for(ledger, 1, 2)
        alive = dispatcher("position", "set", "--at", "now", "--yes")
        assert (alive.code, "1 dispatcher is alive" in alive.error) == (ExitCode.STILL_RUNNING, True)
        assert dispatcher("position", "reset", "--yes").code == ExitCode.STILL_RUNNING
        saved(running, state, database)
    write(foreign, 3)
    term = state.positions.find_one({"_id": f"{database}:0"})["term"]
    (back,) = dispatcher("position", "set", "--at", begin, "--yes", "--json").json
    assert back["gap"] is None
    assert datetime.fromisoformat(back["after"]) < datetime.fromisoformat(back["before"])
    with start() as running:
        running.wait_started()
        wait_for(ledger, 1, 1, 2, 2, 3)
        assert len({entry.delivery for entry in ledger()}) == 3  # the same deliveries again
        assert ledger()[-1].term > term + 1
        saved(running, state, database)
    write(foreign, 4)
    skipped = dispatcher("position", "set", "--at", "now", "--yes")
    assert (skipped.code, "a gap is recorded" in skipped.out) == (ExitCode.OK, True)
    assert "moved by hand" in dispatcher("status").out
    (gap,) = state.gaps.find()
    assert (gap["kind"], gap["partition"], gap["namespace"]) == ("position_set", 0, None)
    assert gap["from_time"] < gap["to_time"]
    with start() as running:
        running.wait_started()
        write(foreign, 5)
        wait_for(ledger, 1, 1, 2, 2, 3, 5)


@pytest.mark.slow
def test_after_a_reset_the_next_start_begins_at_the_current_time(
    ledger, foreign, state, start, dispatcher: Dispatcher, database
):
    with start("--partitions", "2") as running:
        running.wait_started()
        write(foreign, 1)
        wait_for(ledger, 1)
        running.kill()  # the command sees that the process is dead, so its lease does not count
    write(foreign, 2)
    before = {one["_id"]: one["term"] for one in state.positions.find({"partition": {"$exists": 1}})}
    moved = dispatcher("position", "reset", "--yes", "--json").json
    assert [(one["partition"], one["after"]) for one in moved] == [(0, None), (1, None)]
    assert {one["partition"]: one["to_time"] for one in state.gaps.find()} == {0: None, 1: None}
    write(foreign, 3)
    shown = dispatcher("position", "show", "--json").json
    assert [(one["owner"], one["token"]) for one in shown] == [("none", None)] * 2
    assert dispatcher("position", "show", "--max-age", "60").code == ExitCode.FAILED
    with start() as running:
        running.wait_started()
        assert running.lines("dispatcher.started")[0]["begins"] == "now"
        write(foreign, 4)
        wait_for(ledger, 1, 4)
        after = {one["_id"]: one["term"] for one in state.positions.find({"partition": {"$exists": 1}})}
        assert all(after[name] > before[name] for name in before)
        eventually_sync(lambda: dispatcher("position", "show", "--max-age", "60").code == ExitCode.OK)
        assert dispatcher("position", "show").out.count("fingerprint") == 2


def test_with_force_a_running_dispatcher_continues_at_the_new_position(
    ledger, foreign, state, start, dispatcher: Dispatcher, database
):
    begin = just_now()
    with start("--lease", "1") as running:
        running.wait_started()
        write(foreign, 1)
        wait_for(ledger, 1)
        (moved,) = dispatcher("position", "set", "--at", begin, "--yes", "--force", "--json").json
        assert moved["gap"] is None
        wait_for(ledger, 1, 1)
        assert running.lines("lease.lost")
        first, second = ledger()
        assert second.term > first.term + 1
        write(foreign, 2)
        wait_for(ledger, 1, 1, 2)


@pytest.fixture
def position(foreign, state) -> Any:
    """The position of a group that never had a dispatcher."""
    time = foreign.client.admin.command("ping")["operationTime"]
    state.positions.insert_one({"_id": foreign.name, "group": foreign.name, "partitions": 1})
    document = {
        "_id": f"{foreign.name}:0",
        "group": foreign.name,
        "partition": 0,
        "partitions": 1,
        "owner": None,
        "term": 7,
        "beat": 3,
        "token": f"82{time.time:08X}{time.inc:08X}",
        "cluster_time": time,
        "fingerprint": "f",
        "ahead": b"0123456789",
        "until": f"82{time.time:08X}{time.inc:08X}",
    }
    state.positions.insert_one(document)
    return document


@pytest.mark.parametrize(
    ("at", "code", "says"),
    [
        ("2100-01-01", ExitCode.POSITION, "is in the future"),
        ("yesterdayish", ExitCode.USAGE, "'yesterdayish' is not a point in time"),
        ("82zz", ExitCode.USAGE, "is not a point in time"),
        ("825E0BE100000000012", ExitCode.USAGE, "is not a point in time"),
        ("", ExitCode.USAGE, "is not a point in time"),
    ],
)
def test_an_impossible_time_is_refused(position, state, dispatcher: Dispatcher, at, code, says):
    ran = dispatcher("position", "set", "--at", at, "--yes")
    assert (ran.code, says in ran.error) == (code, True), ran
    assert state.positions.find_one({"_id": position["_id"]}) == position
    assert state.gaps.count_documents({}) == 0


@pytest.mark.parametrize("at", ["2020-01-01", "825E0BE1000000000129295A1004", "1577836800,1"])
def test_a_time_outside_of_the_oplog_is_refused(position, state, dispatcher: Dispatcher, at):
    """The lost history is simulated. test_history_lost.py has an oplog that has really lost its history."""
    lost = {"failCommands": ["getMore"], "errorCode": 286, "appName": "mongoz-dispatcher-cli"}
    state.client.admin.command("configureFailPoint", "failCommand", mode={"times": 1}, data=lost)
    try:
        ran = dispatcher("position", "set", "--at", at, "--yes")
    finally:
        state.client.admin.command("configureFailPoint", "failCommand", mode="off")
    assert ran.code == ExitCode.HISTORY_LOST
    assert "does not reach back to 2020-01-01T00:00:00+00:00: it begins" in ran.error
    assert state.positions.find_one({"_id": position["_id"]}) == position
    assert state.gaps.count_documents({}) == 0


def test_a_position_moves_only_if_it_exists_and_the_operator_confirms(position, state, dispatcher: Dispatcher):
    for arguments in (("set", "--at", "now"), ("reset",)):
        ran = dispatcher("position", *arguments)
        assert (ran.code, "--yes" in ran.error) == (ExitCode.USAGE, True)
    assert dispatcher("position", "set", "--yes").code == ExitCode.USAGE  # --at is missing
    other = dispatcher("position", "reset", "--yes", "--group", "nobodys")
    assert other.code == ExitCode.NOT_FOUND
    assert state.positions.find_one({"_id": position["_id"]}) == position
    state.positions.delete_one({"_id": position["group"]})
    unknown = dispatcher("position", "reset", "--yes")
    assert (unknown.code, "dispatcher setup" in unknown.error) == (ExitCode.NOT_FOUND, True)


def test_a_token_and_a_cluster_time_are_used_unchanged(position, state, dispatcher: Dispatcher):
    where = {"_id": position["_id"]}
    time = position["cluster_time"]
    token = position["token"] + "2B0229296E04"
    assert dispatcher("position", "set", "--at", token.lower(), "--yes").code == ExitCode.OK
    found = state.positions.find_one(where)
    assert (found["token"], found["cluster_time"], found["term"], found["beat"]) == (token, time, 8, 4)
    assert (found["fingerprint"], found["ahead"]) == ("", b"")
    assert dispatcher("position", "set", "--at", f"{time.time},{time.inc}", "--yes").code == ExitCode.OK
    assert state.positions.find_one(where)["cluster_time"] == Timestamp(time.time, time.inc)
    late = (datetime.now(UTC) - timedelta(seconds=0)).isoformat()
    assert dispatcher("position", "set", "--at", late, "--yes").code == ExitCode.OK
