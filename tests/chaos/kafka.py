"""Two relays publish to a topic of Apache Kafka, and three workers read it. Each part is broken in turn.

Processes are killed, stopped for longer than their lease, and cut off from the broker or from MongoDB. The broker
is killed and stopped. It loses requests of the relay, and it loses records that all readers have read. The primary
steps down.

At the end the receivers must have every write, as in the other scenarios.
"""

import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, Literal, NamedTuple

from pymongo.errors import PyMongoError

from dispatcher.embedded.server import embedded_mongo
from dispatcher.exceptions import ExitCode
from tests.chaos.figures import figures
from tests.chaos.kafka_broker import Broker, broker
from tests.chaos.links import Link, links
from tests.chaos.scenario import Plan, Report, Scenario, Size
from tests.chaos.world import ChaosDaemon, World
from tests.kafka.server import missing
from tests.support import eventually_sync

__all__ = ["SCENARIO"]

_RELAYS: Final = 2
_WORKERS: Final = 3
_PARTITIONS: Final = 6
_TOPIC: Final = "mongoz.changes"
_LEASE_SECONDS: Final = 3.0

_BLOCKED_SECONDS: Final = 5.0

# The client of Kafka gives up a lost record after this time; by default after five minutes. It notices a silent
# broker after twice this time; by default after one minute.
_TIMEOUT_SECONDS: Final = 2
_CLIENT: Final = f"message.timeout.ms = {_TIMEOUT_SECONDS}000\nsocket.timeout.ms = {2 * _TIMEOUT_SECONDS}000\n"

# The maximum number of undelivered writes. It lets the writer go on for some seconds while nothing is delivered.
_AHEAD: Final = 500

# The limits of a batch of records: the usual one, and the lowest one that a relay accepts.
_BATCH_BYTES: Final = (1_048_588, 20_000)

# The maximum time without a delivery. A broker that was killed starts in five seconds, on a busy machine in half a
# minute.
_STALL_SECONDS: Final = 60.0

# A process ends if no broker answers at its start. It is started again, as by a supervisor.
_EXCUSED: Final = {ExitCode.KAFKA: "started without a broker"}


class Relay(ChaosDaemon):
    """`dispatcher relay`."""

    command = "relay"
    started = "relay.started"


class Ways(NamedTuple):
    """The links of a process to the broker and to MongoDB. Its successors use the same links."""

    broker: Link
    mongo: Link

    @property
    def settings(self) -> dict[str, str]:
        """The settings of the process."""
        url = f"mongodb://127.0.0.1:{self.mongo.port}/?directConnection=true"
        return {"DISPATCHER_KAFKA": f"127.0.0.1:{self.broker.port}", "DISPATCHER_URL": url}


class Plant:
    """The processes, the broker and the server, and their faults.

    Args:
        ways: the links of each process. Those of the relays come first.
    """

    def __init__(self, world: World, made: Broker, ways: Sequence[Ways]) -> None:
        self._world = world
        self._broker = made
        self._ways = ways
        self._chance = world.chance
        self._faults: dict[str, Callable[[str], None]] = {
            "relay killed": lambda kind: world.kill(self._publisher(), kind),
            "relay stopped": lambda kind: self._stop(self._publisher(), kind),
            "both relays stopped, one after the other": self._stop_both,
            "relay cut off from the broker": lambda kind: self._cut(self._publisher(), kind, "broker"),
            "relay cut off from MongoDB": lambda kind: self._cut(self._publisher(), kind, "mongo"),
            "produce requests lost": self._lose_requests,
            "requests lost, and the relay blocked": self._lose_requests_and_block,
            "worker killed": lambda kind: world.kill(self._worker(), kind),
            "worker stopped": lambda kind: self._stop(self._worker(), kind),
            "worker blocked": lambda kind: self._block(self._worker(), kind),
            "worker cut off from the broker": lambda kind: self._cut(self._worker(), kind, "broker"),
            "worker cut off from MongoDB": lambda kind: self._cut(self._worker(), kind, "mongo"),
            "broker killed": self._kill_broker,
            "broker stopped": self._stop_broker,
            "records removed that were read": self._remove_records,
            "limit of the topic changed": self._change_limit,
            "primary stepped down": self._step_down,
        }
        self._next: list[str] = []
        self._limits = list(_BATCH_BYTES)
        self.stops = 0

    def start(self) -> None:
        """Starts all processes. The workers begin at the position of the relay."""
        relays = [self._world.start_daemon(Relay, **one.settings) for one in self._ways[:_RELAYS]]
        eventually_sync(lambda: any(one.lines("relay.term") for one in relays), what="a relay publishes")
        workers = [self._world.start_daemon(**one.settings) for one in self._ways[_RELAYS:]]
        for daemon in (*relays, *workers):
            daemon.wait_started()

    def fault(self) -> None:
        """Injects one fault; all kinds are equally frequent."""
        if not self._next:
            self._next = self._chance.sample(list(self._faults), len(self._faults))
        kind = self._next.pop()
        self._faults[kind](kind)

    # -- processes -----------------------------------------------------------------------------------

    def _worker(self) -> ChaosDaemon:
        return self._chance.choice([one for one in self._world.daemons if not isinstance(one, Relay)])

    def _relays(self) -> list[ChaosDaemon]:
        return [one for one in self._world.daemons if isinstance(one, Relay)]

    def _publisher(self) -> ChaosDaemon:
        """The relay with the lease; any relay, if none has it."""
        found = self._world.state["positions"].find_one({"_id": f"{_TOPIC}:0"}) or {}
        relays = self._relays()
        return next((one for one in relays if one.process.pid == found.get("pid")), relays[0])

    def _leases(self, least: float, most: float) -> float:
        return self._chance.uniform(least, most) * _LEASE_SECONDS

    def _stop(self, daemon: ChaosDaemon, kind: str) -> None:
        self.stops += 1
        self._world.suspend(daemon, kind, self._leases(1.2, 2.5))

    def _block(self, daemon: ChaosDaemon, kind: str) -> None:
        """Blocks the event loop of a process for longer than its lease; its other threads go on."""
        self.stops += 1
        self._world.note(kind, daemon)
        with suppress(AssertionError):  # the process has ended
            daemon.wait_started()  # before its start, a process has no handler of this signal
        daemon.process.send_signal(signal.SIGUSR1)
        self._world.observe_for(_BLOCKED_SECONDS)

    def _stop_both(self, kind: str) -> None:
        """The second relay is stopped one to two leases after the first one. Both continue at the same time."""
        first = self._publisher()
        both = [first, *(one for one in self._relays() if one is not first)]
        for one in both:
            self.stops += 1
            self._world.note(kind, one)
            one.process.send_signal(signal.SIGSTOP)
            self._world.observe_for(self._leases(1.0, 2.0))
        for one in both:
            one.process.send_signal(signal.SIGCONT)

    def _cut(self, daemon: ChaosDaemon, kind: str, way: Literal["broker", "mongo"]) -> None:
        (link,) = (getattr(one, way) for one in self._ways if one.settings == daemon.settings)
        self._world.note(kind, daemon)
        link.cut("", way=self._chance.choice(("reset", "silence")))
        self._world.observe_for(self._leases(0.2, 2.5))
        link.mend()

    # -- the broker and the topic --------------------------------------------------------------------

    def _lose_requests(self, kind: str) -> None:
        self._world.note(kind)
        self._broker.lose_produce_requests(self._chance.randint(1, 4))

    def _lose_requests_and_block(self, kind: str) -> None:
        """Loses requests of a relay that can't notice the loss, because its event loop is blocked.

        The producer of the relay goes on in its own threads. It gives up the lost records, and sends the next.
        """
        relay = self._publisher()
        self._world.release_writer()
        lost = self._broker.lost
        self._broker.lose_produce_requests(self._chance.randint(1, 3))
        self._world.until(lambda: self._broker.lost > lost)
        self._world.observe_for(self._chance.uniform(0.5, 1) * _TIMEOUT_SECONDS)
        self._block(relay, kind)

    def _kill_broker(self, kind: str) -> None:
        self._world.note(kind)
        self._broker.kill()
        self._world.observe_for(self._leases(0, 1))
        self._broker.start()

    def _stop_broker(self, kind: str) -> None:
        self._world.note(kind)
        self._broker.send_signal(signal.SIGSTOP)
        self._world.observe_for(self._leases(0.2, 2))
        self._broker.send_signal(signal.SIGCONT)

    def _remove_records(self, kind: str) -> None:
        """Removes the records before the saved positions of the relay and of the workers."""
        relay = self._world.state["relays"].find_one({"_id": _TOPIC})
        workers = self._world.state["positions"].find({"log": {"$exists": True}})
        assert relay is not None  # the relay has published
        ends = {
            one["partition"]: min(one["log"]["offset"], relay["partitions"][one["partition"]]["offset"])
            for one in workers
        }
        self._world.note(kind)
        self._broker.remove_records(_TOPIC, ends)

    def _change_limit(self, kind: str) -> None:
        """Lowers the maximum size of a batch of records, or raises it again."""
        self._limits.append(self._limits.pop(0))
        self._world.note(kind)
        self._broker.configure(_TOPIC, max_message_bytes=str(self._limits[0]))

    # -- MongoDB -------------------------------------------------------------------------------------

    def _step_down(self, kind: str) -> None:
        self._world.note(kind)
        try:
            self._world.client.admin.command("replSetStepDown", 1, force=True)
        except PyMongoError as error:  # some versions end the connection
            self._world.note(f"primary did not answer: {type(error).__name__}")


def run(plan: Plan) -> Report:
    """Writes, injects faults, and counts."""
    properties = plan.directory / "kafka.properties"
    properties.write_text(_CLIENT)
    settings = {
        "DISPATCHER_KAFKA_CONFIG": str(properties),
        "DISPATCHER_RELAY_PARTITIONS": str(_PARTITIONS),
        "DISPATCHER_LEASE": str(_LEASE_SECONDS),
        "LEDGER_BLOCKED": str(_BLOCKED_SECONDS),
    }
    with (
        links() as made,
        embedded_mongo() as server,
        broker(plan.directory / "broker", made, relays=_RELAYS, workers=_WORKERS) as kafka,
        World(plan, server.url, daemons=0, ahead=_AHEAD, crashes=_EXCUSED, **settings) as world,
    ):
        plant = Plant(world, kafka, [Ways(one, made.to(server.port)) for one in kafka.links])
        plant.start()
        world.break_at_random(plant.fault)
        world.finish()
        evidence = world.evidence()
    counted = figures(evidence, faults="faults", late=plant.stops, stall=_STALL_SECONDS)
    return Report(counted, evidence.deaths)


SCENARIO = Scenario(
    name="kafka",
    title="two relays, a broker of Kafka and three workers: killed, stopped, cut off; faults of the topic",
    faults="faults",
    full=Size(writes=100_000, documents=1_000, faults=200),
    short=Size(writes=10_000, documents=200, faults=16),
    run=run,
    missing=missing,
)
