"""What a page hands to Stripe and Shopify, and the payment that comes back: it lands on the visitor of the page."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from playwright.sync_api import Page

from gateway.app import create_app
from gateway.browser import make_token
from gateway.mappings import bundled, sample
from gateway.sealing import Secret
from gateway.server import running
from gateway.settings import load_settings
from gateway.signatures import VerifySpec, compile_verification, sign
from tests.browser.pages import CART, CHECKOUT, STORAGE, SUBJECT, UUID_1, WITHIN, Site
from tests.promises.collector import Collector
from tests.promises.served import LINK_SECRET, SECRET, Served, document_of, encoded

PIXEL = (Path(__file__).parent / "pixel.js").read_text()
NEXLY, DATALYR, DATABUDDY = (STORAGE[name] for name in ("nexly", "datalyr", "databuddy"))
REFERENCE = f"vis_{UUID_1}"
SINK_SECRET = "whsec_dGVzdHMtb25seS1ub3QtYS1zZWNyZXQ="


@contextmanager
def real_gateway(folder: Path, *origins: str) -> Iterator[tuple[Served, Collector]]:
    """Run a gateway that takes links from pages of these origins, and hands its events to a collector."""
    collector = Collector()
    for each in ("sources/stripe.yaml", "sources/shopify.yaml", "destinations/webhook.yaml"):
        (folder / "mappings" / each).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(bundled() / each, folder / "mappings" / each)
    with running(collector.app()) as sink:
        served = Served(
            folder,
            WEBHOOK_URL=f"{sink}/sink",
            WEBHOOK_SECRET=SINK_SECRET,
            SHOPIFY_WEBHOOK_SECRET=SECRET,
            GATEWAY_MAPPINGS=str(folder / "mappings"),
        )
        settings = replace(load_settings(served.environment), link_origins=origins)
        with running(create_app(settings, served.now)) as served.url:
            yield served, collector


def pay(served: Served, **session: object) -> None:
    document = document_of("checkout.session.completed")
    document["data"]["object"] |= {"metadata": {}} | session
    assert served.post(encoded(document)).is_success


def linked(collector: Collector) -> Any:
    """Return what the purchase that arrives says of its visitor."""
    (purchase,) = collector.wait_for(1, lambda body: body["type"] == "purchase")
    return purchase["data"]["linked_by"], purchase["data"]["visitor"], purchase["data"].get("click_ids")


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN
    while not holds():
        assert time.monotonic() < deadline, "it did not come to hold"
        time.sleep(0.02)


def tag(served: Served) -> str:
    return f'<script data-gateway="{served.url}" src="/link.js"></script>'


def test_a_payment_lands_on_the_visitor_of_the_page_after_it(page: Page, shop: Site, tmp_path: Path) -> None:
    with real_gateway(tmp_path, shop.url) as (served, collector):
        script = NEXLY + DATALYR + "document.cookie = '_fbp=fb.1.1700.99';"
        page.goto(shop.page(script, tag=tag(served), gateway=shop) + f"?session_id={CHECKOUT}")
        assert page.evaluate("gatewayLink({})") is True
        pay(served, id=CHECKOUT, client_reference_id=None)
        by, visitor, clicks = linked(collector)
        assert (by, clicks) == ("stripe_checkout", {"_fbp": "fb.1.1700.99"})
        assert (visitor["nexly"], visitor["datalyr"]) == (UUID_1, f"anon_{UUID_1}")


@pytest.mark.parametrize(("script", "reference"), [(NEXLY, REFERENCE), (NEXLY + DATALYR, f"anon_{UUID_1}")])
def test_a_payment_link_lands_on_the_visitor_who_followed_it(
    page: Page, shop: Site, tmp_path: Path, script: str, reference: str
) -> None:
    with real_gateway(tmp_path, shop.url) as (served, collector):
        page.goto(shop.page(script, tag=tag(served), gateway=shop))
        assert page.evaluate("gatewayLink.stripe('https://buy.stripe.com/a')").endswith(
            f"client_reference_id={reference}"
        )
        assert page.evaluate("gatewayLink({})") is True
        pay(served, client_reference_id=reference)
        by, visitor, _ = linked(collector)
        assert (by, visitor["nexly"]) == ("stripe_reference", UUID_1)


def test_a_checkout_made_by_the_backend_lands_on_the_visitor_whose_metadata_it_got(
    page: Page, shop: Site, tmp_path: Path
) -> None:
    with real_gateway(tmp_path, shop.url) as (served, collector):
        page.goto(shop.page(NEXLY + DATABUDDY, tag=tag(served), gateway=shop))
        metadata = page.evaluate("gatewayLink.metadata()")
        assert metadata == {"gateway_reference": REFERENCE, "databuddy_anonymous_id": f"anon_{UUID_1}"}
        assert page.evaluate("gatewayLink({})") is True
        pay(served, client_reference_id=None, metadata=metadata)
        by, visitor, _ = linked(collector)
        assert (by, visitor["nexly"], visitor["databuddy"]) == ("stripe_reference", UUID_1, f"anon_{UUID_1}")


@pytest.mark.parametrize(
    ("script", "reference"),
    [
        ("", ""),
        ("document.cookie = '_ga=GA1.1.123.456';", ""),
        ("localStorage.trk_visitor_id = 'user-42';", ""),
        ("localStorage.trk_visitor_id = 'a b/' + 'x'.repeat(40);", ""),
        ("localStorage.trk_visitor_id = 'x'.repeat(191);", ""),
        (DATABUDDY, f"vis_anon_{UUID_1}"),
        (STORAGE["analyse"], REFERENCE),
    ],
)
def test_a_reference_is_an_id_that_stripe_takes_and_nobody_can_guess(
    page: Page, shop: Site, gateway: Site, script: str, reference: str
) -> None:
    page.goto(shop.page(script, gateway=gateway))
    assert page.evaluate("gatewayLink.reference()") == reference


def test_the_link_of_a_reference_is_sent_before_the_page_is_left(page: Page, shop: Site, gateway: Site) -> None:
    shop.pages["/pay"] = "pay here"
    after = "onclick = () => { gatewayLink.stripe(document.querySelector('a')); };"
    page.goto(shop.page(NEXLY, after="document.write('<a href=/pay>Pay</a>');" + after, gateway=gateway))
    page.click("a")
    page.wait_for_url(f"{shop.url}/pay?client_reference_id={REFERENCE}")
    with gateway.arrived:
        assert gateway.arrived.wait_for(lambda: gateway.posts, WITHIN)
    assert gateway.posts[0].body["subjects"] == {"stripe_reference": REFERENCE}


def test_a_reference_that_the_page_chose_stays(page: Page, shop: Site, gateway: Site) -> None:
    page.goto(shop.page(NEXLY, gateway=gateway))
    url = "https://buy.stripe.com/a?client_reference_id=user_42&prefilled_email=a%40b.example"
    assert page.evaluate(f"gatewayLink.stripe('{url}')") == url


def test_a_shopify_cart_carries_the_visitor(page: Page, shop: Site, gateway: Site) -> None:
    page.goto(shop.page("Shopify = {routes: {root: '/fr/'}};" + SUBJECT + DATALYR, gateway=gateway))
    assert page.evaluate("gatewayLink.shopify()") is True
    (cart,) = [post for post in shop.posts if post.path == "/fr/cart/update.js"]
    anon = f"anon_{UUID_1}"
    assert cart.body == {"attributes": {"_gateway_reference": anon, "_datalyr_visitor_id": anon}}
    assert gateway.links(2)[1]["subjects"] == {"shopify_cart": CART, "shopify_reference": anon}


def test_a_cart_is_left_alone_when_nothing_is_known_or_the_shop_fails(page: Page, shop: Site, gateway: Site) -> None:
    page.goto(shop.page(gateway=gateway))
    assert page.evaluate("gatewayLink.shopify()") is False
    assert shop.posts == []
    shop.answers = [422]
    page.evaluate(NEXLY)
    assert page.evaluate("gatewayLink.shopify()") is False
    assert len(shop.posts) == 1


SHOPIFY = compile_verification(
    VerifySpec(scheme="hmac", secrets=SECRET, header="X-Shopify-Hmac-Sha256", encoding="base64")
)


def order(served: Served, **changes: object) -> None:
    """Let Shopify report an order with these changes."""
    raw = sample(bundled(), "shopify", "orders.paid")
    assert raw is not None
    body = encoded(msgspec.json.decode(raw) | {"test": False, "note_attributes": []} | changes)
    about = {"X-Shopify-Topic": "orders/paid", "X-Shopify-Event-Id": "e-1", "X-Shopify-Shop-Domain": "a.myshopify.com"}
    assert served.post(body, sign(SHOPIFY, body, served.now() / 1000) | about, "shopify").is_success


def test_an_order_lands_on_the_visitor_of_its_cart(page: Page, shop: Site, tmp_path: Path) -> None:
    with real_gateway(tmp_path, shop.url) as (served, collector):
        page.goto(shop.page(SUBJECT + NEXLY, tag=tag(served), gateway=shop))
        assert page.evaluate("gatewayLink({})") is True
        order(served, cart_token=CART)
        by, visitor, _ = linked(collector)
        assert (by, visitor["nexly"]) == ("shopify_cart", UUID_1)


def test_an_order_lands_on_the_visitor_whose_reference_its_cart_carried(page: Page, shop: Site, tmp_path: Path) -> None:
    with real_gateway(tmp_path, shop.url) as (served, collector):
        page.goto(shop.page(NEXLY, tag=tag(served), gateway=shop))
        assert page.evaluate("gatewayLink.shopify().then(() => gatewayLink({}))") is True
        attributes = shop.posts[0].body["attributes"]
        order(served, note_attributes=[{"name": name, "value": value} for name, value in attributes.items()])
        by, visitor, _ = linked(collector)
        assert (by, visitor["nexly"]) == ("shopify_reference", UUID_1)


STANDS_IN_FOR_SHOPIFY = """
    const pending = {}, called = {};
    const ask = (area) => (name) => new Promise((take) => {
        const id = Math.random();
        pending[id] = take;
        parent.postMessage({id, area, name}, '*');
    });
    const browser = {cookie: {get: ask('cookie')}, localStorage: {getItem: ask('localStorage')}};
    const go = window.fetch, tell = (answered) => parent.postMessage({answered}, '*');
    window.fetch = (...all) => go(...all).then((answer) => tell(answer.status), () => tell('refused'));
    const analytics = {subscribe: (name, take) => { called[name] = take; }};
    addEventListener('message', ({data}) => {
        if (data.event) called[data.event.name](data.event); else pending[data.id](data.value);
    });
"""
TOP = """
    addEventListener('message', ({data, source}) => {
        if (data.answered) { window.answered = data.answered; return; }
        const cookies = Object.fromEntries(document.cookie.split('; ').map((each) => each.split('=')));
        const value = data.area === 'cookie' ? cookies[data.name] || '' : localStorage.getItem(data.name);
        source.postMessage({id: data.id, value}, '*');
    });
    const begin = () => frames[0].postMessage(
        {event: {name: 'checkout_started', data: {checkout: {token: 'c0ffee00c0ffee00c0ffee00c0ffee00'}}}}, '*');
"""


def pixel(shop: Site, script: str, gateway: str) -> str:
    """Return a shop that runs the custom pixel as Shopify does: sandboxed, asking the page around it for everything."""
    code = STANDS_IN_FOR_SHOPIFY + PIXEL.replace("https://gateway.example", gateway)
    frame = f"<script>{code}</script>".replace('"', "&quot;")
    shop.pages["/"] = (
        f"<!doctype html><script>{script}{TOP}</script>"
        f'<iframe sandbox="allow-scripts allow-forms" srcdoc="{frame}" onload="begin()"></iframe>'
    )
    return shop.url


def test_a_custom_pixel_links_the_checkout_from_its_sandbox(page: Page, shop: Site, gateway: Site) -> None:
    page.goto(pixel(shop, "".join(STORAGE.values()) + "document.cookie = '_fbp=fb.1.1700.99';", gateway.url))
    (link,) = gateway.links()
    assert gateway.posts[0].headers["origin"] == "null"
    assert link["subjects"] == {"shopify_checkout": "c0ffee00c0ffee00c0ffee00c0ffee00"}
    assert {name: each["visitor_id"] for name, each in link["ids"].items()} == {
        "nexly": UUID_1,
        "analyse": UUID_1,
        "datalyr": f"anon_{UUID_1}",
        "databuddy": f"anon_{UUID_1}",
    }
    assert link["click_ids"] == {"_fbp": "fb.1.1700.99"}


def test_a_custom_pixel_respects_opt_outs(page: Page, shop: Site, gateway: Site) -> None:
    out = "document.cookie = '__dl_opt_out=true'; localStorage.databuddy_opt_out = 'true';"
    page.goto(pixel(shop, "".join(STORAGE.values()) + out, gateway.url))
    assert set(gateway.links()[0]["ids"]) == {"nexly", "analyse"}


def test_an_order_lands_on_the_visitor_that_the_pixel_linked_if_null_is_a_listed_origin(
    page: Page, shop: Site, tmp_path: Path
) -> None:
    with real_gateway(tmp_path, "null") as (served, collector):
        page.goto(pixel(shop, NEXLY, served.url))
        page.wait_for_function("window.answered === 204")
        order(served, cart_token=None, checkout_token="c0ffee00c0ffee00c0ffee00c0ffee00")
        by, visitor, _ = linked(collector)
        assert (by, visitor["nexly"]) == ("shopify_checkout", UUID_1)


def test_a_custom_pixel_is_refused_if_null_is_no_listed_origin(page: Page, shop: Site, tmp_path: Path) -> None:
    with real_gateway(tmp_path, shop.url) as (served, _):
        page.goto(pixel(shop, NEXLY, served.url))
        page.wait_for_function("window.answered === 'refused'")
        assert served.contents()["link"] == 0


def test_a_beacon_reaches_a_real_gateway(page: Page, shop: Site, tmp_path: Path) -> None:
    with real_gateway(tmp_path, shop.url) as (served, collector):
        early = "delete window.fetch;" + NEXLY
        with page.expect_request(lambda request: request.url.endswith("/link")):
            page.goto(shop.page(early, tag=tag(served), gateway=shop) + f"?session_id={CHECKOUT}")
        until(lambda: served.contents()["link"] > 0)
        pay(served, id=CHECKOUT, client_reference_id=None)
        assert linked(collector)[0] == "stripe_checkout"


def test_a_login_with_the_backends_token_links_the_user(page: Page, shop: Site, tmp_path: Path) -> None:
    with real_gateway(tmp_path, shop.url) as (served, collector):
        page.goto(shop.page(NEXLY, tag=tag(served), gateway=shop))
        token = make_token("user_42", Secret(LINK_SECRET), served.now() // 1000, 600)
        assert page.evaluate(f"gatewayLink({{token: '{token}'}})") is True
        pay(served, client_reference_id="user_42")
        by, visitor, _ = linked(collector)
        assert (by, visitor["nexly"]) == ("user", UUID_1)
