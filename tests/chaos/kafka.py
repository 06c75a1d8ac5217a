"""Two relays publish to a topic of Apache Kafka, and three workers read it. Each part is broken in turn.

Processes are killed, stopped for longer than their lease, and cut off from the broker or from MongoDB. The broker
is killed and stopped; it loses requests of the relay, and records that all readers have read. The primary steps
down.

At the end the receivers must have every write, as in the other scenarios.
"""

import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import psutil
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

# The client of Kafka notices a silent broker within seconds, and gives up a lost request; by default within a
# minute, and after five minutes.
_CLIENT: Final = "message.timeout.ms = 2000\nsocket.timeout.ms = 4000\n"

# The limits of a batch of records: the usual one, and one that a batch of some changes exceeds.
_BATCH_BYTES: Final = (1_048_588, 3_000)

# Seconds without a delivery. A broker that was killed starts in five seconds, on a busy machine in half a minute.
_STALL_SECONDS: Final = 60.0

# A process that starts while no broker answers ends, and its supervisor starts it again.
_EXCUSED: Final = {ExitCode.KAFKA: "started without a broker"}


class Relay(ChaosDaemon):
    """`dispatcher relay`."""

    command = "relay"
    started = "relay.started"


class Plant:
    """The processes, the broker and the server, and their faults.

    Args:
        link: between the processes and MongoDB.
    """

    def __init__(self, world: World, made: Broker, link: Link) -> None:
        self._world = world
        self._broker = made
        self._link = link
        self._chance = world.chance
        self._faults: dict[str, Callable[[str], None]] = {
            "relay killed": lambda kind: world.kill(self._publisher(), kind),
            "relay stopped": lambda kind: self._stop(self._publisher(), kind),
            "both relays stopped, one after the other": self._stop_both,
            "relay cut off from the broker": lambda kind: self._cut(self._publisher(), kind, made.link),
            "relay cut off from MongoDB": lambda kind: self._cut(self._publisher(), kind, link),
            "produce requests lost": self._lose_requests,
            "worker killed": lambda kind: world.kill(self._worker(), kind),
            "worker stopped": lambda kind: self._stop(self._worker(), kind),
            "worker cut off from the broker": lambda kind: self._cut(self._worker(), kind, made.link),
            "worker cut off from MongoDB": lambda kind: self._cut(self._worker(), kind, link),
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
        """Starts all processes. The first start of the workers begins at the position of the relay."""
        relays = [self._world.start_daemon(Relay) for _ in range(_RELAYS)]
        eventually_sync(lambda: any(one.lines("relay.term") for one in relays), what="a relay publishes")
        for one in [*relays, *(self._world.start_daemon() for _ in range(_WORKERS))]:
            one.wait_started()

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

    def _stop_both(self, kind: str) -> None:
        """The second relay is stopped when it has taken over. Both continue at the same time."""
        first = self._publisher()
        both = [first, *(one for one in self._relays() if one is not first)]
        for one in both:
            self.stops += 1
            self._world.note(kind, one)
            one.process.send_signal(signal.SIGSTOP)
            self._world.observe_for(self._leases(1.0, 2.0))
        for one in both:
            one.process.send_signal(signal.SIGCONT)

    def _cut(self, daemon: ChaosDaemon, kind: str, link: Link) -> None:
        self._world.note(kind, daemon)
        link.cut(str(daemon.process.pid), way=self._chance.choice(("reset", "silence")))
        self._world.observe_for(self._leases(0.2, 2.5))
        link.mend()

    # -- the broker and the topic --------------------------------------------------------------------

    def _lose_requests(self, kind: str) -> None:
        self._world.note(kind)
        self._broker.proxy.lose_produce_requests(self._chance.randint(1, 4))

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
        assert relay is not None  # it has published
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


def _client_at(port: int, daemons: Sequence[ChaosDaemon]) -> str:
    """The id of the process that has a connection with this local port; empty if it is none of these."""
    for daemon in daemons:
        with suppress(psutil.Error):
            connections = psutil.Process(daemon.process.pid).net_connections("tcp4")
            if any(one.laddr.port == port and one.raddr for one in connections):
                return str(daemon.process.pid)
    return ""


def run(plan: Plan) -> Report:
    """Writes, injects faults, and counts."""
    worlds: list[World] = []

    def who(port: int) -> str:
        return _client_at(port, [one for world in worlds for one in list(world.daemons)])

    properties = plan.directory / "kafka.properties"
    properties.write_text(_CLIENT)
    with links() as made, embedded_mongo() as server, broker(plan.directory / "broker", made, who) as kafka:
        link = made.to(server.port, who)
        settings = {
            "DISPATCHER_KAFKA": kafka.address,
            "DISPATCHER_KAFKA_CONFIG": str(properties),
            "DISPATCHER_RELAY_PARTITIONS": str(_PARTITIONS),
            "DISPATCHER_LEASE": str(_LEASE_SECONDS),
        }
        url = f"mongodb://127.0.0.1:{link.port}/?directConnection=true"
        with World(plan, server.url, daemons=0, daemon_url=url, crashes=_EXCUSED, **settings) as world:
            worlds.append(world)
            plant = Plant(world, kafka, link)
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
    short=Size(writes=5_000, documents=200, faults=16),
    run=run,
    missing=missing,
)
