"""Payments as their providers report them: each a set of webhooks, made of the bundled samples, that speak of one.

Stripe's payments come in two shapes. Before API version 2025-03-31 (basil) an invoice names its payment intent, charge
and subscription, and intent and charge name their invoice. Since then only `invoice_payment.paid` ties the two.
"""

from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import cache
from typing import Any

import msgspec
from msgspec import Struct

from gateway.mappings import bundled, sample

Document = dict[str, Any]

SUBTOTAL, TAX, SHIPPING = 10_000, 1_900, 500
"""What is paid, in cents. Shipping is charged only where there is no invoice."""
CUSTOMER = "cus_of_all"
"""Every payment is the same person's: that must not make two payments one."""


class Report(Struct, frozen=True):
    """One webhook: its type, its body, and the headers that it has besides those of `request`."""

    type: str
    document: Document
    headers: Mapping[str, str] = {}

    def request(self, account: str) -> tuple[dict[str, str], bytes]:
        """Return headers and body as sent for this account or shop, without a signature."""
        if self.headers:
            return {**self.headers, "x-shopify-shop-domain": account}, msgspec.json.encode(self.document)
        return {}, msgspec.json.encode({**self.document, "account": account})


class Payment(Struct, frozen=True, kw_only=True):
    """The webhooks of one payment.

    `told_by` are the types that know of the purchase, the best first; none when nothing was paid. `tied_by` is the type
    without which nobody could tell that two of the others are one payment. `value` is without tax and shipping.
    """

    source: str
    reports: tuple[Report, ...]
    told_by: tuple[str, ...]
    tied_by: str | None = None
    value: Decimal = Decimal(0)
    total: Decimal = Decimal(0)
    currency: str = ""

    def report(self, type: str) -> Report:
        """Return the report of a type that occurs once."""
        (found,) = (each for each in self.reports if each.type == type)
        return found


Make = Callable[[str], Payment]
"""Makes a payment whose ids all end in the text given."""


# Stripe: the objects


class _Shape:
    """One payment's objects in one shape of Stripe's API. `tag` ends every id."""

    def __init__(self, tag: str, *, basil: bool, shipping: int = 0) -> None:
        self.tag = tag
        self.basil = basil
        self.shipping = shipping
        self.total = SUBTOTAL + TAX + shipping
        self.intent_id, self.charge_id = f"pi_{tag}", f"ch_{tag}"
        self.invoice_id, self.session_id, self.subscription_id = f"in_{tag}", f"cs_{tag}", f"sub_{tag}"

    def report(self, type: str, name: str, changes: Document, drop: tuple[str, ...] = ()) -> Report:
        """Return the sample `name`, its object changed, as a webhook of the type."""
        document = _sample("stripe", name)
        if not self.basil:
            document["api_version"] = "2024-06-20"
        document["id"], document["type"] = f"evt_{type}_{self.tag}", type
        thing = document["data"]["object"]
        for key in drop:
            thing.pop(key, None)
        thing.update(customer=CUSTOMER, **changes) if "customer" in thing else thing.update(changes)
        return Report(type, document)

    def session(self, type: str = "checkout.session.completed", **changes: Any) -> Report:
        name = "checkout.session.completed"
        if changes.get("mode") == "subscription":
            name = "checkout.session.completed.subscription"
        amounts = {
            "amount_subtotal": SUBTOTAL,
            "amount_total": self.total,
            "total_details": {"amount_discount": 0, "amount_shipping": self.shipping, "amount_tax": TAX},
            "shipping_cost": None,
        }
        return self.report(type, name, {"id": self.session_id, "metadata": {}, **amounts, **changes})

    def intent(self, type: str = "payment_intent.succeeded", *, invoice: bool = False, **changes: Any) -> Report:
        """Return an intent; `invoice` says whether an invoice made it."""
        if self.basil:
            reference = {"customer_reference": None, "order_reference": self.invoice_id if invoice else None}
            changes["payment_details"] = reference
        fields = {"amount": self.total, "amount_received": self.total, "latest_charge": self.charge_id, "metadata": {}}
        return self.report(
            type, "payment_intent.succeeded", {"id": self.intent_id, **fields, **self._invoice(invoice), **changes}
        )

    def charge(self, type: str = "charge.succeeded", *, invoice: bool = False, **changes: Any) -> Report:
        fields = {
            "amount": self.total,
            "amount_captured": self.total,
            "payment_intent": self.intent_id,
            "metadata": {},
        }
        return self.report(
            type, "charge.succeeded", {"id": self.charge_id, **fields, **self._invoice(invoice), **changes}
        )

    def _invoice(self, owns: bool) -> Document:
        return {} if self.basil else {"invoice": self.invoice_id if owns else None}

    def invoice(
        self,
        reason: str,
        type: str = "invoice.paid",
        *,
        paid: int | None = None,
        intent: bool = True,
        subscription: bool = True,
        **changes: Any,
    ) -> Report:
        """Return an invoice; `paid` is what was paid, `intent` whether by an intent, `subscription` whether for one."""
        paid = self.total if paid is None else paid
        tax = TAX if paid else 0
        document = _sample("stripe", "invoice.paid" if self.basil else "invoice.paid.pre_basil")["data"]["object"]
        amounts = {"amount_due": paid, "amount_paid": paid, "subtotal": paid - tax, "total": paid}
        taxes: Document = {"amount": tax, "taxable_amount": paid - tax}
        line = document["lines"]["data"][0] | {"amount": paid - tax, "invoice": self.invoice_id}
        parent = {"subscription_details": {"metadata": {}, "subscription": self.subscription_id}}
        if self.basil:
            shaped: Document = {
                "total_taxes": [document["total_taxes"][0] | taxes] if tax else [],
                "parent": parent | {"quote_details": None, "type": "subscription_details"} if subscription else None,
            }
        else:
            line["subscription"] = self.subscription_id if subscription else None
            shaped = {
                "tax": tax or None,
                "total_tax_amounts": [document["total_tax_amounts"][0] | taxes] if tax else [],
                "payment_intent": self.intent_id if intent else None,
                "charge": self.charge_id if intent else None,
                "subscription": self.subscription_id if subscription else None,
                "subscription_details": {"metadata": {}} if subscription else None,
            }
        return self.report(
            type,
            "invoice.paid" if self.basil else "invoice.paid.pre_basil",
            {
                "id": self.invoice_id,
                "billing_reason": reason,
                "metadata": {},
                "lines": document["lines"] | {"data": [line]},
                **amounts,
                **shaped,
                **changes,
            },
        )

    def ties(self, payment: Document | None = None) -> list[Report]:
        """Return the webhook that says what paid the invoice. It does not exist before basil."""
        if not self.basil:
            return []
        payment = payment or {"type": "payment_intent", "payment_intent": self.intent_id}
        fields = {"amount_paid": self.total, "amount_requested": self.total}
        return [
            self.report(
                "invoice_payment.paid",
                "invoice_payment.paid",
                {"id": f"inpay_{self.tag}", "invoice": self.invoice_id, "payment": payment, **fields},
            )
        ]

    def subscription(self, type: str = "customer.subscription.created", name: str = "", **changes: Any) -> Report:
        fields = {"id": self.subscription_id, "latest_invoice": self.invoice_id, "metadata": {}}
        return self.report(type, name or type, {**fields, **changes})

    def payment(self, *reports: Report, told_by: tuple[str, ...], tied: bool = False) -> Payment:
        return Payment(
            source="stripe",
            reports=reports,
            told_by=told_by,
            tied_by="invoice_payment.paid" if tied and self.basil else None,
            value=_major(self.total if told_by == (INTENT,) else SUBTOTAL),
            total=_major(self.total),
            currency="USD",
        )


SESSION, ASYNC = "checkout.session.completed", "checkout.session.async_payment_succeeded"
INVOICE, INTENT = "invoice.paid", "payment_intent.succeeded"


# Stripe: the payments


def one_time_checkout(tag: str, *, basil: bool) -> Payment:
    shape = _Shape(tag, basil=basil, shipping=SHIPPING)
    order = {"order_id": f"ORD-{tag}"}
    return shape.payment(
        shape.session(payment_intent=shape.intent_id, metadata=order),
        shape.intent(metadata=order),
        shape.charge(metadata=order),
        shape.intent("payment_intent.created", status="requires_payment_method", amount_received=0, latest_charge=None),
        told_by=(SESSION, INTENT),
    )


def checkout_with_an_invoice(tag: str, *, basil: bool) -> Payment:
    """Checkout with `invoice_creation`: a one-time payment that has an invoice, and the session names both."""
    shape = _Shape(tag, basil=basil)
    enabled = {"enabled": True, "invoice_data": {"metadata": {}}}
    return shape.payment(
        shape.session(payment_intent=shape.intent_id, invoice=shape.invoice_id, invoice_creation=enabled),
        shape.invoice("manual", subscription=False),
        shape.intent(invoice=True),
        shape.charge(invoice=True),
        *shape.ties(),
        told_by=(SESSION, INVOICE, INTENT),
        tied=True,
    )


def subscription_checkout(tag: str, *, basil: bool) -> Payment:
    shape = _Shape(tag, basil=basil)
    return shape.payment(
        shape.session(mode="subscription", invoice=shape.invoice_id, subscription=shape.subscription_id),
        shape.invoice("subscription_create"),
        shape.intent(invoice=True),
        shape.charge(invoice=True),
        shape.subscription(),
        *shape.ties(),
        told_by=(SESSION, INVOICE, INTENT),
        tied=True,
    )


def renewal(tag: str, *, basil: bool, subscription: str | None = None) -> Payment:
    shape = _Shape(tag, basil=basil)
    shape.subscription_id = subscription or shape.subscription_id
    return shape.payment(
        shape.invoice("subscription_cycle"),
        shape.intent(invoice=True),
        shape.charge(invoice=True),
        shape.subscription("customer.subscription.updated"),
        *shape.ties(),
        told_by=(INVOICE, INTENT),
        tied=True,
    )


def subscription_of_the_api(tag: str, *, basil: bool) -> Payment:
    """A subscription that the merchant's server creates: there is no session."""
    shape = _Shape(tag, basil=basil)
    return shape.payment(
        shape.invoice("subscription_create"),
        shape.intent(invoice=True),
        shape.charge(invoice=True),
        shape.subscription(),
        *shape.ties(),
        told_by=(INVOICE, INTENT),
        tied=True,
    )


def payment_element(tag: str, *, basil: bool) -> Payment:
    shape = _Shape(tag, basil=basil)
    return shape.payment(
        shape.intent(),
        shape.charge(),
        shape.intent("payment_intent.created", status="requires_payment_method", amount_received=0, latest_charge=None),
        shape.charge("charge.updated"),
        told_by=(INTENT,),
    )


def payment_link(tag: str, *, basil: bool) -> Payment:
    shape = _Shape(tag, basil=basil)
    return shape.payment(
        shape.session(payment_intent=shape.intent_id, payment_link=f"plink_{tag}", client_reference_id=None),
        shape.intent(),
        shape.charge(),
        shape.charge("charge.updated"),
        told_by=(SESSION, INTENT),
    )


def invoice_paid_elsewhere(tag: str, *, basil: bool) -> Payment:
    """An invoice that its merchant marks as paid: there is no intent and no charge.

    Before basil, `amount_paid` does not count what is paid outside of Stripe, and the rest stays open for ever.
    """
    shape = _Shape(tag, basil=basil)
    record = {"type": "payment_record", "payment_record": f"pr_{tag}"}
    changes: Document = {} if basil else {"paid_out_of_band": True, "amount_paid": 0, "amount_remaining": shape.total}
    return shape.payment(
        shape.invoice("manual", intent=False, subscription=False, **changes),
        shape.invoice("manual", "invoice.finalized", intent=False, subscription=False, status="open", amount_paid=0),
        *shape.ties(record),
        told_by=(INVOICE,),
    )


def checkout_paid_later(tag: str, *, basil: bool) -> Payment:
    """Checkout with a method that takes days: the session is completed unpaid, and succeeds later."""
    shape = _Shape(tag, basil=basil, shipping=SHIPPING)
    return shape.payment(
        shape.session(payment_intent=shape.intent_id, payment_status="unpaid"),
        shape.session(ASYNC, payment_intent=shape.intent_id),
        shape.intent(),
        shape.charge(),
        shape.intent("payment_intent.processing", status="processing", amount_received=0),
        told_by=(ASYNC, INTENT),
    )


def trial_start(tag: str, *, basil: bool) -> Payment:
    """A session and an invoice over nothing. Older sessions of this kind call themselves paid."""
    shape = _Shape(tag, basil=basil)
    nothing: Document = {"amount_subtotal": 0, "amount_total": 0, "total_details": {}}
    status = "no_payment_required" if basil else "paid"
    reports = (
        shape.session(
            mode="subscription",
            invoice=shape.invoice_id,
            subscription=shape.subscription_id,
            payment_status=status,
            **nothing,
        ),
        shape.invoice("subscription_create", paid=0, intent=False),
        shape.invoice("subscription_create", "invoice.finalized", paid=0, intent=False),
        shape.subscription(name="customer.subscription.created.trialing"),
    )
    return Payment(source="stripe", reports=reports, told_by=())


# Shopify


def shopify_order(tag: str) -> Payment:
    """An order paid at once in two transactions, edited to a higher total, then refunded in part."""
    order = int(tag) + 5_000_000_000_000
    paid = {"id": order, "financial_status": "paid", "total_outstanding": "0.00"}
    edited = {
        **paid,
        "current_total_price": "120.00",
        "current_total_tax": "18.30",
        "updated_at": "2026-10-26T11:00:00Z",
    }
    refund = _sample("shopify", "refunds.create") | {"id": order + 1, "order_id": order}
    refund["transactions"] = [each | {"id": order + 2, "order_id": order} for each in refund["transactions"]]
    sales = [
        refund["transactions"][0] | {"id": order + 3 + number, "kind": "sale", "parent_id": None, "amount": amount}
        for number, amount in enumerate(("49.86", "50.00"))
    ]
    # Shopify gives all webhooks that one thing causes the same event id.
    return Payment(
        source="shopify",
        reports=(
            _shopify("orders/create", _sample("shopify", "orders.create") | paid, f"order-{tag}"),
            _shopify("orders/paid", _sample("shopify", "orders.paid") | paid, f"order-{tag}"),
            _shopify("orders/updated", _sample("shopify", "orders.paid") | edited, f"edit-{tag}"),
            _shopify("refunds/create", refund, f"refund-{tag}"),
            *(_shopify("order_transactions/create", each, f"sale-{each['id']}") for each in sales),
        ),
        told_by=("orders/paid", "orders/create"),
        value=Decimal("79.80"),
        total=Decimal("99.86"),
        currency="EUR",
    )


def _shopify(topic: str, document: Document, event: str) -> Report:
    headers = {
        "x-shopify-topic": topic,
        "x-shopify-event-id": event,
        "x-shopify-webhook-id": f"{topic} {document['id']}",
        "x-shopify-triggered-at": "2026-10-26T09:00:06Z",
    }
    return Report(topic, document, headers)


# All of them


def _made(make: Callable[..., Payment], *, basil: bool) -> Make:
    return lambda tag: make(tag, basil=basil)


_STRIPE = (
    one_time_checkout,
    checkout_with_an_invoice,
    subscription_checkout,
    renewal,
    subscription_of_the_api,
    payment_element,
    payment_link,
    invoice_paid_elsewhere,
    checkout_paid_later,
    trial_start,
)
PAYMENTS: dict[str, Make] = {
    f"{make.__name__}-{'basil' if basil else 'before'}": _made(make, basil=basil)
    for make in _STRIPE
    for basil in (False, True)
} | {"shopify_order": shopify_order}
"""Each payment by its name."""


@cache
def _body(source: str, name: str) -> bytes:
    body = sample(bundled(), source, name)
    assert body is not None, f"there is no sample {source}/{name}"
    return body


def _sample(source: str, name: str) -> Document:
    document: Document = msgspec.json.decode(_body(source, name))
    return document


def _major(minor: int) -> Decimal:
    return Decimal(minor) / 100
