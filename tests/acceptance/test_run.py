"""`dispatcher run` as a process that is started, signalled and killed."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dispatcher.embedded.server import embedded_mongo
from dispatcher.exceptions import ExitCode
from tests.ledger import APP, IMAGES, ForeignClient, Ledger, Writer, disorder
from tests.support import PATIENCE, ROOT, Daemon, daemon, eventually_sync


@pytest.fixture
def ledger(mongo, database, tmp_path):
    """The ledger application: its environment, and a reader of its records."""
    return Ledger(tmp_path / "ledger", mongo.url, database)


@pytest.mark.slow
def test_five_kills_lose_nothing_and_keep_the_order(ledger, foreign, tmp_path):
    foreign.create_collection("accounts", **IMAGES)
    writer = Writer({ForeignClient(foreign["accounts"]): 1}, seed=5)
    # Slow deliveries stay open during several saves of the position. The position must not pass them.
    slow = {"LEDGER_SLOWNESS": "0.004", "LEDGER_STRAGGLERS": "0.01", "DISPATCHER_SAVE_INTERVAL": "0.1"}
    arguments = {"cwd": tmp_path, **ledger.environment, **slow}
    first = Daemon(APP, **arguments)
    first.wait_started()
    writer.start()
    running = first
    try:
        for kill in range(5):
            goal = 250 * (kill + 1)
            eventually_sync(lambda goal=goal: len({(e.name, e.n) for e in ledger()}) >= goal)
            running.kill()
            running = Daemon(APP, **arguments)
        writer.join()
        eventually_sync(lambda: {(e.name, e.n) for e in ledger()} >= writer.written, what="all delivered")
        assert running.terminate() == ExitCode.OK
    finally:
        running.kill()
        writer.stop()
    entries = ledger()
    assert {(e.name, e.n) for e in entries} == writer.written
    assert disorder(entries, writer.orders()) == []
    assert {e.image for e in entries} == {"post"}
    # A repeated delivery has the same id.
    ids = {(e.name, e.n): e.delivery for e in entries}
    assert len(set(ids.values())) == len(ids)
    assert all(ids[e.name, e.n] == e.delivery for e in entries)


@pytest.mark.slow
def test_sigterm_under_load_loses_and_repeats_nothing(ledger, foreign, tmp_path):
    foreign.create_collection("accounts", **IMAGES)
    writer = Writer({ForeignClient(foreign["accounts"]): 1}, seed=7)
    arguments = {"cwd": tmp_path, **ledger.environment, "LEDGER_SLOWNESS": "0.004"}
    running = Daemon(APP, **arguments)
    running.wait_started()
    writer.start()
    try:
        for stop in range(3):
            goal = 400 * (stop + 1)
            eventually_sync(lambda goal=goal: len(ledger()) >= goal)
            assert running.terminate() == ExitCode.OK
            assert "Traceback" not in running.log
            running = Daemon(APP, **arguments)
            running.wait_started()
        writer.join()
        eventually_sync(lambda: len(ledger()) >= len(writer.written))
        assert running.terminate() == ExitCode.OK
    finally:
        running.kill()
        writer.stop()
    entries = ledger()
    assert len(entries) == len(writer.written)
    assert {(e.name, e.n) for e in entries} == writer.written
    assert disorder(entries, writer.orders()) == []


def test_a_daemon_runs_on_uvloop_and_logs_its_work(ledger, foreign, tmp_path):
    with daemon(APP, cwd=tmp_path, **ledger.environment) as running:
        running.wait_started()
        (started,) = running.lines("dispatcher.started")
        assert started["loop"] == "uvloop"
        assert started["begins"] == "now"
        assert started["watching"] == [f"{foreign.name}.accounts"]
        foreign["accounts"].insert_one({"name": "a", "n": 1})
        eventually_sync(ledger)
        assert running.terminate() == ExitCode.OK
    (stopped,) = running.lines("dispatcher.stopped")
    assert (stopped["read"], stopped["delivered"]) == (1, 1)
    assert "Traceback" not in running.log


def test_a_daemon_does_not_import_pydantic_settings(ledger, foreign, tmp_path):
    with daemon(APP, cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1", **ledger.environment) as running:
        running.wait_started()
        foreign["accounts"].insert_one({"name": "a", "n": 1})
        eventually_sync(ledger)
        assert running.terminate() == ExitCode.OK
    assert re.search(r"\| +pymongo$", running.log, re.MULTILINE)
    assert "pydantic_settings" not in running.log


def test_a_second_signal_ends_a_daemon_immediately(tmp_path, mongo, database, foreign):
    """After the first signal, the daemon waits for a delivery in flight that never ends."""
    receiver = (
        "import asyncio, pathlib\n"
        "@post_save(Thing)\n"
        "async def saved(sender, **kwargs):\n"
        "    pathlib.Path('began').touch()\n"
        "    await asyncio.Event().wait()\n"
    )
    app = write_app(tmp_path, mongo.url, receivers=receiver, database=database)
    with daemon(app, "--state-database", f"{database}_state", cwd=tmp_path) as running:
        running.wait_started()
        foreign["things"].insert_one({"name": "a"})
        eventually_sync((tmp_path / "began").exists)
        running.process.send_signal(signal.SIGINT)
        eventually_sync(lambda: running.lines("dispatcher.stopping"))
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(PATIENCE) == ExitCode.FORCED


def run(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dispatcher", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def write_app(
    directory: Path, url: str, *, receivers: str = "", dispatched: bool = True, database: str = "things"
) -> str:
    (directory / "app.py").write_text(
        "import mongoz\n"
        "from mongoz.core.signals import *\n"
        f"registry = mongoz.Registry({url!r}, dispatched={dispatched})\n"
        "class Thing(mongoz.Document):\n"
        "    name: str = mongoz.String()\n"
        "    class Meta:\n"
        "        registry = registry\n"
        f"        database = {database!r}\n"
        f"{receivers}\n"
    )
    return "app:registry"


RECEIVER = "@post_save(Thing)\nasync def saved(sender, **kwargs): ...\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("app", "says", "code"),
    [
        ("nonsense", "must name a module and the registry in it", ExitCode.APPLICATION),
        ("no_such_module:registry", "no module 'no_such_module'", ExitCode.APPLICATION),
        ("tests.acceptance.apps.broken:registry", "RuntimeError: this module is broken", ExitCode.APPLICATION),
        ("mongoz.settings:registy", "has no 'registy'", ExitCode.APPLICATION),
        ("mongoz.settings:settings", "not a registry", ExitCode.APPLICATION),
    ],
)
def test_an_unusable_app_is_an_error(app, says, code):
    result = run("run", app)
    assert result.returncode == code
    assert_one_error(result, says)


def assert_one_error(result: subprocess.CompletedProcess[str], says: str) -> None:
    """Apart from log lines, stderr has exactly one line with the error, and one with the remedy."""
    lines = [line for line in result.stderr.splitlines() if not line.startswith("{")]
    assert len(lines) == 2, result.stderr
    assert lines[0].startswith("error: ")
    assert says in lines[0]
    assert lines[1].startswith("remedy: ")


@pytest.mark.slow
@pytest.mark.parametrize(
    "url", ["mongodb://", "http://localhost", "localhost:27017", "mongodb://u:secret@h:port/"]
)
def test_an_invalid_url_is_an_error(tmp_path, url):
    result = run("run", write_app(tmp_path, "mongodb://localhost", receivers=RECEIVER), "--url", url, cwd=tmp_path)
    assert result.returncode == ExitCode.CANNOT_CONNECT
    assert_one_error(result, "does not parse")
    assert "secret" not in result.stderr
    in_code = run("run", write_app(tmp_path, url, receivers=RECEIVER), cwd=tmp_path)
    assert in_code.returncode == ExitCode.APPLICATION
    assert_one_error(in_code, "does not parse")
    assert "secret" not in in_code.stderr.replace(str(tmp_path), "")


def test_an_unreachable_server_is_an_error(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        app = write_app(tmp_path, f"mongodb://me:secret@127.0.0.1:{closed.getsockname()[1]}/", receivers=RECEIVER)
        result = run("run", app, "--connect-timeout", "0.5", cwd=tmp_path)
    assert result.returncode == ExitCode.CANNOT_CONNECT
    assert_one_error(result, "No MongoDB server answers at 127.0.0.1:")
    assert "secret" not in result.stderr


@pytest.mark.slow
def test_claims_in_another_state_database_are_named_at_the_start(tmp_path):
    app = write_app(tmp_path, "mongodb://127.0.0.1:1/", receivers=RECEIVER)
    started = ("run", app, "--connect-timeout", "0.1", "--log-format", "json", "--state-database")
    named = run(*started, "elsewhere", cwd=tmp_path)
    assert "claims.elsewhere" in named.stderr
    assert "state='elsewhere'" in named.stderr
    assert "claims.elsewhere" not in run(*started, "mongoz_dispatcher", cwd=tmp_path).stderr


def test_an_application_without_receivers_is_an_error(tmp_path, mongo):
    result = run("run", write_app(tmp_path, mongo.url), cwd=tmp_path)
    assert result.returncode == ExitCode.NOTHING_TO_DELIVER
    assert_one_error(result, "None of the 1 documents of the registry")


def test_an_undispatched_registry_is_an_error(tmp_path, mongo):
    result = run("run", write_app(tmp_path, mongo.url, receivers=RECEIVER, dispatched=False), cwd=tmp_path)
    assert result.returncode == ExitCode.APPLICATION
    assert_one_error(result, "not dispatched")
    assert "--deliver-everything" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("options", ["", "?replicaSet=rs0"])
def test_a_standalone_server_is_an_error(tmp_path, options):
    with embedded_mongo(replica_set=False) as server:
        app = write_app(tmp_path, f"mongodb://127.0.0.1:{server.port}/{options}", receivers=RECEIVER)
        result = run("run", app, "--connect-timeout", "1", cwd=tmp_path)
    assert result.returncode == ExitCode.NOT_A_REPLICA_SET
    assert_one_error(result, "standalone")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "value"), [("--concurrency", "0"), ("--timeout", "-1"), ("--log-level", "loud"), ("--grace", "long")]
)
def test_a_flag_out_of_range_is_an_error(tmp_path, flag, value):
    result = run("run", write_app(tmp_path, "mongodb://localhost", receivers=RECEIVER), flag, value, cwd=tmp_path)
    assert result.returncode == ExitCode.USAGE
    assert flag in result.stderr


def test_a_flag_can_come_from_the_environment(tmp_path):
    app = write_app(tmp_path, "mongodb://localhost", receivers=RECEIVER)
    result = run("run", app, cwd=tmp_path, DISPATCHER_CONCURRENCY="0")
    assert result.returncode == ExitCode.USAGE
    assert "concurrency" in result.stderr


def test_an_invalid_position_is_an_error(ledger, foreign, tmp_path):
    foreign.client[f"{foreign.name}_state"].positions.insert_one(
        {"_id": f"{foreign.name}:0", "term": 3, "token": "zz"}
    )
    result = run("run", APP, **ledger.environment)
    assert result.returncode == ExitCode.POSITION
    assert_one_error(result, "'zz'")


@pytest.mark.slow
def test_the_receivers_and_the_position_are_shown(ledger, foreign, tmp_path):
    table = run("receivers", APP, **ledger.environment)
    assert table.returncode == 0
    assert "post_delete" in table.stdout
    before = run("position", "show", APP, "--max-age", "60", **ledger.environment)
    assert (before.returncode, "No position" in before.stdout) == (ExitCode.FAILED, True)
    with daemon(APP, cwd=tmp_path, **ledger.environment) as running:
        running.wait_started()
        shown = run("position", "show", APP, "--max-age", "60", "--json", **ledger.environment)
        assert shown.returncode == 0, shown.stderr
        assert f'"position": "{foreign.name}:0"' in shown.stdout
    stale = run("position", "show", APP, "--max-age", "0", **ledger.environment)
    assert stale.returncode == ExitCode.FAILED


def test_sigterm_ends_a_connecting_daemon(tmp_path):
    """The server accepts the connection and stays silent. The daemon does not wait for an answer."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(PATIENCE)
        app = write_app(tmp_path, f"mongodb://127.0.0.1:{silent.getsockname()[1]}/", receivers=RECEIVER)
        with daemon(app, "--connect-timeout", "600", cwd=tmp_path) as running:
            connection, _ = silent.accept()
            with connection:
                assert running.terminate() == ExitCode.OK
    assert "Traceback" not in running.log
    assert running.lines("dispatcher.stopped")


def stopped_after_begin(receiver: str, directory: Path, url: str, foreign: Any) -> Daemon:
    """Runs a daemon until the receiver creates the file `began`, and ends the daemon with SIGTERM."""
    app = write_app(directory, url, receivers=receiver, database=foreign.name)
    state = ("--state-database", f"{foreign.name}_state")
    with daemon(app, "--grace", "0.1", *state, cwd=directory) as running:
        running.wait_started()
        foreign["things"].insert_one({"name": "a"})
        eventually_sync((directory / "began").exists)
        assert running.terminate(within=60) == ExitCode.OK
    return running


@pytest.mark.slow
def test_sigterm_does_not_wait_for_threads_of_receivers(tmp_path, mongo, foreign):
    """Python itself waits for its threads without a limit."""
    receiver = (
        "import asyncio, pathlib, time\n"
        "@post_save(Thing)\n"
        "async def saved(sender, **kwargs):\n"
        "    pathlib.Path('began').touch()\n"
        "    await asyncio.to_thread(time.sleep, 600)\n"
    )
    running = stopped_after_begin(receiver, tmp_path, mongo.url, foreign)
    assert running.lines("dispatcher.cut")
    assert running.lines("dispatcher.left_behind")[0]["threads"]


@pytest.mark.slow
def test_sigterm_does_not_wait_for_receivers_that_ignore_cancellation(tmp_path, mongo, foreign):
    """asyncio itself waits for its tasks without a limit."""
    receiver = (
        "import asyncio, pathlib\n"
        "@post_save(Thing)\n"
        "async def saved(sender, **kwargs):\n"
        "    pathlib.Path('began').touch()\n"
        "    while True:\n"
        "        try:\n"
        "            await asyncio.sleep(600)\n"
        "        except asyncio.CancelledError:\n"
        "            continue\n"
    )
    running = stopped_after_begin(receiver, tmp_path, mongo.url, foreign)
    assert running.lines("dispatcher.cut")
    assert running.lines("dispatcher.stuck")
    assert running.lines("dispatcher.left_behind")[0]["tasks"]
