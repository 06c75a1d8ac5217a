"""Finds the dead letters with a requested retry. One query serves all partitions of a process.

MongoDB commands raise the `PyMongoError` of the driver.
"""

import asyncio
from collections import defaultdict
from collections.abc import Collection
from typing import Any, Final, NamedTuple

from dispatcher.core.batching import Batcher
from dispatcher.core.partitions import number_of
from dispatcher.core.state import HELD, Group
from dispatcher.parking.letters import REQUESTED

# Maximum number of dead letters that a partition gets in one call of `of`.
_MOST: Final = 50


class _Share(NamedTuple):
    """A partition, and the number of partitions."""

    partition: int
    partitions: int


class RetryRequests:
    """The requested retries of a group's dead letters, for the partitions that this process holds."""

    def __init__(self, group: Group) -> None:
        self._held = group.state.held
        self._group = group.name
        self._asked: Batcher[_Share, list[str]] = Batcher(self._find, at_once=1)
        self._noted = asyncio.Event()

    def exist(self) -> list[dict[str, Any]]:
        """The stages that add the document `{HELD: True}` to an aggregation if retries are requested."""
        found = [{"$match": {"group": self._group, **REQUESTED}}, {"$limit": 1}]
        return [{"$unionWith": {"coll": HELD, "pipeline": [*found, {"$replaceWith": {HELD: True}}]}}]

    def note(self) -> None:
        """Record that there are requests: wake the tasks that wait for requests."""
        self._noted.set()
        self._noted = asyncio.Event()

    async def wait(self) -> None:
        """Wait for the next time that requests are noted. All partitions of the process wake together."""
        await self._noted.wait()

    async def of(self, partition: int, partitions: int) -> list[str]:
        """`_id`s of the next dead letters of a partition, in the order of the requests."""
        return await self._asked.add(_Share(partition, partitions))

    async def _find(self, shares: list[_Share]) -> list[list[str]]:
        found: dict[_Share, list[str]] = defaultdict(list)
        for partitions in {share.partitions for share in shares}:  # usually one
            numbers = {share.partition for share in shares if share.partitions == partitions}
            while numbers:
                limit = _MOST * len(numbers)
                rows = await (await self._held.aggregate(self._query(numbers, partitions, limit))).to_list()
                for row in rows:
                    found[_Share(row["partition"], partitions)].append(row["_id"])
                if len(rows) < limit:
                    break
                # The limit may hide the requests of the partitions without a row: ask again for these.
                numbers -= {row["partition"] for row in rows}
        return [found[share][:_MOST] for share in shares]

    def _query(self, numbers: Collection[int], partitions: int, limit: int) -> list[dict[str, Any]]:
        wanted: dict[str, Any] = {"group": self._group, **REQUESTED}
        number: Any = {"$literal": 0}  # a constant, because an edited document may lack the hash
        if partitions > 1:
            number = number_of("$hash", partitions)
            wanted["$expr"] = {"$in": [number, list(numbers)]}
        return [
            {"$match": wanted},
            {"$sort": {"retry_requested_at": 1}},
            {"$limit": limit},
            {"$project": {"partition": number}},
        ]
