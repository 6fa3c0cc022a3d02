"""What goes to GA4, Meta and TikTok is what their reference pages ask for, the hashes of their examples included.

The golden files are written by hand after the pages that the mappings name.
"""

import functools
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from gateway.destinations import Destination, pack, render, route
from gateway.events import Event, ProductIds, Visitor
from gateway.identity import PROFILES, hash_identity
from gateway.mappings import bundled, load_mappings
from gateway.money import Money
from tests.destinations.ads_fakes import API_SECRET, MEASUREMENT_ID, META_TOKEN, PIXEL, PIXEL_CODE, TIKTOK_TOKEN
from tests.destinations.test_golden import ITEMS, cases, event

ADS = {
    "GA4_MEASUREMENT_ID": MEASUREMENT_ID,
    "GA4_API_SECRET": API_SECRET,
    "META_PIXEL_ID": PIXEL,
    "META_ACCESS_TOKEN": META_TOKEN,
    "TIKTOK_PIXEL_ID": PIXEL_CODE,
    "TIKTOK_ACCESS_TOKEN": TIKTOK_TOKEN,
}
NAMES = ("ga4", "meta", "tiktok")
PERSON = {"email": " John_Smith@gmail.com ", "phone": "(650)555-1212", "first_name": "Mary", "last_name": "O'Neill"}
HASHED = {name: hash_identity(PERSON, "US", PROFILES[name]) for name in ("meta", "google", "tiktok")}
CLICKS = {
    "_ga": "GA1.1.1234567890.1700000000",
    "_fbp": "fb.1.1751372000000.987654321",
    "fbclid": "IwAR2abc",
    "ttclid": "E.C.P.abc",
    "_ttp": "2F7h37YkS1j57AYSKTI7IHhJPYH",
}
CLIENT = Visitor({"ga4": ProductIds("1234567890.1700000000")})
ADA = "b5fc85e55755f9e0d030a10ab4429b6b2944855f9a0d60077fe832becbc41d72"
EVENTS = {
    "purchase": event(
        "1Nabc",
        "purchase",
        at=1751373296000,
        user_id="user_1",
        identity=HASHED,
        visitor=Visitor({"ga4": ProductIds(None, "GS2.1.s1751373000$o3$g1$t1751373296$j60$l0$h0")}, CLICKS),
        properties={
            "order_id": "ORD-1234",
            "value": Money(Decimal("129.50"), "USD"),
            "tax": Money(Decimal("9.06"), "USD"),
            "shipping": Money(Decimal("5.00"), "USD"),
            "total": Money(Decimal("143.56"), "USD"),
            "currency": "USD",
            "items": ITEMS,
            "coupon": "SPRING",
            "payment_type": "one_time",
        },
        context={"url": "https://shop.example/checkout?utm_source=news", "consent": {"ads": True}},
    ),
    "refund": event(
        "2",
        "refund",
        at=1751373297123,
        visitor=CLIENT,
        properties={
            "order_id": "ORD-1234",
            "refund_id": "re_1",
            "value": Money(Decimal(5000), "JPY"),
            "currency": "JPY",
            "reason": "requested_by_customer",
        },
    ),
    "renewal": event(
        "3",
        "purchase",
        at=1751373298000,
        user_id=ADA,  # an email address, hashed while translating
        properties={
            "order_id": "in_1",
            "subscription_id": "sub_1",
            "billing_reason": "subscription_cycle",
            "value": Money(Decimal(49), "EUR"),
            "currency": "EUR",
        },
    ),
    "trial": event(
        "4",
        "trial_started",
        at=1751373299000,
        visitor=Visitor({"": ProductIds("anon_1")}, {"_fbc": "fb.1.1751372999000.IwAR9xyz", "fbclid": "IwAR9xyz"}),
        properties={"subscription_id": "sub_2"},
    ),
    "page": event(
        "5",
        "Landing",
        kind="page",
        at=1751373300000,
        visitor=CLIENT,
        context={"url": "https://shop.example/", "consent": {"ads": False}},
    ),
}


@functools.cache
def destination(name: str, **settings: str) -> Destination:
    return load_mappings(bundled(), {**ADS, **settings}.get).destinations[name]


def written(name: str, of: Event, **settings: str) -> Any:
    to = destination(name, **settings)
    rendered = render(of, to)
    assert isinstance(rendered, bytes), rendered
    return msgspec.json.decode(pack([rendered], to, of.id, 0).body)


@pytest.mark.parametrize(
    ("file", "name", "golden"), [(file, name, golden) for file in NAMES for name, golden in cases(file)]
)
def test_a_platform_gets_what_its_reference_asks_for(file: str, name: str, golden: dict[str, Any]) -> None:
    to = destination(file)
    rendered = render(EVENTS[name], to)
    assert isinstance(rendered, bytes)
    request = pack([rendered], to, EVENTS[name].id, 0)
    assert msgspec.json.decode(request.body) == golden["body"]
    sent = {header.lower(): value for header, value in request.headers.items()}
    assert golden["headers"].items() <= sent.items()


def test_the_secret_is_where_each_platform_takes_it_and_in_no_stored_event() -> None:
    for name, secret in {"ga4": API_SECRET, "meta": META_TOKEN, "tiktok": TIKTOK_TOKEN}.items():
        to = destination(name)
        rendered = render(EVENTS["purchase"], to)
        assert isinstance(rendered, bytes)
        assert secret.encode() not in rendered
        request = pack([rendered], to, "evt", 0)
        assert (name == "ga4") == (secret in request.url)
        assert (name == "meta") == (secret.encode() in request.body)
        assert (name == "tiktok") == (request.headers.get("Access-Token") == secret)


def test_each_platform_has_its_own_endpoint() -> None:
    assert destination("ga4").url == (
        f"https://www.google-analytics.com/mp/collect?measurement_id={MEASUREMENT_ID}&api_secret={API_SECRET}"
    )
    assert destination("ga4", GA4_HOST="https://region1.google-analytics.com").url.startswith("https://region1.")
    assert destination("meta").url == f"https://graph.facebook.com/v25.0/{PIXEL}/events"
    assert destination("tiktok").url == "https://business-api.tiktok.com/open_api/v1.3/event/track/"


@pytest.mark.parametrize(
    ("visitor", "client"),
    [
        (Visitor({"ga4": ProductIds("12.34")}), "12.34"),
        (Visitor({"ga4": ProductIds("GA1.1.12.34")}), "12.34"),
        (Visitor({"ga4": ProductIds("GA1.1-2.12.34")}), "12.34"),
        (Visitor({"": ProductIds("12.34")}), "12.34"),
        (Visitor({"": ProductIds("anon_1")}, {"_ga": "GA1.3.12.34"}), "12.34"),
        (Visitor({"": ProductIds("anon_1")}), None),
        (Visitor({"posthog": ProductIds("12.34")}), None),
        (None, None),
    ],
)
def test_ga4_gets_events_of_its_own_clients_only(visitor: Visitor | None, client: str | None) -> None:
    paid = event("8", "purchase", user_id="user_1", visitor=visitor)
    if client is None:
        assert render(paid, destination("ga4")) == "no_person"
    else:
        assert written("ga4", paid)["client_id"] == client


@pytest.mark.parametrize(
    ("session", "id"),
    [
        ("GS2.1.s1751373000$o3$g1$t1751373296$j60$l0$h0", "1751373000"),
        ("GS1.1.1751373000.3.1.1751373296.60.0.0", "1751373000"),
        ("1751373000", "1751373000"),
        ("sess_1", None),
        ("22222222-2222-4222-8222-222222222222", None),
    ],
)
def test_ga4_gets_the_session_whichever_way_the_page_knows_it(session: str, id: str | None) -> None:
    visit = event("9", "purchase", visitor=Visitor({"ga4": ProductIds("12.34", session)}))
    params = written("ga4", visit)["events"][0]["params"]
    assert params.get("session_id") == id
    assert ("engagement_time_msec" in params) == (id is not None)


def test_ga4_gets_hashed_identity_only_when_the_property_is_made_for_it() -> None:
    assert "user_data" not in written("ga4", EVENTS["purchase"])
    assert written("ga4", EVENTS["purchase"], GA4_USER_DATA="true")["user_data"] == {
        "sha256_email_address": ["62a14e44f765419d10fea99367361a727c12365e2520f32218d505ed9aa0f62f"],
        "sha256_phone_number": ["1e231c66011e7a2d867a9cfae267a6aff103cf4913640b6e71a99850fc0ffbc8"],
    }


def test_ga4_gets_no_hash_of_an_email_address_as_the_user() -> None:
    assert "user_id" not in written("ga4", event("1", "purchase", user_id=ADA, visitor=CLIENT))
    assert written("ga4", event("1", "purchase", user_id="user_1", visitor=CLIENT))["user_id"] == "user_1"


@pytest.mark.parametrize("name", ["meta", "tiktok"])
@pytest.mark.parametrize(("consent", "skip"), [({"ads": False}, "no_consent"), ({"ads": True}, None), ({}, None)])
def test_a_visitor_who_refused_ads_is_kept_from_ad_platforms(
    name: str, consent: dict[str, bool], skip: str | None
) -> None:
    paid = event("1", "purchase", user_id="u", context={"consent": consent})
    assert route(paid, destination(name), forward_tests=False) == skip


@pytest.mark.parametrize("name", ["meta", "tiktok"])
@pytest.mark.parametrize("other", ["refund", "invoice_finalized", "customer_created", "subscription_cancelled"])
def test_ad_platforms_get_conversions_only(name: str, other: str) -> None:
    assert route(event("1", other, user_id="u"), destination(name), forward_tests=False) == "not_routed"


def test_a_test_event_is_marked_where_the_platform_has_a_place_for_it() -> None:
    tested = event("1", "purchase", test=True, user_id="u", visitor=CLIENT)
    assert written("ga4", tested)["events"][0]["params"]["debug_mode"] is True
    assert written("meta", tested, META_TEST_EVENT_CODE="TEST1")["test_event_code"] == "TEST1"
    assert written("tiktok", tested, TIKTOK_TEST_EVENT_CODE="TEST2")["test_event_code"] == "TEST2"


def test_the_event_id_is_the_one_that_the_pixel_can_compute() -> None:
    for name in ("meta", "tiktok"):
        assert written(name, EVENTS["purchase"])["data"][0]["event_id"] == EVENTS["purchase"].id


def test_another_products_visitor_id_is_no_cookie_of_the_pixel() -> None:
    shared = event("6", "purchase", user_id="u", visitor=Visitor({"": ProductIds("anon_1")}))
    assert "fbp" not in written("meta", shared)["data"][0]["user_data"]
    own = event("6", "purchase", visitor=Visitor({"meta": ProductIds("fb.1.1751372000000.1")}))
    assert written("meta", own)["data"][0]["user_data"] == {"fbp": "fb.1.1751372000000.1"}


def test_a_site_is_told_for_events_without_a_page_of_their_own() -> None:
    meta = written("meta", EVENTS["renewal"], META_SITE_URL="https://shop.example")
    tiktok = written("tiktok", EVENTS["renewal"], TIKTOK_SITE_URL="https://shop.example")
    assert meta["data"][0]["event_source_url"] == tiktok["data"][0]["page"]["url"] == "https://shop.example"


def test_tiktok_calls_a_purchase_as_its_pixel_does() -> None:
    older = written("tiktok", EVENTS["purchase"], TIKTOK_PURCHASE_EVENT="CompletePayment")
    assert older["data"][0]["event"] == "CompletePayment"


@pytest.mark.parametrize("name", ["meta", "tiktok"])
def test_an_event_that_nobody_can_be_matched_by_is_not_sent(name: str) -> None:
    names_only = {profile: {"first_name": "f" * 64, "country": "c" * 64} for profile in ("meta", "tiktok")}
    nobody = event("7", "purchase", identity=names_only, visitor=Visitor({"": ProductIds("anon_1")}))
    assert render(nobody, destination(name)) == "no_person"
