"""The rules that apply with all kinds of receivers."""

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from tests.listening.calls import Call, DeleteMany, Row, Scene, UpdateMany, key
from tests.listening.documents import LISTENED, SILENT, WAYS, Way, as_loaded, fits
from tests.listening.outcomes import Change, Outcome, Told, seen
from tests.listening.world import World

__all__ = ["faults"]

_MISSING: Final = object()


async def faults(world: World, scene: Scene) -> list[str]:
    """Runs a scene with all kinds of receivers; returns the errors, in words."""
    find = _check_with_foreign_write if scene.foreign else _check_alone
    return [fault async for fault in find(world, scene)]


async def _check_alone(world: World, scene: Scene) -> AsyncIterator[str]:
    silent = await world.run(SILENT, scene)
    for way in LISTENED:
        outcome = await world.run(way, scene)
        found = [
            *_disagreements(scene, silent, outcome),
            *_unmatched_writes(scene, outcome),
            *_invalid_writes(scene, outcome),
        ]
        for fault in (*found, *_wrong_signals(scene, outcome)):
            yield f"{way.name}: {fault}"


async def _check_with_foreign_write(world: World, scene: Scene) -> AsyncIterator[str]:
    order = [await world.run(SILENT, scene, when) for when in ("before", "after")]
    order += await _results_per_document(world, scene)
    alone = [await world.run(SILENT, replace(scene, calls=()), "after")]
    for way in WAYS:
        outcome = await world.run(way, scene, "between")
        if not outcome.reached:
            continue
        conflicted = scene.within is not None and outcome.conflicted
        found = [
            *_inconsistent_results(alone if conflicted else order, outcome),
            *_unmatched_writes(scene, outcome),
            *_invalid_writes(scene, outcome),
            *_unstored_results(scene, outcome),
        ]
        if way is not SILENT:
            found += _wrong_signals(scene, outcome)
        errors = [each.error for each in order]
        if outcome.error not in errors and not conflicted:
            found.append(f"error: {_shown(outcome.error, errors)} without receivers")
        for fault in found:
            yield f"{way.name}: {fault}"


async def _results_per_document(world: World, scene: Scene) -> list[Outcome]:
    """The outcomes of the call without its skip and limit.

    A call with a skip or a limit selects its documents first, and then writes each of them.
    """
    call = scene.calls[0]
    if not isinstance(call, UpdateMany | DeleteMany) or not (call.selected.skip or call.selected.limit):
        return []
    everything = replace(call, selected=replace(call.selected, skip=0, limit=0))
    whole = replace(scene, calls=(everything, *scene.calls[1:]))
    return [await world.run(SILENT, whole, when) for when in ("before", "after")]


def _disagreements(scene: Scene, silent: Outcome, outcome: Outcome) -> Iterator[str]:
    names = ["error", "results", "instances"]
    if not (silent.error and any(call.query and call.query.sort for call in scene.calls)):
        # If a sorted call fails, the server's own order decides which documents precede the refused one.
        names.append("documents")
    for name in names:
        expected, found = getattr(silent, name), getattr(outcome, name)
        if not _same(expected, found):
            yield f"{name}: {_shown(found, [expected])} without receivers"


def _shown(found: Any, expected: list[Any]) -> str:
    """The differences of two values."""
    rows = [found, *expected]
    if all(isinstance(row, dict) for row in rows):
        names = {name for row in rows for name in row}
        common = {n for n in names if all(n in row and _same(row[n], found.get(n)) for row in rows)}
        rows = [{name: row[name] for name in row if name not in common} for row in rows]
    different: list[Any] = []
    for row in rows[1:]:
        if row not in different:
            different.append(row)
    return f"{rows[0]}, and {' or '.join(map(str, different))}"


def _inconsistent_results(allowed: Sequence[Outcome], outcome: Outcome) -> Iterator[str]:
    """Documents that fit neither a foreign write before the call nor a foreign write after the call."""
    for id_ in sorted({*outcome.documents, *(id_ for each in allowed for id_ in each.documents)}, key=str):
        found = outcome.documents.get(id_)
        possible = [each.documents.get(id_) for each in allowed]
        if not any(_same(found, each) for each in possible):
            yield f"document {id_}: {_shown(found, possible)} without receivers"


def _unmatched_writes(scene: Scene, outcome: Outcome) -> Iterator[str]:
    """Writes to documents that did not match at that time."""
    query = scene.calls[0].query if len(scene.calls) == 1 else None
    for change in outcome.changes if query else ():
        if change.before is not None and not query.matches(change.id, change.before):
            yield f"{change}: it did not match"


def _invalid_writes(scene: Scene, outcome: Outcome) -> Iterator[str]:
    """Writes that made a valid document invalid.

    An outdated instance is validated without a new read. So a write may break a rule for several fields, but never
    the bounds of a single field.
    """
    alone = len(scene.calls) == 1 and (scene.foreign is None or scene.calls[0].query is not None)
    for change in outcome.changes if alone or scene.kind == "Bounded" else ():
        fitted = change.before is None or fits(scene.kind, change.before)
        if fitted and change.after is not None and not fits(scene.kind, change.after):
            yield f"{change}: the model refuses it"


def _unstored_results(scene: Scene, outcome: Outcome) -> Iterator[str]:
    """Documents in the result of a bulk call with values that were never stored."""
    if len(scene.calls) > 1 or scene.within == "aborted":
        return
    states = {seen(id_): rows for id_, rows in _states(scene, outcome).items()}
    for result in outcome.results:
        for found in result if isinstance(result, list) and scene.calls[0].query else ():
            names = found.keys() - {"id"}
            known = states.get(found["id"], [])
            if not any(all(_agrees(found, state, name) for name in names) for state in known):
                yield f"{found} was returned, but never stored"


def _same(one: Any, other: Any) -> bool:
    """Whether two values are equal, and of equal types."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and bool(one == other)


# Signals agree with the writes


def _wrong_signals(scene: Scene, outcome: Outcome) -> Iterator[str]:
    posts = [told for told in outcome.told if told.signal.startswith("post_")]
    pres = [told for told in outcome.told if told.signal.startswith("pre_")]
    way = outcome.way
    if way.muted or way.delivery == "dispatcher":
        yield from (f"told {told}" for told in outcome.told)
    if way.muted:
        for change in outcome.changes:
            if change.stamp is None or not change.stamp.muted:
                yield f"the stamp of {change} has no mute"
        return
    if way.delivery == "dispatcher":
        for change in outcome.changes:
            if change.stamp is not None and change.stamp.receivers:
                yield f"the stamp of {change} claims receivers"
        return
    if any(signal.startswith("pre_") for signal in way.signals):
        yield from _missing_pre_signals(pres, outcome)
    if any(signal.startswith("post_") for signal in way.signals):
        yield from _wrong_post_signals(scene, posts, outcome)
        yield from _wrong_counts(scene, posts, outcome)


def _missing_pre_signals(pres: list[Told], outcome: Outcome) -> Iterator[str]:
    for change in outcome.changes:
        kinds = {"insert": ("pre_save",), "delete": ("pre_delete",)}.get(
            change.operation, ("pre_save", "pre_update")
        )
        if not any(told.signal in kinds and told.id in (change.id, None) for told in pres):
            yield f"no pre receiver got {change}"


def _wrong_post_signals(scene: Scene, posts: list[Told], outcome: Outcome) -> Iterator[str]:
    """Errors: each change must have one delivery with the written values, and there must be no other delivery."""
    left, states = list(outcome.changes), _states(scene, outcome)
    for told in posts:
        known = states.get(told.id, [])
        change = next((change for change in left if _is_of(told, change, outcome.way)), None)
        if change is not None:
            left.remove(change)
            yield from _wrong_keywords(scene, told, change, known, outcome)
        elif not _is_no_change(told, known):
            yield f"{told} was delivered, but not written"
    for change in left:
        yield f"{change} was not delivered"


def _states(scene: Scene, outcome: Outcome) -> dict[Any, list[Row]]:
    """All states of each document, as stored and as loaded."""
    states: dict[Any, list[Row]] = {}
    for id_, *rows in (
        *((key(number), dict(row)) for number, row in scene.rows.items()),
        *((change.id, change.before, change.after) for change in outcome.changes),
        *([(outcome.theirs["_id"], outcome.theirs)] if outcome.theirs else ()),
    ):
        for row in rows:
            if row is not None:
                states.setdefault(id_, []).extend([row, as_loaded(scene.kind, row)])
    return states


def _is_of(told: Told, change: Change, way: Way) -> bool:
    if told.id != change.id:
        return False
    if way.dispatched and (change.stamp is None or str(change.stamp.token) != told.token):
        return False
    match change.operation:
        case "insert":
            return told.signal == "post_save" and told.created is True
        case "delete":
            return told.signal == "post_delete"
        case "update":
            if told.signal == "post_update":
                assert told.update_fields is not None
                if not change.names <= told.update_fields:
                    return False
            elif told.signal != "post_save" or told.created:
                return False
            assert change.after is not None
            return all(_agrees(told.instance, change.after, name) for name in change.names)
    return False


def _agrees(instance: Row, row: Row, name: str) -> bool:
    if name in row:
        return _same(seen(instance.get(name, _MISSING)), row[name])
    return True  # removed, so the instance has its default


def _wrong_keywords(scene: Scene, told: Told, change: Change, known: list[Row], outcome: Outcome) -> Iterator[str]:
    row = change.before if change.operation == "delete" else change.after
    assert row is not None, "the collection has images"
    for name, value in told.instance.items():
        if name == "id" or _agrees(told.instance, row, name):
            continue
        stale = name not in change.names and any(_same(seen(value), seen(state.get(name))) for state in known)
        if not stale:
            yield f"{told} has another {name!r} than {change}"
    if told.signal == "post_update" and told.previous is None and fits(scene.kind, change.before or {}):
        yield f"{told} has no previous state"
    for name, value in (told.previous or {}).items():
        if name != "id" and not any(_same(seen(value), seen(state.get(name, value))) for state in known):
            yield f"{told} has a previous {name!r} that was never stored"
    if change.stamp is not None and not change.stamp.receivers:
        yield f"the stamp of {change} does not name the receiver of {told}"


def _is_no_change(told: Told, known: list[Row]) -> bool:
    """Whether the delivery belongs to a write without a change."""
    if told.signal == "post_delete" or told.created:
        return False
    names = told.update_fields if told.update_fields is not None else told.instance.keys() - {"id"}
    return any(all(_agrees(told.instance, state, name) for name in names) for state in known)


def _wrong_counts(scene: Scene, posts: list[Told], outcome: Outcome) -> Iterator[str]:
    """Signals whose number of deliveries differs from the results of the calls."""
    if outcome.error is not None or scene.within == "aborted":
        return
    for signal in ("post_update", "post_delete"):
        results = zip(scene.calls, outcome.results, strict=True)
        expected = sum(_number(call, result) for call, result in results if call.fired() == signal)
        number = sum(told.signal == signal for told in posts)
        if number != expected:
            yield f"{number} {signal} were delivered, but the results are {outcome.results}"


def _number(call: Call, result: Any) -> int:
    if isinstance(result, list):
        return len(result)
    return int(result) if isinstance(result, int) else 1
