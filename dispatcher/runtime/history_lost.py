"""Lost history: the oplog, or the topic, does not reach back to the position from which a stream continues.

The setting `on_history_lost` decides whether the stream fails, continues, or continues with a backfill. The gap is
recorded before the stream continues.
"""

from functools import partial
from hashlib import blake2b
from typing import Literal, NamedTuple

from dispatcher.core.events import Start
from dispatcher.core.lease import Lease
from dispatcher.core.output.logs import log
from dispatcher.core.retry import retry
from dispatcher.exceptions import HistoryLost
from dispatcher.position.gaps import Gap, Gaps
from dispatcher.runs.store import Runs
from dispatcher.stream.source import Source

OnHistoryLost = Literal["fail", "resume", "backfill"]


class LostHistory(NamedTuple):
    """Decides where a stream continues after lost history."""

    policy: OnHistoryLost
    source: Source
    gaps: Gaps
    runs: Runs
    group: str
    lease: Lease

    async def bridge(self, after: str, lost: HistoryLost) -> Start:
        """Record the gap. Returns the place after which the source continues; the place has a token.

        Args:
            after: the token after which changes are lost.

        Raises:
            HistoryLost: the policy is `"fail"`.
        """
        if self.policy == "fail":
            raise lost
        report = partial(
            log.warning,
            "the position after the lost history can't be determined now, trying again",
            action="history.not_bridged",
        )
        start = await retry(partial(self._bridge, after), report, address=self.runs.address)
        token = start.token
        assert token is not None  # the end of a gap has a token
        since, until = self.source.time_of(after), self.source.time_of(token)
        text = (
            f"{self.source.name} does not hold the changes between {since.as_datetime().isoformat()} and "
            f"{until.as_datetime().isoformat()} any more; they are not delivered"
        )
        if self.policy == "backfill":
            text += "; the current documents are delivered instead"
        # Several partitions may lose history after the same token. Each loses the changes of its own documents.
        key = f"{self.lease.partition}/{self.lease.partitions}:{after}"
        await self.gaps.record(Gap("history_lost", key, text, None, since, until, self.policy))
        return start

    async def _bridge(self, after: str) -> Start:
        start = await self.source.now()
        if self.policy == "resume":
            return start
        token = start.token
        assert token is not None  # the present position has a token
        # Each loss of history has one run, a backfill. If this process is killed before the gap is recorded, the
        # next process finds the run, and the stream continues after the token of the run. The backfill covers
        # the changes up to this token, the stream covers the later ones.
        about = f"{self.group}:{self.lease.partition}:{self.lease.partitions}:{after}"
        asked = {"receivers": [], "partition": self.lease.partition, "partitions": self.lease.partitions}
        id_ = blake2b(about.encode(), digest_size=6).hexdigest()
        run = await self.runs.ensure(id_, "backfill", asked, self.source.time_of(token), token=token)
        return start if run.token in {None, "", token} else Start(token=run.token)
