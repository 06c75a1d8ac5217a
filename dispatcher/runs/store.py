"""Stores runs (replays and backfills) and their progress, in the collection `controls`.

Either the process of the command works on a backfill, or the dispatchers of the group do: `backfill.py` decides.
The dispatchers divide a backfill into one part for each partition. docs/reference/state.md lists the fields of a
run.

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
from dispatcher.core.state import CONTROLS, OPEN_BACKFILL, Group
from dispatcher.core.state_checks import StateReader
from dispatcher.exceptions import DispatcherError, OtherRun, UnknownRun
from dispatcher.runs.selection import shares_of
from mongoz.synonyms import nearest

# Seconds without a heartbeat after which a process counts as dead. On the same machine, a process that has ended
# counts as dead without this wait.
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
        from_time: start of the range of a replay; None for a backfill.
        until_time: end of the range of a replay; None for a backfill.
        token: for a backfill after lost history, the token after which the stream continued; otherwise None.
        is_new: True if the run has no saved progress yet.
        root: the id of the whole run; the same as `id`, unless this is a part of a run.
        rate: maximum number of documents per second, for the dispatchers; None for no limit.
        status: `"running"`, `"stopped"` or `"finished"`.
        divided: whether its parts do the work.
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
    root: str
    rate: float | None
    status: str
    divided: bool

    @property
    def workers(self) -> int:
        """A factor for the number of documents that are worked on at the same time; 1 by default."""
        return int(self.asked.get("workers") or 1)


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
        """Get the run with this id. If there is none, begin a run, on which this process works."""
        new = {
            "group": self._group,
            "kind": "run",
            "run": id_,
            "what": what,
            "asked": dict(asked),
            "at": at,
            "progress": {},
            "delivered": 0,
            "failed": 0,
            "status": "running",
            **self._me,
            **values,
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
        """Take over the newest unfinished run with these options; None if there is none.

        Args:
            what: `"replay"` or `"backfill"`.
            asked: the options of the command, by name.

        Raises:
            Busy: another process works on the run.
        """
        same = {f"asked.{name}": value for name, value in asked.items()}
        found = await self._runs.find_one(
            {"group": self._group, "kind": "run", "what": what, **same, "status": {"$ne": "finished"}},
            sort=[("started_at", -1)],
        )
        return None if found is None else await self._take(found)

    async def resume(self, id_: str, what: str, asked: Mapping[str, Any]) -> Run:
        """Take over the run with this id.

        Args:
            asked: options of the command that a run keeps, by name; None for an option that is not given.

        Raises:
            OtherRun: the run has another value of an option that is given.
            UnknownRun: no run has this id.
            Busy: another process works on it.
        """
        whole = {"kind": "run", "what": what, "of": None}
        found = await self._runs.find_one({"_id": self._id(id_), **whole})
        if found is None:
            known = await self._runs.distinct("run", {"group": self._group, **whole})
            raise UnknownRun(
                f"Group {self._group!r} has no {what} {id_!r}.{nearest(id_, known)}",
                remedy=f"Begin a new {what} without --resume.",
            )
        for name, value in asked.items():
            if value not in (None, kept := found["asked"].get(name)):
                raise OtherRun(
                    f"The {what} {id_} was begun {'without' if kept is None else 'with another'} --{name}"
                    f"{'' if kept is None else f': {kept}'}.",
                    remedy=f"Continue it without --{name}, or begin a new {what} without --resume.",
                )
        return await self._take(found)

    async def employ(self, run: Run, workers: int) -> Run:
        """Set the number of workers of a run and its parts."""
        whole = {"group": self._group, "$or": [{"_id": self._id(run.id)}, {"of": run.id}]}
        await self._runs.update_many(whole, {"$set": {"asked.workers": workers}})
        return run._replace(asked={**run.asked, "workers": workers})

    async def of_stream(self, partition: int, partitions: int) -> list[Run]:
        """The unfinished backfills of this partition, on which the dispatchers work.

        Partition 0 also gets the backfills that have to be divided first: those that a command has handed over,
        and parts that were made for another number of partitions.
        """
        wanted: dict[str, Any] = {"group": self._group, **OPEN_BACKFILL}
        if partition == 0:
            wanted["$nor"] = [{"asked.partition": {"$nin": [None, 0]}, "asked.partitions": partitions}]
        else:
            wanted |= {"asked.partition": partition, "asked.partitions": partitions}
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

    async def advance(
        self, run: Run, progress: Mapping[str, Any], delivered: int, status: str = "running"
    ) -> bool:
        """Save the progress of a backfill on which the dispatchers work. Returns False if the run was stopped."""
        values = {"progress": dict(progress), "delivered": delivered, **self._me}
        if status == "finished":
            values["status"] = status
        change = {"$set": values, "$currentDate": {"beat_at": True}}
        unfinished = {"_id": self._id(run.id), "status": {"$ne": "finished"}}
        found = await self._runs.find_one_and_update(unfinished, change, return_document=ReturnDocument.AFTER)
        return found is not None and found["status"] == status

    async def divide(self, run: Run, partitions: int) -> None:
        """Divide a backfill into one part for each partition. The parts begin with the progress of the run."""
        progress = {name: value for name, value in run.progress.items() if name != "seen"}
        rate = None if run.rate is None else run.rate / partitions
        ids = [f"{run.id}.{part}" for part in range(partitions)]
        for part, id_ in enumerate(ids):
            share = {"partition": part, "partitions": partitions, "within": shares_of(run.asked)}
            asked = {**run.asked, **share}
            values = {"token": run.token, "of": run.root, "progress": progress, "rate": rate}
            await self.ensure(id_, run.what, asked, run.at, **values)
        change: dict[str, Any] = {"divided": True}
        if run.asked.get("partition") is not None:  # this run is a part; only the command ends a whole run
            change["status"] = "finished"
        running = {"_id": self._id(run.id), "status": "running"}
        divided = (await self._runs.update_one(running, {"$set": change})).matched_count
        # If the command has ended meanwhile, stop the parts. If not, start parts that an earlier attempt stopped.
        before, now = ("stopped", "running") if divided else ("running", "stopped")
        parts = {"_id": {"$in": [*map(self._id, ids)]}, "status": before}
        await self._runs.update_many(parts, {"$set": {"status": now}})

    async def parts(self, run: Run) -> list[Run]:
        """The whole run, and all its parts."""
        found = self._runs.find({"group": self._group, "$or": [{"_id": self._id(run.id)}, {"of": run.id}]})
        return [_run_of(one) for one in await found.sort("_id").to_list()]

    async def begin_alone(self, run: Run) -> None:
        """Record that this process works on a backfill, and that no dispatcher may begin to deliver."""
        await self._update(run, {"alone": True, "handed": False, "status": "running"})

    async def hand_over(self, run: Run, rate: float | None) -> None:
        """Let the dispatchers work on a backfill, or on what is left of it."""
        await self._update(run, {"alone": False, "handed": True, "status": "running", "rate": rate})
        parts = {"group": self._group, "of": run.id, "status": {"$ne": "finished"}}
        count = await self._runs.count_documents(parts)
        share = None if rate is None else rate / max(1, count)
        await self._runs.update_many(parts, {"$set": {"status": "running", "rate": share}})

    async def beat(self, run: Run) -> None:
        """Record that this process lives: it works on the run, or waits for the dispatchers that work on it."""
        await self._update(run, {})

    async def end(self, run: Run, status: str) -> None:
        """Record that the command ends. The dispatchers stop their work on the run.

        Args:
            status: `"stopped"` or `"finished"`.
        """
        await self._update(run, {"alone": False, "handed": False, "status": status})
        running = {"group": self._group, "of": run.id, "status": "running"}
        await self._runs.update_many(running, {"$set": {"status": "stopped"}})

    async def has_one_alone(self) -> bool:
        """Returns whether a command works on a backfill by itself. If so, no dispatcher may begin to deliver."""
        recent = {"$gt": ["$beat_at", {"$subtract": ["$$NOW", _DEAD_AFTER * 1000]}]}
        found = self._runs.find({"group": self._group, "kind": "run", "alone": True, "$expr": recent})
        return any(
            one.get("host") != self._me["host"] or _is_alive(one.get("pid")) for one in await found.to_list()
        )

    async def _update(self, run: Run, values: Mapping[str, Any]) -> None:
        change = {"$set": {**values, **self._me}, "$currentDate": {"beat_at": True}}
        await self._runs.update_one({"_id": self._id(run.id)}, change)

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
    """Make a run from the document of a backfill on which the dispatchers work.

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
        found.get("of") or found["run"],
        found.get("rate"),
        found.get("status", "running"),
        found.get("divided") is True,
    )
