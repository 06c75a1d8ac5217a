"""Reads and writes the state of a relay: its term, its position, and the collections that it publishes.

docs/reference/state.md lists the fields of the document. Each write is one atomic update that depends on the term
in the document. So if another relay has begun a later term, the write changes nothing.

MongoDB commands raise the `PyMongoError` of the driver.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from pymongo import ReturnDocument

from dispatcher.core.resume_tokens import token_time
from dispatcher.core.state import RELAYS, State
from dispatcher.exceptions import PositionError
from dispatcher.kafka.acceptance import BEGINNING, LogPosition
from dispatcher.kafka.topics import TopicLayout


class Mark(NamedTuple):
    """The last record of a partition at or before a position.

    Attributes:
        offset: the offset after the record.
        term: the term of the record; 0 if there is no record.
        number: the number of the record; -1 if there is no record.
    """

    offset: int
    term: int
    number: int


NO_RECORD: Final = Mark(*BEGINNING[:3])
"""The mark of a partition without records."""


class RelayPosition(NamedTuple):
    """The position of a relay.

    Attributes:
        token: all events up to this token are published, and acknowledged by the brokers.
        fingerprint: the fingerprint of the stream that the token belongs to.
        marks: the marks by partition.
    """

    token: str
    fingerprint: str
    marks: tuple[Mark, ...]

    def of(self, partition: int) -> LogPosition:
        """The position of a reader that has read one partition exactly up to this position."""
        return LogPosition(*self.marks[partition], self.token)


class RelayState(NamedTuple):
    """The saved state of a relay.

    Attributes:
        term: the last term that a relay has taken.
        topic: the topic that the position belongs to.
        since: for each published collection or pattern, a token. The relay publishes all changes of the collection
            after this token.
    """

    term: int
    topic: TopicLayout
    position: RelayPosition
    since: dict[str, str]


class RelayStore:
    """The state of one relay.

    Args:
        topic: the name of the topic. It identifies the relay.
    """

    def __init__(self, state: State, topic: str) -> None:
        self._relays = state.relays
        self._place = f"{state.name}.{RELAYS}"
        self._topic = topic

    async def load(self) -> RelayState | None:
        """The saved state; None if no relay has published to the topic.

        Raises:
            PositionError: the document is malformed; the error names the field.
        """
        found = await self._relays.find_one({"_id": self._topic})
        return None if found is None else self._read(found)

    async def begin(self, topic: TopicLayout, position: RelayPosition, since: Mapping[str, str]) -> None:
        """Record the first state of a relay, unless it has a state already."""
        values = {"term": 0, **_topic(topic), **_position(position), "collections": _collections(since)}
        await self._relays.update_one({"_id": self._topic}, {"$setOnInsert": values}, upsert=True)

    async def take_term(
        self,
        topic: TopicLayout,
        since: Mapping[str, str],
        *,
        term: int | None = None,
        position: RelayPosition | None = None,
    ) -> RelayState | None:
        """Take the next term, and return the state with this term. The term begins at the position of this state.

        The term is at least the cluster time in seconds, so it also grows if the document was deleted.

        Args:
            since: as in `RelayState`.
            term: the term that the state must have; otherwise nothing changes. None allows every term.
            position: the position to save with the same update; None keeps the saved one.

        Returns:
            None if the saved term is not `term`, or if there is no state.
        """
        next_term = {"$max": [{"$add": ["$term", 1]}, {"$toLong": {"$tsSecond": "$$CLUSTER_TIME"}}]}
        values = {**_topic(topic), "collections": _collections(since)}
        if position is not None:
            values.update(_position(position))
        literal = {name: {"$literal": value} for name, value in values.items()}
        found = await self._relays.find_one_and_update(
            {"_id": self._topic, **({} if term is None else {"term": term})},
            [{"$set": {**literal, "term": next_term, "begun_at": "$$NOW"}}],
            return_document=ReturnDocument.AFTER,
        )
        return None if found is None else self._read(found)

    async def save(self, term: int, position: RelayPosition) -> bool:
        """Save the position. Returns False if another term has begun."""
        change = {"$set": _position(position), "$currentDate": {"saved_at": True}}
        result = await self._relays.update_one({"_id": self._topic, "term": term}, change)
        return bool(result.matched_count)

    async def note_retention(self, term: int, seconds: float | None) -> None:
        """Save the retention of the topic, for the status; None if it is unknown or unlimited."""
        await self._relays.update_one({"_id": self._topic, "term": term}, {"$set": {"retention_seconds": seconds}})

    def _read(self, document: Mapping[str, Any]) -> RelayState:
        match document:
            case {
                "term": int(term),
                "cluster": str(cluster),
                "topic_id": str(topic_id),
                "token": str(token),
                "fingerprint": str(fingerprint),
                "partitions": list(partitions),
                "collections": list(collections),
            } if partitions and term >= 0:
                token_time(token)
                marks = tuple(self._mark(one, number) for number, one in enumerate(partitions))
                since = dict(self._collection(one) for one in collections)
                layout = TopicLayout(cluster, self._topic, topic_id, len(marks))
                return RelayState(term, layout, RelayPosition(token, fingerprint, marks), since)
        wanted = "term, cluster, topic_id, token, fingerprint, partitions and collections"
        raise self._malformed(f"lacks one of {wanted}, or one of them has another type")

    def _mark(self, value: Any, number: int) -> Mark:
        match value:
            case {"offset": int(offset), "term": int(term), "number": int(last)}:
                return Mark(offset, term, last)
        raise self._malformed(f"has {value!r:.200} as partitions.{number}, not {{offset, term, number}}")

    def _collection(self, value: Any) -> tuple[str, str]:
        match value:
            case {"name": str(name), "since": str(since)}:
                return name, since
        raise self._malformed(f"has {value!r:.200} in collections, not {{name, since}}")

    def _malformed(self, text: str) -> PositionError:
        return PositionError(
            f"The document {self._topic!r} in {self._place} {text}.",
            remedy="Was it edited by hand? Fix the field. Or delete the document while no relay runs, and "
            "start the relay once with --on-history-lost resume: then it begins now, and dispatchers lose the "
            "unpublished changes.",
        )


def _topic(topic: TopicLayout) -> dict[str, Any]:
    return {"cluster": topic.cluster, "topic_id": topic.id}


def _position(position: RelayPosition) -> dict[str, Any]:
    return {
        "token": position.token,
        "cluster_time": token_time(position.token),
        "fingerprint": position.fingerprint,
        "partitions": [mark._asdict() for mark in position.marks],
    }


def _collections(since: Mapping[str, str]) -> Sequence[dict[str, str]]:
    return [{"name": name, "since": token} for name, token in sorted(since.items())]
