"""Receivers do not change ODM calls. Each scene runs with and without receivers, see `tests/listening`.

Every run has the same few random scenes, and scenes that are written by hand.
LISTENING_EXAMPLES=1000 runs 1000 new random scenes per test; LISTENING_SEED repeats a run.
"""

import asyncio
import os
import random
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from pymongo import MongoClient

from dispatcher.embedded.server import EmbeddedMongo
from tests.conftest import DRIVER
from tests.listening.calls import Scene
from tests.listening.directed import DIRECTED
from tests.listening.scenes import GROUPS, scenes
from tests.listening.verdict import faults
from tests.listening.world import World

LONG = os.environ.get("LISTENING_EXAMPLES")
EXAMPLES = int(LONG or 6)
SEED = int(os.environ.get("LISTENING_SEED") or (random.randrange(10**6) if LONG else 15))


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """One event loop for all examples and their clients."""
    with asyncio.Runner() as made:
        yield made


@pytest.fixture(scope="module")
def world(mongo: EmbeddedMongo, _sync_client: MongoClient, runner: asyncio.Runner) -> Iterator[World]:
    """One world for all tests, because creating its documents takes as long as several scenes."""
    name = f"listening_{os.getpid()}"
    made = World(_sync_client, name)
    runner.run(made.open(mongo.url, DRIVER))
    yield made
    runner.run(made.close())
    _sync_client.drop_database(name)


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside another client"])
@pytest.mark.parametrize("group", GROUPS)
def test_receivers_change_nothing_about_random_calls(
    world: World, runner: asyncio.Runner, group: str, beside: bool
) -> None:
    print(f"LISTENING_SEED={SEED}")

    @seed(SEED)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(scenes(group, foreign=beside))
    def agrees(scene: Scene) -> None:
        wrong = runner.run(faults(world, scene))
        if wrong:
            raise AssertionError("\n".join([str(scene), *wrong]))

    agrees()


@pytest.mark.slow
@pytest.mark.parametrize("about", DIRECTED)
def test_receivers_change_nothing_in_critical_scenes(world: World, runner: asyncio.Runner, about: str) -> None:
    wrong = []
    for number, scene in enumerate(DIRECTED[about], 1):
        found = runner.run(faults(world, scene))
        wrong += [f"{number}. {scene}", *found] if found else []
    assert not wrong, "\n".join(wrong)
