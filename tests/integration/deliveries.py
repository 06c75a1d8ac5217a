"""Shared parts of the tests of deliveries: a document, receivers, and the dispatcher's state."""

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar

import bson
from bson.codec_options import CodecOptions

import mongoz
from mongoz import Batch, BatchError
from mongoz.core.signals import post_save
from mongoz.signals.options import Retry
from tests.support import eventually

QUICK = Retry(attempts=2, base=0.01, cap=0.05)
"""The option `retry` of receivers whose failed attempt is repeated soon."""

IMAGES = {"changeStreamPreAndPostImages": {"enabled": True}}


def make_account(registry: mongoz.Registry, database: str, name: str = "accounts", *, longest: int = 40) -> Any:
    """A document class with its own collection."""

    class Account(mongoz.Document):
        name: str = mongoz.String(max_length=longest)
        amount: int = mongoz.Integer(default=0)
        tags: list[str] = mongoz.Array(str, default=list)

        class Meta:
            abstract = False
            collection = name

        Meta.registry = registry  # type: ignore[attr-defined]
        Meta.database = database  # type: ignore[attr-defined]

    return Account


class State:
    """The state database of a test's dispatchers, through another client."""

    def __init__(self, foreign: Any) -> None:
        self.database = foreign.client[f"{foreign.name}_state"]
        self._held = self.database.get_collection("held", codec_options=CodecOptions())

    @property
    def letters(self) -> list[dict[str, Any]]:
        """All dead letters, in the order of their last attempts."""
        return list(self._held.find({"reason": {"$exists": True}}).sort("last_attempt_at"))

    async def letter(self) -> dict[str, Any]:
        """Waits for the only dead letter."""
        (found,) = await self.wait(1)
        return found

    async def wait(self, count: int) -> list[dict[str, Any]]:
        """Waits for at least this number of dead letters, and returns all."""
        return await eventually(
            lambda: letters if len(letters := self.letters) >= count else None, what=f"{count} letters"
        )

    def rewind(self, token: str) -> None:
        """Saves an older position for the next dispatcher, as after a crash."""
        self.database["positions"].update_one({"partition": 0}, {"$set": {"token": token, "ahead": b""}})

    @property
    def token(self) -> str:
        """The saved position."""
        return self.database["positions"].find_one({"partition": 0})["token"]


class Parked(State):
    """The parked deliveries of a test."""

    HEADS: ClassVar = {"due_at": {"$exists": True}}

    @property
    def heads(self) -> list[dict[str, Any]]:
        """The first parked delivery of each lane."""
        return list(self._held.find(self.HEADS))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All parked deliveries in order, grouped by lane."""
        return list(self._held.find({"lane": {"$exists": True}}).sort([("lane", 1), ("token", 1), ("run", 1)]))

    @property
    def empty(self) -> bool:
        return not self.rows


class Strict:
    """A receiver that refuses all documents, or those that `refuses` selects, until the test sets `mended`."""

    def __init__(self, document: Any, *signals: Any, refuses: Any = None, **options: Any) -> None:
        self.refuses = refuses or (lambda instance: True)
        self.mended = False
        self.got: list[str] = []
        self.attempts: list[tuple[str, int]] = []
        self.deliveries: list[Any] = []
        for connect in signals or (post_save,):
            connect(document, **{"name": "strict", "retry": QUICK, "on_failure": "block", **options})(self)

    async def __call__(self, sender: Any, instance: Any, delivery: Any, **kwargs: Any) -> None:
        self.attempts.append((instance.name, delivery.attempt))
        if not self.mended and self.refuses(instance):
            raise ValueError("not yet")
        self.deliveries.append(delivery)
        self.got.append(instance.name)


class Indexer:
    """A batch receiver that records its batches, and can fail.

    Args:
        batch: the value of the option `batch`.
        fails: called with each batch. If it returns an error, the receiver raises the error.
        signals: the decorators of the signals.
    """

    def __init__(
        self,
        document: Any,
        batch: Batch,
        *,
        fails: Any = None,
        signals: Any = (post_save,),
        **options: Any,
    ) -> None:
        self.fails = fails or (lambda batch: None)
        self.batches: list[list[str]] = []
        self.done: list[str] = []
        self.deliveries: list[Any] = []
        self.running = 0
        self.most_running = 0
        self.gate = asyncio.Event()
        self.gate.set()
        for connect in signals:
            connect(document, batch=batch, **{"name": "indexer", "retry": QUICK, **options})(self)

    async def __call__(self, sender: Any, batch: Any, **kwargs: Any) -> None:
        names = [event.instance.name for event in batch]
        self.batches.append(names)
        self.deliveries += [event.delivery for event in batch]
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await self.gate.wait()
        finally:
            self.running -= 1
        error = self.fails(batch)
        failed = range(len(batch)) if error is not None else ()
        if isinstance(error, BatchError):
            failed = error.errors
        self.done += [name for index, name in enumerate(names) if index not in failed]
        if error is not None:
            raise error


def decoded(data: bytes) -> dict[str, Any]:
    """A decoded part of a dead letter."""
    return bson.decode(data)


def actions(capsys: Any) -> Callable[[], str]:
    """Returns a function that returns the whole output of the test so far."""
    said: list[str] = []

    def read() -> str:
        captured = capsys.readouterr()
        said.append(captured.out + captured.err)
        return "".join(said)

    return read
