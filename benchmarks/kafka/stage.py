"""The servers of a run, and the processes around them."""

from typing import Any, Final, NamedTuple

from pymongo import MongoClient

from benchmarks.busy import Heard
from benchmarks.contestants import Contestant, busy_daemon, relay
from benchmarks.kafka.topic import Topic
from benchmarks.plan import Plan
from benchmarks.processes import cpu_seconds
from benchmarks.setting import Setting
from benchmarks.workloads.environment import GROUP, Assignment
from benchmarks.workloads.shape import COLLECTION_PREFIX, Shape
from dispatcher.core.state import POSITIONS
from dispatcher.kafka.topics import topic_name

__all__ = ["Stage", "Usage", "state_of"]

_AT_ONCE: Final = 1_000

# Relays and workers are stopped (SIGSTOP) while a backlog is written, and must keep their leases.
_LEASE: Final = ("--lease", "120")


class Usage(NamedTuple):
    """Seconds of processor time of the servers."""

    mongod: float
    broker: float

    def since(self, before: "Usage") -> "Usage":
        """The processor time since an earlier reading."""
        return Usage(self.mongod - before.mongod, self.broker - before.broker)


class Stage(NamedTuple):
    """The servers.

    Attributes:
        setting: the arguments of the run.
        client: a client of the MongoDB server.
        brokers: the address of Kafka.
        mongod, broker: the process ids of the two servers.
    """

    setting: Setting
    client: MongoClient[dict[str, Any]]
    brokers: str
    mongod: int
    broker: int

    @property
    def plan(self) -> Plan:
        """The size of the run."""
        return self.setting.plan

    def say(self, text: str) -> None:
        """Report the progress."""
        self.setting.say(text)

    def usage(self) -> Usage:
        """The processor time of the servers so far."""
        return Usage(cpu_seconds(self.mongod), cpu_seconds(self.broker))

    # -- processes -------------------------------------------------------------------------------------------

    def assignment(self, name: str, expected: int = 0) -> Assignment:
        """An assignment for the busy application, in a database of this name."""
        return Assignment(self.setting.url, name, expected, "arrivals")

    def topic(self, name: str, partitions: int) -> Topic:
        """The topic of a relay."""
        return Topic(self.brokers, topic_name(name), partitions)

    def relay(self, name: str, partitions: int, *, app: str = "busy") -> Contestant:
        """A relay of the busy application. The database of the documents has the same name as the relay."""
        assignment = self.assignment(name)
        flags = ("--kafka", self.brokers, "--name", name, "--partitions", str(partitions), *_LEASE)
        return relay(assignment, state_of(name), *flags, app=app)

    def from_topic(self, name: str) -> tuple[str, ...]:
        """The flags of a dispatcher that reads the topic of a relay."""
        return ("--kafka", self.brokers, "--kafka-topic", topic_name(name))

    def worker(self, name: str, *flags: str, shape: Shape | None = None) -> Contestant:
        """A dispatcher of the busy application that reads the topic of a relay."""
        lease = () if "--lease" in flags else _LEASE
        return busy_daemon(
            self.assignment(name),
            state_of(name),
            shape or Shape(),
            flags=(*self.from_topic(name), *lease, *flags),
        )

    def wait_shared(self, name: str, heard: Heard, members: int) -> None:
        """Wait until this number of processes holds all partitions, in equal parts.

        Raises:
            BenchmarkFailed: it does not happen in time.
        """
        heard.wait("Sharing the partitions", lambda: self._are_shared(name, members))

    def _are_shared(self, name: str, members: int) -> bool:
        owners = [one.get("owner") for one in self._positions(name)]
        counts = [owners.count(owner) for owner in {*owners}]
        return None not in owners and len(counts) == members and max(counts) - min(counts) <= 1

    def _positions(self, name: str) -> list[dict[str, Any]]:
        """The positions of the dispatchers, without the position of the relay."""
        ours = {"_id": {"$regex": f"^{GROUP}:"}, "partition": {"$exists": True}}
        return list(self.client[state_of(name)][POSITIONS].find(ours))

    def wait_saved(self, name: str, heard: Heard, records: int) -> None:
        """Wait until the saved positions of the dispatchers have passed this number of records.

        Raises:
            BenchmarkFailed: it does not happen in time.
        """
        heard.wait(f"Saving the positions after {records} records", lambda: self._saved(name) >= records)

    def _saved(self, name: str) -> int:
        return sum(one["log"]["offset"] for one in self._positions(name) if "log" in one)

    # -- writes ----------------------------------------------------------------------------------------------

    def write(self, name: str, count: int) -> None:
        """Insert documents of the busy application."""
        collection = self.client[name][f"{COLLECTION_PREFIX}0"]
        for start in range(0, count, _AT_ONCE):
            numbers = range(start, min(start + _AT_ONCE, count))
            collection.insert_many([{"number": number, "text": "x" * 100} for number in numbers])


def state_of(name: str) -> str:
    """The state database that belongs to a database."""
    return f"{name}_state"
