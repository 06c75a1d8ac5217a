"""OpenTelemetry: each attempt has a span with its attributes and its outcome."""

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import mongoz
from dispatcher.core.stats import Stats
from dispatcher.delivery.tracing import exporting, tracing_of
from dispatcher.exceptions import NotInstalled
from dispatcher.runs import replay
from dispatcher.runs.player import workplace
from dispatcher.settings import Settings
from mongoz import Batch
from mongoz.core.signals import post_save
from mongoz.signals.options import Retry
from tests.integration.test_replay import behind
from tests.support import dispatching, eventually, settings_for

Spans = Callable[[], list[ReadableSpan]]

_exporter = InMemorySpanExporter()


@pytest.fixture(autouse=True)
def spans() -> Spans:
    """The exported spans. All tests share a provider, because a process can have only one."""
    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(_exporter))
        trace.set_tracer_provider(provider)
    _exporter.clear()
    return lambda: list(_exporter.get_finished_spans())


async def test_a_delivery_has_a_span(account, foreign, dispatched, spans, database):
    got = []

    @post_save(account, name="welcome")
    async def welcome(sender, instance, delivery, **kwargs):
        got.append(delivery)
        with trace.get_tracer("shop").start_as_current_span("mail"):
            pass

    async with dispatching(dispatched, traces=True) as running:
        foreign["accounts"].insert_one({"name": "Ada"})
        await eventually(lambda: len(spans()) == 2)
    mail, span = spans()
    (delivery,) = got
    assert (span.name, span.kind, span.status.status_code) == (
        "process accounts",
        SpanKind.CONSUMER,
        StatusCode.UNSET,
    )
    assert mail.parent.span_id == span.context.span_id
    attributes = dict(span.attributes)
    assert 0 <= attributes.pop("mongoz.lag") < 10
    assert attributes == {
        "messaging.system": "mongodb",
        "messaging.operation.type": "process",
        "messaging.operation.name": "post_save",
        "messaging.destination.name": f"{database}.accounts",
        "messaging.message.id": delivery.id,
        "db.namespace": database,
        "db.collection.name": "accounts",
        "mongoz.document": account.__qualname__,
        "mongoz.receiver": "welcome",
        "mongoz.operation": "insert",
        "mongoz.attempt": 1,
        "mongoz.term": 1,
        "mongoz.image": "post",
        "mongoz.replayed": False,
        "mongoz.hops": 0,
    }
    assert running.stats.delivered == 1


async def test_without_the_flag_there_are_no_spans(account, foreign, dispatched, spans):
    seen = []

    @post_save(account, name="welcome")
    async def welcome(sender, instance, **kwargs):
        seen.append(instance.name)

    async with dispatching(dispatched):
        foreign["accounts"].insert_one({"name": "Ada"})
        await eventually(lambda: seen)
    assert spans() == []


async def test_spans_of_failed_attempts_have_the_error(account, foreign, dispatched, spans):
    calls = 0

    @post_save(account, name="shaky", retry=Retry(3, base=0.01), timeout=0.1)
    async def shaky(sender, instance, **kwargs):
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ValueError("no mail server")
        if calls == 2:
            await asyncio.sleep(60)

    async with dispatching(dispatched, traces=True):
        foreign["accounts"].insert_one({"name": "Ada"})
        await eventually(lambda: len(spans()) == 3)
    raised, late, delivered = spans()
    assert [dict(one.attributes)["mongoz.attempt"] for one in (raised, late, delivered)] == [1, 2, 3]
    assert len({dict(one.attributes)["messaging.message.id"] for one in (raised, late, delivered)}) == 1
    assert (raised.status.status_code, raised.status.description) == (
        StatusCode.ERROR,
        "ValueError: no mail server",
    )
    assert raised.attributes["error.type"] == "ValueError"
    (event,) = raised.events
    assert event.attributes["exception.message"] == "no mail server"
    assert (late.status.status_code, late.attributes["error.type"]) == (StatusCode.ERROR, "CancelledError")
    assert delivered.status.status_code == StatusCode.UNSET


async def test_the_span_of_an_attempt_that_raises_retry_after_has_no_error(account, foreign, dispatched, spans):
    calls = 0

    @post_save(account, name="busy")
    async def busy(sender, **kwargs):
        nonlocal calls
        calls += 1
        if calls == 1:
            raise mongoz.RetryAfter(0.01)

    async with dispatching(dispatched, traces=True):
        foreign["accounts"].insert_one({"name": "Ada"})
        await eventually(lambda: len(spans()) == 2)
    postponed, delivered = spans()
    assert (postponed.status.status_code, delivered.status.status_code) == (StatusCode.UNSET, StatusCode.UNSET)
    (event,) = postponed.events
    assert (event.name, dict(event.attributes)) == ("retry_after", {"seconds": 0.01})
    assert [dict(one.attributes)["mongoz.attempt"] for one in (postponed, delivered)] == [1, 1]


async def test_a_span_of_an_error_has_no_secret(account, foreign, dispatched, spans):
    @post_save(account, name="leaky", retry=1)
    async def leaky(sender, instance, **kwargs):
        raise ValueError("GET https://example.org/?api_key=hunter2 with Authorization: Bearer hunter2")

    async with dispatching(dispatched, traces=True):
        foreign["accounts"].insert_one({"name": "Ada"})
        await eventually(spans)
    (span,) = spans()
    assert "hunter2" not in span.to_json()
    (event,) = span.events
    assert event.attributes["exception.type"] == "ValueError"
    assert "in leaky" in event.attributes["exception.stacktrace"]


async def test_a_transactional_receiver_has_a_span(account, foreign, dispatched, spans):
    @post_save(account, name="books", transactional=True)
    async def books(sender, instance, delivery, **kwargs):
        assert delivery.session.in_transaction
        assert trace.get_current_span().is_recording()

    async with dispatching(dispatched, traces=True) as running:
        foreign["accounts"].insert_one({"name": "Ada"})
        await eventually(lambda: running.stats.delivered == 1)
    assert [one.attributes["mongoz.receiver"] for one in spans()] == ["books"]


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    settings = Settings(traces=True)
    with pytest.raises(NotInstalled, match="OpenTelemetry is not installed") as raised, exporting(settings):
        pass
    assert raised.value.remedy == "pip install '.[otel]' (in a checkout of the repository)"
    with pytest.raises(NotInstalled):
        tracing_of(settings, Stats())
    with exporting(Settings()):  # without the flag no package is needed
        assert tracing_of(Settings(), Stats()) is None


async def test_a_delivery_is_in_the_trace_of_the_write_and_a_replay_links_to_the_span_of_the_writer(
    account, foreign, dispatched, spans
):
    """A write without a context, a foreign write, and an invalid `traceparent` begin a trace of their own."""
    names: list[str] = []

    @post_save(account, name="welcome", delivery="dispatcher")
    async def welcome(sender, instance, **kwargs):
        names.append(instance.name)

    begin = behind(foreign)
    async with dispatching(dispatched, traces=True):
        with trace.get_tracer("shop").start_as_current_span("sign up") as request, mongoz.context(user="ada"):
            await account(name="ada").create()
        writer = request.get_span_context()
        with trace.get_tracer("shop").start_as_current_span("sign up"):
            await account(name="without a context").create()
        with mongoz.context(traceparent="00-garbage"):
            await account(name="with garbage").create()
        foreign["accounts"].insert_one({"name": "foreign"})
        await eventually(lambda: len(names) == 4)
    runs = dict(zip(names, named(spans, "process accounts"), strict=True))
    child = runs.pop("ada")
    assert (child.context.trace_id, child.parent.span_id) == (writer.trace_id, writer.span_id)
    assert [link.context.span_id for link in child.links] == [writer.span_id]
    assert [(one.parent, list(one.links)) for one in runs.values()] == [(None, [])] * 3
    _exporter.clear()
    async with workplace(dispatched, settings_for(dispatched, traces=True)) as place:
        given = {"since": begin, "until": None, "asked": {}, "rate": None, "resume": None, "new": False}
        await (await replay.start(place, (), **given)).work(asyncio.Event())
    replayed = named(spans, "process accounts")
    assert {one.parent for one in replayed} == {None}
    assert [link.context.span_id for one in replayed for link in one.links] == [writer.span_id]


async def test_a_batch_links_to_the_spans_of_its_writers(account, foreign, dispatched, spans):
    """A batch of several events begins a trace. A batch of one event is in the trace of its writer."""
    sizes: list[int] = []

    @post_save(account, name="index", batch=Batch(size=4, wait=60))
    async def index(sender, batch, **kwargs):
        sizes.append(len(batch))

    tracer = trace.get_tracer("shop")
    writers = []
    async with dispatching(dispatched, traces=True) as running:
        with tracer.start_as_current_span("first") as one, mongoz.context():
            await account(name="a").create()
            await account(name="b").create()
        with tracer.start_as_current_span("second") as other, mongoz.context():
            await account(name="c").create()
        foreign["accounts"].insert_one({"name": "foreign"})
        writers += [one.get_span_context(), other.get_span_context()]
        await eventually(lambda: named(spans, "process accounts"))
        with tracer.start_as_current_span("third") as one, mongoz.context():
            await account(name="d").create()
        await eventually(lambda: running.stats.read >= 5)
        await eventually(lambda: running.service.close_batches() or len(named(spans, "process accounts")) == 2)
    batch, single = named(spans, "process accounts")
    assert sizes == [4, 1]
    assert batch.parent is None
    assert [link.context.span_id for link in batch.links] == [writer.span_id for writer in writers]
    assert batch.context.trace_id not in {writer.trace_id for writer in writers}
    assert batch.attributes["messaging.batch.message_count"] == 4
    assert "messaging.message.id" not in batch.attributes
    assert single.parent.span_id == one.get_span_context().span_id
    assert "messaging.batch.message_count" not in single.attributes


async def test_a_receiver_in_the_writing_process_is_in_the_trace_of_the_write(account, spans):
    """The receiver gets the `traceparent` of the write. Its spans are children of the writer's span."""
    got: dict[str, Any] = {}

    @post_save(account, name="here")
    async def here(sender, instance, delivery, **kwargs):
        got[instance.name] = (delivery.origin, delivery.context)
        with trace.get_tracer("shop").start_as_current_span("mail"):
            pass

    with trace.get_tracer("shop").start_as_current_span("sign up") as request:
        with mongoz.context(user="ada"):
            await account(name="ada").create()
        await account(name="without").create()
    writer = request.get_span_context()
    traceparent = f"00-{writer.trace_id:032x}-{writer.span_id:016x}-{writer.trace_flags:02x}"
    assert got == {
        "ada": ("process", {"user": "ada", "traceparent": traceparent}),
        "without": ("process", None),
    }
    mails = named(spans, "mail")
    assert {(one.context.trace_id, one.parent.span_id) for one in mails} == {(writer.trace_id, writer.span_id)}
    assert len(mails) == 2


async def test_both_receivers_of_a_write_find_the_trace_of_the_writer(account, foreign, dispatched, spans):
    """One receiver runs in the writing process, the other one in the dispatcher."""
    got: dict[str, Any] = {}

    def connect(name: str, delivery: Any) -> None:
        @post_save(account, name=name, delivery=delivery)
        async def receive(sender, delivery, **kwargs):
            got[name] = (delivery.origin, delivery.context)

    connect("here", "process")
    connect("there", "dispatcher")
    async with dispatching(dispatched, traces=True):
        with trace.get_tracer("shop").start_as_current_span("sign up") as request, mongoz.context(user="ada"):
            await account(name="ada").create()
        await eventually(lambda: len(got) == 2 and named(spans, "process accounts"))
    writer = request.get_span_context()
    assert got["here"][0] == "process"
    assert got["there"][0] == "stream"
    assert got["here"][1] == got["there"][1]
    assert f"{writer.trace_id:032x}-{writer.span_id:016x}" in got["here"][1]["traceparent"]
    (attempt,) = named(spans, "process accounts")
    assert (attempt.context.trace_id, attempt.parent.span_id) == (writer.trace_id, writer.span_id)


def named(spans: Spans, name: str) -> list[ReadableSpan]:
    """The exported spans of this name."""
    return [one for one in spans() if one.name == name]
