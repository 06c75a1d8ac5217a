"""Transactional batch receivers: one transaction has the writes for a whole batch, and a record per event."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from pymongo.errors import BulkWriteError

from dispatcher.batches.attempt import BatchAttempt
from dispatcher.delivery.attempt import Attempt, Run, Target
from dispatcher.delivery.transactions import Transactions, delivery_record
from mongoz.exceptions import BatchError

_DUPLICATE_KEY = 11000


class _SomeDone(Exception):
    """An earlier transaction wrote the records of some events.

    Attributes:
        indexes: the indexes of these events in the batch.
    """

    def __init__(self, indexes: Sequence[int]) -> None:
        super().__init__(indexes)
        self.indexes = indexes


class BatchTransactions:
    """The step that runs a transactional batch receiver in a transaction."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    def around(self, target: Target) -> Target:
        """Put the step around the `run` of a transactional receiver."""
        return replace(target, run=partial(self._run, target.run)) if target.terms.transactional else target

    async def _run(self, run: Run, attempt: Attempt) -> None:
        assert isinstance(attempt, BatchAttempt)
        ids = [self._transactions.ids(attempt, one.delivery.id) for one in attempt.events]
        left = list(range(len(ids)))
        left = _without(left, await self._recorded(ids))
        while left:
            try:
                await self._run_in_transaction(run, attempt, ids, left)
            except _SomeDone as done:
                left = _without(left, done.indexes)
            except BatchError as error:  # its indexes are those of the list `left`, not of the batch
                raise BatchError({left[index]: one for index, one in error.errors.items()}) from error
            else:
                return

    async def _run_in_transaction(
        self, run: Run, attempt: BatchAttempt, ids: Sequence[Sequence[Mapping[str, str]]], left: Sequence[int]
    ) -> None:
        async with self._transactions.begin() as (session, records):
            wanted = [ids[index] for index in left]
            try:
                await records.insert_many([delivery_record(own) for own, *_ in wanted], session=session)
            except BulkWriteError as error:
                first = (error.details or {})["writeErrors"][0]
                if first["code"] != _DUPLICATE_KEY:
                    raise
                raise _SomeDone([left[first["index"]]]) from error
            former = {tuple(one.items()): left[n] for n, (_, *others) in enumerate(wanted) for one in others}
            if former:
                found = records.find({"_id": {"$in": [dict(one) for one in former]}}, session=session)
                done = [former[tuple(one["_id"].items())] async for one in found]
                if done:
                    raise _SomeDone(done)
            await run(attempt.without(_without(range(len(ids)), left)).within(session))

    async def _recorded(self, ids: Sequence[Sequence[Mapping[str, str]]]) -> list[int]:
        """The indexes of the events whose deliveries are recorded."""
        indexes = {tuple(one.items()): n for n, several in enumerate(ids) for one in several}
        found = await self._transactions.recorded([one for several in ids for one in several])
        return [indexes[tuple(one.items())] for one in found]


def _without(indexes: Sequence[int], some: Sequence[int]) -> list[int]:
    taken = set(some)
    return [index for index in indexes if index not in taken]
