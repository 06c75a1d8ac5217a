"""`dispatcher explain`."""

import asyncio
import json
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from dispatcher.cli.application import load_registry
from dispatcher.cli.options import AppOption, Import, Json, settings_of
from dispatcher.cli.output import out, print_json
from dispatcher.core.output.terminal import shown
from dispatcher.settings import Settings

if TYPE_CHECKING:
    from dispatcher.explain.report import ChangeReport, DocumentReport, ReceiverReport
    from mongoz import Registry

_SETTINGS: Final = ("url", "deliver_everything", "connect_timeout", "state_database", "log_level")
_WIDTH: Final = 80


def explain(
    collection: Annotated[str, typer.Argument(metavar="DB.COLL", help="The collection of the document.")],
    key: Annotated[
        str,
        typer.Argument(metavar="ID", help="The _id of the document: text, number, ObjectId or extended JSON."),
    ],
    since: Annotated[
        str,
        typer.Option(
            help="Changes since this point: a duration ago (2h, 30min, 7d), a time (2026-01-31T12:00:00Z; UTC by "
            "default), a resume token, or a cluster time (1767225600,1).",
        ),
    ] = "1h",
    app: AppOption = None,
    imports: Import = [],  # noqa: B006 - typer copies it
    *,
    settings: Annotated[Settings, settings_of(*_SETTINGS, log_level="warning")],
    as_json: Json = False,
) -> None:
    """Explain what happened to the changes of a document: why did my receiver not run?

    For each change since `--since`, the command lists the receivers of the change's signal. If a receiver does not
    get the change, the command shows the reason. Otherwise it shows what the state database says about the
    delivery. The command reads the changes from the oplog, even if the group reads from Kafka. It writes nothing,
    and calls no receiver.

    Example: `dispatcher explain shop.orders 65f1c0ffee65f1c0ffee65f1 --app shop.models:registry --since 2h`
    """
    from dispatcher.cli.parsing import point
    from dispatcher.core.keys import keys_named
    from dispatcher.core.output.logs import configure_logging
    from dispatcher.explain.report import explain as explained

    configure_logging("auto", settings.log_level)
    if app is None:
        raise typer.BadParameter(
            "Name the application: the command explains the receivers of this application.", param_hint="--app"
        )
    database, dot, name = collection.partition(".")
    begin = point(since, "--since")
    registry = load_registry(app, imports)
    if not (database and dot and name):
        raise typer.BadParameter(
            f"{collection!r} is no collection. Write the database and the collection: shop.orders."
            f"{_meant(collection, registry)}",
            param_hint="DB.COLL",
        )
    report = asyncio.run(explained(registry, settings, (database, name), keys_named(key), begin))
    if as_json:
        print_json(_plain(report))
    else:
        _print(report)


def _meant(name: str, registry: "Registry") -> str:
    """A hint for a name that lacks the database, or that is the name of a document class."""
    from mongoz.synonyms import nearest

    documents: tuple[Any, ...] = registry.all_documents
    names = {document.meta.collection.namespace: document for document in documents}
    short = {whole.partition(".")[2]: whole for whole in names}
    return nearest(name, names, {document.__name__: whole for whole, document in names.items()} | short)


def _plain(report: "DocumentReport") -> Any:
    from bson.json_util import RELAXED_JSON_OPTIONS, dumps

    plain = asdict(report)
    for change in plain["changes"]:
        change["id"] = json.loads(dumps(change["id"], json_options=RELAXED_JSON_OPTIONS))
        change["progress"] = None if change["progress"] is None else change["progress"]._asdict()
    return plain | {"tried": json.loads(dumps(plain["tried"], json_options=RELAXED_JSON_OPTIONS))}


def _print(report: "DocumentReport") -> None:
    _line(f"{report.namespace}, group {report.group}, changes since {report.since:%Y-%m-%d %H:%M:%S} UTC")
    if report.topic is not None:
        until = "nothing" if report.published is None else f"until {report.published:%Y-%m-%d %H:%M:%S} UTC"
        _line(
            f"The group reads from the topic {report.topic}. The relay has published {until}. A position is the "
            "place of a dispatcher in the topic."
        )
    for change in report.changes:
        _print_change(change)


def _print_change(change: "ChangeReport") -> None:
    out.print()
    names = f" ({', '.join(change.update_fields)})" if change.update_fields else ""
    document = "" if change.operation == "undecodable" else f" of {change.id!r}"
    what = f"{change.operation}{names}{document}"
    _line(f"{change.at:%Y-%m-%d %H:%M:%S}  {what}, by {change.by}")
    progress = change.progress
    if progress is None:
        _line("no dispatcher of the group has run", 2)
    else:
        at = "no position" if progress.passed is None else f"position {progress.passed:%Y-%m-%d %H:%M:%S}"
        holder = f"held by {progress.holder}" if progress.holder else "held by no dispatcher"
        _line(f"partition {progress.partition} of {progress.partitions}, {at}, {holder}", 2)
    _line(f"delivery.id {change.delivery_id}, {change.signal or 'no signal'}", 2)
    for receiver in change.receivers:
        _print_receiver(receiver)
    if not change.receivers:
        untouched = change.operation == "untouched"
        _line("only the stamp changed: no receiver gets it" if untouched else "no receiver listens to it", 2)


def _print_receiver(one: "ReceiverReport") -> None:
    letter = "" if one.letter is None else f" {one.letter}"
    due = "" if one.due_at is None else f"; due {one.due_at:%Y-%m-%d %H:%M:%S}"
    _line(f"{one.receiver}: {one.state}{letter}, {one.text}{due}", 2)


def _line(text: str, indent: int = 0) -> None:
    """Print a text in lines of 80 characters."""
    margin = " " * indent
    for line in textwrap.wrap(text, _WIDTH, initial_indent=margin, subsequent_indent=f"{margin}  "):
        out.print(shown(line))
