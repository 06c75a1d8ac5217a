"""A process knows the changes that earlier processes have finished, and notices when it has passed them."""

from unittest.mock import MagicMock

import bson

from dispatcher.core.events import EventBatch, Job
from dispatcher.core.lease import Lease
from dispatcher.core.resume_tokens import digest_of, token_at
from dispatcher.core.stats import Stats
from dispatcher.position.checkpoint import Checkpoint
from dispatcher.position.documents import SavedPositions

BEFORE, BEGIN, NEXT, LATER, AFTER = (token_at(bson.Timestamp(1_700_000_000, number)) for number in range(5))


def checkpoint(*ahead: str) -> Checkpoint:
    """The checkpoint of a process whose predecessor has finished all changes up to BEGIN, and those in `ahead`."""
    saved = {"_id": "default:0", "partition": 0, "token": BEGIN, "term": 1}
    if ahead:
        saved |= {"ahead": b"".join(sorted(map(digest_of, ahead))), "until": AFTER}
    position = SavedPositions.read([saved], "default", "state").positions[0]
    return Checkpoint(MagicMock(), Lease.for_ever(), position, "", stats=Stats(), always=lambda: False)


def test_changes_may_be_finished_until_the_stream_has_passed_the_position():
    """A stream that was opened at a time can begin before the position."""
    made = checkpoint()
    assert made.may_be_finished()
    made.mark(EventBatch([], BEFORE))
    assert made.may_be_finished()
    made.tracker.add(Job(NEXT))
    assert not made.may_be_finished()


def test_an_idle_stream_passes_the_position_with_its_tokens():
    made = checkpoint()
    made.mark(EventBatch([], BEGIN))
    assert made.may_be_finished()
    made.mark(EventBatch([], NEXT))
    assert not made.may_be_finished()


def test_changes_may_be_finished_as_long_as_a_finished_change_after_the_position_is_missing():
    made = checkpoint(LATER)
    made.tracker.add(Job(NEXT))
    assert made.may_be_finished()
    assert [made.is_finished(token) for token in (NEXT, LATER)] == [False, True]
    made.count_finished(LATER)
    assert not made.may_be_finished()
