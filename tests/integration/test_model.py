"""Random writes of many clients, checked by a model of the delivery contract (see `tests/model`)."""

import asyncio
import os
import random
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from dispatcher.embedded.server import EmbeddedMongo
from tests.model.model import GROUPS
from tests.model.runs import judge
from tests.model.steps import Step, sequences
from tests.model.verdict import Verdict
from tests.model.world import World

SEQUENCES = int(os.environ.get("MODEL_SEQUENCES") or settings().max_examples)
SEED = int(os.environ.get("MODEL_SEED") or random.randrange(10**6))

PARTS = 2  # two processes can share the work


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    """One event loop for all sequences, the clients and the dispatcher."""
    with asyncio.Runner() as made:
        yield made


@pytest.fixture
def world(mongo: EmbeddedMongo, database: str, runner: asyncio.Runner) -> Iterator[World]:
    async def make() -> World:
        made = World(mongo.url, database)
        await made.start()
        return made

    made = runner.run(make())
    yield made
    runner.run(made.close())


@pytest.mark.hypothesis
@pytest.mark.parametrize("part", range(PARTS))
def test_every_receiver_gets_the_deliveries_of_the_model(world: World, runner: asyncio.Runner, part: int) -> None:
    print(f"MODEL_SEED={SEED}")
    total = Verdict()

    @seed(SEED + part)
    @settings(
        max_examples=SEQUENCES // PARTS,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(sequences())
    def agrees(steps: list[Step]) -> None:
        verdict = runner.run(judge(world, steps))
        total.add(verdict)
        assert verdict.agrees, "\n".join([*verdict.words, "after", *map(str, steps)])

    agrees()
    # A delivery after the last change of a document was finished is a repetition or late.
    for group in GROUPS:
        runner.run(world.stop_dispatcher(group))
    assert world.late == []
    assert total.sequences >= SEQUENCES // PARTS
    assert total.writes > total.sequences
    print(total, f"{world.restarts} starts of the dispatcher")
