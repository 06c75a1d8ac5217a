"""The health of a group of dispatchers and of each receiver, as one word. No I/O.

A receiver has the first word that applies:

    down        no dispatcher is alive, or the state can't be read. Or the receiver has dead letters, no live
                dispatcher has it, and no documents wait for it
    paused      it or everything is paused, and a live dispatcher has this receiver
    blocked     documents wait for a failing delivery (on_failure="block"), or for a receiver that no live
                dispatcher has
    failing     in the last minute, at least a tenth of its deliveries failed for good, more attempts failed
                than succeeded, or no attempt succeeded while deliveries wait for their next attempt. Or its last
                delivery, however long ago, failed for good, and it has dead letters
    behind      the largest lag in the group is at least BEHIND seconds, parked deliveries are overdue by BEHIND
                seconds, or a pause has ended, and some of the deliveries that it parked are not made yet
    delivering  it got deliveries in the last minute
    idle        there was nothing to deliver

A group is `down` if its state can't be read, no dispatcher is alive or a partition has no live owner. It is
`paused` if everything is paused, or if every receiver that is not down is paused. Otherwise it has the worst word
of its receivers (the worst first: failing, blocked, behind, delivering, idle). Receivers that are paused or down
individually don't count. If the lag is BEHIND seconds or more, the word is `behind` or a worse one. The same
applies to a group that reads from a topic, while the relay of this topic is not alive or has such a lag.

A relay is `down` under the same conditions as a group, and `failing` while it can't use its topic. Otherwise
it is `behind`, `delivering` or `idle`.

For each receiver, a member reports the counts of the last minute and the age of the last results, as `recent`.
A repaired receiver is `failing` for at most a minute. But if its last delivery failed for good, it stays
`failing` until a delivery succeeds, or until its dead letters are gone.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from math import inf
from typing import Any, Final, NamedTuple

from dispatcher.core.partitions import name_partitions
from dispatcher.core.stats import duration
from dispatcher.operate.status_model import (
    NO_DISPATCHER,
    WORDS,
    GroupStatus,
    Health,
    MemberStatus,
    ParkedCount,
    ReceiverHealth,
    RelayStatus,
    Word,
    number,
)

BEHIND: Final = 10.0
"""Seconds for which changes wait until the word is `behind`."""

# A receiver is failing if at least this share of its deliveries failed for good.
_GIVEN_UP: Final = 0.1

# Maximum number of receivers that are named in the reason for the health of a group.
_NAMED: Final = 3


@dataclass
class _Facts:
    """Facts about one receiver of one signal.

    They are the counts of the last minute, the age of the last results, and the held deliveries.

    Attributes:
        pace: the options `concurrency`, `rate` and `batch`.
    """

    delivered: float = 0.0
    given_up: float = 0.0
    retried: float = 0.0
    succeeded_seconds: float = inf
    failed_seconds: float = inf
    letters: int = 0
    pace: tuple[int | None, str | None, int | None] = (None, None, None)
    waiting: list[ParkedCount] = field(default_factory=list)

    @property
    def error_rate(self) -> float | None:
        """The share of the last minute's attempts that failed; None without attempts."""
        failed = self.given_up + self.retried
        attempts = self.delivered + failed
        return round(failed / attempts, 4) if attempts else None

    def waits(self, *reasons: str) -> int:
        """The number of documents that wait for one of these reasons."""
        return sum(one.documents for one in self.waiting if one.reason in reasons)


def health_of(status: GroupStatus, unreadable: str = "") -> Health:
    """The health of a group, from the other attributes of its status.

    Args:
        unreadable: the reason why the state of the group can't be read; empty if the status is complete.
    """
    alive = status.alive
    owners = {one.id for one in alive}
    without = [one.number for one in status.partitions if one.owner not in owners]
    stopped = {one.receiver for one in status.paused}
    lag = max((one.lag_seconds or 0.0 for one in alive), default=0.0)
    names = _names(alive)
    group_facts = _GroupFacts(status.at, lag, names, stopped)
    receivers = [
        _receiver_health(name, signal, facts, group_facts)
        for (name, signal), facts in sorted(_facts(status, names).items(), key=lambda one: one[0])
    ]
    process = "relay" if status.is_relay else "dispatcher"
    if unreadable:
        return Health("down", f"the group's state can't be read: {unreadable}", receivers)
    if not alive:
        return Health("down", f"no {process} is alive", [one._replace(health="down") for one in receivers])
    if without:
        return Health("down", f"no {process} owns {name_partitions(without)}", receivers)
    if status.is_relay:
        return _of_relay(status, lag)
    health = _of_group(receivers, everything=None in stopped, lag=lag)
    late = _late_relay(status.relay)
    if late and WORDS.index(health.health) >= WORDS.index("behind") and health.health != "paused":
        return health._replace(health="behind", why="; ".join(one for one in (late, health.why) if one))
    return health


def _of_relay(status: GroupStatus, lag: float) -> Health:
    if status.broker_troubles:
        return Health("failing", status.broker_troubles[0], [])
    if lag >= BEHIND:
        return Health("behind", f"changes wait for {lag:.0f} s", [])
    read = max(number(dict(one.stats.get("per_second") or {}).get("changes")) for one in status.alive)
    return Health("delivering" if read else "idle", "", [])


def _late_relay(relay: RelayStatus | None) -> str:
    """The reason why the topic lacks changes; empty if it has all."""
    if relay is None:
        return ""
    if not relay.alive:
        return (
            f"no relay is alive: the changes of the last {relay.position_age_seconds:.0f} s are not in the topic"
        )
    if (relay.lag_seconds or 0.0) >= BEHIND:
        return f"the relay is {relay.lag_seconds:.0f} s behind"
    return ""


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


class _GroupFacts(NamedTuple):
    """Facts that concern all receivers: the time, the lag, the known names with their former ones, the pauses."""

    now: datetime
    lag: float
    names: Mapping[str, set[str]]
    stopped: set[str | None]


def _receiver_health(name: str, signal: str, facts: _Facts, group_facts: _GroupFacts) -> ReceiverHealth:
    word, why = next(_verdicts(name, facts, group_facts))
    concurrency, rate, batch = facts.pace
    return ReceiverHealth(name, signal, word, why, facts.error_rate, concurrency, rate, batch)


def _verdicts(name: str, facts: _Facts, group_facts: _GroupFacts) -> Iterator[tuple[Word, str]]:
    """The words that apply to a receiver, each with its reason. The first one counts."""
    if name not in group_facts.names:
        waiting = sum(one.documents for one in facts.waiting)
        yield ("blocked", f"{waiting} documents wait, and {NO_DISPATCHER}") if waiting else ("down", NO_DISPATCHER)
    elif None in group_facts.stopped or not group_facts.names[name].isdisjoint(group_facts.stopped):
        waiting = facts.waits("paused")
        yield "paused", f"{waiting} documents wait" if waiting else ""
    if blocked := facts.waits("blocked", "orphaned"):
        yield "blocked", f"{blocked} documents wait for a delivery that fails"
    ended = facts.delivered + facts.given_up
    if facts.given_up and facts.given_up >= _GIVEN_UP * ended:
        yield "failing", f"{facts.given_up:.0f} of the last minute's {ended:.0f} deliveries were given up"
    if facts.given_up + facts.retried > facts.delivered:
        yield "failing", f"{facts.given_up + facts.retried:.0f} attempts failed, more than succeeded"
    if not facts.delivered and (retrying := facts.waits("retrying")):
        yield "failing", f"{retrying} documents wait for the next attempt at a delivery that fails"
    if facts.letters and facts.failed_seconds < facts.succeeded_seconds:
        kept = f"{facts.letters} dead letter{'' if facts.letters == 1 else 's'}"
        yield "failing", f"its last delivery was given up {duration(facts.failed_seconds)} ago; it has {kept}"
    if late := _late(facts.waiting, group_facts.now):
        yield "behind", f"parked deliveries of {late} documents are overdue"
    if group_facts.lag >= BEHIND:
        yield "behind", f"changes wait for {group_facts.lag:.0f} s"
    yield "delivering" if facts.delivered else "idle", ""


def _late(waiting: Iterable[ParkedCount], now: datetime) -> int:
    """The number of documents whose parked deliveries are overdue."""
    due = [one for one in waiting if one.due_at is not None and (now - one.due_at).total_seconds() >= BEHIND]
    # While the receiver is paused, its word is `paused`, and this number has no effect. When the pause ends, the
    # deliveries that it has parked are due immediately.
    return sum(one.documents for one in waiting if one in due or one.reason == "paused")


def _names(alive: Iterable[MemberStatus]) -> dict[str, set[str]]:
    """The receivers of live members. Each has a set of its present and former names."""
    names: dict[str, set[str]] = defaultdict(set)
    for member in alive:
        for known in member.known:
            names[str(known["name"])] |= {str(known["name"]), *map(str, known.get("formerly") or ())}
        for counted in member.counted:
            names[str(counted["receiver"])].add(str(counted["receiver"]))
    return dict(names)


def _facts(status: GroupStatus, names: Mapping[str, set[str]]) -> dict[tuple[str, str], _Facts]:
    facts: dict[tuple[str, str], _Facts] = defaultdict(_Facts)
    for member in status.alive:
        for known in member.known:
            one = facts[str(known["name"]), str(known.get("signal"))]
            one.pace = (known.get("concurrency"), known.get("rate"), known.get("batch"))
        for counted in member.counted:
            one, recent = facts[str(counted["receiver"]), str(counted.get("signal"))], counted.get("recent")
            if isinstance(recent, Mapping):  # earlier versions do not report it
                _add(one, recent)
    for lane in status.parked:
        now_called = _now_called(lane.receiver, names)
        keys = [key for key in facts if key[0] in now_called]
        for key in keys or [(str(lane.receiver), "")]:
            facts[key].waiting.append(lane)
    for letters in status.dead_letters:
        if letters.receiver is not None:
            for name in _now_called(letters.receiver, names) or [letters.receiver]:
                facts[name, str(letters.signal)].letters += letters.count
    return dict(facts)


def _add(facts: _Facts, recent: Mapping[str, Any]) -> None:
    """Add the report of one member."""
    facts.delivered += number(recent.get("delivered"))
    facts.given_up += number(recent.get("failed")) + number(recent.get("refused"))
    facts.retried += number(recent.get("retried"))
    facts.succeeded_seconds = min(facts.succeeded_seconds, _age(recent.get("succeeded_seconds")))
    facts.failed_seconds = min(facts.failed_seconds, _age(recent.get("failed_seconds")))


def _age(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else inf


def _now_called(receiver: str | None, names: Mapping[str, set[str]]) -> list[str]:
    """The present names of the receivers that have, or had, this name."""
    return [name for name, former in names.items() if receiver in former]
