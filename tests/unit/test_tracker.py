"""The position never passes an unfinished change."""

import random

import pytest
from bson import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.events import Calls, Change, Job
from dispatcher.core.resume_tokens import token_time
from dispatcher.exceptions import PositionError
from dispatcher.position.documents import SavedPositions
from dispatcher.position.tracker import Tracker

TIME = Timestamp(1, 1)


def open_job(number: int) -> Job:
    change = Change(
        f"{number:04}", "insert", ("d", "c"), number, TIME, None, {}, None, "post", frozenset(), None, 1
    )
    return Job(change.token, change, (Calls(None, "post_save", True, ()),))


@given(count=st.integers(1, 40), seed=st.integers(0, 10_000), done_at_once=st.sets(st.integers(0, 39)))
def test_the_position_is_the_token_before_the_first_unfinished_change(count, seed, done_at_once):
    tracker = Tracker("")
    jobs = [Job(f"{i:04}") if i in done_at_once else open_job(i) for i in range(count)]
    for job in jobs:
        tracker.add(job)
    order = [job for job in jobs if not job.done]
    random.Random(seed).shuffle(order)
    for job in order:
        tracker.finished(job)
        unfinished = next((i for i, other in enumerate(jobs) if not other.done), count)
        assert tracker.token == (jobs[unfinished - 1].token if unfinished else "")
        assert tracker.ahead == [other for other in jobs[unfinished:] if other.done]
        assert tracker.weight == sum(len(other.token) for other in jobs[unfinished:])
    assert tracker.token == jobs[-1].token


def test_a_change_that_only_the_writing_process_may_deliver_does_not_count_as_undelivered():
    tracker, jobs = Tracker(""), [open_job(number) for number in range(4)]
    for job in jobs:
        tracker.add(job)
    jobs[0].split(awaited=True)
    tracker.finished(jobs[0])  # the part with calls; the other part waits for a claim
    jobs[1].wait_for_process()  # one part waits for a claim; the dispatcher may deliver the other part
    assert tracker.undelivered() == (jobs[1], 3)
    tracker.finished(jobs[1])
    tracker.finished(jobs[2])
    assert tracker.undelivered() == (jobs[3], 1)
    tracker.finished(jobs[3])
    assert tracker.undelivered() == (None, 0)
    assert tracker.token == ""


def test_a_mark_waits_for_the_changes_before_it():
    tracker = Tracker("0")
    job = open_job(1)
    tracker.add(job)
    tracker.mark("0009")
    assert tracker.token == "0"
    assert tracker.ahead == []
    tracker.finished(job)
    assert tracker.token == "0009"


def test_a_mark_with_the_token_of_the_last_change_does_not_finish_this_change():
    """After a full batch, the stream has the token of the last event of the batch."""
    tracker = Tracker("0")
    tracker.add(open_job(1))
    tracker.mark("0001")
    assert tracker.token == "0"
    assert tracker.ahead == []


def announced(number: int, by: int) -> tuple[Job, Job]:
    """A marker and its delete."""
    marker, delete = open_job(by), open_job(number)
    marker.announce_delete()
    delete.finish_with(marker)
    return marker, delete


@given(
    roles=st.permutations(["m0", "m1", "m2", "d0", "d1", "d2", "-", "-", "-"]),
    seed=st.integers(0, 10_000),
)
def test_the_position_never_lies_between_a_marker_and_its_delete(roles, seed):
    for number in "012":  # the marker comes first
        first, second = sorted((roles.index(f"m{number}"), roles.index(f"d{number}")))
        roles[first], roles[second] = f"m{number}", f"d{number}"
    jobs: list[Job] = [open_job(i) for i in range(len(roles))]
    pairs = []
    for number in "012":
        first, second = roles.index(f"m{number}"), roles.index(f"d{number}")
        jobs[first], jobs[second] = announced(second, first)
        pairs.append((jobs[first].token, jobs[second].token))
    tracker = Tracker("")
    for job in jobs:
        tracker.add(job)
    order = [job for job in jobs if job.announces != 1]
    random.Random(seed).shuffle(order)
    for job in order:
        tracker.finished(job)
        assert not any(marker <= tracker.token < delete for marker, delete in pairs)
        assert tracker.weight == sum(len(other.token) for other in jobs if other.token > tracker.token)
        # A restart from a position before the marker reads the marker and the delete again. So either both
        # count as finished, or neither does.
        for marker, delete in pairs:
            finished = {*(j.token for j in tracker.ahead), *(j.token for j in jobs if j.token <= tracker.token)}
            assert (marker in finished) == (delete in finished)
    assert (tracker.token, tracker.ahead, tracker.span) == (jobs[-1].token, [], 0)


def test_a_marker_is_finished_alone_if_no_delete_follows():
    tracker = Tracker("0")
    job = open_job(1)
    job.announce_delete()
    tracker.add(job)
    job.settle(job.change, job.calls)
    tracker.finished(job)
    assert tracker.token == "0001"


def test_a_finished_job_releases_its_document():
    tracker = Tracker("0")
    first, second = open_job(1), open_job(2)
    tracker.add(first)
    tracker.add(second)
    tracker.finished(second)
    assert second.change is None
    assert second.calls == ()


def test_a_token_has_a_time():
    assert token_time("826B03E05E000000122B0229296E04") == Timestamp(0x6B03E05E, 0x12)


@pytest.mark.parametrize("token", ["", "82", "zz6B03E05E00000012", "826B03E05Exx000012", "nonsense"])
def test_an_invalid_token_is_named(token):
    with pytest.raises(PositionError, match="is no resume token"):
        token_time(token)


def test_a_change_stream_with_another_fingerprint_starts_at_the_time_of_the_position():
    document = {"_id": "shop:0", "token": "826B03E05E000000122B0229296E04", "fingerprint": "same"}
    position = SavedPositions.read([document], "shop", "state").positions[0]
    assert position.start("same").token == position.token
    other = position.start("other")
    assert other.token is None
    assert other.cluster_time == Timestamp(0x6B03E05E, 0x12)
