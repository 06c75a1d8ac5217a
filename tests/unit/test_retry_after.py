"""`RetryAfter`: its time, and the decision that follows it."""

import math
import pickle
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

import mongoz
from dispatcher.core.stats import ReceiverFigures, Stats
from dispatcher.delivery.failure import FailedAttempt, Failures
from dispatcher.delivery.outcome import Waiting
from dispatcher.delivery.terms import Policy
from mongoz.signals.options import Options
from mongoz.signals.receivers import Delivery


@pytest.mark.parametrize("seconds", [0, -1, math.inf, math.nan, "5", None, True])
def test_the_time_is_a_positive_finite_number(seconds):
    with pytest.raises(mongoz.SignalError, match=r"RetryAfter\(.*\) must be a positive, finite number of seconds"):
        mongoz.RetryAfter(seconds)


def test_the_message_says_when_the_next_attempt_is_due():
    error = mongoz.RetryAfter(2.5)
    assert (error.seconds, str(error)) == (2.5, "Another attempt is due after 2.5 s.")
    assert pickle.loads(pickle.dumps(error)).seconds == 2.5


def attempt(number: int, **options: Any) -> Any:
    delivery = Delivery("id", "post_save", "hook", "stream", number, 1, None, None, "post", False, None, False)
    terms = Policy(3, 30.0).terms_of(Options(**options))
    receiver = SimpleNamespace(options=terms.options)
    target = SimpleNamespace(terms=terms, figures=ReceiverFigures("hook", "post_save"), receiver=receiver)
    return SimpleNamespace(target=target, delivery=delivery, change=SimpleNamespace(id=1), calls=None)


async def decided(one: Any, seconds: float, ago: timedelta) -> Any:
    failures = Failures(1, Stats(), pause=None)  # type: ignore[arg-type]
    return await failures.decide(FailedAttempt(one, mongoz.RetryAfter(seconds), datetime.now(UTC) - ago))


async def test_a_retry_after_uses_up_no_attempt_not_even_the_last_one():
    for number in (1, 3):
        one = attempt(number)
        decision = await decided(one, 90.0, timedelta(hours=23))
        assert decision[:3] == ("retry_after", 90.0, number - 1)
        assert one.target.figures.postponed == 1


async def test_a_retry_after_uses_up_attempts_after_a_day_and_keeps_its_time():
    one = attempt(1)
    decision = await decided(one, 90.0, timedelta(hours=25))
    assert isinstance(decision, Waiting)
    assert decision[:3] == ("retrying", 90.0, 1)
    assert await decided(attempt(3), 90.0, timedelta(hours=25)) is False
    assert one.target.figures.postponed == 0


async def test_the_wait_is_a_day_at_most():
    assert (await decided(attempt(1), 1e18, timedelta(0))).seconds == 86_400
