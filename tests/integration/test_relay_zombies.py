"""Relays with full queues are stopped for longer than their leases, or are killed inside of a bulk delete."""

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from pymongo import MongoClient

import mongoz
from dispatcher.embedded.broker import EmbeddedBroker
from dispatcher.kafka.acceptance import BEGINNING, Decision, RecordPlace, accept
from dispatcher.kafka.envelope import token_in
from mongoz.stamps import Call, Stamp
from tests.integration.relaying import accepted, make_document, records_of
from tests.integration.test_relay_processes import (  # noqa: F401 - fixtures
    RelayProcess,
    Relays,
    Writer,
    client,
    relays,
    require_complete,
)
from tests.support import eventually_sync

pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")

pytestmark = pytest.mark.slow


@contextlib.contextmanager
def silent(broker: EmbeddedBroker) -> Iterator[None]:
    """During a `with` block the broker does not answer."""
    os.kill(broker.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(broker.pid, signal.SIGCONT)


def events_read(state: Any, process: RelayProcess) -> int:
    """The number of events that a process has read, as its member document says."""
    member = state["members"].find_one({"pid": process.process.pid})
    return int(member["stats"].get("read", 0)) if member else 0


def decisions(servers: str, topic: str) -> list[Decision]:
    """The decisions of a reader about all records of a topic."""
    positions: dict[int, Any] = {}
    found = []
    for partition, offset, _, envelope in sorted(records_of(servers, topic), key=lambda one: one[:2]):
        position = positions.get(partition, BEGINNING)._replace(offset=offset)
        place = RecordPlace(offset, envelope.term, envelope.number, token_in(envelope))
        decision, positions[partition] = accept(position, place)
        found.append(decision)
    return found


def all_published(relays: Relays, orders: Any) -> None:  # noqa: F811
    """Waits until all writes so far are published."""
    with orders.watch() as stream:
        orders.insert_one({"text": "last"})
        relays.wait_for(next(stream))


def test_two_relays_that_were_stopped_with_full_queues_neither_lose_nor_reorder_events(
    relays: Relays,  # noqa: F811
    broker: EmbeddedBroker,
    client: MongoClient[Any],  # noqa: F811
    database: str,
    name: str,
) -> None:
    orders, state, zombies = client[database]["orders"], client[f"{database}_state"], []
    relays.start_another()
    with Writer(client, database) as writer:
        for round_ in range(2):
            relays.wait_for_progress()
            with silent(broker):
                before = {one.process.pid: events_read(state, one) for one in relays.processes}
                # The client sends at most five requests of a megabyte at once, so most of these records stay in
                # its queue. Random bytes can't be compressed.
                orders.insert_many([{"_id": f"{round_}/{i}", "data": os.urandom(200_000)} for i in range(100)])
                eventually_sync(
                    lambda before=before: events_read(state, relays.owner) > before[relays.owner.process.pid] + 50
                )
                owner = relays.owner
                owner.process.send_signal(signal.SIGSTOP)
            zombies.append(owner)
            eventually_sync(lambda owner=owner: relays.owner is not owner)
            relays.wait_for_progress()
        for zombie in zombies:
            zombie.process.send_signal(signal.SIGCONT)
        eventually_sync(lambda: all(one.lines("lease.lost") for one in zombies))
        relays.wait_for_progress()
        writer.stop()
        relays.wait_for(writer.events[-1])
    relays.terminate()
    found = decisions(broker.address, f"mongoz.{name}")
    require_complete(writer, broker.address, name)
    if Decision.STALE not in found:
        pytest.skip("the relays noticed the end of their leases before the client's threads sent a record")


async def test_relays_that_are_killed_inside_of_a_bulk_delete_lose_no_delete_and_no_stamp(
    relays: Relays,  # noqa: F811
    dispatched: mongoz.Registry,
    broker: EmbeddedBroker,
    client: MongoClient[Any],  # noqa: F811
    database: str,
    name: str,
) -> None:
    order, state, count = make_document(dispatched, database, "orders"), client[f"{database}_state"], 1_000
    await order.objects.bulk_create([order(number=number) for number in range(count)])
    for share in (700, 400, 0):  # the number of documents that each bulk delete leaves
        all_published(relays, client[database]["orders"])
        owner = relays.owner
        with silent(broker):
            before = events_read(state, owner)
            await order.objects.filter(number__gte=share).delete()
            eventually_sync(lambda owner=owner, before=before: events_read(state, owner) > before + 10)
            relays.kill_owner()
        relays.start_another()
    all_published(relays, client[database]["orders"])
    relays.terminate()
    read = accepted(broker.address, f"mongoz.{name}")
    deletes = [one for one in read if one.event["operationType"] == "delete"]
    stamps = [Stamp.unpack(one.envelope.stamp) for one in deletes]
    assert len(deletes) == len({one.event["documentKey"]["_id"] for one in deletes}) == count
    assert all(stamp is not None and stamp.call is Call.DELETED for stamp in stamps)
    assert not any(one.event["operationType"] == "update" for one in read)
