"""`dispatcher dead-letters`."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from dispatcher.cli.options import Json, OfGroup, Yes, fields_of
from dispatcher.cli.output import confirm, err, name_malformed, out, print_json
from dispatcher.exceptions import ExitCode, NotRunning

if TYPE_CHECKING:
    from dispatcher.cli.connecting import GroupConnection
    from dispatcher.core.state_checks import Misfit
    from dispatcher.operate.dead_letters import Outcome, Wanted

Ids = Annotated[
    list[str],
    typer.Argument(
        metavar="ID",
        help="Ids of dead letters. The first characters are enough if they are unique.",
    ),
]
All = Annotated[bool, typer.Option("--all", help="All dead letters. With filters, all that the filters select.")]


class _Filters(NamedTuple):
    """The flags that select dead letters."""

    receiver: Annotated[str | None, typer.Option(help="Only dead letters for this receiver, by its name.")]
    signal: Annotated[
        Literal["post_save", "post_update", "post_delete"] | None,
        typer.Option(help="Only dead letters of this signal."),
    ]
    reason: Annotated[
        Literal["failed", "invalid", "undecodable", "too_many_hops"] | None,
        typer.Option(help="Only dead letters with this reason."),
    ]
    error: Annotated[
        str | None, typer.Option(help="Only dead letters with this type of error, such as builtins.LookupError.")
    ]
    since: Annotated[
        str | None,
        typer.Option(
            help="Only dead letters given up since this time: 2h or 7d ago, or a date such as 2026-01-31T12:00Z.",
        ),
    ]
    until: Annotated[str | None, typer.Option(help="Only dead letters given up before this time.")]
    key: Annotated[
        str | None,
        typer.Option(
            help="Only dead letters for the document with this _id: text, number, ObjectId or extended JSON.",
        ),
    ]

    def wanted(self) -> "Wanted":
        """The flags as a query of the state."""
        from dispatcher.cli.parsing import moment
        from dispatcher.core.keys import keys_named
        from dispatcher.operate.dead_letters import Wanted

        return Wanted(
            receiver=self.receiver,
            signal=self.signal,
            reason=self.reason,
            error=self.error,
            since=None if self.since is None else moment(self.since, "--since"),
            until=None if self.until is None else moment(self.until, "--until"),
            keys=() if self.key is None else keys_named(self.key),
        )


Filtered = Annotated[_Filters, fields_of(_Filters)]


def list_(
    *,
    filters: Filtered,
    limit: Annotated[
        int, typer.Option(min=0, help="Maximum number of dead letters, the newest first. 0 is all.")
    ] = 50,
    place: OfGroup,
    as_json: Json = False,
) -> None:
    """List dead letters, the newest first. They are in MongoDB, also if the group reads from Kafka.

    Example: `dispatcher dead-letters list --url mongodb://db.example.org --receiver billing.welcome --since 2d`
    """
    from dispatcher.cli.connecting import with_group
    from dispatcher.cli.letter_text import plain, print_list
    from dispatcher.operate import dead_letters

    wanted = filters.wanted()

    async def look(there: "GroupConnection") -> "tuple[list[dict[str, Any]], list[Misfit], int]":
        await _require(there, wanted)
        found, misfits = await dead_letters.letters_of(there.group, wanted, limit)
        total = len(found)
        if limit and total + len(misfits) == limit:
            total = len(await dead_letters.ids_of(there.group, wanted))
        return found, misfits, total

    found, misfits, total = with_group(look, place)
    name_malformed(misfits)
    if as_json:
        print_json([plain(letter) for letter in found])
        return
    if not found:
        out.print("No dead letters match." if any(wanted) else "There are no dead letters.")
        return
    print_list(found)
    if total > len(found):
        out.print(f"{len(found)} of {total}; --limit 0 shows all.")


def show(
    id_: Annotated[
        str,
        typer.Argument(
            metavar="ID", help="The dead letter's id. Its first characters are enough if they are unique."
        ),
    ],
    *,
    place: OfGroup,
    as_json: Json = False,
) -> None:
    """Show one dead letter: all its fields, the traceback, and the documents of the change.

    Example: `dispatcher dead-letters show 5f2b8c --url mongodb://db.example.org`
    """
    from dispatcher.cli.connecting import with_group
    from dispatcher.cli.letter_text import plain, print_letter
    from dispatcher.operate import dead_letters

    async def look(there: "GroupConnection") -> tuple[dict[str, Any], dict[str, bytes]]:
        (whole,) = await dead_letters.resolve(there.group, [id_])
        return await dead_letters.read(there.group, whole)

    letter, parts = with_group(look, place)
    if as_json:
        print_json(plain(letter, parts))
        return
    print_letter(letter, parts)


def retry(
    ids: Ids = [],  # noqa: B006 - typer copies it
    all_: All = False,
    *,
    filters: Filtered,
    wait: Annotated[
        float, typer.Option(min=0.0, help="Seconds to wait for the outcomes. 0 does not wait.")
    ] = 60.0,
    place: OfGroup,
    as_json: Json = False,
) -> None:
    """Retry dead letters with fresh attempts, and show the outcome of each.

    The running dispatchers retry them, in the order of each document's changes. After a success the dead letter is
    removed. After a failure it stays. The command exits with 1 unless all were delivered; with `--wait 0` it does
    not check this. If a receiver no longer exists, or no dispatcher runs, the command fails and changes nothing.

    Example: `dispatcher dead-letters retry --url mongodb://db.example.org --receiver billing.welcome --since 2d`
    """
    from dispatcher.cli.connecting import with_group
    from dispatcher.cli.letter_text import print_outcomes
    from dispatcher.operate import dead_letters
    from dispatcher.operate.member_status import members_of

    wanted = filters.wanted()
    _check_selection(ids, wanted, all_=all_)

    async def retry(there: "GroupConnection") -> "list[Outcome]":
        chosen = await _chosen(there, ids, wanted)
        if not chosen:
            return []
        alive = [one for one in await members_of(there.group) if one.alive]
        if not alive:
            raise NotRunning(
                f"No dispatcher of group {there.group.name!r} is alive to retry the dead letters. "
                "Nothing was changed.",
                remedy="Start a dispatcher: `dispatcher run APP`.",
            )
        gone = await dead_letters.without_receiver(there.group, chosen, alive)
        if gone is not None:
            raise gone
        requested = await dead_letters.request_retry(there.group, chosen)
        if not wait:
            return [dead_letters.Outcome(id_, "waiting", "requested") for id_ in requested]
        return await _watched(
            dead_letters.outcomes(there.group, requested, within=wait), len(requested), quiet=as_json
        )

    found = with_group(retry, place)
    if as_json:
        print_json([_named(one.letter) | one._asdict() for one in found])
    elif not found:
        out.print("No dead letters match.")
    else:
        print_outcomes(found)
    if wait and any(one.result != "delivered" for one in found):
        raise typer.Exit(ExitCode.FAILED)


def drop(
    ids: Ids = [],  # noqa: B006 - typer copies it
    all_: All = False,
    *,
    filters: Filtered,
    yes: Yes = False,
    place: OfGroup,
    as_json: Json = False,
) -> None:
    """Drop dead letters. After that they are never delivered.

    Dead letters that are being retried are kept.

    Example: `dispatcher dead-letters drop --reason too_many_hops --url mongodb://db.example.org`
    """
    from dispatcher.cli.connecting import with_group
    from dispatcher.operate import dead_letters

    wanted = filters.wanted()
    _check_selection(ids, wanted, all_=all_)

    chosen = with_group(lambda there: _chosen(there, ids, wanted), place)
    count = f"{len(chosen)} dead letter{'s' if len(chosen) != 1 else ''}"
    done = dead_letters.Dropped([], [])
    if chosen:
        confirm(f"Drop {count}? They can't be restored.", yes=yes)
        done = with_group(lambda there: dead_letters.drop(there.group, chosen), place)
    if as_json:
        print_json({what: [_named(one) for one in ids] for what, ids in done._asdict().items()})
        return
    out.print(f"{len(done.dropped)} dropped." if chosen else "No dead letters match.")
    if done.kept:
        out.print(f"{len(done.kept)} are being retried, and are kept.")


def _named(letter: str) -> dict[str, str]:
    """The short id and the id of a dead letter, for JSON."""
    from dispatcher.parking.record import short_id

    return {"id": short_id(letter), "letter": letter}


def _check_selection(ids: list[str], wanted: "Wanted", *, all_: bool) -> None:
    """Require ids, filters or --all: a missing filter must not select all dead letters."""
    if ids and (all_ or any(wanted)):
        raise typer.BadParameter("Give ids or filters, not both.", param_hint="ID")
    if not ids and not all_ and not any(wanted):
        raise typer.BadParameter("Give ids, filters or --all.", param_hint="ID")


async def _chosen(there: "GroupConnection", ids: list[str], wanted: "Wanted") -> list[str]:
    from dispatcher.operate import dead_letters

    if ids:
        return await dead_letters.resolve(there.group, ids)
    await _require(there, wanted)
    return await dead_letters.ids_of(there.group, wanted)


async def _require(there: "GroupConnection", wanted: "Wanted") -> None:
    """Raise an error for an unknown receiver. An empty list would hide that the name is misspelled."""
    from dispatcher.group.known_receivers import require_receiver

    if wanted.receiver is not None:
        await require_receiver(there.group, wanted.receiver, known=there.receivers)


async def _watched(coming: "AsyncIterator[Outcome]", count: int, *, quiet: bool) -> "list[Outcome]":
    """Wait for all outcomes, with a progress bar on a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    found = []
    columns = (TextColumn("retrying", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    shown = err.is_terminal and not quiet
    with Progress(*columns, console=err, transient=True, disable=not shown) as progress:
        task = progress.add_task("retrying", total=count)
        async for outcome in coming:
            found.append(outcome)
            progress.advance(task)
    return found
