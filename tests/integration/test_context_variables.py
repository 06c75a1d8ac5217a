"""A receiver sets a context variable. The variable is visible only in the same delivery."""

import asyncio
import decimal
import gc
import weakref
from contextvars import ContextVar
from typing import Any

import pytest
import structlog
from bson import Timestamp
from pydantic import field_validator

import mongoz
from dispatcher.core.events import Calls, Change, Job
from dispatcher.core.lease import Lease, now
from dispatcher.core.stats import Stats
from dispatcher.delivery.attempt import Attempt
from dispatcher.delivery.capacity import Bounds, Capacity
from dispatcher.delivery.steps import Steps
from dispatcher.delivery.terms import Policy
from mongoz.connection.codec import CODEC_OPTIONS
from mongoz.core.signals import post_save, post_update
from mongoz.signals import Delivery
from mongoz.signals.options import Options
from mongoz.signals.receivers import Receiver
from tests.support import dispatching, eventually

TENANT: ContextVar[str] = ContextVar("tenant", default="none")
VALIDATED: ContextVar[str] = ContextVar("validated", default="none")


@pytest.fixture
def Order(dispatched: mongoz.Registry, database: str) -> Any:
    class Order(mongoz.Document):
        tenant: str = mongoz.String()

        Meta = type("Meta", (), {"registry": dispatched, "database": database, "collection": "orders"})

        @field_validator("tenant")
        @classmethod
        def check(cls, value: str) -> str:
            VALIDATED.set(value)
            return value

    return Order


@pytest.mark.parametrize("transactional", [False, True])
async def test_context_variables_are_not_shared_between_deliveries(Order, foreign, dispatched, transactional):
    found: list[tuple[Any, ...]] = []

    @post_save(Order, name="first", transactional=transactional, delivery="dispatcher")
    @post_update(Order, name="first", transactional=transactional, delivery="dispatcher")
    async def first(sender, instance, delivery, **kwargs):
        bound = structlog.contextvars.get_contextvars().get("tenant", "none")
        found.append((TENANT.get(), bound, decimal.getcontext().prec, VALIDATED.get()))
        TENANT.set(instance.tenant)
        structlog.contextvars.bind_contextvars(tenant=instance.tenant)
        decimal.setcontext(decimal.Context(prec=5))
        await asyncio.sleep(0)
        assert TENANT.get() == await asyncio.create_task(tenant()) == instance.tenant
        if delivery.attempt == 1 and instance.tenant == "t3":
            raise ValueError("again")

    @post_save(Order, name="second", delivery="dispatcher")
    async def second(sender, instance, **kwargs):
        await first(sender, instance, Delivery("", "", "", "", 2, 0, None, None, "post", False))

    async def tenant() -> str:
        return TENANT.get()

    precision = decimal.getcontext().prec
    async with dispatching(dispatched, concurrency=2, park_after=0) as running:
        foreign.orders.insert_many([{"tenant": f"t{n}"} for n in range(20)])
        foreign.orders.update_many({}, {"$set": {"n": 1}})
        await eventually(lambda: running.stats.delivered == 60, within=60)
    assert len(found) == 62  # both changes of t3 have a second attempt, as parked deliveries
    assert set(found) == {("none", "none", precision, "none")}


async def call(function: Any, **options: Any) -> BaseException | None:
    change = Change("82", "insert", ("d", "c"), 1, Timestamp(1, 1), None, {}, None, "post", frozenset(), None, 1)
    receiver = Receiver(function, "receiver", 1, Options(**options), b"12345678")
    calls = Calls(object, "post_save", True, (receiver,))  # type: ignore[arg-type]
    policy, lease, capacity, stats = Policy(1, 30.0), Lease.for_ever(), Capacity(Bounds(1, 1, 1)), Stats()
    steps = Steps(policy, lease, capacity, stats, CODEC_OPTIONS)
    delivery = Delivery("id", "post_save", "receiver", "stream", 1, 1, None, None, "post", False)
    target = steps.target(receiver, "post_save")
    watching = asyncio.create_task(steps.invoker.watch())
    try:
        return await target.call(Attempt(target, change, calls, delivery, {}, Job("82", change), now()))
    finally:
        watching.cancel()


async def test_an_error_of_a_call_is_raised_unchanged():
    class Odd(BaseException):
        pass

    async def fail(**_: Any) -> None:
        await asyncio.sleep(0)
        raise Odd

    assert isinstance(await call(fail), Odd)


async def test_a_hanging_call_is_cancelled():
    cancelled = []

    async def hang(**_: Any) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(TENANT.get())
            raise

    assert isinstance(await call(hang, timeout=0.05), TimeoutError)
    assert cancelled == ["none"]


async def test_a_receiver_may_return_any_awaitable():
    def plain(**_: Any) -> Any:
        TENANT.set("plain")
        return asyncio.ensure_future(asyncio.sleep(0))

    assert await call(plain) is None
    assert TENANT.get() == "none"


async def test_an_error_is_not_part_of_a_reference_cycle():
    class Large:
        pass

    async def fail(**_: Any) -> None:
        large = Large()
        left.append(weakref.ref(large))
        raise ValueError

    left: list[Any] = []
    gc.disable()
    try:
        error = await call(fail)
        assert error is not None
        error.__traceback__ = None
        del error
        assert left[0]() is None
    finally:
        gc.enable()
