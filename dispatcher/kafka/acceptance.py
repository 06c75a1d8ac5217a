"""Decides which records of a topic a reader delivers. No I/O.

The relay publishes the change events of each partition in the order of their tokens. A record *lands* when a
broker appends it to the partition. Records may land in another order, or be missing: a producer gives up one
record while later ones land; a record lands although its producer got an error; a stopped producer continues
after its successor has begun, and its records land between those of the successor.

So each producer has a *term*, and it numbers its records in each partition: 0, 1, 2 and so on. The term of a
reader is the term of the last record that it accepted. A reader accepts the next number of its term, and number 0
of a higher term. It refuses all other records. The high-water mark of a reader is the highest token that it has
accepted. If the token of an accepted record is after this mark, the reader delivers the record. Otherwise it drops
the record, because it delivered the event before.

The rule loses nothing, because three statements are true in every partition:

1. A term begins after the relay's saved position, and publishes all later events in order. So its records 0 to k
   are all the events between that position and the token of record k.
2. The relay's saved position moves past an event only when this event and all events before it are acknowledged,
   and only while no higher term exists. The acknowledged records of a term land in the order of their numbers.
   So if the position passed a record, this record comes after all records of its own term with lower numbers. It
   comes before the first record of any higher term. Therefore every reader accepts it.
3. Therefore, when a reader accepts number 0 of a term, it has accepted all events up to the position at which the
   term begins. Then it accepts the next records of the term only if no number is missing. So it has accepted all
   events up to its high-water mark.

Without terms and numbers, a reader would have only one rule: it drops each record whose token is not after the
high-water mark. It would lose events: if a producer gives up one record, and the next one lands, the mark passes
the missing event. When the next term publishes this event, the reader drops it.

Decisions for special cases:

* A missing number in the reader's term, or a higher term without its number 0: the reader refuses the records, and
  waits for number 0 of a higher term. The relay could not count the missing record as acknowledged, so its next
  term publishes the event of this record and all later events again.
* A reader accepts the next number of its term even if a higher term exists already: up to this record, no
  record of the term is missing.
* The relay's saved position has, for each partition, the offset, the term and the number of the last record that
  it passed. This is the position of a reader that has read up to this record. So if a group starts for the first
  time in the middle of a term, it copies this position, and expects the next number. Without the number, a reader
  would have to wait for the next term, or would have to trust the first record that it finds.
* If retention removes number 0 of a term, a reader that has accepted it goes on. For other readers, the
  offsets jump. Then number 0 of a higher term proves nothing, because records before it may be missing. So the
  reader decides nothing by itself, and continues at the relay's saved position, see `resume`.
* Equal tokens: tokens must rise from record to record of a term. If two records have the same token, a reader must
  drop the second one, because it looks like a repetition of the first. So the relay publishes one record per event
  (it joins fragments), and gives a record that is no change event, such as a gap, a token of its own.
* A record that is no change event has a term, a number and a token too. So it needs no rule of its own.

`tests/model/topic.py` simulates relays, a broker and readers with all these faults. In 60,000 runs the rule loses
no event outside of lost history, delivers the events in order, and repeats none within a run of a reader. The
simulation finds the fault in each weaker rule of a reader, and in each relay that breaks statement 1 or 2.
"""

from enum import StrEnum
from typing import Final, NamedTuple


class LogPosition(NamedTuple):
    """A position in one partition of the topic. Readers and the relay save all its values together.

    Attributes:
        offset: the offset of the next record to read.
        term: the term of the last accepted record; 0 before the first one. Terms begin at 1.
        number: the number of the last accepted record; -1 before the first one.
        token: the high-water mark: all events of the partition up to this token are accepted.
    """

    offset: int
    term: int
    number: int
    token: str


BEGINNING: Final = LogPosition(0, 0, -1, "")
"""The position before the first record of a topic."""


class RecordPlace(NamedTuple):
    """The place of a record in its partition.

    Attributes:
        offset: the offset of the record in the log.
        term: the term of its producer.
        number: the number of the record among those of its term in this partition, from 0.
        token: the token of its event.
    """

    offset: int
    term: int
    number: int
    token: str


class Decision(StrEnum):
    """The decision of a reader about one record."""

    DELIVER = "deliver"
    """The record is accepted, and its event is new."""

    DUPLICATE = "duplicate"
    """The record is accepted, and its event was accepted before: drop it."""

    STALE = "stale"
    """Refused: the record is of a lower term, or the reader has read it before."""

    AHEAD = "ahead"
    """Refused: a record before it, in the same term, is missing. A higher term will publish the events again."""

    JUMP = "jump"
    """Undecided: the log no longer holds the records at the position of the reader. Call `resume`."""


def accept(position: LogPosition, record: RecordPlace) -> tuple[Decision, LogPosition]:
    """Decide about the next record of a partition.

    Returns:
        The decision, and the position after the record. Save this position when all deliveries up to the record
        are finished, even if the record was refused: otherwise retention may overtake the saved offset.
    """
    offset, term, number, token = position
    if record.offset != offset:
        return (Decision.JUMP if record.offset > offset else Decision.STALE), position
    offset += 1
    expected = number + 1 if record.term == term else 0
    if record.term < term or record.number < expected:
        return Decision.STALE, LogPosition(offset, term, number, token)
    if record.number > expected:
        return Decision.AHEAD, LogPosition(offset, term, number, token)
    if record.token > token:
        return Decision.DELIVER, LogPosition(offset, record.term, record.number, record.token)
    return Decision.DUPLICATE, LogPosition(offset, record.term, record.number, token)


def resume(position: LogPosition, relay: LogPosition, beginning: int) -> LogPosition:
    """Return the position at which a reader continues when it can't simply read the next record.

    Call this function in three cases: for the first start of a group, with `BEGINNING` as `position`; when the
    offsets jump; and when the reader refuses a record as `AHEAD` although it has read up to the offset of the
    relay's position.

    If the result has another term or number than `position`, the relay's position passed records that the reader
    did not accept. Then history is lost between the tokens of `position` and `relay`, except at a first start.
    If term and number are the same, no reader needs the missing records: they are refused ones, or ones that a
    later term publishes again.

    Args:
        position: the position of the reader.
        relay: the relay's saved position for the partition. Read it after `beginning`.
        beginning: the offset of the first record that the log holds.
    """
    further = relay if (relay.term, relay.number) > (position.term, position.number) else position
    token = max(position.token, relay.token)  # all events up to either token are accepted, or lost
    return further._replace(offset=max(further.offset, beginning), token=token)
