"""Dispatchers of an earlier version and of this one run side by side.

No delivery is lost. Deliveries are repeated only after a kill.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId

from tests.earlier_version import SEVERAL_COLLECTIONS, earlier_version
from tests.support import ROOT, daemon, eventually_sync

APP = "tests.acceptance.apps.upgraded:registry"
RECEIVERS = ("blocking", "retrying", "dying", "resting")
ARGUMENTS = ("--partitions", "2", "--lease", "6", "--park-after", "0.5", "--save-interval", "0.2")
OLD = ("parked", "parked_lanes", "dead_letters", "parked_chunks", "dead_letter_chunks")

# The number of documents of each kind.
LOAD = 3

# Seconds for many deliveries on a busy machine.
LONG = 250.0

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return earlier_version(tmp_path_factory, SEVERAL_COLLECTIONS)


class Load:
    """A foreign client that writes all documents in rounds, with the number of the round."""

    def __init__(self, collection: Any) -> None:
        self.documents = {f"{name} {n}": ObjectId() for name in (*RECEIVERS, "steady") for n in range(LOAD)}
        self.written = 0
        self._collection = collection
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._write)

    def start(self) -> None:
        self._thread.start()

    def _write(self) -> None:
        while not self._ends.is_set():
            for name, id_ in self.documents.items():
                self._collection.replace_one({"_id": id_}, {"name": name, "n": self.written}, upsert=True)
            self.written += 1
            time.sleep(0.3)

    def write_on(self, rounds: int) -> None:
        """Waits until every document has this number of further writes."""
        until = self.written + rounds
        eventually_sync(lambda: self.written >= until)

    def stop(self) -> None:
        self._ends.set()
        if self._thread.ident is not None:
            self._thread.join()


class World:
    """One group, its state, and the deliveries of its receivers."""

    def __init__(self, mongo: Any, foreign: Any, database: str, earlier: Path, directory: Path) -> None:
        self.state = foreign.client[f"{database}_state"]
        self.directory = directory
        self.load = Load(foreign["accounts"])
        self._earlier = earlier
        self._group = database
        self._environment = {
            "UPGRADED_URL": mongo.url,
            "UPGRADED_GROUP": database,
            "UPGRADED_DIRECTORY": str(directory),
            "DISPATCHER_STATE_DATABASE": self.state.name,
        }

    def old(self) -> Any:
        return daemon(APP, *ARGUMENTS, cwd=self.directory, PYTHONPATH=str(self._earlier), **self._environment)

    def new(self) -> Any:
        return daemon(APP, *ARGUMENTS, cwd=self.directory, PYTHONPATH=str(ROOT), **self._environment)

    def pause(self) -> None:
        whose = {"receiver": "resting", "receiver_name": "resting"}
        id_ = f"{self._group}:pause:resting"
        self.state.controls.insert_one({"_id": id_, "group": self._group, "kind": "pause", "by": "test", **whose})

    @property
    def owners(self) -> set[str | None]:
        """The members that hold the partitions."""
        return {one["owner"] for one in self.state.positions.find({"partition": {"$exists": True}})}

    def begin(self) -> None:
        """Writes until an earlier version holds deliveries of every kind."""
        self.load.start()
        self.load.write_on(5)
        self.pause()
        kinds = {"blocked", "retrying", "paused"}
        eventually_sync(lambda: kinds <= set(self.state.parked_lanes.distinct("reason")), what="parked")
        eventually_sync(lambda: self.state.dead_letters.count_documents({}) == LOAD, what="dead letters")

    def mend(self) -> None:
        """Lets all receivers succeed, requests retries, and waits until everything is delivered."""
        self.load.stop()
        (self.directory / "mended").touch()
        self.state.controls.delete_many({})
        self.state.held.update_many({"reason": "failed"}, {"$currentDate": {"retry_requested_at": True}})
        # This condition comes first, because it is cheaper than reading the ledger.
        nothing = lambda: self.state.held.find_one({}, {"_id": True}) is None  # noqa: E731
        eventually_sync(lambda: nothing() and self.got() == self.all(), within=LONG, what="all deliveries")
        assert sum(self.state[name].count_documents({}) for name in OLD) == 0

    def all(self) -> dict[str, set[int]]:
        return {f"{one} {name}": {*range(self.load.written)} for one in RECEIVERS for name in self.load.documents}

    def got(self) -> dict[str, set[int]]:
        return {key: set(numbers) for key, numbers in self.orders().items()}

    def orders(self) -> dict[str, list[int]]:
        """The delivered numbers in order, by receiver and document."""
        found: dict[str, list[int]] = defaultdict(list)
        for line in (self.directory / "ledger").read_text().splitlines():
            key, _, number = line.rpartition(" ")
            found[key].append(int(number))
        return found


@pytest.fixture
def world(mongo: Any, foreign: Any, database: str, earlier: Path, tmp_path: Path) -> Iterator[World]:
    made = World(mongo, foreign, database, earlier, tmp_path)
    try:
        yield made
    finally:
        made.load.stop()


def member_of(running: Any) -> str:
    (started,) = running.lines("dispatcher.started")
    return str(started["member"])


def in_order(key: str, numbers: list[int]) -> list[int]:
    """The numbers in the order of the writes.

    The delivery of the first write became a dead letter, and was retried later. So number 0 is moved to the front.
    """
    if key.startswith("dying dying"):
        assert numbers[0] != 0
        return [0, *(number for number in numbers if number)] if numbers.count(0) == 1 else numbers
    return numbers


def test_nothing_is_lost_or_repeated_if_the_new_version_starts_before_the_old_one_ends(world):
    """The new version gets the partitions one by one; an old version that joins later gets none."""
    with world.old() as old:
        old.wait_started()
        world.begin()
        with world.new() as new:
            new.wait_started()
            eventually_sync(lambda: new.lines("lease.claimed"), what="one of the partitions")
            eventually_sync(lambda: new.lines("held.upgraded"), what="converted deliveries of the old version")
            assert member_of(old) in new.lines("members.older")[0]["members"][0]
            world.load.write_on(10)
            assert world.owners == {member_of(old), member_of(new)}
            old.terminate()
            eventually_sync(lambda: world.owners == {member_of(new)}, what="all partitions")
            with world.old() as late:
                late.wait_started()
                eventually_sync(lambda: late.lines("lease.outdated"), what="`late` notices that it is outdated")
                world.load.write_on(8)
                assert world.owners == {member_of(new)}
                late.terminate()
            world.mend()
            new.terminate()
    for key, numbers in world.orders().items():
        assert in_order(key, numbers) == [*range(world.load.written)], key


@pytest.mark.exhaustive
def test_nothing_is_lost_if_the_old_version_ends_before_the_new_one_starts(world):
    """An old version that joins later gets no partition, even if it is alone. The changes wait."""
    with world.old() as old:
        old.wait_started()
        world.begin()
        old.terminate()
    world.load.write_on(5)
    with world.new() as new:
        new.wait_started()
        eventually_sync(lambda: world.owners == {member_of(new)}, what="all partitions")
        with world.old() as late:
            late.wait_started()
            eventually_sync(lambda: late.lines("lease.outdated"), what="`late` notices that it is outdated")
            eventually_sync(lambda: new.lines("members.older"), what="the new version notices the old member")
            new.kill()
            # `late` knows immediately that a process on its machine is dead. These writes take some seconds, so
            # `late` has enough time to claim the partitions.
            world.load.write_on(15)
            assert not late.lines("lease.claimed")
            world.state.dead_letters.insert_one(
                {"_id": "late", "group": world._group, "receiver": None, "reason": "undecodable", "chunked": {}}
            )
            with world.new() as next_:
                next_.wait_started()
                eventually_sync(lambda: world.owners == {member_of(next_)}, what="all partitions")
                eventually_sync(lambda: world.state.held.find_one({"_id": "late"}), what="a late dead letter")
                world.state.held.delete_one({"_id": "late"})
                late.terminate()
                world.mend()
                next_.terminate()
    for key, numbers in world.orders().items():
        first = list(dict.fromkeys(numbers))  # one process was killed, so some deliveries are repeated
        assert in_order(key, first) == [*range(world.load.written)], key
