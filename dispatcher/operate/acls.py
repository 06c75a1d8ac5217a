"""The rights on Kafka that a dispatcher and a relay need, as commands for `kafka-acls.sh`."""

from shlex import quote
from typing import Final, NamedTuple

from dispatcher.kafka.config import KafkaConfig

# The user in the commands, if the Kafka configuration names none.
_ANYBODY: Final = "NAME"


class Acl(NamedTuple):
    """Operations on a resource.

    Attributes:
        option: the option of `kafka-acls.sh` for the kind of resource.
    """

    option: str
    resource: str
    operations: tuple[str, ...]


def dispatcher_acls(topic: str, group: str) -> list[Acl]:
    """The rights of the dispatchers of a group. The consumer group shows their offsets to tools of Kafka."""
    return [
        Acl("--topic", topic, ("Read", "Describe", "DescribeConfigs")),
        Acl("--group", f"mongoz.{group}", ("Read", "Describe")),
    ]


def relay_acls(topic: str) -> list[Acl]:
    """The rights of a relay. It creates the topic if it is missing."""
    return [Acl("--topic", topic, ("Create", "Write", "Describe", "DescribeConfigs"))]


def acl_commands(acls: list[Acl], config: KafkaConfig) -> str:
    """The commands that grant rights to the user of a configuration, for an administrator."""
    user = config.property("sasl.username") or _ANYBODY
    begin = f"kafka-acls.sh --bootstrap-server {quote(config.servers)} --command-config admin.properties"
    commands = []
    for one in acls:
        operations = " ".join(f"--operation {name}" for name in one.operations)
        commands.append(
            f"{begin} \\\n  --add --allow-principal {quote(f'User:{user}')} {operations} {one.option} "
            f"{quote(one.resource)}"
        )
    return "\n".join(commands)


def after_role(role: str, acls: list[Acl], config: KafkaConfig) -> str:
    """The command for mongosh, and the commands for Kafka in a comment that mongosh skips."""
    return (
        f"{role}\n/* Kafka: an administrator runs these commands in a shell.\n\n{acl_commands(acls, config)}\n\n*/"
    )
