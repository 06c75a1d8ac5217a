"""Simulates relays, a broker and the readers of a topic, with faults. Each seed is one run.

Events have numbers, and each belongs to a partition. Relays publish all of them, in order. A relay is one producer
with its own term. If a relay notices that a record failed, a new relay with a new term takes its place.

The faults:

    records      land late; never land; land, but are reported as failed; are given up, although later ones land
    relays       are killed at any time; go on after a successor has begun, and their records land late
    readers      are killed, and go on at a saved position, or at an older one
    the log      loses its beginning to retention, even records that a reader needs

Afterwards all faults end. `Simulation.run` returns every violation of this promise: each event is delivered at
least once, in order, and not twice within a run of a reader.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from dispatcher.kafka.acceptance import BEGINNING, Decision, LogPosition, RecordPlace, accept, resume

__all__ = ["Faults", "Rules", "Simulation"]

PARTITIONS = 2

Accept = Callable[[LogPosition, RecordPlace], tuple[Decision, LogPosition]]


def distinct_token(event: int) -> str:
    return f"{event:03}"


@dataclass(frozen=True)
class Rules:
    """The rules of readers and relays. The defaults are right; a test replaces one of them by a wrong rule.

    Attributes:
        accept: the decision of a reader.
        restored: the position of a new reader, from the saved position.
        first: the position of a group at its first start, from the relay's position and the log's first offset.
        token_of: the token of an event.
        waits_for_all: the relay's position passes an event only if this and all earlier events are acknowledged.
        marks_at_position: the offset and number in the relay's position belong to the last record that this
            position passed; else to the last acknowledged record.
        save_is_fenced: a relay saves its position only while no higher term exists.
        term_is_fenced: after a failed record, a relay begins a new term only while no higher term exists.
        lands_in_order: acknowledged records of a producer land in the order of their numbers.
        renews: after a failed record, a relay begins a new term; otherwise it continues in its term.
    """

    accept: Accept = accept
    restored: Callable[[LogPosition], LogPosition] = lambda position: position
    first: Callable[[LogPosition, int], LogPosition] = lambda relay, beginning: resume(BEGINNING, relay, beginning)
    token_of: Callable[[int], str] = distinct_token
    waits_for_all: bool = True
    marks_at_position: bool = True
    save_is_fenced: bool = True
    term_is_fenced: bool = True
    lands_in_order: bool = True
    renews: bool = True


@dataclass
class Faults:
    """How often each fault happened, in one run or in many."""

    given_up: int = 0
    answer_lost: int = 0
    landed_late: int = 0
    terms: int = 0
    zombies: int = 0
    refused: int = 0
    duplicates: int = 0
    restarts: int = 0
    jumps: int = 0
    history_lost: int = 0

    def add(self, other: "Faults") -> None:
        for name, count in vars(other).items():
            setattr(self, name, getattr(self, name) + count)


class Record(NamedTuple):
    """A record in the log."""

    place: RecordPlace
    event: int


@dataclass(slots=True, eq=False)
class Message:
    """A record on its way from a producer to the log. Its offset is -1 until it lands."""

    event: int
    partition: int
    number: int
    offset: int = -1
    acknowledged: bool = False
    failed: bool = False


@dataclass(slots=True, eq=False)
class Relay:
    """One producer. A relay that is not alive may still have messages that land.

    Attributes:
        begin: the first event that it publishes.
        sent: all messages, in the order of events.
        queues: the messages on their way, for each partition.
        late: messages that were given up, and may land nevertheless.
        landed: messages that landed, without an answer yet.
        passed: the number of messages that its position passed.
        marks: offset, term and number of the last message that its position passed, for each partition.
    """

    term: int
    begin: int
    marks: list[tuple[int, int, int]]
    alive: bool = True
    sent: list[Message] = field(default_factory=list)
    queues: list[list[Message]] = field(default_factory=lambda: [[] for _ in range(PARTITIONS)])
    late: list[Message] = field(default_factory=list)
    landed: list[Message] = field(default_factory=list)
    numbers: list[int] = field(default_factory=lambda: [0] * PARTITIONS)
    passed: int = 0

    @property
    def has_failed(self) -> bool:
        return any(message.failed for message in self.sent)


@dataclass(slots=True, eq=False)
class TopicReader:
    """The reader of one partition for one group, and its successors.

    Attributes:
        begin: the first event that the group expects.
        saved: all saved positions.
        latest: the last event delivered in this run of the reader.
        delivered: the events of first deliveries, in order.
        lost: ranges of events that were reported as lost history.
    """

    number: int
    partition: int
    begin: int
    position: LogPosition
    saved: list[LogPosition]
    latest: int = -1
    delivered: list[int] = field(default_factory=list)
    lost: list[tuple[str, str]] = field(default_factory=list)


class Simulation:
    """One run.

    Attributes:
        findings: the violations of the promise: `"lost"`, `"out of order"`, `"twice in a run"`, and
            `"not accepted"`: the relay's position passed a record that a reader has read, but not accepted.
    """

    def __init__(self, seed: int, rules: Rules | None = None) -> None:
        self.random = random.Random(seed)
        self.rules = rules or Rules()
        self.findings: set[str] = set()
        self.faults = Faults()
        self._trace: list[tuple[str, tuple[object, ...]]] = []
        used = self.random.randint(1, PARTITIONS)
        self.partition_of = [self.random.randrange(used) for _ in range(self.random.randint(3, 12))]
        self.logs: list[list[Record]] = [[] for _ in range(PARTITIONS)]
        self.beginnings = [0] * PARTITIONS
        # The relay's saved position: term, number of passed events, and the last passed record of each partition.
        self.term, self.passed, self.marks = 0, 0, [BEGINNING[:3]] * PARTITIONS
        self.relays: list[Relay] = []
        self._quick: Relay | None = None
        self._quickness = self.random.choice((0.0, 0.5, 0.95))
        self._lands_after_death = self.random.choice((0.3, 0.9))
        self._answers = self.random.choice((0.7, 0.95))
        self.readers: list[TopicReader] = []

    def run(self) -> set[str]:
        """Take random steps, end all faults, and return the findings."""
        choose = self.random
        self._join()
        self._take_over()
        sometimes = [
            self._take_over,
            self._join,
            self._kill_reader,
            self._kill_relay,
            self._give_up,
            self._land_late,
        ]
        if choose.random() < 0.3:  # most runs lose no history, so a missing event is a fault
            sometimes.append(self._retain)
        relays = (self._send, self._land, self._answer, self._save)
        often = [
            step for step in relays for _ in range(choose.choice((1, 2, 5)))
        ]  # each run has a pace of its own
        often += [self._read, self._save_reader]
        share = choose.choice((0.02, 0.07, 0.2))
        for _ in range(choose.randint(40, 200)):
            choose.choice(sometimes if choose.random() < share else often)()
        self._end()
        return self.findings

    @property
    def trace(self) -> list[str]:
        """The steps, for people."""
        return [text.format(*values) for text, values in self._trace]

    def _note(self, text: str, *values: object) -> None:
        self._trace.append((text, values))  # formatted only if the run fails

    # Relays

    def _take_over(self) -> None:
        """A new relay begins. Earlier relays that are alive do not know this."""
        if self.relays and self.random.random() < 0.5:
            self.relays[-1].alive = False
        self.faults.zombies += any(relay.alive for relay in self.relays)
        self._begin(self.passed, self.marks)

    def _begin(self, passed: int, marks: list[tuple[int, int, int]]) -> Relay:
        self.term += 1
        self.faults.terms += 1
        relay = Relay(self.term, passed, list(marks))
        self.relays.append(relay)
        self._note("term {} begins with event {}", self.term, passed)
        return relay

    def _one(self, relays: list[Relay]) -> Relay | None:
        """Chooses one of these relays. For a while one relay is chosen often, even if another has replaced it."""
        if self.random.random() < 0.1:
            self._quick = self.random.choice(self.relays)
        if self._quick in relays and self.random.random() < self._quickness:
            return self._quick
        return self.random.choice(relays) if relays else None

    @property
    def _alive(self) -> list[Relay]:
        return [relay for relay in self.relays if relay.alive]

    def _send(self) -> None:
        """A relay publishes its next event, or notices that an earlier one failed."""
        relay = self._one(self._alive)
        if relay is None:
            self._take_over()
        elif self.rules.renews and relay.has_failed and self.random.random() < 0.5:
            self._renew(relay)
        else:
            self._publish_next(relay)

    def _publish_next(self, relay: Relay) -> bool:
        event = relay.begin + len(relay.sent)
        if event == len(self.partition_of):
            return False
        partition = self.partition_of[event]
        message = Message(event, partition, relay.numbers[partition])
        relay.numbers[partition] += 1
        relay.sent.append(message)
        relay.queues[partition].append(message)
        return True

    def _renew(self, relay: Relay) -> None:
        """A relay noticed that a message failed: it saves its position, and begins a new term there."""
        relay.alive = False
        self._advance(relay)
        if self.rules.term_is_fenced and relay.term != self.term:
            return
        self.passed, self.marks = relay.begin + relay.passed, list(relay.marks)
        self._begin(self.passed, self.marks)

    def _kill_relay(self) -> None:
        relay = self._one(self._alive)
        if relay is not None:
            relay.alive = False

    def _land(self) -> None:
        relay = self._one([relay for relay in self.relays if any(relay.queues)])
        if relay is not None:
            queue = self.random.choice([queue for queue in relay.queues if queue])
            message = queue.pop(0 if self.rules.lands_in_order else self.random.randrange(len(queue)))
            self._append(relay, message)
            if relay.alive:
                relay.landed.append(message)

    def _land_late(self) -> None:
        """A record lands although its producer gave it up."""
        relay = self._one([relay for relay in self.relays if relay.late])
        if relay is not None:
            self.faults.landed_late += 1
            self._append(relay, relay.late.pop(self.random.randrange(len(relay.late))))

    def _append(self, relay: Relay, message: Message) -> None:
        log = self.logs[message.partition]
        message.offset = len(log)
        place = RecordPlace(len(log), relay.term, message.number, self.rules.token_of(message.event))
        log.append(Record(place, message.event))
        self._note("event {} lands as {} in partition {}", message.event, place, message.partition)

    def _answer(self) -> None:
        """The answer to a landed message arrives, or is lost."""
        relay = self._one([relay for relay in self.relays if relay.alive and relay.landed])
        if relay is not None:
            message = relay.landed.pop(0)
            if self.random.random() < self._answers:
                message.acknowledged = True
            else:
                message.failed = True
                self.faults.answer_lost += 1
                self._note("the answer to event {} of term {} is lost", message.event, relay.term)

    def _give_up(self) -> None:
        """A producer gives up a message that is on its way."""
        relay = self._one([relay for relay in self._alive if any(relay.queues)])
        if relay is not None:
            queue = self.random.choice([queue for queue in relay.queues if queue])
            message = queue.pop(self.random.randrange(len(queue)))
            message.failed = True
            self.faults.given_up += 1
            self._note("term {} gives up event {}", relay.term, message.event)
            if self.random.random() < 0.7:
                relay.late.append(message)

    def _advance(self, relay: Relay) -> None:
        """Move the position of a relay past acknowledged messages."""
        end = relay.passed
        while end < len(relay.sent) and relay.sent[end].acknowledged:
            end += 1
        if not self.rules.waits_for_all:
            end = max((i + 1 for i, one in enumerate(relay.sent) if one.acknowledged), default=0)
        counted = relay.sent[relay.passed : end] if self.rules.marks_at_position else relay.sent
        for message in counted:
            if message.acknowledged:
                relay.marks[message.partition] = (message.offset + 1, relay.term, message.number)
        relay.passed = max(end, relay.passed)

    def _save(self) -> None:
        relay = self._one(self._alive)
        if relay is None:
            return
        before = relay.passed
        self._advance(relay)
        if relay.passed == before:  # nothing to save
            return
        if self.rules.save_is_fenced and relay.term != self.term:
            relay.alive = False
            self._note("term {} ends, since a higher one exists", relay.term)
            return
        self.passed, self.marks = relay.begin + relay.passed, list(relay.marks)
        self._note("term {} saves {}, {}", relay.term, self.passed, self.marks)

    # The log

    def _retain(self) -> None:
        """Retention removes the beginning of a partition. Unsaved records of the present term stay."""
        partition = self.random.randrange(PARTITIONS)
        end = self.marks[partition][0]
        for record in self.logs[partition][end:]:
            if record.place.term == self.term:
                break
            end += 1
        beginning = self.random.randint(0, end)
        self.beginnings[partition] = max(beginning, self.beginnings[partition])
        self._note("partition {} begins at offset {}", partition, self.beginnings[partition])

    # Readers

    def _relay_position(self, partition: int) -> LogPosition:
        token = self.rules.token_of(self.passed - 1) if self.passed else ""
        return LogPosition(*self.marks[partition], token)

    def _join(self) -> None:
        """Another group starts, at the relay's saved position."""
        if len(self.readers) < 3 * PARTITIONS:
            for partition in range(PARTITIONS):
                position = self.rules.first(self._relay_position(partition), self.beginnings[partition])
                self.readers.append(TopicReader(len(self.readers), partition, self.passed, position, [position]))
            self._note("a group starts with event {}", self.passed)

    def _read(self) -> None:
        reader = self.random.choice(self.readers)
        for _ in range(self.random.randint(1, 3)):
            self._read_record(reader)

    def _read_record(self, reader: TopicReader) -> bool:
        log, beginning = self.logs[reader.partition], self.beginnings[reader.partition]
        offset = max(reader.position.offset, beginning)
        if offset >= len(log):
            if reader.position.offset < beginning:  # the log is empty, so no record shows that offsets are lost
                self._resume(reader, beginning)
            return False
        record = log[offset]
        before = reader.position
        decision, reader.position = self.rules.accept(before, record.place)
        self._note("reader {} at {}: {} {}", reader.number, before, decision, record.event)
        match decision:
            case Decision.DELIVER:
                self._deliver(reader, record.event)
            case Decision.DUPLICATE:
                self.faults.duplicates += 1
            case Decision.JUMP:
                self._resume(reader, beginning)
            case _:
                self.faults.refused += 1
        relay = self._relay_position(reader.partition)
        if relay.offset <= reader.position.offset and relay[1:3] > reader.position[1:3]:
            self.findings.add("not accepted")
        return True

    def _deliver(self, reader: TopicReader, event: int) -> None:
        if event <= reader.latest:
            self.findings.add("twice in a run" if event in reader.delivered else "out of order")
        reader.latest = max(event, reader.latest)
        if event not in reader.delivered:
            if reader.delivered and event < reader.delivered[-1]:
                self.findings.add("out of order")
            reader.delivered.append(event)

    def _resume(self, reader: TopicReader, beginning: int) -> None:
        self.faults.jumps += 1
        before, relay = reader.position, self._relay_position(reader.partition)
        reader.position = resume(before, relay, beginning)
        if reader.position[1:3] != before[1:3]:
            self.faults.history_lost += 1
            reader.lost.append((before.token, reader.position.token))
            self._note("reader {} lost history, and continues at {}", reader.number, reader.position)

    def _save_reader(self) -> None:
        reader = self.random.choice(self.readers)
        reader.saved.append(reader.position)

    def _kill_reader(self) -> None:
        """A reader is killed. Another process goes on at the last saved position, or sometimes at an older one."""
        reader = self.random.choice(self.readers)
        if self.random.random() < 0.3:
            del reader.saved[self.random.randrange(len(reader.saved)) + 1 :]
        reader.position, reader.latest = self.rules.restored(reader.saved[-1]), -1
        self.faults.restarts += 1
        self._note("reader {} starts at {}", reader.number, reader.position)

    # The end

    def _end(self) -> None:
        """All faults end. A relay publishes all events, and readers read all records."""
        for relay in self.relays:
            if relay is not self.relays[-1] and self.random.random() < 0.7:
                relay.alive = False
                self._settle(relay)
        relay = self.relays[-1]
        if not relay.alive or self.random.random() < 0.5:
            relay.alive = False
            relay = self._begin(self.passed, self.marks)
        while relay.has_failed and self.rules.renews:
            self._renew(relay)
            relay = self.relays[-1]
        while self._publish_next(relay):
            pass
        for other in self.random.sample(self.relays, len(self.relays)):
            self._settle(other)
        for message in relay.landed:
            message.acknowledged = True
        self._advance(relay)
        self.passed, self.marks = relay.begin + relay.passed, list(relay.marks)
        for reader in self.readers:
            while self._read_record(reader):
                pass
            self._judge(reader)

    def _settle(self, relay: Relay) -> None:
        """Messages on their way land. A dead relay may lose some. Some messages that were given up land, too."""
        for queue in relay.queues:
            while queue:
                message = queue.pop(0 if self.rules.lands_in_order else self.random.randrange(len(queue)))
                if relay.alive or self.random.random() < self._lands_after_death:
                    self._append(relay, message)
                    relay.landed.append(message)
        while relay.late:
            message = relay.late.pop()
            if self.random.random() < 0.5:
                self._append(relay, message)

    def _judge(self, reader: TopicReader) -> None:
        for event, partition in enumerate(self.partition_of):
            if partition != reader.partition or event < reader.begin or event in reader.delivered:
                continue
            token = self.rules.token_of(event)
            if not any(after < token <= until for after, until in reader.lost):
                self.findings.add("lost")
                self._note("reader {} never delivered event {}", reader.number, event)
