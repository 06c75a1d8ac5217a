"""Configures clients of Kafka: the addresses of `--kafka`, and the properties of `--kafka-config`.

`--kafka-config` names a file with a property of librdkafka in each line, and with comments:

    # the cluster of the shop
    security.protocol = SASL_SSL
    sasl.username = relay
    sasl.password_FILE = /run/secrets/kafka

The value of a property `<name>_FILE` is the path of another file, which contains the value of `<name>`. A relative
path begins at the directory of the file with the properties.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from dispatcher.core.installation import how_to_install
from dispatcher.core.output.logs import log
from dispatcher.core.output.throttle import Throttle
from dispatcher.exceptions import KafkaError, NotInstalled
from dispatcher.kafka.admin import Admin
from dispatcher.settings import Settings

if TYPE_CHECKING:
    from confluent_kafka import Consumer, Producer

C = TypeVar("C")

PATIENCE: Final = 10.0
"""Seconds for each request about the cluster or the topic, unless the settings have another value."""

_FILE: Final = "_FILE"

# Properties that the dispatcher sets, each with the reason. With another value, most of them would cause lost or
# repeated changes.
_OURS: Final[Mapping[str, str]] = {
    "bootstrap.servers": "--kafka sets it",
    "metadata.broker.list": "--kafka sets it",
    **dict.fromkeys(
        (
            *("enable.idempotence", "enable.gapless.guarantee", "acks", "request.required.acks"),
            *("max.in.flight", "max.in.flight.requests.per.connection", "transactional.id"),
            *("retries", "message.send.max.retries", "queuing.strategy", "delivery.report.only.error"),
        ),
        "the relay sets it, so that no change is lost",
    ),
    **dict.fromkeys(
        (
            *("group.id", "enable.auto.commit", "enable.auto.offset.store", "auto.offset.reset"),
            *("enable.partition.eof", "isolation.level", "check.crcs", "group.instance.id"),
        ),
        "the dispatcher keeps positions itself",
    ),
    **dict.fromkeys(
        ("allow.auto.create.topics", "topic.metadata.refresh.sparse"), "the relay and `setup` create topics"
    ),
    **dict.fromkeys(
        (
            *("queue.buffering.max.messages", "queue.buffering.max.kbytes", "queued.max.messages.kbytes"),
            *("fetch.max.bytes", "fetch.message.max.bytes", "max.partition.fetch.bytes"),
        ),
        "--max-queued-mb sets it",
    ),
    "statistics.interval.ms": "the dispatcher measures its queues with it",
    "message.max.bytes": "the topic's max.message.bytes sets it",
    **dict.fromkeys(("log.queue", "log_level", "debug"), "--log-level sets it"),
}

_COMMON: Final[Mapping[str, Any]] = {
    "client.id": "mongoz-dispatcher",
    "allow.auto.create.topics": False,
    # By default, librdkafka waits for 1.6 seconds after each failure. A restarted broker often answers sooner.
    "reconnect.backoff.max.ms": 1_000,
}

_PRODUCER: Final[Mapping[str, Any]] = {
    "enable.idempotence": True,
    "acks": "all",
    "compression.type": "lz4",
}


class _Property(NamedTuple):
    """A property of the file.

    Attributes:
        line: the number of its line in the file.
    """

    name: str
    value: str
    line: int


class KafkaConfig(NamedTuple):
    """The brokers, and how clients connect to them.

    Attributes:
        servers: `host:port,...`.
        path: the path of the file with properties; None without one.
        patience: seconds for each request about the cluster or the topic.
    """

    servers: str
    path: Path | None = None
    properties: tuple[_Property, ...] = ()
    patience: float = PATIENCE

    def producer(self, **ours: Any) -> "Producer":
        """A new producer. It is idempotent, and waits for all in-sync replicas.

        Args:
            ours: further properties, with underscores instead of dots.

        Raises:
            KafkaError: a property is wrong.
        """
        from confluent_kafka import Producer  # noqa: PLC0415 - an extra

        return self._made(Producer, {**_PRODUCER, **_dotted(ours)})

    def consumer(self, group: str, **ours: Any) -> "Consumer":
        """A new consumer. It commits nothing by itself. `ours` is as in `producer`.

        Args:
            group: the consumer group, for tools of Kafka only.

        Raises:
            KafkaError: a property is wrong.
        """
        from confluent_kafka import Consumer  # noqa: PLC0415 - an extra

        own = {"group.id": group, "enable.auto.commit": False, "auto.offset.reset": "error"}
        return self._made(Consumer, {**own, **_dotted(ours)})

    def admin(self) -> Admin:
        """A new client for administration.

        Raises:
            KafkaError: a property is wrong.
        """
        from confluent_kafka.admin import AdminClient  # noqa: PLC0415 - an extra

        return Admin(lambda note: self._made(AdminClient, {"error_cb": note}), self.servers, self.patience)

    def property(self, name: str) -> str | None:
        """The value of a property of the file; None if it is not set."""
        return next((one.value for one in self.properties if one.name == name), None)

    def values(self, ours: Mapping[str, Any]) -> dict[str, Any]:
        """All properties of a client. The file can't set the properties in `_OURS`."""
        given = {one.name: one.value for one in self.properties}
        own: Mapping[str, Any] = {"bootstrap.servers": self.servers, "logger": _LOGGER}
        return {"error_cb": _log_error, **_COMMON, **ours, **given, **own}

    def _made(self, kind: Callable[[dict[str, Any]], C], ours: Mapping[str, Any]) -> C:
        try:
            return kind(self.values(ours))
        except Exception as error:  # KafkaException, or a ValueError of the client
            text = _text_of(error)
            culprit = self._culprit(kind, ours, text)
        place = f"--kafka {self.servers}"
        if culprit is not None:
            place = f"{self.path}, line {culprit.line}: {culprit.name}"
        elif self.path is not None:
            place = f"{place} with {self.path}"
        raise KafkaError(
            f"The client of Kafka does not accept its configuration: {place}: {text}",
            remedy="Correct the property: https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md "
            "lists all properties.",
        )

    def _culprit(
        self, kind: Callable[[dict[str, Any]], C], ours: Mapping[str, Any], text: str
    ) -> _Property | None:
        """The property that causes an error; None if no single property of the file causes it.

        The text of the error has older names for some properties. So each property is tried alone.
        """
        for one in self.properties:
            try:
                kind({"bootstrap.servers": self.servers, "log_level": 0, **ours, one.name: one.value})
            except Exception as error:
                if _text_of(error) == text:
                    return one
        return next((one for one in self.properties if one.name in text), None)


def load_config(servers: str, path: Path | None = None, patience: float = PATIENCE) -> KafkaConfig:
    """Read the configuration of clients, and check it.

    Args:
        servers: `host:port,...`.
        path: the path of a file with properties.
        patience: seconds for each request about the cluster or the topic.

    Raises:
        NotInstalled: the client of Kafka is not installed.
        KafkaError: an address or a property is wrong.
    """
    try:
        import confluent_kafka  # noqa: F401, PLC0415 - an extra
    except ImportError as error:
        raise NotInstalled(
            f"The client of Kafka can't be loaded: {error}.", remedy=how_to_install("kafka")
        ) from error
    return KafkaConfig(_checked(servers), path, () if path is None else tuple(_read(path)), patience)


def config_of(settings: Settings) -> KafkaConfig:
    """The configuration of clients of Kafka.

    Raises:
        NotInstalled: the client of Kafka is not installed.
        KafkaError: an address or a property is wrong.
    """
    assert settings.kafka is not None  # the caller has checked it
    return load_config(settings.kafka, settings.kafka_config, settings.connect_timeout)


def _checked(servers: str) -> str:
    """The addresses without spaces.

    Raises:
        KafkaError: one of them is not HOST:PORT.
    """
    addresses = [one.strip() for one in servers.split(",") if one.strip()]
    for one in addresses or [servers]:
        host, colon, port = one.rpartition(":")
        if not (host and colon and port.isdecimal() and port.isascii() and 0 < int(port) <= 65_535):
            raise KafkaError(
                f"--kafka is {servers!r}, but {one!r} in it is not HOST:PORT.",
                remedy="Write it like kafka-1.example.org:9092,kafka-2.example.org:9092.",
            )
    return ",".join(addresses)


def _read(path: Path) -> list[_Property]:
    properties: dict[str, _Property] = {}
    for number, line in enumerate(_text(path, f"--kafka-config {path}").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = (part.strip() for part in line.partition("="))
        place = f"{path}, line {number}"
        if not (name and equals):
            raise KafkaError(  # the message does not contain the line: it may be a password
                f"{place}: the line is not PROPERTY = VALUE.",
                remedy="Write a property of librdkafka in each line, or begin the line with #.",
            )
        name, value = _without_file(name, value, path, place)
        if name in _OURS:
            raise KafkaError(f"{place}: {name} can't be set here: {_OURS[name]}.", remedy="Remove the line.")
        if name in properties:
            raise KafkaError(
                f"{place}: {name} is also set in line {properties[name].line}.", remedy="Remove one of the lines."
            )
        properties[name] = _Property(name, value, number)
    return list(properties.values())


def _without_file(name: str, value: str, path: Path, place: str) -> tuple[str, str]:
    """Read the value of a property `<name>_FILE`. Editors end a file with a newline, which does not count."""
    if not name.endswith(_FILE):
        return name, value
    return name.removesuffix(_FILE), _text(path.parent / value, f"{place}: {name}").rstrip("\r\n")


def _text(path: Path, place: str) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise KafkaError(
            f"{place}: the file {path} can't be read: {text}.",
            remedy="Correct the path, and let the user of this process read the file.",
        ) from error


def _dotted(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name if name.endswith("_cb") or name == "on_commit" else name.replace("_", "."): one
        for name, one in properties.items()
    }


def _text_of(error: BaseException) -> str:
    """The text of an error of the client, without its class and numbers."""
    first = error.args[0] if error.args else error
    text = first.str() if hasattr(first, "str") else str(first)
    return text.rstrip(".") + "."


_throttle: Final = Throttle()


class _Count:
    """Counts the errors of the connections of this process."""

    errors = 0


def connection_errors() -> int:
    """The number of errors of connections to brokers since the start of this process."""
    return _Count.errors


class _ClientLog(logging.Handler):
    """Writes the lines of librdkafka to our log, at level debug, because other lines say the same."""

    def emit(self, record: logging.LogRecord) -> None:
        log.debug(record.getMessage(), action="kafka.client")


def _made_logger() -> logging.Logger:
    logger = logging.getLogger("dispatcher.kafka.client")
    logger.addHandler(_ClientLog())
    logger.propagate = False
    return logger


_LOGGER: Final = _made_logger()


def _log_error(error: Any) -> None:
    """Log an error of the connection. The client tries again by itself."""
    _Count.errors += 1
    further = _throttle.due(f"kafka.{error.name()}")
    if further is not None:
        log.warning(
            "the connection to Kafka has a problem; the client tries again",
            action="kafka.trouble",
            error=f"{error.name()}: {error.str()}",
            further=further,
        )
