"""Admits a process to a relay: it must know the relay's applications, and no other relay may use the topic.

MongoDB commands raise the `PyMongoError` of the driver.
"""

from collections.abc import Iterable
from typing import Final

from dispatcher.core.output.logs import log
from dispatcher.exceptions import GroupTaken, TopicError
from dispatcher.group.layout import taken
from dispatcher.kafka.config import KafkaConfig
from dispatcher.kafka.topics import TopicFacts, read_offsets
from dispatcher.position.store import PositionStore

_KIND: Final = "relay of "
_BETWEEN: Final = ", "


def application_of(apps: Iterable[str]) -> str:
    """The name of a relay's applications in the state of its group.

    Args:
        apps: each as `"package.module:registry"`.
    """
    return _KIND + _BETWEEN.join(sorted(set(apps)))


async def admit_relay(store: PositionStore, application: str, *, adopt: bool) -> None:
    """Require that this process knows all applications of the relay. It may know more applications.

    If a process that does not know an application takes over, the collections of this application are not
    published.

    Args:
        application: see `application_of`.
        adopt: accept that applications are missing.

    Raises:
        GroupTaken: an application is missing, or the group is no relay.
        PositionError: a saved document is malformed.
    """
    while (layout := (await store.load()).layout) is not None:
        before = layout.application
        if before == application:
            return
        require_applications(store.group, before, application, adopt=adopt)
        if await store.rename_application(before, application) and before:
            log.info(
                "the relay has other applications from now on",
                action="relay.applications",
                group=store.group,
                before=before,
                application=application,
            )


def require_applications(group: str, before: str, application: str, *, adopt: bool) -> None:
    """Require that a process knows all applications of a relay, see `admit_relay`.

    Args:
        before: the applications in the state.
    """
    if before and not before.startswith(_KIND):
        raise taken(group, before, application)
    missing = sorted(_apps_in(before, group) - _apps_in(application, group))
    if missing and not adopt:
        raise GroupTaken(
            f"The relay {group!r} also publishes the collections of {_BETWEEN.join(missing)}. This process "
            f"({application}) does not know these applications, so their dispatchers would lose changes.",
            remedy="Name all applications in one relay, or give this relay a --name of its own. If an "
            "application is gone or has a new name, start once with --adopt.",
        )


def _apps_in(application: str, group: str) -> set[str]:
    """The applications in a name. Earlier versions wrote the name of the group instead."""
    return set(application.removeprefix(_KIND).split(_BETWEEN)) - {"", group}


async def require_own_topic(config: KafkaConfig, facts: TopicFacts, store: PositionStore, database: str) -> None:
    """Require that the topic has no records before the first start of a relay.

    Args:
        database: the database of the state, for the error.

    Raises:
        TopicError: it has records, so another relay writes to it.
    """
    if facts.is_of_development_broker:  # such a broker does not know the ends of its logs
        return
    admin, topic = config.admin(), facts.layout.topic
    first = await read_offsets(admin, topic, range(facts.layout.partitions))
    last = await read_offsets(admin, topic, range(facts.layout.partitions), end=True)
    # Another process of this relay may have begun meanwhile. A process records the layout before its first record.
    if first != last and (await store.load()).layout is None:
        raise TopicError(
            f"The topic {topic!r} has records, but the state in {database!r} knows no relay that wrote them: "
            "another relay, with another state, writes to this topic.",
            remedy="Choose another --name, or the --state-database of that relay. If no relay writes to the topic "
            "any more, delete it.",
        )
