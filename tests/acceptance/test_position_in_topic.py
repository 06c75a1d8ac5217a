"""`dispatcher position` for groups that read from a topic, and for relays."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from bson import Timestamp
from pymongo import AsyncMongoClient

import mongoz
from dispatcher.core.resume_tokens import token_at, token_time
from dispatcher.core.state import State
from dispatcher.exceptions import ExitCode
from mongoz.core.signals import post_save
from tests.acceptance.commands import Dispatcher
from tests.integration.deliveries import make_account
from tests.integration.test_kafka_source import id_of
from tests.support import dispatching, eventually

pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")
from tests.kafka.publisher import Publisher

pytestmark = pytest.mark.slow

PARTITIONS = 2


@pytest.fixture
def got(dispatched: mongoz.Registry, database: str) -> list[int]:
    """The numbers of the delivered documents, in order."""
    numbers: list[int] = []

    @post_save(make_account(dispatched, database), name="saved")
    async def saved(sender: Any, instance: Any, **kwargs: Any) -> None:
        numbers.append(int(str(instance.id), 16))

    return numbers


@pytest.fixture
async def topic(kafka_server, client: AsyncMongoClient[Any], database: str) -> Publisher:
    made = Publisher(kafka_server.address, f"{database}.accounts", PARTITIONS)
    made.second -= 100  # in the past; `later` counts up from this second
    made.token = token_at(Timestamp(made.second, 0))
    made.create(**{"message.timestamp.type": "LogAppendTime"})
    await made.begin(State(client, f"{database}_state"))
    return made


@pytest.fixture
def state(foreign) -> Any:
    return foreign.client[f"{foreign.name}_state"]


@pytest.fixture
async def position(dispatcher: Dispatcher, dispatched: mongoz.Registry) -> Any:
    """Runs `dispatcher position` in a thread, so that the event loop of the test continues meanwhile."""

    async def run(*arguments: str) -> Any:
        return await asyncio.to_thread(dispatcher, "position", *arguments)

    return run


def later(publisher: Publisher, *numbers: int) -> str:
    """Publish inserts, each a second after the one before. Returns the token of the last one."""
    for number in numbers:
        publisher.second += 1
        token = publisher.insert(id_of(number), number % PARTITIONS)
    return token


def reading(registry: mongoz.Registry, topic: Publisher) -> Any:
    return dispatching(registry, kafka=topic.address, kafka_topic=topic.topic)


async def delivered(registry: mongoz.Registry, topic: Publisher, got: list[int], *numbers: int) -> None:
    """Runs a dispatcher until it has delivered these numbers and read everything. Its stop saves the positions."""
    got.clear()
    async with reading(registry, topic) as running:
        await eventually(lambda: sorted(got) == sorted(numbers), what=f"{numbers} are delivered")
        await topic.save()
        await eventually(
            lambda: min(one.position for one in running.service.held.values()) >= topic.token, what="all is read"
        )
    assert sorted(got) == sorted(numbers)


async def test_the_place_in_the_topic_and_the_relays_position_are_shown(
    position, dispatched, topic, got, database
):
    later(topic, 1, 2, 3)
    await topic.save()
    await delivered(dispatched, topic, got)
    last = later(topic, 4, 5)
    await topic.save()
    shown = (await position("show", "--json")).json
    assert [one["position"] for one in shown] == [f"{database}:0", f"{database}:1"]
    places = SimpleNamespace(**shown[1])
    assert places.topic == topic.topic
    assert (places.offset, places.record_term, places.record_number) == (2, topic.term, 1)
    assert (places.relay_offset, places.relay_term, places.relay_number) == (3, topic.term, 2)
    assert places.relay_up_to == token_time(last).as_datetime().isoformat()
    assert "relay_up_to" in (await position("show")).out


async def test_a_time_is_found_in_all_partitions(position, dispatched, topic, got, state, foreign):
    await delivered(dispatched, topic, got)
    later(topic, 1, 2, 3)
    half = later(topic, 4)
    later(topic, 5, 6)
    await topic.save()
    await delivered(dispatched, topic, got, 1, 2, 3, 4, 5, 6)
    time = token_time(half)
    ran = await position("set", "--at", f"{time.time},1", "--kafka", topic.address, "--yes")
    assert ran.code == ExitCode.OK, ran
    saved = list(state.positions.find({"partition": {"$exists": True}}).sort("partition"))
    assert [one["log"]["offset"] for one in saved] == [1, 2]  # 4 is in the second record of partition 0
    await delivered(dispatched, topic, got, 4, 5, 6)
    assert (await position("set", "--at", half, "--kafka", topic.address, "--yes")).code == ExitCode.OK
    await delivered(dispatched, topic, got, 5, 6)
    assert not list(state.gaps.find())


async def test_now_and_a_reset_continue_at_the_relays_position(position, dispatched, topic, got, state):
    """Neither command needs a broker. The skipped changes are recorded as gaps."""
    await delivered(dispatched, topic, got)
    later(topic, 1, 2, 3)
    await topic.save()
    assert (await position("set", "--at", "now", "--yes")).code == ExitCode.OK
    assert state.gaps.count_documents({"kind": "position_set"}) == PARTITIONS
    topic.second += 3_600
    last = later(topic, 4)
    await delivered(dispatched, topic, got, 4)
    later(topic, 5)
    await topic.save()
    assert (await position("reset", "--yes")).code == ExitCode.OK
    async with reading(dispatched, topic):
        later(topic, 6)
        await eventually(lambda: 6 in got, what="the next change is delivered")
    assert got == [4, 6]
    assert last < topic.token


async def test_a_topic_that_does_not_reach_back_is_completed_by_the_oplog(
    position, dispatched, topic, got, state, foreign
):
    await delivered(dispatched, topic, got)
    half = later(topic, 1, 2, 3)
    later(topic, 4, 5)
    await topic.save()
    for partition, end in topic.ends(PARTITIONS).items():
        topic.forget_before(partition, end)
    at = ("--at", half, "--kafka", topic.address, "--yes")
    assert (await position("set", *at)).code == ExitCode.OK
    saved = list(state.positions.find({"partition": {"$exists": True}}))
    assert [(one["token"], "log" in one) for one in saved] == [(half, False)] * PARTITIONS
    point = {"failCommands": ["getMore"], "errorCode": 286, "appName": "mongoz-dispatcher-cli"}
    foreign.client.admin.command("configureFailPoint", "failCommand", mode={"times": 1}, data=point)
    try:
        lost = await position("set", *at)
    finally:
        foreign.client.admin.command("configureFailPoint", "failCommand", mode="off")
    assert lost.code == ExitCode.HISTORY_LOST
    assert f"of the topic '{topic.topic}' does not hold all changes since" in lost.error
    assert "The oplog at" in lost.error
    assert "Nothing was changed" in lost.error
    assert list(state.positions.find({"partition": {"$exists": True}})) == saved


@pytest.mark.parametrize(
    ("at", "code", "says"),
    [
        ("2020-01-01", ExitCode.HISTORY_LOST, "The relay publishes changes to the topic"),
        ("2100-01-01", ExitCode.POSITION, "is in the future"),
    ],
)
async def test_a_time_that_the_topic_never_had_is_refused(position, dispatched, topic, got, state, at, code, says):
    await delivered(dispatched, topic, got)
    before = list(state.positions.find())
    ran = await position("set", "--at", at, "--kafka", topic.address, "--yes")
    assert (ran.code, says in ran.error) == (code, True), ran
    assert list(state.positions.find()) == before


async def test_brokers_are_necessary_to_find_a_time(position, dispatched, topic, got, broker):
    await delivered(dispatched, topic, got)
    ran = await position("set", "--at", topic.token, "--yes")
    assert (ran.code, "Name the brokers with --kafka." in ran.error) == (ExitCode.POSITION, True), ran
    other = Publisher(broker.address, "", topic=topic.topic)
    other.create()
    ran = await position("set", "--at", topic.token, "--yes", "--kafka", broker.address)
    assert ran.code != ExitCode.OK


# -- a relay ------------------------------------------------------------------------------------------------


@pytest.fixture
async def relay(topic: Publisher, state: Any, client: AsyncMongoClient[Any]) -> str:
    """The name of a relay that has published, and does not run."""
    later(topic, 1, 2, 3)
    await topic.save()
    state.positions.insert_one({"_id": topic.topic, "group": topic.topic, "partitions": 1})
    values = {"group": topic.topic, "partition": 0, "partitions": 1, "term": 3, "beat": 1, "token": topic.token}
    state.positions.insert_one({"_id": f"{topic.topic}:0", "fingerprint": "f", **values})
    return topic.topic


async def test_a_relay_moves_forward_only(position, topic, relay, state, database):
    first = await position("show", "--group", relay, "--json")
    assert first.json[0]["topic"] == relay
    assert first.json[0]["relay_term"] == topic.term
    back = await position("set", "--at", "10min", "--group", relay, "--yes")
    assert (back.code, "is a relay, and it has published the changes until" in back.error) == (16, True), back
    assert "dispatcher replay" in back.error
    assert state.positions.find_one({"_id": f"{relay}:0"})["token"] == topic.token
    for arguments in (("set", "--at", "now"), ("reset",)):
        (moved,) = (await position(*arguments, "--group", relay, "--yes", "--json")).json
        assert moved["gap"] is None  # the relay records the gap
    assert (await position("switch", "--group", relay, "--yes")).code == ExitCode.USAGE
