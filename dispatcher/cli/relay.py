"""`dispatcher relay`."""

import re
from functools import partial
from typing import Annotated, Final

import typer

from dispatcher.cli.application import load_registries
from dispatcher.cli.options import Apps, Import, settings_of
from dispatcher.settings import MOST_PARTITIONS, Settings

# Seconds beyond --grace for an orderly shutdown: saving the position, releasing the lease, leaving the group.
_ORDERLY: Final = 20.0

_SETTINGS: Final = (
    *("url", "deliver_everything", "connect_timeout", "state_database", "lease", "on_history_lost", "adopt"),
    *("kafka_config", "max_queued_mb", "batch_size", "grace", "save_interval", "idle_save_interval"),
    *("http", "log_format", "log_level"),
)


# The name of a topic after the prefix "mongoz.": the allowed characters, and how many are allowed.
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,242}")


def _require_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise typer.BadParameter(f"{name!r} must have 1 to 242 characters: letters, digits, '.', '_' and '-'.")
    return name


Brokers = Annotated[
    str,
    typer.Option(
        "--kafka",
        metavar="HOST:PORT,...",
        help="Brokers of Kafka to connect to first.",
        envvar="DISPATCHER_KAFKA",
    ),
]

RelayName = Annotated[
    str,
    typer.Option(
        "--name",
        help="The name of the relay: letters, digits, '.', '_' and '-'. Its topic is mongoz.NAME.",
        callback=_require_name,
        envvar="DISPATCHER_RELAY_NAME",
    ),
]

Partitions = Annotated[
    int | None,
    typer.Option(
        "--partitions",
        min=1,
        max=MOST_PARTITIONS,
        help="Number of partitions with which the topic is created, 1 to 256; by default 32. This number can't "
        "be changed later.",
        envvar="DISPATCHER_RELAY_PARTITIONS",
    ),
]


def relay(
    apps: Apps,
    imports: Import = [],  # noqa: B006 - typer copies it
    *,
    kafka: Brokers,
    name: RelayName = "changes",
    partitions: Partitions = None,
    settings: Annotated[Settings, settings_of(*_SETTINGS)],
) -> None:
    """Publish the changes of APP's collections to a topic of Kafka until stopped by SIGTERM or SIGINT.

    Only the relay reads the change stream. Any number of dispatchers can read from the topic without further
    load on the MongoDB server. The first start creates the topic, and publishes the changes made after it. A
    second relay of the same name stands by, and takes over when the first one dies.

    Example: `dispatcher relay shop.models:registry --import shop.receivers --kafka localhost:9092`
    """
    if settings.on_history_lost == "backfill":
        raise typer.BadParameter(
            "A relay has no receivers, so it can't deliver current documents. Choose fail or resume; dispatchers "
            "that read the topic decide about the gap by their own --on-history-lost.",
            param_hint="--on-history-lost",
        )
    from dispatcher.core.output.logs import configure_logging
    from dispatcher.core.output.writer import replace_stream
    from dispatcher.kafka.config import load_config

    configure_logging(settings.log_format, settings.log_level)
    replace_stream("stdout", "{} lines were dropped: stdout could not be written\n".format)
    config = load_config(kafka, settings.kafka_config, settings.connect_timeout)
    from dispatcher.relay.service import RelayService, RelayTarget
    from dispatcher.runtime import main_loop
    from dispatcher.web.server import Web

    target = RelayTarget(config, name, partitions, apps)
    service = RelayService(load_registries(apps, imports), settings, target)
    web = Web(settings, service.observer)
    main_loop.run(partial(web.beside, service.run), within=settings.grace + _ORDERLY)
