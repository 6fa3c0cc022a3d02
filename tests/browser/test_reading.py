"""What the script reads of a browser, and what it leaves alone."""

from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page

from tests.browser.pages import CART, CHECKOUT, STORAGE, SUBJECT, UUID_1, UUID_2, Site

STALE = "Date.now() - 31 * 60000"
GPC = "Object.defineProperty(Navigator.prototype, 'globalPrivacyControl', {value: true});"
GA = "document.cookie = '_ga=GA1.1.123.456';"
DNT = "Object.defineProperty(Navigator.prototype, 'doNotTrack', {value: '1'});"
CLICKS = "?gclid=g.1&fbclid=f_1&utm_source=news&utm_campaign=Fr%C3%BChling%20%F0%9F%8C%B7&utm_medium=%EB%A9%94%EC%9D%BC"
"""The campaign's tulip is younger than some gateway's Unicode may be."""
FIVE = "".join(STORAGE.values())


def read(page: Page, shop: Site, gateway: Site, script: str, query: str = "") -> Any:
    """Return the one link that a page with this storage posts."""
    page.goto(shop.page(SUBJECT + script, gateway=gateway) + query)
    return gateway.links()[0]


def ids_of(page: Page, shop: Site, gateway: Site, script: str) -> Any:
    return read(page, shop, gateway, script, "?utm_source=so-that-there-is-something")["ids"]


def both(visitor: str, session: str) -> dict[str, str]:
    return {"visitor_id": visitor, "session_id": session}


def test_ids_of_all_products_are_read_from_the_storage_their_scripts_leave(
    page: Page, shop: Site, gateway: Site
) -> None:
    link = read(page, shop, gateway, FIVE)
    assert link["subjects"] == {"shopify_cart": CART}
    assert link["ids"] == {
        "nexly": both(UUID_1, UUID_2),
        "datalyr": both(f"anon_{UUID_1}", f"sess_{UUID_2}"),
        "databuddy": both(f"anon_{UUID_1}", f"sess_{UUID_2}"),
        "analyse": both(UUID_1, UUID_2),
    }


def test_a_vendors_own_api_goes_before_its_storage(page: Page, shop: Site, gateway: Site) -> None:
    script = f"""
        window.datalyr = {{getVisitorId: () => 'anon_{UUID_2}', getSessionId: () => {{ throw Error('made one'); }}}};
        window.databuddy = {{getTrackingIds: () => ({{anonId: 'anon_{UUID_2}', sessionId: 'sess_{UUID_1}'}})}};"""
    ids = ids_of(page, shop, gateway, FIVE + script)
    assert ids["datalyr"] == both(f"anon_{UUID_2}", f"sess_{UUID_2}")
    assert ids["databuddy"] == both(f"anon_{UUID_2}", f"sess_{UUID_1}")


@pytest.mark.parametrize(
    ("script", "ids"),
    [
        (f"window.datalyr = {{getAnonymousId: () => 'anon_{UUID_2}'}}", {"datalyr": {"visitor_id": f"anon_{UUID_2}"}}),
        (f"localStorage.dl_dl_anonymous_id = '\"anon_{UUID_2}\"'", {"datalyr": {"visitor_id": f"anon_{UUID_2}"}}),
        (f"localStorage.__dl_dl_anonymous_id = 'anon_{UUID_2}'", {"datalyr": {"visitor_id": f"anon_{UUID_2}"}}),
        (f"window.databuddy = {{anonymousId: 'anon_{UUID_2}'}}", {"databuddy": {"visitor_id": f"anon_{UUID_2}"}}),
        ("document.cookie = '_ga=GA1.1.123.456'", {"ga4": {"visitor_id": "123.456"}}),
    ],
)
def test_each_further_place_is_read_when_those_before_it_are_empty(
    page: Page, shop: Site, gateway: Site, script: str, ids: object
) -> None:
    assert ids_of(page, shop, gateway, script) == ids


def test_a_session_that_has_run_out_is_left_out(page: Page, shop: Site, gateway: Site) -> None:
    script = f"""
        localStorage.trk_session_ts = sessionStorage.did_session_timestamp = localStorage.analyse_session_ts = {STALE};
        localStorage.dl_dl_session_data = JSON.stringify({{id: 'sess_1', lastActivity: Date.now() - 61 * 60000}});"""
    ids = ids_of(page, shop, gateway, FIVE + script)
    assert {product: list(each) for product, each in ids.items()} == {name: ["visitor_id"] for name in STORAGE}


def test_datalyrs_session_lasts_an_hour_unless_it_was_ended(page: Page, shop: Site, gateway: Site) -> None:
    session = "localStorage.dl_dl_session_data = JSON.stringify({id: 'sess_1', lastActivity: %s, isActive: %s});"
    assert ids_of(page, shop, gateway, session % (STALE, "true")) == {"datalyr": {"session_id": "sess_1"}}
    gateway.posts.clear()
    assert ids_of(page, shop, gateway, session % (STALE, "false")) == {}


@pytest.mark.parametrize(
    ("cookie", "ids"),
    [
        ("_ga_AAA=GS2.1.s1700000000$o3$g1$t' + now + '$j60", both("123.456", "1700000000")),
        ("_ga_AAA=GS1.1.1700000000.3.1.' + now + '.60.0.0", both("123.456", "1700000000")),
        ("_ga_AAA=GS1.1.1700000000.3.1.1700000001.60.0.0' + '", {"visitor_id": "123.456"}),
    ],
)
def test_ga4s_session_is_read_while_it_lives(page: Page, shop: Site, gateway: Site, cookie: str, ids: object) -> None:
    script = f"const now = Math.floor(Date.now() / 1000); {GA} document.cookie = '{cookie}';"
    assert ids_of(page, shop, gateway, script) == {"ga4": ids}


def test_of_several_ga4_streams_no_session_is_taken(page: Page, shop: Site, gateway: Site) -> None:
    cookies = (
        "for (const n of 'AB') document.cookie = `_ga_${n}=GS2.1.s1700000000$o1$g1$t${Math.floor(Date.now() / 1000)}`;"
    )
    script = f"document.cookie = '_ga=GA1.1.123.456'; {cookies}"
    assert ids_of(page, shop, gateway, script) == {"ga4": {"visitor_id": "123.456"}}


@pytest.mark.parametrize(
    ("script", "missing"),
    [
        (GPC, {"datalyr", "databuddy"}),
        (DNT, {"databuddy"}),
        ("localStorage.databuddy_opt_out = 'true';", {"databuddy"}),
        ("localStorage.databuddy_disabled = 'true';", {"databuddy"}),
        ("document.cookie = '__dl_opt_out=true';", {"datalyr"}),
    ],
)
def test_who_opted_out_of_a_product_is_not_linked_for_it(
    page: Page, shop: Site, gateway: Site, script: str, missing: set[str]
) -> None:
    asked = "".join(f"window.{name} = {{getVisitorId: 1, anonymousId: 'anon_{UUID_1}'}};" for name in sorted(missing))
    assert set(ids_of(page, shop, gateway, FIVE + asked + script)) == set(STORAGE) - missing


def test_an_opt_out_goes_before_what_the_page_says(page: Page, shop: Site, gateway: Site) -> None:
    after = f"gatewayLink({{ids: {{databuddy: 'anon_{UUID_2}', acme: 'a-1'}}}});"
    script = SUBJECT + "localStorage.databuddy_opt_out = 'true';"
    page.goto(shop.page(script, after=after, gateway=gateway))
    assert gateway.links()[0]["ids"] == {"acme": {"visitor_id": "a-1"}}


def test_click_ids_are_read_from_the_address_and_the_cookies(page: Page, shop: Site, gateway: Site) -> None:
    cookies = {
        "_fbc": "fb.1.1700.f_1",
        "_fbp": "fb.1.1700.99",
        "_gcl_aw": "GCL.1700.g.1",
        "_ttp": "tt1",
        "_ga": "GA1.1.1.2",
    }
    script = "".join(f"document.cookie = '{name}={value}';" for name, value in cookies.items())
    link = read(page, shop, gateway, script, CLICKS + "&gbraid=b&wbraid=w&msclkid=m&ttclid=t")
    utm = {"utm_source": "news", "utm_medium": "메일"}
    clicks = {"gclid": "g.1", "fbclid": "f_1", "gbraid": "b", "wbraid": "w", "msclkid": "m", "ttclid": "t"}
    assert link["click_ids"] == cookies | clicks | utm


@pytest.mark.parametrize("script", [GPC, "localStorage['layersync:consent'] = '{\"v\":1,\"granted\":false}';"])
def test_who_refuses_advertising_is_linked_without_click_ids(
    page: Page, shop: Site, gateway: Site, script: str
) -> None:
    link = read(page, shop, gateway, "document.cookie = '_fbp=fb.1.1700.99';" + script, CLICKS)
    assert set(link["click_ids"]) == {"utm_source", "utm_medium"}
    assert "gclid" not in page.evaluate("JSON.stringify(sessionStorage)")


def test_the_checkout_still_knows_what_the_landing_page_was_called_with(page: Page, shop: Site, gateway: Site) -> None:
    page.goto(shop.page(gateway=gateway) + CLICKS)
    page.goto(shop.page(SUBJECT, path="/checkout", gateway=gateway) + "?gclid=g.2")
    clicks = gateway.links()[0]["click_ids"]
    assert (clicks["gclid"], clicks["fbclid"], clicks["utm_source"]) == ("g.2", "f_1", "news")


@pytest.mark.parametrize(
    ("query", "subjects"),
    [
        (f"?session_id={CHECKOUT}", {"stripe_checkout": CHECKOUT}),
        ("?key=wc_order_A1b2C3d4E5", {"woocommerce_order": "wc_order_A1b2C3d4E5"}),
        ("?_ptxn=txn_01hv8wptq8987qeep44cyrewp9", {"paddle_transaction": "txn_01hv8wptq8987qeep44cyrewp9"}),
    ],
)
def test_the_page_after_a_payment_links_what_its_address_names(
    page: Page, shop: Site, gateway: Site, query: str, subjects: object
) -> None:
    page.goto(shop.page(STORAGE["nexly"], gateway=gateway) + query)
    assert gateway.links()[0]["subjects"] == subjects


@pytest.mark.parametrize(
    "script",
    [
        "localStorage.trk_visitor_id = 'x'.repeat(10000);",
        "localStorage.trk_visitor_id = 'a\\u0000b';",
        "localStorage.trk_visitor_id = 'a\\u202eb';",
        "localStorage.analyse_anon_id = 'not-a-uuid'; localStorage.did = 'anon_short';",
        "document.cookie = '_ga=%E0%A4%A'; localStorage.dl_dl_session_data = '{';",
        "document.cookie = '__dl_visitor_id=a%0ab; path=/';",
        "window.datalyr = window.databuddy = new Proxy({}, {get() { throw new Error('mine'); }});",
        "window.datalyr = document.createElement('form'); window.databuddy = {getTrackingIds: () => null};",
        "window.datalyr = {getVisitorId: () => ({toString() { throw 1; }})};",
        'localStorage.dl_dl_session_data = \'{"__proto__": {"id": "evil"}, "lastActivity": 1}\';',
        "localStorage['layersync:consent'] = 'null'; localStorage.dl_dl_session_data = 'null';",
    ],
)
def test_what_is_no_id_is_left_out_and_nothing_throws(page: Page, shop: Site, gateway: Site, script: str) -> None:
    good = f"localStorage.analyse_session_id = '{UUID_2}'; localStorage.analyse_session_ts = Date.now();"
    ids = ids_of(page, shop, gateway, good + script)
    assert ids == {"analyse": {"session_id": UUID_2}}


def test_hostile_names_change_nothing(page: Page, shop: Site, gateway: Site) -> None:
    after = """gatewayLink(JSON.parse('{"ids": {"__proto__": {"visitor_id": "v"}, "constructor": "c", "a b": "x"},'
        + '"subjects": {"__proto__": "p", "email": "jo@example.com", "user": "42"}}'));"""
    page.goto(shop.page(SUBJECT + STORAGE["nexly"], after=after, gateway=gateway))
    assert page.evaluate("({}).visitor_id") is None
    assert [set(link["ids"]) for link in gateway.links()] == [{"nexly"}]
    assert gateway.posts[0].body["subjects"] == {"shopify_cart": CART}


def test_at_most_twenty_click_ids_are_sent(page: Page, shop: Site, gateway: Site) -> None:
    names = ["gclid", "gbraid", "wbraid", "fbclid", "msclkid", "ttclid", "epik", "ScCid", "rdt_cid", "twclid"]
    utm = ["utm_source", "utm_medium", "utm_campaign", "utm_content", "utm_term"]
    query = "?" + "&".join(f"{name}=1" for name in names + utm)
    cookies = "".join(f"document.cookie = '{name}=1';" for name in ("_fbc", "_fbp", "_ga", "_gcl_aw", "_ttp", "_scid"))
    clicks = read(page, shop, gateway, cookies, query)["click_ids"]
    assert len(clicks) == 20
    assert set(names) < set(clicks)


def test_the_script_makes_no_id_and_no_cookie(page: Page, profile: BrowserContext, shop: Site, gateway: Site) -> None:
    page.goto(shop.page(gateway=gateway))
    page.evaluate("gatewayLink({}).then(() => [gatewayLink.reference(), gatewayLink.metadata()])")
    assert profile.cookies() == []
    assert page.evaluate("localStorage.length + sessionStorage.length") == 0
