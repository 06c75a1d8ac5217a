"""A process without free file descriptors, at its start and later."""

import asyncio
import errno
import socket
import subprocess
import urllib.parse
from pathlib import Path

import pytest

from dispatcher.core.file_descriptors import lack_in
from dispatcher.core.stats import Stats
from dispatcher.exceptions import ApplicationError, CannotConnect, ExitCode, TooManyFiles
from dispatcher.operate.observer import Observer
from dispatcher.settings import Settings
from dispatcher.web import server
from tests.acceptance.test_http import OK, address_of, ask, get
from tests.acceptance.test_run import RECEIVER, assert_one_error, run, write_app
from tests.support import PATIENCE, Daemon, daemon, eventually_sync

pytestmark = pytest.mark.slow

# Takes all descriptors, and releases them.
HOLDER = """\
import os, pathlib
held = []
def hold():
    try:
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass
def release():
    while held:
        os.close(held.pop())
"""

HOLDING = f"""\
{HOLDER}
import asyncio
delivered = os.open("delivered", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
@post_save(Thing)
async def saved(sender, instance, **kwargs):
    if instance.name == "hold":
        hold()
        os.write(delivered, b"hold\\n")
        while not os.access("release", os.F_OK):
            await asyncio.sleep(0.05)
            hold()
        release()
    os.write(delivered, instance.name.encode() + b"\\n")
"""


@pytest.fixture(params=["uvloop", "asyncio"])
def loop(request, tmp_path) -> str:
    if request.param == "asyncio":
        (tmp_path / "uvloop.py").write_text("from asyncio import SelectorEventLoop as Loop\n")
    return request.param


def limited(limit: int) -> tuple[str, ...]:
    """A prefix for a command: it limits the descriptors of the command to this number."""
    return ("sh", "-c", f'ulimit -n {limit} && exec "$@"', "sh")


@pytest.mark.parametrize("limit", [5, 9, 10, 14, 22])
def test_a_limit_too_low_for_a_start_is_named(limit, loop, tmp_path, monkeypatch):
    """Without the check, the start fails at a different place for each limit, and uvloop aborts the process."""
    monkeypatch.setattr(Daemon, "launcher", limited(limit))
    app = write_app(tmp_path, "mongodb://127.0.0.1:1/", receivers=RECEIVER)
    with daemon(app, "--connect-timeout", "0.5", cwd=tmp_path) as running:
        assert running.process.wait(60) == ExitCode.TOO_MANY_FILES
    told = running.log
    assert_one_error(subprocess.CompletedProcess((), 26, "", told), f"this process may have {limit} of them")
    assert "ulimit -n" in told
    assert "LimitNOFILE=" in told


def test_the_lowest_accepted_limit_is_sufficient(loop, tmp_path, mongo, database, foreign, monkeypatch):
    monkeypatch.setattr(Daemon, "launcher", limited(40))
    app = write_app(tmp_path, mongo.url, receivers=RECEIVER, database=database)
    with daemon(app, "--state-database", f"{database}_state", "--http", "127.0.0.1:0", cwd=tmp_path) as running:
        assert get(f"{address_of(running)}/livez")[0] == 200
        assert running.terminate(within=60) == ExitCode.OK


@pytest.mark.parametrize("then", ["", "import xml.dom.minidom\n", "raise RuntimeError from OSError(24, 'x')\n"])
def test_the_error_of_an_application_that_takes_all_descriptors_names_the_limit(then, tmp_path):
    app = write_app(tmp_path, "mongodb://127.0.0.1:1/", receivers=f"{RECEIVER}{HOLDER}hold()\n{then}")
    result = run("run", app, "--connect-timeout", "0.5", cwd=tmp_path)
    assert result.returncode == ExitCode.TOO_MANY_FILES, result.stderr
    assert_one_error(result, "Too many open files")


def test_a_lack_of_descriptors_is_found_in_nested_errors():
    lack = OSError(errno.EMFILE, "Too many open files")
    later = RuntimeError("Cannot close a running event loop")
    later.__context__ = lack
    assert "ulimit -n" in lack_in(later).remedy
    caused = ApplicationError("app can't be imported")
    caused.__cause__ = ExceptionGroup("several", [ValueError(), lack])
    assert lack_in(caused).exit_code == ExitCode.TOO_MANY_FILES
    assert isinstance(lack_in(CannotConnect("db:27017: [Errno 24] Too many open files")), TooManyFiles)
    assert "fs.file-max" in lack_in(OSError(errno.ENFILE, "")).remedy
    assert lack_in(OSError(errno.ENOENT, "")) is None
    assert lack_in(CannotConnect("nothing answers")) is None


def test_http_answers_when_descriptors_are_free_again(loop, tmp_path, mongo, database, foreign, monkeypatch):
    """Until then clients wait, and deliveries continue."""
    monkeypatch.setattr(Daemon, "launcher", limited(100))
    app = write_app(tmp_path, mongo.url, receivers=HOLDING, database=database)
    state = ("--state-database", f"{database}_state", "--http", "127.0.0.1:0")

    def delivered() -> list[str]:
        return (tmp_path / "delivered").read_text().split()

    with daemon(app, *state, cwd=tmp_path) as running:
        address = address_of(running)
        where = urllib.parse.urlsplit(address)
        foreign["things"].insert_one({"name": "hold"})
        eventually_sync(lambda: "hold" in delivered(), within=60, what=running)
        early = [socket.create_connection((where.hostname, where.port), PATIENCE) for _ in range(5)]
        for client in early:
            client.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        (line,) = eventually_sync(lambda: running.lines("http.not_accepted"), within=60, what=running)
        assert "this process may have 100" in line["error"]
        assert "ulimit -n" in line["remedy"]
        foreign["things"].insert_one({"name": "meanwhile"})
        eventually_sync(lambda: "meanwhile" in delivered(), within=60, what=running)
        Path(tmp_path / "release").touch()
        for client in early:
            with client:
                assert client.recv(100).startswith(OK)
        assert get(f"{address}/livez")[0] == 200
        assert len(running.lines("http.not_accepted")) == 1
        assert running.lines("http.failed") == running.lines("loop.failed") == []
        assert running.terminate(within=60) == ExitCode.OK


async def test_http_is_loaded_when_descriptors_are_free_again(monkeypatch):
    monkeypatch.setattr(server, "AGAIN_AFTER", 0.01)
    web = server.Web(Settings(http="127.0.0.1:0"), Observer(Stats(), group="g", settings=Settings(), gauges=dict))
    load, tries = web._make_server, iter(range(100))

    def load_at_the_third_try():
        if next(tries) < 2:
            raise OSError(errno.EMFILE, "Too many open files")
        return load()

    monkeypatch.setattr(web, "_make_server", load_at_the_third_try)
    where = urllib.parse.urlsplit(web._observer.http)
    stop = asyncio.Event()
    task = asyncio.create_task(web.beside(lambda stop: stop.wait(), stop))
    assert await ask((where.hostname, where.port)) == OK
    stop.set()
    await task
