"""`dispatcher run`."""

import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final

from dispatcher.cli.application import load_registry
from dispatcher.cli.options import WITH_FLAG, App, Import, settings_of
from dispatcher.settings import Settings

if TYPE_CHECKING:
    from dispatcher.supervise.lifeline import Role

# Seconds beyond --grace for an orderly shutdown: saving positions, releasing partitions, leaving the group.
_ORDERLY: Final = 15.0


def run(
    app: App,
    imports: Import = [],  # noqa: B006 - typer copies it
    *,
    settings: Annotated[Settings, settings_of(*WITH_FLAG)],
) -> None:
    """Deliver changes to the receivers of APP until stopped by SIGTERM or SIGINT.

    The first start delivers the changes made after it. Every later start continues where the last run ended, also
    after a crash. Several dispatchers of a group share the partitions. When one dies, the others take over its
    partitions. With `--processes`, one command starts several dispatchers on this machine. With `--kafka`,
    dispatchers read the changes from the topic of a relay, not from change streams.

    Example: `dispatcher run shop.models:registry --import shop.receivers`
    """
    from dispatcher.group.processes import process_count
    from dispatcher.supervise.lifeline import Role

    role = Role.of_this_process()
    within = settings.grace + _ORDERLY
    processes = process_count(settings.processes, streams=settings.kafka is None)
    if role is None and processes > 1:
        from dispatcher.supervise.supervisor import supervise

        _write_log(settings, process="supervisor")
        sys.exit(supervise(processes, settings, within=within))
    _dispatch(app, imports, settings, role, within)


def _dispatch(app: str, imports: Sequence[str], settings: Settings, role: "Role | None", within: float) -> None:
    """Run one dispatcher in this process."""
    from dispatcher.supervise.lifeline import Lifeline

    lifeline = None if role is None else Lifeline(role.path, within)
    _write_log(settings, **({} if role is None else {"process": role.name, "terminal": role.terminal}))
    from dispatcher.delivery.tracing import exporting
    from dispatcher.operate.claim_checks import warn_about_claims
    from dispatcher.runtime import main_loop
    from dispatcher.runtime.service import Service
    from dispatcher.web.server import Behind, Web

    registry = load_registry(app, imports)
    warn_about_claims(registry, settings.state_database)
    with exporting(settings):
        dispatcher = Service(registry, settings, app)
        web = Web(settings, dispatcher.observer, None if role is None else Behind(role.path, role.url))
        service = partial(web.beside, dispatcher.run)
        if lifeline is not None:
            service = partial(lifeline.beside, dispatcher, service)
        main_loop.run(service, within=within, forceable=lifeline is None)


def _write_log(settings: Settings, **options: Any) -> None:
    from dispatcher.core.output.logs import configure_logging
    from dispatcher.core.output.writer import replace_stream

    configure_logging(settings.log_format, settings.log_level, **options)
    replace_stream("stdout", "{} lines were dropped: stdout could not be written\n".format)
