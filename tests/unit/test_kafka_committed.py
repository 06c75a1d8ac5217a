"""Offsets for tools of Kafka are committed until the brokers accept them. Nothing waits for these commits."""

import asyncio
from typing import Any

import pytest

from dispatcher.kafka import committed
from dispatcher.kafka.committed import CommittedOffsets
from tests.support import eventually

confluent_kafka = pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")
REFUSED = confluent_kafka.KafkaError.GROUP_AUTHORIZATION_FAILED


class Brokers:
    """A consumer whose brokers take offsets, or refuse them, or stay silent."""

    def __init__(self) -> None:
        self.refuse = self.silent = self.raises = self.closed = False
        self.offsets: dict[int, int] = {}
        self.requests = 0
        self._sent: list[Any] | None = None
        self.on_end: Any = None

    def made(self, on_end: Any) -> Any:
        self.on_end = on_end
        return self

    def commit(self, offsets: list[Any], asynchronous: bool) -> None:
        assert asynchronous
        assert self._sent is None, "the last commit has not ended"
        self.requests += 1
        if self.raises:
            raise confluent_kafka.KafkaException(confluent_kafka.KafkaError(REFUSED))
        self._sent = offsets

    def poll(self, timeout: float) -> None:
        assert timeout == 0
        if self._sent is None or self.silent:
            return
        sent, self._sent = self._sent, None
        if self.refuse:
            self.on_end(confluent_kafka.KafkaError(REFUSED), sent)
            return
        self.offsets |= {one.partition: one.offset for one in sent}
        self.on_end(None, sent)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def brokers() -> Any:
    return Brokers()


@pytest.fixture
def offsets(brokers: Any, monkeypatch: pytest.MonkeyPatch) -> CommittedOffsets:
    monkeypatch.setattr(committed, "_EVERY", 0.05)
    return CommittedOffsets(brokers.made, "mongoz.changes")


@pytest.mark.parametrize("how", ["refuse", "raises"])
async def test_refused_offsets_are_committed_later_and_the_refusal_is_logged_once(
    brokers: Any, offsets: CommittedOffsets, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    running = asyncio.create_task(offsets.run())
    setattr(brokers, how, True)
    offsets.note(0, 5)
    offsets.note(1, 8)
    await eventually(lambda: brokers.requests >= 3, what="refused offsets are committed again")
    offsets.note(0, 6)
    setattr(brokers, how, False)
    await eventually(lambda: brokers.offsets == {0: 6, 1: 8}, what="the latest offsets are committed")
    running.cancel()
    output = capsys.readouterr()
    assert (output.out + output.err).count("kafka.not_committed") == 1


async def test_the_end_commits_the_last_offset_once(brokers: Any, offsets: CommittedOffsets) -> None:
    for _ in range(2):
        offsets.note(0, 5)
    await offsets.close()
    assert brokers.offsets == {0: 5}
    assert brokers.requests == 1
    await eventually(lambda: brokers.closed, what="the consumer is closed")


async def test_the_end_does_not_wait_for_silent_brokers(brokers: Any, offsets: CommittedOffsets) -> None:
    brokers.silent = True
    offsets.note(0, 5)
    async with asyncio.timeout(30):
        await offsets.close()
    assert brokers.requests == 1
    await eventually(lambda: brokers.closed, what="the consumer is closed")
