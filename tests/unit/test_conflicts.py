"""Transactions that meet other writes run again within the attempt, and use up none."""

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import Timestamp
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure

from dispatcher.core.events import Calls, Change
from dispatcher.core.output.logs import Stats
from dispatcher.core.state import Group, State
from dispatcher.core.stats import ReceiverFigures
from dispatcher.delivery.failure import Failing, Try
from dispatcher.delivery.terms import terms_of
from dispatcher.delivery.transactions import Transactions
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


RECEIVER = Receiver(receive, "adding", 1, Options(transactional=True, retry=Retry(2)), b"12345678")
CALLS = Calls(object, "post_save", True, (RECEIVER,))  # type: ignore[arg-type]
CHANGE = Change("82", "insert", ("d", "c"), 1, TIME, None, {}, None, "post", frozenset(), None, 1)
DELIVERY = Delivery("id", "post_save", "adding", "stream", 1, 1, TIME, None, "post", False)


class Runs:
    """Runs that end as they are told to."""

    def __init__(self, *ends: BaseException | None) -> None:
        self.ends = iter(ends)
        self.given: list[dict[str, Any]] = []
        self.pauses: list[float] = []
        self.figures = ReceiverFigures("adding", "post_save")

    async def call(self, run: Any, keywords: dict[str, Any]) -> BaseException | None:
        self.given.append(keywords)
        return next(self.ends)

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)

    async def attempt(self, patience: float = 60.0) -> BaseException | None:
        numbers = itertools.count(1)
        async with AsyncMongoClient("mongodb://127.0.0.1:1", connect=False) as client:
            transactions = Transactions(None, Group(State(client, "state"), "group"))  # type: ignore[arg-type]
            return await transactions.attempt(
                RECEIVER,
                CALLS,
                DELIVERY,
                {"instance": 0},
                call=self.call,
                anew=lambda: {"instance": next(numbers)},
                pause=self.pause,
                patience=patience,
                figures=self.figures,
            )


async def test_each_run_is_a_call_of_its_own_with_a_new_instance():
    """So each has the receiver's whole time limit."""
    runs = Runs(transient(112), hidden(transient(24)), None)
    assert await runs.attempt() is None
    assert [one["instance"] for one in runs.given] == [0, 1, 2]
    assert len(runs.pauses) == 2
    assert runs.figures.conflicts == 2


async def test_an_election_is_no_conflict_and_is_run_again():
    runs = Runs(transient(189), None)
    assert await runs.attempt() is None
    assert runs.figures.conflicts == 0


async def test_what_the_receiver_raised_ends_the_attempt():
    error = ValueError("no")
    runs = Runs(transient(112), error)
    assert await runs.attempt() is error
    assert len(runs.given) == 2


async def test_conflicts_without_an_end_make_room_for_others():
    conflict = transient(112)
    runs = Runs(conflict, None)
    assert await runs.attempt(patience=0.0) is conflict
    assert len(runs.given) == 1


@pytest.mark.parametrize(
    ("error", "since", "attempts"),
    [
        (transient(112), 290, 0),
        (hidden(transient(112)), 290, 0),
        (transient(112), 310, 1),  # it conflicts with itself, it seems
        (ValueError("no"), 0, 1),
    ],
)
async def test_a_conflict_uses_up_no_attempt_for_five_minutes(error, since, attempts):
    failing = Failing(term=1, stats=Stats(), dead_letters=None, transactions=None, pause=Runs().pause)
    began = datetime.now(UTC) - timedelta(seconds=since)
    terms = terms_of(RECEIVER.options, attempts=5, timeout=30.0)
    one = Try(CHANGE, CALLS, RECEIVER, DELIVERY, terms, ReceiverFigures("adding", "post_save"), began)
    waiting = await failing.what_now(one, error)
    assert not isinstance(waiting, bool)
    assert (waiting.reason, waiting.attempts) == ("retrying", attempts)
