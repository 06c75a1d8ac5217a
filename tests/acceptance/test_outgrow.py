"""The steps of docs/how-to/outgrow.md, command by command, with the application of the quickstart."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from dispatcher.embedded.guardian import free_port
from tests.conftest import need_kafka
from tests.integration.test_docs import blocks
from tests.kafka.server import running as running_kafka
from tests.support import PATIENCE, eventually_sync

pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")

PAGE = "docs/how-to/outgrow.md"
BROKER = "127.0.0.1:9092"
OUTPUT = ("Welcome, Ada!", "changed: email", "deleted; image: ")
FAST = {"DISPATCHER_HTTP": "off", "DISPATCHER_IDLE_SAVE_INTERVAL": "0.5", "PYTHONUNBUFFERED": "1"}


class Terminals:
    """A user with several terminals in one directory.

    Attributes:
        delivered: the number of runs of client.py. The changes of all these runs were delivered once.
    """

    def __init__(self, directory: Path, stack: ExitStack, mongo: str, broker: str) -> None:
        self._directory = directory
        self._stack = stack
        self._mongo = mongo
        self.broker = broker
        self.delivered = 0
        self._logs: list[Path] = []

    def lines(self, title: str) -> list[str]:
        """The commands of the block with this title."""
        (block,) = [one for one in blocks(PAGE) if one.language == "sh" and one.title == title]
        return block.text.replace(BROKER, self.broker).splitlines()

    def start(self, command: str, *, ready: str) -> subprocess.Popen[bytes]:
        """Runs a command in a terminal of its own, and waits for a line."""
        log = self._directory / f"{len(self._logs)}.log"
        self._logs.append(log)
        words = shlex.split(command)
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [str(Path(sys.executable).parent / words[0]), *words[1:]],
                cwd=self._directory,
                env={**os.environ, **FAST},
                stdin=subprocess.PIPE,
                stdout=sink,
                stderr=subprocess.STDOUT,
            )
        self._stack.callback(_end, process)
        eventually_sync(lambda: ready in log.read_text() or process.poll() is not None, what=f"{command} is ready")
        assert process.poll() is None, log.read_text()
        return process

    def call(self, title: str) -> None:
        """Runs the commands of a block to their ends."""
        for line in self.lines(title):
            done = self._run(line)
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"

    def call_until_true(self, title: str) -> None:
        """Runs each command of a block again and again until it exits with 0."""
        for line in self.lines(title):
            eventually_sync(lambda line=line: self._run(line).returncode == 0, what=line)

    def _run(self, line: str) -> subprocess.CompletedProcess[str]:
        words = shlex.split(line)
        return subprocess.run(
            [str(Path(sys.executable).parent / words[0]), *words[1:]],
            cwd=self._directory,
            env={**os.environ, **FAST},
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )

    def wait_until_passed(self) -> None:
        """Waits until the group has delivered all changes that the relay does not publish."""
        with MongoClient[dict[str, Any]](self._mongo) as client:
            state = client["mongoz_dispatcher"]

            def passed() -> bool:
                (relay,) = state["relays"].find()
                since = max(one["since"] for one in relay["collections"])
                return all(one["token"] >= since for one in state["positions"].find({"token": {"$exists": True}}))

            eventually_sync(passed, what="the group has passed the start of the relay")

    def write(self) -> None:
        """Runs client.py, and expects that each of its changes is delivered once."""
        subprocess.run([sys.executable, "client.py"], cwd=self._directory, check=True, timeout=PATIENCE)
        self.delivered += 1
        eventually_sync(lambda: min(self.printed()) >= self.delivered, what="the changes are delivered")
        assert set(self.printed()) == {self.delivered}

    def printed(self) -> list[int]:
        """How often receivers have printed each text of `OUTPUT`."""
        lines = [line for log in self._logs for line in log.read_text().splitlines()]
        return [sum(text in line for line in lines) for text in OUTPUT]


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stops a dispatcher cleanly."""
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[Terminals]:
    """servers.py runs. app.py and client.py use the MongoDB of servers.py."""
    mongo, broker = free_port(), free_port()
    files = {one.title: one.text for page in ("docs/quickstart.md", PAGE) for one in blocks(page) if one.title}
    for name in ("app.py", "client.py", "servers.py"):
        text = files[name].replace("127.0.0.1:27017", f"127.0.0.1:{mongo}")
        text = text.replace("port=27017", f"port={mongo}").replace("port=9092", f"port={broker}")
        (tmp_path / name).write_text(text)
    with ExitStack() as stack:
        made = Terminals(tmp_path, stack, f"mongodb://127.0.0.1:{mongo}", f"127.0.0.1:{broker}")
        made.start("python servers.py", ready=made.broker)
        yield made


@pytest.mark.slow
@pytest.mark.timeout(900)  # it starts some twenty processes, one after another
@pytest.mark.parametrize("kind", ["embedded", pytest.param("apache", marks=pytest.mark.exhaustive)])
def test_the_steps_lead_to_kafka_and_back(kind: str, terminals: Terminals) -> None:
    with ExitStack() as stack:
        if kind == "apache":
            need_kafka()
            terminals.broker = stack.enter_context(running_kafka()).address
        (one_machine,) = terminals.lines("one machine")
        dispatchers = terminals.start(one_machine, ready="dispatcher.started")
        terminals.write()
        terminals.call("check the relay")
        (relay,) = terminals.lines("relay")
        publishing = terminals.start(relay, ready="relay.term")
        terminals.write()
        terminals.wait_until_passed()
        stop(dispatchers)
        terminals.call("switch")
        (workers,) = terminals.lines("workers")
        working = terminals.start(workers, ready="dispatcher.started")
        terminals.write()
        terminals.call_until_true("check")
        stop(working)
        terminals.call("back")
        (again,) = terminals.lines("back on change streams")
        dispatchers = terminals.start(again, ready="dispatcher.started")
        terminals.write()
        stop(dispatchers)
        stop(publishing)
