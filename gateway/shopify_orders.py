"""Shopify's list of orders, read as the `orders/paid` webhooks that they must have caused.

Read from the GraphQL Admin API: the REST API, whose orders have the shape of webhooks, is legacy since October 2024.
So an order is written here in that shape, with the fields that the bundled mapping reads, as it was when it was paid:
what was refunded since is told by its own webhooks. Its id is the number that webhooks have, so the payment key of the
rules is the same, and money is written with the decimals that webhooks have.

What is lost with the webhook: its event id, for which `reconciled-…` stands, and `checkout_token`, which GraphQL does
not tell (`cart_token` it does, since 2026-07).

Orders come in order of their last change. One that changes meanwhile moves to the end, so none is passed over; but
there is no time before which all payments were seen, so what was interrupted begins again: 25 orders a request.

An order counts from the moment when it was paid in full, not from its last change: a change of an old order is no news.
"""

import re
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Any

import httpx
import msgspec
from msgspec import Struct

from gateway import __version__
from gateway.money import EXPONENTS
from gateway.pacing import retry_after
from gateway.reconcile import Courtesy, Found, TryLater, Unreconcilable
from gateway.sealing import Secret

VERSION = "2026-07"
"""Of the Admin API: the first that tells an order's `cartToken`. Each lives a year at least ("API versioning")."""
PER_SECOND = 2
PAGE = 25
MAX_ITEMS = 100
MAX_ANSWER = 8 * 1024 * 1024
"""Bytes of an answer."""
TIMEOUT = 30
SHOP = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\.myshopify\.com")

_MONEY = "{ shopMoney { amount } }"
_SUM = f"""
  legacyResourceId name test createdAt processedAt updatedAt currencyCode displayFinancialStatus
  originalTotalPriceSet {_MONEY} currentTotalPriceSet {_MONEY} totalReceivedSet {_MONEY} totalRefundedSet {_MONEY}
  transactions(first: 20) {{ kind status processedAt }}
"""
_ADDRESS = "{ firstName lastName phone countryCodeV2 }"
LIST = f"""query Orders($query: String!, $after: String, $first: Int!) {{
  shop {{ myshopifyDomain }}
  orders(first: $first, after: $after, query: $query, sortKey: UPDATED_AT) {{
    pageInfo {{ hasNextPage endCursor }}
    nodes {{ id {_SUM} }}
  }}
}}"""
ORDER = f"""query Order($id: ID!, $items: Int!) {{
  order(id: $id) {{ {_SUM}
    email phone cartToken sourceName taxesIncluded discountCodes
    customAttributes {{ key value }}
    totalTaxSet {_MONEY} currentTotalTaxSet {_MONEY} totalShippingPriceSet {_MONEY} totalDiscountsSet {_MONEY}
    customer {{ legacyResourceId firstName lastName defaultEmailAddress {{ emailAddress }}
      defaultPhoneNumber {{ phoneNumber }} }}
    billingAddress {_ADDRESS}
    shippingAddress {_ADDRESS}
    shippingLines(first: 10) {{ nodes {{ taxLines {{ priceSet {_MONEY} }} }} }}
    lineItems(first: $items) {{ nodes {{ sku title quantity product {{ legacyResourceId }}
      originalUnitPriceSet {_MONEY} }} }}
  }}
}}"""

PAID = frozenset({"PAID", "PARTIALLY_REFUNDED", "REFUNDED"})
_PAYS = frozenset({"SALE", "CAPTURE"})
Json = Mapping[str, Any]


class _Status(Struct, frozen=True, rename="camel"):
    currently_available: float = 0.0
    restore_rate: float = 0.0


class _Cost(Struct, frozen=True, rename="camel"):
    requested_query_cost: float = 0.0
    throttle_status: _Status = _Status()


class _Extensions(Struct, frozen=True):
    cost: _Cost | None = None
    code: str = ""


class _Error(Struct, frozen=True):
    message: str = ""
    extensions: _Extensions = _Extensions()


class _Answer(Struct):
    data: dict[str, Any] | None = None
    errors: list[_Error] | str = []
    extensions: _Extensions = _Extensions()


class ShopifyOrders:
    """Paid orders of one shop (`name.myshopify.com`). The token needs the scope `read_orders`."""

    source = "shopify"

    def __init__(
        self,
        shop: str,
        token: Secret,
        courtesy: Courtesy,
        clock: Callable[[], int],
        *,
        base: str | None = None,
    ) -> None:
        if SHOP.fullmatch(shop) is None:
            raise Unreconcilable("SHOPIFY_SHOP is no shop's own domain: write it as my-shop.myshopify.com")
        self._shop = shop
        self._courtesy = courtesy
        self._clock = clock
        self._url = f"{base or f'https://{shop}'}/admin/api/{VERSION}/graphql.json"
        headers = {"X-Shopify-Access-Token": token.reveal(), "User-Agent": f"webhook-gateway/{__version__}"}
        self._http = httpx.AsyncClient(headers=headers, timeout=TIMEOUT, follow_redirects=False)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def webhooks(self, since: int, until: int) -> AsyncIterator[Found]:
        """Yield the orders that were paid in a span, in order of their last change. Raises `Unreconcilable`."""
        query = f"updated_at:>='{_iso(since)}'"
        after: str | None = None
        while True:
            data = await self._ask(LIST, {"query": query, "after": after, "first": PAGE})
            try:
                account = str(data["shop"]["myshopifyDomain"])
                for order in data["orders"]["nodes"]:
                    paid = paid_at(order)
                    if paid is not None and since <= paid <= until:
                        yield self._found(order, paid, account, since)
                page = data["orders"]["pageInfo"]
                if not page["hasNextPage"]:
                    return
                after, before = page["endCursor"], after
            except (KeyError, TypeError, ValueError) as error:
                raise Unreconcilable(f"what Shopify answers has not the shape of its orders: {error!r}") from None
            if after == before:
                raise Unreconcilable("Shopify gives the same orders again: run it again later")

    def _found(self, order: Json, paid: int, account: str, since: int) -> Found:
        number, listed = str(int(order["legacyResourceId"])), payload(order)
        headers = {
            "x-shopify-topic": "orders/paid",
            "x-shopify-shop-domain": account,
            "x-shopify-event-id": f"reconciled-order-{number}-{listed['current_total_price']}",
            "x-shopify-triggered-at": _iso(paid),
            "x-shopify-api-version": VERSION,
        }
        body = msgspec.json.encode(listed)
        return Found(
            _ms(order["updatedAt"]),
            since,
            headers,
            body,
            ("shopify_order", number),
            partial(self._whole, str(order["id"])),
        )

    async def _whole(self, id: str) -> bytes:
        data = await self._ask(ORDER, {"id": id, "items": MAX_ITEMS})
        order = data.get("order")
        if not isinstance(order, dict):
            raise Unreconcilable(f"Shopify lists {id} and does not give it: run it again later")
        return msgspec.json.encode(payload(order))

    async def _ask(self, query: str, variables: Json) -> dict[str, Any]:
        return await self._courtesy.ask(lambda: self._post(query, variables))

    async def _post(self, query: str, variables: Json) -> dict[str, Any]:
        try:
            async with self._http.stream("POST", self._url, json={"query": query, "variables": variables}) as response:
                body = b""
                async for piece in response.aiter_bytes():
                    body += piece
                    if len(body) > MAX_ANSWER:
                        raise Unreconcilable("Shopify's answer is too long")
        except httpx.TransportError as error:
            raise TryLater(f"Shopify does not answer ({type(error).__name__})") from None
        self._check(response)
        try:
            answer = msgspec.json.decode(body, type=_Answer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise Unreconcilable("what Shopify answers is no answer of its GraphQL API") from None
        return _data(answer)

    def _check(self, response: httpx.Response) -> None:
        status = response.status_code
        if status in {401, 403}:
            raise Unreconcilable(
                f"Shopify refuses the token in SHOPIFY_ACCESS_TOKEN ({status}): set the Admin API access token of an "
                f"app that is installed in {self._shop} and has the scope read_orders"
            )
        if status == 404:
            raise Unreconcilable(f"Shopify has no shop {self._shop}, or no API {VERSION} (404): check SHOPIFY_SHOP")
        if status == 429 or status >= 500:
            pause = retry_after(response.headers.get("retry-after"), self._clock())
            raise TryLater(f"Shopify answers {status}", pause)
        if status != 200:
            raise Unreconcilable(f"Shopify answers {status}: check SHOPIFY_SHOP")


def _data(answer: _Answer) -> dict[str, Any]:
    errors = [_Error(answer.errors)] if isinstance(answer.errors, str) else answer.errors
    if any(error.extensions.code == "THROTTLED" for error in errors):
        raise TryLater("Shopify asks for fewer requests", _until_restored(answer.extensions.cost))
    if errors:
        told = "; ".join(error.message[:200] for error in errors[:3])
        raise Unreconcilable(f"Shopify refuses the query: {told}. The app needs the scope read_orders")
    if answer.data is None:
        raise Unreconcilable("Shopify answers without data: run it again later")
    return answer.data


def _until_restored(cost: _Cost | None) -> int:
    """Return the ms until the bucket holds what the query costs. Rule: Shopify, "GraphQL Admin API rate limits"."""
    if cost is None or cost.throttle_status.restore_rate <= 0:
        return 0
    lacking = cost.requested_query_cost - cost.throttle_status.currently_available
    return int(min(max(lacking, 0) / cost.throttle_status.restore_rate, 60) * 1000)


# an order, as a webhook has it


def paid_at(order: Json) -> int | None:
    """Return when an order was paid in full, in ms; None if it is not."""
    if order["displayFinancialStatus"] not in PAID:
        return None
    times = [
        _ms(each["processedAt"])
        for each in order["transactions"]
        if each["kind"] in _PAYS and each["status"] == "SUCCESS" and each["processedAt"]
    ]
    return max(times, default=_ms(order["processedAt"]))


def payload(order: Json) -> dict[str, Any]:
    """Return an order as `orders/paid` has it at the moment of the payment; of a listed one, what the list tells."""
    customer = order.get("customer") or {}
    current, tax = _at_payment(order)
    whole = {
        "id": int(order["legacyResourceId"]),
        "name": order["name"],
        "test": order["test"],
        "created_at": order["createdAt"],
        "processed_at": order["processedAt"],
        "currency": order["currencyCode"],
        "financial_status": "paid",
        "total_price": _major(order, "originalTotalPriceSet"),
        "current_total_price": current,
        "total_tax": _major(order, "totalTaxSet"),
        "current_total_tax": tax,
        "total_discounts": _major(order, "totalDiscountsSet"),
        "total_shipping_price_set": {"shop_money": {"amount": _major(order, "totalShippingPriceSet")}},
        "taxes_included": order.get("taxesIncluded"),
        "discount_codes": [{"code": code} for code in order.get("discountCodes") or ()],
        "source_name": order.get("sourceName"),
        "cart_token": order.get("cartToken"),
        "note_attributes": [
            {"name": each["key"], "value": each["value"]} for each in order.get("customAttributes") or ()
        ],
        "email": order.get("email"),
        "phone": order.get("phone"),
        "customer": {
            "id": int(customer["legacyResourceId"]),
            "email": (customer.get("defaultEmailAddress") or {}).get("emailAddress"),
            "phone": (customer.get("defaultPhoneNumber") or {}).get("phoneNumber"),
            "first_name": customer.get("firstName"),
            "last_name": customer.get("lastName"),
        }
        if customer
        else None,
        "billing_address": _address(order.get("billingAddress")),
        "shipping_address": _address(order.get("shippingAddress")),
        "shipping_lines": [
            {"tax_lines": [{"price": _amount(tax, order["currencyCode"])} for tax in _sets(each["taxLines"])]}
            for each in (order.get("shippingLines") or {}).get("nodes", ())
        ],
        "line_items": [_item(each, order["currencyCode"]) for each in (order.get("lineItems") or {}).get("nodes", ())],
    }
    return {name: value for name, value in whole.items() if value is not None}


def _at_payment(order: Json) -> tuple[str | None, str | None]:
    """Return `current_total_price` and `current_total_tax` as they were when the order was paid.

    Refunds lower what is current; then what was received tells what it was. How much of that was tax is told no more,
    so it is the original tax; in proportion, if less was paid than first asked for.
    """
    current, tax = _major(order, "currentTotalPriceSet"), _major(order, "currentTotalTaxSet")
    if not _decimal(order["totalRefundedSet"]):
        return current, tax
    received, total = _decimal(order["totalReceivedSet"]), _decimal(order["originalTotalPriceSet"])
    tax = _major(order, "totalTaxSet")
    if tax is not None and total and received < total:
        tax = _written(Decimal(tax) * received / total, order["currencyCode"])
    return _written(received, order["currencyCode"]), tax


def _item(item: Json, currency: str) -> dict[str, Any]:
    product = item["product"] or {}
    return {
        "sku": item["sku"] or None,
        "product_id": int(product["legacyResourceId"]) if product else None,
        "title": item["title"],
        "quantity": item["quantity"],
        "price": _amount(item["originalUnitPriceSet"], currency),
    }


def _sets(lines: list[Json]) -> list[Json]:
    return [each["priceSet"] for each in lines]


def _address(address: Json | None) -> dict[str, Any] | None:
    if address is None:
        return None
    return {
        "first_name": address["firstName"],
        "last_name": address["lastName"],
        "phone": address["phone"],
        "country_code": address["countryCodeV2"],
    }


def _major(order: Json, name: str) -> str | None:
    found = order.get(name)
    return None if found is None else _amount(found, order["currencyCode"])


def _amount(found: Json, currency: str) -> str:
    return _written(_decimal(found), currency)


def _decimal(found: Json) -> Decimal:
    return Decimal(str(found["shopMoney"]["amount"]))


def _written(amount: Decimal, currency: str) -> str:
    """Write an amount as webhooks do (110.00, where GraphQL writes 110.0): payment keys are made of it."""
    return f"{amount:.{EXPONENTS.get(currency, 2)}f}"


def _ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def _iso(at: int) -> str:
    return datetime.fromtimestamp(at // 1000, UTC).isoformat().replace("+00:00", "Z")
