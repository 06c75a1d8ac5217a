"""Combines many small commands into a few large ones."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Generic, NamedTuple, TypeVar

from pymongo import UpdateOne
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import BulkWriteError, OperationFailure, WriteConcernError

_MOST: Final = 200
_AT_ONCE: Final = 3

T = TypeVar("T")
R = TypeVar("R")


class Batcher(Generic[T, R]):
    """Runs one command for many items. If items arrive while `at_once` batches run, they form the next batch.

    Args:
        work: takes a batch; returns an answer for each item, in the same order. An answer that is an exception is
            raised to the caller that added the item. An exception of `work` is raised to all callers.
        most: maximum number of items in one batch.
        at_once: maximum number of batches that run at the same time.
    """

    def __init__(
        self,
        work: Callable[[list[T]], Awaitable[Sequence[R | Exception]]],
        *,
        most: int = _MOST,
        at_once: int = _AT_ONCE,
    ) -> None:
        self._work = work
        self._most = most
        self._at_once = at_once
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def add(self, item: T) -> R:
        """Add an item to a batch; wait for its answer."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        # `_tasks` may still contain a task that has just ended. Such a task takes no more items.
        if sum(not task.done() for task in self._tasks) < self._at_once:
            task = asyncio.create_task(self._run(), name=f"batch-{self._work.__name__}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await future

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            answers: Sequence[R | BaseException]
            try:
                answers = await self._work([item for item, _ in batch])
            except asyncio.CancelledError:
                _answer(batch, [asyncio.CancelledError()] * len(batch))
                raise
            except Exception as error:
                answers = [error] * len(batch)
            _answer(batch, answers)


def _answer(batch: Sequence[tuple[T, "asyncio.Future[R]"]], answers: Sequence[R | BaseException]) -> None:
    for (_, future), answer in zip(batch, answers, strict=True):
        if future.done():  # the caller was cancelled
            continue
        if isinstance(answer, asyncio.CancelledError):
            future.cancel()
        elif isinstance(answer, BaseException):
            future.set_exception(answer)
        else:
            future.set_result(answer)


class BulkResult(NamedTuple):
    """The result of a bulk of updates.

    Attributes:
        matched: the number of documents that matched.
        errors: for each update its error; None if the server has executed it.
    """

    matched: int
    errors: list[OperationFailure | None]


async def update_all(collection: AsyncCollection[Any], updates: Sequence[UpdateOne]) -> BulkResult:
    """Send updates of different documents in one command. An error of one update does not affect the others.

    Raises:
        PyMongoError: the error concerns all updates. The server may have executed some of them.
    """
    errors: list[OperationFailure | None] = [None] * len(updates)
    try:
        result = await collection.bulk_write(updates, ordered=False)
    except BulkWriteError as error:
        details = error.details or {}
        for one in details.get("writeConcernErrors") or ():
            raise WriteConcernError(one["errmsg"], one["code"], one) from error
        if not details.get("writeErrors"):
            raise
        for one in details["writeErrors"]:
            errors[one["index"]] = OperationFailure(one["errmsg"], one["code"], one)
        return BulkResult(int(details["nMatched"]), errors)
    return BulkResult(result.matched_count, errors)
