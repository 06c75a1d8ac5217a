"""Commands of operators beside a relay, and on a relay."""

import pytest
from pymongo.database import Database

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


def test_a_relay_is_found_by_its_name_and_if_it_is_alone(dispatcher, state):
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
