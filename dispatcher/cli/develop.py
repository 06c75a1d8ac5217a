"""`dispatcher demo` and `dispatcher dev`."""

from typing import Annotated

import typer

from dispatcher.cli.options import App, Import, Json, settings_of
from dispatcher.cli.output import print_json
from dispatcher.settings import Settings


def dev(
    app: App,
    imports: Import = [],  # noqa: B006 - typer copies it
    port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65_535,
            help="Port of the embedded MongoDB. By default a free port.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Directory for the data. By default a temporary one."),
    ] = None,
    *,
    settings: Annotated[Settings, settings_of("log_level")],
) -> None:
    """Run the dispatcher on an embedded MongoDB, and restart the dispatcher whenever code changes.

    APP's registry uses the embedded server. Start your application with the printed URL.

    Example: `dispatcher dev shop.models:registry`
    """
    from dispatcher.demo.reload import develop

    develop(app, imports, port=port, data=data, log_level=settings.log_level)


def demo(
    seconds: Annotated[
        float, typer.Option(min=1.0, max=600.0, help="Seconds for which the PyMongo client writes.")
    ] = 12.0,
    kafka: Annotated[
        bool,
        typer.Option(
            "--kafka",
            help="Deliver over Kafka: a relay and two workers on an embedded broker. The demo kills a worker and "
            "the relay.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Show how the changes of a client without mongoz are delivered, then count the lost changes.

    The demo starts an embedded MongoDB, the sample application under examples/shop, a dispatcher, and a plain
    PyMongo client in another process. The command exits with 1 if a change was lost. With `--json`, the summary
    goes to stdout and the live view to stderr. `--kafka` needs the extra embedded-kafka.

    Example: `dispatcher demo --seconds 30`
    """
    from dispatcher.demo import demonstrate

    demonstrate(seconds, print_json if as_json else None, kafka=kafka)
