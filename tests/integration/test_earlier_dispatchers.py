"""Processes claim nothing while a dispatcher of a version without claims runs.

Such a dispatcher would deliver claimed changes again.
"""

from collections.abc import AsyncIterator
from typing import Any

import pytest

import mongoz
from mongoz.stamps import Stamp
from tests.integration.claiming import claim_in, claiming, make
from tests.support import eventually

EARLIER = {"_id": "earlier", "host": "db-3", "pid": 7, "beat": 0, "format": 2}
"""The member document of a dispatcher of an earlier version. The document has no field `claims`."""


@pytest.fixture
async def registry(mongo: Any, database: str) -> AsyncIterator[mongoz.Registry]:
    async with claiming(mongo.url, database, claims=1.5) as made:
        yield made


@pytest.fixture
def state(foreign: Any, database: str) -> Any:
    """The state of a group that takes over claims."""
    state = foreign.client[f"{database}_state"]
    state.positions.insert_one({"_id": database, "partitions": 1, "group": database, "claims": True})
    state.members.insert_one({"_id": "present", "group": database, "claims": True})
    state.members.insert_one({"_id": "of another group", "group": f"{database}_other"})
    return state


async def test_nothing_is_claimed_while_a_dispatcher_of_an_earlier_version_runs(
    registry, database, foreign, state, caplog
):
    Item = make(registry, database, [])
    state.members.insert_one({**EARLIER, "group": database})
    await Item(n=1).create()
    stamp = Stamp.unpack(foreign.items.find_one()["_mongoz"])
    assert (len(stamp.receivers), stamp.claim) == (1, None)
    assert registry.claims.unclaimed == {"earlier dispatcher": 1}
    assert "pid 7 on db-3" in caplog.text
    assert state.claims.find_one() is None
    state.members.delete_one({"_id": "earlier"})
    await eventually(lambda: registry.claims.book.is_valid, what="the first beat")
    await Item(n=2).create()
    assert claim_in(foreign.items.find_one({"n": 2})) is not None


async def test_open_claims_stay_valid_after_a_dispatcher_of_an_earlier_version_has_joined(
    registry, database, foreign, state
):
    Item = make(registry, database, [])
    await Item(n=1).create()
    book = registry.claims.book
    claim = book.claim()
    state.members.insert_one({**EARLIER, "group": database})
    await eventually(lambda: book.is_paused, what="the process notices the earlier dispatcher")
    await Item(n=2).create()
    assert claim_in(foreign.items.find_one({"n": 2})) is None
    assert registry.claims.unclaimed == {"earlier dispatcher": 1}
    beat = state.claims.find_one()["beat"]
    await eventually(lambda: state.claims.find_one()["beat"] > beat + 1, what="further beats")
    assert claim.may_start
    state.members.delete_one({"_id": "earlier"})
    await eventually(lambda: not book.is_paused, what="the process notices the end of the earlier dispatcher")
    await Item(n=3).create()
    assert claim_in(foreign.items.find_one({"n": 3})).incarnation == book.incarnation
    claim.done()
