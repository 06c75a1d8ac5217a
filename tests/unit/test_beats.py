"""The beats of a writing process, with a server in memory: refusals, lost and late answers, the end, forks."""

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pymongo.errors import AutoReconnect, DuplicateKeyError, OperationFailure

from mongoz.claims import beats
from mongoz.claims import claims as claims_module
from mongoz.claims import wait as wait_module
from mongoz.claims.beats import BeatPause, BeatThread, BookRecorder, ClaimRefusal
from mongoz.claims.book import MOST_RELEASED, Book, OpenClaim
from mongoz.claims.claims import Claims
from mongoz.claims.document import BookSnapshot, BookState, NamedReceiver

SECONDS = 15.0
OFTEN, RARELY = SECONDS / 15, SECONDS / 5
LAYOUT = {"_id": "shop", "claims": True}
EMPTY = BookSnapshot(released=frozenset())


class Server:
    """Stands for the state database, and also for its client and its collections.

    Attributes:
        layout: the layout of the group.
        claims: the documents, by `_id`.
        fails: called with the name of each command before it runs; an error that it raises is the answer.
        loses: the number of updates whose answers get lost: such an update runs, and then raises an error.
        late: updates that run when the test calls them; None if updates run immediately.
        updates: the updates that ran.
    """

    def __init__(self) -> None:
        self.layout: dict[str, Any] | None = dict(LAYOUT)
        self.claims: dict[str, dict[str, Any]] = {}
        self.fails: Callable[[str], None] = lambda command: None
        self.loses = 0
        self.late: list[Callable[[], object]] | None = None
        self.updates: list[dict[str, Any]] = []
        self.looks = 0
        self.is_closed = False

    def __getitem__(self, name: str) -> "Server":
        assert name == "state"
        return self

    def get_collection(self, name: str, **options: Any) -> "Server":
        return self

    def close(self) -> None:
        self.is_closed = True

    def find_one(self, filter: dict[str, Any], projection: dict[str, Any]) -> dict[str, Any] | None:
        self.fails("find")
        if filter != {"_id": "shop"}:  # no member of an earlier version is found
            return None
        self.looks += 1
        return self.layout

    def update_one(self, filter: dict[str, Any], update: dict[str, Any], upsert: bool = False) -> Any:
        self.fails("update")
        if self.late is not None:
            self.late.append(lambda: self._update(filter, update, upsert))
            raise AutoReconnect("no answer yet")
        answer = self._update(filter, update, upsert)
        if self.loses:
            self.loses -= 1
            raise AutoReconnect("the answer got lost")
        return answer

    def _update(self, filter: dict[str, Any], update: dict[str, Any], upsert: bool) -> Any:
        id_ = filter["_id"]
        found = self.claims.get(id_)
        matches = (
            found is not None and "fenced_at" not in found and found["beat"] < filter.get("beat", _ANY)["$lt"]
        )
        if not matches and not upsert:
            return _Answer(0)
        if not matches and found is not None:
            raise DuplicateKeyError("E11000 duplicate key error")
        document = found or {"_id": id_, **update.get("$setOnInsert", {})}
        document |= update["$set"] | dict.fromkeys(update["$currentDate"], "now")
        self.claims[id_] = document
        self.updates.append(update)
        return _Answer(int(found is not None), None if found is not None else id_)


_ANY = {"$lt": float("inf")}


class _Answer:
    def __init__(self, matched: int, upserted: Any = None) -> None:
        self.matched_count = matched
        self.upserted_id = upserted


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


class Process:
    """A writing process: its book, and the recorder of the book."""

    def __init__(self, server: Server, clock: Clock) -> None:
        self.server = server
        self.clock = clock
        self.book = Book(SECONDS, clock)
        self.refusal: ClaimRefusal | None = None
        self.receivers = [named("mail")]
        self.recorder = BookRecorder("shop", "state", lambda: server, lambda: self.receivers)

    def note_attempt(self, refusal: ClaimRefusal | None) -> None:
        self.refusal = refusal

    def replace_book(self) -> Book:
        before, self.book = self.book, Book(SECONDS, self.clock)
        before.end()
        return before

    def beat(self) -> float:
        """Makes a beat. Returns the seconds until the next one, if no claim changes."""
        return self.recorder.record(self).most

    def claim(self) -> OpenClaim:
        made = self.book.claim()
        assert made is not None
        return made

    @property
    def document(self) -> dict[str, Any]:
        return self.server.claims[self.book.incarnation.hex()]


def named(name: str) -> NamedReceiver:
    return NamedReceiver(name.ljust(8).encode(), (), "shop.User", "post_save", name)


def names_in(document: dict[str, Any]) -> list[str]:
    return [one["name"] for one in document["receivers"]]


def refuse(command: str) -> None:
    raise OperationFailure("not allowed", 13)


def go_away(command: str) -> None:
    raise AutoReconnect("connection refused")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(beats, "now", made)
    return made


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def process(server: Server, clock: Clock) -> Process:
    return Process(server, clock)


# -- beats that are answered


def test_the_first_beat_writes_the_whole_book(process):
    process.beat()
    document = process.document
    assert BookState.read(document) == BookState(1, SECONDS, EMPTY, (named("mail"),))
    assert (document["group"], document["beat_at"]) == ("shop", "now")
    assert process.refusal is None
    assert process.book.is_valid
    assert process.book.named == {named("mail").id}


def test_a_book_without_receivers_can_be_read(process):
    process.receivers = []
    process.beat()
    assert BookState.read(process.document) == BookState(1, SECONDS, EMPTY)


def test_each_beat_records_the_present_claims(process):
    process.beat()
    first, second, third = process.claim(), process.claim(), process.claim()
    second.done()
    third.release()
    process.beat()
    assert BookState.read(process.document).claims == BookSnapshot(3, (1, 1), frozenset({3}))
    first.done()
    process.beat()
    assert BookState.read(process.document).claims == BookSnapshot(3, (), frozenset({3}))


def test_a_beat_writes_the_names_of_receivers_only_if_there_are_new_ones(process, server):
    process.beat()
    process.beat()
    assert "receivers" not in server.updates[-1]["$set"]
    process.receivers.append(named("index"))
    process.beat()
    assert names_in(process.document) == ["mail", "index"]
    assert process.book.named == {named("mail").id, named("index").id}


def test_the_names_of_disconnected_receivers_stay(process):
    """A claim may be open, or about to be made, for a receiver that the application disconnects."""
    process.beat()
    process.receivers = [named("index")]
    process.beat()
    assert names_in(process.document) == ["mail", "index"]
    process.book.end()
    process.beat()
    assert names_in(process.document) == ["mail", "index"]


# -- the pace


def test_beats_are_rare_without_claims(process):
    assert process.beat() == RARELY


def test_beats_are_frequent_while_claims_are_open(process):
    process.beat()
    claim = process.claim()
    assert process.beat() == OFTEN
    claim.done()
    process.beat()
    assert process.beat() == RARELY


@pytest.mark.parametrize("end", ["done", "release"])
def test_the_end_of_a_claim_during_a_beat_is_recorded_soon(process, server, end):
    process.beat()
    claim = process.claim()
    server.fails = lambda command: getattr(claim, end)() if command == "update" else None
    assert process.beat() == OFTEN
    server.fails = lambda command: None
    assert BookState.read(process.document).claims.open == (1, 1)
    process.beat()
    assert BookState.read(process.document).claims.open == ()


def test_a_claim_that_begins_and_ends_during_a_beat_is_recorded_soon(process, server):
    process.beat()
    server.fails = lambda command: process.claim().done()
    assert process.beat() == OFTEN


# -- refusals


def test_nothing_is_claimed_before_a_group_announces_takeovers(process, server):
    server.layout = {"_id": "shop"}
    assert process.beat() == RARELY
    assert process.refusal.name == "not announced"
    assert server.claims == {}
    server.layout = None
    process.beat()
    assert process.book.claim() is None
    server.layout = LAYOUT
    process.beat()
    assert process.refusal is None
    assert process.book.is_valid


def test_the_announcement_is_not_read_again_after_it_was_found(process, server):
    process.beat()
    process.beat()
    assert server.looks == 1


@pytest.mark.parametrize("command", ["find", "update"])
def test_a_missing_right_is_reported_as_unauthorized(process, server, command):
    server.fails = lambda sent: refuse(sent) if sent == command else None
    assert process.beat() == OFTEN
    assert process.refusal.name == "unauthorized"
    for part in ("'state'", "not allowed", "--role"):
        assert part in process.refusal.text
    server.fails = lambda command: None
    process.beat()
    assert process.refusal is None
    assert process.book.is_valid


@pytest.mark.parametrize("error", [AutoReconnect("gone"), OperationFailure("odd", 1), RuntimeError("no thread")])
def test_a_beat_is_tried_again_after_any_error(process, server, error):
    def fail(command: str) -> None:
        raise error

    server.fails = fail
    assert process.beat() == OFTEN
    assert process.refusal.name == "no beat"
    assert str(error) in process.refusal.text
    server.fails = lambda command: None
    process.beat()
    assert process.refusal is None


def test_a_client_that_can_not_be_opened_counts_as_a_failed_beat(process, clock):
    process.recorder = BookRecorder("shop", "state", lambda: go_away("connect"), list)
    process.beat()
    assert process.refusal.name == "no beat"
    process.recorder.finish()


def test_a_failed_beat_does_not_extend_the_validity_of_a_book(process, server, clock):
    process.beat()
    claim = process.claim()
    server.fails = go_away
    clock.time += 0.7 * SECONDS
    process.beat()
    assert claim.may_start
    clock.time += 0.1 * SECONDS
    assert not claim.may_start


def test_a_receiver_counts_as_named_only_after_an_answered_beat(process, server):
    process.beat()
    process.receivers.append(named("index"))
    server.fails = go_away
    process.beat()
    assert process.book.named == {named("mail").id}
    server.fails = lambda command: None
    process.beat()
    assert names_in(process.document) == ["mail", "index"]


# -- answers that get lost or come late


def test_a_lost_answer_does_not_extend_the_validity_of_a_book(process, server, clock):
    process.beat()
    clock.time += 0.7 * SECONDS
    server.loses = 1
    process.beat()
    clock.time += 0.1 * SECONDS
    assert not process.book.is_valid


def test_a_lost_answer_to_the_first_beat_does_no_harm(process, server):
    server.loses = 1
    process.beat()
    assert process.book.claim() is None
    process.beat()
    assert process.book.is_valid
    assert list(server.claims) == [process.book.incarnation.hex()]
    assert BookState.read(process.document).beat == 2


def test_a_book_that_is_fenced_after_a_lost_first_answer_is_over(process, server):
    server.loses = 1
    process.beat()
    before = process.book
    process.document["fenced_at"] = "then"
    process.beat()
    assert before.is_over
    assert process.book is not before
    assert process.book.is_valid


@pytest.mark.parametrize("is_known", [True, False])
def test_a_beat_that_arrives_after_a_later_one_changes_nothing(process, server, is_known):
    if is_known:
        process.beat()
    server.late = []
    process.beat()
    (arrive,), server.late = server.late, None
    if is_known:
        process.claim().done()
    process.beat()
    expected = dict(process.document)
    with pytest.raises(DuplicateKeyError) if not is_known else _nothing():
        arrive()
    assert process.document == expected
    assert process.book.is_valid


def test_a_beat_that_arrives_after_the_fence_changes_nothing(process, server):
    process.beat()
    before, server.late = process.book, []
    claim = process.claim()
    process.beat()
    (arrive,), server.late = server.late, None
    server.claims[before.incarnation.hex()]["fenced_at"] = "then"
    arrive()
    assert server.claims[before.incarnation.hex()]["high"] == 0
    process.beat()
    assert not claim.may_start


def test_validity_counts_from_the_time_before_a_beat_is_sent(process, server, clock):
    def take_long(command: str) -> None:
        clock.time += 0.5 * SECONDS

    server.fails = lambda command: take_long(command) if command == "update" else None
    process.beat()
    clock.time += 0.2 * SECONDS
    assert process.book.is_valid
    clock.time += 0.1 * SECONDS
    assert not process.book.is_valid


def _nothing() -> Any:
    from contextlib import nullcontext

    return nullcontext()


# -- the end of a book


def test_a_fenced_book_is_replaced_within_the_same_beat(process):
    process.beat()
    before, claim = process.book, process.claim()
    process.document["fenced_at"] = "then"
    process.beat()
    assert not claim.may_start
    assert process.book is not before
    assert process.book.is_valid
    assert process.book.named == before.named
    assert process.refusal is None


def test_a_book_whose_document_is_deleted_is_replaced(process, server):
    process.beat()
    before = process.book
    server.claims.clear()
    process.beat()
    assert list(server.claims) == [process.book.incarnation.hex()]
    assert process.book is not before


def test_an_expired_book_is_fenced_with_its_open_claims(process, server, clock):
    """A book expires, for example, while the machine sleeps."""
    process.beat()
    before, open_ = process.book, process.claim()
    clock.time += SECONDS
    process.beat()
    assert not open_.may_start
    assert process.book.is_valid
    ended = server.claims[before.incarnation.hex()]
    assert (ended["open"], ended["fenced_by"], ended["fenced_at"]) == ([1, 1], "process", "now")


def test_a_book_with_many_released_claims_ends(process, server):
    process.beat()
    before = process.book
    for _ in range(MOST_RELEASED):
        process.claim().release()
    process.beat()
    assert process.book is before
    process.claim().release()
    process.beat()
    assert process.book is not before
    ended = server.claims[before.incarnation.hex()]
    assert (len(ended["released"]), ended["fenced_by"]) == (MOST_RELEASED + 1, "process")


def test_the_end_of_a_book_is_recorded_later_if_the_server_is_away(process, server, clock):
    process.beat()
    before = process.book
    process.claim().release()
    clock.time += SECONDS
    server.fails = go_away
    process.beat()
    process.beat()
    server.fails = lambda command: None
    process.beat()
    assert process.book.is_valid
    assert server.claims[before.incarnation.hex()]["fenced_by"] == "process"


def test_the_end_of_the_process_fences_its_book(process, server):
    process.beat()
    done, open_ = process.claim(), process.claim()
    done.done()
    process.recorder.finish()
    assert not open_.may_start
    assert (process.document["high"], process.document["open"]) == (2, [2, 2])
    assert process.document["fenced_by"] == "process"
    assert server.is_closed


@pytest.mark.parametrize("fails", [go_away, refuse])
def test_the_end_of_the_process_raises_no_error_if_the_server_fails(process, server, fails):
    process.beat()
    server.fails = fails
    process.recorder.finish()
    assert "fenced_at" not in process.document
    assert server.is_closed


def test_a_process_that_never_claimed_ends_without_a_command(process, server):
    process.recorder.finish()
    assert (server.claims, server.is_closed) == ({}, False)


# -- the thread


@pytest.fixture
def made(server: Server) -> Iterator[Claims]:
    claims = Claims("shop", "state", lambda: server, lambda: [named("mail")], 0.3)
    yield claims
    claims.close()


async def test_the_first_write_waits_for_the_first_beat(made):
    assert not made.is_ready
    await made.prepare()
    assert made.is_ready
    assert made.claim(frozenset({"mail"}), is_whole=True) is not None
    assert made.unclaimed == {}


@pytest.fixture
def answers(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The server answers beats only while this event is set. Writes wait for a short time."""
    monkeypatch.setattr(wait_module, "_MOST", 0.01)
    made = threading.Event()
    server.fails = lambda command: made.wait(60) if command == "update" else None
    yield made
    made.set()


async def test_the_first_write_waits_for_a_limited_time(made, answers):
    await made.prepare()
    assert made.is_ready
    assert made.claim(frozenset({"mail"}), is_whole=True) is None
    assert made.unclaimed == {"no beat": 1}


async def test_writes_wait_once_in_an_outage_and_again_in_the_next_one(made, answers):
    await made.prepare()
    before = made.book
    assert made.is_ready, "no second write waits"
    answers.set()
    await _until(lambda: made.book.is_valid)
    answers.clear()
    made.book.end()
    assert not made.is_ready
    await made.prepare()
    assert made.is_ready
    await _until(lambda: made.book is not before)
    assert made.is_ready, "the outage continues with the new book"


async def test_a_write_that_waits_for_a_beat_wakes_the_thread(made, monkeypatch):
    """The thread may still pause when its last beat is no longer valid: after the machine has slept."""
    monkeypatch.setattr(beats, "pause_after", lambda *_, **__: BeatPause(0.0, 0.0, 600.0))
    await made.prepare()
    for _ in range(2):
        made.book.end()
        await asyncio.gather(*(made.prepare() for _ in range(10)))
        assert made.claim(frozenset({"mail"}), is_whole=True) is not None
    assert made.unclaimed == {}


async def test_the_time_in_which_the_process_is_stopped_does_not_count_as_a_wait(made, server, monkeypatch):
    """After the stop, the waiting write and a new write wait for the next beat."""
    clock = Clock()
    monkeypatch.setattr(wait_module, "now", clock)
    answers = threading.Event()
    server.fails = lambda command: answers.wait(60) if command == "update" else None
    waiting = asyncio.create_task(made.prepare())
    await _until(lambda: made._wait._wakers)
    clock.time += 20.0
    steps = made._wait._waited
    await _until(lambda: made._wait._waited > steps)
    assert not made.is_ready
    assert not waiting.done()
    answers.set()
    await waiting
    assert made.claim(frozenset({"mail"}), is_whole=True) is not None


async def test_a_write_waits_for_the_next_book_if_the_present_book_is_over(made):
    """A dispatcher has fenced the book, for example, while the process was stopped."""
    await made.prepare()
    before = made.book
    before.end()
    assert not made.is_ready
    await made.prepare()
    assert made.book is not before
    assert made.claim(frozenset({"mail"}), is_whole=True) is not None
    assert made.unclaimed == {}


async def test_a_refusal_ends_the_wait_and_an_error_does_not(made, server):
    errors = 3

    def fail(command: str) -> None:
        nonlocal errors
        errors -= 1
        if errors >= 0:
            go_away(command)

    server.layout, server.fails = None, fail
    await made.prepare()
    assert (errors < 0, made.refusal.name) == (True, "not announced")
    assert made.is_ready
    server.layout = LAYOUT
    await _until(lambda: made.book.is_valid)
    made.book.end()
    assert not made.is_ready


async def test_the_thread_beats_again_after_errors(made, server, monkeypatch):
    monkeypatch.setattr(wait_module, "_MOST", 0.01)
    server.fails = go_away
    await made.prepare()
    await _until(lambda: made.refusal is not None)
    assert made.refusal.name == "no beat"
    server.fails = lambda command: None
    await _until(lambda: made.book.is_valid)


async def test_waits_in_several_event_loops_end_with_one_beat(made, answers, monkeypatch):
    monkeypatch.setattr(wait_module, "_MOST", 60.0)
    loops = [asyncio.create_task(asyncio.to_thread(asyncio.run, made.prepare())) for _ in range(3)]
    await _until(lambda: len(made._wait._wakers) == 3)
    answers.set()
    await asyncio.gather(*loops)
    assert made.book.is_valid


async def test_many_first_writes_start_one_thread(made):
    others = set(threading.enumerate())  # earlier tests of this process may have left threads
    await asyncio.gather(*(made.prepare() for _ in range(10)))
    assert len([one for one in threading.enumerate() if isinstance(one, BeatThread) and one not in others]) == 1


async def test_closing_records_the_end_of_the_book_and_a_later_write_begins_a_new_book(made, server):
    await made.prepare()
    before = made.book
    await asyncio.to_thread(made.close)
    assert server.claims[before.incarnation.hex()]["fenced_by"] == "process"
    assert not made.is_running
    assert made.claim(frozenset({"mail"}), is_whole=True) is None
    await made.prepare()
    assert made.book is not before
    assert made.claim(frozenset({"mail"}), is_whole=True) is not None


async def test_the_thread_ends_when_its_claims_are_garbage(server):
    claims = Claims("shop", "state", lambda: server, lambda: [named("mail")], 0.3)
    await claims.prepare()
    incarnation = claims.book.incarnation.hex()
    del claims
    gc.collect()
    await _until(lambda: server.is_closed)
    assert server.claims[incarnation]["fenced_by"] == "process"


async def test_the_end_of_the_interpreter_records_the_end_of_the_book(made, server):
    await made.prepare()
    await asyncio.to_thread(claims_module._close_all)
    assert server.claims[made.book.incarnation.hex()]["fenced_by"] == "process"


async def test_a_forked_child_begins_a_new_book_and_leaves_the_claims_to_its_parent(made, server):
    await made.prepare()
    before, claim = made.book, made.claim(frozenset({"mail"}), is_whole=True)
    parent = made._thread
    made.leave_to_parent()
    assert not claim.may_start
    assert not made.is_ready
    assert made.claim(frozenset({"mail"}), is_whole=True) is None
    await made.prepare()
    assert made.book.incarnation != before.incarnation
    assert "fenced_by" not in server.claims[before.incarnation.hex()]
    parent.stop()


async def test_a_fork_without_a_hook_is_noticed_at_the_next_write(made, monkeypatch):
    await made.prepare()
    before, parent = made.book, made._thread
    monkeypatch.setattr(claims_module.os, "getpid", lambda: -1)
    assert not made.is_ready
    await made.prepare()
    assert made.book is not before
    parent.stop()


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


# -- causes of unclaimed receivers


def test_each_write_with_unclaimed_receivers_is_counted(caplog):
    claims = Claims("shop", "state", Server, list, SECONDS)
    claims.book.acknowledge(claims.book._clock(), frozenset())
    some: frozenset[Any] = frozenset({"mail"})
    kept = [claims.claim(some, is_whole=True), claims.claim(some, is_whole=False)]
    assert all(kept)
    assert claims.unclaimed == {"new receiver": 1}
    assert claims.claim(frozenset(), is_whole=False) is None
    assert claims.unclaimed == {"new receiver": 2}
    assert claims.book.high == 2
    claims.book.end()
    claims.claim(some, is_whole=True)
    claims.refusal = ClaimRefusal("unauthorized", "no right")
    claims.claim(some, is_whole=True)
    assert claims.unclaimed == {"new receiver": 2, "no beat": 1, "unauthorized": 1}
    assert [record.getMessage().count("new receiver") for record in caplog.records] == [0, 0, 0]
    assert len(caplog.records) == 3  # one line for each cause
