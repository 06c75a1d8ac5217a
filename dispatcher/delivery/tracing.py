"""OpenTelemetry: a span for each run of a receiver, if the operator asks for spans.

The package opentelemetry is an extra, and only this module imports it. The names of the attributes follow the
semantic conventions of OpenTelemetry for messaging and databases. Names without a convention begin with `mongoz.`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from time import time
from typing import TYPE_CHECKING, Any, Final

from dispatcher.core.error_text import text_of, trace_of, words_of
from dispatcher.core.installation import how_to_install
from dispatcher.core.stats import Stats, seconds_of
from dispatcher.delivery.attempt import Attempt, Run, Target
from dispatcher.exceptions import NotInstalled
from dispatcher.settings import Settings
from mongoz.exceptions import RetryAfter
from mongoz.signals import Delivery

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, Tracer

_SCOPE: Final = "mongoz.dispatcher"
_SERVICE: Final = "mongoz-dispatcher"


class Tracing:
    """The step that makes a span for each run of a receiver. Spans that the receiver makes are its children.

    If the write carries the trace of its writer, the span links to the writer's span. Unless the delivery is
    replayed, the span is also a child of the writer's span. The span of a batch with several events links to the
    spans of all writers, and begins a new trace.
    """

    def __init__(self, tracer: "Tracer", stats: Stats) -> None:
        self._tracer = tracer
        self._stats = stats

    def around(self, target: Target) -> Target:
        """Put the step around the `run` of a receiver."""
        return replace(target, run=partial(self._run, target.run))

    async def _run(self, run: Run, attempt: Attempt) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode  # noqa: PLC0415 - an extra

        parent, links = _trace_of(attempt.deliveries)
        # OpenTelemetry records only subclasses of Exception, but an attempt that exceeds its timeout raises
        # CancelledError.
        with self._tracer.start_as_current_span(
            f"process {attempt.change.namespace[1]}",
            context=parent,
            links=links,
            kind=SpanKind.CONSUMER,
            attributes=self._attributes(attempt),
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                await run(attempt)
            except BaseException as error:
                if isinstance(error, RetryAfter):
                    span.add_event("retry_after", {"seconds": error.seconds})
                    raise
                span.add_event("exception", _exception(error))
                span.set_attribute("error.type", type(error).__qualname__)
                span.set_status(Status(StatusCode.ERROR, text_of(error)))
                raise

    def _attributes(self, attempt: Attempt) -> dict[str, Any]:
        change, calls, delivery = attempt.change, attempt.calls, attempt.delivery
        database, collection = change.namespace
        attributes = {
            "messaging.system": "mongodb",
            "messaging.operation.type": "process",
            "messaging.operation.name": delivery.signal,
            "messaging.destination.name": f"{database}.{collection}",
            "messaging.message.id": delivery.id,
            "db.namespace": database,
            "db.collection.name": collection,
            "mongoz.document": calls.document.__qualname__,
            "mongoz.receiver": delivery.receiver,
            "mongoz.operation": change.operation,
            "mongoz.attempt": delivery.attempt,
            "mongoz.term": delivery.term,
            "mongoz.image": delivery.image,
            "mongoz.replayed": delivery.replayed,
            "mongoz.hops": calls.hops,
        }
        committed = seconds_of(change.wall_time)
        if committed is not None:
            attributes["mongoz.lag"] = max(0.0, time() + self._stats.clock_offset - committed)
        if len(attempt.deliveries) > 1:
            del attributes["messaging.message.id"]
            attributes["messaging.batch.message_count"] = len(attempt.deliveries)
        return attributes


def _trace_of(deliveries: Sequence[Delivery]) -> "tuple[Context | None, list[Link]]":
    """The parent and the links of a span, from the `traceparent` of each write. The parent may be None."""
    contexts = (one.context for one in deliveries if one.context is not None)
    found = dict.fromkeys(context.get("traceparent") for context in contexts)
    traceparents = [one for one in found if isinstance(one, str)]
    if not traceparents:
        return None, []
    from opentelemetry.context import Context  # noqa: PLC0415 - an extra
    from opentelemetry.trace import Link, get_current_span  # noqa: PLC0415
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    extract = TraceContextTextMapPropagator().extract
    parents = [extract({"traceparent": one}, Context()) for one in traceparents]
    writers = [get_current_span(parent).get_span_context() for parent in parents]
    links = [Link(writer) for writer in writers if writer.is_valid]
    is_child = links and len(deliveries) == 1 and not deliveries[0].replayed
    return parents[0] if is_child else None, links


def _exception(error: BaseException) -> dict[str, str]:
    """The attributes of OpenTelemetry's `record_exception`, without secrets."""
    kind = type(error)
    return {
        "exception.type": f"{kind.__module__}.{kind.__qualname__}"
        if kind.__module__ != "builtins"
        else kind.__name__,
        "exception.message": words_of(error),
        "exception.stacktrace": trace_of(error),
        "exception.escaped": "False",
    }


def tracing_of(settings: Settings, stats: Stats) -> Tracing | None:
    """The step with the span provider of this process; None if the operator does not ask for spans.

    Raises:
        NotInstalled: opentelemetry is not installed.
    """
    if not settings.traces:
        return None
    try:
        from opentelemetry import trace  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise _not_installed() from error
    return Tracing(trace.get_tracer(_SCOPE), stats)


@contextmanager
def exporting(settings: Settings) -> Iterator[None]:
    """Export spans as configured by the variables of OpenTelemetry (`OTEL_...`). Flush the last spans at the end.

    If the application has set a provider, that provider is used.

    Raises:
        NotInstalled: opentelemetry is not installed.
    """
    if not settings.traces:
        yield
        return
    try:
        from opentelemetry import trace  # noqa: PLC0415 - an extra
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise _not_installed() from error
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        yield
        return
    resource = Resource.create()  # reads OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES
    if str(resource.attributes["service.name"]).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": _SERVICE}))
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        provider.shutdown()


def _not_installed() -> NotInstalled:
    return NotInstalled(
        "Traces are on (--traces, DISPATCHER_TRACES), but OpenTelemetry is not installed.",
        remedy=how_to_install("otel"),
    )
