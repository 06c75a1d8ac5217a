"""Commands are repeated until they succeed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymongo.errors import ConnectionFailure, OperationFailure, PyMongoError

from dispatcher.core.retry import pause_after, retry
from dispatcher.core.tasks import Interrupted
from dispatcher.exceptions import AccessDenied
from mongoz.signals.options import Retry


class Command:
    """Fails with the given errors in order, then succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = [*errors]
        self.reports: list[dict[str, object]] = []
        self.pauses: list[float] = []

    async def __call__(self) -> str:
        if self.errors:
            raise self.errors.pop(0)
        return "done"

    def report(self, **fields: object) -> None:
        self.reports.append(fields)

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)


async def test_a_command_is_repeated_with_doubling_pauses_until_it_succeeds():
    command = Command(*[ConnectionFailure("away") for _ in range(4)])
    policy = Retry(attempts=1, base=1.0, cap=4.0)
    assert await retry(command, command.report, pauses=policy, pause=command.pause) == "done"
    assert [(one["attempt"], one["error"]) for one in command.reports] == [
        (number, "ConnectionFailure: away") for number in (1, 2, 3, 4)
    ]
    for seconds, longest in zip(command.pauses, (1.0, 2.0, 4.0, 4.0), strict=True):
        assert longest / 2 <= seconds <= longest


async def test_a_permanent_error_is_raised_if_the_caller_gives_an_address():
    """Without an address, the command is repeated after a permanent error, too."""
    denied = OperationFailure("not authorized", 13)
    command = Command(ConnectionFailure("away"), denied)
    with pytest.raises(AccessDenied, match="there:27017 denies access") as caught:
        await retry(command, command.report, address="there:27017", pause=command.pause)
    assert caught.value.__cause__ is denied
    assert len(command.reports) == 1
    command = Command(denied)
    assert await retry(command, command.report, pause=command.pause) == "done"


async def test_errors_of_other_types_are_raised_unchanged():
    for error in (ValueError("wrong"), OperationFailure("wrong", 9)):
        command = Command(error)
        with pytest.raises(type(error)) as caught:
            await retry(command, command.report, on=ConnectionFailure, pause=command.pause)
        assert caught.value is error
        assert not command.reports


async def test_a_pause_may_end_the_repetition():
    async def pause(seconds: float) -> None:
        raise Interrupted

    command = Command(ConnectionFailure("away"))
    with pytest.raises(Interrupted):
        await retry(command, command.report, pause=pause)


async def test_after_the_deadline_the_error_is_raised_unchanged():
    error = PyMongoError("away")
    command = Command(error)
    with pytest.raises(PyMongoError) as caught:
        await retry(command, command.report, pause=command.pause, within=-1.0)
    assert caught.value is error
    assert not command.pauses


async def test_a_reported_error_has_no_traceback():
    error = ConnectionFailure("away")
    command = Command(error)
    await retry(command, command.report, pause=command.pause)
    assert error.__traceback__ is None


def test_pauses_double_up_to_the_limit():
    policy = Retry(base=0.5, cap=10.0)
    for attempt, longest in ((1, 0.5), (2, 1.0), (3, 2.0), (6, 10.0), (5_000, 10.0)):
        pauses = [pause_after(attempt, policy) for _ in range(50)]
        assert longest / 2 <= min(pauses) <= max(pauses) <= longest
        assert len(set(pauses)) > 1


@given(st.integers(0, 10**6))
def test_pauses_are_bounded(attempt):
    assert 0 <= pause_after(attempt) <= 10
    if attempt:
        assert pause_after(attempt) >= 0.05
