"""A writing process like that of a web application: it handles some requests at a time, until SIGTERM.

    python -m tests.chaos.writers_client NUMBER SEED PLACES PAUSE

NUMBER makes the values of `n` in its writes unique. The process waits while the file PAUSE exists.
"""

import asyncio
import random
import signal
import sys
from pathlib import Path

from pymongo.errors import PyMongoError

from mongoz.exceptions import DocumentNotFound
from tests.chaos.writers_app import Order, Refusal, registry
from tests.chaos.writers_figures import STARTED, WRITES_EACH

_HANDLERS = 8
_THINK_SECONDS = 0.2
# Web servers give running requests some time after SIGTERM.
_GRACE_SECONDS = 2.0
_MOST_IN_BULK = 20


class _Aborted(Exception):
    """Aborts a transaction."""


_EXPECTED = (PyMongoError, DocumentNotFound, Refusal, _Aborted)


class Shop:
    """Handles requests: each is one call, or one transaction."""

    def __init__(self, number: int, seed: str, places: int) -> None:
        self._chance = random.Random(seed)
        self._places = places
        self._n = number * WRITES_EACH
        self._requests = {
            self.create: 36,
            self.save: 12,
            self.update: 20,
            self.delete: 12,
            self.create_many: 4,
            self.update_many: 3,
            self.delete_many: 3,
            self.transaction: 10,
        }

    async def handle(self) -> None:
        """Handles a random request. Errors do not end the process."""
        (request,) = self._chance.choices(list(self._requests), list(self._requests.values()))
        try:
            await request()
        except* _EXPECTED:  # the errors of several receivers come as a group
            pass

    def _order(self) -> Order:
        return Order(place=self._chance.randrange(self._places), n=self._next())

    def _next(self) -> int:
        self._n += 1
        return self._n

    def _somewhere(self):
        return Order.objects.filter(place=self._chance.randrange(self._places))

    async def _some_order(self) -> Order:
        orders = self._somewhere()
        found = await (orders.first() if self._chance.random() < 0.5 else orders.last())
        return found or await self._order().create()

    async def create(self) -> None:
        await self._order().create()

    async def save(self) -> None:
        order = await self._some_order()
        order.n = self._next()
        await order.save()

    async def update(self) -> None:
        await (await self._some_order()).update(n=self._next())

    async def delete(self) -> None:
        await (await self._some_order()).delete()

    async def create_many(self) -> None:
        await Order.objects.create_many([self._order() for _ in range(self._chance.randint(2, _MOST_IN_BULK))])

    async def update_many(self) -> None:
        await self._somewhere().update_many(n=self._next())

    async def delete_many(self) -> None:
        await self._somewhere().delete()

    async def transaction(self) -> None:
        async with registry.transaction():
            order = await self._order().create()
            await self.update()
            await order.update(n=self._next())
            if self._chance.random() < 0.3:
                await self.delete()
            if self._chance.random() < 0.2:
                raise _Aborted


async def handle_requests(shop: Shop, pause: Path, stop: asyncio.Event) -> None:
    while not stop.is_set():
        if pause.exists():
            await asyncio.sleep(0.02)
        else:
            await shop.handle()
            await asyncio.sleep(random.uniform(0, _THINK_SECONDS))


async def main() -> None:
    number, seed, places, pause = sys.argv[1:]
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print(STARTED, file=sys.stderr, flush=True)
    shop = Shop(int(number), f"{seed}-{number}", int(places))
    async with registry:
        handlers = [
            asyncio.create_task(handle_requests(shop, Path(pause), stop), name="handler") for _ in range(_HANDLERS)
        ]
        stopped = asyncio.create_task(stop.wait())
        done, _ = await asyncio.wait([*handlers, stopped], return_when=asyncio.FIRST_COMPLETED)
        for handler in done - {stopped}:
            handler.result()  # raises an error that no fault explains
        await asyncio.wait(handlers, timeout=_GRACE_SECONDS)


if __name__ == "__main__":
    asyncio.run(main())
