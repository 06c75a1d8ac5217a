"""Reading and writing with mongoz, and with the bare driver. Both use one process, one loop and one client."""

import itertools
from typing import Any

import mongoz
from benchmarks.workloads.documents import Human
from benchmarks.workloads.people import COLLECTION, CREATED, ODM_DATABASE, person
from benchmarks.workloads.sides.timing import Clock, Operation, Operations, each, once
from mongoz.core.signals import post_delete, post_save, pre_save

__all__ = ["prepare"]

_STATE = "odm_state"

# `prepare` sets the URL.
plain_registry = mongoz.Registry("mongodb://localhost")
stamping_registry = mongoz.Registry("mongodb://localhost", dispatched="bench", claims=False)
claiming_registry = mongoz.Registry("mongodb://localhost", dispatched="bench", state=_STATE)


class Stored(Human):
    class Meta:
        abstract = True
        registry = plain_registry
        database = ODM_DATABASE


class Person(Stored):
    class Meta:
        collection = COLLECTION


class Silent(Stored):
    """Has no receivers."""

    class Meta:
        collection = CREATED


class Heard(Stored):
    """Has one receiver before a write and one after it."""

    class Meta:
        collection = CREATED


class Announced(Stored):
    """Has one receiver after a write."""

    class Meta:
        collection = CREATED


class Stamped(Stored):
    """Like `Announced`, with stamps for a dispatcher."""

    class Meta:
        collection = CREATED
        registry = stamping_registry


class Claimed(Stored):
    """Like `Stamped`, with claims in the stamps."""

    class Meta:
        collection = CREATED
        registry = claiming_registry


class ClaimedHeard(Stored):
    """Like `Claimed`, with one more receiver before a write."""

    class Meta:
        collection = CREATED
        registry = claiming_registry


@pre_save([Heard, ClaimedHeard])
async def before(sender: type[Human], **kwargs: Any) -> None:
    """Do nothing."""


@post_delete([Announced, Stamped, Claimed])
@post_save([Heard, Announced, Stamped, Claimed, ClaimedHeard])
async def after(sender: type[Human], **kwargs: Any) -> None:
    """Do nothing."""


# Each name is new, so that a side that writes only changed fields has something to write.
_names = (f"Renamed Person {number}" for number in itertools.count())


async def prepare(url: str) -> Operations:
    """Return the operations, by name."""
    for registry in (plain_registry, stamping_registry, claiming_registry):
        registry.point_to(url)
    database = plain_registry.client[ODM_DATABASE]
    stored, created = database[COLLECTION], database[CREATED]
    announced = {"partitions": 1, "group": "bench", "claims": True}  # as a dispatcher writes it
    await plain_registry.client[_STATE].positions.replace_one({"_id": "bench"}, announced, upsert=True)

    async def load(expected: int) -> Clock:
        return await once(Person.objects.all, expected)

    async def find(expected: int) -> Clock:
        async def bare() -> list[Any]:
            return [document async for document in stored.find()]

        return await once(bare, expected)

    async def insert_one(times: int) -> Clock:
        return await each(created.insert_one, [person(number) for number in range(times + 1)])

    async def create_made(times: int) -> Clock:
        return await each(Silent.create, [Silent(**person(number)) for number in range(times + 1)])

    async def save(times: int) -> Clock:
        async def rename_and_save(loaded: Person) -> None:
            loaded.name = next(_names)
            await loaded.save()

        return await each(rename_and_save, await _some(times))

    async def update(times: int) -> Clock:
        return await each(lambda loaded: loaded.update(name=next(_names)), await _some(times))

    async def update_one(times: int) -> Clock:
        ids = [one.id for one in await _some(times)]
        return await each(lambda id_: stored.update_one({"_id": id_}, {"$set": {"name": next(_names)}}), ids)

    return {
        "load": load,
        "find": find,
        "create": _creating(Silent),
        "create_made": create_made,
        "create_heard": _creating(Heard),
        "create_announced": _creating(Announced),
        "create_stamped": _creating(Stamped),
        "create_claimed": _claimed(_creating(Claimed)),
        "create_claimed_heard": _claimed(_creating(ClaimedHeard)),
        "delete_announced": _deleting(Announced),
        "delete_claimed": _claimed(_deleting(Claimed)),
        "delete_many_announced": _deleting_many(Announced),
        "delete_many_claimed": _claimed(_deleting_many(Claimed)),
        "insert_one": insert_one,
        "save": save,
        "update": update,
        "update_one": update_one,
    }


def _creating(document: type[Human]) -> Operation:
    async def create(times: int) -> Clock:
        async def make_and_create(values: dict[str, Any]) -> None:
            await document(**values).create()

        return await each(make_and_create, [person(number) for number in range(times + 1)])

    return create


def _claimed(operation: Operation) -> Operation:
    async def run(times: int) -> Clock:
        clock = await operation(times)
        if claiming_registry.claims is None or claiming_registry.claims.unclaimed:
            raise RuntimeError("writes were not claimed")
        return clock

    return run


def _deleting(document: type[Human]) -> Operation:
    async def delete(times: int) -> Clock:
        return await each(lambda made: made.delete(), await _made(document, times + 1))

    return delete


def _deleting_many(document: type[Human]) -> Operation:
    async def delete(times: int) -> Clock:
        ids = [one.id for one in await _made(document, times)]
        with Clock() as clock:
            deleted = await document.objects.filter(id__in=ids).delete()
        if deleted != times:
            raise RuntimeError(f"{times} documents should be deleted, and {deleted} were")
        return clock

    return delete


async def _made(document: type[Human], count: int) -> list[Any]:
    """Create documents, to delete them."""
    return await document.create_many([document(**person(number)) for number in range(count)])


async def _some(times: int) -> list[Person]:
    """Loaded documents: one more than will be timed, see `each`."""
    found = await Person.objects.limit(times + 1).all()
    if len(found) != times + 1:
        raise RuntimeError(f"{times + 1} documents are needed, and there are {len(found)}")
    return found
