"""`dispatcher run`."""

from functools import partial
from typing import Annotated, Final

from dispatcher.cli.application import load_registry
from dispatcher.cli.options import WITH_FLAG, App, Import, settings_of
from dispatcher.settings import Settings

# Seconds beyond --grace for an orderly shutdown: saving positions, releasing partitions, leaving the group.
_ORDERLY: Final = 15.0


def run(
    app: App,
    imports: Import = [],  # noqa: B006 - typer copies it
    *,
    settings: Annotated[Settings, settings_of(*WITH_FLAG)],
) -> None:
    """Deliver changes to the receivers of APP until stopped by SIGTERM or SIGINT.

    The first start delivers changes from now on. Every later start continues where the last one stopped, after a
    crash too. Several dispatchers of a group share the partitions. When one dies, the others take over its
    partitions.

    Example: `dispatcher run shop.models:registry --import shop.receivers`
    """
    from dispatcher.core.output.logs import configure_logging
    from dispatcher.core.output.writer import replace_stream

    configure_logging(settings.log_format, settings.log_level)
    replace_stream("stdout", "{} lines were dropped: stdout could not be written\n".format)
    from dispatcher.delivery.tracing import exporting
    from dispatcher.runtime import main_loop
    from dispatcher.runtime.service import Service
    from dispatcher.web.server import Web

    registry = load_registry(app, imports)
    with exporting(settings):
        dispatcher = Service(registry, settings, app)
        web = Web(settings, dispatcher.observer)
        main_loop.run(partial(web.beside, dispatcher.run), within=settings.grace + _ORDERLY)
