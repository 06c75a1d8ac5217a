"""`receivers`, `status` and the dashboard show the limits of receivers, and the sizes of batches."""

import asyncio
import json
from typing import Any

import pytest
from typer.testing import CliRunner

from dispatcher.cli import app
from dispatcher.operate.status import read_status
from dispatcher.web.dashboard.view import view_of
from mongoz import Batch
from mongoz.core.signals import post_save, post_update
from tests.support import dispatching, eventually, group_of


def connect(document: Any, *signals: Any, **options: Any) -> None:
    async def receive(sender: Any, **kwargs: Any) -> None: ...

    for signal in signals:
        signal(document, **options)(receive)


def command(*arguments: str) -> str:
    """The output of a command on a wide terminal."""
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "300"}, catch_exceptions=False).output


@pytest.fixture
def receivers(account: Any) -> None:
    connect(account, post_save, name="webhook", rate="100/min", concurrency=5)
    connect(account, post_update, name="slow", concurrency=2)
    connect(account, post_save, name="index", batch=Batch(size=300))
    connect(account, post_save, name="plain")


SHOWN = {"webhook": "5 at once, 100/min", "slow": "2 at once", "index": "300 events a batch", "plain": ""}


@pytest.mark.usefixtures("receivers")
async def test_the_status_shows_limits_and_batches(dispatched, database, client, mongo):
    async with dispatching(dispatched):
        found = await eventually_members(group_of(client, database))
        place = ["status", "--url", mongo.url, "--group", database, "--state-database", f"{database}_state"]
        text = await asyncio.to_thread(command, *place)
        told = json.loads(await asyncio.to_thread(command, *place, "--json"))
    assert {one.receiver: one.limits for one in found.health.receivers} == SHOWN
    assert {row["name"]: row["limits"] for row in view_of(found)["receivers"]} == SHOWN
    rows = {
        one["receiver"]: (one["concurrency"], one["rate"], one["batch"]) for one in told["health"]["receivers"]
    }
    assert rows == {
        "webhook": (5, "100/min", None),
        "slow": (2, None, None),
        "index": (None, None, 300),
        "plain": (None, None, None),
    }
    for name, limits in SHOWN.items():
        (line,) = [line for line in text.splitlines() if f" {name} " in line and "post_" in line]
        assert limits in line


async def eventually_members(group: Any) -> Any:
    """The status, as soon as the dispatcher has joined the group."""
    status = await read_status(group)
    while not status.alive:
        status = await read_status(group)
    return status


@pytest.mark.usefixtures("receivers")
async def test_a_member_of_an_earlier_version_shows_no_limits(dispatched, database, client, foreign):
    members = foreign.client[f"{database}_state"]["members"]
    async with dispatching(dispatched) as running:
        await eventually(lambda: running.service.held)
    found = await read_status(group_of(client, database))
    assert found.health.receivers == []
    members.insert_one(
        {
            "_id": "earlier",
            "group": database,
            "host": "elsewhere",
            "seen_at": found.at,
            "receivers": [{"id": "00", "name": "webhook", "signal": "post_save"}],
        }
    )
    (receiver,) = (await read_status(group_of(client, database))).health.receivers
    assert (receiver.receiver, receiver.limits) == ("webhook", "")


def test_the_command_receivers_lists_limits_and_batches(tmp_path, monkeypatch, database):
    (tmp_path / f"listed_{database}.py").write_text(
        f"""
import mongoz
from mongoz.core.signals import post_save

registry = mongoz.Registry("mongodb://nowhere.example/", dispatched={database!r})


class Account(mongoz.Document):
    name: str = mongoz.String()

    class Meta:
        registry = registry
        database = {database!r}


@post_save(Account, name="webhook", rate="100/min", concurrency=5)
async def webhook(sender, **kwargs): ...


@post_save(Account, name="index", batch=mongoz.Batch(size=300))
async def index(sender, **kwargs): ...
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    place = ["receivers", f"listed_{database}:registry"]
    rows = json.loads(command(*place, "--json"))
    assert [(one["receiver"], one["concurrency"], one["rate"], one["batch"]) for one in rows] == [
        ("index", None, None, 300),
        ("webhook", 5, "100/min", None),  # receivers with limits come last
    ]
    text = command(*place)
    assert "100/min" in text
    assert "300" in text
