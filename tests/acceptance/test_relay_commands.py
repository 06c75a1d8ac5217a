"""Commands of operators, for a group next to a relay and for the relay."""

import re
import time

import pytest
from bson import Timestamp
from pymongo.database import Database

from dispatcher.core.resume_tokens import token_at
from dispatcher.exceptions import ExitCode

RELAY = "mongoz.changes"

FOR_RECEIVERS = [
    ("pause",),
    ("pause", "invoice"),
    ("resume",),
    ("dead-letters", "list"),
    ("dead-letters", "show", "1"),
    ("dead-letters", "retry", "--all"),
    ("dead-letters", "drop", "--all", "--yes"),
    ("position", "switch", "--yes"),
]


@pytest.fixture
def state(foreign) -> Database:
    """The state of a relay."""
    state = foreign.client[f"{foreign.name}_state"]
    state.relays.insert_one({"_id": RELAY})
    state.positions.insert_one({"_id": f"{RELAY}:0", "group": RELAY, "partition": 0})
    return state


@pytest.fixture
def billing(state) -> Database:
    """The state of a relay and of a group."""
    state.positions.insert_one({"_id": "billing:0", "group": "billing", "partition": 0})
    return state


def test_the_only_group_is_found_beside_a_relay(dispatcher, billing):
    assert dispatcher("status", "--json").json["group"] == "billing"
    assert dispatcher("pause", "--json").json == {"receiver": None, "changed": True}
    assert billing.controls.find_one()["group"] == "billing"
    assert dispatcher("dead-letters", "list").out == "There are no dead letters.\n"
    assert dispatcher("position", "show", "--json").json[0]["position"] == "billing:0"


def test_a_relay_is_found_by_its_name_or_because_there_is_no_group(dispatcher, state):
    assert dispatcher("status", "--json").json["group"] == RELAY
    state.positions.insert_one({"_id": "billing:0", "group": "billing", "partition": 0})
    assert dispatcher("status", "--group", RELAY, "--json").json["group"] == RELAY
    unknown = dispatcher("status", "--group", "mongoz.chang")
    assert (unknown.code, f"Did you mean '{RELAY}'?" in unknown.error) == (ExitCode.NOT_FOUND, True)


def test_several_groups_beside_a_relay_are_an_error_that_names_only_groups(dispatcher, billing):
    billing.positions.insert_one({"_id": "shop:0", "group": "shop", "partition": 0})
    several = dispatcher("status")
    said = " ".join(several.error.replace("│", " ").split())
    assert (several.code, "billing, shop. Name one" in said) == (ExitCode.USAGE, True), said


@pytest.mark.parametrize("command", FOR_RECEIVERS, ids=" ".join)
def test_a_command_for_receivers_says_that_a_relay_has_none(dispatcher, billing, command):
    refused = dispatcher(*command, "--group", RELAY)
    said = " ".join(refused.error.replace("│", " ").split())
    assert (refused.code, f"'{RELAY}' is a relay." in said) == (ExitCode.USAGE, True), said
    assert "Name a group of dispatchers: billing." in said
    assert billing.controls.count_documents({}) == 0


def test_a_command_for_receivers_says_that_there_is_only_a_relay(dispatcher, state):
    refused = dispatcher("pause")
    assert (refused.code, f"'{RELAY}' is a relay." in " ".join(refused.error.split())) == (ExitCode.USAGE, True)


@pytest.fixture
def reading(state) -> Database:
    """The state of a relay, and of a group that read a part of the topic a minute ago. No process is alive."""
    at = Timestamp(int(time.time()) - 60, 1)
    marks = [{"offset": 100, "term": 5, "number": 99}, {"offset": 0, "term": 0, "number": -1}]
    relay = {
        **{"term": 5, "cluster": "c1", "topic_id": "t1", "partitions": marks, "retention_seconds": 86_400.0},
        **{"token": token_at(at), "cluster_time": at, "fingerprint": "f"},
        "collections": [{"name": "shop.orders", "since": token_at(at)}],
    }
    state.relays.update_one({"_id": RELAY}, {"$set": relay})
    topic = {"cluster_id": "c1", "name": RELAY}
    state.positions.insert_one({"_id": "billing", "group": "billing", "partitions": 2, "topic": topic})
    for number, offset in ((0, 40), (1, 0)):
        log = {"topic_id": "t1", "offset": offset, "term": 5, "number": offset - 1}
        place = {"group": "billing", "partition": number, "partitions": 2, "log": log, "cluster_time": at}
        state.positions.insert_one({"_id": f"billing:{number}", **place})
    return state


def fact(out: str, name: str) -> str:
    """The value in the first line with this name."""
    found = re.search(rf"^{name}  +(.*?) *$", out, re.MULTILINE)
    assert found is not None, out
    return found[1]


def test_status_shows_the_topic_and_its_lags_while_no_process_is_alive(dispatcher, reading):
    shown = dispatcher("status")
    assert fact(shown.out, "source") == f"the topic {RELAY} of the Kafka cluster c1"
    assert fact(shown.out, "relay") == "0 alive"
    assert re.fullmatch(
        r"unknown: no relay publishes; published until 1 min( \d+ s)? ago", fact(shown.out, "relay lag")
    )
    assert fact(shown.out, "broker lag") == "60 records"
    assert fact(shown.out, "delivery lag") == "unknown: no dispatcher is alive"
    assert fact(shown.out, "brokers") == "unknown: no process that asks them is alive"
    assert re.fullmatch(r"holds the position for another 23 h .* at least", fact(shown.out, "topic"))
    told = dispatcher("status", "--json").json
    assert (told["broker_lag"], told["delivery_lag_seconds"], told["is_relay"]) == (60, None, False)
    assert [one["broker_lag"] for one in told["partitions"]] == [60, 0]
    assert told["partitions"][1]["headroom_seconds"] == 86_400  # no record waits in this partition


def test_status_of_the_relay_shows_its_readers(dispatcher, reading):
    shown = dispatcher("status", "--group", RELAY).out
    assert fact(shown, "group") == f"{RELAY}, a relay"
    assert fact(shown, "health") == "down: no relay is alive"
    assert fact(shown, "publishes to").endswith("2 partitions, which keeps records for 1 d")
    assert re.search(r"^shop.orders  +\d{4}-", shown, re.MULTILINE)
    assert re.search(r"^billing  +0 alive  +60 records  +23 h", shown, re.MULTILINE)


def test_a_lag_in_an_earlier_topic_is_unknown(dispatcher, reading):
    reading.relays.update_one({"_id": RELAY}, {"$set": {"topic_id": "t2"}})
    assert fact(dispatcher("status").out, "broker lag") == "unknown"


def test_pausing_and_resuming_everything_names_the_topic(dispatcher, reading):
    assert (
        dispatcher("pause").out
        == f"everything is paused; changes wait in the topic {RELAY} of the Kafka cluster c1\n"
    )
    ended = "the pause of everything has ended; the dispatchers read on from"
    assert dispatcher("resume").out == f"{ended} the topic {RELAY} of the Kafka cluster c1\n"
    assert dispatcher("resume").out == "there was no pause of everything\n"
