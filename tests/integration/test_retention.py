"""Dead letters expire after the retention, except during a retry."""

from datetime import UTC, datetime, timedelta

from gridfs import GridFSBucket

from dispatcher.operate import dead_letters
from tests.integration.deliveries import Parked, make_account
from tests.integration.test_redelivery import strict_on
from tests.support import dispatching, eventually, group_of


async def test_old_dead_letters_expire(dispatched, database, foreign, monkeypatch):
    monkeypatch.setattr(dead_letters, "_BETWEEN", 0.02)
    strict_on(make_account(dispatched, database))
    state = Parked(foreign)
    old = datetime.now(UTC) - timedelta(days=10)
    kept = datetime.now(UTC) - timedelta(days=8)
    letters = state.database["held"]
    file = GridFSBucket(state.database, "held").upload_from_stream("old", b"x")
    letters.insert_many(
        [
            {**one, "reason": "failed"}
            for one in (
                {"_id": "old", "group": database, "last_attempt_at": old, "files": {"document": file}},
                {"_id": "younger", "group": database, "last_attempt_at": kept},
                {"_id": "tried", "group": database, "last_attempt_at": old, "retrying_since": old},
                {"_id": "of others", "group": "other", "last_attempt_at": old},
            )
        ]
    )
    async with dispatching(dispatched, dead_letter_retention=9.0):
        await eventually(lambda: letters.count_documents({}) == 3)
        await eventually(lambda: not state.database["held.chunks"].count_documents({}))
    assert {one["_id"] for one in letters.find()} == {"younger", "tried", "of others"}
    async with dispatching(dispatched, dead_letter_retention=0) as running:
        foreign["accounts"].insert_one({"name": "Ada"})
        await eventually(lambda: running.stats.dead_letters)
    assert letters.count_documents({}) == 4


async def test_a_dead_letter_whose_retry_failed_meanwhile_does_not_expire(client, database):
    """The retry fails after the search for old dead letters, and before their deletion."""
    group = group_of(client, database)
    held, now = group.state.held, datetime.now(UTC)
    await held.insert_one({"_id": "a", "group": database, "reason": "failed", "last_attempt_at": now})
    await held.insert_one({"_id": "b", "group": database, "reason": "failed", "last_attempt_at": now, "lane": "l"})
    assert await dead_letters.drop(group, ["a"], until=now - timedelta(days=1)) == ([], ["a"])
    assert await dead_letters.drop(group, ["a", "b"]) == (["a"], ["b"])
