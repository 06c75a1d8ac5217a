"""Collections whose validators refuse the stamp: deletes do without one, and other errors say what to do."""

from typing import Any

import pytest
from pymongo.errors import OperationFailure

import mongoz
from mongoz.core.signals import post_delete

CLOSED = {"$jsonSchema": {"properties": {"_id": {}, "name": {}}, "additionalProperties": False}}


@pytest.fixture
def Closed(dispatched: mongoz.Registry, database: str, foreign: Any) -> Any:
    class Closed(mongoz.Document):
        name: str = mongoz.String()

        Meta = type("Meta", (), {"registry": dispatched, "database": database, "collection": "closed"})

    foreign.create_collection("closed", validator=CLOSED)
    foreign.closed.insert_many([{"name": "a"}, {"name": "b"}])

    @post_delete(Closed, name="heard")
    async def heard(sender: Any, **kwargs: Any) -> None: ...

    return Closed


async def test_a_delete_does_without_a_mark(Closed: Any, foreign: Any) -> None:
    await (await Closed.objects.get(name="a")).delete()
    assert await Closed.objects.delete() == 1
    assert foreign.closed.count_documents({}) == 0


@pytest.mark.parametrize("of", ["an instance", "a query"])
async def test_in_a_transaction_the_error_names_the_remedy(Closed: Any, foreign: Any, of: str) -> None:
    closed = await Closed.objects.get(name="a")
    with pytest.raises(OperationFailure) as caught:
        async with Closed.meta.registry.transaction():
            await (closed.delete() if of == "an instance" else Closed.objects.delete())
    notes = " ".join(caught.value.__notes__)
    assert "The collection's validator refuses '_mongoz'" in notes
    assert "{_mongoz: {bsonType: 'binData'}}" in notes
    assert "Outside of a transaction such a document is deleted without a mark" in notes
    assert foreign.closed.count_documents({}) == 2
