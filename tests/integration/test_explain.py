"""The explanation of the changes of one document: receivers, reasons, and the state of the deliveries."""

import json
import time
from typing import Any

import pytest
from bson import ObjectId, Timestamp
from typer.testing import CliRunner

from dispatcher.cli import app
from dispatcher.exceptions import HistoryLost, NotFound
from dispatcher.explain.report import DocumentReport, explain
from dispatcher.operate.pauses import pause
from dispatcher.operate.privileges import role_name
from mongoz.core.signals import post_delete, post_save, post_update
from mongoz.signals import muted
from tests.integration.deliveries import QUICK, Parked, State
from tests.integration.test_check_claims import printed_roles, registry_of
from tests.integration.test_setup import make_user
from tests.support import dispatching, eventually, group_of, settings_for

ID = ObjectId()


def connect(document: Any, name: str, *signals: Any, **options: Any) -> list[str]:
    calls: list[str] = []

    async def receiver(sender: Any, delivery: Any, **kwargs: Any) -> None:
        calls.append(delivery.signal)
        if name == "failing":
            raise ValueError("no mail server")

    for signal in signals or (post_save,):
        signal(document, name=name, **options)(receiver)
    return calls


async def explained(registry: Any, database: str, id_: Any, **options: Any) -> DocumentReport:
    since = options.pop("since", Timestamp(int(time.time()) - 60, 0))
    settings = settings_for(registry)
    return await explain(registry, settings, (database, "accounts"), [id_], since)


def told(report: DocumentReport, place: int = -1) -> dict[str, tuple[str, str]]:
    return {one.receiver: (one.reason, one.state) for one in report.changes[place].receivers}


async def test_each_receiver_has_a_state_and_each_uncalled_receiver_has_a_reason(
    foreign, dispatched, account, database
):
    connect(account, "plain", post_save)
    connect(account, "failing", post_save, retry=QUICK, on_failure="dead_letter")
    connect(account, "rich", post_save, where={"amount": {"$gt": 10}})
    connect(account, "names", post_update, fields=["name"])
    connect(account, "updates", post_update)
    connect(account, "here", post_save, delivery="process")
    async with dispatching(dispatched):
        foreign["accounts"].insert_one({"_id": ID, "name": "a", "amount": 1})
        foreign["accounts"].update_one({"_id": ID}, {"$set": {"amount": 2}})
        letter = await State(foreign).letter()
        await eventually(lambda: State(foreign).token > letter["token"])
    report = await explained(dispatched, database, ID)
    assert [(one.operation, one.signal, one.by) for one in report.changes] == [
        ("insert", "post_save", "another client"),
        ("update", "post_update", "another client"),
    ]
    assert told(report, 0) == {
        "plain": ("", "finished"),
        "failing": ("", "dead letter"),
        "rich": ("where", "not called"),
        "here": ("process", "not called"),
    }
    assert told(report, 1) == {"names": ("fields", "not called"), "updates": ("", "finished")}
    (failing,) = [one for one in report.changes[0].receivers if one.receiver == "failing"]
    assert failing.letter == letter["short_id"]
    assert "no mail server" in failing.text
    assert report.changes[0].delivery_id == letter["delivery_id"]


async def test_the_report_says_whether_the_receivers_of_own_writes_ran_wait_or_are_muted(
    foreign, dispatched, account, database
):
    connect(account, "both", post_save, post_delete)
    connect(account, "later", post_save, delivery="dispatcher")
    async with dispatching(dispatched):
        pass
    own = await account.objects.create(name="own")
    with muted(account):
        own.name = "quiet"
        await own.save()
    report = await explained(dispatched, database, own.id)
    assert [one.by for one in report.changes] == ["the application"] * 2
    assert told(report, 0)["later"] == ("", "waits")
    assert told(report, 0)["both"][0] == "ran"
    assert {reason for reason, _ in told(report, 1).values()} == {"muted"}
    assert [one.finished for one in report.changes] == [False, False]
    assert report.changes[0].progress is not None
    assert report.changes[0].progress.holder is None


async def test_the_report_says_why_deliveries_are_parked(foreign, dispatched, account, database, client):
    connect(account, "failing", post_save, post_update, retry=QUICK, on_failure="block")
    connect(account, "held", post_save)
    await pause(group_of(client, database), "held", known=["held"])
    async with dispatching(dispatched):
        foreign["accounts"].insert_one({"_id": ID, "name": "a"})
        foreign["accounts"].update_one({"_id": ID}, {"$set": {"amount": 2}})
        await eventually(lambda: len(Parked(foreign).rows) == 3)
        report = await explained(dispatched, database, ID)
    assert told(report, 0) == {"failing": ("", "parked"), "held": ("", "parked")}
    texts = {one.receiver: one.text for one in report.changes[0].receivers}
    assert texts["held"] == "its receiver is paused"
    assert "ValueError: no mail server" in texts["failing"]
    assert report.changes[1].receivers[0].text.startswith("it waits for an earlier delivery")


async def test_explain_writes_nothing_and_calls_no_receiver(foreign, dispatched, account, database):
    calls = connect(account, "plain", post_save)
    foreign["accounts"].insert_one({"_id": ID, "name": "a"})
    report = await explained(dispatched, database, ID)
    assert told(report) == {"plain": ("", "waits")}
    assert report.changes[0].progress is None
    assert calls == []
    assert State(foreign).database.list_collection_names() == []


async def test_the_rights_of_the_dispatcher_are_enough_to_explain(guarded, database):
    role = printed_roles(database)[role_name(database)]
    guarded.admin.command("createRole", role_name(database), **role)
    guarded.admin.command("createUser", database, pwd="secret", roles=[role_name(database)])
    guarded[database].users.insert_one({"_id": ID, "name": "Ada"})
    registry = registry_of(guarded, database, database)
    user = make_user(registry, database)
    connect(user, "rich", where={"name": "Bea"})
    since = Timestamp(int(time.time()) - 60, 0)
    report = await explain(registry, settings_for(registry), (database, "users"), [ID], since)
    assert told(report) == {"watcher": ("", "waits"), "rich": ("where", "not called")}


async def test_unknown_names_and_old_times_are_refused(foreign, dispatched, account, database):
    connect(account, "plain", post_save)
    foreign["accounts"].insert_one({"_id": ID, "name": "a"})
    since = Timestamp(int(time.time()) - 60, 0)
    with pytest.raises(NotFound, match=r"Did you mean .*accounts"):
        await explain(dispatched, settings_for(dispatched), (database, "acounts"), [ID], since)
    with pytest.raises(NotFound, match=r"has no change of a document with _id 'x'.*No document"):
        await explained(dispatched, database, "x")
    point = {"failCommands": ["getMore"], "errorCode": 286, "appName": "mongoz-dispatcher"}
    foreign.client.admin.command("configureFailPoint", "failCommand", mode={"times": 1}, data=point)
    try:
        with pytest.raises(HistoryLost, match=r"does not hold the changes since .*it reaches back to"):
            await explained(dispatched, database, ID)
    finally:
        foreign.client.admin.command("configureFailPoint", "failCommand", mode="off")


def test_the_command_prints_lines_of_80_columns_or_json(
    foreign, dispatched, mongo, database, tmp_path, monkeypatch
):
    (tmp_path / f"explained_{database}.py").write_text(
        f"""
import mongoz
from mongoz.core.signals import post_save

registry = mongoz.Registry({mongo.url!r}, dispatched={dispatched.dispatched!r})


class Account(mongoz.Document):
    name: str = mongoz.String(max_length=40)

    class Meta:
        registry = registry
        database = {database!r}


@post_save(Account, name="a.receiver.with.a.name.that.needs.most.of.the.line.of.a.terminal", delivery="dispatcher")
async def receiver(sender, **kwargs): ...
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("DISPATCHER_APP", f"explained_{database}:registry")
    foreign["accounts"].insert_one({"_id": ID, "name": "a"})
    place = ["explain", f"{database}.accounts", str(ID), "--state-database", f"{database}_state"]
    result = CliRunner().invoke(app, place)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert max(map(len, lines)) <= 80
    assert "waits" in result.output
    found = json.loads(CliRunner().invoke(app, [*place, "--json"]).output)
    assert found["changes"][0]["id"] == {"$oid": str(ID)}
    assert found["changes"][0]["receivers"][0]["state"] == "waits"
    for name in ("accounts", "Account"):
        wrong = CliRunner().invoke(app, ["explain", name, "1"])
        said = "".join(wrong.output.replace("\u2502", " ").split())
        assert (wrong.exit_code, "isnocollection" in said) == (2, True)
        assert f"Didyoumean'{database}.accounts'?" in said
    wrong = CliRunner().invoke(app, ["explain", f"{database}.acounts", "1"])
    assert f"Did you mean '{database}.accounts'?" in str(wrong.exception)
