"""Traces: from the sender's request over the webhook to each try, if asked for; and nothing of it otherwise."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from litestar import Litestar, Request, post
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from gateway import tracing
from gateway.app import create_app
from gateway.mappings import bundled
from gateway.server import running
from gateway.settings import SettingsError, load_settings
from tests.mapping.people import personal_data_of
from tests.promises.collector import Collector
from tests.promises.served import SECRET, Served, payment

PARENT = f"00-{'a1' * 16}-{'b2' * 8}-01"
WITHIN = 30.0
EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"


class Spans:
    """What an OpenTelemetry collector got."""

    def __init__(self) -> None:
        self.raw = b""
        self.all: list[Span] = []
        self.url = ""
        self._arrived = threading.Condition()

    def app(self) -> Litestar:
        @post("/v1/traces", status_code=200)
        async def take(request: Request[Any, Any, Any]) -> None:
            body = await request.body()
            told = ExportTraceServiceRequest.FromString(body)
            with self._arrived:
                self.raw += body
                self.all += [span for of in told.resource_spans for scope in of.scope_spans for span in scope.spans]
                self._arrived.notify_all()

        return Litestar([take], openapi_config=None, logging_config=None)

    def named(self, name: str) -> list[Span]:
        return [span for span in self.all if span.name == name]

    def children(self, span: Span) -> list[Span]:
        found = [each for each in self.all if each.parent_span_id == span.span_id]
        return sorted(found, key=lambda each: each.start_time_unix_nano)


def attributes(span: Span) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value") or "") for each in span.attributes}


@pytest.fixture
def spans() -> Iterator[Spans]:
    spans = Spans()
    with running(spans.app()) as spans.url:
        yield spans


@pytest.fixture
def traced(served: Served, spans: Spans) -> Served:
    """Return a gateway that traces; when it is down, `spans` has all that it made."""
    served.environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = spans.url
    return served


def traced_payment(served: Served, number: int, traceparent: str = PARENT) -> None:
    body = payment(number)
    assert served.post(body, served.signed(body) | {"traceparent": traceparent}).is_success


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_webhook_continues_the_senders_trace_and_shows_its_stages(traced: Served, spans: Spans) -> None:
    with traced.up(deliver=False):
        traced_payment(traced, 1)
    (span,) = spans.named("webhook stripe")
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == ("a1" * 16, "b2" * 8)
    stages = spans.children(span)
    assert [each.name for each in stages] == ["verify", "translate", "resolve", "accept"]
    assert span.start_time_unix_nano <= stages[0].start_time_unix_nano + 1_000_000
    assert all(each.start_time_unix_nano <= each.end_time_unix_nano for each in [span, *stages])
    told = attributes(span)
    assert (told["gateway.webhook_id"], told["gateway.duplicate"]) == ("evt_1", False)
    assert told["gateway.webhook"] == traced.rows("SELECT webhook FROM webhook")[0][0]


@pytest.mark.parametrize("header", ["", "nonsense", f"00-{'0' * 32}-{'b2' * 8}-01"])
def test_a_webhook_without_a_trace_begins_one(traced: Served, spans: Spans, header: str) -> None:
    with traced.up(deliver=False):
        traced_payment(traced, 1, header)
    (span,) = spans.named("webhook stripe")
    assert span.parent_span_id == b""
    assert span.trace_id != bytes(16)


def test_each_try_links_to_its_webhook_and_tells_the_collector_its_own(
    traced: Served, spans: Spans, collector: Collector
) -> None:
    collector.answer((500, {}))
    with traced.up(deliver=False):
        traced_payment(traced, 1)
    traced.ahead += 60_000
    with traced.up():
        collector.wait_for(1)
        wait_until(lambda: traced.rows("SELECT count(*) FROM attempt") == [(1,)])
        traced.ahead += 7_200_000
        collector.wait_for(2)
        wait_until(lambda: traced.rows("SELECT count(*) FROM attempt") == [(2,)])
    (webhook,) = spans.named("webhook stripe")
    tries = spans.named("deliver webhook")
    assert [[link.span_id for link in each.links] for each in tries] == [[webhook.span_id]] * 2
    assert [attributes(each)["http.response.status_code"] for each in tries] == [500, 200]
    assert [each.status.code for each in tries] == [Status.STATUS_CODE_ERROR, Status.STATUS_CODE_UNSET]
    told = [headers["traceparent"].rsplit("-", 1)[0] for headers, _ in collector.requests]
    assert told == [f"00-{each.trace_id.hex()}-{each.span_id.hex()}" for each in tries]


def test_what_anybody_can_send_makes_no_span(traced: Served, spans: Spans) -> None:
    with traced.up(deliver=False):
        assert traced.post(payment(1), {"stripe-signature": "t=1,v1=00", "traceparent": PARENT}).status_code == 401
        assert traced.post(payment(1), {}, source="nobody").status_code == 404
        traced_payment(traced, 2)
    assert [attributes(each)["gateway.webhook_id"] for each in spans.all if each.kind == Span.SPAN_KIND_SERVER] == [
        "evt_2"
    ]
    assert len(spans.all) == 5  # with its four stages


def test_a_trace_holds_no_secret_and_nothing_personal(traced: Served, spans: Spans, collector: Collector) -> None:
    with traced.up():
        traced_payment(traced, 1)
        collector.wait_for(1)
    private = personal_data_of(bundled() / "samples/stripe/checkout.session.completed.json")
    assert len(private) >= 3
    assert b"evt_1" in spans.raw
    secrets = [SECRET.encode(), traced.environment["WEBHOOK_SECRET"].encode(), b"@example.com"]
    assert [each for each in (*private, *secrets) if each.lower() in spans.raw.lower()] == []


def test_events_that_were_stored_with_a_trace_are_delivered_without_one(
    traced: Served, spans: Spans, collector: Collector
) -> None:
    with traced.up(deliver=False):
        traced_payment(traced, 1)
    del traced.environment["OTEL_EXPORTER_OTLP_ENDPOINT"]
    with traced.up():
        (body,) = collector.wait_for(1)
    assert body["data"]["properties"]["order_id"] == "order_1"
    assert "traceparent" not in collector.requests[0][0]
    assert spans.named("deliver webhook") == []


def test_a_dead_collector_of_traces_loses_only_traces(
    served: Served, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "FLUSH_WITHIN", 0.1)
    with served.up(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9"):
        traced_payment(served, 1)
        collector.wait_for(1)
        wait_until(lambda: served.rows("SELECT state FROM delivery") == [(10,)])


def test_traces_without_their_extra_say_what_to_install(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, EXPORTER, None)
    settings = load_settings(served.environment | {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"})
    with pytest.raises(SettingsError, match=r"webhook-translation-gateway\[otel\]"):
        create_app(settings)


def test_opentelemetry_is_imported_only_when_asked_for(served: Served) -> None:
    code = (
        "import os, sys; from gateway.app import create_app; from gateway.settings import load_settings\n"
        "from gateway.tracing import tracing_of\n"
        f"show = lambda: print('opentelemetry.sdk.trace' in sys.modules, '{EXPORTER}' in sys.modules)\n"
        "create_app(load_settings(os.environ)); show()\n"
        "tracing_of({'OTEL_EXPORTER_OTLP_ENDPOINT': 'http://127.0.0.1:9'}.get); show()"
    )
    environment = {**os.environ, **served.environment}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "True", "True"]
