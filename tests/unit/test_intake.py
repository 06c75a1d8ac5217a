"""Changes after a delete marker keep their place in the stream, and the position passes no unfinished change."""

import random
from typing import Any, NamedTuple
from unittest.mock import MagicMock

from bson import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.events import DELIVERABLE, Calls, Change, Job
from dispatcher.position.tracker import Tracker
from dispatcher.runtime.intake import Intake
from dispatcher.stream.delete_markers import DeleteMarkers

CALLS = (Calls(None, "post_save", True, ()),)


def change(number: int, operation: str, id_: int, time: int, transaction: int | None) -> Change:
    return Change(
        f"{number:04}", operation, ("shop", "things"), id_, Timestamp(time, 1), None, {}, None, "post",
        frozenset(), None, 1, transaction=transaction,
    )  # fmt: skip


class Progress:
    """The order of a stream, and the changes that earlier processes have finished."""

    def __init__(self) -> None:
        self.tracker = Tracker("")

    def count_finished(self, token: str) -> None:
        self.tracker.add(Job(token))


class Lanes:
    """One queue per document."""

    def __init__(self) -> None:
        self.queues: dict[Any, list[Job]] = {}

    def add(self, key: Any, job: Job) -> None:
        self.queues.setdefault(key, []).append(job)

    def next(self, chance: random.Random) -> Job:
        """The first job of a random document."""
        key = chance.choice(sorted(key for key, jobs in self.queues.items() if jobs))
        return self.queues[key].pop(0)

    def __len__(self) -> int:
        return sum(map(len, self.queues.values()))


class Entered(NamedTuple):
    intake: Intake
    tracker: Tracker
    lanes: Lanes


def make() -> Entered:
    progress, lanes, routes = Progress(), Lanes(), MagicMock()
    intake = Intake(progress, routes, lanes, MagicMock(), MagicMock(untouched=0))  # type: ignore[arg-type]
    return Entered(intake, progress.tracker, lanes)


# Each transaction has some operations on three documents.
OPERATIONS = st.tuples(st.sampled_from(["marker", "delete", "update", "untouched", "finished"]), st.integers(1, 3))
TRANSACTIONS = st.lists(st.lists(OPERATIONS, min_size=1, max_size=8), min_size=1, max_size=5)


def stream(transactions: list[list[tuple[str, int]]]) -> list[Change]:
    changes = []
    for time, operations in enumerate(transactions, 1):
        for operation, id_ in operations:
            changes.append(change(len(changes) + 1, operation, id_, time, time))
    return changes


@given(
    transactions=TRANSACTIONS,
    size=st.integers(1, 10),
    without_receivers=st.sets(st.integers(1, 3)),
    seed=st.integers(),
)
def test_the_position_passes_nothing_unfinished_and_never_lies_between_a_marker_and_its_delete(
    transactions, size, without_receivers, seed
):
    entered, markers, chance = make(), DeleteMarkers(), random.Random(seed)
    changes, delivered, pairs = stream(transactions), [], {}
    read: set[str] = set()
    expected = [one for one in changes if one.operation in DELIVERABLE and one.id not in without_receivers]

    def enter(settled: list[Change]) -> None:
        for one in settled:
            if one.marker:
                pairs[one.marker] = one.token
            wanted = one.operation in DELIVERABLE and one.id not in without_receivers
            read.add(one.token)
            entered.intake.enter(one, CALLS if wanted else ())
            check()

    def check() -> None:
        token, unfinished = (
            entered.tracker.token,
            [job.token for jobs in entered.lanes.queues.values() for job in jobs],
        )
        assert all(token < one for one in unfinished)
        assert not any(marker <= token < delete for marker, delete in pairs.items())

    for i in range(0, len(changes), size):
        enter(markers.settle(changes[i : i + size]))
        while len(entered.lanes) and chance.random() < 0.6:
            job = entered.lanes.next(chance)
            assert job.change is not None
            delivered.append(job.change)
            entered.tracker.finished(job)
            check()
    enter(markers.give_up())
    while len(entered.lanes):
        job = entered.lanes.next(chance)
        assert job.change is not None
        delivered.append(job.change)
        entered.tracker.finished(job)
        check()
    assert (entered.tracker.token, entered.tracker.span, entered.tracker.ahead) == (changes[-1].token, 0, [])
    assert sorted(one.token for one in delivered) == [one.token for one in expected]  # each change once
    for id_ in (1, 2, 3):  # in the order of the stream, for each document
        tokens = [one.token for one in delivered if one.id == id_]
        assert tokens == sorted(tokens)


def test_a_change_that_waits_because_of_a_marker_delays_no_change_of_another_document():
    entered, markers = make(), DeleteMarkers()
    for one in markers.settle(
        [change(1, "marker", 1, 1, 1), change(2, "update", 1, 1, 1), change(3, "update", 2, 1, 1)]
    ):
        entered.intake.enter(one, CALLS if one.operation in DELIVERABLE else ())
    (job,) = [job for jobs in entered.lanes.queues.values() for job in jobs]
    assert job.token == "0003"
    entered.tracker.finished(job)
    assert entered.tracker.token == ""
    assert [one.token for one in entered.tracker.ahead] == ["0003"]
