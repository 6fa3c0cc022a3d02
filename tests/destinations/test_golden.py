"""What goes on the wire agrees with what the collectors' own SDKs send for the same events.

The golden files hold those requests. Named exceptions: the SDKs mint an event id where the caller gives none and an
anonymous id where there is no visitor (ours are made from the event, so that they are the same on every try); our
User-Agent is our own; `$identify` carries no raw name and email; Nexly also gets an Idempotency-Key.
"""

import functools
import re
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest

from gateway.deliveries import State
from gateway.destinations import Destination, Response, judge, pack, render
from gateway.events import Event, ProductIds, Visitor
from gateway.mappings import bundled, load_mappings
from gateway.money import Money
from gateway.signatures import VerifySpec, compile_verification, verify

GOLDEN = Path(__file__).parent / "golden"
SIGNING = "whsec_dGVzdHMtb25seS1ub3QtYS1zZWNyZXQ="
SETTINGS = {
    "NEXLY_APP_ID": "app_1",
    "NEXLY_INGEST_KEY": "nx_test_key",
    "DATALYR_API_KEY": "dk_test_key",
    "WEBHOOK_URL": "https://sink.example/events",
    "WEBHOOK_SECRET": SIGNING,
}
FIRST = "anon_11111111-1111-4111-8111-111111111111"
SESSION = "sess_22222222-2222-4222-8222-222222222222"
ITEMS: list[object] = [
    {"item_id": "SKU-A", "name": "Widget", "quantity": 2, "price": 39.75},
    {"item_id": "SKU-B", "price": 50},
]


def event(number: str, name: str, **changes: object) -> Event:
    defaults: dict[str, object] = {"source": "stripe", "webhook_id": "evt", "type": "t", "rule": "r", "at": 0}
    return Event(id=f"evt_{number}", name=name, **{**defaults, **changes})  # type: ignore[arg-type]


def seen(visitor_id: str, session_id: str | None = None) -> Visitor:
    return Visitor({"": ProductIds(visitor_id, session_id)})


EVENTS = {
    "purchase": event(
        "1Nabc",
        "purchase",
        at=1751373296000,
        user_id="user_1",
        identity={"default": {"email": "86500804d4aa2249bdf6687587eb061a86264d1e81d5a5c4750c88b2ec2d9093"}},
        visitor=seen(FIRST, SESSION),
        properties={
            "order_id": "ORD-1234",
            "value": Money(Decimal("129.50"), "USD"),
            "currency": "USD",
            "items": ITEMS,
            "coupon": "SPRING",
        },
        context={"url": "https://shop.example/checkout?utm_source=news", "path": "/checkout"},
    ),
    "subscription_created": event(
        "2",
        "subscription_created",
        at=1751373297123,
        user_id="user_2",
        properties={"plan": "pro", "amount_cents": 4900},
    ),
    "invoice_paid": event(
        "3", "invoice_paid", at=1751373298000, visitor=seen("anon_33333333-3333-4333-8333-333333333333")
    ),
    "identify": event(
        "4",
        "identify",
        kind="identify",
        at=1751373299000,
        user_id="user_1",
        visitor=seen(FIRST),
        properties={"plan": "pro"},
    ),
    "page": event(
        "5",
        "Landing",
        kind="page",
        at=1751373300000,
        user_id="user_1",
        visitor=seen(FIRST),
        context={"url": "https://shop.example/", "path": "/"},
    ),
    "group": event(
        "6",
        "group",
        kind="group",
        at=1751373301000,
        user_id="user_1",
        visitor=seen(FIRST),
        properties={"groupId": "company_456", "name": "Acme"},
    ),
}


@functools.cache
def destination(name: str, **settings: str) -> Destination:
    return load_mappings(bundled(), {**SETTINGS, **settings}.get).destinations[name]


def cases(file: str) -> list[tuple[str, dict[str, object]]]:
    return list(msgspec.json.decode((GOLDEN / f"{file}.json").read_bytes()).items())


def check(to: Destination, name: str, golden: dict[str, object]) -> None:
    rendered = render(EVENTS[name], to)
    assert isinstance(rendered, bytes)
    request = pack([rendered], to, EVENTS[name].id, 0)
    minted = re.sub(rb"anon_[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f-]{21}", b"MINTED", request.body)
    body, wanted = msgspec.json.decode(minted), golden["body"]
    assert body == wanted
    assert isinstance(wanted, dict)
    assert list(body) == list(wanted)  # the order of keys too
    sent = {header.lower(): value for header, value in request.headers.items()}
    assert isinstance(golden["headers"], dict)
    assert golden["headers"].items() <= sent.items()


@pytest.mark.parametrize(("name", "golden"), cases("nexly"))
def test_nexly_as_its_sdk_0_15_writes_it(name: str, golden: dict[str, object]) -> None:
    check(destination("nexly"), name, golden)


@pytest.mark.parametrize(("name", "golden"), cases("nexly-cdata"))
def test_nexly_as_its_sdk_1_0_writes_it(name: str, golden: dict[str, object]) -> None:
    check(destination("nexly", NEXLY_PAYLOAD="cdata"), name, golden)


@pytest.mark.parametrize(("name", "golden"), cases("datalyr"))
def test_datalyr_as_its_sdk_writes_it(name: str, golden: dict[str, object]) -> None:
    check(destination("datalyr"), name, golden)


@pytest.mark.parametrize(("name", "golden"), cases("webhook"))
def test_an_own_endpoint_gets_the_canonical_event(name: str, golden: dict[str, object]) -> None:
    check(destination("webhook"), name, golden)


@pytest.mark.parametrize("name", EVENTS)
def test_every_try_has_the_same_body(name: str) -> None:
    for to in (destination("nexly"), destination("datalyr"), destination("webhook")):
        rendered = [render(EVENTS[name], to) for _ in range(2)]
        assert rendered[0] == rendered[1]
        bodies = {
            pack([bytes(each)], to, "evt", now).body for now, each in enumerate(rendered) if isinstance(each, bytes)
        }
        assert len(bodies) == 1


def test_what_a_try_stores_holds_no_secret() -> None:
    for name in ("nexly", "datalyr", "webhook"):
        rendered = render(EVENTS["purchase"], destination(name))
        assert isinstance(rendered, bytes)
        assert not any(secret.encode() in rendered for secret in SETTINGS.values())


def test_an_own_endpoint_gets_a_body_that_its_secret_verifies() -> None:
    to = destination("webhook")
    rendered = render(EVENTS["purchase"], to)
    assert isinstance(rendered, bytes)
    request = pack([rendered], to, "evt_1Nabc", 1_800_000_000_000)
    verification = compile_verification(VerifySpec(scheme="standard-webhooks", secrets=SIGNING))
    headers = {name.lower(): value for name, value in request.headers.items()}
    assert verify(verification, headers, request.body, 1_800_000_000) == 0
    assert headers["webhook-id"] == headers["idempotency-key"] == "evt_1Nabc"


@pytest.mark.parametrize(
    ("amount", "currency", "written"),
    [
        ("129.50", "USD", b"129.50"),
        ("5000", "JPY", b"5000"),
        ("1.234", "KWD", b"1.234"),
        ("123456789012.34", "USD", b"123456789012.34"),
        ("9999999999999.99", "USD", b"9999999999999.99"),
        ("0.1", "USD", b"0.1"),
    ],
)
def test_money_is_written_exactly(amount: str, currency: str, written: bytes) -> None:
    paid = event("7", "purchase", visitor=seen(FIRST), properties={"value": Money(Decimal(amount), currency)})
    for name in ("nexly", "datalyr", "webhook"):
        to = destination(name)
        rendered = render(paid, to)
        assert isinstance(rendered, bytes)
        assert b'"value":' + written in pack([rendered], to, "evt_7", 0).body


@pytest.mark.parametrize(
    ("status", "state"),
    [(200, State.SENT), (204, State.SENT), (302, State.DEAD), (400, State.DEAD), (401, State.DEAD), (404, State.DEAD)]
    + [(status, State.DUE) for status in (0, 408, 425, 429, 500, 502, 503, 504)],
)
def test_an_answer_decides_what_becomes_of_a_delivery(status: int, state: State) -> None:
    (outcome,) = judge(Response(status, error=None if status else "timeout"), destination("nexly"), 1)
    assert outcome.state == state


@pytest.mark.parametrize("kind", ["identify", "group"])
def test_nexly_takes_no_identify_and_no_group(kind: str) -> None:
    assert kind not in destination("nexly").kinds
