"""`dispatcher check`."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from dispatcher.cli.application import load_registries
from dispatcher.cli.options import Apps, Import, Json, settings_of
from dispatcher.cli.output import out, print_json
from dispatcher.core.output.commands import completed
from dispatcher.core.output.terminal import Grid, shown
from dispatcher.core.redaction import redacted
from dispatcher.exceptions import ApplicationError, ExitCode
from dispatcher.settings import Settings

if TYPE_CHECKING:
    from dispatcher.operate.findings import Finding
    from mongoz import Registry

_STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


def check(
    apps: Apps,
    imports: Import = [],  # noqa: B006 - typer copies it
    *,
    settings: Annotated[
        Settings,
        settings_of(
            *("url", "deliver_everything", "kafka", "kafka_topic", "kafka_config", "partitions"),
            *("connect_timeout", "state_database", "delivery_retention"),
        ),
    ],
    relay: Annotated[
        bool,
        typer.Option("--relay", help="Check `relay` instead of `run`, for one or more APP. It needs --kafka."),
    ] = False,
    role: Annotated[
        bool,
        typer.Option(
            "--role",
            help="Instead of the checks, print createRole commands with the least rights for the dispatchers and "
            "the application. With --kafka, print the commands of kafka-acls.sh too.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Check whether `run` would work, and report problems. This command changes nothing.

    Each line is one check, and each problem has a remedy. The command exits with 1 if `run` would fail or would
    not deliver some changes. It exits with 0 if there are only warnings. With `--kafka` it also checks the
    brokers, the topic and its relay. With `--relay` it checks `relay` instead.

    Example: `dispatcher check shop.models:registry --import shop.receivers`

    With `--role`: `dispatcher check shop.models:registry --role | mongosh "mongodb://admin@db.example.org"`
    """
    if relay and settings.kafka is None:
        raise typer.BadParameter(
            "A relay publishes to Kafka. Name its brokers with --kafka.", param_hint="--relay"
        )
    if len(apps) > 1 and not relay:
        raise typer.BadParameter(
            "`run` serves one APP. To check a `relay` of several APP, add --relay.", param_hint="APP"
        )
    from dispatcher.core.output.logs import configure_logging

    configure_logging("auto", "warning")  # to stderr; findings go to stdout
    if role:
        print(_role(load_registries(apps, imports), settings, relay=relay))  # noqa: T201 - mongosh reads the output: no line may wrap
        return
    raw = asyncio.run(_findings(apps, imports, settings, relay=relay))
    found = [one._replace(remedy=completed(one.remedy)) for one in raw]
    if as_json:
        print_json([finding._asdict() for finding in found])
    else:
        _print(found)
    if any(finding.level == "error" for finding in found):
        raise typer.Exit(ExitCode.FAILED)


async def _findings(
    apps: Sequence[str], imports: Sequence[str], settings: Settings, *, relay: bool
) -> "list[Finding]":
    from dispatcher.operate.findings import Finding

    try:
        registries = load_registries(apps, imports)
    except ApplicationError as error:
        return [Finding.of("application", error)]
    return [finding async for finding in _checks(registries, settings, apps, relay=relay)]


def _checks(
    registries: "Sequence[Registry]", settings: Settings, apps: Sequence[str], *, relay: bool
) -> "AsyncIterator[Finding]":
    if relay:
        from dispatcher.relay.check import check_relay

        return check_relay(registries, settings, apps)
    from dispatcher.operate.check import check as check_run

    return check_run(registries[0], settings, apps[0])


def _role(registries: "Sequence[Registry]", settings: Settings, *, relay: bool) -> str:
    if relay:
        from dispatcher.relay.check import relay_role

        return relay_role(registries, settings)
    from dispatcher.operate.check import role_for

    return role_for(registries[0], settings)


def _print(found: "list[Finding]") -> None:
    widths = [max((len(one[at]) for one in found), default=0) for at in (0, 1)]
    for finding in found:
        table = Grid()
        for width in widths:
            table.add_column(width=width)
        table.add_column(overflow="fold")
        table.add_row(shown(finding.level, _STYLES[finding.level]), finding.topic, redacted(finding.text))
        out.print(table)
        if finding.remedy:  # without line breaks, so that a command in it can be pasted
            indent = " " * (sum(widths) + len(widths))
            out.print(shown(f"{indent}-> {redacted(finding.remedy)}", "dim"), soft_wrap=True)
