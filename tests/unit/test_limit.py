"""The options `concurrency` and `rate`, and the places that they allow."""

import asyncio

import pytest

import mongoz
from dispatcher.pace.limit import Limit, LimitsByName, Place
from dispatcher.parking.limited_lanes import LimitedLanes
from mongoz.core.signals import post_save, pre_save
from mongoz.signals.options import Options, Rate, options_of
from mongoz.signals.receivers import Receiver
from tests.support import eventually


def checked(**given):
    return options_of(given, signal="post_save", label="receiver hook")


@pytest.mark.parametrize(
    ("text", "rate", "seconds"),
    [("100/min", 100, 60.0), ("5/s", 5, 1.0), ("1000/h", 1000, 3600.0), ("1/day", 1, 86400.0)],
)
def test_a_rate_is_a_number_and_a_period(text, rate, seconds):
    options = checked(rate=text)
    assert (options.rate.count, options.rate.seconds, str(options.rate)) == (rate, seconds, text)
    assert (options.delivery, options.is_limited) == ("dispatcher", True)


WRONG_RATES = [
    "",
    "5",
    "0/s",
    "-1/s",
    "100/parsec",
    "5/",
    "s/5",
    "5/s/s",
    "5/min ",
    "\N{ARABIC-INDIC DIGIT FIVE}/s",
    0,
    (5, "s"),
    "1.5/s",
    "5/m",
    "5/week",
    "5 / s",
    "/s",
    5,
    "5/s\n",
    "05/s",
]


@pytest.mark.parametrize("rate", WRONG_RATES)
def test_the_error_for_a_wrong_rate_shows_a_right_rate(rate):
    with pytest.raises(mongoz.SignalError, match=r"of receiver hook .* such as '100/min'. The periods are s, min"):
        checked(rate=rate)


@pytest.mark.parametrize("concurrency", [0, -1, 1.5, True, "5", float("inf"), []])
def test_concurrency_is_a_positive_integer(concurrency):
    with pytest.raises(mongoz.SignalError, match="of receiver hook must be an integer of at least 1"):
        checked(concurrency=concurrency)


LIMITS = [{"concurrency": 5}, {"rate": "5/s"}, {"batch": mongoz.Batch()}]


@pytest.mark.parametrize("given", LIMITS)
@pytest.mark.parametrize("signal", ["pre_save", "pre_update", "pre_delete", None])
def test_limits_and_batches_are_for_post_signals_only(given, signal):
    (option,) = given
    with pytest.raises(mongoz.SignalError, match=rf"{option}= is for post_\* signals; .* runs in process only"):
        options_of(given, signal=signal, label="receiver hook")


@pytest.mark.parametrize("given", LIMITS)
def test_a_refused_receiver_is_not_connected(given):
    class Item(mongoz.Document):
        name: str = mongoz.String()

        class Meta:
            abstract = True

    async def hook(sender, **kwargs): ...

    with pytest.raises(mongoz.SignalError, match="is for post_"):
        pre_save(Item, **given)(hook)
    with pytest.raises(mongoz.SignalError, match="is for post_"):
        Item.signals.pre_delete.connect(hook, **given)
    with pytest.raises(mongoz.SignalError, match="a custom signal runs in process only"):
        mongoz.Signal().connect(hook, **given)
    with pytest.raises(mongoz.SignalError, match=r"contradicts|is for dispatchers"):
        post_save(Item, delivery="process", **given)(hook)
    for name in ("pre_save", "pre_delete", "post_save"):
        assert getattr(Item.signals, name).receivers == ()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"concurrency": 2, "delivery": "process"}, "concurrency= of receiver hook is for dispatchers"),
        ({"rate": "1/s", "delivery": "process"}, "rate= of receiver hook implies delivery='dispatcher'"),
        ({"rate": "1/s", "delivery": "any"}, "rate= of receiver hook implies delivery='dispatcher'"),
    ],
)
def test_options_that_contradict_each_other_are_errors(given, message):
    with pytest.raises(mongoz.SignalError, match=message):
        checked(**given)


def test_a_receiver_with_concurrency_may_still_run_in_the_writing_process():
    assert checked(concurrency=2).delivery == "any"


def receiver(name, **options):
    return Receiver(eventually, name, 1, Options(**options))


def test_receivers_of_one_name_share_a_limit_even_under_a_former_name():
    one, other = (receiver("hook", concurrency=1, formerly=("old",)) for _ in range(2))
    limits = LimitsByName([one, other, receiver("plain")])
    assert limits["hook"] is limits["old"]
    assert "plain" not in limits


async def test_places_go_to_callers_in_their_order():
    limit = Limit(concurrency=1)
    assert limit.take()
    first, second, third = (limit.ask() for _ in range(3))
    assert not limit.withdraw(second)
    limit.give_back()
    assert (first.done(), third.done()) == (True, False)
    assert limit.withdraw(first)  # the first caller has the place, and must give it back
    assert not limit.take()
    limit.give_back()
    assert third.done()
    limit.give_back()
    assert limit.take()


async def test_a_rate_admits_the_next_caller_in_time():
    limit = Limit(rate=Rate(50, "s"))
    assert not limit.take()  # the process holds no partition yet
    limit.set_share(2, 4)
    assert sum(limit.take() for _ in range(100)) == 25
    limit.give_back()  # the end of an attempt brings no token
    assert not limit.take()
    futures = [limit.ask() for _ in range(3)]
    assert 0.0 < limit.delay < 0.2
    await asyncio.wait_for(asyncio.gather(*futures), 60)


async def test_a_share_is_at_least_one_attempt_in_a_period():
    limit = Limit(rate=Rate(2, "h"))
    limit.set_share(1, 100)
    assert limit.take()
    assert 3_590 < limit.delay <= 3_600
    assert limit.is_crowded
    assert limit.ahead == 1


async def test_closing_the_lanes_gives_back_the_places_that_no_attempt_has_used():
    limit = Limit(concurrency=2)
    lanes = LimitedLanes({"hook": limit})
    begun = []
    for lane in "abcd":
        lanes.wait("hook", lane, lambda lane=lane: begun.append(lane))
    await eventually(lambda: begun == ["a", "b"])
    assert lanes.room("hook", 50) == 0
    place = lanes.place("a")
    assert isinstance(place, Place)
    assert place.use()
    lanes.close()
    assert not place.use()
    assert limit.take()  # this is the place of b; the attempt of a still has its place
    assert not limit.take()
    assert begun == ["a", "b"]


async def test_a_place_comes_even_if_the_clock_advances_while_a_timer_is_set(monkeypatch):
    """A timer of uvloop may be a millisecond early. Then the token comes between two readings of the clock."""
    limit = Limit(rate=Rate(1, "s"))
    readings = iter([0.0, 0.0, 0.9999])
    monkeypatch.setattr("dispatcher.pace.limit.monotonic", lambda: next(readings, 1.0001))
    limit.set_share(1, 1)
    assert limit.take()
    place = limit.ask()
    assert not place.done()
    await asyncio.wait_for(place, 10)
