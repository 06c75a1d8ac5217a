"""`dispatcher claims`."""

from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer

from dispatcher.cli.options import Json, OfGroup, Yes
from dispatcher.cli.output import confirm, name_malformed, out, print_json
from dispatcher.core.output.terminal import Grid, shown
from dispatcher.core.stats import duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatcher.cli.connecting import GroupConnection
    from dispatcher.core.state_checks import Misfit
    from dispatcher.operate.status_model import BookStatus

_ENDED_BY: Final = {"process": "the process", "dispatcher": "a dispatcher", "operator": "an operator"}


def list_(
    *,
    limit: Annotated[
        int, typer.Option(min=0, help="Maximum number of processes, those with the newest beats first. 0 is all.")
    ] = 50,
    place: OfGroup,
    as_json: Json = False,
) -> None:
    """List the processes that run receivers for their own writes, with the claims that they have not finished.

    An open claim stands for a write whose receivers the process may still run. Released claims are left to the
    dispatchers. If the process writes no beat for four fifths of the timeout of its claims (`claims=` of its
    registry), a dispatcher takes over its open claims. A process whose claims have ended stays in the list for
    `--delivery-retention` of `run`. If it still lives, its later claims are in a second row, with a new id.

    Example: `dispatcher claims list --url mongodb://db.example.org`
    """
    from dispatcher.cli.connecting import with_group
    from dispatcher.operate import claims

    async def look(there: "GroupConnection") -> "tuple[list[BookStatus], list[Misfit], int, datetime]":
        now = await claims.server_time(there.group)
        found, misfits = await claims.books_of(there.group, now, limit)
        total = len(found)
        if limit and total + len(misfits) == limit:
            total = await claims.count_books(there.group)
        return found, misfits, total, now

    found, misfits, total, now = with_group(look, place)
    name_malformed(misfits)
    if as_json:
        print_json([asdict(one) for one in found])
        return
    if not found:
        out.print("No process has claimed anything.")
        return
    out.print(table_of(found, now))
    if total > len(found):
        out.print(f"{len(found)} of {total}; --limit 0 shows all.")


def release(
    process: Annotated[
        str,
        typer.Argument(
            metavar="PROCESS",
            help="The id of the process in `dispatcher claims list`. Its first characters are enough if they are "
            "unique.",
        ),
    ],
    *,
    yes: Yes = False,
    place: OfGroup,
    as_json: Json = False,
) -> None:
    """Release the claims of a process: the dispatchers make the deliveries that it has not finished.

    Without this command, the dispatchers make them only if the process writes no beat for four fifths of its
    timeout. Use the command for a process that is alive, but whose receivers hang. The process is not stopped. At
    its next beat it notices the release, starts no further receiver of the released claims, and claims its later
    writes under a new id. Receivers that it runs until then may run twice, with the same `delivery.id`.

    Example: `dispatcher claims release 5f2b8c --url mongodb://db.example.org`
    """
    from dispatcher.cli.connecting import with_group
    from dispatcher.operate import claims

    async def look(there: "GroupConnection") -> "BookStatus":
        return await claims.resolve(there.group, process, await claims.server_time(there.group))

    book = with_group(look, place)
    changed = False
    if book.fenced_at is None:
        question = f"Release {_open(book)} of {_named(book)}? {_consequence(book)}"
        confirm(question, yes=yes)
        changed = with_group(lambda there: claims.release(there.group, book.process), place)
    if as_json:
        print_json({"process": book.process, "changed": changed, "open": book.open, "alive": book.alive})
    elif changed:
        out.print(shown(f"Released {_open(book)} of {_named(book)}."))
        out.print(shown(_consequence(book)))
    else:
        out.print(shown(f"Nothing to do: the claims of {_named(book)} have ended already."))


def table_of(books: "Sequence[BookStatus]", now: datetime) -> Grid:
    """A table of books.

    Args:
        now: the time by the server's clock.
    """
    table = Grid("process", "host", "pid", "since", "last beat", "open", "released", "waiting", "state")
    for one in books:
        table.add_row(
            one.process,
            one.host or "",
            "" if one.pid is None else str(one.pid),
            "" if one.started_at is None else f"{one.started_at:%Y-%m-%d %H:%M:%S}",
            _ago(one.beat_at, now),
            str(one.open),
            str(one.released),
            str(one.waiting),
            shown(_state(one, now), "red" if one.fenced_at is None and not one.alive else ""),
        )
    return table


def _state(book: "BookStatus", now: datetime) -> str:
    if book.fenced_at is None:
        return "alive" if book.alive else "silent"
    return (
        f"claims ended by {_ENDED_BY.get(book.fenced_by or '', 'an unknown program')} {_ago(book.fenced_at, now)}"
    )


def _ago(moment: datetime, now: datetime) -> str:
    return f"{duration((now - moment).total_seconds())} ago"


def _open(book: "BookStatus") -> str:
    return f"{book.open} open claim{'' if book.open == 1 else 's'}"


def _named(book: "BookStatus") -> str:
    return f"process {book.process} ({book.host}, pid {book.pid})"


def _consequence(book: "BookStatus") -> str:
    """The effects of a release."""
    text = "The dispatchers make the deliveries that the process has not finished."
    if not book.alive:
        return text
    return (
        f"{text} The process is not stopped: it goes on under a new id within {duration(book.seconds / 5)}. "
        "Receivers that it runs until then may run twice, with the same delivery.id."
    )
