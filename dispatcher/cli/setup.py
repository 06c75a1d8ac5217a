"""`dispatcher setup`."""

import asyncio
from dataclasses import asdict
from typing import Annotated

import typer

from dispatcher.cli.application import load_registry
from dispatcher.cli.options import App, Import, Json, settings_of
from dispatcher.cli.output import out, print_json
from dispatcher.core.output.terminal import Grid
from dispatcher.settings import Settings


def setup(
    app: App,
    imports: Import = [],  # noqa: B006 - typer copies it
    *,
    settings: Annotated[
        Settings,
        settings_of(
            "url",
            "deliver_everything",
            "kafka",
            "kafka_topic",
            "kafka_config",
            "partitions",
            "adopt",
            "connect_timeout",
            "state_database",
            "delivery_retention",
        ),
    ],
    no_images: Annotated[
        bool, typer.Option("--no-images", help="Do not turn on pre and post images, and create no collections.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Prepare the deployment for `run`. A second run of this command changes nothing.

    The command turns on pre and post images for every collection that a receiver of APP listens to, and creates
    missing collections. It creates the indexes of the dispatcher's state. It records the first position: the first
    `run` delivers the changes after it. With `--kafka` it creates a missing topic, and the first position is that
    of the relay.

    Example: `dispatcher setup shop.models:registry --import shop.receivers`
    """
    from dispatcher.core.output.logs import configure_logging

    configure_logging("auto", "warning")  # the log goes to stderr, the result to stdout
    from dispatcher.operate.setup import set_up

    registry = load_registry(app, imports)
    prepared = asyncio.run(set_up(registry, settings, app, images=not no_images))
    if as_json:
        print_json(asdict(prepared))
        return
    table = Grid()
    for name, done in prepared.images.items():
        table.add_row(f"images of {name}", done)
    if prepared.topic:
        table.add_row(f"topic {settings.kafka_topic}", prepared.topic)
    table.add_row(f"state in {settings.state_database}", prepared.state)
    table.add_row(f"position of {prepared.group}", prepared.position)
    out.print(table)
