"""What the bundled mappings make of the bundled samples."""

from pathlib import Path
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.dry_run import events_of
from gateway.events import decode_event, encode_event
from gateway.mappings import bundled, load_mappings, sample_headers
from gateway.money import Money
from gateway.sources import MalformedWebhook, read_verified
from gateway.translate import Translation

MAPPINGS = load_mappings(bundled(), lambda _: None)
SAMPLES = sorted((bundled() / "samples").glob("*/*.json"))
PRIVATE = (b"@example.com", b"12025550143", b"beispiel", b"ada example", b"musterstra")

# Sample: the event, its value and currency, or why there is none.
EXPECTED = {
    "shopify/app_subscriptions.update": "subscription_updated",
    "shopify/checkouts.create": "begin_checkout 94.96 EUR",
    "shopify/customers.create": "customer_created",
    "shopify/customers.redact": "unmapped",
    "shopify/orders.cancelled": "order_cancelled 99.86 EUR",
    "shopify/orders.create": "unmapped",
    "shopify/orders.paid": "purchase 79.80 EUR",
    "shopify/orders.updated": "unmapped",
    "shopify/refunds.create": "refund 27.88 EUR",
    "stripe/charge.dispute.closed": "dispute_closed 129.50 USD",
    "stripe/charge.dispute.created": "dispute_opened 129.50 USD",
    "stripe/charge.refunded": "unmapped",
    "stripe/charge.succeeded": "unmapped",
    "stripe/checkout.session.async_payment_succeeded": "purchase 75.00 EUR",
    "stripe/checkout.session.completed": "purchase 110.00 USD",
    "stripe/checkout.session.completed.jpy": "purchase 5000 JPY",
    "stripe/checkout.session.completed.subscription": "purchase 49.00 USD",
    "stripe/checkout.session.completed.test": "purchase 10.00 USD",
    "stripe/checkout.session.completed.unpaid": "checkout_completed 75.00 EUR",
    "stripe/checkout.session.expired": "checkout_expired 25.00 USD",
    "stripe/customer.created": "customer_created",
    "stripe/customer.subscription.created": "subscription_started 49.00 USD",
    "stripe/customer.subscription.created.trialing": "trial_started",
    "stripe/customer.subscription.deleted": "subscription_cancelled",
    "stripe/customer.subscription.trial_will_end": "trial_ending",
    "stripe/customer.subscription.updated": "trial_converted",
    "stripe/customer.subscription.updated.plan": "subscription_updated",
    "stripe/invoice.paid": "purchase 49.00 USD",
    "stripe/invoice.paid.pre_basil": "purchase 49.00 USD",
    "stripe/invoice.paid.renewal": "purchase 49.00 USD",
    "stripe/invoice.payment_failed": "invoice_payment_failed 53.90 USD",
    "stripe/invoice_payment.paid": "claims in_1SGatewayFirst0001 pi_3SGatewaySub0001",
    "stripe/payment_intent.payment_failed": "payment_failed 30.00 USD",
    "stripe/payment_intent.succeeded": "purchase 129.50 USD",
    "stripe/payment_intent.succeeded.subscription": "purchase 53.90 USD",
    "stripe/refund.created": "refund 20.00 USD",
    "stripe/v2.core.event": "thin_event",
}


def translated(file: Path) -> Translation:
    source, body = file.parent.name, file.read_bytes()
    return events_of(MAPPINGS, source, sample_headers(bundled(), source, file.name, body, 0), body)


def told(translation: Translation) -> str:
    """Say in one line what came of a webhook."""
    for emission in translation.emissions:
        value = emission.event.properties.get("value")
        return f"{emission.event.name} {value}" if isinstance(value, Money) else emission.event.name
    for payment in translation.payments:
        return f"claims {' '.join(sorted(payment.keys))}"
    return translation.notes[0].skip or str(translation.notes[0].error)


@pytest.mark.parametrize("file", SAMPLES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_a_sample_makes_its_event(file: Path) -> None:
    assert told(translated(file)) == EXPECTED[f"{file.parent.name}/{file.stem}"]


@pytest.mark.parametrize("file", SAMPLES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_one_webhook_makes_one_event_at_most_and_no_rule_fails(file: Path) -> None:
    translation = translated(file)
    assert len(translation.emissions) <= 1
    assert [note for note in translation.notes if note.error] == []


@pytest.mark.parametrize("file", SAMPLES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_no_event_repeats_personal_data(file: Path) -> None:
    for emission in translated(file).emissions:
        packed = encode_event(emission.event)
        assert decode_event(packed) == emission.event
        assert not [word for word in PRIVATE if word in packed.lower()]


@pytest.mark.parametrize("source", MAPPINGS.sources)
def test_every_rule_is_reached_by_a_sample(source: str) -> None:
    reached = set()
    for file in SAMPLES:
        if file.parent.name == source:
            translation = translated(file)
            skipped = {note.rule for note in translation.notes}
            type = read_verified(
                sample_headers(bundled(), source, file.name, b"", 0), file.read_bytes(), MAPPINGS.sources[source], 0
            ).type
            reached |= {rule.name for rule in MAPPINGS.sources[source].rules_for(type)} - skipped
    assert reached == {rule.name for rule in MAPPINGS.sources[source].rules}


# Sample: what a destination cannot do without, besides value and currency.
PROPERTIES: dict[str, dict[str, object]] = {
    "shopify/orders.paid": {
        "order_id": "5012345678901",
        "total": "99.86 EUR",
        "tax": "15.16 EUR",
        "shipping": "4.90 EUR",
        "discount": "5.00 EUR",
        "coupon": "HERBST5",
    },
    "shopify/refunds.create": {"order_id": "5012345678901", "refund_id": "9112345678901"},
    "shopify/app_subscriptions.update": {"plan": "Pro", "status": "active"},
    "stripe/checkout.session.completed": {
        "order_id": "ORD-1234",
        "total": "129.50 USD",
        "tax": "9.50 USD",
        "shipping": "10.00 USD",
        "discount": "5.00 USD",
        "payment_type": "one_time",
    },
    "stripe/checkout.session.completed.jpy": {"order_id": "ORD-1245", "total": "5000 JPY", "tax": "0 JPY"},
    "stripe/checkout.session.completed.subscription": {
        "order_id": "in_1SGatewayFirst0001",
        "payment_type": "subscription",
        "subscription_id": "sub_1SGatewayPro0001",
    },
    "stripe/checkout.session.completed.unpaid": {"payment_status": "unpaid", "mode": "payment"},
    "stripe/customer.subscription.created": {"status": "active", "billing_interval": "month"},
    "stripe/customer.subscription.created.trialing": {"trial_ends_at": "2026-11-09T07:33:20.000Z"},
    "stripe/customer.subscription.updated.plan": {
        "plan": "price_1SGatewayTeamMonthly",
        "previous_plan": "price_1SGatewayProMonthly",
    },
    "stripe/invoice.paid": {"total": "53.90 USD", "tax": "4.90 USD", "subscription_id": "sub_1SGatewayPro0001"},
    "stripe/invoice.paid.pre_basil": {
        "total": "53.90 USD",
        "tax": "4.90 USD",
        "subscription_id": "sub_1SGatewayPreBasil01",
        "plan": "price_1SGatewayProMonthly",
    },
    "stripe/invoice.payment_failed": {"attempt": 2, "billing_reason": "subscription_cycle"},
    "stripe/payment_intent.payment_failed": {"order_id": "ORD-1248", "reason": "insufficient_funds"},
    "stripe/refund.created": {"order_id": "pi_3SGatewayOnce0001", "refund_id": "re_3SGatewayOnce0001"},
}


@pytest.mark.parametrize("sample", PROPERTIES)
def test_a_sample_gives_its_event_these_properties(sample: str) -> None:
    found = translated(bundled() / f"samples/{sample}.json").emissions[0].event.properties
    told = {name: str(value) if isinstance(value, Money) else value for name, value in found.items()}
    assert told.items() >= PROPERTIES[sample].items()


# Sample: its subjects in order of trust, and the user.
SUBJECTS = {
    "shopify/orders.paid": ("shopify_cart shopify_checkout shopify_order shopify_customer email", None),
    "shopify/checkouts.create": ("shopify_cart shopify_checkout shopify_customer email", None),
    "shopify/refunds.create": ("shopify_order", None),
    "shopify/customers.create": ("shopify_customer email", None),
    "stripe/checkout.session.completed": ("user stripe_checkout stripe_customer stripe_payment email", "user_42"),
    "stripe/checkout.session.completed.subscription": ("user stripe_checkout stripe_customer email", "user_42"),
    "stripe/checkout.session.completed.unpaid": ("user stripe_checkout stripe_payment email", "user_44"),
    "stripe/customer.created": ("user stripe_customer email", "user_42"),
    "stripe/customer.subscription.created.trialing": ("user stripe_customer", "user_46"),
    "stripe/invoice.paid": ("user stripe_customer email", "user_42"),
    "stripe/invoice.paid.pre_basil": ("user stripe_customer stripe_payment email", "user_7"),
    "stripe/payment_intent.succeeded": ("stripe_customer stripe_payment", None),
    "stripe/refund.created": ("stripe_payment", None),
}


@pytest.mark.parametrize("sample", SUBJECTS)
def test_a_sample_says_whom_it_concerns(sample: str) -> None:
    subjects, user = SUBJECTS[sample]
    event = translated(bundled() / f"samples/{sample}.json").emissions[0].event
    assert (" ".join(event.subjects), event.user_id) == (subjects, user)


@pytest.mark.parametrize(
    ("sample", "hold"), [("checkout.session.completed", 0), ("invoice.paid", 0), ("payment_intent.succeeded", 120_000)]
)
def test_only_a_bare_payment_steps_back_for_who_knows_more(sample: str, hold: int) -> None:
    payment = translated(bundled() / f"samples/stripe/{sample}.json").emissions[0].payment
    assert payment is not None
    assert payment.hold == hold


def test_identity_is_hashed_and_the_visitor_is_not() -> None:
    event = translated(bundled() / "samples/shopify/orders.paid.json").emissions[0].event
    assert all(len(value) == 64 for value in event.identity["default"].values())
    assert set(event.identity["default"]) == {"email", "phone", "first_name", "last_name"}
    assert event.visitor is not None
    assert event.visitor.ids["datalyr"].visitor_id == "anon_3f0c5d2a-9b1e-4a77-8c66-0a1b2c3d4e5f"


def test_every_report_of_a_payment_shares_a_key_with_another() -> None:
    def keys(name: str) -> set[str]:
        translation = translated(bundled() / f"samples/stripe/{name}.json")
        payments = [*translation.payments, *(each.payment for each in translation.emissions)]
        return {key for payment in payments if payment for key in payment.keys}

    assert keys("checkout.session.completed") & keys("payment_intent.succeeded")
    assert keys("checkout.session.completed.subscription") & keys("invoice.paid")
    assert keys("invoice.paid") & keys("invoice_payment.paid")
    assert keys("invoice_payment.paid") & keys("payment_intent.succeeded.subscription")


def test_an_event_has_the_same_id_each_time_and_a_browser_can_compute_it() -> None:
    file = bundled() / "samples/stripe/checkout.session.completed.json"
    first, second = (translated(file).emissions[0].event.id for _ in range(2))
    # The UUIDv5 of stripe||pi_3SGatewayOnce0001|purchase|0 under the project's namespace.
    assert first == second == "b0938ddd-9886-55ed-be09-d883276e3bc0"


@pytest.mark.parametrize("file", SAMPLES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_the_same_sample_makes_the_same_ids(file: Path) -> None:
    first, second = ([each.event.id for each in translated(file).emissions] for _ in range(2))
    assert first == second
    assert first == [str(UUID(id)) for id in first]


def test_a_test_payment_is_marked() -> None:
    file = bundled() / "samples/stripe/checkout.session.completed.test.json"
    assert translated(file).emissions[0].event.test
    marked = [each.event for file in SAMPLES for each in translated(file).emissions if each.event.test]
    assert len(marked) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = sorted(
    {
        "id customer customer_details customer_email currency amount_total amount_paid amount metadata payment_intent",
        "invoice lines items parent subscription status payment_status mode object total_details previous_attributes",
        "total_taxes tax trial_end cancellation_details last_payment_error client_reference_id name phone",
        "address email",
    }
)
NAMES = sorted({name for line in FIELDS for name in line.split()})
STRIPE_TYPES = sorted({type for rule in MAPPINGS.sources["stripe"].rules for type in rule.on})
SHOPIFY_TYPES = sorted({type for rule in MAPPINGS.sources["shopify"].rules for type in rule.on})


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(STRIPE_TYPES), st.dictionaries(st.sampled_from(NAMES), JSON, max_size=10), JSON)
def test_any_stripe_object_makes_events_or_reasons(type: str, thing: dict[str, object], previous: object) -> None:
    document = {"id": "evt_1", "type": type, "data": {"object": thing, "previous_attributes": previous}}
    try:
        body = msgspec.json.encode(document)
    except UnicodeEncodeError:  # a lone surrogate: no JSON text can hold one as it is
        return
    translation = events_of(MAPPINGS, "stripe", {}, body)
    assert translation.emissions or translation.payments or translation.notes


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(SHOPIFY_TYPES),
    st.dictionaries(
        st.sampled_from(["id", "email", "customer", "line_items", "transactions", "total_price", "currency", "token"]),
        JSON,
        max_size=8,
    ),
)
def test_any_shopify_object_makes_events_or_reasons(topic: str, thing: dict[str, object]) -> None:
    headers = {"x-shopify-topic": topic, "x-shopify-event-id": "1", "x-shopify-shop-domain": "s"}
    try:
        body = msgspec.json.encode(thing)
    except UnicodeEncodeError:
        return
    translation = events_of(MAPPINGS, "shopify", headers, body)
    assert translation.emissions or translation.notes


SHOPIFY_HEADERS = {"x-shopify-topic": "orders/paid", "x-shopify-event-id": "1", "x-shopify-shop-domain": "s"}


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(sorted(MAPPINGS.sources)), JSON | st.fixed_dictionaries({"id": JSON, "type": JSON, "data": JSON})
)
def test_any_document_is_translated_or_refused_as_malformed(source: str, document: object) -> None:
    try:
        body = msgspec.json.encode(document)
    except UnicodeEncodeError:
        return
    try:
        translation = events_of(MAPPINGS, source, SHOPIFY_HEADERS, body)
    except MalformedWebhook as refused:
        assert str(refused)  # noqa: PT017 -- either end is right, if it says why
        return
    assert translation.emissions or translation.payments or translation.notes
