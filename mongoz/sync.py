"""`run_sync`: calls of the ODM from synchronous code."""

import asyncio
import contextvars
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from inspect import isawaitable
from typing import TypeVar

__all__ = ["blocked_loops", "run_sync"]

T = TypeVar("T")

_blocked: ContextVar[tuple[asyncio.AbstractEventLoop, ...]] = ContextVar("mongoz_blocked_loops", default=())


def blocked_loops() -> tuple[asyncio.AbstractEventLoop, ...]:
    """The event loops that `run_sync` blocks until this code has ended."""
    return _blocked.get()


def run_sync(awaitable: Awaitable[T]) -> T:
    """Run an awaitable to its end, and return its result.

    Each call opens an event loop and a connection for the awaitable, and closes both at the end. That takes about
    10 ms. So call `run_sync` once with a coroutine that runs many queries, not once per query.

    If a loop is running already, the new loop runs in a thread. The running loop is blocked meanwhile, so the
    awaitable must not wait for anything in that loop. Context variables are copied, so `muted()` applies inside. A
    transaction is not joined, because it belongs to the task that entered it.

    Args:
        awaitable: a coroutine, a query, or another awaitable; no task or future, because these belong to a loop.

    Returns:
        The result of the awaitable.

    Raises:
        TypeError: the argument is not awaitable, or belongs to a loop already.
        BaseException: the awaitable raised it.

    Examples:
        >>> users = run_sync(User.objects.filter(active=True))
        >>> run_sync(main())
    """
    if asyncio.isfuture(awaitable):
        raise TypeError(
            f"run_sync() can't run {awaitable!r}: a task or future belongs to one event loop already. Await it "
            "there, or give run_sync() the coroutine itself."
        )
    given: object = awaitable
    if not isawaitable(given):
        hint = " Call it: run_sync(f())." if callable(given) else ""
        raise TypeError(f"run_sync() takes a coroutine, a query or another awaitable, not {given!r}.{hint}")

    async def run() -> T:
        return await awaitable

    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(run())
    context = contextvars.copy_context()
    context.run(_blocked.set, (*_blocked.get(), loop))
    with ThreadPoolExecutor(1, thread_name_prefix="mongoz-run-sync") as executor:
        return executor.submit(context.run, asyncio.run, run()).result()
