"""The health of a group and of its receivers, as one word."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dispatcher.core.stats import ReceiverFigures, Recent
from dispatcher.operate.health import health_of
from dispatcher.operate.status_model import (
    WORDS,
    DeadLetterCount,
    GroupStatus,
    Health,
    MemberStatus,
    ParkedCount,
    PartitionStatus,
    Pause,
    RelayStatus,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DOCS = Path(__file__).parents[2] / "docs"


def member(id_: str = "m1", *, alive: bool = True, lag: float = 0.0, **recent: dict[str, int]) -> MemberStatus:
    """A member with these recent counters; underscores stand for the dots of receiver names."""
    names = [name.replace("_", ".") for name in recent]
    known = [{"name": name, "signal": "post_save", "formerly": [f"old.{name}"]} for name in names]
    counted = [
        {"receiver": name, "signal": "post_save", "delivered": 10_000, "failed": 500, "recent": figures}
        for name, figures in zip(names, recent.values(), strict=True)
    ]
    stats: dict[str, Any] = {"receivers": counted, "partitions": {"0": {"lag_seconds": lag}}}
    return MemberStatus(id_, "here", 1, "1", None, NOW, 0.0, alive, [0], known, stats, None)


def partition(owner: str | None = "m1", number: int = 0) -> PartitionStatus:
    return PartitionStatus(number, owner, None, 1, NOW, 0.0, 0.0, 0.0, 0.0, None)


def parked(receiver: str, reason: str, documents: int = 3, due: float = 60.0) -> ParkedCount:
    return ParkedCount(receiver, reason, documents, NOW + timedelta(seconds=due))


def group(
    members: Sequence[MemberStatus],
    partitions: Sequence[PartitionStatus],
    lanes: Sequence[ParkedCount] = (),
    pauses: Sequence[Pause] = (),
) -> GroupStatus:
    parts = {"members": members, "partitions": partitions, "parked": lanes, "paused": pauses}
    return GroupStatus("g", NOW, 0.0, None, **{name: list(part) for name, part in parts.items()})


def health(
    *members: MemberStatus, lanes: tuple[ParkedCount, ...] = (), paused: tuple[str | None, ...] = ()
) -> Health:
    pauses = [Pause(one, NOW, "somebody") for one in paused]
    return health_of(group(members, [partition()], lanes, pauses))


GOOD = {"delivered": 100, "failed": 0, "refused": 0, "retried": 0}
QUIET = dict.fromkeys(GOOD, 0)


@pytest.mark.parametrize(
    ("recent", "lanes", "word"),
    [
        (GOOD, (), "delivering"),
        (QUIET, (), "idle"),
        ({}, (), "idle"),
        ({**QUIET, "failed": 1}, (), "failing"),
        ({**QUIET, "failed": 2_961}, (), "failing"),
        ({**GOOD, "failed": 11}, (), "delivering"),
        ({**GOOD, "failed": 12}, (), "failing"),
        ({**GOOD, "refused": 12}, (), "failing"),
        ({**GOOD, "retried": 100}, (), "delivering"),
        ({**GOOD, "retried": 101}, (), "failing"),
        (GOOD, ("retrying",), "delivering"),
        (QUIET, ("retrying",), "failing"),
        (GOOD, ("blocked",), "blocked"),
        ({**QUIET, "failed": 5}, ("blocked",), "blocked"),
        (GOOD, ("orphaned",), "blocked"),
        (GOOD, ("paused",), "behind"),  # the pause has ended, and its parked deliveries are being delivered
        (GOOD, ("retry",), "delivering"),
        (QUIET, ("interrupted",), "idle"),
    ],
)
def test_the_health_of_a_receiver_follows_from_its_counters_and_parked_deliveries(
    recent: dict[str, int], lanes: tuple[str, ...], word: str
):
    found = health(member(shop_mail=recent), lanes=tuple(parked("shop.mail", reason) for reason in lanes))
    assert found.receivers[0][:3] == ("shop.mail", "post_save", word)
    assert found.health == word
    assert bool(found.receivers[0].why) == (word not in ("delivering", "idle"))
    assert found.why == (f"shop.mail is {word}" if word in ("failing", "blocked", "behind") else "")


def test_a_receiver_with_overdue_deliveries_is_behind():
    for due, word in ((-9.0, "delivering"), (-10.0, "behind")):
        found = health(member(shop_mail=GOOD), lanes=(parked("shop.mail", "interrupted", due=due),))
        assert (found.health, found.receivers[0].health) == (word, word)


def test_a_group_with_lag_is_behind():
    for lag, word in ((9.9, "delivering"), (10.0, "behind"), (3_600.0, "behind")):
        found = health(member(lag=lag, shop_mail=GOOD))
        assert (found.health, found.receivers[0].health) == (word, word)
    assert health(member(lag=60.0)).health == "behind"  # before the first delivery


def test_a_pause_by_an_earlier_name_or_of_all_receivers_counts():
    both = member(shop_mail=GOOD, shop_index=QUIET)
    one = health(both, paused=("old.shop.mail",), lanes=(parked("old.shop.mail", "paused"),))
    assert [(each.receiver, each.health) for each in one.receivers] == [
        ("shop.index", "idle"),
        ("shop.mail", "paused"),
    ]
    assert (one.health, one.receivers[1].why) == ("idle", "3 documents wait")
    every = health(both, paused=("shop.mail", "shop.index"))
    assert (every.health, every.why) == ("paused", "every receiver is paused")
    everything = health(member(shop_mail={**QUIET, "failed": 9}), paused=(None,))
    assert (everything.health, [each.health for each in everything.receivers]) == ("paused", ["paused"])


def test_a_group_has_the_health_of_its_worst_receiver():
    bad = {**QUIET, "failed": 1}
    one = member(a=GOOD, b=bad, c=QUIET, d=GOOD)
    lanes = (parked("c", "blocked", 4_000), parked("d", "retry", due=-60.0))
    found = health(one, lanes=lanes)
    assert {each.receiver: each.health for each in found.receivers} == {
        "a": "delivering",
        "b": "failing",
        "c": "blocked",
        "d": "behind",
    }
    assert (found.health, found.why) == ("failing", "b is failing; c is blocked; d is behind")
    assert health(one, lanes=lanes, paused=("b",)).health == "blocked"
    assert health(one, lanes=lanes, paused=("b", "c")).health == "behind"
    many = health(member(**{f"r{n}": bad for n in range(5)}))
    assert many.why == "r0, r1, r2 and 2 more are failing"


def test_the_counters_of_members_are_summed():
    assert health(member(a=GOOD), member("m2", a={**QUIET, "failed": 5})).health == "delivering"
    assert health(member(a=QUIET), member("m2", a={**QUIET, "failed": 5})).health == "failing"
    assert health(member(a=QUIET), member("m2", alive=False, a={**QUIET, "failed": 5})).health == "idle"


def test_a_group_without_live_members_is_down():
    nobody = health(member(alive=False, shop_mail=GOOD), lanes=(parked("shop.mail", "blocked"),))
    assert (nobody.health, nobody.why) == ("down", "no dispatcher is alive")
    assert [one.health for one in nobody.receivers] == ["down"]
    without = health_of(group([member(shop_mail=GOOD)], [partition(), partition(None, 1), partition("gone", 2)]))
    assert (without.health, without.why) == ("down", "no dispatcher owns partitions 1, 2")
    assert [one.health for one in without.receivers] == ["delivering"]


@pytest.mark.parametrize(
    ("succeeded", "failed", "letters", "word"),
    [
        (None, 7_200.0, 1, "failing"),
        (7_300.0, 7_200.0, 1, "failing"),
        (7_200.0, 7_200.0, 1, "idle"),  # equal ages are no failure
        (60.0, 7_200.0, 1, "idle"),
        (None, 7_200.0, 0, "idle"),  # the dead letter was dropped, or delivered by a retry
        (60.0, None, 1, "idle"),
        ("soon", "then", 1, "idle"),  # the report of another version
    ],
)
def test_a_receiver_fails_until_it_succeeds_or_has_no_dead_letters(succeeded, failed, letters, word):
    ages = {"succeeded_seconds": succeeded, "failed_seconds": failed}
    status = group([member(shop_mail={**QUIET, **ages}), member("m2", shop_mail=QUIET)], [partition()])
    status.dead_letters = [DeadLetterCount("old.shop.mail", "post_save", letters, NOW)]
    found = health_of(status)
    assert (found.health, found.receivers[0].health) == (word, word)
    assert bool(found.receivers[0].why) == (word == "failing")


def test_a_receiver_that_succeeds_in_another_process_does_not_fail():
    failing, working = {**QUIET, "failed_seconds": 90.0}, {**QUIET, "succeeded_seconds": 80.0}
    status = group([member(a=failing), member("m2", a=working)], [partition()])
    status.dead_letters = [DeadLetterCount("a", "post_save", 5, NOW)]
    assert health_of(status).health == "idle"


def test_a_receiver_that_no_dispatcher_has_is_down_if_it_has_dead_letters():
    status = group([member(shop_mail=GOOD)], [partition()])
    status.dead_letters = [DeadLetterCount("shop.gone", "post_save", 2, NOW), DeadLetterCount(None, None, 1, NOW)]
    found = health_of(status)
    assert [(one.receiver, one.health) for one in found.receivers] == [
        ("shop.gone", "down"),
        ("shop.mail", "delivering"),
    ]
    assert found.health == "delivering"


@pytest.mark.parametrize(
    ("recent", "rate"),
    [
        (QUIET, None),
        (GOOD, 0.0),
        ({**GOOD, "failed": 25, "retried": 75}, 0.5),
        ({**QUIET, "refused": 3}, 1.0),
    ],
)
def test_the_error_rate_is_the_share_of_attempts_that_failed(recent, rate):
    assert health(member(shop_mail=recent)).receivers[0].error_rate == rate


def test_a_group_whose_state_can_not_be_read_is_down():
    found = health_of(group([member(shop_mail=GOOD)], []), unreadable="no answer within 5 s")
    assert (found.health, found.why) == ("down", "the group's state can't be read: no answer within 5 s")


def test_a_receiver_that_no_live_dispatcher_has_is_blocked_if_its_deliveries_wait():
    found = health(member(shop_mail=GOOD), lanes=(parked("shop.gone", "retrying", 7),))
    gone = found.of("shop.gone", "post_save")
    assert (gone.health, gone.why) == ("blocked", "7 documents wait, and no live dispatcher has this receiver")
    assert found.health == "blocked"
    assert found.of("shop.letters", "post_save").health == "down"
    assert found.of("shop.mail", "post_save").health == "delivering"


def test_malformed_reports_of_members_are_ignored():
    odd = member(a=GOOD)
    odd.receivers.append("nonsense")  # type: ignore[arg-type]
    odd.receivers.append({"signal": "post_save"})
    odd.stats["receivers"] += [7, {"signal": "x"}, {"receiver": "b", "signal": "post_save", "recent": "soon"}]
    odd.stats["partitions"] = {"0": None}
    found = health(odd)
    assert {one.receiver: one.health for one in found.receivers} == {"a": "delivering", "b": "idle"}
    odd.stats.clear()
    assert health(odd).health == "idle"


def test_the_status_of_a_group_has_its_health():
    status = group([member(shop_mail={**QUIET, "failed": 1})], [partition()])
    status.health = health_of(status)
    told = status.as_dict()["health"]
    assert (told["health"], told["receivers"][0]["health"]) == ("failing", "failing")
    assert told["receivers"][0]["receiver"] == "shop.mail"


def test_events_older_than_a_minute_do_not_count():
    figures, recent = ReceiverFigures("a", "post_save"), Recent()
    figures.failed = 7  # before the first observation
    assert recent.of(figures)["failed"] == 7
    for second in range(200):
        recent.note(1_000.0 + second, [figures])
        if second == 10:
            figures.failed += 5
            figures.delivered += 1
        told = recent.of(figures)
        if 10 <= second < 55:
            assert told["failed"] == 12
        elif second > 80:
            assert told["failed"] == 0
    told = recent.of(figures)
    assert {name: told[name] for name in QUIET} == QUIET
    new = ReceiverFigures("b", "post_save")
    new.retried = 3
    assert recent.of(new)["retried"] == 3


def test_the_last_results_of_a_receiver_have_an_age():
    figures, recent = ReceiverFigures("a", "post_save"), Recent()

    def ages() -> tuple[float | None, float | None]:
        told = recent.of(figures)
        return told["succeeded_seconds"], told["failed_seconds"]

    assert ages() == (None, None)
    figures.delivered = 1
    assert ages() == (0.0, None)  # before the first sample
    recent.note(1_000.0, [figures])
    figures.refused = 1
    assert ages() == (0.0, 0.0)
    for second in range(5, 205, 5):
        recent.note(1_000.0 + second, [figures])
    assert ages() == (200.0, 195.0)
    figures.delivered += 1
    assert ages() == (0.0, 195.0)


def test_events_before_the_first_observation_are_recent():
    figures, recent = ReceiverFigures("a", "post_save"), Recent()
    figures.failed = 3
    recent.note(1.0, [figures])
    assert recent.of(figures)["failed"] == 3


def test_each_word_for_the_health_is_in_the_documentation():
    text = (DOCS / "how-to" / "monitoring.md").read_text()
    section = text.split("## In a word\n", 1)[1].split("\n## ", 1)[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == set(WORDS)


# -- Kafka -------------------------------------------------------------------------------------------------


def relay(lag: float | None = 0.0, alive: int = 1, trouble: str | None = None) -> RelayStatus:
    names, nothing = ["here, pid 1"] * alive, None
    return RelayStatus(
        "t", "c", 4, 7, names, nothing, NOW, 33.0, 0.0, lag, 0, 0.0, trouble, nothing, nothing, publishes=[]
    )


def of_topic(*members: MemberStatus, of: RelayStatus, is_relay: bool = False) -> Health:
    status = group(members, [partition()])
    status.relay, status.is_relay = of, is_relay
    return health_of(status)


def test_a_group_is_behind_if_its_relay_is_behind():
    assert of_topic(member(a=GOOD), of=relay()).health == "delivering"
    late = of_topic(member(a=GOOD), of=relay(lag=12.0))
    assert (late.health, late.why) == ("behind", "the relay is 12 s behind")
    without = of_topic(member(a=GOOD), of=relay(lag=None, alive=0))
    assert without.health == "behind"
    assert without.why == "no relay is alive: the changes of the last 33 s are not in the topic"
    assert of_topic(member(a={**QUIET, "failed": 1}), of=relay(lag=12.0)).health == "failing"
    assert of_topic(of=relay(lag=12.0)).health == "down"


def test_the_health_of_a_relay_follows_from_its_changes_its_lag_and_its_trouble():
    at_work = member()
    at_work.stats["per_second"] = {"changes": 3.0}
    assert of_topic(member(), of=relay(), is_relay=True).health == "idle"
    assert of_topic(at_work, of=relay(), is_relay=True).health == "delivering"
    assert of_topic(member(lag=12.0), of=relay(), is_relay=True).health == "behind"
    failing = of_topic(member(lag=12.0), of=relay(trouble="no broker answers"), is_relay=True)
    assert (failing.health, failing.why) == ("failing", "no broker answers")
    assert of_topic(of=relay(), is_relay=True).why == "no relay is alive"
