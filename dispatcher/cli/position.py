"""`dispatcher position`."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dispatcher.cli.options import Json, OfGroupOfApp, Yes, settings_of
from dispatcher.cli.output import confirm, out, print_json
from dispatcher.core.output.terminal import shown
from dispatcher.exceptions import ExitCode
from dispatcher.settings import Settings

if TYPE_CHECKING:
    from bson.timestamp import Timestamp

    from dispatcher.cli.connecting import GroupConnection
    from dispatcher.operate.positions import MovedPosition
    from dispatcher.operate.status_model import PartitionStatus

Force = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Move the positions even if dispatchers of the group are alive. They continue at the new positions.",
    ),
]


def show(
    *,
    place: OfGroupOfApp,
    max_age: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Exit with 1 if the last save of a partition is older than this number of seconds: a "
            "health check.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the position of each partition and the time of its last save.

    All changes up to a position are delivered. By default a running dispatcher saves its positions at least every
    ten seconds, on an idle stream too. If the group reads from a topic, the place in the topic and the position of
    the relay are shown too.

    Example: `dispatcher position show shop.models:registry --max-age 60`
    """
    from dispatcher.cli.connecting import with_group
    from dispatcher.operate.positions import topic_status
    from dispatcher.operate.status import read_status

    async def see(there: "GroupConnection") -> list[dict[str, Any]]:
        overview = await read_status(there.group)
        numbered = there.group.state.positions.find({"group": there.group.name, "partition": {"$exists": 1}})
        found = {int(one["partition"]): one async for one in numbered}
        topic = await topic_status(there.group)
        return [
            _readable(there.group.name, one, found[one.number])
            | ({} if topic is None else topic.of_partition(one.number, found[one.number]))
            for one in overview.partitions
            if one.number in found
        ]

    rows = with_group(see, place, relays=True)
    if as_json:
        print_json(rows)
    elif not rows:
        out.print("No position is saved: no dispatcher of this group has run here yet.")
    else:
        for number, one in enumerate(rows):
            out.print("\n" if number else "", end="")
            for name, value in one.items():
                out.print(shown(f"{name:>16}  ", "bold"), shown("" if value is None else value), sep="")
    ages = [one["age_seconds"] for one in rows]
    if max_age is not None and (not ages or any(age is None or age > max_age for age in ages)):
        raise typer.Exit(ExitCode.FAILED)


def _readable(group: str, seen: "PartitionStatus", found: dict[str, Any]) -> dict[str, Any]:
    from dispatcher.core.resume_tokens import DIGEST

    saved_at = found.get("saved_at")
    return {
        "position": f"{group}:{seen.number}",
        "owner": seen.where or "none",
        "term": seen.term,
        "up_to": None if seen.position_at is None else seen.position_at.isoformat(),
        "saved_at": saved_at.replace(tzinfo=UTC).isoformat() if isinstance(saved_at, datetime) else None,
        "age_seconds": None if seen.saved_seconds is None else round(seen.saved_seconds, 1),
        "lost_in_seconds": None if seen.headroom_seconds is None else round(seen.headroom_seconds),
        "finished_ahead": len(found.get("ahead") or b"") // DIGEST,
        "token": found.get("token"),
        "fingerprint": found.get("fingerprint"),
    }


def move(
    at: Annotated[
        str,
        typer.Option(
            help="Deliver changes since this point: now, a time (2026-01-31T12:00:00Z; UTC by default), "
            "a duration ago (2h, 30min, 7d), a cluster time (1767225600,1), or a resume token. The change of "
            "the token itself is not delivered.",
        ),
    ],
    *,
    place: OfGroupOfApp,
    source: Annotated[Settings, settings_of("kafka", "kafka_config")],
    yes: Yes = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Move the positions of all partitions of a group.

    After a move back, changes are delivered again, under the same ids. After a move forward, the skipped changes
    are not delivered, and a gap is recorded. Parked deliveries and dead letters stay. All dispatchers of the group
    must be stopped.

    For a group that reads from a topic, `--kafka` names its brokers. The position of a relay can
    only move forward.

    Example: `dispatcher position set shop.models:registry --at 2h`
    """
    from dispatcher.cli.connecting import with_group
    from dispatcher.cli.parsing import token
    from dispatcher.operate.positions import Mover

    wanted = None if at.strip() == "now" else token(at, "--at")

    async def do(there: "GroupConnection") -> "list[MovedPosition]":
        return await Mover(there.group).set(wanted, source, force=force)

    confirm(f"Deliver everything since {at}, and nothing before?", yes=yes)
    _print_moves(with_group(do, place, relays=True), as_json=as_json)


def reset(
    *,
    place: OfGroupOfApp,
    yes: Yes = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Forget the position. Only the changes after the next start are delivered, as after a group's first start.

    Changes that are undelivered at that start are never delivered, and a gap is recorded. Parked deliveries and
    dead letters stay. All dispatchers of the group must be stopped.

    Example: `dispatcher position reset shop.models:registry`
    """
    from dispatcher.cli.connecting import with_group
    from dispatcher.operate.positions import Mover

    confirm("Forget the position? Changes that are still undelivered will not be delivered.", yes=yes)
    moved = with_group(lambda there: Mover(there.group).move(None, force=force), place, relays=True)
    _print_moves(moved, as_json=as_json)


def switch(
    *,
    place: OfGroupOfApp,
    source: Annotated[Settings, settings_of("kafka", "kafka_topic", "kafka_config")],
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Let a group read from another source: with `--kafka` from a topic, without it from change streams.

    The group continues at its position. It does not deliver finished changes again. A group that leaves
    a topic keeps its number of partitions; `run --partitions` changes it. All dispatchers of the group must be
    stopped.

    Example: `dispatcher position switch shop.models:registry --kafka kafka-1:9092`
    """
    from dispatcher.cli.connecting import with_group
    from dispatcher.group.origin import origin_of
    from dispatcher.operate.positions import Mover

    async def do(there: "GroupConnection") -> int:
        mover = Mover(there.group)
        return await mover.switch(await origin_of(source, there.group.state, mover.now))

    name = "change streams" if source.kafka is None else f"the topic {source.kafka_topic}"
    confirm(f"Let the group read from {name} from now on?", yes=yes)
    partitions = with_group(do, place)
    if as_json:
        print_json({"source": name, "partitions": partitions})
    else:
        out.print(f"the group reads from {name} now, in {partitions} partition{'s' if partitions != 1 else ''}")


def _print_moves(moved: "list[MovedPosition]", *, as_json: bool) -> None:
    if as_json:
        print_json(
            [one._asdict() | {"before": _text(one.before), "after": _text(one.after)} for one in moved],
        )
        return
    for one in moved:
        before, after = _text(one.before) or "nowhere", _text(one.after) or "the next start"
        out.print(f"partition {one.partition}: from {before} to {after}")
        if one.gap is not None:
            out.print("  a gap is recorded: the skipped changes are not delivered")


def _text(time: "Timestamp | None") -> str | None:
    return None if time is None else time.as_datetime().isoformat()
