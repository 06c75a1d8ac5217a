"""`dispatcher setup` on the command line: its output and its exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dispatcher.embedded.server import embedded_mongo
from dispatcher.exceptions import ExitCode
from tests.ledger import APP, Ledger
from tests.support import ROOT, daemon, eventually_sync


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "dispatcher", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def ledger(mongo, database, tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger", mongo.url, database)


def test_a_run_delivers_the_writes_after_the_setup(ledger, foreign, tmp_path):
    done = run("setup", APP, **ledger.environment)
    assert (done.returncode, done.stderr) == (ExitCode.OK, "")
    words = [line.split() for line in done.stdout.splitlines()]
    assert ["images", "of", f"{foreign.name}.accounts", "created"] in words
    assert ["position", "of", foreign.name, "recorded"] in words
    again = run("setup", APP, "--json", **ledger.environment)
    assert json.loads(again.stdout) == {
        "address": f"127.0.0.1:{foreign.client.address[1]}",
        "group": foreign.name,
        "images": {f"{foreign.name}.accounts": "on already"},
        "state": "indexed",
        "topic": "",
        "position": "recorded already",
    }
    shown = run("position", "show", APP, "--json", **ledger.environment)
    assert [one["owner"] for one in json.loads(shown.stdout)] == ["none"]
    id_ = foreign["accounts"].insert_one({"name": "Ada", "n": 1}).inserted_id
    foreign["accounts"].update_one({"_id": id_}, {"$set": {"n": 2}})
    with daemon(APP, cwd=tmp_path, **ledger.environment) as running:
        eventually_sync(lambda: len(ledger()) == 2)
        assert running.lines("dispatcher.started")[0]["begins"] == "position"
        assert running.terminate() == ExitCode.OK
        assert running.lines("collections.without_images") == []
    assert [(entry.n, entry.image) for entry in ledger()] == [(1, "post"), (2, "post")]


def test_setup_can_keep_images_unchanged(ledger, foreign):
    done = run("setup", APP, "--no-images", **ledger.environment)
    assert done.returncode == ExitCode.OK
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["state", "position"]
    assert foreign.list_collection_names() == []


@pytest.mark.slow
def test_a_standalone_server_has_an_exit_code_and_a_remedy(ledger):
    with embedded_mongo(replica_set=False) as server:
        url = f"mongodb://127.0.0.1:{server.port}/"
        failed = run("setup", APP, "--url", url, "--connect-timeout", "1", **ledger.environment)
    assert failed.returncode == ExitCode.NOT_A_REPLICA_SET
    first, second = failed.stderr.splitlines()
    assert first.startswith("error: ")
    assert "standalone" in first
    assert second.startswith("remedy: ")


def test_a_view_has_an_exit_code_and_a_remedy(ledger, foreign):
    foreign.command("create", "accounts", viewOn="others", pipeline=[])
    failed = run("setup", APP, **ledger.environment)
    assert failed.returncode == ExitCode.SERVER
    first, second = failed.stderr.splitlines()
    assert f"{foreign.name}.accounts is a view" in first
    assert second.startswith("remedy: ")
