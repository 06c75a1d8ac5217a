"""Digests, times and short forms of resume tokens."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.resume_tokens import (
    DIGEST,
    after_shortened,
    digest_of,
    directly_after,
    holds,
    shortened,
    split,
    time_after,
    token_time,
)

times = st.integers(0, 2**32 - 1)
tokens = st.builds(
    lambda time, inc, rest: f"82{time:08X}{inc:08X}{rest}", times, times, st.sampled_from(["2B0229", "29FF"])
)


@given(st.sets(tokens), st.sets(tokens))
def test_the_digests_hold_exactly_the_given_tokens(inside, others):
    digests = b"".join(sorted({digest_of(one) for one in inside}))
    assert len(digests) == DIGEST * len(inside)
    assert split(digests) == sorted(map(digest_of, inside))
    for token in inside | others:
        assert holds(digests, digest_of(token)) is (token in inside)


@given(tokens, tokens)
def test_time_after_sorts_after_every_token_of_its_time(token, other):
    after = time_after(token)
    assert token_time(after) == token_time(token)
    assert (other < after) is (token_time(other) <= token_time(token))


places = st.tuples(times, times, st.integers(0, 9), st.sampled_from([10, 990, 5_000]))


@given(st.lists(places, unique_by=lambda place: place[:3]))
def test_shortened_tokens_sort_like_tokens(some):
    ordered = sorted(f"82{time:08X}{inc:08X}2B02290{op}5A{'AB' * (size // 2)}" for time, inc, op, size in some)
    shortest = [text for one in ordered for text in (shortened(one), after_shortened(one))]
    assert shortest == sorted(shortest)
    assert all(len(one) <= 1_001 for one in shortest)
    for token, later in pairwise(ordered):
        assert shortened(token) <= token < directly_after(token) <= after_shortened(token) < shortened(later)
