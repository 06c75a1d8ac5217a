"""`dispatcher run`."""

from functools import partial
from typing import Annotated, Final, Literal

import typer

from dispatcher.cli.application import load_registry
from dispatcher.cli.options import App, Import, default, flag, make_settings
from dispatcher.core.output.logs import configure_logging
from dispatcher.core.output.writer import free

__all__ = ["add_to"]

# Seconds beyond --grace that an orderly end may take: it saves, hands over and says goodbye.
_ORDERLY: Final = 15.0


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="run")(_run)


def _run(  # noqa: PLR0913 - one parameter per flag
    app: App,
    imports: Import = [],  # noqa: B006 - typer copies it
    url: Annotated[str | None, flag("url")] = default("url"),
    deliver_everything: Annotated[bool, flag("deliver_everything")] = default("deliver_everything"),
    concurrency: Annotated[int, flag("concurrency")] = default("concurrency"),
    max_queued: Annotated[int, flag("max_queued")] = default("max_queued"),
    max_queued_mb: Annotated[int, flag("max_queued_mb")] = default("max_queued_mb"),
    batch_size: Annotated[int, flag("batch_size")] = default("batch_size"),
    attempts: Annotated[int, flag("attempts")] = default("attempts"),
    timeout: Annotated[float, flag("timeout")] = default("timeout"),
    park_after: Annotated[float, flag("park_after")] = default("park_after"),
    slow_after: Annotated[float, flag("slow_after")] = default("slow_after"),
    block_after: Annotated[float, flag("block_after")] = default("block_after"),
    grace: Annotated[float, flag("grace")] = default("grace"),
    save_interval: Annotated[float, flag("save_interval")] = default("save_interval"),
    idle_save_interval: Annotated[float, flag("idle_save_interval")] = default("idle_save_interval"),
    connect_timeout: Annotated[float, flag("connect_timeout")] = default("connect_timeout"),
    partitions: Annotated[int | None, flag("partitions")] = default("partitions"),
    adopt: Annotated[bool, flag("adopt")] = default("adopt"),
    lease: Annotated[float, flag("lease")] = default("lease"),
    on_history_lost: Annotated[Literal["fail", "resume", "backfill"], flag("on_history_lost")] = default(
        "on_history_lost"
    ),
    state_database: Annotated[str, flag("state_database")] = default("state_database"),
    delivery_retention: Annotated[float, flag("delivery_retention")] = default("delivery_retention"),
    dead_letter_retention: Annotated[float, flag("dead_letter_retention")] = default("dead_letter_retention"),
    http: Annotated[str, flag("http")] = default("http"),
    traces: Annotated[bool, flag("traces")] = default("traces"),
    log_format: Annotated[Literal["auto", "console", "json"], flag("log_format")] = default("log_format"),
    log_level: Annotated[Literal["debug", "info", "warning", "error"], flag("log_level")] = default("log_level"),
) -> None:
    """Deliver changes to the receivers of APP until stopped by SIGTERM or SIGINT.

    The first start begins now. Every later start continues where the last one stopped, however it ended.
    Several dispatchers of a group share the work: one of them holds each partition, and others take over when
    it dies.

    Example: `dispatcher run shop.models:registry --import shop.receivers`
    """
    settings = make_settings(
        url=url,
        deliver_everything=deliver_everything,
        concurrency=concurrency,
        max_queued=max_queued,
        max_queued_mb=max_queued_mb,
        batch_size=batch_size,
        attempts=attempts,
        timeout=timeout,
        park_after=park_after,
        slow_after=slow_after,
        block_after=block_after,
        grace=grace,
        save_interval=save_interval,
        idle_save_interval=idle_save_interval,
        connect_timeout=connect_timeout,
        partitions=partitions,
        adopt=adopt,
        lease=lease,
        on_history_lost=on_history_lost,
        state_database=state_database,
        delivery_retention=delivery_retention,
        dead_letter_retention=dead_letter_retention,
        http=http,
        traces=traces,
        log_format=log_format,
        log_level=log_level,
    )
    configure_logging(settings.log_format, settings.log_level)
    free("stdout", "{} lines were dropped: stdout could not be written\n".format)
    from dispatcher.delivery.tracing import exporting  # noqa: PLC0415 - likewise
    from dispatcher.runtime import service  # noqa: PLC0415 - the driver is only loaded by who connects
    from dispatcher.web.server import Web  # noqa: PLC0415 - likewise

    registry = load_registry(app, imports)
    with exporting(settings):
        dispatcher = service.Service(registry, settings, app)
        web = Web(settings, dispatcher.observer)
        service.run(partial(web.beside, dispatcher.run), within=settings.grace + _ORDERLY)
