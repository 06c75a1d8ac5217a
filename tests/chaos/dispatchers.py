"""Three daemons share several partitions. Some are killed, suspended or terminated; others join or repartition.

A process that is suspended for longer than its lease resumes with partitions that others have taken over.
It may finish its running deliveries. It may begin at most one delivery: if it was suspended between the check of
its lease and the call of the receiver.
"""

from collections.abc import Callable

from dispatcher.embedded.server import embedded_mongo
from tests.chaos.figures import Figure, figures
from tests.chaos.scenario import Plan, Report, Scenario, Size
from tests.chaos.world import ChaosDaemon, World

__all__ = ["SCENARIO"]

_DAEMONS = 3
_PARTITIONS = (5, 1, 3, 8)
_LEASE_SECONDS = 3.0


class Group:
    """The daemons and their faults."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._chance = world.chance
        self._faults: dict[str, Callable[[ChaosDaemon], None]] = {
            "killed": lambda daemon: world.kill(daemon, "killed"),
            "killed, and back late": self._kill_for_long,
            "stopped for longer than the lease": lambda daemon: self._stop(daemon, 1.5, 2.5),
            "stopped for a moment": lambda daemon: self._stop(daemon, 0.2, 0.6),
            "left cleanly": self._request_stop,
            "joined by a fourth": self._join,
            "divided anew": self._repartition,
        }
        self._next: list[str] = []
        self._partitions = _PARTITIONS[0]
        self.stops = 0

    def fault(self) -> None:
        """Injects one fault; all kinds are equally frequent."""
        if not self._next:
            self._next = self._chance.sample(list(self._faults), len(self._faults))
        self._kind = self._next.pop()
        self._faults[self._kind](self._chance.choice(self._world.daemons))

    def _lease(self, least: float, most: float) -> float:
        return self._chance.uniform(least, most) * _LEASE_SECONDS

    def _kill_for_long(self, daemon: ChaosDaemon) -> None:
        self._world.kill(daemon, self._kind, successor=False)
        self._world.observe_for(self._lease(0.5, 2))
        self._world.start_daemon()

    def _stop(self, daemon: ChaosDaemon, least: float, most: float) -> None:
        self.stops += 1
        self._world.suspend(daemon, self._kind, self._lease(least, most))

    def _request_stop(self, daemon: ChaosDaemon) -> None:
        self._world.note(self._kind, daemon)
        self._world.request_stop(daemon)
        self._world.start_daemon()

    def _join(self, daemon: ChaosDaemon) -> None:
        self._world.note(self._kind, self._world.start_daemon())
        self._world.observe_for(self._lease(0.5, 2))
        self._world.note("left cleanly", daemon)
        self._world.request_stop(daemon)

    def _repartition(self, daemon: ChaosDaemon) -> None:
        """Starts a fourth daemon with another number of partitions; later daemons have this number too."""
        self._partitions = self._chance.choice([number for number in _PARTITIONS if number != self._partitions])
        self._world.configure(DISPATCHER_PARTITIONS=str(self._partitions))
        self._join(daemon)


def run(plan: Plan) -> Report:
    """Writes, injects faults into the daemons, and counts."""
    settings = {"DISPATCHER_PARTITIONS": str(_PARTITIONS[0]), "DISPATCHER_LEASE": str(_LEASE_SECONDS)}
    with embedded_mongo() as server, World(plan, server.url, daemons=_DAEMONS, **settings) as world:
        group = Group(world)
        world.break_at_random(group.fault)
        world.finish()
        evidence = world.evidence()
        late = world.leases_ended({event.pid for event in evidence.events if event.kind.startswith("stopped")})
    counted = figures(
        evidence,
        faults="changes of the group",
        late=group.stops,
        harmless=() if late else ("left cleanly", "joined by a fourth", "divided anew"),
    )
    counted.insert(3, Figure("leases ended on a slow machine", late))
    return Report(counted, evidence.deaths)


SCENARIO = Scenario(
    name="dispatchers",
    title="three daemons with shared partitions: kills, suspensions, stops, joins, repartitions",
    faults="changes of the group",
    full=Size(writes=50_000, documents=1_000, faults=120),
    short=Size(writes=5_000, documents=200, faults=12),
    run=run,
)
