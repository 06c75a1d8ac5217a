"""A secured Apache Kafka: the printed rights suffice, and wrong credentials are named."""

import re
import shlex
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

import mongoz
from dispatcher.exceptions import DispatcherError, ExitCode
from dispatcher.kafka.config import load_config
from dispatcher.operate.check import check, role_for
from dispatcher.operate.findings import Finding
from dispatcher.relay.check import check_relay, relay_role
from dispatcher.relay.service import RelayService, RelayTarget
from dispatcher.settings import Settings
from mongoz.core.signals import post_save
from tests.integration.deliveries import make_account
from tests.integration.relaying import Relaying, relay_name
from tests.kafka.security import PASSWORD, SecureKafka, secured
from tests.kafka.server import KafkaServer
from tests.support import PATIENCE, dispatching, eventually, settings_for

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def kafka(kafka_server: KafkaServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafka]:
    """A secured server. `kafka_server` skips the tests if Apache Kafka is not there."""
    with secured(tmp_path_factory.mktemp("secured")) as server:
        yield server


class World:
    """An application, and clients of the secured server."""

    def __init__(self, registry: mongoz.Registry, kafka: SecureKafka, directory: Path) -> None:
        self.registry = registry
        self.server = kafka.server
        self.client = kafka.client
        self.name = relay_name()
        self.topic = f"mongoz.{self.name}"
        self.patience = 30.0
        self._directory = directory

    def settings(self, user: str, **properties: str | None) -> Settings:
        """Settings of a process that connects as this user; a property can be replaced, or removed with None."""
        path = self._directory / f"{user}.properties"
        given = {**self.client, "sasl.username": user, **properties}
        path.write_text("".join(f"{key} = {value}\n" for key, value in given.items() if value is not None))
        return settings_for(
            self.registry,
            kafka=self.server.address,
            kafka_topic=self.topic,
            kafka_config=path,
            partitions=2,
            connect_timeout=self.patience,
        )

    def relay(self, settings: Settings) -> Relaying:
        assert settings.kafka is not None
        config = load_config(settings.kafka, settings.kafka_config, settings.connect_timeout)
        return Relaying(RelayService([self.registry], settings, RelayTarget(config, self.name, 2)))

    def reading(self, settings: Settings) -> Any:
        return dispatching(self.registry, **settings.model_dump(exclude_unset=True))

    def grant(self, role: str) -> None:
        """Grant the same rights as the commands that `--role` prints."""
        admin = AdminClient({"bootstrap.servers": self.server.address, "log_level": 0, **self.client})
        acls = [acl for command in commands_in(role) for acl in bindings_of(command)]
        for granted in admin.create_acls(acls).values():
            granted.result(PATIENCE)

    def committed(self, group: str) -> int:
        """The sum of the offsets that the dispatchers of a group have committed."""
        properties = {**self.client, "bootstrap.servers": self.server.address, "group.id": f"mongoz.{group}"}
        consumer = Consumer({**properties, "enable.auto.commit": False, "log_level": 0})
        try:
            found = consumer.committed(
                [TopicPartition(self.topic, number) for number in range(2)], timeout=PATIENCE
            )
        finally:
            consumer.close()
        return sum(max(0, one.offset) for one in found)


@pytest.fixture
def world(dispatched: mongoz.Registry, kafka: SecureKafka, tmp_path: Path) -> World:
    return World(dispatched, kafka, tmp_path)


@pytest.fixture
def got(dispatched: mongoz.Registry, database: str) -> list[str]:
    """The names of the delivered documents."""
    account, names = make_account(dispatched, database), []

    @post_save(account, name="saved")
    async def saved(sender: Any, instance: Any, **kwargs: Any) -> None:
        names.append(instance.name)

    return names


def commands_in(role: str) -> list[list[str]]:
    """The arguments of each command for Kafka in the output of `--role`."""
    (comment,) = re.findall(r"/\*.*?\n\n(.*?)\n\n\*/", role, re.DOTALL)
    return [shlex.split(line) for line in comment.replace("\\\n", "").splitlines()]


def bindings_of(command: list[str]) -> list[AclBinding]:
    """The ACLs that a command of kafka-acls.sh adds."""
    assert command[0] == "kafka-acls.sh"
    assert "--add" in command
    options = [(command[i], command[i + 1]) for i in range(len(command) - 1) if command[i].startswith("--")]
    values = dict(options)
    kind = ResourceType.TOPIC if "--topic" in values else ResourceType.GROUP
    operations = [value for option, value in options if option == "--operation"]
    return [
        AclBinding(
            kind,
            values.get("--topic", values.get("--group")),
            ResourcePatternType.LITERAL,
            values["--allow-principal"],
            "*",
            AclOperation[re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper()],
            AclPermissionType.ALLOW,
        )
        for name in operations
    ]


def wrong(found: list[Finding]) -> list[Finding]:
    return [one for one in found if one.level == "error"]


async def test_the_printed_rights_suffice_for_relay_and_dispatcher(
    world: World, got: list[str], foreign: Any, database: str
) -> None:
    publishing, reading = world.settings("publisher"), world.settings("reader")
    world.grant(relay_role([world.registry], publishing))
    assert wrong([one async for one in check_relay([world.registry], publishing)]) == []
    relay = world.relay(publishing)
    try:
        await relay.publishing()
        world.grant(role_for(world.registry, reading))
        assert wrong([one async for one in check(world.registry, reading)]) == []
        async with world.reading(reading):
            foreign["accounts"].insert_one({"name": "Ada", "amount": 1, "tags": []})
            await eventually(lambda: got == ["Ada"], what="the change is delivered")
            await eventually(lambda: world.committed(database) == 1, what="tools of Kafka see the offset")
    finally:
        await relay.stop()


async def run(world: World, settings: Settings) -> None:
    async with world.reading(settings):
        pass


async def relay(world: World, settings: Settings) -> None:
    running = world.relay(settings)
    try:
        await running.publishing()
    finally:
        await running.stop()


async def check_run(world: World, settings: Settings) -> None:
    raise_first(wrong([one async for one in check(world.registry, settings)]))


async def check_the_relay(world: World, settings: Settings) -> None:
    raise_first(wrong([one async for one in check_relay([world.registry], settings)]))


class FoundError(DispatcherError):
    """The only error that a check has found."""

    exit_code = ExitCode.KAFKA


def raise_first(found: list[Finding]) -> None:
    assert len(found) <= 1, found
    for one in found:
        assert one.topic == "kafka", one
        raise FoundError(one.text, remedy=one.remedy)


COMMANDS = [run, relay, check_run, check_the_relay]

Command = Callable[[World, Settings], Awaitable[None]]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("properties", "text", "remedy"),
    [
        pytest.param(
            {"sasl.password": "wrong"},
            r"refuses the user: SASL authentication error.*Invalid username or password",
            "sasl.password",
            id="password",
        ),
        pytest.param(
            {"sasl.mechanisms": "SCRAM-SHA-256"},
            r"refuses the user: SASL SCRAM-SHA-256 .*supported mechanisms: PLAIN",
            "sasl.mechanisms",
            id="mechanism",
        ),
        pytest.param(
            {"ssl.ca.location": None},
            r"The TLS connection to the broker of Kafka at 127.0.0.1:\d+ fails: .*certificate verify failed",
            "ssl.ca.location",
            id="certificate",
        ),
        pytest.param(
            {"security.protocol": None, "sasl.mechanisms": None, "sasl.username": None, "sasl.password": None},
            r"No broker of Kafka answers at 127.0.0.1:\d+ within .* The connections end without an answer",
            "security.protocol",
            id="no-tls",
        ),
    ],
)
async def test_wrong_credentials_are_named(
    world: World, got: list[str], command: Command, properties: dict[str, str | None], text: str, remedy: str
) -> None:
    world.patience = 2.0
    with pytest.raises(DispatcherError, match=text) as raised:
        await command(world, world.settings("reader", **properties))
    assert raised.value.exit_code == ExitCode.KAFKA
    assert remedy in raised.value.remedy
    assert PASSWORD not in raised.value.message


@pytest.mark.parametrize("command", COMMANDS)
async def test_a_user_without_rights_is_named(world: World, got: list[str], command: Command) -> None:
    with pytest.raises(DispatcherError, match=f"does not allow this user .* the topic '{world.topic}'") as raised:
        await command(world, world.settings("reader"))
    assert raised.value.exit_code == ExitCode.KAFKA
    assert "--role" in raised.value.remedy


@pytest.mark.parametrize("command", [run, check_run])
async def test_a_user_who_may_only_write_is_named(world: World, got: list[str], command: Command) -> None:
    settings = world.settings("publisher")
    world.grant(relay_role([world.registry], settings))
    await relay(world, settings)  # the relay creates the topic
    with pytest.raises(DispatcherError, match=f"may not read the topic '{world.topic}'") as raised:
        await command(world, settings)
    assert "--role" in raised.value.remedy


@pytest.mark.parametrize("command", [relay, check_the_relay])
async def test_a_user_who_may_only_read_is_named(world: World, got: list[str], command: Command) -> None:
    settings = world.settings("publisher")
    world.grant(relay_role([world.registry], settings))
    await relay(world, settings)  # the relay creates the topic
    reading = world.settings("reader")
    world.grant(role_for(world.registry, reading))
    with pytest.raises(DispatcherError, match=f"may not write the topic '{world.topic}'") as raised:
        await command(world, reading)
    assert "--role" in raised.value.remedy
