"""Digests and times of resume tokens."""

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.resume_tokens import DIGEST, digest_of, holds, split, time_after, token_time

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
def test_time_after_sorts_behind_every_token_of_its_time(token, other):
    after = time_after(token)
    assert token_time(after) == token_time(token)
    assert (other < after) is (token_time(other) <= token_time(token))
