"""What the dashboard is told: a group, its history and this process, as one document. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final

from dispatcher.operate.health import Health, health_of
from dispatcher.operate.overview import Overview
from dispatcher.operate.status_model import MemberStatus
from dispatcher.web.dashboard.history import History

__all__ = ["view_of"]

_NO_FIGURES: Final[Mapping[str, float]] = {}
_COUNTED: Final = ("delivered", "failed", "retried", "delivered_rate", "failed_rate", "retried_rate")


def view_of(overview: Overview, members: Sequence[MemberStatus], history: History, since: int) -> dict[str, Any]:
    """The document.

    Args:
        overview: of the group.
        members: of it, this process among them.
        history: of the group.
        since: how many points of it the client has already; -1 for none.
    """
    points, seen = history.since(since)
    last = history.last
    paused = {one.receiver for one in overview.paused}
    # This process is among them: what is stored of it is some seconds old, or can't be read.
    health = health_of(members, overview.partitions, overview.parked, overview.paused, overview.at)
    return {
        **overview.as_dict(),
        "health": health.as_dict(),
        "members": [_member(one) for one in members],
        "receivers": _receivers(overview, members, history, paused, health),
        "figures": {} if last is None else last._asdict(),
        "points": [point._asdict() for point in points],
        "anew": not 0 <= since <= seen,
        "seen": seen,
        "paused_all": None in paused,
        "runs": [_run(one) for one in overview.runs],
        "misfits": [{**one._asdict(), "key": f"{one.collection} {one.id}"} for one in overview.misfits],
        "gaps": [{**asdict(one), "id": f"{one.noted_at} {one.kind} {one.namespace}"} for one in overview.gaps],
    }


def _member(member: MemberStatus) -> dict[str, Any]:
    stats = {name: member.stats.get(name) for name in ("per_second", "in_flight", "queued")}
    return {**asdict(member), "stats": stats, "receivers": len(member.receivers)}


def _run(run: Mapping[str, Any]) -> dict[str, Any]:
    """A replay or a backfill, without where it is: that may be a key of somebody's document."""
    asked = run.get("asked")
    receivers = asked.get("receivers") if isinstance(asked, Mapping) else None
    return {
        "id": str(run.get("run")),
        "what": str(run.get("what")),
        "receivers": [str(name) for name in receivers or ()],
        "status": str(run.get("status")),
        "delivered": run.get("delivered", 0),
        "failed": run.get("failed", 0),
        "started_at": _utc(run.get("started_at")),
        "beat_at": _utc(run.get("beat_at")),
    }


def _utc(moment: Any) -> datetime | None:
    """A date of the state, which is UTC; None for anything else."""
    return moment.replace(tzinfo=UTC) if isinstance(moment, datetime) else None


def _receivers(
    overview: Overview, members: Sequence[MemberStatus], history: History, paused: set[str | None], health: Health
) -> list[dict[str, Any]]:
    """Those that a member knows or has called, or that has dead letters: a row for each receiver and signal."""
    figures = history.receivers()
    documents: dict[tuple[str, str], set[str]] = {}
    paused = set(paused)
    for member in members:
        for known in member.receivers if member.alive else ():
            key = (str(known.get("name")), str(known.get("signal")))
            documents.setdefault(key, set()).add(str(known.get("document", "")).rpartition(".")[2])
            if not paused.isdisjoint(known.get("formerly") or ()):
                paused.add(key[0])
    letters = {(one.receiver or "", one.signal or ""): one.count for one in overview.dead_letters if one.receiver}
    rows = []
    for name, signal in sorted({*documents, *figures, *letters}):
        counted = figures.get((name, signal), _NO_FIGURES)
        calls = counted.get("duration_count", 0.0)
        rows.append(
            {
                "key": f"{name} {signal}",
                "name": name,
                "signal": signal,
                "documents": sorted(documents.get((name, signal), ())),
                "known": (name, signal) in documents or (bool(signal) and (name, signal) in figures),
                "paused": name in paused,
                "health": (how := health.of(name, signal)).health,
                "why": how.why,
                **{one: counted.get(one, 0.0) for one in _COUNTED},
                "duration_seconds": counted["duration_sum"] / calls if calls > 0 else None,
                "dead_letters": letters.get((name, signal), 0),
            }
        )
    return rows
