"""A starting dispatcher logs new receivers, and the command that delivers the changes that they have missed."""

import asyncio
import re
import shlex
from types import SimpleNamespace
from typing import Any

import pytest

from dispatcher.cli.parsing import point
from dispatcher.group.new_receivers import note_receivers
from dispatcher.runs import replay
from dispatcher.runs.player import workplace
from mongoz.core.signals import post_save
from tests.integration.deliveries import State, make_account
from tests.support import dispatching, eventually, group_of, settings_for

ACTION = "receivers.new"


def listen(document: Any, name: str, **options: Any) -> list[SimpleNamespace]:
    calls: list[SimpleNamespace] = []

    async def receiver(sender: Any, instance: Any, delivery: Any, **kwargs: Any) -> None:
        calls.append(SimpleNamespace(name=instance.name, origin=delivery.origin))

    post_save(document, name=name, **options)(receiver)
    return calls


async def until_passed(foreign: Any) -> None:
    """Waits until the position has passed all writes so far."""
    written = foreign.client.admin.command("hello")["operationTime"]
    positions = State(foreign).database["positions"]

    def passed() -> bool:
        foreign["elsewhere"].insert_one({})  # the stream advances with the oplog
        return bool(positions.find_one({"partition": 0})["cluster_time"] > written)

    await eventually(passed)


async def run_as_printed(registry: Any, log: str) -> None:
    """Runs the command that the log line prints, with the printed options."""
    (command,) = set(re.findall(r"`(dispatcher replay [^`]+)`", log))
    words = shlex.split(command)
    assert words[:4] == ["dispatcher", "replay", "APP", "--missed"]
    options = list(zip(words[4::2], words[5::2], strict=True))
    given = dict(options)
    begin, end = point(given["--since"], "--since"), point(given["--until"], "--until")
    names = [value for option, value in options if option == "--receiver"]
    async with workplace(registry, settings_for(registry)) as place:
        one = await replay.start(
            place,
            names,
            since=begin,
            until=end,
            asked={"since": given["--since"], "until": given["--until"], "missed": True},
            rate=None,
            resume=None,
            new=False,
        )
        assert (await one.work(asyncio.Event())).finished


async def test_the_start_names_new_receivers_and_a_command_that_delivers_their_missed_changes(
    foreign, dispatched, account, capsys
):
    known = listen(account, "known")
    async with dispatching(dispatched):
        # From now on the application has two more receivers, and the dispatcher does not know them.
        both, only = listen(account, "new both"), listen(account, "new.only", delivery="dispatcher")
        await account.objects.create(name="own")
        foreign["accounts"].insert_one({"name": "foreign"})
        await eventually(lambda: {call.name for call in known} == {"own", "foreign"})
        await until_passed(foreign)
    assert [call.name for call in both] == ["own"]
    assert only == []
    foreign["accounts"].insert_one({"name": "behind the position"})
    assert ACTION not in capsys.readouterr().out
    async with dispatching(dispatched):
        await eventually(lambda: [call.name for call in only] == ["behind the position"])
    log = capsys.readouterr().out
    assert log.count(ACTION) == 1
    await run_as_printed(dispatched, log)
    # Each receiver has got each change once: in the process, from the dispatcher or from the replay.
    assert sorted(call.name for call in both) == ["behind the position", "foreign", "own"]
    assert sorted(call.name for call in only) == ["behind the position", "foreign", "own"]
    assert len(known) == 3
    async with dispatching(dispatched):
        pass
    assert ACTION not in capsys.readouterr().out


async def test_the_command_delivers_missed_changes_of_a_new_document_class(
    foreign, dispatched, account, database, capsys
):
    listen(account, "known")
    async with dispatching(dispatched):
        later = listen(make_account(dispatched, database, "others"), "of.others")
        foreign["others"].insert_one({"name": "missed"})
        await until_passed(foreign)  # the dispatcher does not watch the collection
    async with dispatching(dispatched):
        foreign["others"].insert_one({"name": "live"})
        await eventually(lambda: [call.name for call in later] == ["live"])
    await run_as_printed(dispatched, capsys.readouterr().out)
    assert [call.name for call in later] == ["live", "missed"]


async def test_a_renamed_receiver_is_not_new(dispatched, account, database, client):
    group = group_of(client, database)

    async def receiver(sender: Any, **kwargs: Any) -> None: ...

    signal = account.meta.signals.post_save
    signal.connect(receiver, name="before")
    async with dispatching(dispatched):
        pass
    assert await note_receivers(group, signal.receivers) is None
    signal.disconnect(receiver)
    signal.connect(receiver, name="now", formerly="before")
    assert await note_receivers(group, signal.receivers) is None


async def test_a_receiver_that_returns_after_a_rollback_is_new_again(dispatched, account, database, client):
    group = group_of(client, database)
    listen(account, "one")
    listen(account, "two")
    one, two = account.meta.signals.post_save.receivers
    async with dispatching(dispatched):
        pass
    assert await note_receivers(group, [one]) is None
    found = await note_receivers(group, [one, two])
    assert found is not None
    assert found.names == ("two",)
    assert await note_receivers(group, [one, two]) is None


async def test_while_an_earlier_version_runs_the_command_has_no_until_option(foreign, dispatched, account, capsys):
    listen(account, "known")
    async with dispatching(dispatched):
        listen(account, "new")
        async with dispatching(dispatched):
            pass
    log = capsys.readouterr().out
    assert "When the processes of the earlier version have ended" in log
    assert "--until" not in log


@pytest.mark.parametrize("value", ["text", [1, None], {"a": 1}])
async def test_a_malformed_list_of_receivers_is_replaced(foreign, dispatched, account, value):
    listen(account, "known")
    async with dispatching(dispatched):
        pass
    layout = {"_id": dispatched.dispatched}
    positions = State(foreign).database["positions"]
    known = positions.find_one(layout)["receivers"]
    positions.update_one(layout, {"$set": {"receivers": value}})
    async with dispatching(dispatched):
        pass
    assert positions.find_one(layout)["receivers"] == known
