"""Commands that look and change nothing: `receivers` and `position show`."""

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError
from rich.table import Table

from dispatcher.application import load_registry
from dispatcher.cli.options import App, Import, Json, default, flag
from dispatcher.cli.output import out, print_json
from dispatcher.exceptions import ApplicationError, CannotConnect, ExitCode
from dispatcher.failures import fatal, in_short
from dispatcher.positions import PositionStore
from dispatcher.routing import Routes
from mongoz import Registry

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(name="receivers")(_receivers)
    position = typer.Typer(help="The saved position.", no_args_is_help=True)
    position.command(name="show")(_show_position)
    app.add_typer(position, name="position")


def _receivers(app: App, imports: Import = [], as_json: Json = False) -> None:  # noqa: B006 - typer's way
    """List who listens to what in the dispatcher, and where it is defined.

    Example: `dispatcher receivers shop.models:registry`
    """
    registry = load_registry(app, imports)
    routes = Routes(registry.all_documents, registry.dispatched or "default")
    rows = [
        {
            "collection": listener.document.meta.collection.namespace,
            "document": listener.document.__name__,
            "signal": signal,
            "receiver": receiver.name,
            "delivery": receiver.delivery,
            "where": receiver.defined_at,
        }
        for listener in routes.listeners
        for signal, receivers in listener.receivers.items()
        for receiver in receivers
    ]
    if as_json:
        print_json(rows)
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("collection", "document", "signal", "receiver", "delivery", "defined at"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    out.print(table if rows else "No receiver of this application may run in the dispatcher.")


def _show_position(
    app: App,
    url: Annotated[str | None, flag("url")] = default("url"),
    state_database: Annotated[str, flag("state_database")] = default("state_database"),
    max_age: Annotated[
        float | None,
        typer.Option(help="Exit with 1 if the last save is older than this many seconds: a health check."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show up to where everything is delivered, and when that was saved.

    A running dispatcher saves its position at least every ten seconds, on an idle stream too.

    Example: `dispatcher position show shop.models:registry --max-age 60`
    """
    registry = load_registry(app)
    found = asyncio.run(_peek(registry, url or registry.url, state_database))
    shown = _readable(found) if found else {}
    age = shown.get("age_seconds")
    if as_json:
        print_json(shown)
    elif found:
        for name, value in shown.items():
            out.print(f"[bold]{name:>14}[/]  {value}")
    else:
        out.print("No position was ever saved: no dispatcher of this group has run here yet.")
    if max_age is not None and (age is None or age > max_age):
        raise typer.Exit(ExitCode.FAILED)


async def _peek(registry: Registry, url: str | None, database: str) -> dict[str, Any] | None:
    if url is None:
        raise ApplicationError("The registry was made from a client.", remedy="Name the server with --url.")
    async with AsyncMongoClient[dict[str, Any]](url, serverSelectionTimeoutMS=5_000, tz_aware=True) as client:
        try:
            return await PositionStore(client, database, registry.dispatched or "default").peek()
        except PyMongoError as error:
            raise (
                fatal(error, registry.address)
                or CannotConnect(
                    f"No MongoDB server answers at {registry.address}: {in_short(error)}",
                    remedy="Is it running, is the URL right, and may this machine reach it?",
                )
            ) from error


def _readable(found: dict[str, Any]) -> dict[str, Any]:
    saved_at: datetime | None = found.get("saved_at")
    cluster_time = found.get("cluster_time")
    return {
        "position": found["_id"],
        "term": found["term"],
        "owner": f"{found.get('host')}, pid {found.get('pid')}" if "pid" in found else "nobody yet",
        "up_to": cluster_time.as_datetime().isoformat() if cluster_time else None,
        "saved_at": saved_at.isoformat() if saved_at else None,
        "age_seconds": round((datetime.now(UTC) - saved_at.replace(tzinfo=UTC)).total_seconds(), 1)
        if saved_at
        else None,
        "finished_ahead": len(found.get("ahead") or ()),
        "token": found.get("token"),
        "fingerprint": found.get("fingerprint"),
    }
