"""What the mapping benchmark maps: two documents, and what is asked of each, in several languages."""

import json
import re
from collections.abc import Callable
from functools import reduce
from itertools import cycle, islice
from typing import Any

from msgspec import Struct, structs

from gateway.mappings import bundled, minified, read_document, sample
from gateway.sources import Source, compile_source


class Case(Struct, frozen=True):
    """A document and what to make of it: in JMESPath, and as the Python that somebody would write for it."""

    title: str
    body: bytes
    expressions: dict[str, str]
    by_hand: Callable[[Any], object]


SESSION = {
    "id": "data.object.id",
    "payment": "data.object.payment_intent || data.object.invoice",
    "amount": "data.object.amount_total",
    "subtotal": "data.object.amount_subtotal",
    "tax": "data.object.total_details.amount_tax",
    "shipping": "data.object.total_details.amount_shipping",
    "discount": "data.object.total_details.amount_discount",
    "currency": "data.object.currency",
    "email": "data.object.customer_details.email || data.object.customer_email",
    "name": "data.object.customer_details.name",
    "country": "data.object.customer_details.address.country",
    "customer": "data.object.customer",
    "user": "data.object.client_reference_id || data.object.metadata.user_id",
    "paid": "data.object.payment_status == 'paid'",
    "mode": "data.object.mode",
}

ORDER = {
    "order_id": "to_string(id)",
    "order_name": "name",
    "total": "to_number(current_total_price || total_price)",
    "tax": "to_number(current_total_tax || total_tax)",
    "shipping": "to_number(total_shipping_price_set.shop_money.amount)",
    "discount": "to_number(current_total_discounts || total_discounts)",
    "coupon": "discount_codes[0].code",
    "currency": "currency",
    "at": "processed_at",
    "email": "email || contact_email || customer.email",
    "phone": "phone || customer.phone || billing_address.phone",
    "country": "billing_address.country_code || shipping_address.country_code",
    "cart": "cart_token",
    "visitor": "note_attributes[?name == '_datalyr_visitor_id'].value | [0]",
    "items": (
        "line_items[].{item_id: sku || to_string(product_id), name: title, quantity: quantity, price: to_number(price)}"
    ),
}


def session() -> bytes:
    """A Stripe session of 5 KB: the sample, with the custom text that makes many sessions longer."""
    document = _sample("stripe", "checkout.session.completed")
    document["data"]["object"]["custom_text"]["submit"] = {"message": "We ship within two days. " * 82}
    return minified(json.dumps(document).encode())


def order(size: int = 50_000) -> bytes:
    """A Shopify order of `size` bytes or a little more: the sample, with further line items."""
    document = _sample("shopify", "orders.paid")
    templates = list(document["line_items"])
    while len(body := json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()) < size:
        number = len(document["line_items"])
        item = templates[number % len(templates)]
        own = {"id": item["id"] + number, "title": f"{item['title']} {number}", "price": f"{10 + number}.90"}
        document["line_items"].append({**item, **own, "sku": item["sku"] and f"MUG-{number}"})
    return body


def _sample(source: str, name: str) -> Any:
    body = sample(bundled(), source, name)
    assert body is not None
    return json.loads(body)


def session_by_hand(document: Any) -> object:
    found = document["data"]["object"]
    details = found.get("total_details") or {}
    person = found.get("customer_details") or {}
    return {
        "id": found["id"],
        "payment": found.get("payment_intent") or found.get("invoice"),
        "amount": found.get("amount_total"),
        "subtotal": found.get("amount_subtotal"),
        "tax": details.get("amount_tax"),
        "shipping": details.get("amount_shipping"),
        "discount": details.get("amount_discount"),
        "currency": found.get("currency"),
        "email": person.get("email") or found.get("customer_email"),
        "name": person.get("name"),
        "country": (person.get("address") or {}).get("country"),
        "customer": found.get("customer"),
        "user": found.get("client_reference_id") or (found.get("metadata") or {}).get("user_id"),
        "paid": found.get("payment_status") == "paid",
        "mode": found.get("mode"),
    }


def order_by_hand(document: Any) -> object:
    customer = document.get("customer") or {}
    billing = document.get("billing_address") or {}
    shipping = document.get("shipping_address") or {}
    notes = [note["value"] for note in document["note_attributes"] if note["name"] == "_datalyr_visitor_id"]
    return {
        "order_id": str(document["id"]),
        "order_name": document["name"],
        "total": float(document.get("current_total_price") or document["total_price"]),
        "tax": float(document.get("current_total_tax") or document["total_tax"]),
        "shipping": float(document["total_shipping_price_set"]["shop_money"]["amount"]),
        "discount": float(document.get("current_total_discounts") or document["total_discounts"]),
        "coupon": document["discount_codes"][0]["code"] if document["discount_codes"] else None,
        "currency": document["currency"],
        "at": document["processed_at"],
        "email": document.get("email") or document.get("contact_email") or customer.get("email"),
        "phone": document.get("phone") or customer.get("phone") or billing.get("phone"),
        "country": billing.get("country_code") or shipping.get("country_code"),
        "cart": document.get("cart_token"),
        "visitor": notes[0] if notes else None,
        "items": [
            {
                "item_id": item["sku"] or str(item["product_id"]),
                "name": item["title"],
                "quantity": item["quantity"],
                "price": float(item["price"]),
            }
            for item in document["line_items"]
        ],
    }


def cases() -> tuple[Case, ...]:
    return (
        Case("Stripe checkout session", session(), SESSION, session_by_hand),
        Case("Shopify order", order(), ORDER, order_by_hand),
    )


def rules_source(number: int) -> Source:
    """The bundled Stripe source with `number` rules, of which the last alone is for a checkout session."""
    document, version = read_document(bundled() / "sources" / "stripe.yaml")
    data: Any = document.data
    paid, *others = data["rules"]
    rest = [{**rule, "on": f"other.{index}"} for index, rule in enumerate(islice(cycle(others), number - 1))]
    data = {**data, "rules": [*rest, {**paid, "on": "checkout.session.completed"}]}
    return compile_source(structs.replace(document, data=data), version, lambda _: None)


class Language(Struct, frozen=True):
    """How another language says what the expressions of the documents use: paths, `||`, `==`, two functions."""

    root: str
    either: str
    equal: str
    number: str
    text: str
    visitor: str
    items: str

    def program(self, case: Case) -> str:
        own = {"visitor": self.visitor, "items": self.items}
        parts = (f'"{name}": ({own.get(name) or self.say(text)})' for name, text in case.expressions.items())
        return "{" + ", ".join(parts) + "}"

    def say(self, expression: str) -> str:
        if call := re.fullmatch(r"to_(number|string)\((.*)\)", expression):
            return (self.number if call[1] == "number" else self.text).format(self.say(call[2]))
        if " == " in expression:
            left, right = expression.replace("'", '"').split(" == ")
            return f"{self.say(left)} {self.equal} {right}"
        *others, last = (self.root + path for path in expression.split(" || "))
        return reduce(lambda rest, path: self.either.format(path, rest), reversed(others), last)


VRL = Language(
    root=".",
    either="{0} || {1}",
    equal="==",
    number="to_float!({})",
    text="to_string!({})",
    visitor="{ found = filter(array!(.note_attributes)) -> |_i, note| "
    '{ note.name == "_datalyr_visitor_id" }; found[0].value }',
    items="map_values(array!(.line_items)) -> |item| {"
    ' {"item_id": item.sku || to_string!(item.product_id), "name": item.title,'
    ' "quantity": item.quantity, "price": to_float!(item.price)} }',
)
JQ = Language(
    root=".",
    either="{0} // {1}",
    equal="==",
    number="({}) | tonumber",
    text="{} | tostring",
    visitor='[.note_attributes[] | select(.name == "_datalyr_visitor_id") | .value][0]',
    items="[.line_items[] | {item_id: (.sku // (.product_id | tostring)), name: .title, quantity,"
    " price: (.price | tonumber)}]",
)
# JSONata gives a list of one as its item, unless the list is in brackets.
JSONATA = Language(
    root="",
    either="({0} ? {0} : {1})",
    equal="=",
    number="$number({})",
    text="$string({})",
    visitor='note_attributes[name = "_datalyr_visitor_id"][0].value',
    items='[line_items.{"item_id": sku ? sku : $string(product_id), "name": title,'
    ' "quantity": quantity, "price": $number(price)}]',
)
CEL = Language(
    root="d.",
    either="({0} != null ? {0} : {1})",
    equal="==",
    number="double({})",
    text="string({})",
    visitor='d.note_attributes.filter(note, note.name == "_datalyr_visitor_id")[0].value',
    items='d.line_items.map(item, {"item_id": item.sku != null ? item.sku : string(item.product_id),'
    ' "name": item.title, "quantity": item.quantity, "price": double(item.price)})',
)
