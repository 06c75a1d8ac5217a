"""`dispatcher run --traces` sends spans over OTLP. At its end it sends the last spans."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from dispatcher.exceptions import ExitCode
from tests.ledger import APP, IMAGES, Ledger
from tests.support import daemon, eventually_sync

OTLP = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.fixture
def ledger(mongo, database, tmp_path):
    return Ledger(tmp_path / "ledger", mongo.url, database)


@pytest.fixture
def collector() -> Iterator[Any]:
    """Receives spans; `.requests` are the OTLP requests."""
    requests: list[ExportTraceServiceRequest] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["Content-Length"]))
            requests.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requests = requests  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.slow
def test_spans_arrive_at_the_collector(ledger, foreign, tmp_path, collector):
    foreign.create_collection("accounts", **IMAGES)
    environment = {
        **ledger.environment,
        OTLP: f"http://127.0.0.1:{collector.server_port}",
        "DISPATCHER_TRACES": "1",
    }
    with daemon(APP, cwd=tmp_path, **environment) as running:
        running.wait_started()
        foreign["accounts"].insert_one({"name": "Ada", "n": 1})
        eventually_sync(lambda: len(ledger()) == 1)
        assert running.terminate() == ExitCode.OK
    spans = [
        (resource.resource, span)
        for request in collector.requests
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    ((resource, span),) = [one for one in spans if one[1].name == "process accounts"]
    named = {each.key: each.value.string_value for each in resource.attributes}
    assert named["service.name"] == "mongoz-dispatcher"
    attributes = {each.key: each.value.string_value for each in span.attributes}
    assert attributes["messaging.destination.name"] == f"{foreign.name}.accounts"
    assert attributes["messaging.operation.name"] == "post_save"


@pytest.mark.slow
def test_deliveries_continue_without_the_collector(ledger, foreign, tmp_path):
    foreign.create_collection("accounts", **IMAGES)
    environment = {**ledger.environment, OTLP: "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    with daemon(APP, "--traces", cwd=tmp_path, **environment) as running:
        running.wait_started()
        foreign["accounts"].insert_one({"name": "Ada", "n": 1})
        eventually_sync(lambda: len(ledger()) == 1)
        assert running.terminate() == ExitCode.OK
