"""The clock of all sides, and the type of an operation."""

import gc
from collections.abc import Awaitable, Callable, Iterable
from time import perf_counter_ns, process_time_ns
from types import TracebackType
from typing import Any, Self

__all__ = ["Clock", "Operation", "Operations", "each", "once"]


class Clock:
    """Measures a `with` block.

    Attributes:
        seconds: the elapsed time.
        cpu_seconds: the processor time of this process.
    """

    seconds = cpu_seconds = 0.0

    def __enter__(self) -> Self:
        self._began, self._began_cpu = perf_counter_ns(), process_time_ns()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = (perf_counter_ns() - self._began) / 1e9
        self.cpu_seconds = (process_time_ns() - self._began_cpu) / 1e9


Operation = Callable[[int], Awaitable[Clock]]
Operations = dict[str, Operation]


async def each(step: Callable[[Any], Awaitable[object]], inputs: Iterable[Any]) -> Clock:
    """Time a step for all inputs except the first, which warms up the server, the sockets and the caches."""
    first, *others = inputs
    await step(first)
    with Clock() as clock:
        for one in others:
            await step(one)
    return clock


async def once(load: Callable[[], Awaitable[list[Any]]], count: int) -> Clock:
    """Time loading `count` documents.

    A full garbage collection runs first, and is not timed. During the loading, the garbage collector runs as in
    an application. Freeing the documents is not timed.

    Raises:
        RuntimeError: there were more documents, or fewer.
    """
    gc.collect()
    with Clock() as clock:
        loaded = await load()
    if len(loaded) != count:
        raise RuntimeError(f"{count} documents should be loaded, and {len(loaded)} were")
    return clock
