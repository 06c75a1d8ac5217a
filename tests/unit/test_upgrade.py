"""Documents of earlier versions become held deliveries."""

from datetime import datetime
from typing import Any

import bson
import pytest
from bson import ObjectId

from dispatcher.core.bson_elements import readable
from dispatcher.parking.record import short_id
from dispatcher.parking.upgrade import EarlierDocument, dead_letter, waiting_delivery
from tests.earlier_state import captured

FOUND = captured()
LANES = {lane["_id"]: lane for lane in FOUND["parked_lanes"]}
LETTERS = {letter["_id"]: letter for letter in FOUND["dead_letters"]}

# Fields that were renamed or removed.
CHANGED = {"_id", "chunked", "again", "lane_document"}


def rows(receiver: str) -> list[dict[str, Any]]:
    """The deliveries of a lane, with the document of the lane."""
    mine = [row for row in FOUND["parked"] if row["receiver"] == receiver]
    return [{**row, "lane_document": [LANES[row["lane"]]]} for row in sorted(mine, key=lambda row: row["_id"])]


def upgraded(row: dict[str, Any], *, head: bool = True, letter: Any = None, files: Any = None) -> dict[str, Any]:
    of = None if letter is None else found(letter)
    return readable(waiting_delivery(found(row), of, files or {}, head=head))


def found(document: dict[str, Any]) -> EarlierDocument:
    return EarlierDocument(bson.encode(document), document)


def test_a_blocked_lane_keeps_its_attempts_and_its_order():
    first, second, third = rows("blocking")
    lane = LANES[first["lane"]]
    head = upgraded(first)
    assert (head["state"], head["due_at"], head["lane"]) == ("blocked", lane["due_at"], lane["_id"])
    assert (head["attempts"], head["first_attempt_at"]) == (lane["attempts"], lane["first_attempt_at"])
    assert head["error"] == lane["error"]
    followers = [upgraded(row, head=False) for row in (second, third)]
    assert [one["state"] for one in followers] == ["following", "following"]
    assert not any({"due_at", "attempts"} & one.keys() for one in followers)
    tokens = [one["token"] for one in (head, *followers)]
    assert tokens == sorted(tokens)


@pytest.mark.parametrize("receiver", ["blocking", "retrying", "resting"])
def test_a_delivery_keeps_its_content(receiver):
    for row in rows(receiver):
        made = upgraded(row)
        kept = {name: value for name, value in row.items() if name not in CHANGED}
        assert made.items() >= kept.items()
        assert made["_id"] == f"{row['delivery_id']}:{row['receiver_id']}:{row['document']}"
        assert "reason" not in made


def test_a_retry_and_its_dead_letter_become_one_record():
    (row,) = rows("dying")
    letter = LETTERS[row["again"]["letter"]]
    made = upgraded(row, letter=letter)
    assert made["_id"] == letter["_id"]
    assert (made["state"], made["reason"], made["error"]) == ("retry", "failed", letter["error"])
    assert (made["short_id"], made["retrying_since"]) == (letter["short_id"], letter["retrying_since"])
    assert "attempts" not in made
    assert made["by"] == row["by"]
    alone = upgraded(row)  # the dead letter was delivered or dropped
    assert ("reason" in alone, alone["_id"]) == (False, letter["_id"])


def test_a_blocked_delivery_after_a_retry_keeps_its_attempts():
    first, second, _ = rows("blocking")
    second["lane_document"] = [{**LANES[first["lane"]], "token": second["token"]}]
    made = upgraded(second, head=False)
    assert (made["state"], made["attempts"]) == ("following", LANES[first["lane"]]["attempts"])


def test_the_name_of_the_receiver_comes_from_the_lane():
    row = rows("blocking")[0]
    made = upgraded({**row, "receiver": "renamed"})
    assert made["receiver"] == "blocking"


def test_a_dead_letter_stays_a_dead_letter():
    letter = next(one for one in LETTERS.values() if "retrying_since" not in one)
    made = readable(dead_letter(found(letter), {"before": ObjectId("0" * 24)}))
    assert made.pop("state") == "dead"
    assert made.pop("files") == {"before": ObjectId("0" * 24)}
    assert made == {name: value for name, value in letter.items() if name != "chunked"}
    without = {name: value for name, value in letter.items() if name != "short_id"}
    assert readable(dead_letter(found(without), {}))["short_id"] == short_id(letter["_id"])


def test_invalid_and_missing_fields_get_default_values():
    row = {"_id": "l:1", "lane": "l", "group": "g", "lane_document": [{"_id": "l", "due_at": "soon", "reason": 5}]}
    made = upgraded(row)
    assert (made["_id"], made["state"], made["due_at"]) == ("l:1", "retrying", datetime(1970, 1, 1))
    assert upgraded({"_id": ObjectId("0" * 24), "group": "g"})["lane"] == "0" * 24
    made = readable(dead_letter(found({"_id": ObjectId("0" * 24), "group": "g"}), {}))
    assert made == {"_id": ObjectId("0" * 24), "group": "g", "state": "dead", "reason": None}
