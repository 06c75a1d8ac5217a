"""Runs the demo."""

from collections.abc import Callable
from typing import Any

from dispatcher.demo.demo import Demo
from dispatcher.demo.kafka import KafkaDemo
from dispatcher.demo.shop import find_shop
from dispatcher.embedded.processes import stopped_by_signals


def demonstrate(
    seconds: float, report: Callable[[dict[str, Any]], None] | None = None, *, kafka: bool = False
) -> None:
    """Start a client that writes, and deliver its changes. Show writes and deliveries. Count lost deliveries.

    SIGINT and SIGTERM end the writing early. All earlier writes count.

    Args:
        report: called with the summary. If it is not None, the live view goes to stderr.
        kafka: whether a relay and two dispatchers deliver, over an embedded broker of Kafka. If False, one
            dispatcher reads a change stream.

    Raises:
        ApplicationError: the sample application is missing, or can't be imported.
        DemoFailed: see `Demo.run`.
        EmbeddedError: MongoDB or the broker can't be started.
    """
    kind = KafkaDemo if kafka else Demo
    with stopped_by_signals() as stop:
        kind(find_shop(), seconds, stop, report).run()
