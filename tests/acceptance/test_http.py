"""The HTTP answers of a daemon: probes, metrics and status, also scraped by Prometheus."""

import asyncio
import contextlib
import http.client
import json
import logging
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dispatcher.core.stats import Stats
from dispatcher.exceptions import ExitCode
from dispatcher.operate.observer import Observer
from dispatcher.settings import Address, Settings
from dispatcher.web import connections
from dispatcher.web.server import Web, _Forwarding
from tests.acceptance.test_run import RECEIVER, assert_one_error, run, write_app
from tests.conftest import need
from tests.ledger import APP, IMAGES, Ledger
from tests.proxy import proxied
from tests.support import PATIENCE, Daemon, daemon, eventually, eventually_sync


@pytest.fixture
def ledger(mongo, database, tmp_path):
    return Ledger(tmp_path / "ledger", mongo.url, database)


@pytest.fixture
def running(ledger, foreign, tmp_path) -> Iterator[Daemon]:
    foreign.create_collection("accounts", **IMAGES)
    with daemon(APP, "--http", "127.0.0.1:0", cwd=tmp_path, **ledger.environment) as started:
        yield started


def address_of(running: Daemon) -> str:
    """Waits for the HTTP address of a daemon."""
    (listening,) = eventually_sync(lambda: running.lines("http.listening"), within=60, what=running)
    return listening["address"]


def get(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def get_json(url: str) -> tuple[int, dict]:
    status, body = get(url)
    return status, json.loads(body)


def metric(address: str, name: str, **labels: str) -> float | None:
    """The sum of a metric's samples with these labels; None without samples."""
    status, body = get(f"{address}/metrics")
    assert status == 200
    values = [
        sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
        if sample.name == f"mongoz_dispatcher_{name}" and labels.items() <= sample.labels.items()
    ]
    return sum(values) if values else None


@pytest.mark.slow
def test_a_daemon_answers_probes_metrics_and_status(running, foreign):
    address = address_of(running)
    assert get_json(f"{address}/livez") == (200, {"alive": True, "reasons": []})
    eventually_sync(lambda: get(f"{address}/readyz")[0] == 200)
    assert get_json(f"{address}/readyz")[1]["partitions"] == [0]
    foreign["accounts"].insert_many([{"name": "a", "n": 1}, {"name": "b", "n": 1}])
    foreign["accounts"].insert_one({"name": "c", "n": "no number"})
    eventually_sync(lambda: metric(address, "deliveries_total", signal="post_save") == 2)
    eventually_sync(lambda: metric(address, "invalid_documents_total") == 1)
    assert metric(address, "changes_read_total", group=foreign.name) == 3
    assert metric(address, "delivery_latency_seconds_count", receiver="tests.acceptance.apps.ledger.note") >= 1
    assert metric(address, "stream_connected", partition="0") == 1
    eventually_sync(lambda: metric(address, "lag_seconds") == 0)
    for name in ("oplog_window_seconds", "oplog_headroom_seconds", "dead_letters"):
        eventually_sync(lambda name=name: metric(address, name) is not None, what=name)
    receiver = "tests.acceptance.apps.ledger.note"
    eventually_sync(lambda: metric(address, "health", health="failing") == 1, within=30, what="health")
    assert metric(address, "health", health="delivering") == 0
    assert metric(address, "receiver_health", receiver=receiver, health="failing") == 1
    status, shown = get_json(f"{address}/status.json")
    assert (shown["group"]["health"]["health"], receiver in shown["group"]["health"]["why"]) == ("failing", True)
    assert (status, shown["group_error"]) == (200, None)
    assert shown["process"]["counters"]["delivered"] == 2
    assert shown["group"]["partitions"][0]["number"] == 0
    waiting = {"waiting": 0, "oldest_seconds": 0.0, "processes": {}}
    assert shown["process"]["partitions"]["0"]["claims"] == waiting
    assert shown["group"]["dead_letters"][0]["receiver"] == "tests.acceptance.apps.ledger.note"
    assert get(f"{address}/nothing")[0] == 404
    assert running.terminate() == ExitCode.OK
    assert "Traceback" not in running.log


def test_answers_have_security_headers_and_a_foreign_host_name_is_refused(running):
    host = urllib.parse.urlsplit(address_of(running)).netloc
    connection = http.client.HTTPConnection(host, timeout=PATIENCE)
    connection.request("GET", "/status.json")
    answer = connection.getresponse()
    answer.read()
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["Server"] is None
    connection.request("GET", "/status.json", headers={"Host": "evil.example:8787"})
    refused = connection.getresponse()
    assert refused.status == 421
    assert b"group" not in refused.read()
    connection.request("POST", "/metrics")
    assert connection.getresponse().status == 405
    connection.close()


@pytest.fixture
async def served(monkeypatch) -> AsyncIterator[Address]:
    """The HTTP server alone, with short time limits."""
    monkeypatch.setattr(connections, "PATIENCE", 0.5)
    observer = Observer(Stats(), group="g", settings=Settings(), gauges=dict)
    web = Web(Settings(http="127.0.0.1:0", http_token="sixteen letters or more"), observer)
    stop, going = asyncio.Event(), asyncio.Event()

    async def run(stop: asyncio.Event) -> None:
        going.set()
        await stop.wait()

    task = asyncio.create_task(web.beside(run, stop))
    await going.wait()
    where = urllib.parse.urlsplit(observer.http)
    yield Address(where.hostname, where.port)
    stop.set()
    await task


async def ask(where: Address, path: str = "/livez") -> bytes:
    """The first line of an answer."""
    reader, writer = await asyncio.open_connection(*where)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    try:
        return await asyncio.wait_for(reader.readline(), PATIENCE)
    finally:
        writer.close()


OK = b"HTTP/1.1 200 OK\r\n"
HEAD = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"


async def test_idle_clients_do_not_prevent_answers_to_other_clients(served, monkeypatch):
    monkeypatch.setattr(connections, "PATIENCE", 60.0)
    assert await ask(served) == OK  # the server answers
    idle = [await asyncio.open_connection(*served) for _ in range(connections.MOST_CONNECTIONS + 50)]
    for _, writer in idle[60:]:
        writer.write(HEAD)
    for path in ("/livez", "/livez", "/metrics", "/status.json"):
        assert await ask(served, path) == OK
    for reader, _ in idle[:50]:
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), PATIENCE) == b"", "the oldest connections are closed"
    reader, writer = idle[-1]
    writer.write(b"Connection: close\r\n\r\n")
    assert await asyncio.wait_for(reader.readline(), PATIENCE) == OK, "the newest connections stay"
    for _, writer in idle:
        writer.close()


SLOW = {
    "nothing": [],
    "a part of the headers": [HEAD],
    "headers that trickle": [HEAD, *[b"X: y\r\n"] * 1_000],
    "an answered request, and a part of the next": [HEAD + b"\r\n", HEAD],
    "a body that does not come": [
        b"POST /dashboard/api/pause HTTP/1.1\r\nHost: localhost\r\n"
        b"Authorization: Bearer sixteen letters or more\r\n"
        b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    ],
    "a body that trickles after its answer": [
        b"POST /dashboard/api/pause HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000\r\n\r\n",
        *[b"x"] * 1_000,
    ],
}


@pytest.mark.parametrize("sent", SLOW.values(), ids=list(SLOW))
async def test_a_slow_client_is_disconnected(served, sent):
    reader, writer = await asyncio.open_connection(*served)

    async def send() -> None:
        for piece in sent:
            writer.write(piece)
            await asyncio.sleep(0.05)

    sending = asyncio.create_task(send())
    async with asyncio.timeout(PATIENCE):
        with contextlib.suppress(ConnectionError):
            while await reader.read(1_000):
                pass
    sending.cancel()
    writer.close()
    assert await ask(served) == OK


@pytest.mark.slow
async def test_a_daemon_is_not_ready_while_the_server_is_away(ledger, mongo, foreign, tmp_path):
    foreign.create_collection("accounts", **IMAGES)
    async with proxied(mongo.url) as proxy:
        environment = {**ledger.environment, "LEDGER_URL": proxy.url}
        with daemon(APP, "--http", ":0", cwd=tmp_path, **environment) as running:
            await eventually(lambda: running.lines("http.listening"), what=running)
            (listening,) = running.lines("http.listening")
            address = listening["address"]

            async def answers(path: str, status: int) -> dict:
                async with asyncio.timeout(PATIENCE):  # in a thread: the proxy needs this loop
                    while (answer := await asyncio.to_thread(get_json, f"{address}{path}"))[0] != status:
                        pass
                return answer[1]

            await answers("/readyz", 200)
            proxy.refuse()
            gone = await answers("/readyz", 503)
            assert any("not open" in reason for reason in gone["reasons"])
            await answers("/livez", 200)
            proxy.accept()
            await answers("/readyz", 200)
            running.process.send_signal(signal.SIGTERM)
            await eventually(lambda: running.process.poll() is not None)
            assert running.process.returncode == ExitCode.OK


def test_an_explicit_port_in_use_is_an_error(tmp_path, mongo):
    app = write_app(tmp_path, mongo.url, receivers=RECEIVER)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        result = run("run", app, "--http", where, cwd=tmp_path)
    assert result.returncode == ExitCode.CANNOT_LISTEN
    assert_one_error(result, f"The HTTP server can't listen at {where}: Address already in use")


async def test_another_port_is_chosen_if_the_default_port_is_in_use(monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        usual = Address("127.0.0.1", taken.getsockname()[1])
        monkeypatch.setattr("dispatcher.web.server._USUAL", usual)
        observer = Observer(Stats(), group="g", settings=Settings(), gauges=dict)
        web = Web(Settings(http="auto"), observer)

        async def run(stop: asyncio.Event) -> None:
            assert observer.http.startswith("http://127.0.0.1:")
            assert observer.http != f"http://127.0.0.1:{usual.port}"
            where = urllib.parse.urlsplit(observer.http)
            socket.create_connection((where.hostname, where.port), 5).close()

        await web.beside(run, asyncio.Event())
    assert "http.port_taken" in capsys.readouterr().out


def test_an_error_of_the_http_server_is_logged_with_its_cause(capsys):
    try:
        raise ZeroDivisionError("the cause")
    except ZeroDivisionError:
        record = logging.LogRecord("uvicorn.error", logging.ERROR, "", 0, "Trouble\n", (), sys.exc_info())
    _Forwarding().emit(record)
    logged = capsys.readouterr().out
    assert "http.trouble" in logged
    assert "ZeroDivisionError: the cause" in logged


def test_an_invalid_address_is_an_error(tmp_path):
    app = write_app(tmp_path, "mongodb://localhost", receivers=RECEIVER)
    result = run("run", app, "--http", "localhost:http", cwd=tmp_path)
    assert result.returncode == ExitCode.USAGE
    assert "--http" in result.stderr


@pytest.mark.slow
def test_prometheus_scrapes_a_daemon(running, foreign, tmp_path):
    prometheus = need("prometheus")
    address = address_of(running)
    foreign["accounts"].insert_many([{"name": name, "n": 1} for name in "abc"])
    config = {
        "global": {"scrape_interval": "200ms", "scrape_timeout": "200ms"},
        "scrape_configs": [
            {"job_name": "dispatcher", "static_configs": [{"targets": [urllib.parse.urlsplit(address).netloc]}]}
        ],
    }
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [
            prometheus,
            f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def asked(query: str) -> list:
        url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        try:
            return get_json(url)[1]["data"]["result"]
        except (OSError, ValueError, KeyError):
            return []

    try:
        eventually_sync(lambda: [one["value"][1] for one in asked("up")] == ["1"], what="up")
        total = "sum(mongoz_dispatcher_deliveries_total)"
        eventually_sync(lambda: [one["value"][1] for one in asked(total)] == ["3"], what=total)
        quantile = "histogram_quantile(0.99, mongoz_dispatcher_delivery_latency_seconds_bucket)"
        (found,) = eventually_sync(lambda: asked(quantile), what=quantile)
        assert found["metric"]["receiver"] == "tests.acceptance.apps.ledger.note"
        (lag,) = asked("mongoz_dispatcher_lag_seconds")
        assert lag["metric"]["partition"] == "0"
    finally:
        process.terminate()
        process.wait(PATIENCE)
