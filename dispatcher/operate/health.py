"""How a group of dispatchers and each of its receivers are, in a word. Pure.

Of a receiver, the first of these that holds:

    down        no dispatcher that is alive has it
    paused      it is paused, or everything is
    blocked     documents wait behind a delivery that it can't make: on_failure="block", or a receiver that is gone
    failing     lately a tenth of its deliveries were given up, or more attempts failed than succeeded, or none
                succeeded while deliveries wait for their next attempt
    behind      changes or parked deliveries wait for it longer than they should
    delivering  lately it got deliveries
    idle        there was nothing to deliver

A group is `down` if no dispatcher is alive or a partition has no owner, and `paused` if everything is. Otherwise
it is as its receiver that is worst off: failing, blocked, behind, delivering, idle. Receivers that are paused or
down by themselves don't count.

"Lately" is what members report as `recent`: a minute. So a receiver that was mended is well again after that.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple

from dispatcher.operate.status_model import MemberStatus, ParkedStatus, PartitionStatus, PauseStatus

__all__ = ["BEHIND", "WORDS", "Health", "ReceiverHealth", "Word", "health_of"]

Word = Literal["failing", "blocked", "behind", "delivering", "idle", "paused", "down"]

WORDS: Final[tuple[Word, ...]] = ("failing", "blocked", "behind", "delivering", "idle", "paused", "down")
"""All words; the first five from the worst to the best, as receivers decide about their group."""

BEHIND: Final = 10.0
"""Seconds that a change may wait."""

# The share of deliveries given up from which on a receiver fails.
_GIVEN_UP: Final = 0.1

# Receivers that a sentence about the group names.
_NAMED: Final = 3


class ReceiverHealth(NamedTuple):
    """How one receiver of one signal is.

    Attributes:
        receiver: its name.
        signal: likewise; "" where it is not known.
        health: in a word.
        why: in a sentence; "" where there is nothing to say.
    """

    receiver: str
    signal: str
    health: Word
    why: str = ""


class Health(NamedTuple):
    """How a group is.

    Attributes:
        health: in a word.
        why: in a sentence; "" where there is nothing to say.
        receivers: how each of them is.
    """

    health: Word
    why: str
    receivers: list[ReceiverHealth]

    def of(self, receiver: str, signal: str) -> ReceiverHealth:
        """That of one receiver; of one that nobody has, that it is down."""
        for one in self.receivers:
            if one.receiver == receiver and one.signal in (signal, ""):
                return one
        return ReceiverHealth(receiver, signal, "down", _NOBODY)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**self._asdict(), "receivers": [one._asdict() for one in self.receivers]}


_NOBODY: Final = "no dispatcher that is alive has it"


@dataclass
class _Facts:
    """What is known of one receiver of one signal."""

    delivered: float = 0.0
    given_up: float = 0.0
    retried: float = 0.0
    waiting: list[ParkedStatus] = field(default_factory=list)

    def waits(self, *reasons: str) -> int:
        """Documents that wait for one of these reasons."""
        return sum(one.documents for one in self.waiting if one.reason in reasons)


def health_of(
    members: Sequence[MemberStatus],
    partitions: Iterable[PartitionStatus],
    parked: Iterable[ParkedStatus],
    paused: Iterable[PauseStatus],
    now: datetime,
) -> Health:
    """How a group is.

    Args:
        members: its processes, dead or alive.
        partitions: of its work.
        parked: deliveries that wait, by receiver and reason.
        paused: what is.
        now: on the server's clock.
    """
    alive = [one for one in members if one.alive]
    owners = {one.id for one in alive}
    without = sorted(one.number for one in partitions if one.owner not in owners)
    stopped = {one.receiver for one in paused}
    lag = max((_lag(one) for one in alive), default=0.0)
    names = _names(alive)
    seen = _Seen(now, lag, names, stopped)
    receivers = [
        ReceiverHealth(name, signal, *next(_verdicts(name, facts, seen)))
        for (name, signal), facts in sorted(_facts(alive, parked, names).items(), key=lambda one: one[0])
    ]
    if not alive:
        return Health("down", "no dispatcher is alive", [one._replace(health="down") for one in receivers])
    if without:
        listed = ", ".join(map(str, without))
        return Health("down", f"nobody works on partition {listed}", receivers)
    return _of_group(receivers, everything=None in stopped, lag=lag)


def _of_group(receivers: list[ReceiverHealth], *, everything: bool, lag: float) -> Health:
    if everything:
        return Health("paused", "everything is paused", receivers)
    working = [one for one in receivers if one.health not in ("paused", "down")]
    if receivers and not working and any(one.health == "paused" for one in receivers):
        return Health("paused", "every receiver is paused", receivers)
    worst: Word = "behind" if lag >= BEHIND else "idle"
    worst = min([worst, *(one.health for one in working)], key=WORDS.index)
    parts = [_named(word, working) for word in WORDS[:3] if any(one.health == word for one in working)]
    if lag >= BEHIND and not any(one.health == "behind" for one in working):
        parts.append(f"changes wait for {lag:.0f} s")
    return Health(worst, "; ".join(parts), receivers)


def _named(word: Word, receivers: Iterable[ReceiverHealth]) -> str:
    names = list(dict.fromkeys(one.receiver for one in receivers if one.health == word))
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more} {'is' if len(names) == 1 else 'are'} {word}"


class _Seen(NamedTuple):
    """What all receivers are judged by."""

    now: datetime
    lag: float
    names: Mapping[str, set[str]]
    stopped: set[str | None]


def _verdicts(name: str, facts: _Facts, seen: _Seen) -> Iterator[tuple[Word, str]]:
    """What holds of a receiver, and why; the first one is what it is called."""
    if name not in seen.names:
        waiting = sum(one.documents for one in facts.waiting)
        yield ("blocked", f"{waiting} documents wait, and {_NOBODY}") if waiting else ("down", _NOBODY)
    elif None in seen.stopped or not seen.names[name].isdisjoint(seen.stopped):
        waiting = facts.waits("paused")
        yield "paused", f"{waiting} documents wait" if waiting else ""
    if blocked := facts.waits("blocked", "orphaned"):
        yield "blocked", f"{blocked} documents wait for a delivery that fails"
    ended = facts.delivered + facts.given_up
    if facts.given_up and facts.given_up >= _GIVEN_UP * ended:
        yield "failing", f"{facts.given_up:.0f} of the last minute's {ended:.0f} deliveries were given up"
    if facts.given_up + facts.retried > facts.delivered:
        yield "failing", f"more attempts failed than succeeded: {facts.given_up + facts.retried:.0f}"
    if not facts.delivered and (retrying := facts.waits("retrying")):
        yield "failing", f"{retrying} documents wait for the next attempt at a delivery that fails"
    if late := _late(facts.waiting, seen.now):
        yield "behind", f"parked deliveries of {late} documents are overdue"
    if seen.lag >= BEHIND:
        yield "behind", f"changes wait for {seen.lag:.0f} s"
    yield "delivering" if facts.delivered else "idle", ""


def _late(waiting: Iterable[ParkedStatus], now: datetime) -> int:
    """Documents whose parked deliveries should have been tried by now."""
    due = [one for one in waiting if one.due_at is not None and (now - one.due_at).total_seconds() >= BEHIND]
    # What a pause left behind is delivered as soon as it ends.
    return sum(one.documents for one in waiting if one in due or one.reason == "paused")


def _names(alive: Iterable[MemberStatus]) -> dict[str, set[str]]:
    """The receivers that somebody has, each with the names that it has or had."""
    names: dict[str, set[str]] = defaultdict(set)
    for member in alive:
        for known in member.receivers:
            if isinstance(known, Mapping) and known.get("name") is not None:
                names[str(known["name"])] |= {str(known["name"]), *map(str, known.get("formerly") or ())}
        for counted in _counted(member):
            names[str(counted["receiver"])].add(str(counted["receiver"]))
    return dict(names)


def _facts(
    alive: Iterable[MemberStatus], parked: Iterable[ParkedStatus], names: Mapping[str, set[str]]
) -> dict[tuple[str, str], _Facts]:
    facts: dict[tuple[str, str], _Facts] = defaultdict(_Facts)
    for member in alive:
        for known in member.receivers:
            if isinstance(known, Mapping) and known.get("name") is not None:
                facts[str(known["name"]), str(known.get("signal"))]  # now it is there
        for counted in _counted(member):
            one = facts[str(counted["receiver"]), str(counted.get("signal"))]
            recent = counted.get("recent")
            if isinstance(recent, Mapping):  # earlier versions say nothing of it
                one.delivered += _number(recent.get("delivered"))
                one.given_up += _number(recent.get("failed")) + _number(recent.get("refused"))
                one.retried += _number(recent.get("retried"))
    for lane in parked:
        now_called = [name for name, former in names.items() if lane.receiver in former]
        keys = [key for key in facts if key[0] in now_called]
        for key in keys or [(str(lane.receiver), "")]:
            facts[key].waiting.append(lane)
    return facts


def _counted(member: MemberStatus) -> list[Mapping[str, Any]]:
    found = member.stats.get("receivers")
    entries = found if isinstance(found, list) else []
    return [one for one in entries if isinstance(one, Mapping) and "receiver" in one]


def _lag(member: MemberStatus) -> float:
    told = member.stats.get("partitions")
    if not isinstance(told, Mapping):
        return 0.0
    lags = [_number(one.get("lag_seconds")) for one in told.values() if isinstance(one, Mapping)]
    return max(lags, default=0.0)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
