"""Records gaps: changes that are not delivered one by one.

The server has no events for these changes, or has lost the events, or an operator has moved the position past the
changes.

docs/reference/state.md lists the fields of a gap.

`Gaps.note` raises the `PyMongoError` of the driver.
"""

from collections.abc import Callable, Iterator
from functools import partial
from hashlib import blake2b
from typing import Final, Literal, NamedTuple

from bson import ObjectId
from bson.raw_bson import RawBSONDocument
from bson.timestamp import Timestamp
from pymongo.asynchronous.client_session import AsyncClientSession

from dispatcher.core.bson_codec import RAW
from dispatcher.core.events import Change, Namespace
from dispatcher.core.output.logs import log
from dispatcher.core.retry import retry
from dispatcher.core.state import Group
from dispatcher.core.stats import Stats

GapKind = Literal["drop", "dropDatabase", "rename", "out", "history_lost", "oversize", "position_set"]

# `$out` writes into a collection with this prefix, and then renames it to its target.
_OUT: Final = "tmp.agg_out."


class Gap(NamedTuple):
    """Changes that are missing.

    Attributes:
        key: identifies the gap when it is found again, for example a token.
        namespace: the collection; the database and "" for a whole database; None for all watched collections.
        from_time: cluster time after which changes are missing; None if it is unknown.
        to_time: cluster time up to which they are missing; None if it is unknown.
        policy: the reaction to lost history, `"resume"` or `"backfill"`; otherwise None.
    """

    kind: GapKind
    key: str
    text: str
    namespace: Namespace | None
    from_time: Timestamp | None
    to_time: Timestamp | None
    policy: str | None = None


class Gaps:
    """Writes gaps to the state, the log and the counters."""

    def __init__(self, group: Group, stats: Stats, partition: int = 0) -> None:
        self._gaps = group.state.gaps
        self._group = group.name
        self._stats = stats
        self._address = group.state.address
        self._partition = partition

    async def record(self, gap: Gap) -> None:
        """Record a gap so that it survives a failover.

        A write that failed is repeated until it succeeds. A permanent error is raised as a
        `DispatcherError`.
        """
        report = partial(
            log.warning, "a gap could not be recorded; trying again", action="gap.not_recorded", kind=gap.kind
        )
        await retry(partial(self.note, gap), report, address=self._address)
        self._stats.gaps += 1
        log.warning(
            gap.text,
            action="gap.recorded",
            kind=gap.kind,
            namespace=".".join(filter(None, gap.namespace)) if gap.namespace else None,
            from_time=_readable(gap.from_time),
            to_time=_readable(gap.to_time),
            policy=gap.policy,
        )

    async def note(self, gap: Gap, session: AsyncClientSession | None = None) -> None:
        """Write a gap, without a log line. If the gap was written before, its document is updated."""
        database, collection = gap.namespace or (None, None)
        values = {
            "group": self._group,
            "kind": gap.kind,
            "namespace": {"db": database, **({"coll": collection} if collection else {})} if database else None,
            "from_time": gap.from_time,
            "to_time": gap.to_time,
            "policy": gap.policy,
            "text": gap.text,
        }
        first = {
            "noted_at": {"$ifNull": ["$noted_at", "$$NOW"]},
            "partition": {"$ifNull": ["$partition", self._partition]},
        }
        literal = {name: {"$literal": value} for name, value in values.items()}
        id_ = blake2b(f"{self._group}\0{gap.kind}\0{gap.namespace}\0{gap.key}".encode(), digest_size=12).digest()
        change = [{"$set": literal | first}]
        await self._gaps.update_one({"_id": ObjectId(id_)}, change, upsert=True, session=session)


def _readable(time: Timestamp | None) -> str | None:
    return None if time is None else time.as_datetime().isoformat()


def gaps_of(change: Change, is_watched: Callable[[Namespace], object]) -> Iterator[Gap]:
    """The gaps that a change of a whole collection or database causes.

    A rename may cause two gaps: one of the old name, and one of the new name.

    Args:
        is_watched: returns whether a collection has receivers.
    """
    operation, source, time = change.operation, change.namespace, change.cluster_time
    name = ".".join(filter(None, source))
    if operation == "drop":
        text = f"{name} was dropped: the server sent no delete events for its documents"
        yield Gap("drop", change.token, text, source, time, time)
    elif operation == "dropDatabase":
        text = f"the database {name} was dropped: the server sent no delete events for its documents"
        yield Gap("dropDatabase", change.token, text, source, time, time)
    elif operation == "rename":
        named = RawBSONDocument(change.raw, codec_options=RAW).get("to") or {}
        target = (str(named.get("db", "")), str(named.get("coll", "")))
        onto = ".".join(target)
        out = source[1].startswith(_OUT)
        if is_watched(source) and not out:
            text = f"{name} was renamed to {onto}: the server sent no delete events for its documents"
            yield Gap("rename", change.token, text, source, time, time)
        if is_watched(target):
            what = "$out wrote" if out else f"{name} was renamed to"
            text = f"{what} {onto}: the server sent no events for the documents that {onto} has got this way"
            yield Gap("out" if out else "rename", change.token, text, target, time, time)
