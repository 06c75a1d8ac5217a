"""Receivers that trigger themselves or each other end, with an error that names the chain."""

import asyncio
from typing import Any

import pytest

import mongoz
from mongoz import Registry, SignalError
from mongoz.core.signals import post_delete, post_save, post_update, pre_save, pre_update
from mongoz.signals import muted

DEEPEST = 16
PATIENCE = 20.0
"""In seconds. Only a call that hangs takes so long."""


@pytest.fixture(params=["plain", "dispatched"])
def documents(request: pytest.FixtureRequest, registry: Registry, dispatched: Registry, database: str) -> Any:
    used = registry if request.param == "plain" else dispatched

    class Base(mongoz.Document):
        n: int = mongoz.Integer(default=0)

        class Meta:
            abstract = True

    Base.meta.registry, Base.meta.database = used, used.get_database(database)
    named = {"registry": used, "database": database}
    Order = type("Order", (Base,), {"Meta": type("Meta", (), named), "__module__": __name__})
    Invoice = type("Invoice", (Base,), {"Meta": type("Meta", (), named), "__module__": __name__})
    return Order, Invoice


async def again(instance: Any) -> None:
    await instance.save()


async def again_changed(instance: Any) -> None:
    await instance.update(n=instance.n + 1)


async def again_new(instance: Any) -> None:
    await type(instance).objects.create()


async def again_many(instance: Any) -> None:
    await type(instance).create_many([type(instance)()])


async def again_by_query(instance: Any) -> None:
    await type(instance).objects.filter(id=instance.id).update_count(n=instance.n + 1)


async def again_in_transaction(instance: Any) -> None:
    async with type(instance).meta.registry.transaction():
        await instance.save()


async def again_in_a_task(instance: Any) -> None:
    await asyncio.create_task(instance.save())


@pytest.mark.parametrize(
    "write",
    [again, again_changed, again_new, again_many, again_by_query, again_in_transaction, again_in_a_task],
)
async def test_a_receiver_that_triggers_itself_is_stopped(documents: Any, write: Any) -> None:
    Order, _ = documents
    runs = 0

    async def resave(sender: Any, instance: Any, **kwargs: Any) -> None:
        nonlocal runs
        runs += 1
        await write(instance)

    order = await Order.objects.create()
    post_save(Order, name="app.resave")(resave)
    post_update(Order, name="app.reupdate")(resave)
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(SignalError) as caught:
            await order.save()
    assert runs == DEEPEST + 1
    message = str(caught.value)
    assert f"{DEEPEST} nested writes" in message
    assert "Order.post_save (app.resave) -> " in message
    assert "muted()" in message


async def test_receivers_that_trigger_each_other_are_stopped(documents: Any) -> None:
    Order, Invoice = documents

    @post_save(Order, name="app.bill")
    async def bill(sender: Any, instance: Any, **kwargs: Any) -> None:
        await Invoice.objects.create()

    @post_save(Invoice, name="app.order")
    async def order(sender: Any, instance: Any, **kwargs: Any) -> None:
        await Order.objects.create()

    with pytest.raises(SignalError, match=r"Order\.post_save \(app\.bill\) -> Invoice\.post_save \(app\.order\)"):
        await Order.objects.create()
    assert await Order.objects.count() + await Invoice.objects.count() == DEEPEST + 1


async def test_a_pre_receiver_that_triggers_itself_is_stopped_before_anything_is_written(documents: Any) -> None:
    Order, _ = documents

    @pre_save(Order)
    async def resave(sender: Any, instance: Any, **kwargs: Any) -> None:
        await Order.objects.create()

    with pytest.raises(SignalError, match=f"{DEEPEST} nested writes"):
        await Order.objects.create()
    assert await Order.objects.count() == 0


async def test_deletes_in_a_chain_are_stopped(documents: Any) -> None:
    Order, _ = documents
    await Order.create_many([Order(n=n) for n in range(DEEPEST + 10)])

    @post_delete(Order, name="app.cascade")
    async def cascade(sender: Any, instance: Any, **kwargs: Any) -> None:
        await Order.objects.filter(id=(await Order.objects.first()).id).delete()

    with pytest.raises(SignalError, match=r"Order\.post_delete \(app\.cascade\)"):
        await (await Order.objects.first()).delete()
    assert await Order.objects.count() == 9


async def test_nesting_up_to_the_limit_is_allowed(documents: Any) -> None:
    Order, Invoice = documents

    @post_save(Order, name="app.down")
    async def down(sender: Any, instance: Any, **kwargs: Any) -> None:
        if instance.n:
            await Order.objects.create(n=instance.n - 1)
        else:
            await Invoice.objects.create()  # Invoice has no receiver, so the chain ends here

    await Order.objects.create(n=DEEPEST)
    assert await Order.objects.count() == DEEPEST + 1
    assert await Invoice.objects.count() == 1


async def test_muted_writes_end_a_chain(documents: Any) -> None:
    Order, _ = documents

    @post_save(Order, name="app.once")
    @pre_update(Order)
    async def once(sender: Any, instance: Any, **kwargs: Any) -> None:
        with muted(Order):
            await instance.save()

    order = await Order.objects.create()
    for n in range(3 * DEEPEST):
        await order.update(n=n)
        await order.save()


async def test_concurrent_writes_are_not_a_chain(documents: Any) -> None:
    Order, Invoice = documents
    heard = 0

    @post_save(Order, name="app.bill")
    async def bill(sender: Any, instance: Any, **kwargs: Any) -> None:
        for _ in range(3 * DEEPEST):
            await Invoice.objects.create()

    @post_save(Invoice, name="app.count")
    async def count(sender: Any, instance: Any, **kwargs: Any) -> None:
        nonlocal heard
        heard += 1

    await Order.objects.create()
    assert heard == 3 * DEEPEST


async def test_a_chain_that_branches_ends_in_all_branches(documents: Any) -> None:
    Order, _ = documents
    runs = 0

    async def resave(sender: Any, instance: Any, **kwargs: Any) -> None:
        nonlocal runs
        runs += 1
        await Order.objects.create()

    async def resave_too(sender: Any, instance: Any, **kwargs: Any) -> None:
        await resave(sender, instance)

    post_save(Order, name="app.one")(resave)
    post_save(Order, name="app.two")(resave_too)
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(ExceptionGroup) as caught:
            await Order.objects.create()
    assert caught.group_contains(SignalError)
    assert runs == 2 * (DEEPEST + 1)


@pytest.mark.parametrize("write", [again, again_in_transaction, again_in_a_task])
async def test_a_timeout_of_the_caller_ends_a_chain(documents: Any, write: Any) -> None:
    Order, _ = documents
    release = asyncio.Event()
    runs = 0

    @post_save(Order, name="app.slow")
    async def slow(sender: Any, instance: Any, **kwargs: Any) -> None:
        nonlocal runs
        runs += 1
        if runs == 3:
            release.set()
            await asyncio.sleep(0.05)  # the cancellation arrives here
        await write(instance)

    order = Order()
    task = asyncio.create_task(order.save())
    await release.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await asyncio.wait_for(task, PATIENCE)
    assert runs == 3
    assert "its caller was cancelled" in str(caught.value.__cause__)


async def test_a_timeout_does_not_interrupt_receivers_outside_of_a_chain(documents: Any) -> None:
    Order, Invoice = documents
    inside = asyncio.Event()
    heard: list[str] = []

    @post_save(Order, name="app.bill")
    async def bill(sender: Any, instance: Any, **kwargs: Any) -> None:
        inside.set()
        await asyncio.sleep(0.05)
        await Invoice.objects.create()
        heard.append("bill")

    @post_save(Invoice, name="app.mail")
    async def mail(sender: Any, instance: Any, **kwargs: Any) -> None:
        heard.append("mail")

    task = asyncio.create_task(Order.objects.create())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert heard == ["mail", "bill"]


async def test_a_task_that_a_stopped_chain_has_started_may_write(documents: Any) -> None:
    Order, _ = documents
    left: list[asyncio.Task[Any]] = []
    stopped = asyncio.Event()

    async def later() -> None:
        await stopped.wait()
        await Order.objects.create(n=-1)

    @post_save(Order, name="app.resave")
    async def resave(sender: Any, instance: Any, **kwargs: Any) -> None:
        if not left:
            left.append(asyncio.create_task(later()))
        if instance.n >= 0:
            await Order.objects.create()

    with pytest.raises(SignalError):
        await Order.objects.create()
    stopped.set()
    await asyncio.wait_for(left[0], PATIENCE)
    assert await Order.objects.filter(n=-1).count() == 1
