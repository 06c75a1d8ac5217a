"""The change streams of all groups are counted. If there are too many, a warning names the relay as the remedy."""

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from dispatcher.core.oplog import Oplog, look_at_oplog
from dispatcher.operate import stream_load as module
from dispatcher.operate.check import check
from dispatcher.operate.findings import Finding
from dispatcher.operate.stream_load import StreamLoad, stream_load
from tests.integration.test_setup import make_user
from tests.support import PATIENCE, dispatching, eventually, group_of, settings_for

LIGHT = StreamLoad({"a": 1}, 1_000, 100.0, 2)


@pytest.mark.parametrize(
    ("load", "is_high"),
    [
        (LIGHT, False),
        (LIGHT._replace(streams={"a": 16, "b": 8}), False),
        (LIGHT._replace(streams={"a": 16, "b": 8}, rate=1_000.0), True),
        (LIGHT._replace(streams={"a": 16, "b": 8}, rate=1_000.0, cores=16), False),
        (LIGHT._replace(streams={"a": 16, "b": 8}, rate=1_000.0, cores=None), True),
        (LIGHT._replace(streams={"a": 64, "b": 16}, allowed=100), True),
        (LIGHT._replace(streams={"a": 64, "b": 15}, allowed=100), False),
        (LIGHT._replace(streams={"a": 4}, rate=None, cores=None, allowed=None), False),
        (LIGHT._replace(rate=1e6), False),  # one stream is never too many, because a relay needs one, too
    ],
)
def test_the_load_is_high_near_the_limit_or_if_it_takes_half_of_the_cores(load: StreamLoad, is_high: bool) -> None:
    assert load.is_high is is_high


def test_the_text_has_the_figures() -> None:
    load = LIGHT._replace(streams={"a": 16, "b": 8}, rate=1_000.0)
    assert str(load) == (
        "24 change streams of 2 groups. Each stream reads the whole oplog: at 1000 changes a second, the average "
        "of the oplog, they take about 1.32 of the server's 2 cores"
    )


@pytest.fixture
def positions(foreign: Any, database: str) -> Any:
    return foreign.client[f"{database}_state"].positions


def add_group(positions: Any, name: str, partitions: int, *, held: int, **layout: Any) -> None:
    positions.insert_one({"_id": name, "group": name, "partitions": partitions, **layout})
    for number in range(partitions):
        owner = {"owner": "somebody"} if number < held else {"owner": None}
        positions.insert_one({"_id": f"{name}:{number}", "group": name, "partition": number, **owner})


async def test_the_streams_of_all_groups_are_counted(client, database, positions) -> None:
    add_group(positions, "streams", 4, held=3)
    add_group(positions, "stopped", 4, held=0)
    add_group(positions, "topic", 32, held=32, topic={"cluster_id": "c", "name": "mongoz.changes"})
    add_group(positions, "mongoz.changes", 1, held=1)
    add_group(positions, database, 8, held=2, wanted=16)
    group = group_of(client, database)
    oplog = None
    async with asyncio.timeout(PATIENCE):  # until the oplog of the server holds at least a second
        while oplog is None or not oplog.window:
            positions.update_one({"_id": database}, {"$inc": {"tick": 1}})
            oplog = await look_at_oplog(client)
    load = await stream_load(group, oplog)
    assert load.streams == {"streams": 3, "mongoz.changes": 1, database: 16}
    assert load.allowed
    assert load.cores
    assert load.rate
    assert (await stream_load(group, None, 2)).streams[database] == 2
    assert (await stream_load(group_of(client, database, "new"), None)).streams["new"] == 1


async def test_check_and_the_start_warn_and_name_the_relay(dispatched, database, monkeypatch) -> None:
    async def rate(client: Any, oplog: Oplog | None) -> float:
        return 10_000.0

    async def cores(client: Any) -> int:
        return 2

    make_user(dispatched, database)

    async def findings() -> list[Finding]:
        found = [one async for one in check(dispatched, settings_for(dispatched, partitions=4))]
        return [one for one in found if one.topic == "streams"]

    (light,) = await findings()
    assert light.level == "ok"
    monkeypatch.setattr(module, "_rate", rate)
    monkeypatch.setattr(module, "_cores", cores)
    (heavy,) = await findings()
    assert (heavy.level, "dispatcher relay" in heavy.remedy) == ("warning", True)
    with capture_logs() as lines:
        async with dispatching(dispatched, partitions=4):
            line = await eventually(
                lambda: next((one for one in lines if one["action"] == "streams.many"), None),
                what="the dispatcher logs the warning",
            )
    assert line["streams"] == 4
    assert "dispatcher relay" in line["remedy"]
