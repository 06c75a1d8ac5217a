"""A receiver becomes a batch receiver, while processes of the earlier version still claim its deliveries."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

import mongoz
from mongoz import Batch
from tests.integration.claiming import Held, claiming, make, until_announced, until_passed
from tests.support import dispatching, eventually


@pytest.fixture
async def registry(mongo: Any, database: str) -> AsyncIterator[mongoz.Registry]:
    """The dispatcher's registry: it has the new version of the application."""
    made = claiming(mongo.url, database, claims=False)
    yield made
    await made.close()


@pytest.fixture
def batches(registry: mongoz.Registry, database: str) -> list[list[tuple[str, int, str]]]:
    """The batches of the receiver `any`: signal, value of `n`, and origin of each event."""

    Item = make(registry, database, [], others=False)
    got: list[list[tuple[str, int, str]]] = []

    async def index(sender: Any, batch: Any, **kwargs: Any) -> None:
        got.append([(event.delivery.signal, event.instance.n, event.delivery.origin) for event in batch])

    for signal in (Item.signals.post_save, Item.signals.post_update, Item.signals.post_delete):
        for earlier in signal.receivers:
            signal.disconnect(earlier.function)
        signal.connect(index, name="any", batch=Batch(size=10, wait=0.05))
    return got


@pytest.mark.parametrize("finishes", [True, False])
@pytest.mark.parametrize("park_after", [0.1, 60.0])
async def test_a_claimed_event_joins_no_batch_before_its_claim_is_decided(
    finishes, park_after, registry, database, state, foreign, held: Held, batches
):
    """Later events of the same document wait, too. Events of other documents do not wait."""
    foreign.create_collection("items")
    async with dispatching(registry, park_after=park_after):
        await until_announced(state)
        await held.begin(held.Item(n=1).create())
        foreign.items.update_one({"n": 1}, {"$set": {"n": 2}})
        foreign.items.insert_one({"n": 7})
        await eventually(lambda: batches == [[("post_save", 7, "stream")]])
        if park_after < 1:
            await eventually(lambda: state.held.count_documents({}) == 2, what="both are parked")
        if finishes:
            await held.finish()
        else:
            state.claims.update_one(held.book, {"$set": {"fenced_at": 1}})
        await eventually(lambda: ("post_update", 2, "stream") in [one for batch in batches for one in batch])
        await eventually(lambda: not state.held.find_one(), what="no delivery is parked")
        await until_passed(state)
    taken = [] if finishes else [("post_save", 1, "takeover")]
    events = [one for batch in batches[1:] for one in batch]
    assert events == [*taken, ("post_update", 2, "stream")]
