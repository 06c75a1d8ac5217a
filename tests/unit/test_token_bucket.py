"""A bucket never lets through more than its rate and its burst allow, and never less than its rate."""

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.pace.token_bucket import TokenBucket

STEPS = st.lists(st.floats(0, 10), max_size=60)
RATES = st.floats(0.001, 1_000)


@given(RATES, STEPS)
def test_in_any_window_at_most_the_burst_and_the_rate_pass(rate, steps):
    bucket, now, taken = TokenBucket(), 0.0, []
    bucket.set_rate(rate, now)
    for step in steps:
        now += step
        while len(taken) < 5_000 and bucket.take(now):
            taken.append(now)
    for first, begin in enumerate(taken):
        for last in (first, (first + len(taken)) // 2, len(taken) - 1):
            assert last - first + 1 <= max(1.0, rate) + rate * (taken[last] - begin) + 1e-3


@given(RATES, st.integers(1, 50))
def test_a_token_can_be_taken_after_the_seconds_that_the_bucket_tells(rate, count):
    """A caller that waits these seconds before each token gets the whole rate."""
    bucket, now = TokenBucket(), 0.0
    bucket.set_rate(rate, now)
    seconds = bucket.seconds(count, now)
    for _ in range(count):
        now += bucket.seconds(1, now)
        assert bucket.take(now)
    assert abs(now - seconds) < 1e-6 * max(1.0, seconds)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 3.0, 40.0]), st.floats(0, 5)), min_size=1, max_size=30))
def test_changes_of_the_share_add_no_tokens(changes):
    """A process that loses partitions and gets them again takes at most the sum of its rates, and one burst."""
    bucket, now, taken, allowed = TokenBucket(), 0.0, 0, None
    for rate, seconds in changes:
        bucket.set_rate(rate, now)
        if allowed is None and rate:
            allowed = max(1.0, rate)
        while bucket.take(now):
            taken += 1
        now += seconds
        if allowed is not None:
            allowed += rate * seconds
        while bucket.take(now):
            taken += 1
    assert taken <= (allowed or 0.0) + 1e-3


def test_without_a_rate_nothing_passes():
    bucket = TokenBucket()
    assert not bucket.take(100.0)
    assert bucket.seconds(1, 100.0) == float("inf")
    bucket.set_rate(0.0, 100.0)
    assert not bucket.take(200.0)


def test_a_clock_that_goes_back_adds_no_tokens():
    bucket = TokenBucket()
    bucket.set_rate(1.0, 10.0)
    assert bucket.take(10.0)
    assert not bucket.take(5.0)
    assert not bucket.take(10.5)
    assert bucket.take(11.0)
