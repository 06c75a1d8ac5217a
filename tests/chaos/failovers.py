"""The primary of a replica set of three members is killed, frozen, stepped down, or cut off.

The clients repeat each write until it is certainly committed.
"""

import signal
from collections.abc import Callable
from functools import partial

from pymongo.errors import PyMongoError

from tests.chaos.figures import Figure, figures
from tests.chaos.links import Way, links
from tests.chaos.replica_set import ReplicaSet, replica_set
from tests.chaos.scenario import Plan, Report, Scenario, Size
from tests.chaos.world import World

__all__ = ["SCENARIO"]

# Some of these times are long enough for an election, and some are slightly too short.
_AWAY_SECONDS = (0.5, 2, 5)

_KILLED_AS_WELL = 0.2


class Failovers:
    """The faults of a primary."""

    def __init__(self, world: World, servers: ReplicaSet) -> None:
        self._world = world
        self._servers = servers
        self._chance = world.chance
        self._faults: dict[str, Callable[[], None]] = {
            "primary killed": self._kill,  # always first, because it causes an election
            "primary stepped down": self._step_down,
            "primary frozen": self._freeze,
            "primary cut off from the others": partial(self._cut_off, "reset"),
            "primary cut off from the others, silently": partial(self._cut_off, "silence"),
            "primary cut off from everybody": partial(self._cut_off, "reset", clients=True),
        }
        self._next: list[str] = []

    def fault(self) -> None:
        """Injects one fault; all kinds are equally frequent. Returns when all three members are available."""
        if not self._next:
            first, *others = self._faults
            self._next = [*self._chance.sample(others, len(others)), first]
        kind = self._next.pop()
        self._world.note(kind)
        self._faults[kind]()
        self._servers.wait_until_whole()

    def _away(self) -> None:
        seconds = self._chance.choice(_AWAY_SECONDS)
        self._world.observe_for(seconds / 2)
        if self._chance.random() < _KILLED_AS_WELL:
            self._world.kill(self._world.daemons[0], "daemon killed meanwhile")
        self._world.observe_for(seconds / 2)

    def _kill(self) -> None:
        primary = self._servers.primary()
        primary.kill()
        self._away()
        primary.start()

    def _step_down(self) -> None:
        primary = self._servers.primary()
        try:
            primary.client.admin.command("replSetStepDown", 10, secondaryCatchUpPeriodSecs=5, force=True)
        except PyMongoError:
            self._world.note("primary refused to step down")

    def _freeze(self) -> None:
        primary = self._servers.primary()
        primary.process.send_signal(signal.SIGSTOP)
        self._away()
        primary.process.send_signal(signal.SIGCONT)

    def _cut_off(self, way: Way, *, clients: bool = False) -> None:
        self._servers.cut_off(self._servers.primary(), way, clients=clients)
        self._away()
        self._servers.mend()


def run(plan: Plan) -> Report:
    """Writes, injects faults into the primary, and counts."""
    with (
        links() as made,
        replica_set(plan.directory, made) as servers,
        World(plan, servers.url) as world,
    ):
        before = servers.elections()
        world.break_at_random(Failovers(world, servers).fault)
        world.finish()
        elections, evidence = servers.elections() - before, world.evidence()
    counted = figures(evidence, faults="failovers")
    # A kill or a step-down always causes an election. The other faults may be too short for one.
    counted.insert(4, Figure("elections", elections, least=max(1, plan.size.faults // 3)))
    return Report(counted, evidence.deaths)


SCENARIO = Scenario(
    name="failovers",
    title="a replica set whose primary is killed, frozen, stepped down, or cut off",
    faults="failovers",
    full=Size(writes=20_000, documents=500, faults=30),
    short=Size(writes=3_000, documents=200, faults=6),
    run=run,
)
