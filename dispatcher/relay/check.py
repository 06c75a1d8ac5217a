"""`dispatcher check --relay`: one finding for each check of a relay, with a remedy. It changes nothing."""

from collections.abc import AsyncIterator, Sequence
from typing import Final

from pymongo.errors import PyMongoError

from dispatcher.core.oplog import look_at_oplog
from dispatcher.core.resume_tokens import token_time
from dispatcher.core.state import Group, State
from dispatcher.exceptions import DispatcherError
from dispatcher.kafka.config import KafkaConfig, config_of
from dispatcher.kafka.relay_state import RelayStore
from dispatcher.kafka.topics import TopicFacts
from dispatcher.operate.acls import after_role, relay_acls
from dispatcher.operate.findings import Finding
from dispatcher.operate.privileges import create_role, needed, useful
from dispatcher.operate.server_checks import ServerChecks, of_oplog, of_position
from dispatcher.operate.topic_checks import TopicChecks, names_in
from dispatcher.operate.unreachable import require_changes
from dispatcher.position.store import PositionStore
from dispatcher.relay.admission import application_of, require_applications, require_own_topic
from dispatcher.relay.applications import clients_of, routes_of_all, scope_of_all
from dispatcher.settings import Settings
from mongoz import Registry

_ROLE: Final = "dispatcher check APP --relay --role"


async def check_relay(
    registries: Sequence[Registry], settings: Settings, apps: Sequence[str] = ()
) -> AsyncIterator[Finding]:
    """Check a relay: its applications, their deployment, and the topic.

    Args:
        registries: the registries of the applications, with all receivers connected.
        apps: the names of the applications, each as `"package.module:registry"`.

    Yields:
        The findings. An error that prevents further checks is the last finding.
    """
    try:
        routes = routes_of_all(registries, settings)
        clients = clients_of(registries, settings)
        scope = scope_of_all(routes, settings.state_database)
    except DispatcherError as error:
        yield Finding.of("application", error)
        return
    yield Finding("ok", "application", f"The relay publishes {names_in(scope)}")
    try:
        async with clients.patient_client() as client:
            await clients.check(client)
            state = State(client, settings.state_database, clients.address)
            server = ServerChecks(state, clients, _ROLE)
            yield await server.version()
            required = needed(scope, settings.state_database)
            rights = [finding async for finding in server.rights(required, useful(scope))]
            for finding in rights:
                yield finding
            if any(finding.level == "error" for finding in rights):
                return
            yield await server.clock()
            for one in routes:
                await require_changes(client, one)
            oplog = await look_at_oplog(client)
            saved = await RelayStore(state, settings.kafka_topic).load()
            if oplog is not None:
                yield of_oplog(oplog)
            if saved is None:
                text = "No position is saved: the relay publishes the changes after its first start"
                yield Finding("ok", "position", text)
            elif oplog is not None:
                yield of_position(oplog, float(token_time(saved.position.token).time), "relay")
            store = PositionStore(Group(state, settings.kafka_topic), "check")
            layout = (await store.load()).layout

            async def require_own(config: KafkaConfig, facts: TopicFacts) -> None:
                if layout is None:
                    await require_own_topic(config, facts, store, state.name)
                else:
                    require_applications(store.group, layout.application, application_of(apps), adopt=False)

            async for finding in TopicChecks(state, settings).for_relay(oplog, require_own):
                yield finding
    except DispatcherError as error:
        yield Finding.of("server", error)
    except PyMongoError as error:
        yield Finding.of("server", clients.verdict(error))


def relay_role(registries: Sequence[Registry], settings: Settings) -> str:
    """The command for mongosh that creates a role with the least privileges for a relay.

    A comment follows, with the commands for the relay's rights on Kafka.
    """
    scope, topic = scope_of_all(routes_of_all(registries, settings), settings.state_database), settings.kafka_topic
    rights = [*needed(scope, settings.state_database), *useful(scope)]
    role = create_role(topic, scope, rights, settings.state_database)
    return after_role(role, relay_acls(topic), config_of(settings))
