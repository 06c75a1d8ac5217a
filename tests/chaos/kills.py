"""One daemon, killed with SIGKILL at random instants, while a foreign client and the application itself write."""

from dispatcher.embedded.server import embedded_mongo
from tests.chaos.figures import figures
from tests.chaos.scenario import Plan, Report, Scenario, Size
from tests.chaos.world import World

__all__ = ["SCENARIO"]


def run(plan: Plan) -> Report:
    """Writes, kills, and counts."""
    with embedded_mongo() as server, World(plan, server.url) as world:
        world.break_at_random(lambda: world.kill(world.daemons[0]))
        world.finish()
        evidence = world.evidence()
    return Report(figures(evidence, faults="kills"), evidence.deaths)


SCENARIO = Scenario(
    name="kills",
    title="one daemon, killed at random instants",
    faults="kills",
    full=Size(writes=100_000, documents=1_000, faults=200),
    short=Size(writes=10_000, documents=200, faults=20),
    run=run,
)
