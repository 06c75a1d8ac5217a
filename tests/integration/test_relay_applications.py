"""One relay for several applications: their collections, and the relay's right to its topic."""

from typing import Any

import pytest
from pymongo import AsyncMongoClient

import mongoz
from dispatcher.embedded.broker import EmbeddedBroker
from dispatcher.exceptions import ApplicationError, GroupTaken, NothingToDeliver, TopicError
from tests.acceptance.commands import run_command
from tests.integration.relaying import accepted, last_token, make_document, relaying, saved_state
from tests.kafka.server import KafkaServer

pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")

SHOP, BILLING = "shop.models:registry", "billing.models:registry"


async def test_applications_with_overlapping_collections_and_other_databases_share_a_relay(
    order, dispatched, mongo, foreign, broker: EmbeddedBroker, client: AsyncMongoClient[Any], database, name
) -> None:
    elsewhere = f"{database}_state_of_billing"
    async with mongoz.Registry(mongo.url, dispatched="billing") as billing:
        make_document(billing, database, "orders")
        make_document(billing, elsewhere, "bills")
        try:
            async with relaying(dispatched, broker.address, name, apps=[SHOP, BILLING], also=[billing]) as relay:
                foreign["orders"].insert_one({"_id": "order"})
                foreign["bills"].insert_one({"_id": "not watched"})
                foreign.client[elsewhere]["bills"].insert_one({"_id": "bill"})
                foreign.client[elsewhere]["orders"].insert_one({"_id": "not watched"})
                foreign["orders"].delete_one({"_id": "order"})
                await relay.published(await last_token(foreign, client, database))
        finally:
            foreign.client.drop_database(elsewhere)
    read = accepted(broker.address, f"mongoz.{name}")
    found = [(one.event["ns"]["coll"], one.event["operationType"]) for one in read]
    assert sorted(found) == [("bills", "insert"), ("orders", "delete"), ("orders", "insert")]
    assert set((await saved_state(client, database, name)).since) == {f"{database}.orders", f"{elsewhere}.bills"}


async def test_a_relay_can_add_an_application_but_leaves_one_out_only_with_adopt(
    order, dispatched, broker: EmbeddedBroker, name
) -> None:
    for apps in ([SHOP], [SHOP], [BILLING, SHOP], [SHOP, BILLING]):
        async with relaying(dispatched, broker.address, name, apps=apps):
            pass
    with pytest.raises(GroupTaken, match=f"also publishes the collections of {SHOP}. This .*{BILLING}") as error:
        async with relaying(dispatched, broker.address, name, apps=[BILLING]):
            pass
    assert "--adopt" in error.value.remedy
    for adopt in (True, False):
        async with relaying(dispatched, broker.address, name, apps=[BILLING], adopt=adopt):
            pass


async def test_a_relay_accepts_a_state_of_an_earlier_version_but_no_state_of_a_group(
    order, dispatched, foreign, broker: EmbeddedBroker, database, name
) -> None:
    async with relaying(dispatched, broker.address, name, apps=[SHOP]):
        pass
    positions = foreign.client[f"{database}_state"]["positions"]
    layout = {"_id": f"mongoz.{name}"}
    positions.update_one(layout, {"$set": {"application": f"relay of mongoz.{name}"}})
    async with relaying(dispatched, broker.address, name, apps=[SHOP]):
        assert positions.find_one(layout)["application"] == f"relay of {SHOP}"
    # As if a group of dispatchers had written this state.
    positions.update_one(layout, {"$set": {"application": SHOP}})
    with pytest.raises(GroupTaken, match="belongs to the application"):
        async with relaying(dispatched, broker.address, name, apps=[SHOP], adopt=True):
            pass


async def test_applications_on_several_deployments_are_refused(
    order, dispatched, broker: EmbeddedBroker, name
) -> None:
    async with mongoz.Registry("mongodb://127.0.0.1:1", dispatched="billing") as billing:
        make_document(billing, "billing", "bills")
        with pytest.raises(ApplicationError, match="on several deployments") as error:
            async with relaying(dispatched, broker.address, name, also=[billing]):
                pass
    assert "--name" in error.value.remedy


async def test_the_error_names_an_application_without_documents(
    order, dispatched, mongo, broker: EmbeddedBroker, name
) -> None:
    async with mongoz.Registry(mongo.url, dispatched="billing") as billing:
        with pytest.raises(NothingToDeliver, match=r"dispatched='billing'\): The registry has no documents"):
            async with relaying(dispatched, broker.address, name, apps=[SHOP, BILLING], also=[billing]):
                pass


async def test_a_topic_of_another_relay_is_refused(
    order, dispatched, foreign, kafka_server: KafkaServer, client, database, name
) -> None:
    async with relaying(dispatched, kafka_server.address, name) as relay:
        foreign["orders"].insert_one({"_id": 1})
        await relay.published(await last_token(foreign, client, database))
    other = f"{database}_other_state"
    try:
        with pytest.raises(TopicError, match=f"has records, but the state in '{other}' knows no relay") as error:
            async with relaying(dispatched, kafka_server.address, name, state_database=other):
                pass
        assert "--state-database" in error.value.remedy
        async with relaying(dispatched, kafka_server.address, f"{name}.empty", state_database=other):
            pass
    finally:
        foreign.client.drop_database(other)


@pytest.mark.parametrize("wrong", ["", "a b", "a/b", "é", "x" * 243])
def test_a_name_that_is_not_valid_for_a_topic_is_refused(wrong: str) -> None:
    ran = run_command("relay", SHOP, "--kafka", "127.0.0.1:1", "--name", wrong, env={"COLUMNS": "400"})
    assert (ran.code, "letters, digits, '.', '_' and '-'" in ran.error) == (2, True), ran.error


def test_the_help_names_the_flags_of_the_relay() -> None:
    text = run_command("relay", "--help", env={"COLUMNS": "300"}).out
    for flag in ("--kafka", "--kafka-config", "--name", "--partitions", "--adopt", "--state-database", "--lease"):
        assert flag in text
