"""What goes to the collectors of other products is what their HTTP references ask for.

The golden files are written by hand, from those references; the order of keys does not matter to any of them.
"""

import functools
from decimal import Decimal

import msgspec
import pytest
from msgspec import structs

from gateway.deliveries import State
from gateway.destinations import Destination, Response, judge, pack, render
from gateway.events import Event, ProductIds, Visitor
from gateway.mappings import bundled, load_mappings
from gateway.money import Money
from tests.destinations.test_golden import GOLDEN

FILES = ("segment", "posthog", "mixpanel", "amplitude", "plausible", "umami")
WEBSITE = "6f2b7a3c-8d1e-4f5a-9b6c-7d8e9f0a1b2c"
SETTINGS = {
    "SEGMENT_WRITE_KEY": "wk_test",
    "POSTHOG_API_KEY": "phc_test",
    "MIXPANEL_TOKEN": "mp_test",
    "AMPLITUDE_API_KEY": "amp_test",
    "PLAUSIBLE_DOMAIN": "shop.example",
    "UMAMI_WEBSITE_ID": WEBSITE,
}
AT = 1793000060000
VISITOR = Visitor(
    {
        "": ProductIds("anon_1", "sess_1"),
        "posthog": ProductIds("0192f0a0-0000-7000-8000-00000000000a", "0192f0a0-1111-7222-8333-444455556666"),
        "mixpanel": ProductIds("$device:0192f0a0-device"),
        "amplitude": ProductIds("dev-9f8e7d6c", "1793000000000"),
    }
)
PAGE: dict[str, object] = {"url": "https://shop.example/checkout?utm_source=news", "path": "/checkout"}


def event(number: int, name: str, **changes: object) -> Event:
    made: dict[str, object] = {
        "id": f"0b1f5a52-6c1e-5d0a-9a53-00000000000{number}",
        "name": name,
        "at": AT,
        "source": "stripe",
        "webhook_id": "evt_1",
        "type": "t",
        "rule": "r",
    }
    return Event(**(made | changes))  # type: ignore[arg-type]


EVENTS = {
    "purchase": event(
        1,
        "purchase",
        user_id="user_42",
        visitor=VISITOR,
        context=PAGE,
        properties={
            "order_id": "ORD-1",
            "value": Money(Decimal("110.00"), "USD"),
            "total": Money(Decimal("129.50"), "USD"),
            "tax": Money(Decimal("9.50"), "USD"),
            "shipping": Money(Decimal("10.00"), "USD"),
            "currency": "USD",
            "coupon": "SPRING",
            "payment_type": "one_time",
            "items": [
                {"item_id": "SKU-A", "name": "Widget", "quantity": 2, "price": Money(Decimal("39.75"), "USD")},
                {"item_id": "SKU-B", "price": Money(Decimal("30.50"), "USD")},
            ],
        },
    ),
    "refund": event(
        2,
        "refund",
        user_id="42",
        properties={
            "order_id": "ORD-1",
            "refund_id": "re_1",
            "value": Money(Decimal("40.25"), "USD"),
            "currency": "USD",
            "reason": "requested_by_customer",
        },
    ),
    "subscription_started": event(
        3,
        "subscription_started",
        visitor=Visitor({"": ProductIds("anon_1", "sess_1")}),
        properties={
            "subscription_id": "sub_1",
            "status": "active",
            "plan": "price_pro",
            "value": Money(Decimal(5000), "JPY"),
            "currency": "JPY",
            "billing_interval": "month",
        },
    ),
    "identify": event(
        4, "identify", kind="identify", user_id="user_42", visitor=VISITOR, properties={"plan": "price_pro"}
    ),
    "page": event(5, "Checkout", kind="page", user_id="user_42", visitor=VISITOR, context=PAGE),
    "group": event(6, "group", kind="group", user_id="user_42", properties={"groupId": "company_456", "name": "Acme"}),
}


@functools.cache
def destination(name: str) -> Destination:
    return load_mappings(bundled(), SETTINGS.get).destinations[name]


def cases(file: str) -> list[tuple[str, dict[str, object]]]:
    return list(msgspec.json.decode((GOLDEN / f"{file}.json").read_bytes()).items())


@pytest.mark.parametrize(("file", "name", "golden"), [(file, *case) for file in FILES for case in cases(file)])
def test_a_request_is_as_the_reference_asks(file: str, name: str, golden: dict[str, object]) -> None:
    to = destination(file)
    rendered = render(EVENTS[name], to)
    assert isinstance(rendered, bytes)
    request = pack([rendered], to, EVENTS[name].id, 0, EVENTS[name].kind)
    assert {"url": request.url, "headers": request.headers, "body": msgspec.json.decode(request.body)} == golden


@pytest.mark.parametrize("file", FILES)
def test_there_is_a_golden_request_for_each_event_that_is_taken(file: str) -> None:
    taken = {name for name, each in EVENTS.items() if each.kind in destination(file).kinds}
    assert {name for name, _ in cases(file)} == taken >= {"purchase", "refund", "subscription_started"}


@pytest.mark.parametrize("file", ["segment", "posthog", "mixpanel", "amplitude"])
def test_an_event_of_nobody_is_skipped(file: str) -> None:
    nobody = structs.replace(EVENTS["purchase"], user_id=None, visitor=None)
    assert render(nobody, destination(file)) == "no_person"


@pytest.mark.parametrize("file", ["plausible", "umami"])
def test_money_counts_without_a_person_where_the_site_is_what_is_counted(file: str) -> None:
    nobody = structs.replace(EVENTS["purchase"], user_id=None, visitor=None)
    assert isinstance(render(nobody, destination(file)), bytes)


@pytest.mark.parametrize("file", ["segment", "posthog", "mixpanel"])
def test_a_group_without_an_id_is_skipped(file: str) -> None:
    assert render(structs.replace(EVENTS["group"], properties={"name": "Acme"}), destination(file)) == "no_person"


@pytest.mark.parametrize("file", FILES)
def test_every_try_has_the_same_body_and_stores_no_secret(file: str) -> None:
    to = destination(file)
    rendered = render(EVENTS["purchase"], to)
    assert isinstance(rendered, bytes)
    assert pack([rendered], to, "id", 0).body == pack([rendered], to, "id", 9).body
    assert not any(secret.reveal().encode() in rendered for secret in to.secrets.values() if secret.reveal())


def test_rudderstack_gets_its_basic_authorization() -> None:
    settings = SETTINGS | {"SEGMENT_HOST": "https://rudder.example"}
    request = pack([b"{}"], load_mappings(bundled(), settings.get).destinations["segment"], "id", 0)
    assert (request.url, request.headers["Authorization"]) == ("https://rudder.example/v1/batch", "Basic d2tfdGVzdDo=")


ANSWERS: list[tuple[str, int, object, list[State]]] = [
    ("segment", 200, {"success": True}, [State.SENT] * 3),
    ("segment", 200, "OK", [State.SENT] * 3),
    ("segment", 200, {"success": False}, [State.DEAD] * 3),
    ("segment", 429, None, [State.DUE] * 3),
    ("posthog", 200, {"status": 1}, [State.SENT] * 3),
    ("posthog", 401, None, [State.PARKED] * 3),
    ("posthog", 503, None, [State.DUE] * 3),
    ("mixpanel", 200, {"code": 200, "num_records_imported": 3, "status": "OK"}, [State.SENT] * 3),
    ("mixpanel", 200, {"status": 1, "error": None}, [State.SENT] * 3),
    ("mixpanel", 200, {"status": 0, "error": "$token, missing or empty"}, [State.DEAD] * 3),
    (
        "mixpanel",
        400,
        {"code": 400, "num_records_imported": 2, "failed_records": [{"index": 1, "field": "properties.time"}]},
        [State.SENT, State.DEAD, State.SENT],
    ),
    ("mixpanel", 400, {"code": 400, "error": "no JSON"}, [State.DEAD] * 3),
    ("amplitude", 200, {"code": 200, "events_ingested": 3}, [State.SENT] * 3),
    ("amplitude", 400, {"code": 400, "error": "Invalid API key"}, [State.DEAD] * 3),
    (
        "amplitude",
        400,
        {"code": 400, "events_with_invalid_fields": {"time": [0]}, "events_with_missing_fields": {"event_type": [2]}},
        [State.DEAD, State.DUE, State.DEAD],
    ),
    (
        "amplitude",
        400,
        {"code": 400, "events_with_invalid_id_lengths": {"user_id": [1]}},
        [State.DUE, State.DEAD, State.DUE],
    ),
    ("amplitude", 413, {"code": 413, "error": "Payload too large"}, [State.DEAD] * 3),
    ("amplitude", 429, {"code": 429, "throttled_events": [0]}, [State.DUE] * 3),
    ("plausible", 202, "ok", [State.SENT]),
    ("plausible", 400, {"errors": {"domain": ["can't be blank"]}}, [State.DEAD]),
    ("umami", 200, {"cache": "x", "sessionId": "s", "visitId": "v"}, [State.SENT]),
    ("umami", 200, {"beep": "boop"}, [State.PARKED]),
    ("umami", 400, {"message": "Website not found."}, [State.DEAD]),
]


@pytest.mark.parametrize(("file", "status", "body", "states"), ANSWERS)
def test_an_answer_decides_for_each_event(file: str, status: int, body: object, states: list[State]) -> None:
    response = Response(status, body=msgspec.json.encode(body))
    assert [outcome.state for outcome in judge(response, destination(file), len(states))] == states
