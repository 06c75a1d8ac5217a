"""Requests about clusters and topics are repeated while brokers can't answer."""

from concurrent.futures import Future
from typing import Any

import pytest

from dispatcher.exceptions import KafkaError, TopicError
from dispatcher.kafka.admin import Admin

confluent_kafka = pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")


class Client:
    """Answers with some errors, and then with a number."""

    def __init__(self, *errors: str) -> None:
        self.errors = list(errors)
        self.asked = 0

    def poll(self, _timeout: float) -> None:
        """No callback is called."""

    def ask(self, _within: float) -> "Future[Any]":
        answer: Future[Any] = Future()
        self.asked += 1
        if self.errors:
            code = getattr(confluent_kafka.KafkaError, self.errors.pop(0))
            answer.set_exception(confluent_kafka.KafkaException(confluent_kafka.KafkaError(code)))
        else:
            answer.set_result(7)
        return answer


async def asked(client: Client, patience: float = 30.0) -> Any:
    made: Any = client
    return await Admin(lambda _note: made, "kafka:9092", patience).ask("the topic 't'", lambda one, _: one.ask(_))


async def test_a_request_that_brokers_can_not_answer_now_is_repeated() -> None:
    client = Client("REQUEST_TIMED_OUT", "UNKNOWN_LEADER_EPOCH", "NOT_CONTROLLER")
    assert await asked(client) == 7
    assert client.asked == 4


async def test_a_request_is_repeated_for_a_limited_time_and_its_error_is_no_refusal() -> None:
    client = Client(*["LEADER_NOT_AVAILABLE"] * 1_000)
    with pytest.raises(KafkaError, match="can't answer a request about the topic 't' now") as error:
        await asked(client, patience=0.5)
    assert not isinstance(error.value, TopicError)
    assert client.asked > 1


async def test_a_refused_request_is_not_repeated() -> None:
    client = Client("POLICY_VIOLATION")
    with pytest.raises(TopicError, match="refuses a request about the topic 't'"):
        await asked(client)
    assert client.asked == 1


async def test_connections_that_end_without_a_reason_are_no_proof_that_tls_is_missing() -> None:
    """A broker that expects TLS closes connections. librdkafka closes a connection without an answer for 10 s."""

    class Closed(Client):
        def poll(self, _timeout: float) -> None:
            note(confluent_kafka.KafkaError(confluent_kafka.KafkaError._ALL_BROKERS_DOWN))

    made: Any = Closed("_TIMED_OUT")
    note: Any = None

    def make(callback: Any) -> Any:
        nonlocal note
        note = callback
        return made

    with pytest.raises(KafkaError, match="No broker of Kafka answers at kafka:9092 within 30 s") as error:
        await Admin(make, "kafka:9092", 30.0).ask("the topic 't'", lambda one, _: one.ask(_))
    assert error.value.message.endswith("The connections end without an answer.")
    assert "Are the brokers running?" in error.value.remedy
    assert "security.protocol" in error.value.remedy
