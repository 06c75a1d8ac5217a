"""Mistakes with Kafka: each command works, or its error or warning names the mistake and the remedy."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import pytest
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewPartitions
from pymongo import AsyncMongoClient
from structlog.testing import capture_logs

import mongoz
from dispatcher.core.state import Group, State
from dispatcher.exceptions import DispatcherError, ExitCode
from dispatcher.kafka.config import load_config
from dispatcher.kafka.envelope import encode
from dispatcher.operate.check import check
from dispatcher.operate.findings import Finding
from dispatcher.position.store import FirstPosition, PositionStore
from dispatcher.relay.check import check_relay
from dispatcher.relay.service import RelayService, RelayTarget
from dispatcher.settings import Settings
from mongoz.core.signals import post_save
from tests.integration.deliveries import make_account
from tests.integration.relaying import Relaying, relay_name
from tests.kafka.publisher import Publisher
from tests.kafka.server import KafkaServer
from tests.support import PATIENCE, Running, dispatching, eventually, settings_for

pytestmark = pytest.mark.slow

COMMANDS = ("run", "relay", "check run", "check relay")


class World:
    """An application, and the topic that its commands name.

    Attributes:
        wrong: settings with a mistake in them.
    """

    def __init__(self, registry: mongoz.Registry, database: str, server: KafkaServer, state: State) -> None:
        self.registry = registry
        self.database = database
        self.address = server.address
        self.state = state
        self.name = relay_name()
        self.topic = f"mongoz.{self.name}"
        self.publisher = Publisher(server.address, f"{database}.accounts", 2, self.topic)
        self.admin = AdminClient({"bootstrap.servers": server.address, "log_level": 0})
        self.wrong: dict[str, Any] = {}

    async def publish(self) -> None:
        """Create the topic, and the state of a relay that publishes to the topic."""
        self.publisher.create(**{"message.timestamp.type": "LogAppendTime"})
        await self.publisher.begin(self.state)
        store = PositionStore(Group(self.state, self.topic), "relay")
        await store.begin(1, {0: FirstPosition(self.publisher.token, "f")}, new=True)

    def configure(self, name: str, value: str) -> None:
        """Change a property of the topic."""
        entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ConfigResource.Type.TOPIC, self.topic, incremental_configs=[entry])
        self.admin.incremental_alter_configs([resource])[resource].result(PATIENCE)

    @property
    def settings(self) -> Settings:
        given = {"kafka": self.address, "kafka_topic": self.topic, "connect_timeout": 30.0, "grace": 30.0}
        return settings_for(self.registry, **{**given, **self.wrong})


@pytest.fixture
def world(
    dispatched: mongoz.Registry, database: str, kafka_server: KafkaServer, client: AsyncMongoClient[Any]
) -> World:
    account = make_account(dispatched, database)

    @post_save(account, name="saved")
    async def saved(sender: Any, **kwargs: Any) -> None:
        """Does nothing."""

    return World(dispatched, database, kafka_server, State(client, f"{database}_state"))


# -- the mistakes -------------------------------------------------------------------------------------------


async def a_wrong_address(world: World) -> None:
    world.wrong = {"kafka": "127.0.0.1:1", "connect_timeout": 1.0}


async def an_unknown_host(world: World) -> None:
    world.wrong = {"kafka": "nowhere.invalid:9092", "connect_timeout": 1.0}


async def no_port(world: World) -> None:
    world.wrong = {"kafka": "kafka.example.org"}


async def an_unpublished_collection(world: World) -> None:
    await world.publish()
    other = make_account(world.registry, world.database, "others")

    @post_save(other, name="other")
    async def saved(sender: Any, **kwargs: Any) -> None:
        """Does nothing."""


async def a_missing_topic(world: World) -> None:
    """Nothing to do."""


async def a_deleted_topic(world: World) -> None:
    await world.publish()
    world.publisher.delete()


async def a_requested_number_of_partitions(world: World) -> None:
    await world.publish()
    world.wrong = {"partitions": 3}


async def a_grown_topic(world: World) -> None:
    await world.publish()
    world.admin.create_partitions([NewPartitions(world.topic, 5)])[world.topic].result(PATIENCE)
    await eventually(
        lambda: len(world.admin.list_topics(world.topic, PATIENCE).topics[world.topic].partitions) == 5
    )


async def compaction(world: World) -> None:
    await world.publish()
    world.configure("cleanup.policy", "compact")


async def a_short_retention(world: World) -> None:
    await world.publish()
    world.configure("retention.ms", "1")


async def another_cluster(world: World) -> None:
    await world.publish()
    await world.state.relays.update_one({"_id": world.topic}, {"$set": {"cluster": "earlier"}})


async def another_topic_of_the_name(world: World) -> None:
    await world.publish()
    world.publisher.delete()
    await asyncio.to_thread(recreate, world.publisher)
    await world.publisher.known_layout()


def recreate(publisher: Publisher) -> None:
    """Create a topic again, as soon as the brokers have deleted it."""
    while True:
        try:
            publisher.create()
        except Exception as error:
            if "TOPIC_ALREADY_EXISTS" not in str(error):
                raise
        else:
            return


async def a_foreign_message(world: World) -> None:
    await world.publish()
    world.publisher.send(b"hello", 1)


async def a_foreign_relay(world: World) -> None:
    await world.publish()
    world.publisher.send(encode(world.publisher.term + 1, 0, world.publisher.made("insert", 1)))


async def a_topic_with_records_of_an_unknown_relay(world: World) -> None:
    await world.publish()
    world.publisher.send(b"hello", 1)
    await world.state.relays.delete_one({"_id": world.topic})
    await world.state.positions.delete_many({"group": world.topic})


class Refused(NamedTuple):
    """The command ends with an error, or `check` finds an error."""

    text: str
    code: ExitCode = ExitCode.TOPIC


class Warned(NamedTuple):
    """The command works, and warns."""

    text: str


FINE = None
NO_BROKER = Refused(r"No broker of Kafka answers at 127\.0\.0\.1:1 within 1 s.*Connection refused", ExitCode.KAFKA)
NO_HOST = Refused(r"nowhere\.invalid:9092: Failed to resolve", ExitCode.KAFKA)
NO_PORT = Refused(r"'kafka\.example\.org' in it is not HOST:PORT", ExitCode.KAFKA)
COMPACTED = Refused(r"is compacted \(cleanup\.policy is compact\)")
SHORT = Warned(r"keeps records for 0 s, and the oplog reaches back")
OTHER_CLUSTER = Refused(r"is in the Kafka cluster .*, and the state knows it in earlier")
UNPUBLISHED = Refused(r"does not publish the changes of test_\w+\.others")
MALFORMED = Refused(r"partition 1 of the topic 'mongoz\.\w+', offset 0: ")
FOREIGN = Refused(r"partition 0 of the topic .* has records of the term .*another program, or a relay")
UNKNOWN = Refused(r"has records, but the state in .* knows no relay that wrote them")

Expected = Refused | Warned | None

MISTAKES: dict[Callable[[World], Awaitable[None]], tuple[Expected, Expected, Expected, Expected]] = {
    # mistake: run, relay, check run, check relay
    a_wrong_address: (NO_BROKER,) * 4,
    an_unknown_host: (NO_HOST,) * 4,
    no_port: (NO_PORT,) * 4,
    an_unpublished_collection: (UNPUBLISHED, FINE, UNPUBLISHED, FINE),
    a_missing_topic: (
        Refused(r"does not exist at"),
        FINE,  # the relay creates the topic
        Refused(r"does not exist at"),
        FINE,
    ),
    a_deleted_topic: (
        Refused(r"does not exist at"),
        Refused(r"was deleted\. Its records are lost", ExitCode.HISTORY_LOST),
        Refused(r"does not exist at"),
        Refused(r"was deleted at .*\. Its records are lost"),
    ),
    a_requested_number_of_partitions: (
        Refused(r"--partitions is 3, but the topic .* has 2 partitions", ExitCode.POSITION),
        Refused(r"--partitions is 3, and the topic .* has 2 partitions"),
        Refused(r"--partitions is 3, but the topic .* has 2 partitions"),
        Refused(r"--partitions is 3, and the topic .* has 2 partitions"),
    ),
    a_grown_topic: (
        Refused(r"has another number of partitions than 2"),
        Refused(r"has 5 partitions, and the state knows 2"),
        Refused(r"has another number of partitions than 2"),
        Refused(r"has 5 partitions, and the state knows 2"),
    ),
    compaction: (COMPACTED,) * 4,
    a_short_retention: (SHORT,) * 4,
    another_cluster: (OTHER_CLUSTER,) * 4,
    another_topic_of_the_name: (
        Refused(r"has the id .*, and the relay publishes to an earlier one"),
        Refused(r"it was deleted, and created again", ExitCode.HISTORY_LOST),
        Refused(r"has the id .*, and the relay publishes to an earlier one"),
        Refused(r"it was deleted, and created again"),
    ),
    a_foreign_message: (MALFORMED, FINE, MALFORMED, FINE),
    a_foreign_relay: (FOREIGN, FINE, FOREIGN, FINE),
    a_topic_with_records_of_an_unknown_relay: (
        Refused(r"No relay has saved a position"),
        UNKNOWN,
        Refused(r"No relay has saved a position"),
        UNKNOWN,
    ),
}


@pytest.mark.parametrize(
    ("mistake", "command", "expected"),
    [
        pytest.param(mistake, command, expected, id=f"{mistake.__name__}-{command.replace(' ', '-')}")
        for mistake, outcomes in MISTAKES.items()
        for command, expected in zip(COMMANDS, outcomes, strict=True)
    ],
)
async def test_each_command_names_a_mistake_and_its_remedy(
    world: World, mistake: Callable[[World], Awaitable[None]], command: str, expected: Expected
) -> None:
    await mistake(world)
    if command.startswith("check"):
        expect_findings(await findings(world, relay=command == "check relay"), expected)
        return
    start = run if command == "run" else relay
    with capture_logs() as lines:
        if isinstance(expected, Refused):
            with pytest.raises(DispatcherError) as raised:
                await start(world, lambda: False)
            assert re.search(expected.text, raised.value.message), raised.value.message
            assert raised.value.exit_code == expected.code
            assert raised.value.remedy
            return

        def warned() -> bool:
            return expected is None or any(
                re.search(expected.text, one["event"]) and one["remedy"] for one in lines
            )

        await start(world, warned)


async def findings(world: World, *, relay: bool) -> list[Finding]:
    if relay:
        return [one async for one in check_relay([world.registry], world.settings)]
    return [one async for one in check(world.registry, world.settings)]


def expect_findings(found: list[Finding], expected: Expected) -> None:
    errors = [one for one in found if one.level == "error"]
    if expected is None:
        assert errors == []
        return
    level = "error" if isinstance(expected, Refused) else "warning"
    fitting = [one for one in found if one.level == level and re.search(expected.text, one.text)]
    assert len(fitting) == 1, found
    assert fitting[0].remedy
    if isinstance(expected, Warned):
        assert errors == []


async def run(world: World, until: Callable[[], bool]) -> None:
    """Run a dispatcher until a condition is true. Raises the error that ends it."""
    async with dispatching(world.registry, **world.settings.model_dump(exclude_unset=True)) as running:
        await wait(running, until)


async def relay(world: World, until: Callable[[], bool]) -> None:
    """Run a relay until a condition is true. Raises the error that ends it."""
    settings = world.settings
    assert settings.kafka is not None
    config = load_config(settings.kafka, settings.kafka_config, settings.connect_timeout)
    target = RelayTarget(config, world.name, settings.partitions)
    running = Relaying(RelayService([world.registry], settings, target))
    try:
        await wait(running, lambda: until() and any(one.connected for one in running.service.gauges().values()))
    finally:
        if not running.task.done():
            await running.stop()


async def wait(running: Running | Relaying, until: Callable[[], bool]) -> None:
    await eventually(lambda: running.task.done() or until(), what="the process ends, or warns")
    if running.task.done():
        await running.task
