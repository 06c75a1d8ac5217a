"""`explain` of a group that reads from a topic: the changes come from the oplog, the state from the topic."""

import asyncio
import time
from typing import Any

import pytest
from bson import ObjectId, Timestamp

import mongoz
from dispatcher.cli.explain import _print
from dispatcher.core.resume_tokens import token_at, token_time
from dispatcher.explain.report import DocumentReport, explain
from mongoz.core.signals import post_save
from tests.integration.deliveries import make_account
from tests.support import PATIENCE, dispatching, settings_for

pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")
from tests.kafka.publisher import Publisher

ID = ObjectId()


async def until_told(registry: mongoz.Registry, wanted: str) -> DocumentReport:
    """The report, as soon as the receiver has this state."""
    since = Timestamp(int(time.time()) - 60, 0)
    place = (str(registry.dispatched), "accounts")
    async with asyncio.timeout(PATIENCE):
        while True:
            report = await explain(registry, settings_for(registry), place, [ID], since)
            (change,) = report.changes
            if [one.state for one in change.receivers] == [wanted]:
                return report
            await asyncio.sleep(0.02)


async def test_a_change_waits_for_the_relay_and_then_for_the_dispatcher(
    account, dispatched, foreign, database, publisher, capsys
):
    got: list[Any] = []

    async def plain(sender: Any, instance: Any, **kwargs: Any) -> None:
        got.append(instance.id)

    post_save(account, name="plain")(plain)
    other = mongoz.Registry(dispatched.url, dispatched=dispatched.dispatched)
    post_save(make_account(other, database), name="plain")(plain)
    async with dispatching(dispatched, kafka=publisher.address, kafka_topic=publisher.topic):
        foreign["accounts"].insert_one({"_id": ID, "name": "a"})
        report = await until_told(other, "not published")
        assert (report.topic, report.published) == (publisher.topic, publisher_time(publisher))
        capsys.readouterr()
        _print(report)
        told = " ".join(capsys.readouterr().out.split())
        assert f"The group reads from the topic {publisher.topic}. The relay has published until 20" in told
        assert "plain: not published, the relay has not published the change yet" in told
        publisher.token = token_at(Timestamp(int(time.time()) + 60, 0))
        await publisher.save()
        report = await until_told(other, "waits")
        assert report.published == publisher_time(publisher)
    assert got == []


def publisher_time(publisher: Publisher) -> Any:
    """The time up to which the publisher has published."""
    return token_time(publisher.token).as_datetime()
