"""`dispatcher dev` on the command line: it reloads saved files."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue

import psutil
import pytest
from pymongo import MongoClient

from dispatcher.demo.reload import _changes
from tests.support import PATIENCE, free_port, processes_marked

APP = """
import mongoz
from mongoz.core.signals import post_save

registry = mongoz.Registry("mongodb://localhost:1/", dispatched=True)


class User(mongoz.Document):
    name: str = mongoz.String()

    class Meta:
        registry = registry
        database = "dev"


@post_save(User)
async def greet(sender, instance, **kwargs):
    print("HELLO", instance.name, flush=True)
"""


class Dev:
    """A running `dispatcher dev` in its own directory."""

    def __init__(self, directory: Path) -> None:
        self.app = directory / "app.py"
        self.app.write_text(APP)
        self.mark = uuid.uuid4().hex
        self.lines: SimpleQueue[str] = SimpleQueue()
        self.seen: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dispatcher", "dev", "app:registry"],
            cwd=directory,
            env={**os.environ, "TEST_FAMILY": self.mark, "DISPATCHER_HTTP": f"127.0.0.1:{free_port()}"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                self.lines.put(line)

    def wait_for(self, pattern: str, timeout: float = PATIENCE) -> re.Match[str]:
        """Waits for the next line that matches this pattern, and returns the match."""
        deadline = time.monotonic() + timeout
        with suppress(Empty):
            while (left := deadline - time.monotonic()) > 0:
                self.seen.append(self.lines.get(timeout=left))
                if found := re.search(pattern, self.seen[-1]):
                    return found
        raise AssertionError(f"no {pattern!r} in\n{''.join(self.seen)}")

    def rewrite(self, old: str, new: str) -> None:
        self.app.write_text(APP.replace(old, new))

    def members(self) -> list[psutil.Process]:
        """The running processes of this `dispatcher dev`."""
        return processes_marked(self.mark)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for process in self.members():
            with suppress(psutil.Error):
                process.kill()
        self.reader.join(10)


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[Dev]:
    made = Dev(tmp_path)
    yield made
    made.end()


@pytest.mark.slow
def test_dev_delivers_and_reloads_saved_code_even_after_a_syntax_error(dev: Dev) -> None:
    url = dev.wait_for(r"mongodb://\S+")[0]
    assert re.match(r"MongoDB \d+\.\d+\.\d+ \(licence SSPL\): for development only: ", dev.seen[-1])
    shown = dev.wait_for(r"Dashboard: (http://127\.0\.0\.1:\d+)/dashboard/#token=(\S+)")
    dev.wait_for("dispatcher.started")
    dev.wait_for(shown[1])  # the address of the dashboard
    request = urllib.request.Request(f"{shown[1]}/dashboard/api/unlock", b"{}")
    request.add_header("Authorization", f"Bearer {shown[2]}")
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200
    with MongoClient(url) as client:
        users = client["dev"]["users"]
        users.insert_one({"name": "Ada"})
        dev.wait_for("HELLO Ada")

        dev.rewrite("HELLO", "BYE BYE")
        dev.wait_for(r"app\.py changed")
        dev.wait_for("dispatcher.started")
        users.insert_one({"name": "Barbara"})
        dev.wait_for("BYE BYE Barbara")

        dev.rewrite("async def greet(", "async def greet((")
        dev.wait_for("SyntaxError")
        dev.wait_for(r"ended \(exit code 10\); waiting for a change")
        users.insert_one({"name": "Grace"})  # no process listens now, and nothing is lost

        dev.rewrite("HELLO", "WELCOME BACK")
        dev.wait_for("WELCOME BACK Grace")
    dev.process.send_signal(signal.SIGINT)
    assert dev.process.wait(PATIENCE) == 0
    assert dev.members() == []


@pytest.mark.slow
def test_dev_ends_on_sigterm(dev: Dev) -> None:
    dev.wait_for("dispatcher.started")
    dev.process.send_signal(signal.SIGTERM)
    assert dev.process.wait(PATIENCE) == 0
    dev.wait_for("dispatcher.stopped")
    assert dev.members() == []


@pytest.mark.slow
def test_a_killed_dev_leaves_no_process(dev: Dev) -> None:
    dev.wait_for("dispatcher.started")
    members = dev.members()
    dev.process.kill()
    dev.process.wait()
    _, alive = psutil.wait_procs(members, timeout=PATIENCE)
    assert alive == []


def test_installed_packages_are_not_watched_as_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This is true for any name of the virtual environment. Otherwise pip would restart `dev` for each file."""
    installed = tmp_path / "venv" / "bin"
    installed.mkdir(parents=True)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    changes = _changes(tmp_path, threading.Event())
    assert next(changes) == frozenset()
    (installed / "installed.py").touch()
    (tmp_path / "app.py").touch()
    assert next(filter(None, changes)) == {"app.py"}
