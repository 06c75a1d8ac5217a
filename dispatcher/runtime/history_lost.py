"""History that is lost: the oplog does not reach back to where a stream wants to go on.

What is done then the operator has chosen beforehand. Whatever it is, the gap is noted before the stream goes on.
"""

from functools import partial
from hashlib import blake2b
from typing import Literal

from dispatcher.core.events import token_time
from dispatcher.core.output.logs import get_logger
from dispatcher.core.retry import retry
from dispatcher.exceptions import HistoryLost
from dispatcher.position.gaps import Gap, Gaps
from dispatcher.runs.store import Runs
from dispatcher.stream.source import Source

__all__ = ["History", "OnHistoryLost"]

log = get_logger()

OnHistoryLost = Literal["fail", "resume", "backfill"]


class History:
    """Finds out where a stream goes on.

    Args:
        policy: the operator's.
        source: of the stream.
        gaps: where it is noted.
        runs: where backfills are begun.
        group: of dispatchers.
        partition: of the stream.
        partitions: how many there are.
        address: of the server, for messages.
    """

    def __init__(
        self,
        policy: OnHistoryLost,
        source: Source,
        gaps: Gaps,
        runs: Runs,
        *,
        group: str,
        partition: int,
        partitions: int,
        address: str,
    ) -> None:
        self._policy = policy
        self._source = source
        self._gaps = gaps
        self._runs = runs
        self._group = group
        self._partition = partition
        self._partitions = partitions
        self._address = address

    async def bridge(self, after: str, lost: HistoryLost) -> str:
        """The token behind which the stream goes on; when this returns everything about it is written down.

        Args:
            after: the token behind which changes are lost.
            lost: what the server said.

        Raises:
            HistoryLost: that is not wanted.
            DispatcherError: what no repetition can mend.
        """
        if self._policy == "fail":
            raise lost
        report = partial(
            log.warning, "where to go on could not be found out, trying again", action="history.not_bridged"
        )
        token = await retry(partial(self._bridge, after), report, address=self._address)
        since, until = token_time(after), token_time(token)
        text = (
            f"the oplog does not hold the changes between {since.as_datetime().isoformat()} and "
            f"{until.as_datetime().isoformat()} any more: they are not delivered"
        )
        if self._policy == "backfill":
            text += ", and all current documents are instead"
        # Partitions may lose history behind one token, and each lacks the changes of other documents.
        key = f"{self._partition}/{self._partitions}:{after}"
        await self._gaps.record(Gap("history_lost", key, text, None, since, until, self._policy))
        return token

    async def _bridge(self, after: str) -> str:
        token = await self._source.now()
        if self._policy == "resume":
            return token
        # Begun once for one loss: killed in between, the same run is found again, and the stream goes on where it
        # was to go on. What is written from there on is in the stream; what was before, the backfill reads.
        about = f"{self._group}:{self._partition}:{self._partitions}:{after}"
        asked = {"receivers": [], "partition": self._partition, "partitions": self._partitions}
        run = await self._runs.ensure(
            blake2b(about.encode(), digest_size=6).hexdigest(), "backfill", asked, token_time(token), token=token
        )
        return run.token or token
