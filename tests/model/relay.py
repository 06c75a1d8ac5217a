"""Runs the real relay (`dispatcher/relay/`) with simulated brokers, a simulated stream and a simulated state.

Each seed is one run. The faults:

    records      are given up while later ones land, land late, land but are reported as failed, are not accepted
    relays       are killed at any time; are stopped beyond their lease with full queues, and continue afterwards
    the lease    is not renewed in time, or is taken while its holder does not know it

Afterwards all faults end. `RelaySimulation.run` requires that readers deliver every event once, in order, with the
stamp of its marker. At every save it requires that readers have accepted all records that the position passed.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from types import SimpleNamespace
from typing import Any, Final, Literal, NamedTuple, cast

import bson
import pytest
from bson import Binary, Int64, ObjectId, Timestamp
from pymongo import AsyncMongoClient

from dispatcher.core.bson_codec import RawEvent
from dispatcher.core.events import EventBatch, Start
from dispatcher.core.lease import Lease, now
from dispatcher.core.output import logs
from dispatcher.core.partitions import HASH
from dispatcher.core.resume_tokens import token_at, token_of, token_time
from dispatcher.core.state import Group, State
from dispatcher.core.stats import RelayFigures, Stats
from dispatcher.core.tasks import end
from dispatcher.kafka.acceptance import BEGINNING, Decision, LogPosition, RecordPlace, accept
from dispatcher.kafka.envelope import decode, token_in
from dispatcher.kafka.relay_state import NO_RECORD, RelayPosition, RelayState
from dispatcher.kafka.topics import TopicFacts, TopicLayout, WeaknessLog
from dispatcher.position.documents import Position
from dispatcher.relay import saver, term, work
from dispatcher.relay.parts import RelayParts
from dispatcher.relay.work import RelayWork
from dispatcher.settings import Settings
from dispatcher.stream.scope import Scope
from mongoz.stamps import FIELD, Call, Stamp

__all__ = ["RelayFaults", "RelaySimulation", "patched"]

PARTITIONS: Final = 3
LAYOUT: Final = TopicLayout("cluster", "mongoz.changes", "topic", PARTITIONS)
FACTS: Final = TopicFacts(LAYOUT, 1, 1, "delete", None, None, 1, None, 1_000_000)
SCOPE: Final = Scope.of([("shop", "orders")])._replace(hashed=True)
FIRST: Final = Timestamp(1_700_000_000, 1)
BEFORE_ALL: Final = token_at(FIRST)
REPORTS: Final = 3  # the maximum number of answers that a poll receives


class RelayFaults:
    """Counts the faults of many runs."""

    def __init__(self) -> None:
        self.given_up = self.late = self.answer_lost = self.not_accepted = 0
        self.kills = self.zombies = self.expired = self.terms = self.saves = 0


class Event(NamedTuple):
    """A change, as the simulation knows it.

    Attributes:
        published: whether a reader must get it. Readers do not get delete markers.
        stamp: the stamp that its record must have.
    """

    token: str
    partition: int
    raw: RawEvent
    published: bool
    stamp: bytes


def _events(choose: random.Random) -> list[Event]:
    """Some changes: plain ones, and transactions of the ODM with markers and deletes."""
    made: list[Event] = []
    for inc in range(2, 2 + choose.randint(4, 14)):
        time = Timestamp(FIRST.time, inc)
        if choose.random() < 0.7:
            made.append(_event(time, 0, "insert", choose.randrange(50), fullDocument={}))
            continue
        transaction = {"lsid": {"id": Binary(b"l" * 16, 4)}, "txnNumber": Int64(inc)}
        ids = choose.sample(range(50), choose.randint(1, 4))
        stamps = [bytes(Stamp("any", Call.DELETED, ObjectId(), bytes(8)).pack()) for _ in ids]
        for place, (id_, stamp) in enumerate(zip(ids, stamps, strict=True)):
            description = {
                "updatedFields": {FIELD: Binary(stamp, 128)},
                "removedFields": [],
                "truncatedArrays": [],
            }
            marker = _event(time, place, "update", id_, updateDescription=description, **transaction)
            made.append(marker._replace(published=False))
        for place, (id_, stamp) in enumerate(zip(ids, stamps, strict=True), len(ids)):
            made.append(_event(time, place, "delete", id_, **transaction)._replace(stamp=stamp))
    return made


def _event(time: Timestamp, place: int, operation: str, id_: int, **fields: Any) -> Event:
    token = f"{token_at(time)}2B{place:04X}"
    document = {
        "_id": {"_data": token},
        "operationType": operation,
        "clusterTime": time,
        **fields,
        "ns": {"db": "shop", "coll": "orders"},
        "documentKey": {"_id": id_},
        HASH: Int64(-id_),
    }
    return Event(token, id_ % PARTITIONS, RawEvent(bson.encode(document)), True, b"")


class Sent(NamedTuple):
    """A record on its way."""

    partition: int
    value: bytes
    report: Callable[[Any, Any], None]


class Process:
    """A process of the relay: killed, stopped, or running.

    Attributes:
        running: not set while the process is stopped.
        lease: the lease of the process.
    """

    def __init__(self) -> None:
        self.running = asyncio.Event()
        self.running.set()
        self.killed = False
        self.lease = Lease(0, 1, 1, seconds=float("inf"), sent=0.0)
        self.stop = asyncio.Event()
        self.work: RelayWork | None = None
        self.task: asyncio.Task[None] | None = None

    async def gate(self) -> None:
        """Waits while the process is stopped, and for ever once it is killed."""
        await asyncio.sleep(0)
        await self.running.wait()
        if self.killed:
            await asyncio.Event().wait()


class Producer:
    """A producer of Kafka. Its thread sends even while the process is stopped."""

    def __init__(self, simulation: "RelaySimulation", process: Process) -> None:
        self._simulation = simulation
        self.process = process
        self.queues: list[list[Sent]] = [[] for _ in range(PARTITIONS)]
        self.answers: list[tuple[Sent, int | Literal["lost"] | None]] = []
        self.is_purged = False

    def produce_batch(self, topic: str, records: list[dict[str, Any]], partition: int, *, on_delivery: Any) -> int:
        simulation = self._simulation
        runs = self.process.running.is_set() and not self.process.killed
        assert runs, "a stopped process has sent"
        assert now() < self.process.lease.until, "a process has sent without its lease"
        assert not self.is_purged, "a closed producer has sent"
        count = 0
        for record in records:
            if simulation.has_faults and simulation.random.random() < 0.003:
                simulation.faults.not_accepted += 1
                record["_error"] = "the queue is full"
                continue
            self.queues[partition].append(Sent(partition, record["value"], on_delivery))
            count += 1
        return count

    def poll(self, _timeout: float) -> None:
        if self.process.killed or not self.process.running.is_set():
            return
        self._simulation.let_brokers_work()
        for _ in range(REPORTS):
            if not self.answers:
                return
            sent, offset = self.answers.pop(0)
            if offset is None:
                sent.report(SimpleNamespace(name=lambda: "_MSG_TIMED_OUT", str=lambda: "given up"), None)
            else:  # "lost": the client knows that the broker has the record, but not its offset
                known = None if offset == "lost" else offset
                sent.report(None, SimpleNamespace(offset=lambda known=known: known))
            self._simulation.answers_left -= 1
            if self._simulation.answers_left == 0:
                self._simulation.kill(self.process)
                return

    def purge(self) -> None:
        if self.process.killed:
            return  # a killed process does nothing more; only its task ends here
        self.is_purged = True
        for queue in self.queues:
            while queue:
                sent = queue.pop(0)
                self.answers.append((sent, None))
                if self._simulation.random.random() < 0.3:
                    self._simulation.late.append(sent)

    def close(self) -> None:
        """Does nothing: `purge` has emptied the queues."""


class Config:
    """The configuration of the clients of a process."""

    def __init__(self, simulation: "RelaySimulation", process: Process) -> None:
        self._simulation = simulation
        self._process = process

    def producer(self, **_ours: Any) -> Producer:
        made = Producer(self._simulation, self._process)
        self._simulation.producers.append(made)
        return made


class Stream:
    """The change stream."""

    connected = True
    batch_size = 1

    def __init__(self, simulation: "RelaySimulation", process: Process) -> None:
        self._simulation = simulation
        self._process = process

    async def batches(self, start: Start) -> AsyncGenerator[EventBatch]:
        at = start.token
        if at is None:
            assert start.cluster_time is not None
            at = token_at(start.cluster_time)
        elif at == BEFORE_ALL:
            assert self._simulation.first.fingerprint, "this is the token of another stream"
        choose, idle = self._simulation.random, 0
        while True:
            await self._process.gate()
            rest = [one for one in self._simulation.events if one.token > at]
            some = rest[: choose.randint(1, 3)]
            if some:
                at = some[-1].token
                yield EventBatch([one.raw for one in some], at)
            else:
                idle += 1
                yield EventBatch([], f"{at[:10]}{self._simulation.now.inc + idle:08X}" if idle > 3 else at)

    def time_of(self, position: str) -> Timestamp:
        return token_time(position)

    async def token_now(self) -> str:
        return BEFORE_ALL


class Relays:
    """The document of the relay in the state: each write is one step."""

    def __init__(self, simulation: "RelaySimulation", process: Process) -> None:
        self._simulation = simulation
        self._process = process

    async def load(self) -> RelayState:
        await self._process.gate()
        return self._simulation.state

    async def take_term(
        self, topic: TopicLayout, since: Any, *, term: int | None, position: RelayPosition | None
    ) -> RelayState | None:
        await self._process.gate()
        simulation = self._simulation
        if term not in (None, simulation.state.term):
            return None
        simulation.faults.terms += 1
        before = simulation.state
        simulation.state = before._replace(term=before.term + 1, position=position or before.position)
        simulation.require_accepted(simulation.state.position)
        return simulation.state

    async def note_retention(self, _term: int, _seconds: float | None) -> None:
        await self._process.gate()

    async def save(self, term: int, position: RelayPosition) -> bool:
        await self._process.gate()
        simulation = self._simulation
        if simulation.state.term != term:
            return False
        simulation.faults.saves += 1
        simulation.require_accepted(position)
        simulation.state = simulation.state._replace(position=position)
        return True


class RelaySimulation:
    """One run.

    Attributes:
        logs: the logs of the partitions.
        late: records that were given up, and may land nevertheless.
        state: the document of the relay.
    """

    def __init__(self, seed: int, faults: RelayFaults | None = None) -> None:
        self.random = random.Random(seed)
        self.faults = faults or RelayFaults()
        self.has_faults = True
        self.answers_left = -1  # the process is killed after this number of answers; -1: it is not killed
        self.events = _events(self.random)
        self.now = token_time(self.events[-1].token)
        self.logs: list[list[bytes]] = [[] for _ in range(PARTITIONS)]
        self.late: list[Sent] = []
        self.producers: list[Producer] = []
        self.processes: list[Process] = []
        first = RelayPosition(BEFORE_ALL, self.random.choice((SCOPE.fingerprint, "")), (NO_RECORD,) * PARTITIONS)
        self.first = first
        self.state = RelayState(0, LAYOUT, first, {"shop.orders": BEFORE_ALL})
        self._pace = self.random.choice((0.2, 0.5, 0.9))

    async def run(self) -> None:
        """Let relays run with faults, end the faults, and check the topic."""
        groups: list[RelayPosition] = [self.state.position]
        for _ in range(self.random.randint(1, 4)):
            process = self._start()
            await self._some_turns()
            groups.append(self.state.position)
            self._disturb(process)
            await self._some_turns()
            groups.append(self.state.position)
        self.has_faults = False
        for process in self.processes:  # zombies continue, and learn that their lease is lost
            if not process.killed and self.random.random() < 0.8:
                process.running.set()
        await self._some_turns()
        for process in self.processes:
            process.running.set()
            process.lease.lose()
        await self._some_turns()
        await self._end(groups)

    async def run_killed_after(self, answers: int) -> bool:
        """Let a relay run without faults, kill it after a number of answers, and check the topic.

        Returns:
            False if there were fewer answers.
        """
        self.has_faults, self.answers_left = False, answers
        process = self._start()
        while not (process.killed or self._is_published):
            await asyncio.sleep(0)
        await self._end([self.first, self.state.position])
        return process.killed

    async def run_without_renewals(self) -> None:
        """Let the lease of a relay expire, and require that its producer ends at once."""
        self.has_faults = False
        process = self._start()
        while not self.producers:
            await asyncio.sleep(0)
        process.lease.until = float("-inf")
        for _ in range(100):
            await asyncio.sleep(0)
        assert all(one.is_purged for one in self.producers), "a relay sends without a lease"
        await self._end([self.first])

    async def _end(self, groups: Sequence[RelayPosition]) -> None:
        """Let a last relay publish everything, and check the topic for groups that begin at these positions."""
        last = self._start()
        while not self._is_published:
            await asyncio.sleep(0)
            assert last.task is not None
            if last.task.done():
                last.task.result()
        for process in self.processes:
            process.stop.set()
            if not process.killed and process.task is not None:
                await process.task
                assert all(one.is_purged for one in self.producers if one.process is process), "a producer is open"
        await end(asyncio.all_tasks() - {cast("Any", asyncio.current_task())})
        _running.clear()
        for position in groups:
            self._require_complete(position)

    @property
    def _is_published(self) -> bool:
        """Returns whether the position has passed all events, and no record is on its way."""
        queued = any(queue for one in self.producers for queue in one.queues)
        return self.state.position.token >= self.events[-1].token and not queued

    async def _some_turns(self) -> None:
        for _ in range(self.random.choice((1, 10, 40, 120))):
            await asyncio.sleep(0)

    def _start(self) -> Process:
        process = Process()
        client: AsyncMongoClient[Any] = AsyncMongoClient(connect=False)
        parts = RelayParts(
            Group(State(client, "state"), LAYOUT.topic),
            client,
            SCOPE,
            ["shop.orders"],
            cast("Any", Config(self, process)),
            None,
            _settings,
            Stats(relay=RelayFigures()),
            WeaknessLog(),
        )
        position = Position.read(
            {"_id": "r:0", "partition": 0, "term": 1, "token": BEFORE_ALL, "fingerprint": "x"}, "r", "state"
        )
        process.work = RelayWork(parts, cast("Any", _Store(process)), process.lease, position)
        process.work._relays = cast("Any", Relays(self, process))
        _running.append((self, process))
        process.task = asyncio.create_task(process.work.run(process.stop))
        self.processes.append(process)
        return process

    def kill(self, process: Process) -> None:
        """Kill a process. Records in the network may land."""
        self.faults.kills += 1
        process.killed = True
        for one in self.producers:
            if one.process is process:
                for queue in one.queues:
                    self.late += [sent for sent in queue if self.random.random() < 0.3]
                    queue.clear()

    def _disturb(self, process: Process) -> None:
        """Kill a process, stop it beyond its lease, or only let its lease expire."""
        kind = self.random.random()
        if kind < 0.4:
            self.kill(process)
        elif kind < 0.8:
            self.faults.zombies += 1
            process.running.clear()
        else:
            self.faults.expired += 1
            process.lease.until = float("-inf")
            if self.random.random() < 0.5:
                asyncio.get_running_loop().call_soon(process.lease.renewed, 0.0)

    # -- brokers -------------------------------------------------------------------------------------------

    def let_brokers_work(self) -> None:
        """Some records land, some are given up, and their answers are on their way."""
        choose = self.random
        for producer in self.producers:
            for queue in producer.queues:
                while queue and choose.random() < self._pace:
                    if not self.has_faults or choose.random() < 0.97:
                        sent = queue.pop(0)
                        answer: int | Literal["lost"] | None = self._append(sent)
                        if self.has_faults and choose.random() < 0.01:
                            self.faults.answer_lost += 1
                            answer = choose.choice((None, "lost"))
                        producer.answers.append((sent, answer))
                    else:  # given up: later records land first, or this record never lands
                        self.faults.given_up += 1
                        sent = queue.pop(choose.randrange(len(queue)))
                        producer.answers.append((sent, None))
                        if choose.random() < 0.7:
                            self.late.append(sent)
        while self.late and choose.random() < 0.1:
            self.faults.late += 1
            self._append(self.late.pop(choose.randrange(len(self.late))))

    def _append(self, sent: Sent) -> int:
        log = self.logs[sent.partition]
        log.append(sent.value)
        return len(log) - 1

    # -- readers -------------------------------------------------------------------------------------------

    def require_accepted(self, position: RelayPosition) -> None:
        """Require that readers have accepted every record that the relay's position passed."""
        for partition, mark in enumerate(position.marks):
            reached = BEGINNING
            accepted = []
            for offset, envelope in enumerate(map(decode, self.logs[partition][: mark.offset])):
                place = RecordPlace(offset, envelope.term, envelope.number, token_in(envelope))
                decision, reached = accept(reached, place)
                if decision is Decision.DELIVER:
                    accepted.append(place.token)
            assert (reached.term, reached.number) >= (mark.term, mark.number), "readers have not accepted a record"
            expected = [one.token for one in self._published(partition) if one.token <= position.token]
            assert [one for one in accepted if one <= position.token] == expected, "readers miss an event"
        between = [one for one in self.events if not one.published and one.token <= position.token]
        for marker in between:  # the position must have passed the deletes of its transaction, too
            deletes = [one for one in self.events if one.stamp and one.token[:18] == marker.token[:18]]
            assert all(one.token <= position.token for one in deletes), "between a marker and its delete"

    def _published(self, partition: int) -> Sequence[Event]:
        return [one for one in self.events if one.published and one.partition == partition]

    def _require_complete(self, begin: RelayPosition) -> None:
        """Require that a group that begins at a position of the relay gets every later event once, in order."""
        for partition, log in enumerate(self.logs):
            position: LogPosition = begin.of(partition)
            got = []
            for offset, envelope in list(enumerate(map(decode, log)))[position.offset :]:
                place = RecordPlace(offset, envelope.term, envelope.number, token_in(envelope))
                decision, position = accept(position, place)
                if decision is Decision.DELIVER:
                    got.append((token_of(RawEvent(envelope.event)["_id"]), envelope.stamp))
            expected = [(one.token, one.stamp) for one in self._published(partition) if one.token > begin.token]
            assert got == expected, f"partition {partition} after {begin}"


_settings = Settings(grace=5.0)
_running: list[tuple[RelaySimulation, Process]] = []


class _Store:
    """The position of the relay's group, for operators."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def save(self, *_: Any) -> bool:
        await self._process.gate()
        return not self._process.lease.lost.is_set()


async def _ticks(_seconds: float, unless: asyncio.Event) -> bool:
    for _ in range(random.randint(1, 8)):
        await asyncio.sleep(0)
    return not unless.is_set()


def _ignore(_event: str, **_values: Any) -> None:
    """Writes no line."""


async def _topic(*_: Any, **__: Any) -> TopicFacts:
    await asyncio.sleep(0)
    return FACTS


def patched(patch: pytest.MonkeyPatch) -> None:
    """Make the relay use the simulation, and never wait for a time."""

    def stream(_client: Any, _scope: Any, *, stats: Stats, **_: Any) -> Stream:
        return Stream(*next(one for one in _running if cast("Any", one[1].work)._parts.stats is stats))

    patch.setattr(logs.log, "own", SimpleNamespace(info=_ignore, warning=_ignore))  # otherwise thousands of lines
    patch.setattr(work, "ChangeStreamSource", stream)
    patch.setattr(work, "prepared_topic", _topic)
    patch.setattr(work, "pause_after", lambda *_: 0.0)
    patch.setattr(saver, "wait_for_tick", _ticks)
    patch.setattr(saver, "next_tick", lambda _seconds, _now: 0.0)
    patch.setattr(term, "_SOON", 0.0)
    patch.setattr(term, "_LATER", 0.0)
    patch.setattr(term, "_LOOK", 0.0)
    patch.setattr(term, "_SAVE_PATIENCE", 0.0)
