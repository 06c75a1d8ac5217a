"""`dispatcher status`."""

import threading
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Group as Lines
from rich.console import RenderableType

from dispatcher.cli.claims import table_of
from dispatcher.cli.options import Json, OfGroupOfApp
from dispatcher.cli.output import out, print_json
from dispatcher.core.output.terminal import Grid, shown
from dispatcher.core.partitions import in_ranges
from dispatcher.core.redaction import redacted
from dispatcher.core.stats import duration
from dispatcher.exceptions import ServerError

if TYPE_CHECKING:
    from dispatcher.operate.status_model import GroupStatus, PartitionStatus, RelayStatus, Word

# Limits in seconds, for highlighting.
_LATE = 60.0  # a larger lag is highlighted
_TIGHT = 3_600.0  # highlighted if the oplog or the topic will hold the position for a shorter time

_STYLES: "Final[dict[Word, str]]" = {
    "delivering": "green",
    "idle": "green",
    "behind": "yellow",
    "paused": "yellow",
    "blocked": "bold red",
    "failing": "bold red",
    "down": "bold red",
}


_Fact = tuple[str, str, str]
"""The name of a fact, its text, and the style of the text."""


def status(
    *,
    place: OfGroupOfApp,
    watch: Annotated[bool, typer.Option("--watch", help="Repeat until Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two updates with --watch.")] = 2.0,
    as_json: Json = False,
) -> None:
    """Show a group: its processes, their lag, failures, waiting deliveries and losses.

    The command reads the state in MongoDB, and needs no running dispatcher.

    Example: `dispatcher status --url mongodb://db.example.org --group billing --watch`
    """
    from dispatcher.cli.connecting import with_group
    from dispatcher.operate.status import read_status

    def once() -> "GroupStatus":
        return with_group(lambda there: read_status(there.group), place, relays=True)

    def show(overview: "GroupStatus") -> None:
        if as_json:
            print_json(overview.as_dict())
        else:
            out.print(_rendered(overview))

    if not watch:
        show(once())
        return
    from dispatcher.embedded.processes import stopped_by_signals

    # A signal handler is needed: the driver would treat a KeyboardInterrupt as a broken connection.
    with stopped_by_signals() as stop:
        if not as_json and out.is_terminal:
            _watch(once, interval, stop)
            return
        show(once())
        while not stop.wait(interval):
            show(once())


def _watch(once: "Callable[[], GroupStatus]", interval: float, stop: threading.Event) -> None:
    """Redraw the screen until `stop` is set, even while the server does not answer."""
    from rich.live import Live

    with Live(_rendered(once()), console=out, auto_refresh=False, screen=True) as live:
        while not stop.wait(interval):
            try:
                seen: RenderableType = _rendered(once())
            except ServerError as error:
                seen = shown(redacted(error.message), "bold red")
            live.update(seen, refresh=True)


def _rendered(overview: "GroupStatus") -> RenderableType:
    books = overview.claims.books
    return Lines(
        *_summary(overview),
        *_titled("Receivers", _receivers(overview), overview.health.receivers),
        *_of_relay(overview),
        *_titled("Partitions", _partitions(overview), overview.partitions),
        *_titled("Members", _members(overview), overview.members),
        *_titled("Dead letters", _letters(overview), overview.dead_letters),
        *_titled("Parked", _parked(overview), overview.parked),
        *_titled(
            "Claims: deliveries that the writing processes make themselves", table_of(books, overview.at), books
        ),
        *_titled("Paused", _paused(overview), overview.paused),
        *_titled("Runs", _runs(overview), overview.runs),
        *_titled("Gaps: changes that were never delivered", _gaps(overview), overview.gaps),
        *_titled("Malformed documents of the state", _misfits(overview), overview.misfits),
    )


def _of_relay(overview: "GroupStatus") -> list[RenderableType]:
    if not overview.is_relay or overview.relay is None:
        return []
    return [
        *_titled("Publishes", _published(overview.relay), overview.relay.publishes),
        *_titled("Readers", _readers(overview.relay), overview.relay.readers),
    ]


def _titled(title: str, table: Grid, rows: list[Any]) -> list[RenderableType]:
    return ["", shown(title, "bold"), table] if rows else []


def _summary(overview: "GroupStatus") -> list[RenderableType]:
    alive = overview.alive
    if overview.is_relay:
        return [_summary_table(_relay_summary(overview))]
    lags = [one.lag_seconds for one in overview.partitions if one.lag_seconds is not None]
    rate = sum(float(one.stats.get("per_second", {}).get("deliveries", 0)) for one in alive)
    facts: list[_Fact] = [("group", overview.group, "bold")]
    health = overview.health
    facts.append(("health", f"{health.health}{': ' if health.why else ''}{health.why}", _STYLES[health.health]))
    paused = any(one.receiver is None for one in overview.paused)
    facts.append(("dispatchers", f"{len(alive)} alive", "" if alive else "bold red"))
    if paused:
        facts.append(("paused", "everything", "bold yellow"))
    if overview.source.topic is not None:
        facts += _of_topic(overview)
    elif lags:
        facts.append(_lag("lag", max(lags)))
    ages = [one.position_age_seconds for one in overview.partitions if one.position_age_seconds is not None]
    if ages and not alive:
        facts.append(
            (
                "delivered",
                f"until {duration(max(ages))} ago; no dispatcher is alive",
                "bold red",
            )
        )
    if alive:
        facts.append(("throughput", f"{rate:.1f} deliveries per second", ""))
    letters, gaps = overview.dead_letter_count, overview.gap_count
    facts.append(("dead letters", _counted("dead_letters", letters, overview), "yellow" if letters else ""))
    parked = _counted("parked_deliveries", overview.parked_deliveries, overview)
    facts.append(("parked", f"{parked} deliveries", ""))
    facts += _claims_summary(overview)
    facts.append(("gaps", _counted("gap_count", gaps, overview), "yellow" if gaps else ""))
    facts.append(_headroom(overview) if overview.source.topic is None else _headroom_in_topic(overview))
    return [_summary_table(facts)]


def _summary_table(facts: list[_Fact]) -> Grid:
    table = Grid()
    for name, value, style in facts:
        table.add_row(shown(name, "dim"), shown(value, style))
    table.show_header = False
    return table


def _lag(name: str, seconds: float | None, more: str = "") -> _Fact:
    if seconds is None:
        return name, "unknown: no dispatcher is alive", "bold red"
    return name, f"{duration(seconds)}{more}", "yellow" if seconds > _LATE else ""


def _brokers(overview: "GroupStatus") -> _Fact:
    """The report of the live processes about the brokers. This command does not ask the brokers itself."""
    if overview.broker_troubles:
        return "brokers", "; ".join(one.rstrip(".") for one in overview.broker_troubles), "bold red"
    if overview.alive or (overview.relay is not None and overview.relay.alive):
        return "brokers", "answer", ""
    return "brokers", "unknown: no process that asks them is alive", ""


def _of_topic(overview: "GroupStatus") -> list[_Fact]:
    """The facts about a group that reads from a topic: its source, the relay, the three lags and the brokers."""
    relay, lag = overview.relay, overview.broker_lag
    facts: list[_Fact] = [("source", str(overview.source), "")]
    if relay is None:
        facts.append(("relay", "none has published to this topic with this state", "bold red"))
    else:
        facts.append(_relay_processes("relay", relay))
        facts.append(_relay_lag(relay))
    facts.append(("broker lag", "unknown" if lag is None else _records(lag), ""))
    facts.append(_lag("delivery lag", overview.delivery_lag_seconds))
    facts.append(_brokers(overview))
    return facts


def _relay_processes(name: str, relay: "RelayStatus") -> _Fact:
    return name, f"{len(relay.alive)} alive", "" if relay.alive else "bold red"


def _relay_lag(relay: "RelayStatus") -> _Fact:
    if relay.lag_seconds is None and relay.owner is not None:
        return "relay lag", "not reported yet", ""
    if relay.lag_seconds is None:
        text = f"unknown: no relay publishes; published until {duration(relay.position_age_seconds)} ago"
        return "relay lag", text, "bold red"
    return _lag("relay lag", relay.lag_seconds, f", {_records(relay.records_in_flight or 0)} in flight")


def _records(count: int) -> str:
    return f"{count:,} record{'' if count == 1 else 's'}"


def _headroom_in_topic(overview: "GroupStatus") -> _Fact:
    left = overview.headroom_seconds
    if left is None:
        return "topic", "the time for which it keeps records is unknown, or unlimited", ""
    if left <= 0:
        text = f"may have deleted undelivered records {duration(-left)} ago: `run` tells whether changes are lost"
        return "topic", text, "bold red"
    text = f"holds the position for another {duration(left)} at least"
    return "topic", text, "bold red" if left < _TIGHT else ""


def _relay_summary(overview: "GroupStatus") -> list[_Fact]:
    """The facts about a relay."""
    relay, health = overview.relay, overview.health
    assert relay is not None  # the group is a relay
    keeps = (
        "" if relay.retention_seconds is None else f", which keeps records for {duration(relay.retention_seconds)}"
    )
    why = f": {health.why}" if health.why else ""
    return [
        ("group", f"{overview.group}, a relay", "bold"),
        ("health", f"{health.health}{why}", _STYLES[health.health]),
        ("source", str(overview.source), ""),
        ("publishes to", f"{relay.destination}, {relay.partitions} partitions{keeps}", ""),
        _relay_processes("relays", relay),
        ("term", str(relay.term), ""),
        _relay_lag(relay),
        ("throughput", f"{relay.changes_per_second:.1f} changes per second", ""),
        _brokers(overview),
        ("gaps", _counted("gap_count", overview.gap_count, overview), "yellow" if overview.gap_count else ""),
        _headroom(overview),
    ]


def _claims_summary(overview: "GroupStatus") -> list[_Fact]:
    """The facts about claims: open claims, deliveries that wait for them, and takeovers."""
    claims = overview.claims
    processes = f"{claims.processes} process{'' if claims.processes == 1 else 'es'}"
    facts = [("claims", f"{_counted('claims', claims.open, overview)} open, {processes}", "")]
    if claims.waiting or claims.parked:
        waiting = f"deliveries wait for them: {claims.waiting} in memory, {claims.parked} parked"
        text = f"{waiting}, the oldest for {duration(claims.oldest_seconds)}"
        facts.append(("", text, "yellow" if claims.oldest_seconds > _LATE else ""))
    left = {"released": claims.released, "taken over": claims.taken_over, "orphaned": claims.orphaned}
    if any(left.values()):
        text = ", ".join(f"{count} {name}" for name, count in left.items() if count)
        facts.append(("", text, "yellow" if claims.orphaned else ""))
    return facts


def _counted(figure: str, count: int, overview: "GroupStatus") -> str:
    return f"at least {count}" if figure in overview.at_least else str(count)


def _headroom(overview: "GroupStatus") -> _Fact:
    left = overview.headroom_seconds
    if left is None:
        if not overview.partitions:
            return "oplog", "no position is saved yet", ""
        return "oplog", "unknown: `status` needs the privilege serverStatus and a connection without mongos", ""
    if left <= 0:
        return (
            "oplog",
            f"begins {duration(-left)} after the position: changes are lost",
            "bold red",
        )
    return "oplog", f"holds the position for another {duration(left)}", "bold red" if left < _TIGHT else ""


def _receivers(overview: "GroupStatus") -> Grid:
    receivers = overview.health.receivers
    limits = ["limits"] if any(one.limits for one in receivers) else []
    table = Grid("health", "receiver", "signal", *limits, "errors", "why")
    for one in receivers:
        errors = "" if one.error_rate is None else f"{one.error_rate:.1%}"
        word = shown(one.health, _STYLES[one.health])
        texts = [one.limits for _ in limits]
        table.add_row(word, shown(one.receiver), shown(one.signal), *texts, errors, shown(one.why))
    return table


def _published(relay: "RelayStatus") -> Grid:
    table = Grid("collection", "since")
    for one in relay.publishes:
        table.add_row(one.name, _when(one.since))
    return table


def _readers(relay: "RelayStatus") -> Grid:
    table = Grid("group", "dispatchers", "broker lag", "lost in")
    for one in relay.readers:
        table.add_row(
            one.group,
            shown(f"{one.alive} alive", "" if one.alive else "bold red"),
            "" if one.broker_lag is None else _records(one.broker_lag),
            _seconds(one.headroom_seconds),
        )
    return table


def _partitions(overview: "GroupStatus") -> Grid:
    done = "published up to" if overview.is_relay else "delivered up to"
    in_topic = overview.source.topic is not None
    behind = "records to read" if in_topic else "changes behind"
    table = Grid("partition", "owner", "term", done, "lag", behind, "saved", "lost in")
    for one in overview.partitions:
        changes = "" if one.lag_changes is None else f"about {one.lag_changes:.0f}"
        records = "" if one.broker_lag is None else f"{one.broker_lag:,}"
        table.add_row(
            str(one.number),
            shown(_owner(one, overview), "" if _owned(one, overview) else "bold red"),
            str(one.term),
            _when(one.position_at),
            _seconds(one.lag_seconds),
            records if in_topic else changes,
            "" if one.saved_seconds is None else f"{duration(one.saved_seconds)} ago",
            _seconds(one.headroom_seconds),
        )
    return table


def _owned(one: "PartitionStatus", overview: "GroupStatus") -> bool:
    return any(member.id == one.owner for member in overview.alive)


def _owner(one: "PartitionStatus", overview: "GroupStatus") -> str:
    if one.owner is None or one.where is None:
        return "none"
    return one.where if _owned(one, overview) else f"{one.where} (gone)"


def _members(overview: "GroupStatus") -> Grid:
    rate = "changes" if overview.is_relay else "deliveries"
    table = Grid("member", "version", "started", "last heartbeat", "partitions", f"{rate}/s", "http")
    for one in overview.members:
        table.add_row(
            f"{one.host}, pid {one.pid}",
            one.version,
            _when(one.started_at),
            shown(f"{duration(one.seen_seconds)} ago", "" if one.alive else "red"),
            in_ranges(one.partitions) or "stands by",
            str(one.stats.get("per_second", {}).get(rate, "")),
            one.http or "",
        )
    return table


def _letters(overview: "GroupStatus") -> Grid:
    table = Grid("count", "receiver", "signal", "newest")
    for one in overview.dead_letters:
        table.add_row(
            _counted("dead_letters", one.count, overview),
            one.receiver or "(unreadable changes)",
            one.signal or "",
            _when(one.newest_at),
        )
    return table


def _parked(overview: "GroupStatus") -> Grid:
    table = Grid("documents", "receiver", "reason", "next attempt")
    for one in overview.parked:
        table.add_row(
            _counted("parked", one.documents, overview), one.receiver or "", one.reason or "", _when(one.due_at)
        )
    return table


def _paused(overview: "GroupStatus") -> Grid:
    table = Grid("receiver", "since", "by")
    for one in overview.paused:
        table.add_row(one.receiver or "everything", _when(one.since), one.by or "")
    return table


def _runs(overview: "GroupStatus") -> Grid:
    table = Grid("run", "what")
    for one in overview.runs:
        rest = {name: value for name, value in one.items() if name not in ("_id", "group", "kind")}
        table.add_row(str(one["_id"]), shown(", ".join(f"{name}: {value}" for name, value in rest.items())))
    return table


def _gaps(overview: "GroupStatus") -> Grid:
    table = Grid("noted", "kind", "text")
    for one in overview.gaps:
        table.add_row(_when(one.noted_at), one.kind, shown(one.text))
    return table


def _misfits(overview: "GroupStatus") -> Grid:
    table = Grid("collection", "_id", "problem", "remedy")
    for one in overview.misfits:
        table.add_row(*one)
    return table


def _seconds(value: float | None) -> str:
    return "" if value is None else duration(value)


def _when(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S}"
