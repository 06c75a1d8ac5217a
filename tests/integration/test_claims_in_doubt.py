"""A process marks a claim as done only if the outcome of the write is certain.

Otherwise the process releases the claim. Then dispatchers read from the stream whether the write took effect, so
no delivery is lost.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import pytest
from pymongo.errors import AutoReconnect, InvalidOperation, OperationFailure, PyMongoError, WriteConcernError

import mongoz
from mongoz.claims.document import BookSnapshot
from mongoz.connection import transactions
from mongoz.persistence import delete
from mongoz.persistence import write as write_module
from mongoz.persistence.bulk import delete as bulk_delete
from mongoz.persistence.bulk import insert as bulk_insert
from mongoz.persistence.bulk import update as bulk_update
from tests.integration.claiming import claiming, make
from tests.proxy import proxied
from tests.support import eventually

pytestmark = pytest.mark.usefixtures("announced")

_WRITE_CONFLICT = 112
_UNAUTHORIZED = 13


@pytest.fixture
async def registry(mongo: Any, database: str) -> AsyncIterator[mongoz.Registry]:
    async with claiming(mongo.url, database) as made:
        yield made


@pytest.fixture
async def Item(registry: mongoz.Registry, database: str) -> Any:
    """The document class. One document is written already: its claim has the number 1, and is done."""
    made = make(registry, database, [], others=False)
    await made(n=1).create()
    return made


def claims_of(registry: mongoz.Registry) -> BookSnapshot:
    assert registry.claims is not None
    return registry.claims.book.snapshot()


@contextmanager
def failing(
    foreign: Any, command: str, code: int, *, times: int = 1, labels: tuple[str, ...] = ()
) -> Iterator[None]:
    """The server refuses the next command of this name for the documents."""
    data = {
        "failCommands": [command],
        "errorCode": code,
        "errorLabels": list(labels),
        "namespace": f"{foreign.name}.items",
    }
    admin = foreign.client.admin
    admin.command("configureFailPoint", "failCommand", mode={"times": 1}, data=data)
    try:
        yield
    finally:
        admin.command("configureFailPoint", "failCommand", mode="off")


# -- single writes


async def test_an_unacknowledged_update_is_left_to_dispatchers(mongo, database, foreign):
    """Without an answer, the ODM can't tell whether a document matched."""
    separator = "&" if "?" in mongo.url else "?"
    async with claiming(f"{mongo.url}{separator}w=0", database) as registry:
        Item = make(registry, database, [], others=False)
        one = await Item(n=1).create()
        with pytest.raises(InvalidOperation):
            await one.update(n=2)
        assert claims_of(registry) == (2, (), (2,))


async def test_the_claim_of_a_write_that_no_lookup_finds_is_left_to_dispatchers(
    mongo, database, foreign, monkeypatch
):
    """Without access to the change stream, the ODM can't see a write that another client has overwritten."""

    async def find_nothing(*args: Any) -> None: ...

    monkeypatch.setattr(write_module, "_look_up", find_nothing)
    async with proxied(mongo.url) as proxy, claiming(proxy.url, database) as registry:
        Item = make(registry, database, [], others=False)
        await Item(n=1).create()
        proxy.cut_after_request("insert", times=2)
        with pytest.raises(AutoReconnect):
            await Item(n=2).create()
        assert claims_of(registry) == (2, (), (2,))


async def test_the_claim_of_an_update_of_a_missing_document_is_done_even_in_a_transaction(registry, Item, foreign):
    """A transaction that commits may contain thousands of such updates. Their claims must not stay open."""
    one = await Item.objects.get(n=1)
    foreign.items.delete_one({})
    async with registry.transaction():
        with pytest.raises(mongoz.DocumentNotFound):
            await one.update(n=2)
        assert claims_of(registry) == (2, (), ())


# -- bulk calls


async def test_claims_of_a_refused_batch_are_done(registry, Item, foreign):
    with failing(foreign, "insert", _UNAUTHORIZED), pytest.raises(OperationFailure):
        await Item.objects.create_many([Item(n=2), Item(n=3)])
    assert claims_of(registry) == (3, (), ())


async def test_claims_of_a_refused_large_batch_are_left_to_dispatchers(registry, Item, foreign, monkeypatch):
    """The driver sends the batch in several commands, and the first command may have taken effect."""
    monkeypatch.setattr(bulk_insert, "_ONE_COMMAND", 1)
    with failing(foreign, "insert", _UNAUTHORIZED), pytest.raises(OperationFailure):
        await Item.objects.create_many([Item(n=2), Item(n=3)])
    assert claims_of(registry) == (3, (), (2, 3))


async def test_claims_of_inserts_that_no_lookup_finds_are_left_to_dispatchers(mongo, database, monkeypatch):
    async def find_nothing(*args: Any) -> tuple[int, ...]:
        return ()

    monkeypatch.setattr(bulk_insert, "_find_inserted", find_nothing)
    async with proxied(mongo.url) as proxy, claiming(proxy.url, database) as registry:
        Item = make(registry, database, [], others=False)
        await Item(n=1).create()
        proxy.cut_after_request("insert", times=2)
        with pytest.raises(AutoReconnect):
            await Item.objects.create_many([Item(n=2), Item(n=3)])
        assert claims_of(registry) == (3, (), (2, 3))


TRANSIENT = ("TransientTransactionError",)


@pytest.mark.parametrize("command", ["update", "delete"])
async def test_a_repeated_delete_of_many_documents_releases_no_claim(registry, Item, foreign, command):
    """Each attempt makes new claims. A book with more than 1,000 released claims would end."""
    await Item.objects.create_many([Item(n=2), Item(n=3)])
    with failing(foreign, command, _WRITE_CONFLICT, labels=TRANSIENT):
        await Item.objects.delete()
    assert foreign.items.find_one() is None
    assert claims_of(registry) == (9, (), ())


@pytest.mark.parametrize("command", ["update", "delete"])
async def test_a_repeated_delete_of_one_document_releases_no_claim(registry, Item, foreign, command):
    one = await Item.objects.get(n=1)
    with failing(foreign, command, _WRITE_CONFLICT, labels=TRANSIENT):
        await one.delete()
    assert claims_of(registry) == (3, (), ())


async def test_claims_of_an_aborted_batch_of_updates_are_done(registry, Item, foreign):
    """After the abort the ODM updates the documents one by one."""
    with failing(foreign, "update", _WRITE_CONFLICT, labels=TRANSIENT):
        await Item.objects.update_many(n=2)
    assert foreign.items.find_one()["n"] == 2
    assert claims_of(registry) == (3, (), ())


# -- commits

DOUBTS = [
    asyncio.CancelledError(),  # the end of the event loop
    InvalidOperation("Cannot use AsyncMongoClient after close"),
    WriteConcernError("not enough data-bearing nodes", 100),
]


def after_the_commit(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    commit = transactions.commit

    async def commit_and_fail(session: Any) -> None:
        await commit(session)
        raise error

    monkeypatch.setattr(transactions, "commit", commit_and_fail)


def named(error: BaseException) -> str:
    return type(error).__name__


@pytest.mark.parametrize("error", DOUBTS, ids=named)
async def test_claims_of_a_commit_in_doubt_are_left_to_dispatchers(registry, Item, foreign, monkeypatch, error):
    after_the_commit(monkeypatch, error)
    with pytest.raises(type(error)):
        async with registry.transaction():
            await Item(n=2).create()
    assert foreign.items.find_one({"n": 2}) is not None
    assert claims_of(registry) == (2, (), (2,))


@pytest.mark.parametrize("error", DOUBTS, ids=named)
@pytest.mark.parametrize("many", [False, True])
async def test_claims_of_a_delete_in_doubt_are_left_to_dispatchers(
    registry, Item, foreign, monkeypatch, error, many
):
    one = await Item.objects.get(n=1)
    after_the_commit(monkeypatch, error)
    with suppress(PyMongoError, asyncio.CancelledError):
        await (Item.objects.delete() if many else one.delete())
    assert foreign.items.find_one() is None
    assert claims_of(registry) == (2, (), (2,))


@pytest.mark.parametrize("error", DOUBTS[1:], ids=named)
async def test_claims_of_a_batch_of_updates_in_doubt_are_left_to_dispatchers(
    registry, Item, foreign, monkeypatch, error
):
    after_the_commit(monkeypatch, error)
    with suppress(PyMongoError):
        await Item.objects.update_many(n=2)
    assert foreign.items.find_one()["n"] == 2
    assert 2 in claims_of(registry).released


@pytest.mark.parametrize(
    ("code", "labels"),
    [(251, TRANSIENT), (_WRITE_CONFLICT, TRANSIENT), (_UNAUTHORIZED, ())],
    ids=["gone", "conflict", "refused"],
)
async def test_claims_of_a_refused_commit_are_done(registry, Item, foreign, monkeypatch, code, labels):
    async def refuse(session: Any) -> None:
        await session.abort_transaction()
        error = OperationFailure("refused", code)
        for label in labels:
            error._add_error_label(label)
        raise error

    monkeypatch.setattr(transactions, "commit", refuse)
    with pytest.raises(OperationFailure):
        async with registry.transaction():
            await Item(n=2).create()
    assert foreign.items.find_one({"n": 2}) is None
    assert claims_of(registry) == (2, (), ())


@pytest.fixture
def unknown_commit(monkeypatch: pytest.MonkeyPatch) -> AutoReconnect:
    """Each commit returns this error, and the outcome of the commit stays unknown."""
    error = AutoReconnect("no answer")
    error._add_error_label("UnknownTransactionCommitResult")

    async def commit(session: Any) -> PyMongoError:
        return error

    async def search(session: Any) -> bool:
        await asyncio.Event().wait()
        return False

    monkeypatch.setattr(transactions, "commit", commit)
    for module in (transactions, delete, bulk_delete, bulk_update):
        monkeypatch.setattr(module, "is_committed", search)
    return error


async def test_claims_of_an_unknown_commit_stay_open_until_the_search_ends(registry, Item, unknown_commit):
    async def write() -> None:
        async with registry.transaction():
            await Item(n=2).create()

    with pytest.raises(AutoReconnect):
        await write()
    await asyncio.sleep(0)
    assert claims_of(registry) == (2, (2, 2), ())
    for task in registry._unsettled:  # as the end of the registry or of the event loop does
        task.cancel()
    await eventually(lambda: claims_of(registry) == (2, (), (2,)), what="the claim is released")
    # The application may keep the error. Its traceback must not keep the claim alive.
    assert unknown_commit.__traceback__ is not None


@pytest.mark.parametrize("call", ["delete", "delete_many", "update_many"])
async def test_claims_of_calls_whose_own_commit_is_unknown_are_left_to_dispatchers(
    registry, Item, unknown_commit, call
):
    one = await Item.objects.get(n=1)
    write = {
        "delete": one.delete,
        "delete_many": Item.objects.delete,
        "update_many": partial(Item.objects.update_many, n=2),
    }[call]
    with pytest.raises(AutoReconnect):
        await write()
    assert claims_of(registry) == (2, (), (2,))
