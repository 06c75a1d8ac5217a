"""Commands of operators for a running group that reads from a topic: each works as on change streams."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from bson import ObjectId

from dispatcher.exceptions import ExitCode
from tests.acceptance.test_operator_commands import APP, KEYS, broken, environment, is_unwell
from tests.acceptance.test_run import run
from tests.conftest import EmbeddedBroker
from tests.support import Daemon, eventually_sync

pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")
from tests.integration.relaying import RelayProcess, relay_name

__all__ = ["broken", "environment"]


@pytest.fixture
def worker(environment, broker: EmbeddedBroker, foreign, tmp_path: Path) -> Iterator[Daemon]:
    """A dispatcher that reads from the topic of a relay."""
    name, kafka = relay_name(), {"DISPATCHER_KAFKA": broker.address}
    foreign.create_collection("orders")
    relay = RelayProcess(APP, "--name", name, "--partitions", "2", cwd=tmp_path, **environment, **kafka)
    try:
        eventually_sync(lambda: relay.lines("relay.term"), what="the relay publishes")
        topic = f"mongoz.{name}"
        running = Daemon(
            APP, "--kafka-topic", topic, "--save-interval", "0.1", cwd=tmp_path, **environment, **kafka
        )
        try:
            running.wait_started()
            yield running
        finally:
            running.kill()
    finally:
        relay.kill()


def counted(dispatcher, figure: str, count: int) -> None:
    """Wait until a figure of the status has this value."""
    eventually_sync(lambda: dispatcher("status", "--json").json[figure] == count, what=f"{count} {figure}")


@pytest.mark.slow
def test_receivers_are_paused_and_dead_letters_are_retried_and_dropped(worker, dispatcher, foreign, broken):
    """This is one test, because a relay and a worker take seconds to start."""
    orders = foreign["orders"]
    orders.insert_many([{"_id": KEYS[n], "number": n} for n in (1, 2)])
    counted(dispatcher, "dead_letter_count", 2)
    is_unwell(dispatcher)
    assert len(dispatcher("dead-letters", "list", "--receiver", "invoice", "--json").json) == 2

    assert dispatcher("pause", "invoice").out == "invoice is paused\n"
    eventually_sync(lambda: worker.lines("dispatcher.paused"), what="the worker knows the pause")
    orders.insert_one({"_id": KEYS[3], "number": 3})
    counted(dispatcher, "parked_deliveries", 1)
    assert "everything is paused" in dispatcher("pause").out
    eventually_sync(lambda: len(worker.lines("dispatcher.paused")) == 2, what="the worker knows the pause")
    orders.insert_one({"_id": KEYS[4], "number": 4})
    eventually_sync(lambda: dispatcher("status", "--json").json["broker_lag"], what="a record waits in the topic")

    broken.unlink()
    assert dispatcher("resume").out.endswith("\nstill paused: invoice\n")
    assert "invoice is resumed" in dispatcher("resume", "invoice").out
    counted(dispatcher, "parked_deliveries", 0)
    counted(dispatcher, "broker_lag", 0)
    retried = dispatcher("dead-letters", "retry", "--key", str(KEYS[1]), "--json")
    assert (retried.code, [one["result"] for one in retried.json]) == (ExitCode.OK, ["delivered"])
    assert dispatcher("dead-letters", "drop", "--key", str(KEYS[2]), "--yes").out == "1 dropped.\n"
    assert dispatcher("dead-letters", "list").out == "There are no dead letters.\n"


@pytest.mark.slow
def test_a_backfill_is_handed_to_the_worker_and_a_change_is_explained(
    worker, dispatcher, foreign, mongo, broken, environment, tmp_path
):
    broken.unlink()
    state = {"DISPATCHER_URL": mongo.url, **environment}
    id_ = ObjectId()
    foreign["orders"].insert_one({"_id": id_, "number": 1})
    filled = run("backfill", APP, "--receiver", "invoice", "--json", cwd=tmp_path, **state)
    assert filled.returncode == ExitCode.OK, filled.stderr
    assert (json.loads(filled.stdout)["delivered"], json.loads(filled.stdout)["failed"]) == (1, 0)
    assert worker.lines("backfill.started")
    told = run("explain", f"{foreign.name}.orders", str(id_), "--app", APP, "--json", cwd=tmp_path, **state)
    explained = json.loads(told.stdout)
    assert explained["topic"].startswith("mongoz.")
    (change,) = explained["changes"]
    assert [one["receiver"] for one in change["receivers"]] == ["invoice", "archive"]
    assert dispatcher("claims", "list", "--json").json == []
