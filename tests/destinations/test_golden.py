"""What goes on the wire agrees with what the collectors' own SDKs send for the same events.

The golden files hold those requests. Named exceptions: the SDKs mint an event id where the caller gives none and an
anonymous id where there is no visitor (ours are made from the event, so that they are the same on every try); our
User-Agent is our own; `$identify` carries no raw name and email; Nexly also gets an Idempotency-Key; Databuddy gets an
`eventId`, which its newest SDK sends too; LayerSync gets the page's url, the event's own time and an id that is not
random; a purchase is analyse.net's `checkout_finished`.
"""

import functools
import hashlib
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import structs

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
    "DATABUDDY_API_KEY": "dbdy_test_key",
    "DATABUDDY_WEBSITE_ID": "site_1",
    "LAYERSYNC_SITE_ID": "site_1",
    "LAYERSYNC_SECRET": "ls_test_secret",
    "ANALYSE_KEY": "pk_live_test",
    "WEBHOOK_URL": "https://sink.example/events",
    "WEBHOOK_SECRET": SIGNING,
}
PLAIN = {"DATABUDDY_WEBSITE_ID", "LAYERSYNC_SITE_ID", "WEBHOOK_URL"}
ALL = ("nexly", "datalyr", "databuddy", "layersync", "analyse", "webhook")
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
        identity={
            "default": {"email": "86500804d4aa2249bdf6687587eb061a86264d1e81d5a5c4750c88b2ec2d9093"},
            "layersync": {
                "email": "86500804d4aa2249bdf6687587eb061a86264d1e81d5a5c4750c88b2ec2d9093",
                "phone": "d6736136ea896c1bfdc553e0e86e702c70d060d805696ca3e4e9e0961353860a",
                "first_name": "d994e1d001886fe5b45b1267bd1fa2b752ac50742579bd3dad7b2a2aa0ed6866",
                "last_name": "65b87174be3b1b122e2b0929f0b84888637d31a4a83bb96a860bcff411f5e668",
            },
        },
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


def paths(value: object, path: str = "") -> Iterator[str]:
    """Yield where each leaf stands, in the order of the document. Properties are the caller's, in any order."""
    if path.endswith(("properties", "custom_data")) or not isinstance(value, dict | list):
        yield path
        return
    for key, each in value.items() if isinstance(value, dict) else enumerate(value):
        yield from paths(each, f"{path}.{key}")


def check(to: Destination, name: str, golden: dict[str, object]) -> None:
    rendered = render(EVENTS[name], to)
    assert isinstance(rendered, bytes)
    request = pack([rendered], to, EVENTS[name].id, 0, EVENTS[name].kind)
    minted = re.sub(rb"anon_[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f-]{21}", b"MINTED", request.body)
    body, wanted = msgspec.json.decode(minted), golden["body"]
    assert body == wanted
    assert list(paths(body)) == list(paths(wanted))  # the order of keys too
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


@pytest.mark.parametrize(("name", "golden"), [case for case in cases("databuddy") if case[0] != "identify"])
def test_databuddy_as_its_sdk_writes_it(name: str, golden: dict[str, object]) -> None:
    check(destination("databuddy"), name, golden)


def test_databuddy_identifies_with_a_file_of_its_own() -> None:
    to = destination("databuddy-identify")
    check(to, "identify", dict(cases("databuddy"))["identify"])
    assert (to.url, *to.kinds) == ("https://basket.databuddy.cc/identify", "identify")
    assert render(structs.replace(EVENTS["identify"], user_id=None), to) == "no_person"


@pytest.mark.parametrize(("name", "golden"), cases("layersync"))
def test_layersync_as_its_sdk_writes_it(name: str, golden: dict[str, object]) -> None:
    check(destination("layersync"), name, golden)


@pytest.mark.parametrize(("name", "golden"), cases("analyse"))
def test_analyse_as_its_sdk_writes_it(name: str, golden: dict[str, object]) -> None:
    check(destination("analyse"), name, golden)


@pytest.mark.parametrize(("name", "golden"), cases("webhook"))
def test_an_own_endpoint_gets_the_canonical_event(name: str, golden: dict[str, object]) -> None:
    check(destination("webhook"), name, golden)


@pytest.mark.parametrize("name", EVENTS)
def test_every_try_has_the_same_body(name: str) -> None:
    for to in map(destination, ALL):
        rendered = [render(EVENTS[name], to) for _ in range(2)]
        assert rendered[0] == rendered[1]
        bodies = {
            pack([bytes(each)], to, "evt", now).body for now, each in enumerate(rendered) if isinstance(each, bytes)
        }
        assert len(bodies) == 1


def test_what_a_try_stores_holds_no_secret() -> None:
    for name in ALL:
        rendered = render(EVENTS["purchase"], destination(name))
        assert isinstance(rendered, bytes)
        secrets = [secret for setting, secret in SETTINGS.items() if setting not in PLAIN]
        assert not any(secret.encode() in rendered for secret in secrets)


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
    for name in ALL:
        to = destination(name)
        rendered = render(paid, to)
        assert isinstance(rendered, bytes)
        assert b'"value":' + written in pack([rendered], to, "evt_7", 0).body


@pytest.mark.parametrize(
    ("status", "state"),
    [(200, State.SENT), (204, State.SENT), (302, State.DEAD), (400, State.DEAD), (404, State.DEAD)]
    + [(status, State.PARKED) for status in (401, 402, 403)]
    + [(status, State.DUE) for status in (0, 408, 425, 429, 500, 502, 503, 504)],
)
def test_an_answer_decides_what_becomes_of_a_delivery(status: int, state: State) -> None:
    (outcome,) = judge(Response(status, error=None if status else "timeout"), destination("nexly"), 1)
    assert outcome.state == state


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("nexly", {"track", "page"}),
        ("databuddy", {"track"}),
        ("layersync", {"track", "page"}),
        ("analyse", {"track", "identify", "page"}),
    ],
)
def test_a_collector_gets_only_the_kinds_that_it_knows(name: str, kinds: set[str]) -> None:
    assert set(destination(name).kinds) == kinds


def body_of(name: str, paid: Event, **settings: str) -> Any:
    to = destination(name, **settings)
    rendered = render(paid, to)
    assert isinstance(rendered, bytes)
    return msgspec.json.decode(pack([rendered], to, paid.id, 0).body)


@pytest.mark.parametrize(
    ("name", "kind", "properties", "prefix", "key"),
    [
        ("purchase", "track", {"order_id": "Bestellung-é"}, "pur", "Bestellung-é"),
        ("refund", "track", {"order_id": "ORD-1234", "refund_id": "re_1"}, "ref", "re_1"),
        ("begin_checkout", "track", {"checkout_id": "cs_1"}, "bc", "cs_1"),
        ("payment_failed", "track", {"order_id": "ORD-1234"}, "evt", "evt_7"),
        ("refund", "track", {"order_id": "ORD-1234"}, "ref", "evt_7"),
        ("Landing", "page", {}, "pv", "evt_7"),
    ],
)
def test_a_browser_can_compute_layersyncs_event_id(
    name: str, kind: Any, properties: dict[str, object], prefix: str, key: str
) -> None:
    body = body_of("layersync", event("7", name, kind=kind, properties=properties))
    assert body["event_id"] == f"{prefix}_{hashlib.sha256(key.encode()).hexdigest()[:16]}"


@pytest.mark.parametrize(
    ("given", "header", "value"),
    [
        (None, "X-LayerSync-Api-Key", "ls_test_secret"),
        ("X-LayerSync-Secret-Key", "X-LayerSync-Secret-Key", "ls_test_secret"),
        ("Authorization", "Authorization", "Bearer ls_test_secret"),
    ],
)
def test_layersyncs_key_goes_into_the_header_that_the_settings_name(given: str | None, header: str, value: str) -> None:
    to = destination("layersync", **({"LAYERSYNC_KEY_HEADER": given} if given else {}))
    headers = pack([b"{}"], to, "evt_1", 0).headers
    assert {name for name, text in headers.items() if "ls_test_secret" in text} == {header}
    assert headers[header] == value


def test_layersyncs_unproven_facts_are_settings() -> None:
    settings = {
        "LAYERSYNC_API_URL": "https://hub.example",
        "LAYERSYNC_PATH": "/v2/events",
        "LAYERSYNC_ACTION_SOURCE": "server",
        "LAYERSYNC_SDK": "gateway@1.0.0",
    }
    body = body_of("layersync", EVENTS["purchase"], **settings)
    assert destination("layersync", **settings).url == "https://hub.example/v2/events"
    assert (body["action_source"], body["client_meta"]["sdk"]) == ("server", "gateway@1.0.0")


@pytest.mark.parametrize("wanted", [{"anonymizeVisitorIds": True}, {"anonymizeVisitorIds": False}, {}])
def test_databuddy_anonymizes_visitors_as_the_setting_says(wanted: dict[str, object]) -> None:
    said = {True: "true", False: "false"}.get(bool(wanted.get("anonymizeVisitorIds")), "") if wanted else ""
    (body,) = body_of("databuddy", EVENTS["purchase"], DATABUDDY_ANONYMIZE=said)
    assert {name: body[name] for name in body if name == "anonymizeVisitorIds"} == wanted


@pytest.mark.parametrize(
    ("name", "properties", "wanted"),
    [
        ("purchase", {"value": Money(Decimal("1.234"), "KWD")}, {"amount": 1234, "payment_type": "one_time"}),
        ("purchase", {"value": Money(Decimal(5000), "JPY"), "subscription_id": "s"}, {"payment_type": "subscription"}),
        ("purchase", {"value": 12.5, "currency": "EUR"}, {"amount": 1250, "checkout_id": "evt_7"}),
        ("refund", {"value": Money(Decimal("9.99"), "USD")}, {"amount": 999, "value": 9.99}),
        ("checkout_expired", {"checkout_id": "cs_1"}, {"reason": "user_abandoned", "checkout_id": "cs_1"}),
        ("trial_converted", {"plan": "pro"}, {"converted": True, "plan": "pro"}),
        ("subscription_cancelled", {"reason": "cancellation_requested"}, {"reason": "user_request"}),
        ("subscription_cancelled", {"reason": "too_expensive"}, {"reason": "user_request"}),
        ("subscription_cancelled", {"reason": "billing_error"}, {"reason": "payment_failed"}),
        ("subscription_cancelled", {"reason": "developer_initiated"}, {"reason": "admin"}),
        ("subscription_cancelled", {}, {"reason": "other", "effective_at": "1970-01-01T00:00:00.000Z"}),
    ],
)
def test_analyse_gets_its_standard_properties(
    name: str, properties: dict[str, object], wanted: dict[str, object]
) -> None:
    (sent,) = body_of("analyse", event("7", name, user_id="u", properties=properties))["events"]
    assert sent["properties"].items() >= wanted.items()


@pytest.mark.parametrize(
    ("changes", "taken"),
    [
        ({"user_id": "u"}, True),
        ({"visitor": seen(FIRST)}, True),
        ({}, False),
        ({"kind": "identify", "visitor": seen(FIRST)}, False),
    ],
)
def test_analyse_needs_a_person(changes: dict[str, object], taken: bool) -> None:
    made = render(event("7", "purchase", **changes), destination("analyse"))
    assert isinstance(made, bytes) if taken else made == "no_person"


@pytest.mark.parametrize(
    ("status", "body", "state"),
    [
        (200, b'{"status":"success","type":"custom_event","count":1}', State.SENT),
        (200, b'{"success":false,"status":"error"}', State.DEAD),
        (200, b"", State.DEAD),
        (204, b"", State.DEAD),
        (202, b'{"status":"success"}', State.DEAD),
        (402, b'{"status":"error"}', State.PARKED),
        (400, b'{"status":"error"}', State.DEAD),
        (503, b'{"status":"error"}', State.DUE),
    ],
)
def test_databuddy_took_an_event_only_if_it_says_so(status: int, body: bytes, state: State) -> None:
    (outcome,) = judge(Response(status, body=body), destination("databuddy"), 1)
    assert outcome.state == state


@pytest.mark.parametrize(("name", "hours"), [("databuddy", 24), ("layersync", 168)])
def test_nothing_is_tried_again_after_the_collector_forgot_it(name: str, hours: int) -> None:
    to = destination(name)
    assert 0 < to.retry_for < to.dedup_window == hours * 3_600_000


def test_databuddys_rate_is_kept() -> None:
    assert destination("databuddy").per_second * 60 == 600


def test_layersync_gets_click_ids_by_its_own_names() -> None:
    cookies = {"_fbp": "p", "_fbc": "c", "_ga": "g", "_gcl_aw": "aw", "_epik": "e", "_scid": "s", "rdt_cid": "r"}
    urls = {"fbclid": "not c", "ttclid": "t", "ScCid": "sc", "twclid": "tw", "li_fat_id": "li"}
    clicked = event("7", "purchase", visitor=Visitor(click_ids=cookies | urls), context={"user_agent": "Mozilla/5.0"})
    assert body_of("layersync", clicked)["user_data"] == {
        "user_agent": "Mozilla/5.0",
        "fbp": "p",
        "fbc": "c",
        "ga": "g",
        "gclid": "aw",
        "ttclid": "t",
        "epik": "e",
        "sccid": "sc",
        "scid": "s",
        "rdtcid": "r",
        "twclid": "tw",
        "lfid": "li",
    }


@pytest.mark.parametrize("items", [[], [{"item_id": "SKU-A", "quantity": 2, "price": 5}, {"name": "no id"}]])
def test_layersync_gets_the_properties_that_it_does_not_rewrite(items: list[object]) -> None:
    given = {"status": "active", "plan": "pro", "refund_id": "re_1", "store": "eu", "items": items}
    body = body_of("layersync", event("7", "subscription_started", properties=given))
    contents = {"contents": [{"id": "SKU-A", "quantity": 2, "item_price": 5}], "content_ids": ["SKU-A"], "num_items": 1}
    plain = {"status": "active", "plan": "pro", "refund_id": "re_1", "store": "eu"}
    assert body["custom_data"] == plain | (contents if items else {})


def test_analyse_gets_where_a_visitor_came_from() -> None:
    context: dict[str, object] = {
        "url": "https://shop.example/thanks",
        "path": "/thanks",
        "hostname": "shop.example",
        "referrer": "https://www.google.com:443/search?q=x",
        "utm_source": "s",
        "utm_medium": "m",
        "utm_campaign": "c",
        "utm_term": "t",
        "utm_content": "n",
    }
    (sent,) = body_of("analyse", event("7", "purchase", user_id="u", context=context))["events"]
    assert sent["referrer_domain"] == "www.google.com"
    assert sent.items() >= context.items()
    from_a_page = event("8", "purchase", user_id="u", context={"referrer": "https://news.example/"})
    assert body_of("analyse", from_a_page)["events"][0]["referrer_domain"] == "news.example"
