"""pytest runs the files of the guide to testing, as printed, on a real server."""

import re
from pathlib import Path

import pytest
from pymongo import MongoClient

import dispatcher.testing
from dispatcher.embedded.server import EmbeddedMongo
from dispatcher.testing import Dispatcher, RecordedDelivery
from mongoz.testing import Captured
from tests.integration.test_docs import blocks, run_tests
from tests.support import ROOT

PAGE = "docs/how-to/testing.md"
TEXT = (ROOT / PAGE).read_text()


def run_guide(folder: Path, mongo: EmbeddedMongo, database: str, change: tuple[str, str] = ("", "")) -> str:
    """Runs pytest on the files of the guide, and returns the output.

    The files use the database of this test. `change` replaces a text in the files.
    """
    for block in blocks(PAGE):
        text = block.text.replace('"shop"', repr(database)).replace("dispatched=True", f"dispatched={database!r}")
        (folder / block.title).write_text(text.replace(*change) if change[0] else text)
    return run_tests(folder, mongo)


@pytest.mark.slow
def test_all_examples_pass(tmp_path: Path, mongo: EmbeddedMongo, database: str):
    said = run_guide(tmp_path, mongo, database)
    examples = sorted(re.findall(r"async def (test_\w+)", TEXT))
    assert len(examples) == 10
    assert sorted(re.findall(r"^PASSED \w+\.py::(\w+)", said, re.MULTILINE)) == examples, said
    with MongoClient(mongo.url) as client:
        left = [name for name in client.list_database_names() if name.startswith("dispatcher_test_")]
    assert left == []


@pytest.mark.slow
def test_examples_fail_if_the_receiver_is_wrong(tmp_path: Path, mongo: EmbeddedMongo, database: str):
    said = run_guide(tmp_path, mongo, database, ("if created:", "if not created:"))
    failed = set(re.findall(r"^FAILED \w+\.py::(\w+)", said, re.MULTILINE))
    assert {"test_a_user_of_another_service_is_welcomed", "test_writes_of_other_clients_arrive"} <= failed, said


@pytest.mark.parametrize(
    "kind", [Captured, Dispatcher, RecordedDelivery], ids=["capture", "Dispatcher", "deliveries"]
)
def test_the_guide_has_every_public_name(kind: type):
    if kind is RecordedDelivery:
        names = set(RecordedDelivery.__slots__) - {"document"}
    else:
        names = set(vars(kind)) - {"service"}
    missing = [name for name in names if not name.startswith("_") and not re.search(rf"\b{name}\b", TEXT)]
    assert missing == []


def test_every_name_is_in_the_guide():
    missing = [name for name in dispatcher.testing.__all__ if not re.search(rf"\b{name}\b", TEXT)]
    assert missing in ([], ["HandMade", "RecordedDelivery"])  # returned by functions, never constructed by users
