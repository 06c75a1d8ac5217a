"""Relays that are killed, stopped and replaced lose nothing, and readers see the order of each document."""

import contextlib
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from dispatcher.embedded.broker import EmbeddedBroker
from dispatcher.embedded.server import EmbeddedMongo
from tests.integration.relaying import RelayProcess, accepted
from tests.support import PATIENCE, ROOT, eventually_sync

pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")

APP = """
import os
import mongoz
from mongoz.core.signals import post_save

registry = mongoz.Registry(os.environ["TEST_URL"], dispatched=os.environ["TEST_DATABASE"])


class Order(mongoz.Document):
    number: int = mongoz.Integer(default=0)

    class Meta:
        registry = registry
        database = os.environ["TEST_DATABASE"]
        collection = "orders"


@post_save(Order)
async def receive(sender, **kwargs):
    pass
"""


class Writer:
    """Writes until it is stopped, and follows its own changes with the driver's change stream."""

    def __init__(self, client: MongoClient, database: str) -> None:
        self._orders = client[database]["orders"]
        self._stream = self._orders.watch(max_await_time_ms=100)
        self._stopping = threading.Event()
        self.events: list[dict[str, Any]] = []
        self._writing = threading.Thread(target=self._write)
        self._reading = threading.Thread(target=self._read)

    def __enter__(self) -> "Writer":
        self._writing.start()
        self._reading.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stops writing, and reads the last events."""
        self._stopping.set()
        self._writing.join()
        self._reading.join()

    def _write(self) -> None:
        choose = random.Random(5)
        while not self._stopping.is_set():
            id_ = choose.randrange(40)
            self._orders.update_one({"_id": id_}, {"$inc": {"number": 1}}, upsert=True)
            if choose.random() < 0.1:
                self._orders.delete_one({"_id": choose.randrange(40)})
            time.sleep(choose.choice((0, 0, 0.002)))

    def _read(self) -> None:
        with self._stream as stream:
            while True:
                ending = self._stopping.is_set() and not self._writing.is_alive()
                event = stream.try_next()
                if event is not None:
                    self.events.append(event)
                elif ending:
                    return

    def __len__(self) -> int:
        return len(self.events)


@contextlib.contextmanager
def process(
    tmp_path: Path, mongo: EmbeddedMongo, database: str, servers: str, name: str
) -> Iterator[RelayProcess]:
    (tmp_path / "relayed.py").write_text(APP)
    arguments = ("--kafka", servers, "--name", name, "--partitions", "4", "--lease", "2", "--save-interval", "0.2")
    arguments += ("--max-queued-mb", "1", "--batch-size", "100")
    environment = {"TEST_URL": mongo.url, "TEST_DATABASE": database}
    state = ("--state-database", f"{database}_state")
    running = RelayProcess("relayed:registry", *arguments, *state, cwd=tmp_path, **environment)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.send_signal(signal.SIGCONT)
            running.kill()


def require_complete(writer: Writer, servers: str, name: str) -> None:
    """Checks that a reader of the topic gets each event once, and the events of a document in order."""
    expected: dict[Any, list[str]] = {}
    for event in writer.events:
        expected.setdefault(event["documentKey"]["_id"], []).append(event["_id"]["_data"])
    found: dict[Any, list[str]] = {}
    known = {event["_id"]["_data"] for event in writer.events}
    for one in accepted(servers, f"mongoz.{name}"):
        token = one.event["_id"]["_data"]
        if token in known:
            found.setdefault(one.event["documentKey"]["_id"], []).append(token)
    assert found == expected


class Relays:
    """The relay processes of a test."""

    def __init__(self, start: Callable[[], RelayProcess], client: MongoClient, database: str, name: str) -> None:
        self._start = start
        self._state = client[f"{database}_state"]
        self._topic = f"mongoz.{name}"
        self.processes = [start(), start()]
        for one in self.processes:
            one.wait_started()
        eventually_sync(lambda: self.position)

    @property
    def position(self) -> str:
        """The saved position."""
        found = self._state["relays"].find_one({"_id": self._topic})
        return found["token"] if found else ""

    @property
    def term(self) -> int:
        """The latest term."""
        return self._state["relays"].find_one({"_id": self._topic})["term"]

    @property
    def owner(self) -> RelayProcess:
        """The process that publishes."""
        pid = self._state["positions"].find_one({"_id": f"{self._topic}:0"})["pid"]
        [owner] = [one for one in self.processes if one.process.pid == pid]
        return owner

    def wait_for_progress(self) -> None:
        """Waits until the position moves."""
        begin = self.position
        eventually_sync(lambda: self.position > begin)

    def wait_for(self, event: dict[str, Any]) -> None:
        """Waits until an event is published."""
        token = event["_id"]["_data"]
        eventually_sync(lambda: self.position >= token)

    def kill_owner(self) -> None:
        """Kills the process that publishes."""
        owner = self.owner
        owner.kill()
        self.processes.remove(owner)

    def replace_owner(self) -> None:
        """Kills the process that publishes, and starts another one."""
        self.kill_owner()
        self.start_another()

    def start_another(self) -> None:
        """Starts a further process."""
        self.processes.append(self._start())

    def terminate(self) -> None:
        """Stops all processes cleanly."""
        for one in self.processes:
            one.wait_started()
            assert one.terminate() == 0, one.log


@pytest.fixture
def client(mongo: EmbeddedMongo) -> Iterator[MongoClient]:
    with MongoClient(mongo.url) as made:
        yield made


@pytest.fixture
def relays(
    mongo: EmbeddedMongo, broker: EmbeddedBroker, client: MongoClient, database: str, name: str, tmp_path: Path
) -> Iterator[Relays]:
    with contextlib.ExitStack() as stack:

        def start() -> RelayProcess:
            return stack.enter_context(process(tmp_path, mongo, database, broker.address, name))

        yield Relays(start, client, database, name)


@pytest.mark.slow
def test_killed_relays_lose_nothing_and_keep_the_order(
    relays: Relays, broker: EmbeddedBroker, client: MongoClient, database: str, name: str
) -> None:
    begin = relays.term
    with Writer(client, database) as writer:
        for _ in range(3):
            relays.wait_for_progress()
            relays.replace_owner()
        relays.wait_for_progress()
        writer.stop()
        relays.wait_for(writer.events[-1])
    assert relays.term >= begin + 3
    relays.terminate()
    require_complete(writer, broker.address, name)


@pytest.mark.slow
def test_a_relay_that_was_stopped_for_longer_than_its_lease_neither_loses_nor_reorders_events(
    relays: Relays, broker: EmbeddedBroker, client: MongoClient, database: str, name: str
) -> None:
    with Writer(client, database) as writer:
        for _ in range(2):
            relays.wait_for_progress()
            owner, seen = relays.owner, len(relays.owner.lines("lease.lost"))
            owner.process.send_signal(signal.SIGSTOP)
            eventually_sync(lambda stopped=owner: relays.owner is not stopped)
            relays.wait_for_progress()
            owner.process.send_signal(signal.SIGCONT)
            eventually_sync(lambda stopped=owner, seen=seen: len(stopped.lines("lease.lost")) > seen)
        writer.stop()
        relays.wait_for(writer.events[-1])
    relays.terminate()
    require_complete(writer, broker.address, name)


@pytest.mark.slow
def test_wrong_arguments_end_the_command_with_a_message_and_an_exit_code(
    mongo: EmbeddedMongo, broker: EmbeddedBroker, database: str, tmp_path: Path
) -> None:
    (tmp_path / "relayed.py").write_text(APP)
    environment = {"TEST_URL": mongo.url, "TEST_DATABASE": database, "PYTHONPATH": str(ROOT), "PATH": ""}

    def run(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "dispatcher", "relay", "relayed:registry", *arguments]
        ended = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        return ended.returncode, ended.stderr

    code, said = run("--kafka", "nowhere")
    assert (code, "is not HOST:PORT" in said) == (27, True), said
    (tmp_path / "wrong").write_text("no.such = 1\n")
    code, said = run("--kafka", broker.address, "--kafka-config", "wrong")
    assert (code, "wrong, line 1: no.such" in said) == (27, True), said
    code, said = run("--kafka", broker.address, "--on-history-lost", "backfill")
    assert (code, "has no receivers" in said) == (2, True), said
    code, said = run("--kafka", broker.address, "--name", "a b")
    assert code != 70, said
