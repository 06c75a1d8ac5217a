"""`dispatcher replay` and `dispatcher backfill`."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from dispatcher.cli.application import load_registry
from dispatcher.cli.options import App, Import, Json, Yes, settings_of
from dispatcher.cli.output import confirm, err, out, print_json
from dispatcher.core.output.commands import completed
from dispatcher.core.output.terminal import Grid, shown
from dispatcher.exceptions import ExitCode
from dispatcher.settings import Settings

if TYPE_CHECKING:
    from bson.timestamp import Timestamp

    from dispatcher.runs.backfill import Backfill
    from dispatcher.runs.player import RunOutcome, Workplace
    from dispatcher.runs.replay import Replay

# Seconds by which the server's clock may be ahead of ours.
_TOLERANCE: Final = 5

_MOST_WORKERS: Final = 64

Receivers = Annotated[
    list[str],
    typer.Option("--receiver", metavar="NAME", help="A receiver, by its name. Repeatable."),
]
Rate = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        help="Maximum number of changes or documents per second. By default there is no limit.",
    ),
]
Resume = Annotated[
    str | None,
    typer.Option(metavar="RUN", help="Continue this run, which was stopped or killed."),
]
New = Annotated[
    bool, typer.Option("--new", help="Start a new run, even if a run with the same request is not finished.")
]

_SETTINGS: Final = (
    "url",
    "deliver_everything",
    "concurrency",
    "attempts",
    "timeout",
    "grace",
    "connect_timeout",
    "state_database",
    "log_level",
)
_FROM_KAFKA: Final = ("kafka", "kafka_topic", "kafka_config")


def replay(  # noqa: PLR0913 - one parameter per flag
    app: App,
    since: Annotated[
        str | None,
        typer.Option(
            help="Changes since this point: a time (2026-01-31T12:00:00Z; UTC by default), a duration ago (2h, "
            "30min, 7d), a resume token, or a cluster time (1767225600,1).",
        ),
    ] = None,
    until: Annotated[str | None, typer.Option(help="Changes until this point. The default is now.")] = None,
    missed: Annotated[
        bool, typer.Option("--missed", help="Leave out the receivers that ran in the writing process.")
    ] = False,
    receivers: Receivers = [],  # noqa: B006 - typer copies it
    rate: Rate = None,
    resume: Resume = None,
    new: New = False,
    yes: Yes = False,
    imports: Import = [],  # noqa: B006 - typer copies it
    *,
    settings: Annotated[Settings, settings_of(*_SETTINGS, *_FROM_KAFKA, log_level="warning")],
    as_json: Json = False,
) -> None:
    """Deliver past changes again, to the named receivers or to all receivers.

    Without `--receiver`, the command lists all receivers, counts the changes, and asks first. `--yes` skips the
    question.

    The changes come from the oplog. With `--kafka`, they come from the topic of a relay, and only the changes that
    the topic does not hold come from the oplog.

    The replay runs in this process, and does not move the position of the dispatchers. Each delivery has a
    `delivery.id` of this run, and `delivery.replayed` is true. The changes of one document are delivered in
    their order. Receivers that ran in the writing process get the changes too, except with `--missed`. Muted
    writes stay muted. If the replay is stopped or killed, the same command continues it.

    The command exits with 1 if a delivery failed. A failed delivery becomes a dead letter.

    Example: `dispatcher replay shop.models:registry --since 2h --receiver shop.search.index`
    """
    if since is None and resume is None:
        raise typer.BadParameter("Give a start (--since) or a run to continue (--resume).", param_hint="--since")
    begin, end = _points(since, until)
    if begin is not None and not receivers and resume is None:
        confirm(lambda: _question(app, imports, settings, begin, end), yes=yes)
    asked = {"since": since, "until": until, "missed": missed or None}

    async def work(place: "Workplace", stop: asyncio.Event) -> "RunOutcome":
        from dispatcher.runs import replay

        run = await replay.start(
            place, receivers, since=begin, until=end, asked=asked, rate=rate, resume=resume, new=new
        )
        whole = max(1, run.until.time - run.begins.time)
        return await _shown(
            run, stop, lambda: (whole, max(0, run.at.time - run.begins.time)), "seconds of the past", as_json
        )

    _work(app, imports, settings, work, as_json)


def backfill(  # noqa: PLR0913 - one parameter per flag
    app: App,
    receivers: Receivers,
    where: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help="Only documents that match this filter: MongoDB's extended JSON, as for find().",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=_MOST_WORKERS,
            help="The number of workers; 1 by default. Each worker works on --concurrency documents at once. If "
            "the dispatchers deliver, each worker works on 100 documents at once in each partition.",
        ),
    ] = None,
    rate: Rate = None,
    resume: Resume = None,
    new: New = False,
    imports: Import = [],  # noqa: B006 - typer copies it
    *,
    settings: Annotated[Settings, settings_of(*_SETTINGS, log_level="warning")],
    as_json: Json = False,
) -> None:
    """Deliver existing documents to `post_save` receivers, with `created=False`.

    If dispatchers that have the receivers are alive, they deliver the documents, each after its earlier changes
    and before its later ones. If no such dispatcher is alive, this process delivers the documents, in the order of
    the `_id`s. `delivery.image` is "current" and `delivery.replayed` is true. If the backfill is stopped or
    killed, the same command continues it. The documents come from MongoDB, also if the group reads from Kafka.

    The command exits with 1 if a delivery failed. A failed delivery becomes a dead letter.

    Example: `dispatcher backfill shop.models:registry --receiver shop.search.index --rate 500`
    """
    wanted = None if where is None else _filter(where)

    async def work(place: "Workplace", stop: asyncio.Event) -> "RunOutcome":
        from dispatcher.runs import backfill

        run = await backfill.start(
            place, receivers, rate=rate, resume=resume, new=new, where=wanted, workers=workers
        )
        return await _shown(run, stop, lambda: (run.total, run.seen), "documents", as_json)

    # The environment may name a topic. A backfill needs none.
    _work(app, imports, settings.model_copy(update={"kafka": None}), work, as_json)


def _work(
    app: str,
    imports: list[str],
    settings: Settings,
    work: "Callable[[Workplace, asyncio.Event], Any]",
    as_json: bool,
) -> None:
    """Run a replay or a backfill until it is finished or stopped, and print the outcome."""
    from dispatcher.core.output.logs import configure_logging

    configure_logging("auto", settings.log_level)
    from dispatcher.delivery.tracing import exporting
    from dispatcher.runs.player import workplace
    from dispatcher.runtime.main_loop import run

    registry = load_registry(app, imports)
    outcomes: list[RunOutcome] = []

    async def main(stop: asyncio.Event) -> None:
        async with workplace(registry, settings) as place:
            outcomes.append(await work(place, stop))

    with exporting(settings):
        run(main)
    (outcome,) = outcomes
    if as_json:
        print_json(outcome._asdict())
    else:
        out.print(f"{'finished' if outcome.finished else 'stopped'}: run {outcome.run}")
        out.print(f"delivered {outcome.delivered}, failed {outcome.failed}")
        if outcome.waiting:
            out.print(f"{outcome.waiting} deliveries are parked; the dispatchers make them later")
        if outcome.dead_letters:
            listed = completed("`dispatcher dead-letters list` shows them")
            out.print(shown(f"{outcome.dead_letters} dead letters: {listed}"), soft_wrap=True)
        if not outcome.finished:
            out.print(f"the same command continues the run, or --resume {outcome.run}")
    if outcome.failed or not outcome.finished:
        raise typer.Exit(ExitCode.FAILED)


async def _shown(
    run: "Replay | Backfill",
    stop: asyncio.Event,
    progress: Callable[[], tuple[int, int]],
    unit: str,
    as_json: bool,
) -> "RunOutcome":
    """Run a replay or a backfill, with a progress bar on a terminal."""
    if as_json or not out.is_terminal:
        return await run.work(stop)
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit, markup=False),
    ]
    with Progress(
        *columns, TimeRemainingColumn(), TextColumn("{task.fields[figures]}", markup=False), console=out
    ) as bar:
        total, _ = progress()
        task = bar.add_task(run.run.id, total=total, figures="")

        def update() -> None:
            whole, done = progress()
            figures = f"{run.delivered} delivered, {run.failed} failed"
            bar.update(task, total=max(whole, done), completed=done, figures=figures)

        async def keep_updating() -> None:
            while True:
                update()
                await asyncio.sleep(0.2)

        updating = asyncio.create_task(keep_updating(), name="progress-bar")
        try:
            return await run.work(stop)
        finally:
            update()
            updating.cancel()
            with suppress(asyncio.CancelledError):
                await updating


def _question(
    app: str, imports: list[str], settings: Settings, begin: "Timestamp", end: "Timestamp | None"
) -> str:
    """Print what a replay for all receivers would deliver, and return the question about it."""
    from dispatcher.core.output.logs import configure_logging
    from dispatcher.runs.preview import preview_replay

    configure_logging("auto", settings.log_level)
    found = asyncio.run(preview_replay(load_registry(app, imports), settings, begin, end))
    table = Grid("collection", "signal", "receiver")
    for row in found.receivers:
        table.add_row(*row)
    err.print(table)
    number = "" if found.counted_all else "more than "
    count = "an unknown number of" if found.changes is None else f"{number}{found.changes}"
    err.print(f"Since {_text(begin)} until {_text(end)}: {count} change{'' if found.changes == 1 else 's'}.")
    return "Deliver these changes again to all of these receivers?"


def _text(time: "Timestamp | None") -> str:
    return "now" if time is None else f"{time.as_datetime():%Y-%m-%d %H:%M:%S} UTC"


def _filter(text: str) -> str:
    """A filter in one fixed form, so that equal filters are equal texts."""
    from bson import json_util

    from dispatcher.runs.selection import filter_of

    try:
        return json_util.dumps(filter_of(text), json_options=json_util.CANONICAL_JSON_OPTIONS)
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is no filter: {error}. Write MongoDB's extended JSON: "
            """'{"status": "new", "n": {"$gt": 5}}'.""",
            param_hint="--where",
        ) from error


def _points(since: str | None, until: str | None) -> "tuple[Timestamp | None, Timestamp | None]":
    from dispatcher.cli.parsing import point

    begin = None if since is None else point(since, "--since")
    end = None if until is None else point(until, "--until")
    now = datetime.now(UTC).timestamp() + _TOLERANCE
    for name, moment in (("--since", begin), ("--until", end)):
        if moment is not None and moment.time > now:
            raise typer.BadParameter(
                f"{moment.as_datetime().isoformat()} is in the future. Dispatchers deliver later changes "
                "when they happen.",
                param_hint=name,
            )
    if begin is not None and end is not None and end < begin:
        raise typer.BadParameter(
            f"The replay ends before it begins: --until is {end.as_datetime().isoformat()}, --since is "
            f"{begin.as_datetime().isoformat()}.",
            param_hint="--until",
        )
    return begin, end
