"""One sequence, from its first write to the verdict."""

import asyncio
from collections import defaultdict, deque
from collections.abc import Sequence

from tests.model.model import GROUPS, RECEIVERS, STAMP, Change, Key, Model, Told
from tests.model.steps import Run, Step
from tests.model.verdict import Verdict, compare
from tests.model.world import END, World

__all__ = ["judge", "with_superseded"]

_END = {"name": END, "n": 1_000, "tags": []}


async def judge(world: World, steps: Sequence[Step]) -> Verdict:
    """Runs a sequence, waits for all deliveries, and compares them with the model.

    Args:
        world: the environment. Its dispatcher may run, or be stopped.
        steps: the sequence.

    Raises:
        Exception: a call failed that should have succeeded.
    """
    run = Run.begin(world, Model(), numbers=len(steps) % 2 == 0)
    await world.beat_all()
    for step in steps:
        await step.carry_out(run)
        await world.beat_all()
    touched = [key for key, changes in run.model.changes.items() if changes]
    for key in touched:
        await _end(run, key)
    await world.start_dispatcher()
    ended = await asyncio.gather(*(world.seen((key[0], run.id_of(key))).ended() for key in touched))
    verdict = Verdict(sequences=1, writes=run.model.writes)
    for key, in_time in zip(touched, ended, strict=True):
        verdict.add(await _judged(run, key, in_time=in_time))
    for key in run.model.in_process:
        if key not in touched and run.model.in_process[key]:  # a write was aborted after its receivers were called
            verdict.add(_in_process(run, key))
    return verdict


async def _end(run: Run, key: Key) -> None:
    """Makes a last write to a document. Its delivery is the last one, because a lane delivers in order."""
    existed = run.row(key) is not None
    run.model.foreign(key, dict(_END), "replace" if existed else "insert")
    await run.world.raw(key[0]).replace_one({"_id": run.id_of(key)}, dict(_END), upsert=True)


async def _judged(run: Run, key: Key, *, in_time: bool) -> Verdict:
    id_ = run.id_of(key)
    seen, changes = run.world.seen((key[0], id_)), run.model.changes[key]
    verdict = _in_process(run, key)
    if len(seen.events) != len(changes) or not all(map(Change.fits, changes, seen.events)):
        verdict.unforeseen += 1
        foreseen = [(change.operation, sorted(change.changed)) for change in changes]
        verdict.words.append(f"{key}: the server reports {seen.events}, the model has {foreseen}")
        return verdict
    for group in GROUPS:
        each = run.model.by_dispatcher(key, seen.events, group)
        in_time = await seen.has(sum(map(len, each)), group) and in_time
        told = seen.told_by(group)
        expected = with_superseded(each, told, changes)
        by_dispatcher = compare(expected, told, f"{key}, by the dispatcher of {group}", _waiting(run, key))
        by_dispatcher.taken = sum(one.is_taken for one in told)
        verdict.add(by_dispatcher)
        once = [told for told in expected if told.receiver == "once"]
        effects = await run.world.effects(id_, group) if key[0] == "others" else []
        if len(effects) != len(once) or len(set(effects)) != len(effects):
            verdict.wrong += 1
            verdict.words.append(f"{key}, {group}: {len(once)} transactional deliveries had the effects {effects}")
        for word in seen.unsteady_ids(group):
            verdict.wrong += 1
            verdict.words.append(f"{key}, {group}: {word}")
    # The verdict already names missing deliveries. If none is missing, all came, but after the deadline.
    if not in_time and verdict.agrees:
        verdict.words.append(f"{key}: a dispatcher did not finish in time")
    seen.closed = True
    return verdict


def _waiting(run: Run, key: Key) -> set[str]:
    """The receivers whose deliveries may have waited for claims."""
    if not any(change.is_claimed for change in run.model.changes[key]):
        return set()
    return {one.name for one in RECEIVERS[key[0]] if one.mode == "any"}


def with_superseded(each: list[list[Told]], seen: list[Told], changes: Sequence[Change]) -> list[Told]:
    """The expected deliveries. Takeovers may be superseded if there are later writes of the ODM, or deletes.

    A receiver gets its takeovers in order. So the first expected one is compared with the first one that came, and
    so on: equal saves have equal deliveries, and any of them may be superseded.
    """
    came: dict[str, deque[Told]] = defaultdict(deque)
    for told in seen:
        if told.is_taken:
            came[told.receiver].append(told)
    expected = []
    for place, some in enumerate(each):
        may_be = any(later.after is None or STAMP in later.after for later in changes[place + 1 :])
        for one in some:
            found = came[one.receiver].popleft() if one.is_taken and came[one.receiver] else one
            expected.append(found if may_be and found == one.as_superseded() else one)
    return expected


def _in_process(run: Run, key: Key) -> Verdict:
    """Compares the calls of receivers in the writing processes."""
    seen = run.world.seen((key[0], run.id_of(key)))
    verdict = compare(run.model.in_process[key], seen.in_process, f"{key}, in process")
    for word in seen.oddities:
        verdict.wrong += 1
        verdict.words.append(f"{key}: {word}")
    return verdict
