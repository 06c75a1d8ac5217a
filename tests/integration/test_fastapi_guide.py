"""The service of the FastAPI guide: its tests pass, and its processes print what the page prints."""

import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from dispatcher.embedded.server import EmbeddedMongo
from tests.integration.test_docs import blocks, localized, run_tests, running, wait_for
from tests.support import PATIENCE, free_port

PAGE = "docs/how-to/fastapi.md"


@pytest.fixture
def service(tmp_path: Path, mongo: EmbeddedMongo, database: str) -> Path:
    """The folder with the files of the guide, which use the server and the database of this test."""
    for block in blocks(PAGE):
        if block.title.endswith((".py", ".ini")):
            text = localized(block.text, mongo, database)
            (tmp_path / block.title).write_text(text.replace("dispatched=True", f"dispatched={database!r}"))
    return tmp_path


@pytest.mark.slow
def test_the_tests_of_the_guide_pass(service: Path, mongo: EmbeddedMongo):
    said = run_tests(service, mongo)
    examples = sorted(re.findall(r"async def (test_\w+)", (service / "test_api.py").read_text()))
    assert sorted(re.findall(r"^PASSED \w+\.py::(\w+)", said, re.MULTILINE)) == examples, said
    assert len(examples) == 3


@pytest.mark.slow
def test_two_workers_and_a_dispatcher_print_what_the_guide_prints(service: Path):
    printed = {block.title: block.text for block in blocks(PAGE) if block.title.startswith("output")}
    port = free_port()
    client = service / "client.py"
    client.write_text(client.read_text().replace(":8000", f":{port}"))
    uvicorn = ["uvicorn", "api:app", "--workers", "2", "--port", str(port)]
    with (
        running(["dispatcher", "run", "shop:registry"], service, service / "log", {}) as said,
        running(uvicorn, service, service / "uvicorn.log", {}) as served,
    ):
        wait_for("dispatcher.started", said)
        wait_until_all_workers_started(served)
        ran = subprocess.run(
            [sys.executable, str(client)], capture_output=True, text=True, check=False, timeout=PATIENCE
        )
        assert ran.stdout == printed["output of client.py"], ran.stderr + served()
        wait_for(printed["output"], said)
        schema = httpx.get(f"http://127.0.0.1:{port}/openapi.json").json()
    assert_requests_and_responses_say_the_same(schema)
    assert "Traceback" not in served()


def wait_until_all_workers_started(served) -> None:
    deadline = time.monotonic() + PATIENCE
    while served().count("Application startup complete") < 2:
        assert time.monotonic() < deadline, served()
        time.sleep(0.05)


def assert_requests_and_responses_say_the_same(schema: dict) -> None:
    """A document has one schema for both directions, and ids have their pattern everywhere."""
    assert {"Article", "NewArticle", "AuthorShown"} <= schema["components"]["schemas"].keys()
    article = schema["components"]["schemas"]["Article"]
    assert list(article["properties"]) == ["id", "title", "year", "published", "author"]
    assert sorted(article["required"]) == ["author", "title", "year"]
    ids = [article["properties"]["author"], schema["components"]["schemas"]["AuthorShown"]["properties"]["id"]]
    ids += [each["schema"] for each in schema["paths"]["/articles/{article_id}"]["get"]["parameters"]]
    assert {each["pattern"] for each in ids} == {"^[0-9a-fA-F]{24}$"}
