"""Stores runs (replays and backfills) and their progress, in the collection `controls`.

docs/reference/state.md lists the fields of a run.

MongoDB commands raise the `PyMongoError` of the driver.
"""

import os
import secrets
import socket
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from bson.timestamp import Timestamp
from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError

from dispatcher.core.bson_elements import elements
from dispatcher.core.state import CONTROLS, Group
from dispatcher.core.state_checks import StateReader
from dispatcher.exceptions import DispatcherError, UnknownRun
from mongoz.synonyms import nearest

# Seconds without a heartbeat after which a process counts as dead. On the same machine, a process that has ended
# counts as dead at once.
_DEAD_AFTER: Final = 15

# Days for which finished runs are kept.
_KEPT: Final = 30


class Busy(DispatcherError):
    """Another process works on the run."""


class Run(NamedTuple):
    """A replay or a backfill.

    Attributes:
        id: the id of the run; part of the ids of its deliveries.
        what: `"replay"` or `"backfill"`.
        from_time: start of the range of a replay.
        until_time: end of the range of a replay.
        token: only for a backfill that a dispatcher began: the token after which its stream continued.
        is_new: whether it has no saved progress.
    """

    id: str
    what: str
    asked: dict[str, Any]
    at: Timestamp
    from_time: Timestamp | None
    until_time: Timestamp | None
    token: str | None
    progress: dict[str, Any]
    delivered: int
    failed: int
    is_new: bool


class Runs:
    """The runs of a group. This process works on some of them."""

    def __init__(self, group: Group) -> None:
        self._runs = group.state.controls
        self._group = group.name
        self.address = group.state.address
        self._me = {"host": socket.gethostname(), "pid": os.getpid()}

    async def begin(self, what: str, asked: Mapping[str, Any], at: Timestamp, **values: Any) -> Run:
        """Begin a new run, and work on it."""
        await self._runs.delete_many(
            {
                "group": self._group,
                "kind": "run",
                "status": "finished",
                "$expr": {"$lt": ["$beat_at", {"$subtract": ["$$NOW", _KEPT * 86_400_000]}]},
            }
        )
        return await self.ensure(secrets.token_hex(6), what, asked, at, **values)

    async def ensure(self, id_: str, what: str, asked: Mapping[str, Any], at: Timestamp, **values: Any) -> Run:
        """Get the run with this id. If none exists, begin it: then this process counts as working on it."""
        new = {
            "group": self._group,
            "kind": "run",
            "run": id_,
            "what": what,
            "asked": dict(asked),
            "at": at,
            **values,
            "progress": {},
            "delivered": 0,
            "failed": 0,
            "status": "running",
            **self._me,
        }
        written = {"$mergeObjects": [{"$literal": new}, {"started_at": "$$NOW", "beat_at": "$$NOW"}, "$$ROOT"]}
        try:
            found = await self._runs.find_one_and_update(
                {"_id": self._id(id_)},
                [{"$replaceWith": written}],
                upsert=True,
                return_document=ReturnDocument.AFTER,
            )
        except DuplicateKeyError:  # another process inserted it at the same moment
            found = await self._runs.find_one({"_id": self._id(id_)})
        assert found is not None
        return _run_of(found)

    async def unfinished(self, what: str, asked: Mapping[str, Any]) -> Run | None:
        """Take over the newest unfinished run with an equal request; None if there is none.

        Raises:
            Busy: another process works on it.
        """
        same = {f"asked.{name}": value for name, value in asked.items()}
        found = await self._runs.find_one(
            {"group": self._group, "kind": "run", "what": what, **same, "status": {"$ne": "finished"}},
            sort=[("started_at", -1)],
        )
        return None if found is None else await self._take(found)

    async def resume(self, id_: str, what: str) -> Run:
        """Take over the run with this id.

        Raises:
            UnknownRun: no run has this id.
            Busy: another process works on it.
        """
        found = await self._runs.find_one({"_id": self._id(id_), "kind": "run", "what": what})
        if found is None:
            known = await self._runs.distinct("run", {"group": self._group, "kind": "run", "what": what})
            raise UnknownRun(
                f"Group {self._group!r} has no {what} {id_!r}.{nearest(id_, known)}",
                remedy=f"Begin a new {what} without --resume.",
            )
        return await self._take(found)

    async def of_stream(self, partition: int, partitions: int) -> list[Run]:
        """The unfinished backfills that dispatchers began for this partition.

        Partition 0 also gets the backfills of earlier layouts.
        """
        ours: dict[str, Any] = {"asked.partition": partition, "asked.partitions": partitions}
        if partition == 0:
            ours = {"$or": [ours, {"asked.partitions": {"$nin": [None, partitions]}}]}
        wanted = {"group": self._group, "kind": "run", "what": "backfill", "status": {"$ne": "finished"}, **ours}
        reader = StateReader(self._runs.database.name)
        runs = reader.each(CONTROLS, await self._runs.find(wanted).sort("started_at").to_list(), _sound_run_of)
        reader.log()
        return runs

    async def save(self, run: Run, progress: Mapping[str, Any], delivered: int, failed: int, status: str) -> None:
        """Save the progress of a run. This is also its heartbeat."""
        values = {
            "progress": dict(progress),
            "delivered": delivered,
            "failed": failed,
            "status": status,
            **self._me,
        }
        await self._runs.update_one({"_id": self._id(run.id)}, {"$set": values, "$currentDate": {"beat_at": True}})

    async def _take(self, found: dict[str, Any]) -> Run:
        """Take over a run.

        Raises:
            Busy: another process works on it.
        """
        gone: list[dict[str, Any]] = [{"status": {"$ne": "running"}}]
        gone.append({"$expr": {"$lt": ["$beat_at", {"$subtract": ["$$NOW", _DEAD_AFTER * 1000]}]}})
        if found.get("host") == self._me["host"] and not _is_alive(found.get("pid")):
            gone.append({"host": found["host"], "pid": found["pid"]})
        taken = await self._runs.find_one_and_update(
            {"_id": found["_id"], "$or": gone},
            {"$set": {"status": "running", **self._me}, "$currentDate": {"beat_at": True}},
            return_document=ReturnDocument.AFTER,
        )
        if taken is None:
            raise Busy(
                f"Process {found.get('pid')} on {found.get('host')} works on the {found['what']} {found['run']}.",
                remedy="Wait until the run is finished, or stop that process first.",
            )
        return _run_of(taken)._replace(is_new=False)

    def _id(self, run: str) -> str:
        return f"{self._group}:run:{run}"


def _is_alive(pid: Any) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, TypeError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def _sound_run_of(found: Mapping[str, Any]) -> Run:
    """Make a run of the document of a dispatcher's backfill.

    Raises:
        ValueError: the document is malformed.
        TypeError: likewise.
    """
    run = _run_of(found)
    done, last, name = (run.progress.get(one) for one in ("done", "last", "namespace"))
    texts = (run.id, run.what, *(done or ()), *([name] if name is not None else ()))
    if not all(isinstance(one, str) for one in texts):
        raise ValueError("run, what, progress.done and progress.namespace must be text")
    if not isinstance(run.at, Timestamp) or not isinstance(run.delivered, int):
        raise TypeError("at must be a timestamp, and delivered must be a number")
    if last is not None:
        next(elements(last))
    return run


def _run_of(found: Mapping[str, Any]) -> Run:
    return Run(
        found["run"],
        found["what"],
        found["asked"],
        found["at"],
        found.get("from_time"),
        found.get("until_time"),
        found.get("token"),
        found["progress"],
        found["delivered"],
        found["failed"],
        not found["progress"],
    )
