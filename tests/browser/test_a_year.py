"""A browser that is linked once is the same visitor to all five products for every payment of the year after.

All of it is real but the products, the providers and the calendar: the page, the script, the login, the gateway that
is started anew meanwhile, its store, and the requests between them. The products refuse what their originals would.
"""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import NAMESPACE_OID, uuid5

import msgspec
import pytest
from msgspec import Struct
from playwright.sync_api import Page

from gateway.deliveries import State
from gateway.mappings import bundled, sample
from gateway.server import running
from gateway.signatures import VerifySpec, compile_verification, sign
from tests.browser.pages import CART, STORAGE, SUBJECT, UUID_1, WITHIN, Site
from tests.destinations.fakes import Fake
from tests.destinations.test_golden import SETTINGS
from tests.promises.served import LINK_SECRET, SECRET, Served, document_of, encoded
from tests.promises.test_backends import snippet

PRODUCTS = ("nexly", "datalyr", "databuddy", "layersync", "analyse")
MAPPINGS = ["sources/stripe", "sources/shopify", "destinations/databuddy-identify"]
MAPPINGS += [f"destinations/{product}" for product in PRODUCTS]
YEAR = 365 * 86_400_000
HOLD = 30_000
"""How long, in ms, a renewal waits for a surer report of the same payment."""
CUSTOMER = 7012345678901
SESSION = "cs_live_a1GatewaySampleOneTime0001"

OWN = {name: str(uuid5(NAMESPACE_OID, name)) for name in STORAGE}
"""Each product knows the browser by an id of its own, so that none can be taken for another's."""
ADS = {"fbp": "fb.1.1700.99", "fbc": "fb.1.1700.IwAR9xyz", "ga": "GA1.1.123.456", "gclid": "EAIaIQobChMI"}
LINKED: dict[str, object] = {
    "nexly": OWN["nexly"],
    "datalyr": f"anon_{OWN['datalyr']}",
    "databuddy": f"anon_{OWN['databuddy']}",
    "layersync": ADS,
    "analyse": OWN["analyse"],
}
"""How each product is told who paid. LayerSync knows no visitors: it gets the ids of the ads that led to the page."""
LAYERSYNC = f"""
    localStorage['layersync:consent'] = JSON.stringify({{granted: true}});
    document.cookie = '_fbp={ADS["fbp"]}'; document.cookie = '_fbc={ADS["fbc"]}';
    document.cookie = '_ga={ADS["ga"]}'; document.cookie = '_gcl_aw={ADS["gclid"]}';"""
VISITED = SUBJECT + LAYERSYNC + "".join(script.replace(UUID_1, OWN[name]) for name, script in STORAGE.items())
"""How the scripts of all five, and the shop's cart, leave a browser."""

SHOPIFY = compile_verification(
    VerifySpec(scheme="hmac", secrets=SECRET, header="X-Shopify-Hmac-Sha256", encoding="base64")
)


class Purchase(Struct, frozen=True):
    """What one product is told of a payment: who it was, and how much, in minor units."""

    visitor: object
    cents: int


class Shop:
    """A shop with its gateway, the products behind that, and the providers that report its payments."""

    def __init__(self, served: Served, site: Site, products: Fake) -> None:
        self.served, self.site, self.products = served, site, products

    def visit(self, page: Page, query: str = "") -> None:
        """Load a page; return once its script has linked what it found."""
        tag = f'<script src="{self.served.url}/link.js"></script>'
        page.goto(self.site.page(VISITED, tag=tag, gateway=self.site) + query)
        assert page.evaluate("gatewayLink({})") is True

    def log_in(self, page: Page, user: str) -> None:
        """Let the page ask its backend, which is the one of the README, who is logged in, and hand that on."""
        backend: dict[str, Any] = {}
        with patch.dict(os.environ, {"GATEWAY_URL": self.served.url, "GATEWAY_LINK_SECRET": LINK_SECRET}):
            exec(snippet("python"), backend)
        self.site.pages["/token"] = backend["link_token"](user)
        login = "fetch('/token').then((answer) => answer.text()).then((token) => gatewayLink({token}))"
        assert page.evaluate(login) is True

    def checkout(self, **session: object) -> None:
        """Let Stripe report a paid session of 110 dollars with these changes."""
        document = document_of("checkout.session.completed")
        document["created"] = self.served.now() // 1000
        document["data"]["object"].update({"metadata": {}} | session)
        assert self.served.post(encoded(document)).is_success

    def renewal(self) -> None:
        """Let Stripe report a renewal, of 49 dollars, that names its customer and nobody else."""
        document = document_of("invoice.paid.renewal")
        document["created"] = self.served.now() // 1000
        invoice = document["data"]["object"]
        invoice.update(dict.fromkeys(("customer_address", "customer_email", "customer_name", "customer_phone")))
        invoice["parent"]["subscription_details"]["metadata"] = invoice["lines"]["data"][0]["metadata"] = {}
        assert self.served.post(encoded(document)).is_success
        self.served.ahead += HOLD

    def order(self, number: int, **changes: object) -> None:
        """Let Shopify report a paid order of 79.80 euros with these changes, and nothing in its cart's attributes."""
        raw = sample(bundled(), "shopify", "orders.paid")
        assert raw is not None
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.served.now() / 1000))
        changes = {"id": number, "processed_at": now, "note_attributes": []} | changes
        body = encoded(msgspec.json.decode(raw) | changes)
        about = {"X-Shopify-Topic": "orders/paid", "X-Shopify-Event-Id": f"e-{number}", "X-Shopify-Triggered-At": now}
        headers = sign(SHOPIFY, body, self.served.now() / 1000) | about | {"X-Shopify-Shop-Domain": "a.myshopify.com"}
        assert self.served.post(body, headers, "shopify").is_success

    def sent(self) -> dict[str, list[Any]]:
        """Return what each product has taken, once nothing is on its way. They have refused nothing."""
        deadline = time.monotonic() + WITHIN
        while self.served.rows(f"SELECT 1 FROM delivery WHERE state < {State.SENT} LIMIT 1"):
            assert time.monotonic() < deadline, self.served.rows("SELECT destination, state, reason FROM delivery")
            time.sleep(0.01)
        assert set(self.products.answers) <= {200}
        taken: dict[str, list[Any]] = {name: [] for name in PRODUCTS}
        for body in self.products.kept:
            taken[product_of(body)].append(body)
        return taken

    def purchases(self) -> dict[str, list[Purchase]]:
        return {
            name: [purchase for each in taken if (purchase := purchase_of(name, each))]
            for name, taken in self.sent().items()
        }


def product_of(body: Any) -> str:
    """Return which product it is that is told so."""
    marks = {"app_id": "nexly", "event": "datalyr", "site_id": "layersync", "anonymous_id": "analyse"}
    return next((product for mark, product in marks.items() if mark in body), "databuddy")


def purchase_of(product: str, body: Any) -> Purchase | None:
    """Read a purchase as this product is told of it, or None of anything else."""
    if product == "nexly" and body["event_name"] == "purchase":
        return Purchase(body["context"].get("visitor_id"), cents(body["data"]["value"]))
    if product == "datalyr" and body["event"] == "purchase":
        assert body["properties"]["anonymous_id"] == body["anonymousId"]
        return Purchase(body["anonymousId"], cents(body["properties"]["value"]))
    if product == "databuddy" and body.get("name") == "purchase":
        return Purchase(body.get("anonymousId"), cents(body["properties"]["value"]))
    if product == "layersync" and body["event_name"] == "purchase":
        ads = {name: body["user_data"][name] for name in ADS if name in body["user_data"]}
        return Purchase(ads, cents(body["custom_data"]["value"]))
    if product == "analyse" and body["event_name"] == "checkout_finished":
        return Purchase(body["anonymous_id"], body["properties"]["amount"])
    return None


def cents(value: float) -> int:
    return round(value * 100)


def linked(*cents: int) -> dict[str, list[Purchase]]:
    """Return these payments as all five are told of them if they know the visitor."""
    return {name: [Purchase(LINKED[name], each) for each in cents] for name in PRODUCTS}


@pytest.fixture
def selling(shop: Site, tmp_path: Path) -> Iterator[Shop]:
    """A shop whose gateway is not yet up, by whose clock the products live too."""
    for name in MAPPINGS:
        file = tmp_path / "mappings" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(bundled() / f"{name}.yaml", file)
    served = Served(tmp_path, GATEWAY_LINK_ORIGINS=shop.url, GATEWAY_MAPPINGS=str(tmp_path / "mappings"))
    served.environment |= SETTINGS | {"SHOPIFY_WEBHOOK_SECRET": SECRET}
    products = Fake(now=served.now)
    with running(products.app()) as url:
        served.environment |= {
            "NEXLY_COLLECT_URL": f"{url}/v1/collect",
            "DATALYR_HOST": f"{url}/track",
            "DATABUDDY_API_URL": f"{url}/databuddy",
            "LAYERSYNC_API_URL": url,
            "ANALYSE_HOST": url,
        }
        yield Shop(served, shop, products)


def test_who_logged_in_and_paid_is_the_same_visitor_when_the_subscription_renews_a_year_later(
    page: Page, selling: Shop
) -> None:
    with selling.served.up():
        selling.visit(page)
        selling.log_in(page, "user_42")
        selling.checkout(client_reference_id="user_42")
        assert selling.purchases() == linked(11000)
    selling.served.ahead = YEAR
    with selling.served.up():
        selling.renewal()
        assert selling.purchases() == linked(11000, 4900)


def test_who_logs_in_after_paying_is_identified_and_the_same_visitor_a_year_later(page: Page, selling: Shop) -> None:
    with selling.served.up():
        selling.checkout(client_reference_id="user_42")
        before = selling.sent()
        selling.visit(page)
        selling.log_in(page, "user_42")
        news = {name: taken[len(before[name]) :] for name, taken in selling.sent().items()}
    assert [len(before[name]) for name in PRODUCTS] == [1] * 5
    assert news["nexly"] == news["layersync"] == []
    (alone,), (profile,), (person,) = news["datalyr"], news["databuddy"], news["analyse"]
    assert (alone["event"], alone["userId"], alone["anonymousId"]) == ("$identify", "user_42", LINKED["datalyr"])
    assert (profile["profileId"], profile["anonymousId"]) == ("user_42", LINKED["databuddy"])
    assert (person["event_name"], person["person_id"]) == ("$identify", "user_42")
    assert person["anonymous_id"] == LINKED["analyse"]
    selling.served.ahead = YEAR
    with selling.served.up():
        selling.renewal()
        purchases = selling.purchases()
    assert {name: each[1:] for name, each in purchases.items()} == linked(4900)


def test_a_guest_whose_page_links_after_paying_is_aliased_and_the_same_visitor_a_year_later(
    page: Page, selling: Shop
) -> None:
    with selling.served.up():
        selling.checkout(id=SESSION, client_reference_id=None)
        (unknown,) = selling.sent()["datalyr"]
        assert selling.sent()["analyse"] == []  # which takes nothing of nobody
        selling.visit(page, f"?session_id={SESSION}")
        _, alias = selling.sent()["datalyr"]
    assert (alias["event"], alias["anonymousId"]) == ("$alias", LINKED["datalyr"])
    assert (alias["properties"]["previousId"], alias["properties"]["userId"]) == (
        unknown["anonymousId"],
        LINKED["datalyr"],
    )
    assert selling.purchases()["analyse"] == linked(11000)["analyse"]
    selling.served.ahead = YEAR
    with selling.served.up():
        selling.renewal()
        purchases = selling.purchases()
    assert {name: each[1:] for name, each in purchases.items()} == linked(4900)


def test_a_payment_that_waits_for_its_link_lands_on_the_visitor_in_all_five(
    page: Page, selling: Shop, tmp_path: Path
) -> None:
    stripe = tmp_path / "mappings" / "sources" / "stripe.yaml"
    stripe.write_text(stripe.read_text() + "\nwait_for_link: 5m\n")
    with selling.served.up():
        selling.checkout(client_reference_id="user_42")
        selling.visit(page)
        assert selling.products.kept == []
        selling.log_in(page, "user_42")
        assert selling.purchases() == linked(11000)


@pytest.mark.parametrize("late", [False, True], ids=["linked before it is paid", "linked after"])
def test_who_bought_with_a_cart_is_the_same_visitor_when_the_customer_orders_a_year_later(
    page: Page, selling: Shop, late: bool
) -> None:
    with selling.served.up():
        if not late:
            selling.visit(page)
        selling.order(1, cart_token=CART, customer={"id": CUSTOMER})
        first = selling.sent()
        if late:
            selling.visit(page)
            assert selling.sent()["datalyr"][1]["properties"]["previousId"] == first["datalyr"][0]["anonymousId"]
        else:
            assert selling.purchases() == linked(7980)
    selling.served.ahead = YEAR
    with selling.served.up():
        nobody = dict.fromkeys(("cart_token", "checkout_token", "token", "email", "contact_email", "phone"))
        selling.order(2, **nobody, customer={"id": CUSTOMER})
        purchases = selling.purchases()
    assert {name: each[-1:] for name, each in purchases.items()} == linked(7980)
    assert {len(each) for each in purchases.values()} == {2}
