"""The rules of claims, alone and in simulated runs (see `tests/model/claims.py`)."""

import os
import random
import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.claims.verdict import ClaimVerdict, Sightings, verdict_of
from mongoz.claims.book import HELD, MOST_OPEN, Book, OpenClaim
from mongoz.claims.document import BookSnapshot, BookState, intervals_of, is_within
from tests.model.claims import Faults, Rules, Simulation

SEED = int(os.environ.get("MODEL_SEED") or random.randrange(10**6))
RUNS = 100
MANY_RUNS = 8_000
PARTS = 4

numbers = st.frozensets(st.integers(1, 60), max_size=40)


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def book(clock: Clock) -> Book:
    made = Book(15.0, clock)
    made.acknowledge(clock.time, frozenset())
    return made


def claim(book: Book) -> OpenClaim:
    made = book.claim()
    assert made is not None
    return made


def state(high: int = 0, open_: tuple[int, ...] = (), released: tuple[int, ...] = (), **rest: Any) -> BookState:
    return BookState(rest.pop("beat", 1), 15.0, BookSnapshot(high, open_, released), **rest)


# -- intervals


@given(numbers)
def test_intervals_have_exactly_the_given_numbers(some: frozenset[int]) -> None:
    flat = intervals_of(some)
    assert {number for number in range(62) if is_within(number, flat)} == some
    assert len(flat) % 2 == 0
    assert list(flat) == sorted(flat)


def test_consecutive_numbers_are_one_interval() -> None:
    assert intervals_of({3, 1, 2, 7, 9, 8}) == (1, 3, 7, 9)


# -- the book of a process


def test_a_claim_is_open_until_it_is_done(book: Book) -> None:
    first, second = claim(book), claim(book)
    assert book.snapshot() == BookSnapshot(2, (1, 2), ())
    first.done()
    assert book.snapshot() == BookSnapshot(2, (2, 2), ())
    second.done()
    assert book.snapshot() == BookSnapshot(2, (), ())


def test_the_end_of_the_last_open_claim_is_reported_once_until_the_next_snapshot(clock: Clock) -> None:
    told: list[str] = []
    book = Book(15.0, clock, lambda: told.append("news"))
    book.acknowledge(clock.time, frozenset())
    first, second, third = (claim(book) for _ in range(3))
    first.done()
    second.done()
    assert told == []
    third.done()
    claim(book).done()
    assert told == ["news"]
    book.snapshot()
    claim(book).done()
    assert told == ["news"] * 2


def test_a_release_is_reported_while_other_claims_are_open(clock: Clock) -> None:
    told: list[str] = []
    book = Book(15.0, clock, lambda: told.append("news"))
    book.acknowledge(clock.time, frozenset())
    held = claim(book)
    book.claim()  # the claim is dropped, as if an exception had ended the call
    assert told == ["news"]
    held.done()
    assert told == ["news"]


def test_a_released_claim_is_listed(book: Book) -> None:
    one = claim(book)
    one.release()
    assert book.snapshot() == BookSnapshot(1, (), (1,))
    assert not one.may_start


def test_a_dropped_claim_is_released(book: Book) -> None:
    claim(book)
    assert book.snapshot() == BookSnapshot(1, (), (1,))


@pytest.mark.parametrize("end", ["done", "release"])
def test_only_the_first_end_of_a_claim_counts(book: Book, end: str) -> None:
    one = claim(book)
    getattr(one, end)()
    before = book.snapshot()
    one.release()
    one.done()
    assert book.snapshot() == before


def test_a_book_claims_nothing_before_its_first_beat(clock: Clock) -> None:
    assert Book(15.0, clock).claim() is None


def test_a_book_is_valid_for_three_quarters_of_its_timeout_after_the_sending_of_a_beat(
    book: Book, clock: Clock
) -> None:
    one = claim(book)
    clock.time += HELD * 15.0 - 0.01
    assert one.may_start
    clock.time += 0.02
    assert not one.may_start
    assert book.claim() is None
    assert book.is_over


def test_a_late_acknowledgement_does_not_revive_a_book(book: Book, clock: Clock) -> None:
    """Dispatchers may have taken over its claims already."""
    clock.time += 12.0
    book.acknowledge(clock.time - 0.1, frozenset())
    assert book.is_over
    assert book.claim() is None


def test_a_late_first_acknowledgement_does_not_make_a_book_valid(clock: Clock) -> None:
    """A later beat may make the book valid, because no claim was made yet."""
    late = Book(15.0, clock)
    late.acknowledge(clock.time - 14.0, frozenset())
    assert late.claim() is None


def test_an_answer_to_an_earlier_beat_does_not_shorten_the_validity(book: Book, clock: Clock) -> None:
    book.acknowledge(clock.time - 5.0, frozenset())
    clock.time += 11.0
    assert book.is_valid


def test_an_ended_book_starts_no_receiver_and_makes_no_claim(book: Book) -> None:
    one = claim(book)
    book.end()
    assert not one.may_start
    assert book.claim() is None
    one.done()  # its receiver was running
    assert book.snapshot() == BookSnapshot(1, (), ())


def test_a_book_with_many_open_claims_makes_no_further_claim(book: Book) -> None:
    held = [claim(book) for _ in range(MOST_OPEN)]
    assert book.claim() is None
    held.pop().done()
    assert book.claim() is not None


def test_a_forked_child_starts_no_receiver_even_if_a_thread_held_the_lock(book: Book) -> None:
    one = claim(book)
    assert book._lock.acquire()
    book.leave_to_parent()
    assert not one.may_start
    assert book.snapshot().high == 1


def test_snapshots_never_miss_a_claim_that_another_thread_makes(book: Book) -> None:
    """A number up to `high` that is not open counts as done, so its claim must be open from the beginning."""
    stop, held = threading.Event(), []

    def make() -> None:
        while not stop.is_set() and len(held) < 5_000:
            held.append(claim(book))

    makers = [threading.Thread(target=make) for _ in range(2)]
    for maker in makers:
        maker.start()
    try:
        for _ in range(50):
            taken = book.snapshot()
            assert sum(last - first + 1 for first, last in zip(*[iter(taken.open)] * 2)) == taken.high  # noqa: B905
    finally:
        stop.set()
        for maker in makers:
            maker.join()


class _SnapshotMeanwhile(set[int]):
    """Open claims. Another thread takes a snapshot while a claim is added."""

    def __init__(self, book: Book) -> None:
        self.taken: list[BookSnapshot] = []
        self.thread = threading.Thread(target=lambda: self.taken.append(book.snapshot()))

    def add(self, number: int) -> None:
        self.thread.start()
        self.thread.join(0.1)  # the thread waits for the lock
        super().add(number)


def test_a_snapshot_waits_until_a_new_number_is_open(book: Book) -> None:
    book._open = watched = _SnapshotMeanwhile(book)
    one = claim(book)
    watched.thread.join()
    assert verdict_of(state(*watched.taken[0]), one.number) is ClaimVerdict.WAIT


class _ReleasedBetween(set[int]):
    """Open claims, one of which is released as soon as a snapshot has read them."""

    book: Book
    number: int

    def __iter__(self) -> Any:
        yield from list(super().__iter__())
        self.book.release(self.number)


def test_a_claim_that_is_released_during_a_snapshot_is_not_done(book: Book) -> None:
    one = claim(book)
    watched = _ReleasedBetween({one.number})
    watched.book, watched.number = book, one.number
    book._open = watched
    assert verdict_of(state(*book.snapshot()), one.number) is not ClaimVerdict.DONE


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="this system has no clock that counts sleep")
def test_the_clock_counts_the_time_in_which_the_machine_sleeps() -> None:
    clock: Any = Book(15.0)._clock
    assert clock.args == (time.CLOCK_BOOTTIME,)


# -- the decision about a claim


@given(st.integers(0, 60), numbers, numbers, st.booleans(), st.integers(1, 61))
def test_a_claim_is_done_if_the_book_counts_it_and_it_is_neither_open_nor_released(
    high: int, open_: frozenset[int], released: frozenset[int], fenced: bool, number: int
) -> None:
    found = verdict_of(state(high, intervals_of(open_), tuple(released), fenced=fenced), number)
    if number in released:
        assert found is ClaimVerdict.TAKE
    elif number <= high and number not in open_:
        assert found is ClaimVerdict.DONE
    else:
        assert found is (ClaimVerdict.TAKE if fenced else ClaimVerdict.WAIT)


def test_a_claim_without_a_book_waits_until_its_process_counts_as_dead() -> None:
    assert verdict_of(None, 1) is ClaimVerdict.WAIT
    assert verdict_of(None, 1, is_dead=True) is ClaimVerdict.TAKE


@pytest.mark.parametrize(
    ("document", "timeout", "seconds"),
    [
        pytest.param(state(), 0.0, 12.0, id="four fifths of the timeout of the process"),
        pytest.param(state(), 60.0, 48.0, id="a longer timeout of the dispatcher"),
        pytest.param(state(), 5.0, 12.0, id="a shorter timeout of the dispatcher does not count"),
        pytest.param(None, 15.0, 15.0, id="a missing document: the whole timeout"),
    ],
)
def test_a_book_is_silent_without_a_new_beat(document: BookState | None, timeout: float, seconds: float) -> None:
    sightings = Sightings(timeout)
    sightings.note(b"one", document, 100.0)
    sightings.note(b"one", document, 105.0)
    assert not sightings.is_silent(b"one", 100.0 + seconds - 0.01)
    assert sightings.is_silent(b"one", 100.0 + seconds)


def test_a_new_beat_begins_the_timeout_again() -> None:
    sightings = Sightings(0.0)
    sightings.note(b"one", state(beat=1), 100.0)
    sightings.note(b"one", state(beat=2), 110.0)
    assert not sightings.is_silent(b"one", 121.9)
    assert sightings.is_silent(b"one", 122.0)


def test_a_book_that_disappears_begins_the_timeout_of_its_process_again() -> None:
    sightings = Sightings(5.0)
    sightings.note(b"one", state(), 100.0)
    sightings.note(b"one", None, 111.0)
    assert not sightings.is_silent(b"one", 125.9)
    assert sightings.is_silent(b"one", 126.0)


def test_an_unknown_book_is_not_silent() -> None:
    assert not Sightings(0.0).is_silent(b"one", 1e9)


# -- documents


GOOD = {"beat": 3, "seconds": 15, "high": 9, "open": [2, 4], "released": [7], "receivers": []}


def test_the_document_of_a_book_is_read() -> None:
    assert BookState.read(GOOD) == BookState(3, 15.0, BookSnapshot(9, (2, 4), frozenset({7})))


@pytest.mark.parametrize("changed", [
    {"beat": "3"}, {"seconds": 0}, {"seconds": float("nan")}, {"seconds": None}, {"high": 1.5}, {"high": None},
    {"open": [4, 2]}, {"open": [1]}, {"open": 3}, {"open": ["a", "b"]}, {"released": [None]}, {"released": None},
    {"receivers": [{}]}, {"receivers": 1},
])  # fmt: skip
def test_a_malformed_document_counts_as_missing(changed: dict[str, Any]) -> None:
    assert BookState.read({**GOOD, **changed}) is None
    assert BookState.read({name: value for name, value in GOOD.items() if name not in changed}) is None


# -- simulated runs


def findings(rules: Rules | None, runs: int, first: int = SEED) -> tuple[dict[str, int], Faults]:
    """Return the findings of the runs, each with the first seed that leads to it."""
    found: dict[str, int] = {}
    faults = Faults()
    for seed in range(first, first + runs):
        simulation = Simulation(seed, rules)
        for finding in simulation.run():
            found.setdefault(finding, seed)
        faults.add(simulation.faults)
    return found, faults


def test_no_claimed_delivery_is_lost_in_simulated_runs() -> None:
    found, faults = findings(None, RUNS)
    assert found == {}
    assert min(faults.fenced, faults.taken, faults.done, faults.left, faults.torn) > 0, faults


@pytest.mark.exhaustive
@pytest.mark.parametrize("part", range(PARTS))
def test_no_claimed_delivery_is_lost_in_many_simulated_runs(part: int) -> None:
    runs = MANY_RUNS // PARTS
    assert findings(None, runs, SEED + part * runs)[0] == {}


class _NumberBeforeOpen(Book):
    """A snapshot does not list the last number as open."""

    def snapshot(self) -> BookSnapshot:
        high, open_, released = super().snapshot()
        opened = [n for n in range(1, high) if is_within(n, open_)]
        return BookSnapshot(high, intervals_of(opened), released)


class _WithoutReleases(Book):
    """Released claims are not listed."""

    def snapshot(self) -> BookSnapshot:
        return super().snapshot()._replace(released=())


class _NeverDone(Book):
    """Claims stay open after their end."""

    def finish(self, number: int) -> None:
        self.release(number)


def done_if_beyond(document: BookState | None, number: int, *, is_dead: bool = False) -> ClaimVerdict:
    if document is not None and number > document.claims.high:
        return ClaimVerdict.DONE
    return verdict_of(document, number, is_dead=is_dead)


def done_if_missing(document: BookState | None, number: int, *, is_dead: bool = False) -> ClaimVerdict:
    return ClaimVerdict.DONE if document is None and is_dead else verdict_of(document, number, is_dead=is_dead)


def open_stays(document: BookState | None, number: int, *, is_dead: bool = False) -> ClaimVerdict:
    return verdict_of(document and document._replace(fenced=False), number, is_dead=is_dead)


def always(document: dict[str, Any], beat: int) -> bool:
    return True


AFTER = {"started after the takeover"}

WEAKENED: list[tuple[str, Rules, set[str]]] = [
    ("the last number is not listed as open", Rules(book=_NumberBeforeOpen), {"lost"}),
    ("releases are not listed", Rules(book=_WithoutReleases), {"lost"}),
    ("claims are never done", Rules(book=_NeverDone), {"twice"}),
    ("a number beyond high is done", Rules(decide=done_if_beyond), {"lost"}),
    ("a missing document is done", Rules(decide=done_if_missing), {"lost"}),
    ("open claims of a fenced book wait", Rules(decide=open_stays), {"stuck"}),
    ("a beat changes a fenced book", Rules(beat=lambda document, beat: document["beat"] < beat), {"not final"}),
    ("a fence ignores later beats", Rules(fence=always), AFTER),
    (
        "a beat counts from its answer",
        Rules(valid_since=lambda _, answered: answered),
        AFTER,
    ),
    ("dispatchers fence too early", Rules(patience=0.6), AFTER),
    ("the clock stops with the process", Rules(clock_stops=True), AFTER),
    ("receivers start without a check", Rules(checks=False), AFTER),
    ("a call whose event loop has ended is done", Rules(releases=False), {"lost"}),
]


@pytest.mark.parametrize(("rules", "expected"), [pytest.param(r, e, id=name) for name, r, e in WEAKENED])
def test_the_simulation_finds_the_faults_of_each_weaker_rule(rules: Rules, expected: set[str]) -> None:
    found: set[str] = set()
    for seed in range(SEED, SEED + 20_000):  # the rarest fault occurs in one of about 1,000 runs
        found |= Simulation(seed, rules).run()
        if expected <= found:
            return
    pytest.fail(f"found only {found}")
