"""A process is killed during a marked delete. If the delete is committed, all its receivers run."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId

import mongoz
from mongoz.core.signals import post_delete
from tests.support import ROOT, dispatching, eventually

# Deletes one document; SIGKILL arrives when a command is sent or answered.
WRITER = """
import asyncio, os, signal, sys
from pymongo import AsyncMongoClient
from pymongo.monitoring import CommandListener
import mongoz
from bson import ObjectId
from tests.integration.test_killed_writers import make

url, database, id_, when, command = sys.argv[1:]

class Killing(CommandListener):
    def on(self, what, event):
        if (what, event.command_name) == (when, command):
            os.kill(os.getpid(), signal.SIGKILL)
    def started(self, event): self.on("sent", event)
    def succeeded(self, event): self.on("answered", event)
    def failed(self, event): pass

async def main():
    client = AsyncMongoClient(url, event_listeners=[Killing()])
    registry = mongoz.Registry(client, dispatched=database, state=f"{database}_state", claims=3)
    User = make(registry, database, [])
    await (await User.objects.get(id=ObjectId(id_))).delete()

asyncio.run(main())
"""


def make(registry: mongoz.Registry, database: str, told: list[tuple[str, ObjectId, str]]) -> Any:
    class User(mongoz.Document):
        name: str = mongoz.String()

        Meta = type("Meta", (), {"registry": registry, "database": database})

    for name, delivery in (("any", "any"), ("durable", "dispatcher")):

        async def receive(sender: Any, instance: Any, delivery: Any, **kwargs: Any) -> None:
            told.append((delivery.receiver, instance.id, delivery.origin))

        post_delete(User, name=name, delivery=delivery)(receive)
    return User


@pytest.fixture
def quick_aborts(foreign: Any) -> Iterator[None]:
    """The server ends abandoned transactions soon; the default is a minute."""
    admin = foreign.client.admin
    admin.command("setParameter", 1, transactionLifetimeLimitSeconds=1)
    yield
    admin.command("setParameter", 1, transactionLifetimeLimitSeconds=60)


def kill_while_deleting(url: str, database: str, id_: ObjectId, when: str, command: str) -> None:
    arguments = [sys.executable, "-c", WRITER, url, database, str(id_), when, command]
    environment = {**os.environ, "PYTHONPATH": str(Path(ROOT))}
    ended = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr


@pytest.mark.parametrize("command", ["delete", "commitTransaction"])
async def test_a_kill_before_the_commit_has_no_effect(command, mongo, dispatched, database, foreign, quick_aborts):
    """The document exists without the marker; a later delete of another client is delivered."""
    told: list[tuple[str, ObjectId, str]] = []
    make(dispatched, database, told)
    foreign.create_collection("users")
    id_ = foreign.users.insert_one({"name": "Ada"}).inserted_id
    async with dispatching(dispatched):
        kill_while_deleting(mongo.url, database, id_, "sent", command)
        assert foreign.users.find_one() == {"_id": id_, "name": "Ada"}
        foreign.users.delete_one({"_id": id_})
        await eventually(lambda: len(told) == 2)
    assert sorted(told) == [("any", id_, "stream"), ("durable", id_, "stream")]


async def test_after_the_commit_a_dispatcher_takes_over_the_receivers_of_the_killed_process(
    mongo, dispatched, database, foreign
):
    """Nothing is lost: the receivers of the killed process are called by a dispatcher."""
    told: list[tuple[str, ObjectId, str]] = []
    make(dispatched, database, told)
    foreign.create_collection("users")
    id_, other = (foreign.users.insert_one({"name": name}).inserted_id for name in ("Ada", "Bea"))
    async with dispatching(dispatched):
        kill_while_deleting(mongo.url, database, id_, "answered", "commitTransaction")
        assert foreign.users.find_one({"_id": id_}) is None
        foreign.users.delete_one({"_id": other})
        await eventually(lambda: len(told) == 4)
    assert sorted(told) == sorted(
        [
            ("any", id_, "takeover"),
            ("durable", id_, "stream"),
            ("any", other, "stream"),
            ("durable", other, "stream"),
        ]
    )
