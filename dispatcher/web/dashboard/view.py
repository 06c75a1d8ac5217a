"""Converts the status of a group to the JSON document of the dashboard."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from dispatcher.core.stats import in_utc
from dispatcher.operate.status_model import GroupStatus, MemberStatus, number
from dispatcher.web.dashboard.history import sample_of

_COUNTED: Final = ("delivered", "failed", "retried", "duration_sum", "duration_count")


def view_of(status: GroupStatus) -> dict[str, Any]:
    """The JSON document of a status."""
    return {
        **status.as_dict(),
        "members": [_member(one) for one in status.members],
        "receivers": _receivers(status),
        "sample": sample_of(status),
        "paused_all": any(one.receiver is None for one in status.paused),
        "runs": [_run(one) for one in status.runs],
        "misfits": [{**one._asdict(), "key": f"{one.collection} {one.id}"} for one in status.misfits],
        "gaps": [{**asdict(one), "id": f"{one.noted_at} {one.kind} {one.namespace}"} for one in status.gaps],
    }


def _member(member: MemberStatus) -> dict[str, Any]:
    stats = {name: member.stats.get(name) for name in ("per_second", "in_flight", "queued")}
    return {**asdict(member), "stats": stats, "receivers": len(member.receivers)}


def _run(run: Mapping[str, Any]) -> dict[str, Any]:
    """A replay or a backfill. Its progress is left out, because it may contain the key of a document."""
    asked = run.get("asked")
    receivers = asked.get("receivers") if isinstance(asked, Mapping) else None
    return {
        "id": str(run.get("run")),
        "what": str(run.get("what")),
        "receivers": [str(name) for name in receivers or ()],
        "status": str(run.get("status")),
        "delivered": run.get("delivered", 0),
        "failed": run.get("failed", 0),
        "started_at": in_utc(run.get("started_at")),
        "beat_at": in_utc(run.get("beat_at")),
    }


def _receivers(status: GroupStatus) -> list[dict[str, Any]]:
    """A row for each receiver and signal that a live member knows or has called, or that has dead letters."""
    documents: dict[tuple[str, str], set[str]] = {}
    present: dict[tuple[str, str], tuple[str, str]] = {}  # the present names of renamed receivers
    counted: dict[tuple[str, str], dict[str, float]] = {}
    paused = {one.receiver for one in status.paused}
    for member in status.alive:
        for known in member.known:
            key = (str(known.get("name")), str(known.get("signal")))
            documents.setdefault(key, set()).add(str(known.get("document", "")).rpartition(".")[2])
            present.update({(str(former), key[1]): key for former in known.get("formerly") or ()})
            if not paused.isdisjoint(known.get("formerly") or ()):
                paused.add(key[0])
        for one in member.counted:
            sums = counted.setdefault((str(one["receiver"]), str(one.get("signal"))), dict.fromkeys(_COUNTED, 0.0))
            for name in _COUNTED:
                sums[name] += number(one.get(name))
    letters = _letters(status, present)
    return [
        {
            "key": f"{name} {signal}",
            "name": name,
            "signal": signal,
            "documents": sorted(documents.get((name, signal), ())),
            "known": (name, signal) in documents or (bool(signal) and (name, signal) in counted),
            "paused": name in paused,
            "health": (found := status.health.of(name, signal)).health,
            "why": found.why,
            "error_rate": found.error_rate,
            "limits": found.limits,
            **counted.get((name, signal), dict.fromkeys(_COUNTED, 0.0)),
            "dead_letters": letters.get((name, signal), 0),
        }
        for name, signal in sorted({*documents, *counted, *letters})
    ]


def _letters(
    status: GroupStatus, present: Mapping[tuple[str, str], tuple[str, str]]
) -> dict[tuple[str, str], int]:
    """The number of dead letters by receiver and signal.

    Args:
        present: the present names of renamed receivers.
    """
    letters: dict[tuple[str, str], int] = {}
    for one in status.dead_letters:
        if one.receiver is not None:
            named = (one.receiver, one.signal or "")
            key = present.get(named, named)
            letters[key] = letters.get(key, 0) + one.count
    return letters
