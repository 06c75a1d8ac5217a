"""The network between a daemon and its server is slow, cut, half open, or closed late.

The writers do not use this network.
"""

from collections.abc import Callable
from functools import partial

from dispatcher.embedded.server import embedded_mongo
from tests.chaos.figures import figures
from tests.chaos.links import Link, links
from tests.chaos.scenario import Plan, Report, Scenario, Size
from tests.chaos.world import World

__all__ = ["SCENARIO"]


class Network:
    """The link between a daemon and its server, and its faults."""

    def __init__(self, world: World, link: Link) -> None:
        self._world = world
        self._link = link
        self._chance = world.chance
        self._faults: dict[str, Callable[[], object]] = {
            "latency": self._lag,
            "all connections reset": link.reset,
            "some connections reset": partial(link.reset, self._some),
            "server refuses connections": partial(self._cut, "reset"),
            "server out of reach, silently": partial(self._cut, "silence"),
            "all connections half open": link.silence,
            "some connections half open": partial(link.silence, self._some),
            "connections closed late": lambda: link.close_slowly(self._chance.uniform(1, 3)),
        }
        self._next: list[str] = []

    def fault(self) -> None:
        """Injects one fault; all kinds are equally frequent."""
        if not self._next:
            self._next = self._chance.sample(list(self._faults), len(self._faults))
        kind = self._next.pop()
        self._world.note(kind)
        self._faults[kind]()

    def _some(self) -> bool:
        return self._chance.random() < 0.5

    def _lag(self) -> None:
        most = self._chance.uniform(0.01, 0.2)
        self._link.slow_down(lambda: self._chance.uniform(0, most))
        self._world.observe_for(self._chance.uniform(0.5, 3))
        self._link.slow_down(None)

    def _cut(self, way: str) -> None:
        self._link.cut("", way="silence" if way == "silence" else "reset")
        self._world.observe_for(self._chance.choice([0.2, 1, 3, 8]))
        self._link.mend()


def run(plan: Plan) -> Report:
    """Writes, breaks the network, and counts."""
    with links() as made, embedded_mongo() as server:
        link = made.to(server.port)
        url = f"mongodb://127.0.0.1:{link.port}/?directConnection=true"
        with World(plan, server.url, daemon_url=url) as world:
            world.break_at_random(Network(world, link).fault)
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
