"""Dispatchers read and fence the books of writing processes."""

from typing import Any

import pytest
from bson import Timestamp

from dispatcher.claims.store import ClaimStore
from mongoz.claims.document import BookSnapshot, BookState
from tests.support import group_of

BOOK = b"incarnat"
OTHER = b"another!"


@pytest.fixture
def store(client: Any, database: str) -> ClaimStore:
    return ClaimStore(group_of(client, database, "shop"))


@pytest.fixture
def claims(foreign: Any, database: str) -> Any:
    return foreign.client[f"{database}_state"].claims


def document(incarnation: bytes = BOOK, **more: Any) -> dict[str, Any]:
    plain = {
        "group": "shop",
        "beat": 7,
        "seconds": 15.0,
        "high": 3,
        "open": [2, 2],
        "released": [],
        "receivers": [],
    }
    return {"_id": incarnation.hex(), **plain, **more}


STATE = BookState(7, 15.0, BookSnapshot(3, (2, 2), frozenset()))


async def test_books_are_read(store, claims):
    claims.insert_one(document())
    assert await store.read([BOOK, OTHER]) == {BOOK: STATE, OTHER: None}


@pytest.mark.parametrize("wrong", [{"group": "others"}, {"open": "all"}, {"seconds": None}])
async def test_books_of_other_groups_and_malformed_books_count_as_missing(store, claims, wrong):
    claims.insert_one(document(**wrong))
    assert await store.read([BOOK]) == {BOOK: None}


async def test_books_are_read_as_of_a_time_of_the_server(store, claims, foreign):
    claims.insert_one(document())
    now = foreign.client.admin.command("ping")["operationTime"]
    assert await store.read([BOOK], now) == {BOOK: STATE}


async def test_books_are_read_at_a_time_that_the_server_has_not_reached(store, claims):
    """A topic may have changes of an earlier deployment, whose clock was ahead."""
    claims.insert_one(document())
    assert await store.read([BOOK], Timestamp(2**32 - 2, 1)) == {BOOK: STATE}


async def test_a_fence_ends_a_book(store, claims):
    claims.insert_one(document())
    assert await store.fence(BOOK, 7) == STATE._replace(fenced=True)
    found = claims.find_one()
    assert found["fenced_by"] == "dispatcher"
    assert found["fenced_at"] is not None


@pytest.mark.parametrize("since", [{"beat": 8}, {"fenced_at": 1}])
async def test_a_later_beat_or_an_earlier_fence_prevents_a_fence(store, claims, since):
    claims.insert_one(document(**since))
    before = claims.find_one()
    assert await store.fence(BOOK, 7) is None
    assert claims.find_one() == before


async def test_takeovers_are_announced_in_the_layout_of_the_group(store, foreign, database):
    positions = foreign.client[f"{database}_state"].positions
    assert not await store.announce()
    positions.insert_one({"_id": "shop", "partitions": 1})
    assert await store.announce()
    assert positions.find_one() == {"_id": "shop", "partitions": 1, "claims": True}
