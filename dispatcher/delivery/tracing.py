"""OpenTelemetry: a span for each attempt at a delivery, for those who ask for it.

The package opentelemetry is an extra, and is imported by nobody else. The names of attributes are those of its
semantic conventions for messaging and databases where these have one, else they begin with `mongoz.`.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from time import time
from typing import TYPE_CHECKING, Any, Final

from dispatcher.core.error_text import text_of, trace_of, words_of
from dispatcher.core.events import Calls, Change
from dispatcher.core.extras import how_to_install
from dispatcher.core.stats import seconds_of
from dispatcher.exceptions import NotInstalled
from dispatcher.settings import Settings
from mongoz.signals import Delivery

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

__all__ = ["Tracing", "exporting", "tracing_of"]

_SCOPE: Final = "mongoz.dispatcher"
_SERVICE: Final = "mongoz-dispatcher"

Function = Callable[..., Awaitable[Any]]


class Tracing:
    """Puts spans around receivers. While one runs its span is the current one, so that its own are children.

    Args:
        tracer: makes the spans.
    """

    def __init__(self, tracer: "Tracer") -> None:
        self._tracer = tracer

    def around(self, function: Function, change: Change, calls: Calls, clock_offset: float) -> Function:
        """A receiver, with a span around each call.

        Args:
            function: to be called with the keywords of a receiver.
            change: what is delivered.
            calls: to whom.
            clock_offset: seconds that the server's clock is ahead of ours.
        """
        from opentelemetry.trace import SpanKind, Status, StatusCode  # noqa: PLC0415 - an extra

        database, collection = change.namespace

        async def traced(sender: Any, delivery: Delivery, **keywords: Any) -> None:
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
                attributes["mongoz.lag"] = max(0.0, time() + clock_offset - committed)
            # Its own handling of errors knows only subclasses of Exception; an attempt that is late is cancelled.
            with self._tracer.start_as_current_span(
                f"process {collection}",
                kind=SpanKind.CONSUMER,
                attributes=attributes,
                record_exception=False,
                set_status_on_exception=False,
            ) as span:
                try:
                    await function(sender=sender, delivery=delivery, **keywords)
                except BaseException as error:
                    span.add_event("exception", _exception(error))
                    span.set_attribute("error.type", type(error).__qualname__)
                    span.set_status(Status(StatusCode.ERROR, text_of(error)))
                    raise

        return traced


def _exception(error: BaseException) -> dict[str, str]:
    """As OpenTelemetry's `record_exception` has it, without secrets."""
    kind = type(error)
    return {
        "exception.type": f"{kind.__module__}.{kind.__qualname__}"
        if kind.__module__ != "builtins"
        else kind.__name__,
        "exception.message": words_of(error),
        "exception.stacktrace": trace_of(error),
        "exception.escaped": "False",
    }


def tracing_of(settings: Settings) -> Tracing | None:
    """Spans for a deliverer, if the operator wants any: those of the provider that this process has.

    Raises:
        NotInstalled: opentelemetry is not there.
    """
    if not settings.traces:
        return None
    try:
        from opentelemetry import trace  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise _not_installed() from error
    return Tracing(trace.get_tracer(_SCOPE))


@contextmanager
def exporting(settings: Settings) -> Iterator[None]:
    """Have spans sent, as the variables of OpenTelemetry (`OTEL_...`) say, and the last ones at the end.

    An application that has made a provider of its own keeps it.

    Raises:
        NotInstalled: opentelemetry is not there.
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
    resource = Resource.create()  # of OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES
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
        "Traces were asked for (--traces, DISPATCHER_TRACES), and OpenTelemetry is not installed.",
        remedy=how_to_install("otel"),
    )
