"""Retries, time limit and `on_failure` of a delivery come from the receiver's options, else from the settings."""

from datetime import UTC, datetime

import bson
import pytest
from bson.raw_bson import RawBSONDocument
from bson.timestamp import Timestamp

from dispatcher.core.bson_codec import RAW
from dispatcher.core.events import Calls
from dispatcher.delivery.instances import originals_of, untouched
from dispatcher.delivery.outcome import Failure
from dispatcher.delivery.terms import Policy
from dispatcher.parking.record import failed, record_of
from dispatcher.stream.decode import decode
from mongoz.connection.codec import CODEC_OPTIONS
from mongoz.signals.options import Options, Retry
from mongoz.signals.receivers import Receiver


def test_the_settings_apply_where_a_receiver_has_no_option():
    terms = Policy(7, 90.0).terms_of(Options())
    assert (terms.retry, terms.timeout, terms.on_failure) == (Retry(7), 90.0, "dead_letter")
    own = Policy(7, 90.0).terms_of(Options(retry=Retry(2, 1.0, 3.0), timeout=4.0, on_failure="block"))
    assert (own.retry, own.timeout, own.on_failure) == (Retry(2, 1.0, 3.0), 4.0, "block")


@pytest.mark.parametrize(("setting", "expected"), [(90.0, 50.0), (30.0, 30.0)])
def test_the_time_limit_of_a_transaction_is_below_the_limit_of_the_server(setting, expected):
    assert Policy(1, setting).terms_of(Options(transactional=True)).timeout == expected


def test_on_failure_block_means_dead_letter_where_blocking_is_impossible():
    assert Policy(7, 1.0, blocking=False).terms_of(Options(on_failure="block")).on_failure == "dead_letter"


def test_with_once_a_delivery_has_one_attempt_and_a_failure_is_dropped():
    terms = Policy(7, 1.0, once=True).terms_of(Options(retry=Retry(9), on_failure="block"))
    assert (terms.retry.attempts, terms.on_failure) == (1, "drop")


class Thing:
    """Stands for a document class."""


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def change(**fields):
    event = {
        "_id": {"_data": "82"},
        "operationType": "insert",
        "clusterTime": Timestamp(1, 1),
        "ns": {"db": "d", "coll": "c"},
        "documentKey": {"_id": 1},
        **fields,
    }
    return decode(RawBSONDocument(bson.encode(event), codec_options=RAW), CODEC_OPTIONS)


@pytest.mark.parametrize("error", [ValueError("no \ud800 luck"), Unprintable(), ValueError("x" * 20_000_000)])
def test_a_dead_letter_can_hold_any_error(error):
    calls = Calls(Thing, "post_save", True, ())
    failure = Failure(error, datetime.now(UTC), 1)
    receiver = Receiver(test_a_dead_letter_can_hold_any_error, "r", 1)
    letter = failed(record_of(change(fullDocument={"_id": 1}), calls, receiver, term=1, group="g"), failure)
    assert len(bson.encode(letter.fields)) < 100_000
    assert letter.fields["error"]["message"].startswith(type(error).__name__)


def test_a_change_keeps_its_original_documents_although_receivers_change_them():
    one = change(fullDocument={"_id": 1, "tags": ["a"]}, fullDocumentBeforeChange={"_id": 1})
    assert one.document is not None
    one.document["tags"].append("b")
    one.document.pop("_id")
    again = untouched(one, CODEC_OPTIONS)
    assert (again.document, again.before) == ({"_id": 1, "tags": ["a"]}, {"_id": 1})
    assert originals_of(one).document == bson.encode({"_id": 1, "tags": ["a"]})


def test_a_looked_up_document_counts_as_the_original():
    one = change(operationType="update", updateDescription={"updatedFields": {}, "removedFields": []})
    assert originals_of(one) == (None, None)
    row = bson.encode({"_id": 1, "n": 2})
    assert originals_of(one._replace(looked_up=row)).document == row
