"""Checks of topics: refusals and warnings, each with a remedy."""

from typing import Any

import pytest
from structlog.testing import capture_logs

from dispatcher.exceptions import HistoryLost, KafkaError, TopicError
from dispatcher.kafka.topics import (
    TopicFacts,
    TopicLayout,
    WeaknessLog,
    require_layout,
    require_usable,
    weaknesses,
)

KNOWN = TopicLayout("cluster", "mongoz.changes", "id", 32)
SAFE = TopicFacts(
    KNOWN,
    replicas=3,
    brokers=3,
    cleanup="delete",
    retention=7 * 86_400.0,
    retention_bytes=float("inf"),
    in_sync=2,
    timestamps="LogAppendTime",
    largest=1_048_588,
)
DAY = 86_400.0


def test_a_safe_topic_passes_all_checks() -> None:
    require_layout(SAFE, KNOWN)
    require_usable(SAFE, "READ")
    assert list(weaknesses(SAFE, oplog_seconds=DAY)) == []


@pytest.mark.parametrize(
    ("known", "error", "text"),
    [
        (
            KNOWN._replace(cluster="other"),
            TopicError,
            "in the Kafka cluster cluster, and .* in other",
        ),
        (KNOWN._replace(id="earlier"), HistoryLost, "has the id id, and the state knows it as earlier"),
        (KNOWN._replace(partitions=16), TopicError, "has 32 partitions, and the state knows 16"),
        (KNOWN._replace(id="earlier", partitions=16), TopicError, "has 32 partitions, and the state knows 16"),
    ],
)
def test_another_topic_is_refused(known: TopicLayout, error: type[TopicError], text: str) -> None:
    with pytest.raises(error, match=text) as raised:
        require_layout(SAFE, known)
    assert raised.value.remedy


@pytest.mark.parametrize("policy", ["compact", "compact,delete"])
def test_compaction_is_refused(policy: str) -> None:
    with pytest.raises(TopicError, match="is compacted") as raised:
        require_usable(SAFE._replace(cleanup=policy), "READ")
    assert "--add-config cleanup.policy=delete" in raised.value.remedy


def test_a_topic_that_takes_only_tiny_records_is_refused() -> None:
    tiny = SAFE._replace(largest=5_000)
    with pytest.raises(TopicError, match=r"max.message.bytes of the topic 'mongoz.changes' is 5000") as raised:
        require_usable(tiny, "WRITE")
    assert "--add-config max.message.bytes=1048588" in raised.value.remedy
    require_usable(tiny, "READ")


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        (SAFE._replace(replicas=1), "has 1 replica: "),
        (SAFE._replace(replicas=2), "has 2 replicas: "),
        (SAFE._replace(in_sync=1), "min.insync.replicas of the topic 'mongoz.changes' is 1"),
        (SAFE._replace(timestamps="CreateTime"), "is CreateTime"),
        (SAFE._replace(retention=3600.0), "keeps records for 1 h, and the oplog reaches back 1 d"),
        (SAFE._replace(retention_bytes=1e9), "keeps at most 1000000000 bytes"),
        (SAFE._replace(retention=None, retention_bytes=None), "embedded broker"),
    ],
)
def test_a_weakness_of_a_topic_gives_a_warning(facts: TopicFacts, text: str) -> None:
    [warned] = weaknesses(facts, oplog_seconds=DAY)
    assert text in warned.text
    assert warned.remedy
    require_usable(facts, "WRITE")


def test_retention_for_ever_and_an_oplog_of_unknown_length_are_no_weakness() -> None:
    assert list(weaknesses(SAFE._replace(retention=float("inf")), oplog_seconds=DAY)) == []
    assert list(weaknesses(SAFE._replace(retention=60.0), oplog_seconds=None)) == []


@pytest.mark.parametrize("operation", ["READ", "WRITE"])
def test_a_missing_right_is_refused(operation: Any) -> None:
    facts = SAFE._replace(operations=frozenset({"DESCRIBE", "READ", "WRITE"} - {operation}))
    with pytest.raises(KafkaError, match=f"The operation {operation.capitalize()} is not granted") as raised:
        require_usable(facts, operation)
    assert "--role" in raised.value.remedy


def test_a_weakness_is_logged_once_until_it_is_gone() -> None:
    log = WeaknessLog()

    def noted(facts: TopicFacts, oplog_seconds: float = DAY) -> list[str]:
        with capture_logs() as lines:
            log.note(facts, oplog_seconds)
        return [one["event"] for one in lines if one["action"] == "topic.weak"]

    short = SAFE._replace(retention=3600.0)
    assert noted(SAFE) == []
    assert len(noted(short)) == 1
    assert noted(short, 2 * DAY) == []
    assert noted(SAFE) == []
    assert len(noted(short)) == 1
