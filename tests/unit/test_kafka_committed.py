"""The offsets for tools of Kafka are committed until the brokers take them, and hold up nothing else."""

import asyncio
from typing import Any

import pytest

from dispatcher.exceptions import KafkaError
from dispatcher.kafka import committed
from dispatcher.kafka.committed import CommittedOffsets
from tests.support import eventually


class Brokers:
    """Take offsets, or refuse them, or stay silent."""

    def __init__(self) -> None:
        self.refuse = self.silent = False
        self.offsets: dict[int, int] = {}
        self.requests = 0

    async def ask(self, place: str, request: Any) -> None:
        assert place == "the consumer group 'mongoz.shop'"
        self.requests += 1
        if self.silent:
            await asyncio.Event().wait()
        if self.refuse:
            raise KafkaError("No.", remedy="Grant a right.")
        request(self, 1.0)

    def alter_consumer_group_offsets(self, requests: Any, request_timeout: float) -> dict[str, None]:
        (request,) = requests
        assert request_timeout == 1.0
        self.offsets |= {one.partition: one.offset for one in request.topic_partitions}
        return {request.group_id: None}


@pytest.fixture
def brokers() -> Any:
    return Brokers()


@pytest.fixture
def offsets(brokers: Any, monkeypatch: pytest.MonkeyPatch) -> CommittedOffsets:
    pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")
    monkeypatch.setattr(committed, "_EVERY", 0.01)
    return CommittedOffsets(brokers, "mongoz.changes", "mongoz.shop")


async def test_refused_offsets_are_committed_later_and_the_refusal_is_logged_once(
    brokers: Any, offsets: CommittedOffsets, capsys: pytest.CaptureFixture[str]
) -> None:
    running = asyncio.create_task(offsets.run())
    brokers.refuse = True
    offsets.note(0, 5)
    offsets.note(1, 8)
    await eventually(lambda: brokers.requests >= 3, what="refused offsets are committed again")
    offsets.note(0, 6)
    brokers.refuse = False
    await eventually(lambda: brokers.offsets == {0: 6, 1: 8}, what="the latest offsets are committed")
    running.cancel()
    output = capsys.readouterr()
    assert (output.out + output.err).count("kafka.not_committed") == 1


async def test_an_offset_is_committed_once(brokers: Any, offsets: CommittedOffsets) -> None:
    for _ in range(2):
        offsets.note(0, 5)
        await offsets.finish()
    assert brokers.offsets == {0: 5}
    assert brokers.requests == 1


async def test_the_end_does_not_wait_for_silent_brokers(brokers: Any, offsets: CommittedOffsets) -> None:
    brokers.silent = True
    offsets.note(0, 5)
    async with asyncio.timeout(30):
        await offsets.finish()
    assert brokers.requests == 1
