"""Helpers for tests of claims: registries and documents of writing processes, and functions that wait."""

import asyncio
from typing import Any

import mongoz
from mongoz.core.signals import post_delete, post_save, post_update
from mongoz.stamps import Stamp
from tests.support import eventually

SECONDS = 3.0
"""The timeout of the processes in these tests."""

Told = list[tuple[str, str, Any, str]]
"""Signal, receiver, value of `n`, and origin of each delivery."""


def make(registry: mongoz.Registry, database: str, told: Told, **more: Any) -> Any:
    class Item(mongoz.Document):
        n: int = mongoz.Integer()

        Meta = type("Meta", (), {"registry": registry, "database": database, "collection": "items"})

    def connect(signal: Any, name: str, delivery: str) -> None:
        async def receive(sender: Any, instance: Any, delivery: Any, **kwargs: Any) -> None:
            told.append((delivery.signal, name, instance.__dict__.get("n"), delivery.origin))
            if more.get("on_delivery") is not None:
                await more["on_delivery"](name, instance, delivery)

        signal(Item, name=name, delivery=delivery)(receive)

    for each in (post_save, post_update, post_delete):
        connect(each, "any", "any")
        if more.get("others", True):
            connect(each, "durable", "dispatcher")
    return Item


def claiming(url: str, database: str, **options: Any) -> mongoz.Registry:
    return mongoz.Registry(
        url, dispatched=database, state=f"{database}_state", claims=options.pop("claims", SECONDS), **options
    )


def claim_in(document: dict[str, Any]) -> Any:
    stamp = Stamp.unpack(document["_mongoz"])
    assert stamp is not None
    return stamp.claim


class Held:
    """Stands for a writing process. Its receivers wait until the test calls `finish`."""

    def __init__(self, url: str, database: str, claims: float = SECONDS) -> None:
        self.told: Told = []
        self.go = asyncio.Event()
        self.entered = asyncio.Event()
        self.registry = claiming(url, database, claims=claims)
        self.Item = make(self.registry, database, self.told, on_delivery=self.wait)
        self.writes: list[asyncio.Future[Any]] = []

    @property
    def book(self) -> dict[str, str]:
        """A filter for the book of the process."""
        assert self.registry.claims is not None
        return {"_id": self.registry.claims.book.incarnation.hex()}

    async def wait(self, name: str, instance: Any, delivery: Any) -> None:
        self.entered.set()
        await self.go.wait()

    async def begin(self, write: Any) -> None:
        """Starts a write, and returns when a receiver waits."""
        self.entered.clear()
        self.writes.append(asyncio.ensure_future(write))
        await self.entered.wait()

    async def finish(self) -> None:
        self.go.set()
        await asyncio.gather(*self.writes)


async def until_announced(state: Any) -> None:
    await eventually(lambda: state.positions.find_one({"claims": True}), what="the announcement")


async def until_passed(state: Any) -> None:
    """Waits until the position has passed all changes so far."""
    now = state.client.admin.command("ping")["operationTime"]
    passed = {"cluster_time": {"$gte": now}}
    await eventually(lambda: state.positions.find_one(passed), what="the position passes the claims")
