"""Commits the offsets of a group, so that tools of Kafka show its lag. Nothing else depends on these offsets."""

import asyncio
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from dispatcher.core.output.logs import log

if TYPE_CHECKING:
    from confluent_kafka import Consumer

# Seconds between two commits, and maximum seconds for which `close` waits for the last one.
_EVERY: Final = 1.0

# Seconds between two checks whether the last commit has ended.
_LOOK: Final = 0.02


class CommittedOffsets:
    """The offsets that the dispatchers of a group commit.

    They are committed by a consumer that reads no partition. A commit may wait for the broker that coordinates the
    group. librdkafka delays new assignments of a consumer, and its end, until all commits of the consumer have
    ended: see `rd_kafka_assignment_serve`. So a commit by the consumer that reads could delay deliveries. A client
    for administration can commit too, but librdkafka 2.16 may end the process when the broker is away.

    Args:
        make: takes the callback for the end of a commit, and makes the consumer.
        topic: the name of the topic.
    """

    def __init__(self, make: "Callable[[Callable[..., None]], Consumer]", topic: str) -> None:
        self._consumer = make(self._note_end)
        self._topic = topic
        self._waiting: dict[int, int] = {}
        self._known: dict[int, int] = {}
        self._sent: dict[int, int] = {}
        self._is_failing = False

    def note(self, partition: int, offset: int) -> None:
        """Commit an offset soon."""
        if self._known.get(partition) != offset:
            self._waiting[partition] = self._known[partition] = offset

    async def run(self) -> None:
        """Commit the noted offsets regularly. Runs for ever."""
        while True:
            await asyncio.sleep(_EVERY)
            self._commit()

    async def close(self) -> None:
        """Commit the last offsets, if the brokers answer within a second."""
        deadline = asyncio.get_running_loop().time() + _EVERY
        self._commit()
        while self._sent and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(_LOOK)
            self._commit()
        # The consumer's `close` waits for the last commit, so a daemon thread calls it.
        threading.Thread(target=self._consumer.close, name="kafka-commits", daemon=True).start()

    def _commit(self) -> None:
        """Note the end of the last commit, and begin the next one."""
        self._consumer.poll(0)
        if self._sent or not self._waiting:
            return
        from confluent_kafka import KafkaException, TopicPartition  # noqa: PLC0415 - an extra

        self._sent, self._waiting = self._waiting, {}
        places = [TopicPartition(self._topic, number, offset) for number, offset in self._sent.items()]
        try:
            self._consumer.commit(offsets=places, asynchronous=True)
        except KafkaException as error:
            self._note_end(error.args[0], ())

    def _note_end(self, error: Any, places: Any) -> None:
        """Note the end of a commit. The consumer calls this method in `poll`."""
        sent, self._sent = self._sent, {}
        failure = error or next((one.error for one in places if one.error is not None), None)
        if failure is None:
            self._is_failing = False
            return
        self._waiting = sent | self._waiting
        if not self._is_failing:
            log.warning(
                "the offsets can't be committed, so tools of Kafka do not show the lag of the group",
                action="kafka.not_committed",
                error=f"{failure.name()}: {failure.str()}",
                remedy="`dispatcher check APP --kafka HOST:PORT` tells whether the user may read the consumer "
                "group.",
            )
        self._is_failing = True
