"""Applications and dispatchers with and without claims side by side: nothing is lost in any order of deployment.

The server's change stream tells what was written, and with which stamps.
"""

import contextlib
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mongoz.stamps import Stamp
from tests.earlier_version import WITHOUT_CLAIMS, WITHOUT_CONTEXTS, earlier_version
from tests.support import ROOT, Daemon, daemon, eventually_sync

APP = "tests.acceptance.apps.versioned:registry"
ARGUMENTS = ("--partitions", "2", "--lease", "6", "--park-after", "0.3", "--save-interval", "0.2")
RECEIVERS = ("any", "durable")

# Seconds for many deliveries on a busy machine.
LONG = 250.0

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def earlier(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    commit = getattr(request, "param", WITHOUT_CLAIMS)
    return earlier_version(tmp_path_factory, commit)


class Written(NamedTuple):
    """A committed change: the delivery that each receiver must get, and the stamp."""

    signal: str
    id: str
    what: str
    stamp: Stamp | None

    @property
    def is_claimed(self) -> bool:
        return self.stamp is not None and self.stamp.claim is not None

    def delivery_to(self, receiver: str) -> tuple[str, str, str, str]:
        return receiver, self.signal, self.id, "" if self.signal == "post_delete" else self.what


class Stream:
    """Reads the change stream of the accounts."""

    def __init__(self, collection: Any) -> None:
        self.written: list[Written] = []
        self._latest: dict[str, str] = {}
        self._markers: dict[str, Stamp | None] = {}
        self._stream = collection.watch(max_await_time_ms=100)
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with self._stream as stream:
            while not self._ends.is_set():
                event = stream.try_next()
                if event is not None:
                    self._note(event)

    def _note(self, event: dict[str, Any]) -> None:
        id_, operation = str(event["documentKey"]["_id"]), event["operationType"]
        if operation == "delete":
            found = Written("post_delete", id_, self._latest[id_], self._markers.pop(id_, None))
            self.written.append(found)
            return
        values = event["fullDocument"] if operation == "insert" else event["updateDescription"]["updatedFields"]
        stamp = Stamp.unpack(values.get("_mongoz"))
        if "what" not in values:
            self._markers[id_] = stamp
            return
        what = self._latest[id_] = values["what"]
        is_save = operation == "insert" or " save " in what
        self.written.append(Written("post_save" if is_save else "post_update", id_, what, stamp))

    def stop(self) -> None:
        self._ends.set()
        self._thread.join()


class World:
    """One group, its state, its processes, and the deliveries of its receivers."""

    def __init__(self, mongo: Any, foreign: Any, database: str, earlier: Path, directory: Path) -> None:
        self.state = foreign.client[f"{database}_state"]
        self.accounts = foreign["accounts"]
        self.killed: list[str] = []
        foreign.create_collection("accounts", changeStreamPreAndPostImages={"enabled": True})
        self.stream = Stream(self.accounts)
        self._directory = directory
        self._versions = {"old": str(earlier), "new": str(ROOT)}
        self._environment = {
            "VERSIONED_URL": mongo.url,
            "VERSIONED_GROUP": database,
            "VERSIONED_DIRECTORY": str(directory),
            "DISPATCHER_STATE_DATABASE": self.state.name,
        }
        self._writing = contextlib.ExitStack()

    # Processes

    @contextlib.contextmanager
    def dispatcher(self, version: str, **more: str) -> Iterator[Daemon]:
        environment = {**self._environment, "PYTHONPATH": self._versions[version], **more}
        with daemon(APP, *ARGUMENTS, cwd=self._directory, **environment) as running:
            running.wait_started()
            yield running

    def writer(self, version: str, name: str, **more: str) -> "subprocess.Popen[bytes]":
        """A process that writes until it is killed."""
        command = f"from tests.acceptance.apps.versioned import main; main({name!r})"
        environment = {**os.environ, **self._environment, "PYTHONPATH": self._versions[version], **more}
        with (self._directory / f"{name} log").open("wb") as log:
            running = subprocess.Popen(
                [sys.executable, "-c", command], cwd=self._directory, env=environment, stderr=log
            )
        self._writing.callback(running.wait)
        self._writing.callback(running.kill)
        eventually_sync(lambda: self.rounds(name) > 0 or running.poll() is not None or more, what="writes")
        assert running.poll() is None, (self._directory / f"{name} log").read_text()
        return running

    def rounds(self, name: str) -> int:
        try:
            return int((self._directory / f"{name} rounds").read_text() or -1)
        except FileNotFoundError:
            return -1

    def write_on(self, name: str, rounds: int = 3) -> None:
        until = self.rounds(name) + rounds
        eventually_sync(lambda: self.rounds(name) >= until, what=f"writes of {name}")

    def kill(self, writer: "subprocess.Popen[bytes]", name: str) -> None:
        """Kills a writing process, most likely while one of its receivers runs."""
        self.write_on(name)
        writer.kill()
        writer.wait()
        self.killed.append(name)

    def write_foreign(self, number: int) -> None:
        """Makes the writes of a foreign client: an insert, an update and a delete."""
        id_ = self.accounts.insert_one({"what": f"foreign create {number}"}).inserted_id
        self.accounts.update_one({"_id": id_}, {"$set": {"what": f"foreign update {number}"}})
        self.accounts.delete_one({"_id": id_})

    def touch(self, name: str) -> None:
        (self._directory / name).touch()

    def until_claimed(self, name: str, *, claimed: bool = True) -> None:
        """Waits until a process claims its latest writes; with `claimed=False`, until it claims none of them."""

        def is_so() -> bool:
            last = [one for one in self.stream.written if one.what.startswith(f"{name} ")][-5:]
            return bool(last) and all(one.is_claimed == claimed for one in last)

        eventually_sync(is_so, what=f"{name} claims: {claimed}")

    @property
    def owners(self) -> set[str | None]:
        """The members that hold the partitions."""
        return {one["owner"] for one in self.state.positions.find({"partition": {"$exists": True}})}

    def until_owned_by(self, *members: Daemon) -> None:
        ids = {str(one.lines("dispatcher.started")[0]["member"]) for one in members}
        eventually_sync(lambda: self.owners == ids, what="the partitions are shared")

    # Deliveries

    def deliveries(self) -> Counter[tuple[str, str, str, str]]:
        # A takeover gets the present document. The id of the delivery tells which write it belongs to.
        written = {str(one.stamp.token): one.what for one in list(self.stream.written) if one.stamp is not None}
        found: Counter[tuple[str, str, str, str]] = Counter()
        for line in (self._directory / "ledger").read_text().splitlines():
            receiver, signal, id_, what, _, delivery = line.split("\t")
            what = written.get(delivery, what)
            found[receiver, signal, id_, "" if signal == "post_delete" else what] += 1
        return found

    def lost(self) -> list[tuple[str, Written]]:
        """The missing deliveries. Unclaimed deliveries of the last writes of a killed process do not count."""
        found, written = self.deliveries(), list(self.stream.written)
        lost = [
            (receiver, one) for one in written for receiver in RECEIVERS if not found[one.delivery_to(receiver)]
        ]
        return [one for one in lost if not self._is_excused(*one)]

    def _is_excused(self, receiver: str, one: Written) -> bool:
        if receiver != "any" or one.is_claimed or one.stamp is None:
            return False
        name, last = one.what.partition(" ")[0], self.rounds(one.what.partition(" ")[0]) + 1
        return name in self.killed and str(last) in one.what.split()

    def repeated(self) -> list[tuple[str, Written]]:
        found = self.deliveries()
        return [
            (receiver, one)
            for one in self.stream.written
            for receiver in RECEIVERS
            if found[one.delivery_to(receiver)] > 1
        ]

    def end(self) -> None:
        """Ends all writing processes, and waits until nothing is missing."""
        self._writing.close()
        self.write_foreign(-1)
        last = ("post_delete", "foreign update -1")
        eventually_sync(lambda: last in [(one.signal, one.what) for one in self.stream.written], what=last)
        with contextlib.suppress(AssertionError):  # the next line shows what is missing
            eventually_sync(lambda: not self.lost(), within=LONG)
        assert self.lost() == []
        known = {one.delivery_to(receiver) for one in self.stream.written for receiver in (*RECEIVERS, "extra")}
        assert not self.deliveries().keys() - known

    def close(self) -> None:
        self._writing.close()
        self.stream.stop()


@pytest.fixture
def world(mongo: Any, foreign: Any, database: str, earlier: Path, tmp_path: Path) -> Iterator[World]:
    made = World(mongo, foreign, database, earlier, tmp_path)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize(("application", "dispatcher"), [("old", "new"), ("new", "old")])
def test_an_application_of_another_version_than_its_dispatcher_claims_nothing(world, application, dispatcher):
    with world.dispatcher(dispatcher):
        for name in ("first", "second"):
            writer = world.writer(application, name)
            world.write_foreign(1)
            world.kill(writer, name)
        world.end()
    assert not [one for one in world.stream.written if one.is_claimed]
    assert world.state.claims.find_one() is None
    assert world.repeated() == []


@pytest.mark.parametrize(
    "earlier", [WITHOUT_CLAIMS, pytest.param(WITHOUT_CONTEXTS, marks=pytest.mark.exhaustive)], indirect=True
)
@pytest.mark.parametrize("order", ["dispatchers first", "applications first"])
def test_a_rolling_upgrade_loses_nothing_and_repeats_only_deliveries_of_killed_processes(world, order):
    with contextlib.ExitStack() as running:
        dispatchers = [running.enter_context(world.dispatcher("old")) for _ in range(2)]
        world.until_owned_by(*dispatchers)
        writer = world.writer("old", "old")

        def upgrade_dispatchers() -> None:
            for number in range(2):
                dispatchers.append(running.enter_context(world.dispatcher("new")))
                world.write_foreign(number)
                dispatchers.pop(0).terminate()
                world.until_owned_by(*dispatchers)

        def upgrade_applications() -> None:
            nonlocal writer
            world.kill(writer, "old")
            writer = world.writer("new", "new")

        if order == "dispatchers first":
            upgrade_dispatchers()
            upgrade_applications()
        else:
            upgrade_applications()
            upgrade_dispatchers()
        world.until_claimed("new")
        world.kill(writer, "new")
        world.end()
    assert all(one.is_claimed for _, one in world.repeated())
    contexts = {(one.what.split()[0], one.stamp.context) for one in world.stream.written if one.stamp is not None}
    assert contexts == {("old", ""), ("new", '{"user":"new"}')}


def test_an_earlier_dispatcher_that_joins_makes_the_application_claim_nothing(world):
    with world.dispatcher("new") as new:
        writer = world.writer("new", "web")
        world.until_claimed("web")
        with world.dispatcher("old") as old:
            world.until_owned_by(new, old)
            world.until_claimed("web", claimed=False)
            world.write_foreign(1)
            world.write_on("web", 10)
            old.terminate()
        world.until_owned_by(new)
        world.until_claimed("web")
        world.kill(writer, "web")
        world.end()
    assert all(one.is_claimed for _, one in world.repeated())


def test_a_return_to_an_earlier_dispatcher_delivers_all_open_claims(world):
    """Some claims are parked, one takeover has failed, and one claim has no receiver in the dispatcher."""
    with world.dispatcher("new") as new:
        world.touch("lost fail hang")
        writer = world.writer("new", "lost", VERSIONED_EXTRA="1")
        eventually_sync(lambda: world.accounts.find_one({"what": "lost fail hang"}), what="the write")
        writer.kill()
        states = lambda: set(world.state.held.distinct("state"))  # noqa: E731
        eventually_sync(lambda: {"retrying", "orphaned"} <= states(), what="takeovers", within=LONG)
        world.touch("waiting hang")
        waiting = world.writer("new", "waiting", VERSIONED_EXTRA="1")
        eventually_sync(lambda: world.accounts.find_one({"what": "waiting hang"}), what="the write")
        world.accounts.update_one({"what": "waiting hang"}, {"$set": {"what": "foreign hang"}})
        web = world.writer("new", "web")
        world.until_claimed("web")
        eventually_sync(lambda: {"claimed", "following"} <= states(), what="parked claims")
        orphans = world.state.held.count_documents({"receiver": "extra", "state": "orphaned"})
        new.terminate()
    world.write_on("web", 5)
    for one in (waiting, web):
        one.kill()
    with world.dispatcher("old") as old:
        world.touch("mended")
        world.end()
        assert world.state.held.count_documents({"receiver": "extra"}) >= orphans
        old.terminate()
    assert all(one.is_claimed for _, one in world.repeated())
    saves = [one for one in world.stream.written if one.is_claimed and " save " in one.what]
    assert saves
    with world.dispatcher("new", VERSIONED_EXTRA="1"):
        world.state.held.update_many(
            {"receiver": "extra", "due_at": {"$ne": None}}, {"$currentDate": {"due_at": True}}
        )
        nothing = lambda: world.state.held.find_one() is None  # noqa: E731
        eventually_sync(nothing, within=LONG, what="the orphans are delivered")
    extra = {what for receiver, _, _, what in world.deliveries() if receiver == "extra"}
    assert {"lost fail hang", "waiting hang"} <= extra
