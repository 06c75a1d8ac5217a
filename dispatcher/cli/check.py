"""`dispatcher check`."""

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from dispatcher.cli.application import load_registry
from dispatcher.cli.options import App, Import, Json, settings_of
from dispatcher.cli.output import out, print_json
from dispatcher.core.output.terminal import Grid, shown
from dispatcher.core.redaction import redacted
from dispatcher.exceptions import ApplicationError, ExitCode
from dispatcher.settings import Settings

if TYPE_CHECKING:
    from dispatcher.operate.check import Finding

_STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


def check(
    app: App,
    imports: Import = [],  # noqa: B006 - typer copies it
    *,
    settings: Annotated[
        Settings,
        settings_of("url", "deliver_everything", "connect_timeout", "state_database", "delivery_retention"),
    ],
    role: Annotated[
        bool, typer.Option("--role", help="Print the createRole command with the least rights instead.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check whether `run` would work, and report problems. This command changes nothing.

    Each line is one check, and each problem has a remedy. The command exits with 1 if `run` would fail or would
    not deliver some changes. It exits with 0 if there are only warnings.

    Example: `dispatcher check shop.models:registry --import shop.receivers`

    With `--role`: `dispatcher check shop.models:registry --role | mongosh "mongodb://admin@db.example.org"`
    """
    from dispatcher.core.output.logs import configure_logging

    configure_logging("auto", "warning")  # to stderr; findings go to stdout
    from dispatcher.operate import check as checks

    if role:
        print(checks.role_for(load_registry(app, imports), settings))  # noqa: T201 - mongosh reads the output: no line may wrap
        return

    async def findings() -> "list[Finding]":
        try:
            registry = load_registry(app, imports)
        except ApplicationError as error:
            return [checks.Finding("error", "application", error.message, error.remedy)]
        return [finding async for finding in checks.check(registry, settings, app)]

    found = asyncio.run(findings())
    if as_json:
        print_json([finding._asdict() for finding in found])
    else:
        _print(found)
    if any(finding.level == "error" for finding in found):
        raise typer.Exit(ExitCode.FAILED)


def _print(found: "list[Finding]") -> None:
    table = Grid()
    table.add_column()
    table.add_column()
    table.add_column(overflow="fold")
    for finding in found:
        table.add_row(shown(finding.level, _STYLES[finding.level]), finding.topic, redacted(finding.text))
        if finding.remedy:
            table.add_row("", "", shown(f"-> {redacted(finding.remedy)}", "dim"))
    out.print(table)
