"""Observes a process and its group, for metrics, probes and the dashboard."""

import asyncio
import os
import socket
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from time import monotonic, time
from typing import Any, Final, Literal

from pymongo import AsyncMongoClient

from dispatcher.core.driver_errors import in_short
from dispatcher.core.oplog import MOST_SKEW, ClockOffset, ServerTimes, look_at_oplog
from dispatcher.core.output.logs import log
from dispatcher.core.output.writer import dropped_lines
from dispatcher.core.partitions import name_partitions
from dispatcher.core.state import Group
from dispatcher.core.stats import ClaimGauges, Gauges, Recent, Stats
from dispatcher.kafka.config import connection_errors
from dispatcher.operate.metrics import Snapshot
from dispatcher.operate.status import StatusCache
from dispatcher.operate.status_model import GroupStatus, MemberStatus
from dispatcher.settings import Settings
from mongoz import __version__

Phase = Literal["starting", "delivering", "stopping"]

# Seconds between two checks of the server, and maximum seconds of one check.
_BETWEEN_CHECKS: Final = 10.0
_PATIENCE: Final = 5.0

# Seconds between two reads of the status, for each member of the group. Every member reads the status of all
# members. So in a large group each member reads less often.
_PER_MEMBER: Final = 2.0

# Seconds between two measurements of the event loop, and the number of kept measurements.
_TURN: Final = 0.25
_TURNS: Final = 60

# Seconds over which deliveries per second are averaged.
_RATED: Final = 15.0

# Maximum seconds without an answer of the change stream. Even an idle stream answers every second.
_SILENCE: Final = 15.0

# Maximum seconds without an answer of the change stream while the server answers other requests. After that, only
# a restart of the process helps.
_STUCK: Final = 300.0


class Observer:
    """Observes one process, and checks the server regularly.

    Args:
        gauges: returns the gauges of the pipelines of the process, by partition.
        troubles: returns further reasons why the process can't work at this moment, for people.

    Attributes:
        http: the URL of the process; None if it does not answer over HTTP.
        cache: the status of the group.
        name: the name of the group.
    """

    def __init__(
        self,
        stats: Stats,
        *,
        group: str,
        settings: Settings,
        gauges: Callable[[], dict[int, Gauges]],
        troubles: Callable[[], list[str]] = list,
    ) -> None:
        self.stats = stats
        self.name = group
        self.group: Group | None = None
        self.http: str | None = None
        self._patience = settings.grace + _STUCK
        self._gauges = gauges
        self._troubles = troubles
        self._stop: asyncio.Event | None = None
        self._stopping_since: float | None = None
        self._began = monotonic()
        self._server: ServerTimes | None = None
        self.cache = StatusCache(group, self._myself, lambda: self._server)
        self._clock = ClockOffset()
        self._skewed = False
        self._check_error = ""  # the error of the last check
        self._delays: deque[float] = deque([0.0], maxlen=_TURNS)
        self._recent = Recent()
        self._rated: deque[tuple[float, int, int]] = deque()

    def begin(self, stop: asyncio.Event) -> None:
        """Record that the process delivers from now on, until `stop` is set."""
        self._stop = stop

    @property
    def phase(self) -> Phase:
        """The phase of the process."""
        if self._stop is None:
            return "starting"
        return "stopping" if self._stop.is_set() else "delivering"

    @property
    def _kind(self) -> str:
        return "dispatcher" if self.stats.relay is None else "relay"

    @property
    def uptime(self) -> float:
        """Seconds since the start."""
        return monotonic() - self._began

    def watch(self, group: Group) -> list[asyncio.Task[None]]:
        """Start the tasks that observe. The caller ends them."""
        self.group = group
        return [
            asyncio.create_task(self._time_turns(), name="time-turns"),
            asyncio.create_task(self._check_regularly(group), name="check-the-server"),
        ]

    async def _time_turns(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _TURN
            await asyncio.sleep(_TURN)
            now = loop.time()
            self._delays.append(max(0.0, now - due))
            self._recent.note(now, self.stats.receivers.values())
            self._rated.append((now, self.stats.delivered, self.stats.read))
            while self._rated[0][0] < now - _RATED:
                self._rated.popleft()
            if self.phase == "stopping" and self._stopping_since is None:
                self._stopping_since = now

    async def _check_regularly(self, group: Group) -> None:
        due = 0.0
        while True:
            await self._check(group.state.client)
            if monotonic() >= due:  # for the metrics; an error does not affect readiness
                status = await self.cache.get(group)
                due = monotonic() + len(status.members) * _PER_MEMBER
            await asyncio.sleep(_BETWEEN_CHECKS)

    async def _check(self, client: AsyncMongoClient[Any]) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                offset = await self._clock.ask(client)
                self._note_clocks(offset)
                self._server = ServerTimes(offset, await look_at_oplog(client))
        except Exception as error:
            self._check_error = in_short(error)
            log.debug("the server can't be checked", action="server.not_seen", error=self._check_error)
        else:
            self._check_error = ""

    def _note_clocks(self, offset: float) -> None:
        """Warn when the clocks begin to differ. Leases do not depend on the clocks, but times in logs do."""
        self.stats.clock_offset = offset
        skewed = abs(offset) > MOST_SKEW
        if skewed and not self._skewed:
            log.warning(
                "the clocks of the server and of this machine differ",
                action="clock.skewed",
                server_ahead_by=round(offset, 3),
                remedy="synchronize both clocks with NTP",
            )
        self._skewed = skewed

    def snapshot(self) -> Snapshot:
        """The process and its group at this moment."""
        oplog = self._server and self._server.oplog
        return Snapshot(
            self.name,
            __version__,
            monotonic(),
            time() + self.stats.clock_offset,
            self.stats,
            self._gauges(),
            status=self.cache.last,
            oplog_begins=oplog and oplog.begins,
            oplog_ends=oplog and oplog.ends,
            oplog_spare=oplog.spare if oplog else 0.0,
            loop_delay=max(self._delays),
            dropped_lines=dropped_lines(),
            broker_errors=connection_errors(),
        )

    def rates(self) -> dict[str, float]:
        """Deliveries and changes per second, averaged over the last seconds."""
        if len(self._rated) < 2:
            return {"deliveries": 0.0, "changes": 0.0}
        (began, delivered, read), (ended, delivered_now, read_now) = self._rated[0], self._rated[-1]
        seconds = ended - began
        return {
            "deliveries": round((delivered_now - delivered) / seconds, 2),
            "changes": round((read_now - read) / seconds, 2),
        }

    def stats_document(self) -> dict[str, Any]:
        """The statistics for other processes: counters, and gauges by partition."""
        gauges = self._gauges()
        receivers, relay = self.stats.receivers.values(), self.stats.relay
        troubles = [one.topic.trouble for one in gauges.values() if one.topic is not None and one.topic.trouble]
        queued = sum(one.queued for one in gauges.values())
        claims = [one.claims for one in gauges.values() if one.claims is not None]
        return {
            **self.stats.as_dict(),
            **({} if relay is None else {"relay": {**relay.counters(), "term": relay.term, "in_flight": queued}}),
            "trouble": troubles[0] if troubles else None,
            "per_second": self.rates(),
            "latency": [sum(counts) for counts in zip(*(one.latency.counts for one in receivers), strict=True)],
            "receivers": [{**one.counters(), "recent": self._recent.of(one)} for one in receivers],
            "in_flight": sum(one.in_flight for one in gauges.values()),
            "queued": queued,
            **({"claims": _claims_report(claims)} if claims else {}),
            "partitions": {str(number): _report(one) for number, one in gauges.items()},
        }

    async def status(self) -> GroupStatus:
        """The status of the group, as of a moment ago, with the present figures of this process."""
        return await self.cache.get(self.group)

    def _myself(self) -> MemberStatus:
        return MemberStatus(
            id="myself",
            host=socket.gethostname(),
            pid=os.getpid(),
            version=__version__,
            application=None,
            started_at=None,
            seen_seconds=0.0,
            alive=True,
            partitions=sorted(self._gauges()),
            receivers=[],
            stats=self.stats_document(),
            http=self.http,
        )

    def not_ready(self) -> list[str]:
        """The reasons why this process does not work at this moment; empty if it works, or is a standby.

        A pause is not a reason: an operator requested it, and a supervisor must not restart the process.
        """
        if self.phase != "delivering":
            return [f"the {self._kind} is {self.phase}"]
        reasons = self._troubles()
        gauges = self._gauges()
        if self.stats.topic is not None:
            unread: dict[str, list[int]] = defaultdict(list)
            for number, one in gauges.items():
                if one.topic is not None and one.topic.trouble:
                    unread[one.topic.trouble].append(number)
            for why, some in unread.items():
                reasons.append(f"{name_partitions(some)} of the topic can't be read: {why}")
        else:
            if closed := [number for number, one in gauges.items() if not one.connected]:
                reasons.append(f"the change stream of {name_partitions(closed)} is not open")
            open_ = {number: one for number, one in gauges.items() if one.connected}
            reasons += _silent("the change stream of {} is silent", open_, _SILENCE)
        if self._check_error:
            reasons.append(f"the server can't be reached: {self._check_error}")
        return reasons

    def must_restart(self) -> list[str]:
        """The reasons why this process must be restarted; empty if there are none."""
        loop = asyncio.get_running_loop()
        if self._stopping_since is not None and loop.time() - self._stopping_since > self._patience:
            return [f"the {self._kind} does not end after a request to stop"]
        if self.phase != "delivering" or self._check_error:
            return []
        answering = {
            number: one for number, one in self._gauges().items() if one.topic is None or not one.topic.trouble
        }
        text = "the change stream of {} is silent" if self.stats.topic is None else "the topic is silent in {}"
        return [f"{one}, though the server answers" for one in _silent(text, answering, _STUCK)]


def _silent(text: str, gauges: Mapping[int, Gauges], limit: float) -> list[str]:
    """One reason with all partitions that are silent for more than `limit` seconds; empty if none is silent.

    Args:
        text: the reason, with `{}` where the partitions are inserted.
        gauges: the gauges by partition.
    """
    silent = {number: one.silent_seconds for number, one in gauges.items() if one.silent_seconds > limit}
    if not silent:
        return []
    longest = "up to " if len(silent) > 1 else ""
    return [f"{text.format(name_partitions(silent))} for {longest}{max(silent.values()):.0f} s"]


def _claims_report(claims: Iterable[ClaimGauges]) -> dict[str, Any]:
    """The report to other processes about the deliveries that wait for writing processes."""
    waiting, oldest, each = zip(*claims, strict=True)
    processes: Counter[str] = Counter()
    for one in each:
        processes.update(one)
    return {"waiting": sum(waiting), "oldest_seconds": round(max(oldest), 3), "processes": dict(processes)}


def _report(one: Gauges) -> dict[str, Any]:
    """The report to other processes about a partition."""
    report: dict[str, Any] = {
        "lag_seconds": round(one.lag_seconds, 3),
        "lag_changes": one.lag_changes,
        "connected": one.connected,
    }
    if one.topic is not None:
        report.update(delivery_lag_seconds=round(one.waiting_seconds, 3), broker_lag=one.topic.lag_records)
    return report
