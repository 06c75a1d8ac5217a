"""The relay loses nothing, whatever happens to its records, its processes and its lease.

See `tests/model/relay.py`.
"""

import asyncio
import os
import random

import pytest

from tests.model.relay import RelayFaults, RelaySimulation, patched
from tests.support import PATIENCE

SEED = int(os.environ.get("MODEL_SEED") or random.randrange(10**6))
RUNS = 25
MANY_RUNS = 400


@pytest.fixture(autouse=True)
def _simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    patched(monkeypatch)


async def run(seeds: range) -> RelayFaults:
    faults = RelayFaults()
    for seed in seeds:
        try:
            async with asyncio.timeout(PATIENCE):
                await RelaySimulation(seed, faults).run()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
    return faults


async def test_relays_lose_nothing_keep_the_order_and_count_only_accepted_records() -> None:
    faults = await run(range(SEED, SEED + RUNS))
    assert faults.kills + faults.zombies + faults.expired >= RUNS


@pytest.mark.parametrize("seed", range(3))
async def test_a_relay_that_is_killed_after_any_answer_loses_nothing(seed: int) -> None:
    answers = 1
    async with asyncio.timeout(PATIENCE):
        while await RelaySimulation(SEED + seed).run_killed_after(answers):
            answers += 1
    assert answers > 2


async def test_a_relay_without_a_lease_sends_nothing() -> None:
    async with asyncio.timeout(PATIENCE):
        await RelaySimulation(SEED).run_without_renewals()


@pytest.mark.exhaustive
async def test_relays_lose_nothing_in_many_runs() -> None:
    faults = await run(range(SEED + RUNS, SEED + RUNS + MANY_RUNS))
    print(f"{MANY_RUNS} runs from MODEL_SEED={SEED}: {vars(faults)}")
    assert min(vars(faults).values()) > MANY_RUNS // 200, "a fault hardly happens"
