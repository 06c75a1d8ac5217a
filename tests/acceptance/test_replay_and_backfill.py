"""`dispatcher replay` and `dispatcher backfill` as processes that are killed."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from typer.testing import CliRunner

from dispatcher.cli import app
from dispatcher.exceptions import ExitCode
from tests.ledger import APP, Ledger
from tests.support import PATIENCE, ROOT, eventually_sync

RECEIVER = "tests.acceptance.apps.ledger.note"


@pytest.fixture
def ledger(mongo, database, tmp_path):
    return Ledger(tmp_path / "ledger", mongo.url, database)


class Command:
    """The command line, with the environment of the ledger application."""

    def __init__(self, ledger: Ledger, cwd: Any) -> None:
        own = {"PYTHONPATH": str(ROOT), **ledger.environment, "LEDGER_SLOWNESS": "0.002"}
        self.environment: dict[str, str] = {**os.environ, **own}
        self._options: dict[str, Any] = {
            "cwd": cwd,
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
        }

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "dispatcher", *arguments], env=self.environment, **self._options
        )

    def __call__(self, *arguments: str, code: int = ExitCode.OK) -> Any:
        process = self.start(*arguments)
        stdout, stderr = process.communicate(timeout=PATIENCE)
        assert process.returncode == code, stdout + stderr
        return json.loads(stdout) if "--json" in arguments and stdout else stdout + stderr


@pytest.fixture
def command(ledger, tmp_path):
    return Command(ledger, tmp_path)


COUNT = 600


def write(foreign: Any) -> None:
    foreign["accounts"].insert_many([{"name": f"a{n}", "n": n} for n in range(COUNT)])


@pytest.mark.slow
@pytest.mark.parametrize("what", ["replay", "backfill"])
def test_a_killed_run_continues_without_a_loss(what, ledger, foreign, command):
    begin = datetime.now(UTC) - timedelta(seconds=1)
    write(foreign)
    arguments = [what, APP, "--receiver", RECEIVER, "--json", "--concurrency", "5"]
    if what == "replay":
        arguments += ["--since", begin.isoformat(), "--yes"]
    process = command.start(*arguments, "--rate", "500")
    eventually_sync(lambda: len(ledger()) >= 200)
    process.kill()
    process.communicate()
    told = len(ledger())
    assert told < COUNT
    outcome = command(*arguments)
    assert outcome["finished"] is True
    entries = ledger()
    assert {(e.name, e.n) for e in entries} == {(f"a{n}", n) for n in range(COUNT)}
    # A run saves every half second. The deliveries since the last save are repeated with the same ids.
    assert len(entries) - COUNT <= 400
    assert len({e.delivery for e in entries}) == COUNT
    assert {e.image for e in entries} == {"post" if what == "replay" else "current"}


@pytest.mark.slow
def test_sigterm_ends_a_run_with_a_hint_how_to_continue(ledger, foreign, command):
    write(foreign)
    process = command.start("backfill", APP, "--receiver", RECEIVER, "--rate", "500")
    eventually_sync(lambda: len(ledger()) >= 50)
    process.terminate()
    stdout, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == ExitCode.FAILED, stderr
    assert "stopped: run" in stdout
    run = stdout.split("--resume ")[1].split()[0]
    assert "finished" in command("backfill", APP, "--receiver", RECEIVER, "--resume", run)
    entries = ledger()
    assert len(entries) == COUNT  # no repetition
    assert {(e.name, e.n) for e in entries} == {(f"a{n}", n) for n in range(COUNT)}


@pytest.mark.slow
def test_a_replay_from_a_topic_needs_a_broker_and_a_backfill_needs_none(ledger, foreign, command):
    pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")
    foreign["accounts"].insert_one({"name": "a", "n": 1})
    command.environment |= {"DISPATCHER_KAFKA": "127.0.0.1:1", "DISPATCHER_CONNECT_TIMEOUT": "2"}
    assert command("backfill", APP, "--receiver", RECEIVER, "--json")["delivered"] == 1
    said = command("replay", APP, "--since", "1h", "--yes", code=ExitCode.KAFKA)
    assert "127.0.0.1:1" in said


def test_a_replay_for_named_receivers_and_a_continued_replay_ask_nothing(ledger, foreign, command):
    foreign["accounts"].insert_one({"name": "a", "n": 1})
    first = command("replay", APP, "--since", "1min", "--receiver", RECEIVER, "--json")
    assert (first["finished"], len(ledger())) == (True, 1)
    assert command("replay", APP, "--resume", first["run"], "--json")["run"] == first["run"]


def test_an_unknown_receiver_is_named_with_a_suggestion(command, foreign):
    for what in (("replay", APP, "--since", "1h"), ("backfill", APP)):
        said = command(*what, "--receiver", f"{RECEIVER}s", code=ExitCode.NOT_FOUND)
        assert f"Did you mean {RECEIVER!r}" in said
    assert foreign.client[f"{foreign.name}_state"]["controls"].count_documents({}) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["replay", APP], ExitCode.USAGE, "--since"),
        (["replay", APP, "--since", "yesterday", "--yes"], ExitCode.USAGE, "'yesterday' is not a point in time"),
        (["replay", APP, "--since", "2100-01-01", "--yes"], ExitCode.USAGE, "in the future"),
        (["replay", APP, "--since", "1h", "--until", "-2h", "--yes"], ExitCode.USAGE, "before it begins"),
        (["replay", APP, "--since", "1h"], ExitCode.USAGE, "Give --yes"),
        (["position", "set", "--at", "1h"], ExitCode.USAGE, "Give --yes"),
        (["position", "reset"], ExitCode.USAGE, "Give --yes"),
        (["position", "switch"], ExitCode.USAGE, "Give --yes"),
        (["backfill", APP], ExitCode.USAGE, "--receiver"),
        (["backfill", APP, "--receiver", "x", "--where", "{a: 1}"], ExitCode.USAGE, "it is no JSON"),
        (["backfill", APP, "--receiver", "x", "--where", "[1]"], ExitCode.USAGE, "no JSON object, but list"),
        (["backfill", APP, "--receiver", "x", "--workers", "0"], ExitCode.USAGE, "--workers"),
    ],
)
def test_invalid_arguments_are_refused_before_a_connection(arguments, code, says):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code
    assert says in " ".join(result.output.replace("│", " ").split())
