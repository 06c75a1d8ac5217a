"""Random writes of many clients, checked by a model of the delivery contract (see `tests/model`)."""

import asyncio
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from dispatcher.claims import watch
from dispatcher.claims.verdict import ClaimVerdict, verdict_of
from dispatcher.claims.waiting import WaitingClaims
from dispatcher.embedded.server import EmbeddedMongo
from mongoz.claims.book import OpenClaim
from tests.model.model import FATES, GROUPS
from tests.model.runs import judge
from tests.model.steps import Fated, Held, Own, OwnBulk, Raw, Run, Start, Step, Stop, Transaction, Write, sequences
from tests.model.verdict import Verdict
from tests.model.world import World
from tests.support import eventually

SEQUENCES = int(os.environ.get("MODEL_SEQUENCES") or settings().max_examples)
SEED = int(os.environ.get("MODEL_SEED") or random.randrange(10**6))

PARTS = 2  # pytest can run the parts in two processes


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    """One event loop for all sequences, the clients and the dispatcher."""
    with asyncio.Runner() as made:
        yield made


@pytest.fixture
def world(
    mongo: EmbeddedMongo, database: str, runner: asyncio.Runner, request: pytest.FixtureRequest
) -> Iterator[World]:
    part = request.node.callspec.params["part"] if hasattr(request.node, "callspec") else 0

    async def make() -> World:
        made = World(mongo.url, database, park_after=5.0 if part else 0.02)
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
    # After the verdict about a document, each call of its receivers is a repetition, or late. Both are errors.
    for group in GROUPS:
        runner.run(world.stop_dispatcher(group))
    assert world.late == []
    assert total.sequences >= SEQUENCES // PARTS
    assert total.writes > total.sequences
    print(total, f"{world.restarts} starts of the dispatcher")


# -- claims that a process does not finish

KEY = ("items", 0)
CREATE = Own("web", "create", KEY, {"n": 1})
UPDATE, DELETE = Own("web", "update", KEY, {"n": 2}), Own("web", "delete", KEY)
FOREIGN = Raw("foreign", (Write("set", KEY, {"n": 3}),))
MANY = OwnBulk("worker", "create_many", "items", (0, 1), {"n": 1})

UNFINISHED: dict[str, list[Step]] = {
    **{f"update, {fate}": [CREATE, Fated("web", fate, UPDATE), FOREIGN] for fate in FATES},
    **{f"delete, {fate}": [CREATE, Fated("web", fate, DELETE), CREATE] for fate in FATES},
    "late stamp": [Fated("slow", "ends before", Own("slow", "create", KEY)), FOREIGN],
    "bulk": [Fated("worker", "dies", MANY), FOREIGN],
    "transaction": [Fated("web", "dies", Transaction("web", (CREATE, UPDATE))), FOREIGN],
    "parked": [CREATE, Held("web", UPDATE, (FOREIGN, FOREIGN, Stop(), Start()), dies=True), FOREIGN],
    "written again": [CREATE, Stop(), Fated("web", "dies", UPDATE), Own("worker", "update", KEY, {"n": 5})],
}


@pytest.mark.parametrize("part", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_unfinished_claims_are_taken_over_as_in_the_model(world: World, runner: asyncio.Runner, part: int) -> None:
    for name, steps in UNFINISHED.items():
        verdict = runner.run(judge(world, steps))
        assert verdict.agrees, "\n".join([name, *verdict.words])
        assert verdict.taken > 0, name


def test_finished_claims_of_slow_receivers_are_not_taken_over(world: World, runner: asyncio.Runner) -> None:
    steps: list[Step] = [CREATE, Held("web", UPDATE, (FOREIGN, FOREIGN, Stop(), Start()), dies=False), FOREIGN]
    verdict = runner.run(judge(world, steps))
    assert verdict.agrees, "\n".join(verdict.words)
    assert verdict.taken == 0


def test_the_first_claim_of_a_second_book_is_recorded_like_that_of_the_first(
    world: World, runner: asyncio.Runner
) -> None:
    first = Own("worker", "create", ("items", 2), {"n": 6})
    steps: list[Step] = [CREATE, Fated("worker", "ends between", first), Own("worker", "update", KEY, {"n": 9})]
    verdict = runner.run(judge(world, steps))
    assert verdict.agrees, "\n".join(verdict.words)


@dataclass(frozen=True)
class Overtaken(Step):
    """Waits until the dispatcher calls a receiver that a client has already called for this document."""

    by: str
    key: tuple[str, int]

    async def carry_out(self, run: Run) -> None:
        seen = run.world.seen((self.key[0], run.id_of(self.key)))
        in_client = {told.receiver.removeprefix(f"{self.by}/") for told in seen.in_process}
        await eventually(lambda: any(told.receiver in in_client for told in seen.by_dispatcher["ours"]))


def _done_if_it_is_not_released(state: Any, number: int, *, is_dead: bool = False) -> ClaimVerdict:
    found = verdict_of(state, number, is_dead=is_dead)
    return found if state is None or number in state.claims.released else ClaimVerdict.DONE


def _taken_at_once(state: Any, number: int, *, is_dead: bool = False) -> ClaimVerdict:
    found = verdict_of(state, number, is_dead=is_dead)
    return ClaimVerdict.TAKE if found is ClaimVerdict.WAIT else found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name", "broken", "steps", "found"),
    [
        (watch, "verdict_of", _done_if_it_is_not_released, UNFINISHED["update, dies"], "lost"),
        (watch, "verdict_of", _taken_at_once, [CREATE, Held("web", UPDATE, (FOREIGN,), dies=False)], "doubled"),
        (OpenClaim, "may_start", True, UNFINISHED["update, ends before"], "doubled"),
        (
            WaitingClaims,
            "defers",
            lambda *_: False,
            [CREATE, Held("web", UPDATE, (FOREIGN, Overtaken("web", KEY)), dies=True)],
            "disordered",
        ),
    ],
    ids=["open claims are done", "open claims are taken over", "a book that is over starts receivers", "no order"],
)
@pytest.mark.parametrize("part", [1])
def test_the_model_finds_a_broken_rule_of_claims(
    world: World,
    runner: asyncio.Runner,
    owner: Any,
    name: str,
    broken: Any,
    steps: list[Step],
    found: str,
    part: int,
) -> None:
    with mock.patch.object(owner, name, broken):
        verdict = runner.run(judge(world, steps))
    assert getattr(verdict, found) > 0, verdict
