"""Requests that no broker answers: the error contains the failure of the connection."""

import socket
import time
from collections.abc import Iterator

import pytest

from dispatcher.exceptions import ExitCode, KafkaError
from dispatcher.kafka.config import load_config
from dispatcher.kafka.topics import read_topic

pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")

PATIENCE = 1.0


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that accepts connections, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


async def refusal(servers: str) -> KafkaError:
    began = time.monotonic()
    with pytest.raises(KafkaError) as error:
        await read_topic(load_config(servers, patience=PATIENCE).admin(), "t")
    assert time.monotonic() - began >= PATIENCE * 0.9
    assert error.value.exit_code == ExitCode.KAFKA
    assert error.value.remedy
    return error.value


async def test_a_closed_port_is_named() -> None:
    error = await refusal("127.0.0.1:1")
    assert error.message == (
        "No broker of Kafka answers at 127.0.0.1:1 within 1 s (asked about the cluster): 127.0.0.1:1: Connect to "
        "ipv4#127.0.0.1:1 failed: Connection refused."
    )


async def test_an_unknown_host_is_named() -> None:
    error = await refusal("nowhere.invalid:9092")
    assert "nowhere.invalid:9092: Failed to resolve 'nowhere.invalid:9092'" in error.message


async def test_a_silent_broker_is_named(silent: str) -> None:
    error = await refusal(silent)
    assert error.message == f"No broker of Kafka answers at {silent} within 1 s (asked about the cluster)."
