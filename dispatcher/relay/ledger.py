"""Tracks the records of one term: which records are acknowledged, and how far the position may move.

The position passes an event only if this event and all earlier events, in all partitions, are acknowledged. For
each partition, the position holds the place of the last record that it has passed. Later records may be
acknowledged already.

Events are counted by span. A span consists of the events of one batch of the change stream. No I/O.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from dispatcher.core.stats import RelayFigures
from dispatcher.kafka.relay_state import Mark, RelayPosition


class Part(NamedTuple):
    """The records of one span in one partition.

    Attributes:
        records: how many records there are.
        last: the record number of the last one.
    """

    partition: int
    records: int
    last: int


class Report:
    """Counts the answers to the records of one part. The Kafka client calls the report with each answer.

    Attributes:
        partition: the partition of the part.
    """

    __slots__ = ("_ledger", "_left", "_offset", "_span", "last", "partition")

    def __init__(self, ledger: "RecordLedger", span: "Span", part: Part) -> None:
        self._ledger = ledger
        self._span = span
        self.partition = part.partition
        self.last = part.last
        self._left = part.records
        self._offset = -1

    @property
    def offset(self) -> int:
        """The offset after the last record. The log keeps the order in which a producer sends records."""
        return self._offset + 1

    def __call__(self, error: Any, message: Any) -> None:
        """Record the answer to one record."""
        if error is not None:
            self._ledger.fail(f"{error.name()}: {error.str()}")
            return
        offset = message.offset()
        if offset is None:  # the broker has the record, but the answer with its offset is lost
            self._ledger.fail("the broker does not tell the offset of a record")
            return
        if offset > self._offset:  # noqa: PLR1730 - `max` takes longer
            self._offset = offset
        self._left -= 1
        if not self._left:
            self._ledger.part_acknowledged(self._span)


class Span:
    """Events that follow each other in the stream.

    Attributes:
        token: a stream that resumes after this token continues after the span.
        records: the number of records of the span.
        size: bytes of these records.
        is_end: whether the position may be at the end of the span.
        reports: one report for each part of the span.
        left: the number of parts with unacknowledged records.
    """

    __slots__ = ("is_end", "left", "records", "reports", "size", "token")

    def __init__(self, token: str, records: int, size: int, *, is_end: bool) -> None:
        self.token = token
        self.records = records
        self.size = size
        self.is_end = is_end
        self.reports: list[Report] = []
        self.left = 0


class RecordLedger:
    """The records of one term.

    Args:
        term: the term of the producer.
        position: the position at which the term begins.
        fingerprint: the fingerprint of the stream that is read.
        figures: counts the acknowledged records.

    Attributes:
        records: the number of records in the spans that are not acknowledged.
        size: the bytes of these records.
        failure: the text of the first error; empty if there is none. After an error the position does not move.
        mixed: the partitions with records of other producers between those of this term. The caller clears
            this set.
    """

    def __init__(
        self, term: int, position: RelayPosition, fingerprint: str, figures: RelayFigures | None = None
    ) -> None:
        self._term = term
        self._figures = RelayFigures() if figures is None else figures
        self._spans: deque[Span] = deque()
        self._token = position.token
        self._token_fingerprint = position.fingerprint
        self._fingerprint = fingerprint
        self._marks = list(position.marks)  # of the records up to `_token`
        # The marks of acknowledged spans after `_token`. The position must not be at the ends of these spans.
        self._passed: dict[int, Mark] = {}
        # By partition: the offset minus the number of a record. As long as no other producer writes between the
        # records of the term, the difference stays the same.
        self._between: dict[int, int] = {}
        self.mixed: set[int] = set()
        self.records = 0
        self.size = 0
        self.failure = ""

    @property
    def position(self) -> RelayPosition:
        """The position now."""
        return RelayPosition(self._token, self._token_fingerprint, tuple(self._marks))

    @property
    def token(self) -> str:
        """The token of the position now."""
        return self._token

    @property
    def oldest(self) -> str | None:
        """The token of the oldest span that is not acknowledged."""
        return self._spans[0].token if self._spans else None

    @property
    def is_empty(self) -> bool:
        """Returns whether all records are acknowledged."""
        return not self._spans

    def add(self, token: str, parts: Sequence[Part], size: int = 0, *, is_end: bool = True) -> list[Report]:
        """Add the next span.

        Args:
            token: the stream is read up to this token.
            parts: the records of the span, by partition.
            size: bytes of these records.
            is_end: whether the position may be at the end of the span. The position must never be between a delete
                marker and its delete.

        Returns:
            The report of each part. Pass it to the client, which calls it with the answer to each record.
        """
        span = Span(token, sum(part.records for part in parts), size, is_end=is_end)
        span.reports = [Report(self, span, part) for part in parts]
        span.left = len(span.reports)
        self._spans.append(span)
        self.records += span.records
        self.size += size
        if not span.left:
            self._move()
        return span.reports

    def part_acknowledged(self, span: Span) -> None:
        """Record that all records of a part are acknowledged."""
        span.left -= 1
        if not span.left:
            self._move()

    def fail(self, text: str) -> None:
        """Stop the position: a record is not acknowledged, and may never be."""
        self.failure = self.failure or text

    def _move(self) -> None:
        """Move the position past each span that is acknowledged, as long as all earlier spans are, too."""
        spans = self._spans
        while spans and not spans[0].left and self._follows(spans[0]):
            span = spans.popleft()
            self.records -= span.records
            self.size -= span.size
            self._figures.records += span.records
            self._figures.bytes += span.size
            for one in span.reports:
                offset = one.offset
                self._passed[one.partition] = Mark(offset, self._term, one.last)
                between = offset - one.last
                if self._between.setdefault(one.partition, between) != between:
                    self._between[one.partition] = between
                    self.mixed.add(one.partition)
            if span.is_end:
                self._pass_to(span.token)

    def _follows(self, span: Span) -> bool:
        """Returns whether the records of a span have higher offsets than all earlier records.

        If not, the records are in another topic.
        """
        for one in span.reports:
            before = self._passed.get(one.partition, self._marks[one.partition])
            if one.offset <= before.offset:
                self.fail(
                    f"the offsets of partition {one.partition} begin again, after {before.offset}: the topic was "
                    "deleted, and created again"
                )
                return False
        return True

    def _pass_to(self, token: str) -> None:
        for partition, mark in self._passed.items():
            self._marks[partition] = mark
        self._passed.clear()
        # A stream that starts at a cluster time, and not after a token, can begin with tokens before the position.
        if token > self._token:
            self._token, self._token_fingerprint = token, self._fingerprint
