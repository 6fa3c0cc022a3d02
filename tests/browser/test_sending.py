"""When the script posts, how often, and what it does when it cannot."""

import pytest
from playwright.sync_api import BrowserContext, Page

from gateway.link_script import link_script
from tests.browser.pages import CART, STORAGE, SUBJECT, UUID_1, UUID_2, Site

KNOWN = SUBJECT + STORAGE["nexly"]


def sent_from(page: Page) -> list[str]:
    """Return the list that the address of everything posted from now on is added to, as soon as it is begun."""
    posted: list[str] = []
    page.on("request", lambda request: posted.append(request.url) if request.method == "POST" else None)
    return posted


def settled(page: Page) -> bool:
    """Let the script look again; return whether the gateway knows what it sees."""
    taken: bool = page.evaluate("gatewayLink({})")
    return taken


def test_a_link_goes_to_the_gateway_that_serves_the_script_without_preflight_or_credentials(
    page: Page, shop: Site, gateway: Site
) -> None:
    page.goto(shop.page(KNOWN, gateway=gateway))
    gateway.links()
    headers = gateway.posts[0].headers
    assert (headers["origin"], headers["content-type"]) == (shop.url, "text/plain;charset=UTF-8")
    assert "cookie" not in headers
    assert gateway.preflights == 0


@pytest.mark.parametrize("slash", ["", "/"])
def test_the_page_may_name_another_gateway(page: Page, shop: Site, gateway: Site, slash: str) -> None:
    tag = f'<script data-gateway="{gateway.url}{slash}" src="/link.js"></script>'
    page.goto(shop.page(KNOWN, tag=tag, gateway=gateway))
    assert gateway.links()[0]["subjects"] == {"shopify_cart": CART}


@pytest.mark.parametrize("script", [STORAGE["nexly"], SUBJECT], ids=["no subject", "no id"])
def test_a_page_with_nothing_to_link_sends_nothing(page: Page, shop: Site, gateway: Site, script: str) -> None:
    posted = sent_from(page)
    page.goto(shop.page(script, gateway=gateway))
    assert settled(page) is False
    assert posted == []


def test_a_session_links_once_however_many_pages_it_has(page: Page, shop: Site, gateway: Site) -> None:
    posted = sent_from(page)
    page.goto(shop.page(KNOWN, gateway=gateway))
    assert settled(page) is True
    for path in ("/two", "/three"):
        page.goto(shop.page(path=path, gateway=gateway))
        assert settled(page) is True
    assert len(posted) == 1


def test_a_session_links_again_when_something_changed(page: Page, shop: Site, gateway: Site) -> None:
    page.goto(shop.page(KNOWN, gateway=gateway))
    assert settled(page) is True
    page.goto(shop.page(f"localStorage.trk_session_id = '{UUID_1}';", path="/two", gateway=gateway))
    first, second = gateway.links(2)
    assert (first["ids"]["nexly"]["session_id"], second["ids"]["nexly"]["session_id"]) == (UUID_2, UUID_1)


@pytest.mark.parametrize("status", [503, 429])
def test_after_a_failed_post_the_next_page_sends_again(page: Page, shop: Site, gateway: Site, status: int) -> None:
    gateway.answers = [status] * 9
    page.goto(shop.page(KNOWN, gateway=gateway))
    assert settled(page) is False
    failed = len(gateway.posts)
    gateway.answers.clear()
    page.goto(shop.page(path="/two", gateway=gateway))
    assert settled(page) is True
    assert len(gateway.posts) > failed


def test_what_was_sent_while_offline_is_sent_by_the_next_page(
    page: Page, profile: BrowserContext, shop: Site, gateway: Site
) -> None:
    page.goto(shop.page(STORAGE["nexly"], gateway=gateway))
    profile.set_offline(offline=True)
    assert page.evaluate(SUBJECT + "gatewayLink({})") is False
    assert gateway.posts == []
    profile.set_offline(offline=False)
    page.goto(shop.page(path="/two", gateway=gateway))
    assert settled(page) is True
    assert gateway.posts[0].body["subjects"] == {"shopify_cart": CART}


def test_what_the_gateway_refuses_is_not_sent_again_by_the_same_page(page: Page, shop: Site, gateway: Site) -> None:
    gateway.answers = [403, 403]
    posted = sent_from(page)
    page.goto(shop.page(KNOWN, gateway=gateway))
    assert [settled(page), settled(page), len(posted)] == [False, False, 1]
    page.reload()
    assert [settled(page), len(posted)] == [False, 2]


def test_a_token_that_has_run_out_costs_only_the_user(page: Page, shop: Site, gateway: Site) -> None:
    page.goto(shop.page(STORAGE["nexly"], gateway=gateway))
    gateway.answers = [401]
    assert page.evaluate(SUBJECT + "gatewayLink({token: 'a.b.c'})") is False
    assert settled(page) is True
    assert [link.get("token") for link in gateway.links(2)] == ["a.b.c", None]


def test_two_tabs_link_each_for_itself(profile: BrowserContext, shop: Site, gateway: Site) -> None:
    url = shop.page(KNOWN, gateway=gateway)
    for tab in (profile.new_page(), profile.new_page()):
        tab.goto(url)
        assert settled(tab) is True
        tab.close()
    first, second = gateway.links(2)
    assert first == second


def test_a_vendor_script_that_comes_late_is_read_on_load(page: Page, shop: Site, gateway: Site) -> None:
    after = f"addEventListener('DOMContentLoaded', () => {{ localStorage.trk_visitor_id = '{UUID_1}'; }});"
    page.goto(shop.page(SUBJECT, after=after, gateway=gateway))
    assert gateway.links()[0]["ids"] == {"nexly": {"visitor_id": UUID_1}}


def test_a_route_of_a_single_page_app_links_what_it_brought(page: Page, shop: Site, gateway: Site) -> None:
    page.goto(shop.page(STORAGE["nexly"], gateway=gateway))
    page.evaluate(SUBJECT + "history.pushState({}, '', '/cart')")
    assert gateway.links()[0]["subjects"] == {"shopify_cart": CART}


def test_a_cart_made_after_the_last_look_is_linked_when_the_page_is_left(page: Page, shop: Site, gateway: Site) -> None:
    page.goto(shop.page(STORAGE["nexly"], gateway=gateway))
    page.evaluate(SUBJECT)
    page.goto("about:blank")
    assert gateway.links()[0]["subjects"] == {"shopify_cart": CART}


def test_a_login_links_the_user_by_token_and_says_whether_it_was_taken(page: Page, shop: Site, gateway: Site) -> None:
    page.goto(shop.page(STORAGE["nexly"], gateway=gateway))
    call = "gatewayLink({token: 'aaa.bbb.ccc', ids: {nexly: 'own-id', acme: {visitor_id: 'a', session_id: 's'}}})"
    assert page.evaluate(call) is True
    (link,) = gateway.links()
    assert (link["token"], link["subjects"]) == ("aaa.bbb.ccc", {})
    assert link["ids"]["nexly"] == {"visitor_id": "own-id", "session_id": UUID_2}
    assert link["ids"]["acme"] == {"visitor_id": "a", "session_id": "s"}


def test_a_fresh_token_for_the_same_user_is_no_news(page: Page, shop: Site, gateway: Site) -> None:
    page.goto(shop.page(STORAGE["nexly"], gateway=gateway))
    make = (
        "(sub, iat) => gatewayLink({token: ['x', btoa(JSON.stringify({sub, iat})).replace(/=/g, ''), 'y'].join('.')})"
    )
    taken = [page.evaluate(f"({make})('{user}', {at})") for user, at in (("jo", 1), ("jo", 2), ("al", 3))]
    assert taken == [True, True, True]
    assert len(gateway.links(2)) == 2


def test_calls_from_before_the_script_are_made_when_it_comes(page: Page, shop: Site, gateway: Site) -> None:
    queue = (
        "window.gatewayLink = window.gatewayLink || function(){(gatewayLink.q = gatewayLink.q || []).push(arguments)};"
    )
    early = queue + "gatewayLink({token: 'a.b.c'}); gatewayLink({ids: {acme: 'a-1'}});"
    page.goto(shop.page(early, gateway=gateway))
    assert gateway.links()[0]["ids"] == {"acme": {"visitor_id": "a-1"}}


def test_a_script_loaded_twice_is_one(page: Page, shop: Site, gateway: Site) -> None:
    tag = f'<script src="{gateway.url}/link.js"></script>' * 2
    page.goto(shop.page(STORAGE["nexly"], tag=tag, after="gatewayLink({token: 'a.b.c'});", gateway=gateway))
    assert settled(page) is True
    assert len(gateway.links()) == 1


def test_without_fetch_a_beacon_carries_it(page: Page, shop: Site, gateway: Site) -> None:
    page.goto(shop.page("delete window.fetch;" + KNOWN, gateway=gateway))
    with gateway.arrived:
        assert gateway.arrived.wait_for(lambda: gateway.posts, 30)
    assert gateway.posts[0].body["ids"]["nexly"]["visitor_id"] == UUID_1
    assert gateway.posts[0].headers["content-type"] == "text/plain"


BLOCKED = """
for (const area of ['localStorage', 'sessionStorage'])
    Object.defineProperty(window, area, {get() { throw new DOMException('blocked', 'SecurityError'); }});"""
FULL = "Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); };"


@pytest.mark.parametrize("script", [BLOCKED, FULL], ids=["blocked", "full"])
def test_a_browser_that_keeps_nothing_links_once_a_page(page: Page, shop: Site, gateway: Site, script: str) -> None:
    posted = sent_from(page)
    page.goto(shop.page(SUBJECT + "document.cookie = '_ga=GA1.1.1.2';" + script, gateway=gateway) + "?gclid=g")
    assert [settled(page), settled(page), len(posted)] == [True, True, 1]
    page.reload()
    assert [settled(page), len(posted)] == [True, 2]


def test_in_a_sandboxed_frame_without_storage_the_page_can_still_link(page: Page, shop: Site, gateway: Site) -> None:
    shop.page(after=f"gatewayLink({{token: 'a.b.c', ids: {{nexly: '{UUID_1}'}}}});", path="/framed", gateway=gateway)
    shop.pages["/"] = '<iframe sandbox="allow-scripts" src="/framed"></iframe>'
    page.goto(shop.url)
    assert gateway.links()[0]["ids"] == {"nexly": {"visitor_id": UUID_1}}
    assert gateway.posts[0].headers["origin"] == "null"


def test_a_page_with_a_strict_policy_and_a_pinned_script_links(page: Page, shop: Site, gateway: Site) -> None:
    shop.headers["Content-Security-Policy"] = (
        f"default-src 'none'; script-src 'unsafe-inline' {gateway.url}/link.js; connect-src {gateway.url}/link"
    )
    tag = f'<script src="{gateway.url}/link.js" integrity="{link_script().integrity}" crossorigin="anonymous"></script>'
    page.goto(shop.page(KNOWN, tag=tag, gateway=gateway))
    assert gateway.links()[0]["ids"]["nexly"]["visitor_id"] == UUID_1


def test_a_script_that_is_not_the_pinned_one_does_not_run(page: Page, shop: Site, gateway: Site) -> None:
    tag = f'<script src="{gateway.url}/link.js" integrity="sha384-{"A" * 64}" crossorigin="anonymous"></script>'
    page.goto(shop.page(KNOWN, tag=tag, gateway=gateway))
    assert page.evaluate("typeof gatewayLink") == "undefined"


def test_a_policy_that_stops_the_post_throws_nothing(page: Page, shop: Site, gateway: Site) -> None:
    shop.headers["Content-Security-Policy"] = "connect-src 'none'"
    page.goto(shop.page(KNOWN, gateway=gateway))
    assert settled(page) is False
    assert page.evaluate("[gatewayLink.reference().slice(0, 4), gatewayLink.stripe('https://')]") == [
        "vis_",
        "https://",
    ]
