"""The event that a signal sets."""

import signal

import pytest

from dispatcher.embedded.processes import stopped_by_signals
from tests.support import PATIENCE


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_sets_the_event_although_the_main_thread_holds_the_lock_of_the_event(
    number: signal.Signals,
) -> None:
    """`Event.wait` holds this lock for a moment, and a signal handler runs in the main thread at any moment."""
    with stopped_by_signals() as stop:
        with stop._cond:  # type: ignore[attr-defined]
            signal.raise_signal(number)
        assert stop.wait(PATIENCE)


def test_the_earlier_handlers_are_restored() -> None:
    earlier = signal.getsignal(signal.SIGINT)
    with stopped_by_signals():
        assert signal.getsignal(signal.SIGINT) is not earlier
    assert signal.getsignal(signal.SIGINT) is earlier
