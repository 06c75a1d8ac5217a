"""The HTTP server of a supervisor passes requests to its processes. Some of them hang, or do not run."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dispatcher.supervise import front
from dispatcher.supervise.front import Front

READY = b'{"ready": true, "reasons": [], "partitions": [], "paused": []}'


@asynccontextmanager
async def process_at(path: Path) -> AsyncIterator[list[bytes]]:
    """A process that is ready. The list has the requests that it receives."""
    requests: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(READY) + READY)
        await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(answer, path)
    try:
        yield requests
    finally:
        server.close()


@pytest.fixture
def hung(tmp_path):
    """The path of a process that listens, and never answers."""
    with socket.socket(socket.AF_UNIX) as listening:
        path = tmp_path / "hung"
        listening.bind(str(path))
        listening.listen(4)
        yield path


async def ask(app: Front, path: str, version: str = "1.1", headers: Any = ((b"host", b"localhost"),)) -> Any:
    """The status and the body of an answer."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "http_version": version,
        "headers": list(headers),
        "client": ("10.0.0.1", 1),
    }
    await app(scope, receive, send)
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], json.loads(body)


async def test_many_requests_do_not_make_a_hung_process_look_alive(monkeypatch, hung):
    monkeypatch.setattr(front, "_PROBE_SECONDS", 0.01)
    app = Front({"1": str(hung)})
    for _ in range(20):  # more requests than the queue of the socket holds
        assert await ask(app, "/livez") == (503, {"alive": False, "reasons": ["process 1: it does not answer"]})


async def test_a_process_that_is_not_running_does_not_make_the_probe_fail(tmp_path):
    assert await ask(Front({"1": str(tmp_path / "nothing")}), "/livez") == (200, {"alive": True, "reasons": []})


async def test_a_request_does_not_wait_for_a_hung_process_if_another_one_is_ready(monkeypatch, hung, tmp_path):
    monkeypatch.setattr(front, "_PROBE_SECONDS", 1e6)
    async with process_at(tmp_path / "2"), asyncio.timeout(60):
        assert (await ask(Front({"1": str(hung), "2": str(tmp_path / "2")}), "/status.json"))[0] == 200


async def test_the_first_process_that_is_ready_answers(tmp_path):
    async with process_at(tmp_path / "1") as first, process_at(tmp_path / "2") as second:
        app = Front({"0": str(tmp_path / "0"), "1": str(tmp_path / "1"), "2": str(tmp_path / "2")})
        assert (await ask(app, "/status.json"))[0] == 200
    assert (len(first), len(second)) == (2, 1)


async def test_a_request_without_a_host_is_passed_on(tmp_path):
    async with process_at(tmp_path / "1") as requests:
        assert (await ask(Front({"1": str(tmp_path / "1")}), "/status.json", "1.0", ()))[0] == 200
    assert b"host: \r\n" in requests[-1].lower()
    assert b"x-dispatcher-client: 1.0 10.0.0.1\r\n" in requests[-1].lower()
