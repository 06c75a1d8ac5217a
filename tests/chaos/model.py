"""Random writes of many clients, checked by the model of the delivery contract (see `tests/model`)."""

import asyncio
import time
from collections.abc import Sequence

from hypothesis import HealthCheck, Phase, given, seed, settings

from dispatcher.core.output.logs import configure_logging
from dispatcher.embedded.server import embedded_mongo
from tests.chaos.figures import Figure
from tests.chaos.scenario import Plan, Report, Scenario, Size
from tests.model.model import GROUPS
from tests.model.runs import judge
from tests.model.steps import Step, sequences
from tests.model.verdict import Verdict
from tests.model.world import World

__all__ = ["SCENARIO"]

# Sequences per round. The memory of hypothesis grows with each sequence, and so does the time for the next one.
_ROUND = 250


def run(plan: Plan) -> Report:
    """Runs sequences; hypothesis minimizes the first one that disagrees with the model."""
    configure_logging("json", "critical")  # the dispatcher runs in this process
    began, total, notes = time.monotonic(), Verdict(), []
    with embedded_mongo() as server, asyncio.Runner() as runner:
        world = World(server.url, "model")
        runner.run(world.start())
        try:
            while total.sequences < plan.size.faults:
                count = min(_ROUND, plan.size.faults - total.sequences)
                disagreement = _round(world, runner, count, plan.seed + total.sequences, total)
                if disagreement:
                    notes.append(disagreement)
                    break
                plan.say(f"{total.sequences:,} sequences")
            # The stop waits for deliveries in flight. Those of already judged documents go to
            # `world.late`.
            for group in GROUPS:
                runner.run(world.stop_dispatcher(group))
        finally:
            runner.run(world.close())
    notes += map(str, world.late)
    return Report(_figures(plan, total, world, time.monotonic() - began), notes)


def _round(world: World, runner: asyncio.Runner, count: int, number: int, total: Verdict) -> str:
    """Runs this number of sequences; returns the text of a disagreement, if any."""

    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(sequences())
    def agrees(steps: Sequence[Step]) -> None:
        verdict = runner.run(judge(world, steps))
        total.add(verdict)
        assert verdict.agrees, "\n".join([*verdict.words, "after", *map(str, steps)])

    try:
        agrees()
    except AssertionError as error:
        return str(error)
    return ""


def _figures(plan: Plan, total: Verdict, world: World, seconds: float) -> list[Figure]:
    return [
        Figure("sequences", total.sequences, least=plan.size.faults),
        Figure("writes", total.writes),
        Figure("deliveries that the model expects", total.expected),
        Figure("deliveries", total.seen),
        Figure("starts of the dispatcher", world.restarts),
        Figure("lost", total.lost, most=0),
        Figure("repeated, or to a wrong receiver", total.doubled, most=0),
        Figure("out of order", total.disordered, most=0),
        Figure("with wrong keywords or effects", total.wrong, most=0),
        Figure("calls after the verdict", len(world.late), most=0),
        Figure("changes that the model did not foresee", total.unforeseen, most=0),
        Figure("took", seconds, "s"),
    ]


SCENARIO = Scenario(
    name="model",
    title="random calls, transactions, copies and restarts of several clients, checked by a model",
    faults="sequences",
    full=Size(writes=1, documents=1, faults=3_000),
    short=Size(writes=1, documents=1, faults=300),
    run=run,
    says="{faults:,} sequences",
)
