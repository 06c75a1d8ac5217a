"""The offset of the server's clock is known more precisely than from a single round trip."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.oplog import ClockOffset


def offset(clock: ClockOffset) -> float:
    return (clock._low + clock._high) / 2


@given(
    st.floats(-100, 100),
    st.lists(st.tuples(st.floats(0, 0.05), st.floats(0, 0.05)), min_size=1),
)
def test_the_offset_lies_within_the_bounds_of_all_answers(ahead, answers):
    """Each answer has its own times to the server and back."""
    clock = ClockOffset()
    for there, back in answers:
        clock.note(ahead - back, ahead + there, clock._noted)
    shortest = min(there for there, _ in answers) + min(back for _, back in answers)
    assert abs(offset(clock) - ahead) <= shortest / 2 + 1e-9


def test_a_clock_that_was_set_is_noticed_with_the_next_answer():
    clock = ClockOffset()
    clock.note(-0.01, 0.01, clock._noted)
    clock.note(59.9, 60.1, clock._noted)
    assert offset(clock) == pytest.approx(60)


def test_clocks_may_drift_apart():
    """The bounds follow a drift of one in a thousand. Real clocks drift less."""
    clock = ClockOffset()
    began = clock._noted
    for second in range(1, 1_000):
        clock.note(0.001 * second - 0.002, 0.001 * second + 0.002, began + second)
    assert offset(clock) == pytest.approx(1.0, abs=0.01)
