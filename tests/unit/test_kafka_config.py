"""The configuration of clients of Kafka: errors name the file, the line and the property."""

from pathlib import Path

import pytest

from dispatcher.exceptions import KafkaError
from dispatcher.kafka.config import KafkaConfig, load_config
from dispatcher.relay.producer import TermProducer

pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")

SERVERS = "127.0.0.1:9"


def loaded(directory: Path, text: str) -> KafkaConfig:
    path = directory / "kafka.properties"
    path.write_text(text)
    return load_config(SERVERS, path)


def test_properties_and_secrets_reach_the_client(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("a = b # c\n")
    config = loaded(
        tmp_path,
        "# of the shop\n\n  sasl.username=relay\nsasl.password_FILE = password\nssl.ca.location = a=b\n",
    )
    values = config.values({"linger.ms": 5})
    assert values["sasl.username"] == "relay"
    assert values["sasl.password"] == "a = b # c"
    assert values["ssl.ca.location"] == "a=b"
    assert values["linger.ms"] == 5
    assert values["bootstrap.servers"] == SERVERS
    assert values["allow.auto.create.topics"] is False


def test_a_property_of_the_file_replaces_a_default(tmp_path: Path) -> None:
    assert loaded(tmp_path, "compression.type = zstd").values({"compression.type": "lz4"}) == {
        **load_config(SERVERS).values({}),
        "compression.type": "zstd",
    }


def test_the_producer_of_a_relay_is_idempotent_and_waits_for_all_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, object]] = []
    monkeypatch.setattr("confluent_kafka.Producer", made.append)
    TermProducer(load_config(SERVERS), "mongoz.changes", 2**31 - 1)
    [values] = made
    wanted = {"enable.idempotence": True, "acks": "all", "compression.type": "lz4", "message.max.bytes": 10**9}
    assert values | wanted == values
    assert "message.timeout.ms" not in values  # the client's default is five minutes


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a.b = 1\n\nsasl.password", r"kafka.properties, line 3: the line is not PROPERTY = VALUE"),
        ("= 1", r"line 1: the line is not PROPERTY = VALUE"),
        ("client.id = a\nclient.id = b", r"line 2: client.id is also set in line 1"),
        ("sasl.password_FILE = nowhere", r"line 1: sasl.password_FILE: the file .*nowhere can't be read: No such"),
        ("acks = 1", r"line 1: acks can't be set here: the relay sets it, so that no change is lost"),
        ("delivery.report.only.error = true", r"line 1: delivery.report.only.error can't be set here"),
        ("queue.buffering.max.messages = 100", r"line 1: .* can't be set here: --max-queued-mb sets it"),
        ("message.max.bytes = 1000", r"line 1: .* can't be set here: the topic's max.message.bytes sets it"),
        ("\ngroup.id = x", r"line 2: group.id can't be set here"),
        ("bootstrap.servers = x:1", r"line 1: bootstrap.servers can't be set here: --kafka sets it"),
    ],
)
def test_errors_name_the_line(tmp_path: Path, text: str, wanted: str) -> None:
    with pytest.raises(KafkaError, match=wanted) as error:
        loaded(tmp_path, text)
    assert error.value.remedy


def test_an_error_does_not_show_a_line_that_may_be_a_secret(tmp_path: Path) -> None:
    with pytest.raises(KafkaError) as error:
        loaded(tmp_path, "hunter2")
    assert "hunter2" not in error.value.message


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("client.id = a\nno.such = 1", r'line 2: no.such: No such configuration property: "no.such"'),
        ("client.id = a\nlinger.ms = soon", r"line 2: linger.ms: Invalid value for configuration property"),
        (
            "security.protocol = ssl\nssl.ca.location = /nowhere",
            r"line 2: ssl.ca.location: .*ssl.ca.location failed",
        ),
        (
            "security.protocol = sasl_ssl\nsasl.mechanisms = SCRAM-SHA-256",
            r"kafka.properties: .*sasl.username and sasl.password must be set",
        ),
    ],
)
def test_a_property_that_the_client_refuses_is_named(tmp_path: Path, text: str, wanted: str) -> None:
    config = loaded(tmp_path, text)
    for make in (config.producer, config.admin, lambda: config.consumer("group")):
        with pytest.raises(KafkaError, match=wanted):
            make()


@pytest.mark.parametrize("servers", ["", ",", "kafka", "kafka:", ":9092", "a:9092,b", "a:x", "a:0", "a:65536"])
def test_an_address_needs_a_host_and_a_port(servers: str) -> None:
    with pytest.raises(KafkaError, match=r"--kafka is .* is not HOST:PORT"):
        load_config(servers)


@pytest.mark.parametrize(
    ("servers", "expected"), [("a:1, b:2,", "a:1,b:2"), ("[::1]:9092", "[::1]:9092"), ("kafka:9092", "kafka:9092")]
)
def test_addresses_are_separated_by_commas(servers: str, expected: str) -> None:
    assert load_config(servers).servers == expected


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(KafkaError, match=r"--kafka-config .*no: the file .*no can't be read: No such file"):
        load_config(SERVERS, tmp_path / "no")
