"""`dispatcher run --kafka` as a process: killed, restarted, taken over."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId
from pymongo import AsyncMongoClient

from dispatcher.embedded.broker import embedded_broker
from dispatcher.exceptions import ExitCode
from tests.ledger import APP, Ledger
from tests.support import Daemon, daemon, eventually

pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")
from tests.kafka.publisher import Publisher, begun

PARTITIONS = 3
NAMES = "abcdefg"
IDS = {name: ObjectId(f"{number:024x}") for number, name in enumerate(NAMES)}


@pytest.fixture
def ledger(mongo, database, tmp_path) -> Ledger:
    return Ledger(tmp_path / "ledger", mongo.url, database)


@pytest.fixture
async def publisher(broker, client: AsyncMongoClient[Any], database: str) -> Publisher:
    return await begun(broker.address, client, database, PARTITIONS)


class Workers:
    """Starts dispatchers that read from a topic."""

    def __init__(self, stack: ExitStack, publisher: Publisher, ledger: Ledger, cwd: Path) -> None:
        self._stack = stack
        self._arguments = (
            *("--kafka", publisher.address, "--kafka-topic", publisher.topic),
            *("--lease", "1", "--save-interval", "0.1", "--idle-save-interval", "0.2"),
        )
        self._ledger = ledger
        self._cwd = cwd

    def start(self) -> Daemon:
        """Start a dispatcher."""
        return self._stack.enter_context(daemon(APP, *self._arguments, cwd=self._cwd, **self._ledger.environment))


@pytest.fixture
def workers(publisher: Publisher, ledger: Ledger, tmp_path: Path) -> Iterator[Workers]:
    with ExitStack() as stack:
        yield Workers(stack, publisher, ledger, tmp_path)


def change(publisher: Publisher, number: int) -> str:
    """Publish a change of one of the documents. All changes of one document go to the same partition."""
    place = number % len(NAMES)
    name = NAMES[place]
    document = {"_id": IDS[name], "name": name, "n": number}
    return publisher.publish(publisher.made("replace", IDS[name], fullDocument=document), place % PARTITIONS)


def claimed(worker: Daemon) -> set[int]:
    """The partitions that a worker has claimed, including those that it has handed over."""
    return {number for line in worker.lines("lease.claimed") for number in line["partitions"]}


def check(ledger: Ledger, count: int) -> None:
    """Check that each change is delivered, a repetition has the same id, and first deliveries are in order."""
    ids: dict[int, set[str]] = {}
    firsts: dict[str, list[int]] = {name: [] for name in NAMES}
    for entry in ledger():
        if entry.n not in ids:
            firsts[entry.name].append(entry.n)
        ids.setdefault(entry.n, set()).add(entry.delivery)
    assert sorted(ids) == list(range(count))
    assert {len(found) for found in ids.values()} == {1}
    assert all(found == sorted(found) for found in firsts.values())


@pytest.mark.slow
async def test_killed_workers_lose_nothing_and_continue_at_the_saved_position(publisher, workers, ledger, foreign):
    count = 0
    for kills in range(3):
        worker = workers.start()
        for _ in range(60):
            change(publisher, count)
            count += 1
            await asyncio.sleep(0.002)
        wanted = count - 20 * (2 - kills)
        await eventually(
            lambda wanted=wanted: len({one.n for one in ledger()}) >= wanted, what="most changes are delivered"
        )
        worker.kill()
    worker = workers.start()
    await eventually(lambda: worker.lines("dispatcher.started"), what="the last worker runs")
    await eventually(lambda: len({one.n for one in ledger()}) == count, what="all changes are delivered")
    check(ledger, count)

    def saved() -> list[dict[str, Any]]:
        positions = foreign.client[f"{foreign.name}_state"]["positions"]
        return [one["log"] for one in positions.find({"partition": {"$exists": True}}).sort("partition")]

    ends = [mark.offset for mark in publisher.marks]
    await eventually(lambda: [one["offset"] for one in saved()] == ends, what="the positions are saved")
    assert [one["number"] for one in saved()] == [end - 1 for end in ends]
    before = len(ledger())
    assert worker.terminate() == ExitCode.OK
    worker = workers.start()
    change(publisher, count)
    await eventually(lambda: len({one.n for one in ledger()}) == count + 1, what="the next change is delivered")
    assert len(ledger()) == before + 1  # an orderly stop repeats nothing
    assert worker.terminate() == ExitCode.OK


@pytest.mark.slow
async def test_two_workers_share_the_partitions_and_one_takes_over(publisher, workers, ledger):
    first, second = workers.start(), workers.start()
    await eventually(
        lambda: (
            claimed(first) | claimed(second) == {0, 1, 2}
            and first.lines("lease.claimed")
            and second.lines("lease.claimed")
        ),
        what="both workers hold partitions",
    )
    for number in range(50):
        change(publisher, number)
    await eventually(lambda: len({one.n for one in ledger()}) == 50, what="all changes are delivered")
    first.kill()
    for number in range(50, 100):
        change(publisher, number)
    await eventually(lambda: len({one.n for one in ledger()}) == 100, what="the second worker delivers the rest")
    check(ledger, 100)
    assert second.terminate() == ExitCode.OK


@pytest.mark.slow
async def test_workers_renew_their_leases_while_the_broker_is_silent(ledger, client, database, tmp_path):
    with ExitStack() as stack:
        broker = stack.enter_context(embedded_broker())
        publisher = await begun(broker.address, client, database, PARTITIONS)
        worker = Workers(stack, publisher, ledger, tmp_path).start()
        for number in range(20):
            change(publisher, number)
        await eventually(lambda: len({one.n for one in ledger()}) == 20, what="all changes are delivered")
        positions = client[f"{database}_state"]["positions"]

        async def beats() -> list[int]:
            rows = positions.find({"partition": {"$exists": True}, "owner": {"$ne": None}}).sort("partition")
            return [one["beat"] async for one in rows]

        os.kill(broker.pid, signal.SIGSTOP)
        before = await beats()
        while not all(now > then + 5 for then, now in zip(before, await beats(), strict=True)):
            await asyncio.sleep(0.05)
        os.kill(broker.pid, signal.SIGCONT)
        for number in range(20, 40):
            change(publisher, number)
        await eventually(lambda: len({one.n for one in ledger()}) == 40, what="the rest is delivered")
        check(ledger, 40)
        assert worker.terminate() == ExitCode.OK


@pytest.mark.slow
async def test_a_stopped_worker_starts_no_queued_delivery_after_its_lease_has_ended(
    publisher, workers, ledger, foreign
):
    """Another worker has taken over meanwhile."""
    ledger.environment["LEDGER_SLOWNESS"] = "0.4"
    ledger.environment["DISPATCHER_CONCURRENCY"] = "3"
    first = workers.start()
    await eventually(lambda: len(claimed(first)) == PARTITIONS, what="the first worker holds all partitions")
    for number in range(600):
        change(publisher, number)
    await eventually(lambda: len(ledger()) > 20, what="the first worker delivers")
    term = max(one.term for one in ledger())
    first.process.send_signal(signal.SIGSTOP)
    try:
        count = len(ledger())
        assert count < 100  # the other deliveries are queued
        ledger.environment["LEDGER_SLOWNESS"] = "0"
        workers.start()
        await eventually(lambda: len({one.n for one in ledger()}) == 600, what="the second worker delivers all")
    finally:
        first.process.send_signal(signal.SIGCONT)
    await eventually(lambda: len(first.lines("lease.lost")) == PARTITIONS, what="the first worker lost its leases")
    assert first.terminate() == ExitCode.OK
    # Receivers that were running may end. No further receiver starts.
    late = [one for one in ledger()[count:] if one.term <= term]
    assert len(late) <= 3
    assert sorted({one.n for one in ledger()}) == list(range(600))


@pytest.mark.slow
async def test_a_worker_that_finds_no_broker_ends_with_an_error(publisher, workers, ledger, mongo, tmp_path):
    with daemon(APP, "--kafka", "127.0.0.1:1", "--kafka-topic", "t", cwd=tmp_path, **ledger.environment) as worker:
        code = await asyncio.to_thread(worker.process.wait, 120)
    assert code == ExitCode.KAFKA
    assert "127.0.0.1:1" in worker.log
