"""A transaction with a write conflict runs again within the same attempt."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId, Timestamp
from pymongo.errors import OperationFailure

import mongoz
from dispatcher.core.events import Calls, Change, Job
from dispatcher.core.lease import now
from dispatcher.core.stats import ReceiverFigures, Stats
from dispatcher.delivery.attempt import Attempt, Target
from dispatcher.delivery.conflicts import Conflicts
from dispatcher.delivery.failure import FailedAttempt, Failures
from dispatcher.delivery.invoker import run_receiver
from dispatcher.delivery.terms import Policy
from mongoz.connection.codec import CODEC_OPTIONS
from mongoz.signals import Delivery
from mongoz.signals.options import Options, Retry
from mongoz.signals.receivers import Receiver

TIME = Timestamp(1, 1)


def transient(code: int) -> OperationFailure:
    return OperationFailure("again", code, {"errorLabels": ["TransientTransactionError"]})


def hidden(cause: Exception) -> RuntimeError:
    error = RuntimeError("the total is busy")
    error.__cause__ = cause
    return error


async def receive(sender: Any, **kwargs: Any) -> None:
    """Stands for a receiver."""


class Account(mongoz.Document):
    balance: int = mongoz.Integer(default=0)

    class Meta:
        registry = mongoz.Registry("mongodb://127.0.0.1:1")
        database = "d"


RECEIVER = Receiver(receive, "adding", 1, Options(transactional=True, retry=Retry(2)), b"12345678")
CALLS = Calls(Account, "post_save", True, (RECEIVER,))
CHANGE = Change("82", "insert", ("d", "c"), 1, TIME, None, {"_id": ObjectId()}, None, "post", frozenset(), None, 1)
JOB = Job("82", CHANGE, (CALLS,))
DELIVERY = Delivery("id", "post_save", "adding", "stream", 1, 1, TIME, None, "post", False)


class Runs:
    """The runs of a transaction. Their results are prescribed."""

    def __init__(self, *ends: BaseException | None) -> None:
        self.ends = iter(ends)
        self.instances: list[Any] = []
        self.pauses: list[float] = []
        self.figures = ReceiverFigures("adding", "post_save")

    async def call(self, attempt: Attempt) -> BaseException | None:
        self.instances.append(attempt.keywords["instance"])
        return next(self.ends)

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def target(self, timeout: float = 60.0) -> Target:
        terms = Policy(5, timeout).terms_of(RECEIVER.options)
        return Target(RECEIVER, terms, self.figures, run_receiver, self.call)

    async def attempt(self, timeout: float = 50.0) -> BaseException | None:
        target = Conflicts(CODEC_OPTIONS, self.pause).around(self.target(timeout))
        return await target.call(Attempt(target, CHANGE, CALLS, DELIVERY, {"instance": object()}, JOB, now()))


async def test_each_run_calls_the_receiver_with_a_new_instance():
    """The receiver runs again after a pause."""
    runs = Runs(transient(112), hidden(transient(24)), None)
    assert await runs.attempt() is None
    assert len({*map(id, runs.instances)}) == 3
    assert len(runs.pauses) == 2
    assert runs.figures.conflicts == 2


async def test_a_transaction_runs_again_after_an_election():
    runs = Runs(transient(189), None)
    assert await runs.attempt() is None
    assert runs.figures.conflicts == 0


async def test_an_error_of_the_receiver_ends_the_attempt():
    error = ValueError("no")
    runs = Runs(transient(112), error)
    assert await runs.attempt() is error
    assert len(runs.instances) == 2


async def test_an_attempt_with_endless_conflicts_ends_at_its_time_limit():
    conflict = transient(112)
    runs = Runs(conflict, None)
    assert await runs.attempt(timeout=0.0) is conflict
    assert len(runs.instances) == 1


@pytest.mark.parametrize(
    ("error", "since", "attempts"),
    [
        (transient(112), 290, 0),
        (hidden(transient(112)), 290, 0),
        (transient(112), 310, 1),  # after five minutes a conflict counts as a failed attempt
        (ValueError("no"), 0, 1),
    ],
)
async def test_conflicts_use_up_no_attempt_for_five_minutes(error, since, attempts):
    runs = Runs()
    began = datetime.now(UTC) - timedelta(seconds=since)
    failures = Failures(1, Stats(), pause=runs.pause)
    attempt = Attempt(runs.target(), CHANGE, CALLS, DELIVERY, {}, JOB, now())
    waiting = await failures.decide(FailedAttempt(attempt, error, began))
    assert not isinstance(waiting, bool)
    assert (waiting.reason, waiting.attempts) == ("retrying", attempts)
