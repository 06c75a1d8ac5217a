"""`dispatcher demo` on the command line, and the parts of the sample application that it uses."""

import json
import os
import re
import signal
import subprocess
import sys
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from pymongo import MongoClient

from dispatcher.exceptions import ExitCode
from tests.support import PATIENCE, processes_marked

ROOT = Path(__file__).parents[2]


class Family:
    """The started processes and their children, found by a variable in their environment."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *command: str, cwd: Path | None = None) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=cwd,
            env={**os.environ, "TEST_FAMILY": self.mark, "COLUMNS": "150"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def members(self) -> list[psutil.Process]:
        return processes_marked(self.mark)

    def member(self, *words: str) -> psutil.Process:
        (found,) = [one for one in self.members() if set(words) <= set(one.cmdline())]
        return found

    def end(self) -> None:
        for process in self.started:
            process.kill()
            process.communicate()
        for process in self.members():
            with suppress(psutil.Error):
                process.kill()


@pytest.fixture
def family() -> Iterator[Family]:
    made = Family()
    yield made
    made.end()


def wait_for_a_delivery(demo: subprocess.Popen[str]) -> None:
    assert demo.stdout is not None
    assert any(" audit " in line for line in demo.stdout), demo.communicate()[1]


@pytest.mark.slow
def test_the_demo_delivers_everything_and_leaves_nothing_behind(family: Family, tmp_path: Path) -> None:
    demo = family.start("dispatcher", "demo", "--seconds", "3", cwd=tmp_path)
    out, err = demo.communicate(timeout=PATIENCE)
    assert demo.returncode == 0, err
    made, expected = re.search(r"([\d,]+) of ([\d,]+) deliveries made, lost 0\b", out).groups()
    assert made == expected
    assert int(made) > 100
    written = int(re.search(r"changes written +(\d+)", out)[1])
    assert re.search(r"MongoDB \d+\.\d+\.\d+ \(licence SSPL\): for development only, on 127\.0\.0\.1:\d+", out)
    assert f"{written} entries for {written} changes ok" in out
    assert re.search(r"the dashboard of the dispatcher: http://127\.0\.0\.1:\d+/dashboard/#token=\S+", out)
    for operation in ("insert", "update", "replace", "delete"):
        assert re.search(rf"^[\d:.]+ +{operation} +shop\.\w+ \w+ +audit +[\d.]+ ms$", out, re.M), operation
    assert family.members() == []


@pytest.mark.slow
def test_the_summary_as_json_has_all_deliveries_and_effects(family: Family, tmp_path: Path) -> None:
    demo = family.start("dispatcher", "demo", "--seconds", "1", "--json", cwd=tmp_path)
    out, err = demo.communicate(timeout=PATIENCE)
    assert demo.returncode == 0, err
    told = json.loads(out)
    assert (told["lost"], told["unexpected"]) == ([], 0)
    assert told["delivered"] == told["expected"] > 10
    assert 0 < told["median"] <= told["p99"] < 10
    assert all(effect["holds"] for effect in told["effects"])
    assert " audit " in err


@pytest.mark.slow
def test_the_demo_on_kafka_loses_nothing_though_it_kills_a_worker_and_the_relay(
    family: Family, tmp_path: Path
) -> None:
    pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")
    demo = family.start("dispatcher", "demo", "--kafka", "--seconds", "6", "--json", cwd=tmp_path)
    out, err = demo.communicate(timeout=PATIENCE)
    assert demo.returncode == 0, err
    told = json.loads(out)
    assert (told["lost"], told["unexpected"]) == ([], 0)
    assert told["killed"] == ["second worker", "relay"]
    assert told["delivered"] == told["expected"] > 200
    assert all(effect["holds"] for effect in told["effects"])
    lines = err.splitlines()
    (worker_killed,) = [number for number, line in enumerate(lines) if "the second worker is killed" in line]
    (relay_killed,) = [number for number, line in enumerate(lines) if "the relay is killed" in line]
    delivered = [number for number, line in enumerate(lines) if " audit " in line]
    assert worker_killed < relay_killed < delivered[-1]
    assert family.members() == []


@pytest.mark.slow
def test_the_demo_on_kafka_names_the_extra_that_is_missing(family: Family, tmp_path: Path) -> None:
    hidden = tmp_path / "confluent_kafka.py"
    hidden.write_text("raise ImportError('hidden')\n")
    demo = family.start("dispatcher", "demo", "--kafka", cwd=tmp_path)
    _, err = demo.communicate(timeout=PATIENCE)
    assert demo.returncode == ExitCode.EMBEDDED
    assert "embedded-kafka" in err
    assert family.members() == []


@pytest.mark.slow
def test_a_demo_fails_with_an_error_if_its_dispatcher_dies(family: Family) -> None:
    demo = family.start("dispatcher", "demo", "--seconds", "60", cwd=ROOT)
    wait_for_a_delivery(demo)
    family.member("dispatcher", "run").kill()
    _, err = demo.communicate(timeout=PATIENCE)
    assert demo.returncode == 1
    assert "The dispatcher ended while changes were written (exit code -9)" in err
    assert "dispatcher.started" in err  # the last lines of the dispatcher
    assert family.members() == []


@pytest.mark.slow
def test_a_demo_fails_with_an_error_if_its_writer_dies(family: Family) -> None:
    demo = family.start("dispatcher", "demo", "--seconds", "60", cwd=ROOT)
    wait_for_a_delivery(demo)
    family.member("examples.shop.writer").kill()
    _, err = demo.communicate(timeout=PATIENCE)
    assert demo.returncode == 1
    assert "The writer failed (exit code -9)" in err
    assert family.members() == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_demo_early_with_a_complete_ledger(family: Family, number: int) -> None:
    demo = family.start("dispatcher", "demo", "--seconds", "60", cwd=ROOT)
    wait_for_a_delivery(demo)
    demo.send_signal(number)
    out, err = demo.communicate(timeout=PATIENCE)
    assert demo.returncode == 0, err
    assert "deliveries made, lost 0" in out
    assert family.members() == []


@pytest.mark.slow
def test_a_killed_demo_leaves_no_process(family: Family) -> None:
    demo = family.start("dispatcher", "demo", "--seconds", "60", cwd=ROOT)
    wait_for_a_delivery(demo)
    members = family.members()
    assert len(members) > 3
    demo.kill()
    demo.communicate()
    _, alive = psutil.wait_procs(members, timeout=PATIENCE)
    assert alive == []


def test_the_writer_reports_exactly_the_changes_that_it_makes(family: Family, mongo) -> None:
    with MongoClient(mongo.url) as client:
        client.drop_database("shop")
        shop = client["shop"]
        with shop.watch([{"$match": {"ns.coll": {"$in": ["users", "orders"]}}}]) as stream:
            writer = family.start(
                "examples.shop.writer", "--url", mongo.url, "--rate", "5000", "--seed", "7", "--report", cwd=ROOT
            )
            assert writer.stdout is not None
            reported = defaultdict(list)
            for count, line in enumerate(writer.stdout):
                if count == 1500:
                    writer.send_signal(signal.SIGTERM)
                write = json.loads(line)
                reported[write["namespace"], write["id"]].append(write["operation"])
            assert writer.wait(PATIENCE) == 0
            assert writer.stderr is not None
            assert "changes written" in writer.stderr.read()
            happened = defaultdict(list)
            for _ in range(sum(map(len, reported.values()))):
                change = stream.next()
                place = f"{change['ns']['db']}.{change['ns']['coll']}", str(change["documentKey"]["_id"])
                happened[place].append(change["operationType"])
            assert happened == reported
            assert stream.try_next() is None
        assert {operation for history in reported.values() for operation in history} == {
            "insert",
            "update",
            "replace",
            "delete",
        }


async def test_a_repeated_delivery_reduces_the_stock_once(mongo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from examples.shop import receivers
    from examples.shop.models import Address, Order, Stock, registry
    from mongoz import ObjectId
    from mongoz.signals import Delivery

    registry.point_to(mongo.url)
    async with registry:
        stock = Stock(id=uuid.uuid4().hex, stocked=10, level=10)
        await stock.create()
        order = Order(customer=ObjectId(), product=stock.id, quantity=3, ship_to=Address(street="A", city="B"))
        first = Delivery("aaa", "post_save", "take_from_stock", "stream")
        for delivery in (first, first.replaced(attempt=2), first.replaced(id="bbb")):
            await receivers.take_from_stock(sender=Order, instance=order, created=True, delivery=delivery)
        assert (await Stock.get_document_by_id(stock.id)).level == 4
