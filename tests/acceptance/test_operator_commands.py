"""Commands for a running group: status, dead letters, pauses, and errors."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bson import ObjectId

from dispatcher.exceptions import ExitCode
from tests.support import Daemon, daemon, eventually_sync

APP = "tests.acceptance.apps.failing:registry"


# The ids of the orders by number.
KEYS = {n: ObjectId(f"64b7f0f0f0f0f0f0f0f0f0f{n}") for n in range(1, 5)}


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """The receiver `invoice` fails while this file exists."""
    path = tmp_path / "broken"
    path.touch()
    return path


@pytest.fixture
def environment(mongo, database, broken) -> dict[str, str]:
    return {
        "FAILING_URL": mongo.url,
        "FAILING_GROUP": database,
        "FAILING_BROKEN": str(broken),
        "DISPATCHER_STATE_DATABASE": f"{database}_state",
    }


@pytest.fixture
def running(environment, tmp_path) -> Iterator[Daemon]:
    with daemon(APP, "--save-interval", "0.1", cwd=tmp_path, **environment) as started:
        started.wait_started()
        yield started


@pytest.fixture
def letters(running, foreign) -> list[str]:
    """Ids of three dead letters, the oldest first."""
    foreign["orders"].insert_many([{"_id": KEYS[n], "number": n} for n in (1, 2, 3)])
    state = foreign.client[f"{foreign.name}_state"]
    eventually_sync(lambda: state.held.count_documents({}) == 3)
    return [one["_id"] for one in state.held.find().sort("token", 1)]


def are_listed(letters, dispatcher):
    listed = dispatcher("dead-letters", "list", "--json").json
    assert [one["_id"] for one in listed] == letters[::-1]  # newest first
    assert "no invoice for 1: [red]the printer is on fire[/]" in dispatcher("dead-letters", "list").out
    for filters, count in (
        (("--receiver", "invoice"), 3),
        (("--receiver", "archive"), 0),
        (("--signal", "post_delete"), 0),
        (("--reason", "failed"), 3),
        (("--key", str(KEYS[2])), 1),
        (("--key", f'{{"$oid": "{KEYS[2]}"}}'), 1),
        (("--key", "2"), 0),
        (("--since", "5min"), 3),
        (("--until", "5min"), 0),
        (("--since", "2020-01-01", "--until", "2020-01-02T03:04:05+02:00"), 0),
        (("--limit", "2"), 2),
    ):
        assert len(dispatcher("dead-letters", "list", *filters, "--json").json) == count, filters
    assert "2 of 3" in dispatcher("dead-letters", "list", "--limit", "2").out
    shown = dispatcher("dead-letters", "show", letters[0][:20])
    assert "no invoice for 1: [red]the printer is on fire[/]" in shown.out
    assert "failing.py" in shown.out
    assert '"number": 1' in shown.out
    whole = dispatcher("dead-letters", "show", letters[0], "--json").json
    assert whole["parts"]["document"] == {"_id": {"$oid": str(KEYS[1])}, "number": 1}
    assert "ConnectionError" in whole["error"]["traceback"]


def is_unwell(dispatcher):
    """Waits until the status says that the receiver is failing."""
    eventually_sync(lambda: dispatcher("status", "--json").json["health"]["health"] == "failing", within=30)
    told = {one["receiver"]: one["health"] for one in dispatcher("status", "--json").json["health"]["receivers"]}
    assert told["invoice"] == "failing"
    shown = dispatcher("status").out
    assert re.search(r"^health +failing: invoice is failing", shown, re.MULTILINE)
    assert re.search(r"^failing +invoice +post_save", shown, re.MULTILINE)


def are_dropped(letters, dispatcher, foreign):
    state = foreign.client[f"{foreign.name}_state"].held
    asked = dispatcher("dead-letters", "drop", "--all", input="y\n")
    assert (asked.code, "--yes" in asked.error) == (ExitCode.USAGE, True)  # a pipe can't confirm
    assert state.count_documents({}) == 3
    state.update_one({"_id": letters[2]}, {"$set": {"retrying_since": None}})
    dropped = dispatcher("dead-letters", "drop", "--key", str(KEYS[1]), "--yes")
    assert dropped.out == "1 dropped.\n"
    rest = dispatcher("dead-letters", "drop", "--all", "--yes", "--json").json
    assert {what: [one["letter"] for one in some] for what, some in rest.items()} == {
        "dropped": [letters[1]],
        "kept": [letters[2]],
    }
    assert [one["_id"] for one in state.find()] == [letters[2]]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("retry",), "--all"),
        (("drop",), "--all"),
        (("drop", "x", "--all"), "not both"),
        (("list", "--since", "yesterdayish"), "'yesterdayish' is not a time"),
        (("list", "--reason", "bad luck"), "bad luck"),
        (("list", "--limit", "-1"), "--limit"),
    ],
)
def test_wrong_arguments_of_the_commands_for_dead_letters_are_errors(dispatcher, arguments, says):
    ran = dispatcher("dead-letters", *arguments)
    assert ran.code == ExitCode.USAGE
    assert says in ran.error


def test_a_receiver_is_paused_and_resumed(running, letters, dispatcher, foreign, broken):
    broken.unlink()
    assert dispatcher("pause", "invoice").out == "invoice is paused\n"
    assert dispatcher("pause", "invoice", "--json").json == {"receiver": "invoice", "changed": False}
    eventually_sync(lambda: running.lines("dispatcher.paused"))
    foreign["orders"].insert_one({"_id": KEYS[4], "number": 4})
    status = eventually_sync(
        lambda: found if (found := dispatcher("status", "--json").json)["parked_deliveries"] else None
    )
    assert status["paused"][0]["receiver"] == "invoice"
    assert status["parked"][0]["reason"] == "paused"
    unknown = dispatcher("pause", "invoise")
    assert (unknown.code, "Did you mean 'invoice'?" in unknown.error) == (ExitCode.NOT_FOUND, True)
    assert "everything is paused" in dispatcher("pause").out
    resumed = dispatcher("resume")
    assert resumed.out == "the pause of everything has ended\nstill paused: invoice\n"
    assert "invoice is resumed" in dispatcher("resume", "invoice").out
    eventually_sync(lambda: not dispatcher("status", "--json").json["parked_deliveries"])


def test_an_unknown_group_is_an_error(dispatcher, mongo, foreign):
    nothing = dispatcher("status")
    assert (nothing.code, "no state of dispatchers" in nothing.error) == (ExitCode.NOT_FOUND, True)
    positions = foreign.client[f"{foreign.name}_state"].positions
    positions.insert_many([{"_id": f"{name}:0", "group": name, "partition": 0} for name in ("billing", "shop")])
    several = dispatcher("status")
    assert several.code == ExitCode.USAGE
    assert "billing, shop" in several.error
    unknown = dispatcher("status", "--group", "bilking")
    assert (unknown.code, "Did you mean 'billing'?" in unknown.error) == (ExitCode.NOT_FOUND, True)
    assert dispatcher("status", "--group", "shop", "--json").json["group"] == "shop"


STATUS = """
import sys
from dispatcher.cli import app
try:
    app(["status"])
finally:
    print("loaded:", sorted({"pydantic_settings", "pymongo", "starlette", "uvicorn"} & sys.modules.keys()))
"""


def test_the_status_loads_the_driver_but_neither_pydantic_settings_nor_a_web_server(mongo, foreign):
    state = f"{foreign.name}_state"
    foreign.client[state].positions.insert_one({"_id": "shop:0", "group": "shop", "partition": 0})
    environment = {**os.environ, "DISPATCHER_URL": mongo.url, "DISPATCHER_STATE_DATABASE": state}
    done = subprocess.run(
        [sys.executable, "-c", STATUS], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert "group         shop" in done.stdout
    assert done.stdout.splitlines()[-1] == "loaded: ['pymongo']"


def test_an_unreachable_server_is_an_error(dispatcher, monkeypatch):
    monkeypatch.setattr("dispatcher.cli.connecting._SELECTION_TIMEOUT_MS", 200)
    for command in (("status",), ("dead-letters", "list"), ("pause",)):
        ran = dispatcher(*command, "--url", "mongodb://me:secret@127.0.0.1:1/")
        assert ran.code == ExitCode.CANNOT_CONNECT
        assert "secret" not in ran.error
    ran = dispatcher("status", "--url", "mongodb://me:secret@host:port/")
    assert (ran.code, "secret" in ran.error) == (ExitCode.CANNOT_CONNECT, False)
    monkeypatch.delenv("DISPATCHER_URL")
    assert dispatcher("status").code == ExitCode.USAGE


def is_shown(letters, dispatcher, foreign):
    shown = dispatcher("status")
    assert shown.code == 0
    assert f"group         {foreign.name}" in shown.out
    assert "holds the position for another" in shown.out
    assert "invoice   post_save" in shown.out
    status = eventually_sync(
        lambda: (
            found
            if (found := dispatcher("status", "--json").json)["members"] and found["members"][0]["stats"]
            else None
        ),
        what="the daemon's report",
    )
    assert [one["alive"] for one in status["members"]] == [True]
    assert {one["name"] for one in status["members"][0]["receivers"]} == {"invoice", "archive"}
    assert status["partitions"][0]["owner"] == status["members"][0]["id"]
    assert status["dead_letter_count"] == 3


def test_each_retried_dead_letter_has_an_outcome(running, letters, dispatcher, broken, foreign):
    first = dispatcher("dead-letters", "retry", letters[0], "--json")
    assert first.code == ExitCode.FAILED
    assert [(one["letter"], one["result"]) for one in first.json] == [(letters[0], "failed")]
    broken.unlink()
    several = dispatcher("dead-letters", "retry", letters[1][:20])
    assert (several.code, "delivered" in several.out) == (ExitCode.OK, True)
    rest = dispatcher("dead-letters", "retry", "--receiver", "invoice", "--json")
    assert rest.code == ExitCode.OK
    assert sorted(one["letter"] for one in rest.json) == sorted([letters[0], letters[2]])
    assert dispatcher("dead-letters", "list").out == "There are no dead letters.\n"


@pytest.mark.slow
def test_dead_letters_of_a_renamed_receiver_are_retried(
    running, letters, environment, dispatcher, broken, tmp_path
):
    assert running.terminate() == ExitCode.OK
    broken.unlink()
    environment["FAILING_NAMES"] = "bill statement invoice"  # renamed twice
    with daemon(APP, "--save-interval", "0.1", cwd=tmp_path, **environment) as renamed:
        renamed.wait_started()
        ran = dispatcher("dead-letters", "retry", "--all", "--json")
        assert ran.code == ExitCode.OK, ran.error
        assert sorted((one["letter"], one["result"]) for one in ran.json) == [
            (letter, "delivered") for letter in sorted(letters)
        ]


@pytest.mark.slow
def test_an_impossible_retry_changes_nothing(running, letters, dispatcher, foreign):
    state = foreign.client[f"{foreign.name}_state"].held
    state.update_one({"_id": letters[0]}, {"$set": {"receiver": "refund", "receiver_id": "00" * 8}})
    before = list(state.find().sort("_id"))
    gone = dispatcher("dead-letters", "retry", "--all")
    assert gone.code == ExitCode.NOT_FOUND
    assert "1 to refund (post_save of" in gone.error
    unknown = dispatcher("dead-letters", "retry", letters[1], "nonsense")
    assert (unknown.code, "'nonsense'" in unknown.error) == (ExitCode.NOT_FOUND, True)
    assert running.terminate() == ExitCode.OK
    alone = dispatcher("dead-letters", "retry", letters[1])
    assert (alone.code, "No dispatcher" in alone.error) == (ExitCode.NOT_RUNNING, True)
    assert "ago; no dispatcher is alive" in dispatcher("status").out
    assert list(state.find().sort("_id")) == before


def test_dead_letters_are_shown_listed_and_dropped_after_a_confirmation(running, letters, dispatcher, foreign):
    """This is one test, because a daemon takes a second to start."""
    is_shown(letters, dispatcher, foreign)
    are_listed(letters, dispatcher)
    is_unwell(dispatcher)
    are_dropped(letters, dispatcher, foreign)


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands(shell):
    words = {"bash": {"COMP_WORDS": "dispatcher dead", "COMP_CWORD": "1"}}.get(
        shell, {"_TYPER_COMPLETE_ARGS": "dispatcher dead", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    )
    environment = {**os.environ, "_DISPATCHER_COMPLETE": f"complete_{shell}", **words}
    command = [str(Path(sys.executable).parent / "dispatcher")]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert "dead-letters" in ran.stdout, ran.stderr
