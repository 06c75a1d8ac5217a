"""Receivers raise, hang, and end the process. Two of the receivers always refuse some writes."""

from dispatcher.embedded.server import embedded_mongo
from tests.chaos.figures import Figure, figures
from tests.chaos.receiver_faults import CRASH, RECEIVERS, TIMEOUT, doomed
from tests.chaos.scenario import Plan, Report, Scenario, Size
from tests.chaos.world import World

__all__ = ["SCENARIO"]

# A delivery is parked if its next attempt would begin more than this number of seconds after the first attempt.
# Here this happens to each delivery that fails three times.
_PARK_AFTER = 0.15


def run(plan: Plan) -> Report:
    """Writes, lets the receivers fail, and counts."""
    directory, salt = plan.directory / "faults", str(plan.seed)
    directory.mkdir()
    settings = {
        "FAULT_DIRECTORY": str(directory),
        "FAULT_SALT": salt,
        "DISPATCHER_TIMEOUT": str(TIMEOUT),
        "DISPATCHER_PARK_AFTER": str(_PARK_AFTER),
    }
    with embedded_mongo() as server, World(plan, server.url, crashes={CRASH: "crash"}, **settings) as world:

        def crash() -> None:
            """Makes the next call of a random receiver end the process."""
            receiver, when = world.chance.choice(RECEIVERS), world.chance.choice(("before", "after"))
            crashes = len(world.events)
            (directory / f"{receiver}-{when}").touch()
            world.until(lambda: len(world.events) > crashes)

        world.break_at_random(crash)
        world.finish(doomed=lambda receiver, write: doomed(receiver, *write, salt))
        evidence = world.evidence()
    failures = (directory / "failures").read_text() if (directory / "failures").exists() else ""
    counted = figures(evidence, faults="crashes")
    counted[3:3] = [
        Figure("attempts that raised", failures.count("r"), least=1),
        Figure("attempts that hung", failures.count("h")),
    ]
    return Report(counted, evidence.deaths)


SCENARIO = Scenario(
    name="receivers",
    title="receivers that raise, hang, and end the process",
    faults="crashes",
    full=Size(writes=30_000, documents=1_000, faults=60),
    short=Size(writes=5_000, documents=200, faults=10),
    run=run,
)
