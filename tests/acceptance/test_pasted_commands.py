"""The commands in messages work as they are printed."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dispatcher.cli.pasting import Completion
from dispatcher.exceptions import ExitCode
from tests.ledger import APP, Ledger
from tests.support import ROOT, daemon, eventually_sync

LATER = """
import os, pathlib
from mongoz.core.signals import post_save
from tests.acceptance.apps.ledger import Account

@post_save(Account, name="of the {0}")
async def later(sender, instance, **kwargs):
    with pathlib.Path(os.environ["CALLS"]).open("a") as file:
        file.write(f"{{instance.name}}\\n")
"""


@pytest.fixture
def environment(database, tmp_path) -> dict[str, str]:
    """The environment of a shell of an operator: nothing in it is for the dispatcher."""
    nowhere = Ledger(tmp_path / "ledger", "mongodb://127.0.0.1:1", database).environment
    given = {name: value for name, value in (os.environ | nowhere).items() if not name.startswith("DISPATCHER_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{given['PATH']}"
    return {**given, "PATH": path, "PYTHONPATH": str(ROOT), "CALLS": str(tmp_path / "calls")}


def paste(command: str, environment: dict[str, str], cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command,
        shell=True,
        env=environment,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_replay_command_for_a_new_receiver_works_as_it_is_logged(mongo, foreign, environment, tmp_path):
    (tmp_path / "later.py").write_text(LATER.format("module"))
    state = f"{foreign.name}_own_state"
    place = ("--url", mongo.url, "--state-database", state)
    environment |= {"DISPATCHER_SAVE_INTERVAL": "0.05", "DISPATCHER_IDLE_SAVE_INTERVAL": "0.05"}
    with daemon(APP, *place, cwd=tmp_path, **environment) as running:
        running.wait_started()
        foreign["accounts"].insert_one({"name": "missed", "n": 1})
        inserted = foreign.client.admin.command("hello")["operationTime"]

        def passed() -> bool:
            foreign["elsewhere"].insert_one({})  # the stream advances with the oplog
            return foreign.client[state].positions.find_one({"partition": 0})["cluster_time"] > inserted

        eventually_sync(passed)
        assert running.terminate() == ExitCode.OK
    with daemon(APP, *place, "--import", "later", cwd=tmp_path, **environment) as running:
        running.wait_started()
        eventually_sync(lambda: running.lines("receivers.new"))
        (line,) = running.lines("receivers.new")
        (command,) = re.findall("`([^`]+)`", line["remedy"])
        assert running.terminate() == ExitCode.OK
    words = shlex.split(command)
    assert words[:3] == ["dispatcher", "replay", APP]
    assert words[words.index("--receiver") + 1] == "of the module"
    ran = paste(command, environment, tmp_path)
    assert ran.returncode == ExitCode.OK, command + ran.stderr
    assert (tmp_path / "calls").read_text() == "missed\n"
    foreign.client.drop_database(state)


@pytest.mark.parametrize(
    ("command", "code", "printed"),
    [
        ("dead-letters show nothing GROUP", ExitCode.NOT_FOUND, "dispatcher dead-letters list GROUP"),
        ("claims release nothing GROUP", ExitCode.NOT_FOUND, "dispatcher claims list GROUP"),
        ("pause nobody --app ledger:registry GROUP", ExitCode.NOT_FOUND, "dispatcher receivers ledger:registry"),
        (
            "replay ledger:registry --since 1h --receiver nobody --import later --url URL",
            ExitCode.NOT_FOUND,
            "dispatcher receivers ledger:registry --import later",
        ),
        (
            "check ledger:registry --import later --url URL --state-database STATE",
            ExitCode.OK,
            "dispatcher setup ledger:registry --import later --url URL --state-database STATE",
        ),
    ],
)
def test_the_command_of_a_remedy_works_as_it_is_printed(
    command, code, printed, mongo, foreign, environment, tmp_path
):
    (tmp_path / "later.py").write_text(LATER.format("module"))
    (tmp_path / "ledger.py").write_text("from tests.acceptance.apps.ledger import registry\n")
    state = f"{foreign.name}_state"
    foreign.client[state].positions.insert_one({"_id": "shop:0", "group": "shop", "partition": 0})
    foreign["accounts"].insert_one({"name": "a", "n": 1})
    group = "--url URL --state-database STATE --group shop"
    values = {"GROUP": group, "URL": shlex.quote(mongo.url), "STATE": state}

    def filled(text: str) -> str:
        for name, value in values.items():
            text = text.replace(name, value)
        return text

    ran = paste(f"dispatcher {filled(command)} --json", environment, tmp_path)
    assert ran.returncode == code, ran.stdout + ran.stderr
    found = re.findall("`(dispatcher [^`]+)`", ran.stdout + ran.stderr)
    assert filled(printed) in found
    again = paste(filled(printed), environment, tmp_path)
    assert again.returncode == ExitCode.OK, again.stderr


URL = "mongodb://db.example.org/?a=1&replicaSet=rs0"


@pytest.mark.parametrize(
    ("values", "text", "result"),
    [
        ({"app": "a:r", "url": URL}, "Run `dispatcher setup APP`.", f"Run `dispatcher setup a:r --url '{URL}'`."),
        (
            {"app": "a:r", "imports": ["b", "c"]},
            "`dispatcher run APP`",
            "`dispatcher run a:r --import b --import c`",
        ),
        ({"apps": ["a:r", "b:r"]}, "`dispatcher setup APP`", "`dispatcher setup APP`"),
        ({"url": URL}, "`dispatcher run APP`", f"`dispatcher run APP --url '{URL}'`"),
        ({"group": "it's"}, "`dispatcher status`", "`dispatcher status --group 'it'\"'\"'s'`"),
        ({"app": "a:r"}, "`dispatcher status` shows it", "`dispatcher status a:r` shows it"),
        ({"app": "a:r"}, "`dispatcher dead-letters drop ID`", "`dispatcher dead-letters drop ID --app a:r`"),
        (
            {"app": "a:r", "deliver_everything": True},
            "`dispatcher run APP`",
            "`dispatcher run a:r --deliver-everything`",
        ),
        ({"app": "a:r", "state_database": "mongoz_dispatcher"}, "`dispatcher run APP`", "`dispatcher run a:r`"),
        ({"url": "mongodb://me:secret@db"}, "`dispatcher status`", "`dispatcher status --url $DISPATCHER_URL`"),
        ({"app": "a:r"}, "See `dispatcher run --help`.", "See `dispatcher run --help`."),
        ({"app": "a:r"}, "Use `dispatcher run --partitions`.", "Use `dispatcher run --partitions`."),
        ({"app": "a:r"}, "Start `dispatcher relay`.", "Start `dispatcher relay`."),
        ({"apps": ["a:r"], "kafka": "k:9092"}, "`dispatcher relay`", "`dispatcher relay a:r --kafka k:9092`"),
        ({"app": "a:r"}, "`dispatcher unknown` and `mongosh`", "`dispatcher unknown` and `mongosh`"),
    ],
)
def test_commands_are_completed(values, text, result):
    assert Completion(values)(text, True) == result


def test_commands_repeat_values_of_variables_only_for_readers_in_another_shell(monkeypatch):
    """A reader in another shell lacks these variables. In this shell the command gets the values from them."""
    monkeypatch.setenv("DISPATCHER_APP", "a:r")
    monkeypatch.setenv("DISPATCHER_IMPORT", "b c")
    monkeypatch.setenv("DISPATCHER_URL", "mongodb://other")
    complete = Completion({"app": "a:r", "imports": ["b", "c"], "url": "mongodb://db"})
    assert complete("`dispatcher run APP`", False) == "`dispatcher run APP --url mongodb://db`"
    assert (
        complete("`dispatcher run APP`", True) == "`dispatcher run a:r --import b --import c --url mongodb://db`"
    )
