"""The network between a daemon and its server: slow, cut, half open, closed late. Not that of the clients."""

from collections.abc import Callable
from functools import partial

from dispatcher.embedded.server import embedded_mongo
from tests.chaos.figures import figures
from tests.chaos.scenario import Plan, Report, Scenario, Size
from tests.chaos.wires import Wire, wires
from tests.chaos.world import World

__all__ = ["SCENARIO"]


class Network:
    """The wire between a daemon and its server, and all that may happen to it."""

    def __init__(self, world: World, wire: Wire) -> None:
        self._world = world
        self._wire = wire
        self._chance = world.chance
        self._faults: dict[str, Callable[[], object]] = {
            "latency": self._lag,
            "all connections reset": wire.reset,
            "some connections reset": partial(wire.reset, self._some),
            "server refuses connections": partial(self._cut, "reset"),
            "server out of reach, silently": partial(self._cut, "silence"),
            "all connections half open": wire.silence,
            "some connections half open": partial(wire.silence, self._some),
            "connections closed late": lambda: wire.close_slowly(self._chance.uniform(1, 3)),
        }
        self._next: list[str] = []

    def fault(self) -> None:
        """One of them; each comes up equally often."""
        if not self._next:
            self._next = self._chance.sample(list(self._faults), len(self._faults))
        kind = self._next.pop()
        self._world.note(kind)
        self._faults[kind]()

    def _some(self) -> bool:
        return self._chance.random() < 0.5

    def _lag(self) -> None:
        most = self._chance.uniform(0.01, 0.2)
        self._wire.slow_down(lambda: self._chance.uniform(0, most))
        self._world.look_for(self._chance.uniform(0.5, 3))
        self._wire.slow_down(None)

    def _cut(self, way: str) -> None:
        self._wire.cut("", way="silence" if way == "silence" else "reset")
        self._world.look_for(self._chance.choice([0.2, 1, 3, 8]))
        self._wire.mend()


def run(plan: Plan) -> Report:
    """Write, break the network, count."""
    with wires() as made, embedded_mongo() as server:
        wire = made.to(server.port)
        url = f"mongodb://127.0.0.1:{wire.port}/?directConnection=true"
        with World(plan, server.url, daemon_url=url) as world:
            world.break_at_random(Network(world, wire).fault)
            world.finish()
            evidence = world.evidence()
    return Report(figures(evidence, faults="network faults"), evidence.deaths)


SCENARIO = Scenario(
    name="network",
    title="latency, resets, half-open connections and late closes between the daemon and its server",
    faults="network faults",
    full=Size(writes=50_000, documents=500, faults=200),
    short=Size(writes=5_000, documents=200, faults=16),
    run=run,
)
