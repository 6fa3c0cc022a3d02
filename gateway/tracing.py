"""OpenTelemetry traces: a span for each webhook and each try of a delivery. Unless asked for, nothing is imported.

A webhook's span continues the trace that its request's `traceparent` names, if it has one, and has its stages as
children. It begins when the signature is proven: what anybody can send makes no spans. Its own `traceparent` goes with
the events into the store, so that a try, in whichever process and however late, links to it. A try begins a trace of
its own, as it may speak of many webhooks, and sends its `traceparent` along.

Spans carry names and numbers: sources, types, destinations, the sender's id of a webhook. Nothing else of a payload.
"""

# ruff: noqa: PLC0415 -- OpenTelemetry is an extra: who asks for no traces has nothing to import

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct, msgpack

from gateway.deliveries import Receipt
from gateway.destinations import Outcome
from gateway.events import Event, Webhook, encode_event
from gateway.telemetry import Stopwatch

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Link, Span, SpanContext

FLUSH_WITHIN = 5.0
"""Seconds that a stop waits for spans to reach the collector."""


class TracingMissing(Exception):
    """Traces are asked for, and what makes them is not installed."""


class _Traced(Event, frozen=True, kw_only=True, omit_defaults=True):
    """An event as it is stored while there are traces. Who does not trace reads it as an `Event`."""

    traceparent: str = ""


class _Parent(Struct, frozen=True):
    traceparent: str = ""


_ENCODE = msgpack.Encoder().encode
_PARENT = msgpack.Decoder(_Parent)


def encode_traced(event: Event, traceparent: str | None) -> bytes:
    """Pack an event for the store together with the span that it comes from, if any."""
    if traceparent is None:
        return encode_event(event)
    fields = {name: getattr(event, name) for name in event.__struct_fields__}
    return _ENCODE(_Traced(**fields, traceparent=traceparent))


class WebhookSpan:
    """The span of a webhook that is on its way into the store."""

    def __init__(self, tracing: "Tracing", span: "Span", stopwatch: Stopwatch) -> None:
        self._tracing = tracing
        self._span = span
        self._stopwatch = stopwatch
        self.traceparent = _written(span.get_span_context())

    def accepted(self, receipt: Receipt) -> None:
        """End it: the webhook is durable."""
        self._span.set_attribute("gateway.webhook", receipt.webhook)
        self._span.set_attribute("gateway.duplicate", receipt.duplicate)
        self._end()

    def failed(self, error: BaseException) -> None:
        """End it: the webhook is not stored. Of the error its kind is told, as its words may quote what it met."""
        self._tracing.mark_failed(self._span, type(error).__name__)
        self._end()

    def _end(self) -> None:
        self._tracing.add_stages(self._span, self._stopwatch)
        self._span.end()


class AttemptSpan:
    """The span of one request to a destination."""

    def __init__(self, tracing: "Tracing", span: "Span") -> None:
        self._tracing = tracing
        self._span = span
        self.traceparent = _written(span.get_span_context())

    def answered(self, status: int, outcomes: Iterable[Outcome]) -> None:
        """End it. `status` 0 is no answer."""
        if status:
            self._span.set_attribute("http.response.status_code", status)
        states = sorted({each.state.name.lower() for each in outcomes})
        self._span.set_attribute("gateway.outcomes", states)
        if states != ["sent"]:
            self._tracing.mark_failed(self._span, ", ".join(states))
        self._span.end()


class Tracing:
    """Makes spans for one gateway, and hands them to a collector in the background."""

    def __init__(self, exporter: "SpanExporter") -> None:
        """Raises `ImportError` without the extra `otel`."""
        from opentelemetry import trace
        from opentelemetry.context import Context
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        self._api = trace
        self._exporter = exporter
        self._provider = TracerProvider(
            resource=Resource.create({} if named else {"service.name": "gateway"}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("gateway")
        self._propagator = TraceContextTextMapPropagator()
        self._nothing = Context()  # never the current one: what else traces in this process is no parent of ours

    def webhook(self, webhook: Webhook, stopwatch: Stopwatch) -> WebhookSpan:
        """Begin the span of a webhook whose signature is proven. It reaches back to where the stopwatch began."""
        context = self._context(webhook.headers.get("traceparent", ""))
        span = self._tracer.start_span(
            f"webhook {webhook.source}",
            context,
            kind=self._api.SpanKind.SERVER,
            attributes={
                "gateway.source": webhook.source,
                "gateway.type": webhook.type,
                "gateway.webhook_id": webhook.id,
                "gateway.test": webhook.test,
            },
            start_time=_wall(stopwatch.began),
        )
        return WebhookSpan(self, span, stopwatch)

    def attempt(self, destination: str, webhooks: Sequence[int], events: Iterable[bytes]) -> AttemptSpan:
        """Begin the span of a request with these stored events, linked to the webhooks that they come from."""
        parents = dict.fromkeys(_PARENT.decode(each).traceparent for each in events)
        span = self._tracer.start_span(
            f"deliver {destination}",
            self._context(""),
            kind=self._api.SpanKind.CLIENT,
            attributes={"gateway.destination": destination, "gateway.webhooks": list(dict.fromkeys(webhooks))},
            links=[link for each in parents if (link := self._link(each)) is not None],
        )
        return AttemptSpan(self, span)

    def add_stages(self, span: "Span", stopwatch: Stopwatch) -> None:
        """Give a span a child for each lap."""
        parent = self._api.set_span_in_context(span)
        began = stopwatch.began
        for stage, ended in stopwatch.laps:
            self._tracer.start_span(stage, parent, start_time=_wall(began)).end(_wall(ended))
            began = ended

    def mark_failed(self, span: "Span", why: str) -> None:
        """Say that what a span stands for failed."""
        span.set_status(self._api.Status(self._api.StatusCode.ERROR, why))

    async def close(self) -> None:
        """Send what is left, and end. A collector that does not answer is not waited for long."""
        ending = asyncio.create_task(asyncio.to_thread(self._provider.shutdown))
        await asyncio.wait({ending}, timeout=FLUSH_WITHIN)
        if not ending.done():
            self._exporter.shutdown()
        await ending

    def _context(self, traceparent: str) -> "Context":
        return self._propagator.extract({"traceparent": traceparent}, self._nothing)

    def _link(self, traceparent: str) -> "Link | None":
        context = self._api.get_current_span(self._context(traceparent)).get_span_context()
        return self._api.Link(context) if context.is_valid else None


def tracing_of(environment: Callable[[str], str | None]) -> Tracing | None:
    """Return what makes spans when the environment names a collector. Raises `TracingMissing` without the extra `otel`.

    Whatever else OpenTelemetry's own variables say (headers, sampler, attributes) its library reads by itself.
    """
    endpoint = environment("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if endpoint is None and (base := environment("OTEL_EXPORTER_OTLP_ENDPOINT")) is not None:
        endpoint = f"{base.rstrip('/')}/v1/traces"
    if endpoint is None or (environment("OTEL_SDK_DISABLED") or "").lower() == "true":
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return Tracing(OTLPSpanExporter(endpoint=endpoint))
    except ImportError as error:
        raise TracingMissing(
            "OTEL_EXPORTER_OTLP_ENDPOINT asks for traces, which need an extra: install "
            f"`webhook-translation-gateway[otel]`, or unset it ({error.name} is missing)"
        ) from error


def _wall(moment: int) -> int:
    """Return when a moment of the stopwatch was, in ns since 1970."""
    return time.time_ns() - (time.perf_counter_ns() - moment)


def _written(context: "SpanContext") -> str:
    """Write a span's context as the header does. Rule: W3C Trace Context, section 3.2."""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
