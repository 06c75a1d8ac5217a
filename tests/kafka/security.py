"""An Apache Kafka with TLS and passwords (SASL_SSL)."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.kafka.server import KafkaServer, running

_PLAIN = "org.apache.kafka.common.security.plain.PlainLoginModule"
USER = "relay"
"""A user who may do everything. The server itself uses it, too."""

OTHERS = ("publisher", "reader")
"""Users who may do what ACLs allow them."""

PASSWORD = "pass word"


class SecureKafka(NamedTuple):
    """A running server, and the properties of librdkafka that a client needs to connect to it."""

    server: KafkaServer
    client: dict[str, str]


@contextmanager
def secured(directory: Path) -> Iterator[SecureKafka]:
    """Run an Apache Kafka whose clients need TLS, a user, and `PASSWORD`. Users other than `USER` need ACLs too.

    Args:
        directory: keeps the key of the server, and the certificate for clients.
    """
    users = " ".join(f'user_{name}="{PASSWORD}"' for name in (USER, *OTHERS))
    store, certificate = directory / "server.p12", directory / "ca.pem"
    with_store = ("-keystore", str(store), "-storetype", "PKCS12", "-storepass", "secret", "-alias", "server")
    name = ("-keyalg", "EC", "-dname", "CN=127.0.0.1", "-ext", "san=ip:127.0.0.1")
    for command in (
        ("-genkeypair", *with_store, *name),
        ("-exportcert", "-rfc", "-file", str(certificate), *with_store),
    ):
        subprocess.run(["keytool", *command], check=True, capture_output=True)
    properties = {
        "listener.security.protocol.map": "CLIENTS:SASL_SSL,CONTROLLER:PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN",
        "sasl.mechanism.inter.broker.protocol": "PLAIN",
        "listener.name.clients.plain.sasl.jaas.config": (
            f'{_PLAIN} required username="{USER}" password="{PASSWORD}" {users};'
        ),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": f"User:{USER};User:ANONYMOUS",  # the controller's listener has no users
        "ssl.keystore.type": "PKCS12",
        "ssl.keystore.location": store,
        "ssl.keystore.password": "secret",
        "ssl.truststore.type": "PEM",  # the server also connects to itself
        "ssl.truststore.location": certificate,
    }
    client = {
        "security.protocol": "SASL_SSL",
        "sasl.mechanisms": "PLAIN",
        "sasl.username": USER,
        "sasl.password": PASSWORD,
        "ssl.ca.location": str(certificate),
    }
    with running(properties, client=client) as server:
        yield SecureKafka(server, client)
