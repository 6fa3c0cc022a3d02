"""What customers can write into a payload, by name, metadata or cart, and what an honest gateway makes of it."""

import time
from typing import Any

import msgspec
import pytest

from gateway.dry_run import events_of
from gateway.mappings import bundled, sample, sample_headers
from gateway.translate import Translation
from tests.mapping.people import MAPPINGS
from tests.mapping.strange import put
from tests.promises.collector import Collector
from tests.promises.served import Served, document_of, encoded

ORDER: dict[str, object] = msgspec.json.decode((bundled() / "samples/shopify/orders.paid.json").read_bytes())
SHARE = 1.0
"""Seconds of the event loop that the worst body of 1 MB may take on a slow machine under load."""


def changed(source: str, name: str, path: tuple[str | int, ...], value: object) -> Any:
    body = sample(bundled(), source, name)
    assert body is not None
    return put(msgspec.json.decode(body), path, value)


def translated(source: str, name: str, document: object) -> Translation:
    body = document if isinstance(document, bytes) else msgspec.json.encode(document)
    return events_of(MAPPINGS, source, sample_headers(bundled(), source, name, body, 0), body)


def order(**changes: object) -> Translation:
    return translated("shopify", "orders.paid", changed("shopify", "orders.paid", (), ORDER | changes))


@pytest.mark.parametrize("amount", ["NaN", "sNaN", "Infinity", "12 Elm Street"])
def test_nobody_forges_money(amount: str) -> None:
    items = [{"title": "Mug", "quantity": {"$": "money", "amount": amount, "currency": "USD"}}]
    translation = order(line_items=items)
    assert translation.emissions == ()
    assert "a property has a key `$`, which is not supported" in [note.error for note in translation.notes]


@pytest.mark.parametrize("number", [10**22, -(10**20), 2**64])
def test_a_number_that_no_store_can_hold_is_a_reason_and_not_a_crash(number: int) -> None:
    body = msgspec.json.encode(document_of("checkout.session.completed"))
    forged = body.replace(b'"order_id":"ORD-1234"', b'"order_id":%d' % number)
    assert forged != body
    translation = translated("stripe", "checkout.session.completed", forged)
    assert [note.error for note in translation.notes if note.error] == ["a property is a number of more than 64 bits"]


def test_such_a_webhook_is_kept_and_answered(served: Served, collector: Collector) -> None:
    document = encoded(document_of("checkout.session.completed"))
    with served.up():
        forged = document.replace(b'"order_id":"ORD-1234"', b'"order_id":%d' % 10**22)
        assert served.post(forged).status_code == 200
        assert served.post(b'{"id":"e","type":"nope","object":"\xff"}').status_code in (200, 400, 401)
        nested = b'{"id":"e2","type":"nope","x":' + b"[" * 985 + b"]" * 985 + b"}"
        assert served.post(nested).status_code in (200, 400)


@pytest.mark.parametrize(
    ("source", "name", "path", "value"),
    [
        ("shopify", "orders.paid", ("line_items",), [{}] * 345_000),
        ("shopify", "orders.paid", ("note_attributes",), [{"name": "a", "value": "b"}] * 25_000),
        ("stripe", "invoice.paid", ("data", "object", "lines", "data"), [{}] * 330_000),
        ("stripe", "invoice.paid", ("data", "object", "total_taxes"), [{"amount": 1}] * 70_000),
        ("stripe", "checkout.session.completed", ("data", "object", "metadata", "order_id"), "%40" * 60_000),
        ("chargebee", "payment_succeeded", ("content", "invoice", "line_items"), [{}] * 300_000),
    ],
)
def test_the_largest_bodies_take_no_long_turn(
    source: str, name: str, path: tuple[str | int, ...], value: object
) -> None:
    body = msgspec.json.encode(changed(source, name, path, value))
    started = time.thread_time()
    translated(source, name, body)
    assert time.thread_time() - started < SHARE


def test_a_long_name_does_not_slow_the_search_for_it() -> None:
    customer = {"first_name": "b", "last_name": "ab " * 60_000 + "a"}
    started = time.thread_time()
    order(customer=customer, line_items=[{"title": "ab " * 65_000, "quantity": 1}])
    assert time.thread_time() - started < SHARE


def test_personal_data_is_no_visitor_id() -> None:
    document = document_of("checkout.session.completed")
    for visitor in ("anon_ada@example.com", "someone.else@example.com", "+12025550143"):
        document["data"]["object"]["metadata"]["visitor_id"] = visitor
        assert translated("stripe", "checkout.session.completed", document).visitor is None


@pytest.mark.parametrize("user", ["ada@example.com", "+1 202 555 0143"])
def test_personal_data_is_no_user_id(user: str) -> None:
    document = document_of("checkout.session.completed")
    document["data"]["object"]["client_reference_id"] = None
    document["data"]["object"]["metadata"]["user_id"] = user
    (emission,) = translated("stripe", "checkout.session.completed", document).emissions
    assert emission.event.user_id is not None
    assert len(emission.event.user_id) == 64


def test_anybodys_email_is_refused_in_a_property() -> None:
    document = document_of("checkout.session.completed")
    document["data"]["object"]["metadata"]["order_id"] = "order of someone.else@example.com"
    translation = translated("stripe", "checkout.session.completed", document)
    assert [note.skip for note in translation.notes] == ["pii_leak", "filtered"]


def test_a_phone_that_is_written_as_a_number_is_hashed_and_guarded() -> None:
    document = changed("shopify", "orders.paid", ("phone",), 4915112345678)
    document["line_items"][0]["title"] = "call 4915112345678"
    assert "pii_leak" in [note.skip for note in translated("shopify", "orders.paid", document).notes]


def test_a_payment_counts_once_though_its_key_is_long() -> None:
    document = document_of("checkout.session.completed")
    document["data"]["object"]["payment_intent"] = "pi_" + "x" * 5_000
    (emission,) = translated("stripe", "checkout.session.completed", document).emissions
    assert emission.payment is not None
    assert len(emission.payment.keys) == 2
    assert len(emission.payment.keys[0]) == 64


def test_a_test_webhook_teaches_nothing(served: Served, collector: Collector) -> None:
    document = document_of("checkout.session.completed") | {"livemode": False, "id": "evt_test"}
    document["data"]["object"]["metadata"]["visitor_id"] = "anon_of_a_test"
    with served.up(GATEWAY_TEST_EVENTS="forward"):
        assert served.post(encoded(document)).status_code == 200
        assert served.rows("SELECT count(*) FROM link") == [(0,)]


def test_what_cannot_be_kept_is_quoted_nowhere(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    document = document_of("checkout.session.completed")
    document["data"]["object"]["metadata"]["order_id"] = {"$": "12 Elm Street, Jane Secret"}
    with served.up():
        assert served.post(encoded(document)).status_code == 200
    assert b"Jane Secret" not in served.path.read_bytes()
    assert "Jane Secret" not in capsys.readouterr().err
