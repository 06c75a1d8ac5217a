"""Takeovers of claims, without a server: beats, late stamps, documents, held deliveries, watched books."""

import asyncio
import threading
import time
from collections.abc import Collection
from itertools import pairwise
from typing import Any

import bson
import pytest
from bson import ObjectId, Timestamp
from pymongo.errors import AutoReconnect

from dispatcher.claims import watch as watch_module
from dispatcher.claims.orphans import calls_of_orphan, is_orphan
from dispatcher.claims.takeover import claimed, superseded
from dispatcher.claims.verdict import ClaimVerdict
from dispatcher.claims.watch import ClaimWatch
from dispatcher.core.events import Calls, Change, Job, delivery_id_of
from dispatcher.parking.record import record_of
from dispatcher.position.tracker import Tracker
from dispatcher.stream.origins import Origins
from mongoz.claims.beats import BeatPause, BeatThread, Bell, pause_after
from mongoz.claims.document import BookSnapshot, BookState, NamedReceiver
from mongoz.connection.codec import CODEC_OPTIONS
from mongoz.signals.receivers import Receiver
from mongoz.stamps import FIELD, Call, Claim, Stamp, key_hash
from tests.unit.test_origins import GROUP, ID, NOW, change, stamp
from tests.unit.test_parking_record import again, event

IDS = frozenset({b"r" * 8})
CLAIM = Claim(b"incarnat", 1, IDS)


def claiming(call: Call = Call.CREATED, **more: Any) -> Stamp:
    return stamp(call, receivers=more.pop("receivers", IDS), claim=CLAIM, **more)


# -- beats


@pytest.mark.parametrize(("is_waiting", "most"), [(True, 1.0), (False, 3.0)])
def test_a_process_beats_more_often_while_claims_are_open_or_their_end_is_not_recorded(is_waiting, most):
    assert pause_after(15.0, is_waiting=is_waiting) == BeatPause(least=0.5, settled=0.05, most=most)


class Beats:
    """Stands for the recorder and for the claims. It counts beats, and has no server."""

    def __init__(self, pause: BeatPause) -> None:
        self.pause = pause
        self.began: list[float] = []
        self.beats = threading.Semaphore(0)
        self.bell = Bell()
        self.thread = BeatThread(self, self, self.bell)  # type: ignore[arg-type]

    def record(self, claims: object) -> BeatPause:
        self.began.append(time.monotonic())
        self.beats.release()
        return self.pause

    def finish(self) -> None: ...

    def __enter__(self) -> "Beats":
        self.thread.start()
        assert self.beats.acquire(timeout=60)
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.stop()
        assert not self.thread.is_alive()


def test_a_changed_claim_brings_the_next_beat_before_its_time():
    with Beats(BeatPause(0.0, 0.0, 3_600.0)) as made:
        for _ in range(3):
            made.bell.ring()
            assert made.beats.acquire(timeout=60)


def test_many_changed_claims_do_not_shorten_the_pause_between_beats():
    """The pauses may be longer on a busy machine, but never shorter."""
    with Beats(BeatPause(0.2, 0.0, 3_600.0)) as made:
        while len(made.began) < 4:
            made.bell.ring()
            time.sleep(0.001)
    assert all(b - a >= 0.19 for a, b in pairwise(made.began))


def test_the_end_of_the_thread_does_not_wait_for_the_next_beat():
    with Beats(BeatPause(3_600.0, 3_600.0, 3_600.0)):
        pass


# -- late stamps


@pytest.mark.parametrize("seconds", [0, 11, 12, 60, 74])
def test_a_late_claim_counts_if_it_is_seen_for_the_first_time(seconds):
    """The claim tells which receivers have run, so no delivery is in doubt."""
    made = claiming()
    judged = Origins(GROUP).judge(change("insert", made, wall=NOW + seconds))
    assert judged.origin == made
    assert judged.delivery_id == ""


def test_a_claim_that_is_older_than_the_remembered_tokens_counts_as_a_copy():
    assert Origins(GROUP).judge(change("insert", claiming(), wall=NOW + 77)).origin is None


def test_unclaimed_receivers_of_a_late_claim_get_a_delivery_with_the_token_as_its_id():
    made = claiming(receivers=IDS | {b"s" * 8})
    judged = Origins(GROUP).judge(change("insert", made, wall=NOW + 30))
    assert judged.origin is not None
    assert judged.origin.receivers == IDS
    assert judged.origin.claim == CLAIM
    assert judged.delivery_id == str(made.token)


def test_a_copy_of_a_claim_does_not_count():
    made, origins = claiming(), Origins(GROUP)
    assert origins.judge(change("insert", made)).origin is not None
    assert origins.judge(change("insert", made, wall=NOW + 1, time=2)).origin is None


# -- the document of a takeover


def taken(operation: str = "insert", call: Call = Call.CREATED, **more: Any) -> Change:
    judged = Origins(GROUP).judge(change(operation, claiming(call), **more))
    return judged if operation != "delete" else judged._replace(origin=claiming(Call.DELETED))


def row(by: Stamp | None, **fields: Any) -> bytes:
    return bson.encode({"_id": ID, **fields, **({} if by is None else {FIELD: by.pack()})})


def test_a_takeover_has_the_token_of_the_write_as_its_id():
    one = taken()
    assert one.origin is not None
    assert delivery_id_of(claimed(one)) == str(one.origin.token)
    assert delivery_id_of(claimed(one), run="replay") != str(one.origin.token)


@pytest.mark.parametrize("by", ["its own stamp", "no stamp"])
def test_a_takeover_gets_the_document_of_its_write_if_no_later_write_of_the_odm_is_known(by):
    """A write of another client keeps or removes the stamp. Receivers get this write afterwards, in order."""
    one = taken()
    assert superseded(one, row(one.origin if by == "its own stamp" else None, n=9), CODEC_OPTIONS) == one


def test_a_takeover_gets_the_current_document_after_a_later_write_of_the_odm():
    found = superseded(taken(), row(stamp(Call.SAVED), n=9), CODEC_OPTIONS)
    assert (found.image, found.superseded) == ("current", True)
    assert found.document is not None
    assert found.document["n"] == 9


def test_a_takeover_gets_the_id_of_a_document_that_is_gone():
    found = superseded(taken(), None, CODEC_OPTIONS)
    assert (found.image, found.superseded, found.document) == ("key", True, None)


@pytest.mark.parametrize(
    ("raw", "is_superseded"),
    [(None, False), (row(None), False), (row(stamp(Call.CREATED)), True)],
    ids=["gone", "unstamped", "stamped"],  # each process of a parallel test run needs the same ids
)
def test_a_takeover_of_a_delete_tells_whether_the_document_exists_again(raw, is_superseded):
    found = superseded(taken("delete", Call.DELETED), raw, CODEC_OPTIONS)
    assert found.superseded is is_superseded


# -- records of held deliveries


def test_an_undecided_claim_survives_parking():
    made = Stamp(GROUP, Call.UPDATED, ObjectId(), key_hash("d.c", 1), IDS, claim=CLAIM)
    found = again(claimed(event()._replace(origin=made)))
    assert found.origin == made
    assert (found.delivery_id, found.takeover) == (str(made.token), False)


@pytest.mark.parametrize("is_superseded", [True, False])
def test_a_takeover_survives_parking(is_superseded):
    made = Stamp(GROUP, Call.UPDATED, ObjectId(), key_hash("d.c", 1), IDS, claim=CLAIM)
    one = event()._replace(origin=made, delivery_id=str(made.token), takeover=True, superseded=is_superseded)
    found = again(one)
    assert (found.takeover, found.superseded, found.delivery_id) == (True, is_superseded, str(made.token))
    assert found.origin is None


# -- parts of a change


def test_a_change_is_finished_when_all_its_parts_are_finished():
    tracker = Tracker("")
    job = Job("01", change(), (Calls(None, "post_save", True, ()),))
    job.parts = 3
    tracker.add(job)
    for _ in range(2):
        tracker.finished(job)
        assert tracker.token == ""
    tracker.finished(job)
    assert tracker.token == "01"


# -- orphans: calls of receivers that the application does not have


def test_the_call_of_an_orphan_has_the_names_of_its_receiver():
    named = NamedReceiver(b"12345678", (b"former_1",), "shop.models.User", "post_save", "shop.mail")
    calls = calls_of_orphan(named, created=True)
    assert is_orphan(calls)
    fields = record_of(change(), calls, calls.receivers[0], term=1, group=GROUP).fields
    assert (fields["document"], fields["receiver"], fields["receiver_id"]) == (
        "shop.models.User",
        "shop.mail",
        b"12345678".hex(),
    )


def test_a_receiver_of_the_application_is_no_orphan():
    assert not is_orphan(Calls(None, "post_save", True, (Receiver(decided, "r", 1),)))


# -- the watch of books


class Store:
    """A store with one book."""

    address = "nowhere"

    def __init__(self, state: BookState | None) -> None:
        self.state = state
        self.reads = 0
        self.since: Timestamp | None = None
        self.fenced: list[int] = []
        self.errors = 0

    async def read(
        self, incarnations: Collection[bytes], since: Timestamp | None = None
    ) -> dict[bytes, BookState | None]:
        self.reads += 1
        self.since = since
        if self.errors:
            self.errors -= 1
            raise AutoReconnect("no answer")
        return dict.fromkeys(incarnations, self.state)

    async def fence(self, incarnation: bytes, beat: int) -> BookState | None:
        self.fenced.append(beat)
        assert self.state is not None
        self.state = self.state._replace(fenced=True)
        return self.state


class Waiting:
    """Claims that wait until they are decided."""

    def __init__(self, watch: ClaimWatch) -> None:
        self.watch = watch
        self.incarnations = {CLAIM.incarnation}
        self.decided = asyncio.Event()
        self.urgent = False
        self.asked = 0
        self.asked_often = asyncio.Event()

    @property
    def is_urgent(self) -> bool:
        self.asked += 1
        if self.asked >= 5:
            self.asked_often.set()
        return self.urgent

    def decide(self) -> None:
        if self.watch.verdict(CLAIM) is not ClaimVerdict.WAIT:
            self.incarnations = set()
            self.decided.set()


def book(
    high: int = 1, open_: tuple[int, ...] = (1, 1), *, seconds: float = 0.1, ids: frozenset[bytes] = IDS
) -> BookState:
    named = tuple(NamedReceiver(id_, (), "shop.User", "post_save", "mail") for id_ in ids)
    return BookState(1, seconds, BookSnapshot(high, open_, ()), named)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "_PACE", 0.01)
    monkeypatch.setattr(watch_module, "_URGENT_PACE", 0.005)


async def decided(store: Store) -> ClaimVerdict:
    watch = ClaimWatch(store, 0.0)  # type: ignore[arg-type]
    waiting = Waiting(watch)
    watch.add(waiting)
    await watch.load([taken()])
    watch.wake()
    await asyncio.wait_for(waiting.decided.wait(), 60)
    await watch.discard(waiting)
    return watch.verdict(CLAIM)


async def test_a_silent_book_is_fenced_and_taken_over():
    store = Store(book())
    assert await decided(store) is ClaimVerdict.TAKE
    assert store.fenced == [1]


async def test_errors_of_the_server_do_not_end_a_watch():
    store = Store(book())
    store.errors = 3
    assert await decided(store) is ClaimVerdict.TAKE


async def test_a_missing_book_is_taken_over_after_the_timeout():
    assert await decided(Store(None)) is ClaimVerdict.TAKE


async def test_books_are_read_more_often_while_a_decision_is_urgent(monkeypatch):
    monkeypatch.setattr(watch_module, "_PACE", 3_600.0)
    store = Store(book(seconds=3_600.0))
    watch = ClaimWatch(store, 0.0)  # type: ignore[arg-type]
    waiting = Waiting(watch)
    watch.add(waiting)
    await watch.load([taken()])
    watch.wake()
    await asyncio.wait_for(waiting.asked_often.wait(), 60)
    assert store.reads == 1
    waiting.urgent = True
    store.state = book(1, ())
    await asyncio.wait_for(waiting.decided.wait(), 60)
    await watch.discard(waiting)


async def test_a_claim_that_is_done_needs_one_read_of_its_book():
    store = Store(book(5, ()))
    watch = ClaimWatch(store, 0.0)  # type: ignore[arg-type]
    await watch.load([taken()])
    await watch.load([taken()])
    assert watch.verdict(CLAIM) is ClaimVerdict.DONE
    assert store.reads == 1


async def test_only_named_receivers_are_taken_over():
    watch = ClaimWatch(Store(book()), 0.0)  # type: ignore[arg-type]
    await watch.load([taken()])
    assert watch.named(CLAIM._replace(receivers=IDS | {b"s" * 8})) == IDS


async def test_a_book_is_read_again_for_a_receiver_that_it_named_later():
    """Otherwise the delivery would be lost. A book names a receiver before its process claims the receiver."""
    store = Store(book(ids=frozenset()))
    watch = ClaimWatch(store, 0.0)  # type: ignore[arg-type]
    earlier = claiming(receivers=frozenset())._replace(claim=CLAIM._replace(receivers=frozenset()))
    await watch.load([change(by=earlier)._replace(origin=earlier)])
    store.state = book(2, (2, 2))
    await watch.load([taken()])
    assert watch.named(CLAIM) == IDS
    assert [one.id for one in watch.receivers_of(CLAIM)] == list(IDS)
    await watch.load([taken()])
    assert store.reads == 2


async def test_a_book_is_read_as_of_the_time_of_the_latest_change_with_a_claim():
    """Without this time, a new primary may answer from a snapshot that does not have the book yet."""
    store = Store(book())
    watch = ClaimWatch(store, 0.0)  # type: ignore[arg-type]
    late, early = taken(time=5), taken(time=3)
    await watch.load([late, early])
    assert store.since == late.cluster_time
