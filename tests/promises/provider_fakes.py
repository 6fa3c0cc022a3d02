"""Providers' own lists, served over HTTP: Stripe's events, and Shopify's orders behind a GraphQL schema like theirs."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import graphql
from litestar import Litestar, Request, Response, get, post

Json = dict[str, Any]
KEY = "rk_test_of_the_tests"
TOKEN = "shpat_of_the_tests"
SHOP = "demo-shop.myshopify.com"


class FakeStripe:
    """`GET /v1/events` as Stripe documents it: newest first, a page at a time, cursors either way.

    `answers` (status, headers) are given first; `before_page` is called before each page is.
    """

    def __init__(self, *events: Json) -> None:
        self.events = list(events)
        self.undelivered: set[str] = set()
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.requests: list[tuple[dict[str, str], dict[str, str]]] = []
        self.before_page: Callable[[], object] = lambda: None

    def app(self) -> Litestar:
        @get("/v1/events", sync_to_thread=True)
        def events(request: Request[Any, Any, Any]) -> Response[Json]:
            asked = {name: str(value) for name, value in request.query_params.items()}
            self.requests.append((asked, {name.lower(): value for name, value in request.headers.items()}))
            if request.headers.get("authorization") != f"Bearer {KEY}":
                return Response(_error("Invalid API Key provided: rk_test_****"), status_code=401)
            status, headers = self.answers.pop(0) if self.answers else (200, {})
            if status != 200:
                return Response(_error(f"told to answer {status}"), status_code=status, headers=headers)
            self.before_page()
            return Response(self._page(asked))

        return Litestar([events], openapi_config=None, logging_config=None)

    def _page(self, asked: dict[str, str]) -> Json:
        limit = int(asked.get("limit", "10"))
        assert 1 <= limit <= 100
        every = sorted(self.events, key=lambda event: (event["created"], event["id"]), reverse=True)
        ids = [event["id"] for event in every]
        fits = [event for event in every if self._fits(event, asked)]
        if "ending_before" in asked:  # the newer ones that are next to it, still newest first
            place = ids.index(asked["ending_before"])
            rest = [event for event in fits if ids.index(event["id"]) < place]
            data, more = rest[-limit:], len(rest) > limit
        else:
            place = ids.index(asked["starting_after"]) if "starting_after" in asked else -1
            rest = [event for event in fits if ids.index(event["id"]) > place]
            data, more = rest[:limit], len(rest) > limit
        return {"object": "list", "url": "/v1/events", "has_more": more, "data": data}

    def _fits(self, event: Json, asked: dict[str, str]) -> bool:
        within = int(asked.get("created[gte]", "0")) <= event["created"] < int(asked.get("created[lt]", str(1 << 40)))
        return within and (asked.get("delivery_success") != "false" or event["id"] in self.undelivered)


def _error(message: str) -> Json:
    return {"error": {"type": "invalid_request_error", "message": message}}


# Shopify

SCHEMA = graphql.build_schema("""
scalar DateTime
scalar Decimal
scalar UnsignedInt64
enum OrderSortKeys { CREATED_AT ID PROCESSED_AT UPDATED_AT }
enum OrderTransactionKind { AUTHORIZATION CAPTURE CHANGE REFUND SALE VOID }
enum OrderTransactionStatus { ERROR FAILURE PENDING SUCCESS UNKNOWN }
enum OrderDisplayFinancialStatus {
  AUTHORIZED EXPIRED PAID PARTIALLY_PAID PARTIALLY_REFUNDED PENDING REFUNDED VOIDED
}
type MoneyV2 { amount: Decimal! currencyCode: String! }
type MoneyBag { shopMoney: MoneyV2! presentmentMoney: MoneyV2! }
type Attribute { key: String! value: String }
type TaxLine { priceSet: MoneyBag! }
type ShippingLine { taxLines: [TaxLine!]! }
type ShippingLineConnection { nodes: [ShippingLine!]! }
type Product { legacyResourceId: UnsignedInt64! }
type LineItem { sku: String title: String! quantity: Int! product: Product originalUnitPriceSet: MoneyBag! }
type LineItemConnection { nodes: [LineItem!]! }
type EmailAddress { emailAddress: String! }
type PhoneNumber { phoneNumber: String! }
type Customer {
  legacyResourceId: UnsignedInt64! firstName: String lastName: String
  defaultEmailAddress: EmailAddress defaultPhoneNumber: PhoneNumber
}
type MailingAddress { firstName: String lastName: String phone: String countryCodeV2: String }
type OrderTransaction {
  kind: OrderTransactionKind! status: OrderTransactionStatus! processedAt: DateTime
}
type Order {
  id: ID! legacyResourceId: UnsignedInt64! name: String! test: Boolean!
  createdAt: DateTime! processedAt: DateTime! updatedAt: DateTime! currencyCode: String!
  displayFinancialStatus: OrderDisplayFinancialStatus
  originalTotalPriceSet: MoneyBag! currentTotalPriceSet: MoneyBag! totalReceivedSet: MoneyBag!
  totalRefundedSet: MoneyBag! totalTaxSet: MoneyBag currentTotalTaxSet: MoneyBag!
  totalShippingPriceSet: MoneyBag! totalDiscountsSet: MoneyBag
  transactions(first: Int): [OrderTransaction!]!
  email: String phone: String cartToken: String sourceName: String taxesIncluded: Boolean! discountCodes: [String!]!
  customAttributes: [Attribute!]! customer: Customer billingAddress: MailingAddress shippingAddress: MailingAddress
  shippingLines(first: Int): ShippingLineConnection! lineItems(first: Int): LineItemConnection!
}
type PageInfo { hasNextPage: Boolean! endCursor: String }
type OrderConnection { nodes: [Order!]! pageInfo: PageInfo! }
type Shop { myshopifyDomain: String! }
type Query {
  shop: Shop!
  order(id: ID!): Order
  orders(first: Int, after: String, query: String, sortKey: OrderSortKeys): OrderConnection!
}
""")


class FakeShopify:
    """The Admin API's GraphQL endpoint over orders in its shape; a query that the schema does not know is an error.

    `answers` (status, headers, body) are given first.
    """

    def __init__(self, *orders: Json) -> None:
        self.orders = list(orders)
        self.answers: list[tuple[int, dict[str, str], Json]] = []
        self.requests: list[Json] = []
        self.before_page: Callable[[], object] = lambda: None

    def app(self) -> Litestar:
        @post("/admin/api/2026-07/graphql.json", status_code=200)
        async def ask(request: Request[Any, Any, Any]) -> Response[Json]:
            data = await request.json()
            self.requests.append(data)
            if request.headers.get("x-shopify-access-token") != TOKEN:
                return Response({"errors": "[API] Invalid API key or access token"}, status_code=401)
            if self.answers:
                status, headers, body = self.answers.pop(0)
                return Response(body, status_code=status, headers=headers)
            root = {"shop": {"myshopifyDomain": SHOP}, "order": self._order, "orders": self._orders}
            result = graphql.graphql_sync(SCHEMA, data["query"], root, variable_values=data["variables"])
            return Response(dict(result.formatted))

        return Litestar([ask], openapi_config=None, logging_config=None)

    def _order(self, _: object, id: str) -> Json | None:
        return next((order for order in self.orders if order["id"] == id), None)

    def _orders(self, _: object, first: int, query: str, sortKey: str, after: str | None = None) -> Json:  # noqa: N803
        assert (first, sortKey) == (25, "UPDATED_AT")
        self.before_page()
        since = query.removeprefix("updated_at:>='").removesuffix("'")
        assert len(since) == 20
        every = sorted((order["updatedAt"], order["id"]) for order in self.orders)
        wanted = [each for each in every if each[0] >= since and "|".join(each) > (after or "")]
        nodes = [self._order(None, id) for _, id in wanted[:first]]
        cursor = "|".join(wanted[:first][-1]) if wanted else None
        return {"nodes": nodes, "pageInfo": {"hasNextPage": len(wanted) > first, "endCursor": cursor}}


def iso(ago: float) -> str:
    """Return the time that many seconds ago, as Shopify writes it."""
    return datetime.fromtimestamp(int(time.time() - ago), UTC).isoformat().replace("+00:00", "Z")


def _bag(amount: object, currency: str) -> Json:
    money = {"amount": str(float(str(amount or 0))), "currencyCode": currency}  # GraphQL writes 110.0, webhooks 110.00
    return {"shopMoney": money, "presentmentMoney": money}


def graphql_order(rest: Json, ago: float = 3600.0) -> Json:
    """Return an order in the shape of GraphQL, made of one in the shape of webhooks and paid that many seconds ago."""
    currency = rest["currency"]

    def address(found: Json | None) -> Json | None:
        names = {"firstName": "first_name", "lastName": "last_name", "phone": "phone", "countryCodeV2": "country_code"}
        return {name: found.get(other) for name, other in names.items()} if found else None

    customer = rest["customer"]
    items = [
        {
            "sku": item["sku"],
            "title": item["title"],
            "quantity": item["quantity"],
            "product": {"legacyResourceId": str(item["product_id"])} if item["product_id"] else None,
            "originalUnitPriceSet": _bag(item["price"], currency),
        }
        for item in rest["line_items"]
    ]
    lines = [
        {"taxLines": [{"priceSet": _bag(tax["price"], currency)} for tax in line["tax_lines"]]}
        for line in rest["shipping_lines"]
    ]
    return {
        "id": f"gid://shopify/Order/{rest['id']}",
        "legacyResourceId": str(rest["id"]),
        "name": rest["name"],
        "test": rest["test"],
        "createdAt": rest["created_at"],
        "processedAt": rest["processed_at"],
        "updatedAt": iso(ago),
        "currencyCode": currency,
        "displayFinancialStatus": "PAID",
        "originalTotalPriceSet": _bag(rest["total_price"], currency),
        "currentTotalPriceSet": _bag(rest["current_total_price"], currency),
        "totalReceivedSet": _bag(rest["current_total_price"], currency),
        "totalRefundedSet": _bag(0, currency),
        "totalTaxSet": _bag(rest["total_tax"], currency),
        "currentTotalTaxSet": _bag(rest["current_total_tax"], currency),
        "totalShippingPriceSet": _bag(rest["total_shipping_price_set"]["shop_money"]["amount"], currency),
        "totalDiscountsSet": _bag(rest["total_discounts"], currency),
        "transactions": [{"kind": "SALE", "status": "SUCCESS", "processedAt": iso(ago)}],
        "email": rest["email"],
        "phone": rest["phone"],
        "cartToken": rest["cart_token"],
        "sourceName": rest["source_name"],
        "taxesIncluded": rest["taxes_included"],
        "discountCodes": [each["code"] for each in rest["discount_codes"]],
        "customAttributes": [{"key": each["name"], "value": each["value"]} for each in rest["note_attributes"]],
        "customer": {
            "legacyResourceId": str(customer["id"]),
            "firstName": customer["first_name"],
            "lastName": customer["last_name"],
            "defaultEmailAddress": {"emailAddress": customer["email"]},
            "defaultPhoneNumber": {"phoneNumber": customer["phone"]} if customer["phone"] else None,
        },
        "billingAddress": address(rest["billing_address"]),
        "shippingAddress": address(rest["shipping_address"]),
        "shippingLines": {"nodes": lines},
        "lineItems": {"nodes": items},
    }
