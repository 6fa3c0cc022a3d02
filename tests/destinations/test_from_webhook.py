"""Every golden request is what a webhook causes: signed, posted, linked, kept, rendered and sent, over real HTTP.

The golden files hold what the collectors' SDKs send, or what their references ask for; `webhook-recorded.json` is the
SDKs' recording as it was made, batches included. Whatever differs from them on the wire is named in `EXCEPTIONS`, with
what is there instead and why. The page's url and its like are in no payment webhook: the shop's own mappings read them
out of the session's metadata, as mappings/README.md tells. What no payment webhook says at all (identify, group, page
views, events with names of the shop's own) comes from the shop's own backend, by a mapping file of its own.
"""

import hashlib
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from uuid import UUID

import msgspec
import pytest
from litestar.types import ASGIApp
from msgspec import Struct

from gateway.deliveries import State
from gateway.mappings import bundled, copy_bundled, minified, sample, sample_headers
from gateway.sending import USER_AGENT
from gateway.server import running
from gateway.signatures import Verification, VerifySpec, compile_verification, sign
from tests.destinations import ads_fakes, fakes, more_fakes, test_ads_golden, test_golden, test_more_golden
from tests.destinations.test_golden import FIRST, GOLDEN, SESSION, cases, paths
from tests.promises.collector import Collector
from tests.promises.served import LINK_SECRET, SECRET, Served

WITHIN = 30.0
SHOP_SECRET = "whsec_c2hvcC1vZi10aGUtdGVzdHMtMDEyMzQ1"
SIGNED: dict[str, Verification] = {
    "stripe": compile_verification(VerifySpec(scheme="stripe", secrets=SECRET)),
    "shop": compile_verification(VerifySpec(scheme="standard-webhooks", secrets=SHOP_SECRET)),
    "shopify": compile_verification(
        VerifySpec(scheme="hmac", secrets=SHOP_SECRET, header="X-Shopify-Hmac-Sha256", encoding="base64")
    ),
}
SUMMER, AUTUMN, WINTER = 1_751_373_400_000, 1_793_000_120_000, 1_797_000_000_000
"""When the gateway gets the webhooks, in ms: a minute or two after the golden events, and the last of the payments."""

SHOP = """\
source: shop
verify: {scheme: standard-webhooks, secrets: "${SHOP_WEBHOOK_SECRET}"}
webhook: {id: header('webhook-id'), type: type, occurred_at: timestamp}
subjects:
  user: data.user
  shop_visit: {value: data.visit, browser: true}
rules:
  - name: subscription
    on: subscription.created
    emit: subscription_created
    properties: {plan: data.plan, amount_cents: data.amount_cents}
  - {name: invoice, on: invoice.paid, emit: invoice_paid}
  - {name: user, on: user.updated, emit: identify, kind: identify, properties: {plan: data.plan}}
  - {name: company, on: company.joined, emit: group, kind: group, properties: {groupId: data.company, name: data.title}}
  - name: landing
    on: page.landing
    emit: Landing
    kind: page
    context: {url: data.url, path: data.path, consent: data.consent}
  - {name: checkout, on: page.checkout, emit: Checkout, kind: page, context: {url: data.url, path: data.path}}
"""
PAID = "data.object.metadata.layersync_event_id   # what LayerSync's track() returned, if it is there\n"
PAGE = """\
      url: data.object.metadata.url
      path: data.object.metadata.path
      hostname: data.object.metadata.hostname
      referrer: data.object.metadata.referrer
      utm_source: data.object.metadata.utm_source
      consent: "data.object.metadata.ads == 'granted' && {ads: `true`} || `null`"
"""
CDATA = """\
destination: nexly-cdata
like: nexly
variables: {NEXLY_PAYLOAD: CDATA_PAYLOAD, NEXLY_COLLECT_URL: CDATA_COLLECT_URL}
"""


def mappings(folder: Path) -> Path:
    """Return a shop's mappings: the bundled ones, where a payment's page is, its own backend and a second Nexly."""
    copy_bundled(folder)
    for file in (folder / "sources").iterdir():
        if file.stem not in SIGNED:
            file.unlink()
    stripe = folder / "sources" / "stripe.yaml"
    assert stripe.read_text().count(PAID) == 1
    stripe.write_text(stripe.read_text().replace(PAID, PAID + PAGE))
    (folder / "sources" / "shop.yaml").write_text(SHOP)
    (folder / "destinations" / "nexly-cdata.yaml").write_text(CDATA)
    return folder


# What is posted


class Case(Struct, frozen=True):
    """A webhook, the link that is posted before it, and how long its event is on hold, in ms."""

    source: str
    body: dict[str, Any]
    link: dict[str, Any] | None = None
    hold: int = 0
    headers: dict[str, str] = {}


def stripe(name: str, id: str, at: int, object: dict[str, Any], account: str = "", **more: Any) -> Case:
    """Return a bundled sample with an id and a time of its own, and with these fields of its object changed."""
    body = sample(bundled(), "stripe", name)
    assert body is not None
    document = msgspec.json.decode(body)
    document.update(id=id, created=at, account=account)
    document["data"]["object"].update(object)
    return Case("stripe", document, **more)


def shop(type: str, timestamp: str, data: dict[str, Any], **more: Any) -> Case:
    return Case("shop", {"type": type, "timestamp": timestamp, "data": data}, **more)


def line(product: str, cents: int, **more: Any) -> dict[str, Any]:
    return {"price": {"product": product, "unit_amount": cents}, "currency": "usd", **more}


def session(id: str, person: dict[str, Any] | None, totals: tuple[int, int | None, int | None], **more: Any) -> Any:
    """Return the fields of a checkout session: `totals` are all of it, tax and shipping."""
    total, tax, shipping = totals
    return {
        "id": f"cs_{id}",
        "payment_intent": f"pi_{id}",
        "customer": f"cus_{id}",
        "customer_details": person,
        "amount_total": total,
        "total_details": {"amount_tax": tax, "amount_shipping": shipping, "amount_discount": None},
        "discounts": [{"coupon": "SPRING", "promotion_code": None}],
        **more,
    }


def bought(second: int) -> dict[str, Any]:
    return {
        "data": [
            line("SKU-A", 3975, description="Widget", quantity=2),
            line("SKU-B", second, description="Gadget", quantity=1),
        ]
    }


JOSE = {"email": " John.Doe+x@Gmail.com ", "phone": "+1 (555) 123-4567", "name": "José O'Brien"}
MARY = {
    "email": " John_Smith@gmail.com ",
    "phone": "(650)555-1212",
    "name": "Mary O'Neill",
    "address": {"country": "US"},
}
WHERE = {"url": "https://shop.example/checkout?utm_source=news", "path": "/checkout"}
CAME = {"hostname": "shop.example", "referrer": "https://www.google.com/search", "utm_source": "news"}
SEEN = {"visitor_id": FIRST, "session_id": SESSION}
IDS = {
    "posthog": {
        "visitor_id": "0192f0a0-0000-7000-8000-00000000000a",
        "session_id": "0192f0a0-1111-7222-8333-444455556666",
    },
    "mixpanel": {"visitor_id": "$device:0192f0a0-device"},
    "amplitude": {"visitor_id": "dev-9f8e7d6c", "session_id": "1793000000000"},
}
CLIENT = {"ga4": {"visitor_id": "1234567890.1700000000"}}
CUSTOMER = {"price": {"id": "price_pro", "unit_amount": 5000, "recurring": {"interval": "month"}}, "quantity": 1}

CASES: dict[tuple[str, str], Case] = {
    ("recorded", "purchase"): stripe(
        "checkout.session.completed",
        "evt_recorded",
        1751373296,
        session("recorded", JOSE, (12950, None, None))
        | {"client_reference_id": "user_1", "metadata": {"order_id": "ORD-1234", **WHERE, **CAME}}
        | {"line_items": bought(5000)},
        link={"subjects": {"stripe_checkout": "cs_recorded"}, **SEEN},
    ),
    # The page of this one is not linked: its user is known from the last.
    ("five", "purchase"): stripe(
        "checkout.session.completed",
        "evt_five",
        1751373296,
        session("five", JOSE, (12950, None, None))
        | {"client_reference_id": "user_1", "metadata": {"order_id": "ORD-1234", **WHERE}}
        | {"line_items": bought(5000)},
    ),
    ("five", "subscription_created"): shop(
        "subscription.created",
        "2025-07-01T12:34:57.123Z",
        {"user": "user_2", "plan": "pro", "amount_cents": 4900},
    ),
    ("five", "invoice_paid"): shop(
        "invoice.paid",
        "2025-07-01T12:34:58Z",
        {"visit": "visit_3"},
        link={"subjects": {"shop_visit": "visit_3"}, "visitor_id": "anon_33333333-3333-4333-8333-333333333333"},
    ),
    ("five", "identify"): shop(
        "user.updated",
        "2025-07-01T12:34:59Z",
        {"user": "user_1", "plan": "pro"},
        link={"subjects": {"user": "user_1"}, "visitor_id": FIRST},
    ),
    ("five", "page"): shop(
        "page.landing", "2025-07-01T12:35:00Z", {"user": "user_1", "url": "https://shop.example/", "path": "/"}
    ),
    ("five", "group"): shop(
        "company.joined", "2025-07-01T12:35:01Z", {"user": "user_1", "company": "company_456", "title": "Acme"}
    ),
    ("ads", "purchase"): stripe(
        "checkout.session.completed",
        "evt_ads",
        1751373296,
        session("ads", MARY, (14356, 906, 500))
        | {"client_reference_id": "user_1", "line_items": bought(5000)}
        | {"metadata": {"order_id": "ORD-1234", "url": WHERE["url"], "ads": "granted"}},
        link={
            "subjects": {"user": "user_1"},
            "ids": {"ga4": {"session_id": "GS2.1.s1751373000$o3$g1$t1751373296$j60$l0$h0"}},
            "click_ids": test_ads_golden.CLICKS,
        },
    ),
    ("ads", "refund"): stripe(
        "refund.created",
        "evt_ads_refund",
        1751373297,
        {"id": "re_1", "amount": 5000, "currency": "jpy", "payment_intent": "pi_yen", "charge": "ch_yen"}
        | {"metadata": {"order_id": "ORD-1234"}},
        link={"subjects": {"stripe_payment": "pi_yen"}, "ids": CLIENT},
    ),
    ("ads", "renewal"): stripe(
        "invoice.paid.renewal",
        "evt_ads_renewal",
        1751373298,
        {"id": "in_1", "customer": "cus_renewal", "customer_email": None, "customer_phone": None, "lines": None}
        | {"customer_name": None, "amount_paid": 4900, "currency": "eur", "total_taxes": [], "customer_address": None}
        | {"parent": {"subscription_details": {"subscription": "sub_1", "metadata": {"user_id": "ada@example.com"}}}},
        hold=30_000,
    ),
    ("ads", "trial"): stripe(
        "customer.subscription.created.trialing",
        "evt_ads_trial",
        1751373299,
        {"id": "sub_2", "customer": "cus_trial", "metadata": {}},
        link={
            "subjects": {"stripe_customer": "cus_trial"},
            "visitor_id": "anon_1",
            "click_ids": {"_fbc": "fb.1.1751372999000.IwAR9xyz", "fbclid": "IwAR9xyz"},
        },
    ),
    ("ads", "page"): shop(
        "page.landing",
        "2025-07-01T12:35:00Z",
        {"visit": "visit_ads", "url": "https://shop.example/", "consent": {"ads": False}},
        link={"subjects": {"shop_visit": "visit_ads"}, "ids": CLIENT},
    ),
    # Before its user is linked: a company is joined on the server.
    ("more", "group"): shop(
        "company.joined", "2026-10-26T07:34:20Z", {"user": "user_42", "company": "company_456", "title": "Acme"}
    ),
    ("more", "identify"): shop(
        "user.updated",
        "2026-10-26T07:34:20Z",
        {"user": "user_42", "plan": "price_pro"},
        link={"subjects": {"user": "user_42"}, "visitor_id": "anon_1", "session_id": "sess_1", "ids": IDS},
    ),
    ("more", "page"): shop("page.checkout", "2026-10-26T07:34:20Z", {"user": "user_42", **WHERE}),
    ("more", "purchase"): stripe(
        "checkout.session.completed",
        "evt_more",
        1793000060,
        session("more", None, (12950, 950, 1000))
        | {"client_reference_id": "user_42", "metadata": {"order_id": "ORD-1", **WHERE}}
        | {"line_items": bought(3050)},
    ),
    ("more", "refund"): stripe(
        "refund.created",
        "evt_more_refund",
        1793000060,
        {"id": "re_1", "amount": 4025, "payment_intent": "pi_other", "charge": "ch_other"}
        | {"metadata": {"order_id": "ORD-1", "user_id": "42"}},
        account="acct_2",  # where `re_1` is another refund than the one above
    ),
    ("more", "subscription_started"): stripe(
        "customer.subscription.created",
        "evt_more_subscription",
        1793000060,
        {"id": "sub_1", "customer": "cus_yen", "currency": "jpy", "metadata": {}, "items": {"data": [CUSTOMER]}},
        link={"subjects": {"stripe_customer": "cus_yen"}, "visitor_id": "anon_1", "session_id": "sess_1"},
    ),
}


def bundled_sample(source: str, name: str, link: dict[str, str] | None = None) -> Case:
    """Return a bundled sample just as it is; the page that it is linked to is of one visitor."""
    body = sample(bundled(), source, name)
    assert body is not None
    headers = sample_headers(bundled(), source, name, minified(body), WINTER / 1000)
    return Case(source, msgspec.json.decode(body), link and {"subjects": link, **SEEN}, headers=headers)


PAYMENTS = {
    "bought": (
        1793000060,
        bundled_sample(
            "stripe", "checkout.session.completed", {"stripe_checkout": "cs_live_a1GatewaySampleOneTime0001"}
        ),
    ),
    "trial started": (1793000061, bundled_sample("stripe", "customer.subscription.created.trialing")),
    "subscription started": (1793001056, bundled_sample("stripe", "customer.subscription.created")),
    "subscription paid": (1793001060, bundled_sample("stripe", "checkout.session.completed.subscription")),
    "order paid": (
        1793005200,
        bundled_sample("shopify", "orders.paid", {"shopify_cart": "hWN2Gatewaycart7f3c9d1e5b8a4c60"}),
    ),
    "refunded": (1793086400, bundled_sample("stripe", "refund.created")),
    "order refunded": (1793098800, bundled_sample("shopify", "refunds.create")),
    "trial converted": (1794209601, bundled_sample("stripe", "customer.subscription.updated")),
    "subscription cancelled": (1797000000, bundled_sample("stripe", "customer.subscription.deleted")),
}
"""What three customers do, and when, in seconds. The pages of the first payment and of the order are linked; all that
follows finds its visitor by what was learned from these.
"""

# Who gets it


class Sent(Struct, frozen=True):
    """One request as a collector got it. `server` is which of the collectors' servers that was."""

    server: str
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


class Recorder:
    """Writes down each request to an application, before it is answered."""

    def __init__(self, server: str, app: ASGIApp, into: list[Sent]) -> None:
        self._server, self._app, self._into = server, app, into

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        messages = [await receive()]
        while messages[-1].get("more_body"):
            messages.append(await receive())
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        query = dict(parse_qsl(scope["query_string"].decode()))
        body = b"".join(message.get("body", b"") for message in messages)
        self._into.append(Sent(self._server, scope["method"], scope["path"], query, headers, body))
        rest = iter(messages)

        async def again() -> Any:
            return next(rest, None) or await receive()

        await self._app(scope, again, send)


class Effect(Struct, frozen=True):
    """What one webhook caused: its event's id, its requests, and what became of each delivery."""

    id: str
    requests: list[Sent]
    deliveries: dict[str, tuple[State, str | None, int]]


NEWEST = "SELECT max(webhook) FROM webhook"


PAGES = {"stripe_checkout", "shop_visit", "shopify_cart"}
"""What a page may link by itself; the rest comes from the shop's backend, with the secret."""


class Wire:
    """A gateway between its senders and all of its collectors."""

    def __init__(self, served: Served, requests: list[Sent]) -> None:
        self.served, self.requests = served, requests

    def cause(self, case: Case, name: str) -> None:
        """Post a webhook; what follows is not waited for."""
        body = minified(msgspec.json.encode(case.body))
        headers = case.headers | sign(SIGNED[case.source], body, self.served.now() / 1000, name)
        answer = self.served.post(body, headers, case.source)
        assert answer.is_success, answer.text

    def link(self, case: Case) -> None:
        if case.link is not None:
            backend = {} if case.link["subjects"].keys() <= PAGES else {"authorization": f"Bearer {LINK_SECRET}"}
            assert self.served.link(case.link, backend).status_code == 204

    def effect(self, case: Case, name: str) -> Effect:
        """Return all that a webhook causes, and not what the link before it may tell of earlier events."""
        self.link(case)
        self.settled()
        before = len(self.requests)
        self.cause(case, name)
        self.served.ahead += case.hold
        deliveries = self.settled()
        ((id,),) = self.served.rows(f"SELECT id FROM event WHERE webhook = ({NEWEST})")
        return Effect(str(UUID(bytes=id)), self.requests[before:], deliveries)

    def settled(self) -> dict[str, tuple[State, str | None, int]]:
        """Return what became of the newest webhook's deliveries, once nothing is pending any more."""
        deadline = time.monotonic() + WITHIN
        while self.served.rows(f"SELECT 1 FROM delivery WHERE state < {State.SENT} LIMIT 1"):
            assert time.monotonic() < deadline, self.served.rows("SELECT destination, state, reason FROM delivery")
            time.sleep(0.005)
        newest = f"SELECT destination, state, reason, attempts FROM delivery WHERE webhook = ({NEWEST})"
        return {name: (State(state), reason, tries) for name, state, reason, tries in self.served.rows(newest)}


@contextmanager
def wired(folder: Path) -> Iterator[Wire]:
    """Run the collectors; the gateway between is yielded, not yet up."""
    requests: list[Sent] = []
    served = Served(folder)
    served.ahead = SUMMER - served.now()
    apps: dict[str, ASGIApp] = {
        "five": fakes.Fake("data", served.now).app(),
        "cdata": fakes.Fake("cdata", served.now).app(),
        "ads": ads_fakes.AdsFake().app(),
        "more": more_fakes.Collectors(WINTER).app(),
        "own": Collector().app(),
    }
    with ExitStack() as stack:
        at = {name: stack.enter_context(running(Recorder(name, app, requests))) for name, app in apps.items()}
        served.environment |= (
            test_golden.SETTINGS
            | test_ads_golden.ADS
            | {
                "GATEWAY_MAPPINGS": str(mappings(folder / "mappings")),
                "SHOP_WEBHOOK_SECRET": SHOP_SECRET,
                "SHOPIFY_WEBHOOK_SECRET": SHOP_SECRET,
                "NEXLY_COLLECT_URL": f"{at['five']}/v1/collect",
                "CDATA_COLLECT_URL": f"{at['cdata']}/v1/collect",
                "CDATA_PAYLOAD": "cdata",
                "DATALYR_HOST": f"{at['five']}/track",
                "DATABUDDY_API_URL": f"{at['five']}/databuddy",
                "LAYERSYNC_API_URL": at["five"],
                "ANALYSE_HOST": at["five"],
                "WEBHOOK_URL": f"{at['own']}/sink",
                "GA4_HOST": at["ads"],
                "META_HOST": at["ads"],
                "TIKTOK_HOST": at["ads"],
                "SEGMENT_WRITE_KEY": more_fakes.KEY,
                "SEGMENT_HOST": f"{at['more']}/segment",
                "POSTHOG_API_KEY": more_fakes.KEY,
                "POSTHOG_HOST": f"{at['more']}/posthog",
                "MIXPANEL_TOKEN": more_fakes.KEY,
                "MIXPANEL_HOST": f"{at['more']}/mixpanel",
                "AMPLITUDE_API_KEY": more_fakes.KEY,
                "AMPLITUDE_HOST": f"{at['more']}/amplitude",
                "PLAUSIBLE_DOMAIN": more_fakes.DOMAIN,
                "PLAUSIBLE_HOST": f"{at['more']}/plausible",
                "UMAMI_WEBSITE_ID": more_fakes.WEBSITE,
                "UMAMI_HOST": f"{at['more']}/umami",
            }
        )
        yield Wire(served, requests)


@pytest.fixture(scope="module")
def effects(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Effect]:
    found: dict[tuple[str, str], Effect] = {}
    with wired(tmp_path_factory.mktemp("wired")) as wire, wire.served.up():
        for (group, name), case in CASES.items():
            wire.served.ahead += max(0, (AUTUMN if group == "more" else SUMMER) - wire.served.now())
            found[group, name] = wire.effect(case, f"{group}-{name}")
    return found


# What it should be

GROUPS = dict.fromkeys(("nexly", "nexly-cdata", "datalyr", "databuddy", "layersync", "analyse", "webhook"), "five")
GROUPS |= dict.fromkeys(test_ads_golden.NAMES, "ads") | dict.fromkeys(test_more_golden.FILES, "more")
"""Which of the cases a golden file is about."""
EVENTS = {"five": test_golden.EVENTS, "ads": test_ads_golden.EVENTS, "more": test_more_golden.EVENTS}
RECORDED: dict[str, Any] = dict(cases("webhook-recorded"))
"""What SDKs sent; they always write their keys in the same order. To other collectors the order means nothing."""
BECOMES: dict[str, Any] = dict(cases("webhook-payments"))
"""What each of these products gets of PAYMENTS: as it went out once, read over against the samples."""
PLACES = {
    "nexly": ("five", "/v1/collect"),
    "nexly-cdata": ("cdata", "/v1/collect"),
    "datalyr": ("five", "/track"),
    "databuddy": ("five", "/databuddy/track"),
    "databuddy/identify": ("five", "/databuddy/identify"),
    "layersync": ("five", "/api/v1/events/browser"),
    "analyse": ("five", "/v1/batch"),
    "webhook": ("own", "/sink"),
    "ga4": ("ads", "/mp/collect"),
    "meta": ("ads", f"/v25.0/{ads_fakes.PIXEL}/events"),
    "tiktok": ("ads", "/open_api/v1.3/event/track/"),
}
PROPERTIES = {
    "nexly": "data",
    "nexly-cdata": "cdata",
    "datalyr": "properties",
    "databuddy": "0.properties",
    "layersync": "custom_data",
    "analyse": "events.0.properties",
    "webhook": "data.properties",
    "ga4": "events.0.params",
    "segment": "batch.0.properties",
    "posthog": "batch.0.properties",
    "mixpanel": "0.properties",
    "amplitude": "events.0.event_properties",
    "umami": "payload.data",
}
KEYS = {
    "wk_test": more_fakes.KEY,
    "phc_test": more_fakes.KEY,
    "mp_test": more_fakes.KEY,
    "amp_test": more_fakes.KEY,
    "Basic d2tfdGVzdDo=": more_fakes.BASIC,
    "Basic bXBfdGVzdDo=": more_fakes.BASIC,
    "pk_test": fakes.LAYERSYNC_SECRET,
}
"""The golden files' keys, and those that the collectors here know."""


class Differs(Struct, frozen=True):
    """Where a request is not as the golden one: in these (`file/name`, a recording with `recorded/` before it), at this
    path (`@` is where the file's properties are). `what` is there instead, or makes it of what is; `why` it must.
    """

    where: tuple[str, ...]
    path: str
    what: Any
    why: str


ABSENT = object()
FIVE = ("nexly/purchase", "nexly-cdata/purchase", "datalyr/purchase", "databuddy/purchase", "layersync/purchase")
RECORDED_FIVE = tuple(f"recorded/{each}" for each in FIVE)
MORE = tuple(f"{file}/purchase" for file in test_more_golden.FILES if file != "plausible")
PASSED_ON = [*FIVE[:-1], *RECORDED_FIVE[:-1], *MORE]  # LayerSync has items of its own form
WITH_ITEMS = (*PASSED_ON, "webhook/purchase", "ga4/purchase", "analyse/purchase", "recorded/analyse/purchase")

ALWAYS = "Stripe tells it of every session, and the mapping passes it on"
COUNTED = "Stripe tells a name and a number of every item"
STANDARD = "analyse.net's own name and properties for a purchase"
CLEAR = "nobody's name and email leave the gateway in clear"
RANDOM = "the SDK makes ids at random; ours is made from the event, the same on every try"
OCCURRED = "the SDK takes the time of the call; ours is when it happened"
SENDER = "the golden event names no real webhook"
OWN = "our User-Agent is our own: the gateway is none of these SDKs"
SHOP_S = "no payment webhook says this: it came from the shop's own backend"

EXCEPTIONS = (
    # First, because the paths below are those of an array.
    Differs(
        ("recorded/databuddy/purchase", "recorded/databuddy/subscription_created", "recorded/databuddy/invoice_paid"),
        "",
        lambda body: [body],
        "Databuddy takes one event as an array of one as well; the SDK does so for several",
    ),
    Differs((*FIVE, *RECORDED_FIVE, "webhook/purchase"), "@.total", 129.5, ALWAYS),
    Differs((*FIVE, *RECORDED_FIVE, "webhook/purchase"), "@.payment_type", "one_time", ALWAYS),
    Differs((*FIVE, "webhook/purchase"), "@.checkout_id", "cs_five", ALWAYS),
    Differs(RECORDED_FIVE, "@.checkout_id", "cs_recorded", ALWAYS),
    Differs(MORE, "@.checkout_id", "cs_more", ALWAYS),
    Differs(("ga4/purchase",), "@.checkout_id", "cs_ads", ALWAYS),
    Differs(("analyse/purchase", "recorded/analyse/purchase"), "@.total", 129.5, ALWAYS),
    Differs(
        ("analyse/purchase",), "@.checkout_id", "cs_five", "the session's id is the better one; the order's is left"
    ),
    Differs(WITH_ITEMS, "@.items.1.name", "Gadget", COUNTED),
    Differs(WITH_ITEMS, "@.items.1.quantity", 1, COUNTED),
    Differs(("segment/purchase",), "@.products.1.name", "Gadget", COUNTED),
    Differs(("segment/purchase",), "@.products.1.quantity", 1, COUNTED),
    Differs(("ga4/purchase",), "@.items.1.item_name", "Gadget", COUNTED),
    Differs(("meta/purchase",), "data.0.custom_data.contents.1.quantity", 1, COUNTED),
    Differs(("tiktok/purchase",), "data.0.properties.contents.1.content_name", "Gadget", COUNTED),
    Differs(("tiktok/purchase",), "data.0.properties.contents.1.quantity", 1, COUNTED),
    Differs(("ga4/refund",), "timestamp_micros", 1751373297000000, "Stripe tells whole seconds"),
    Differs(("plausible/page",), "props.source", "shop", SHOP_S),
    Differs(("webhook/invoice_paid", "webhook/page"), "data.source.name", "shop", SHOP_S),
    Differs(("webhook/purchase",), "data.source.webhook_id", "evt_five", SENDER),
    Differs(("webhook/purchase",), "data.source.type", "checkout.session.completed", SENDER),
    Differs(("webhook/purchase",), "data.source.rule", "checkout paid", SENDER),
    Differs(("webhook/invoice_paid",), "data.source.webhook_id", "five-invoice_paid", SENDER),
    Differs(("webhook/invoice_paid",), "data.source.type", "invoice.paid", SENDER),
    Differs(("webhook/invoice_paid",), "data.source.rule", "invoice", SENDER),
    Differs(("webhook/page",), "data.source.webhook_id", "five-page", SENDER),
    Differs(("webhook/page",), "data.source.type", "page.landing", SENDER),
    Differs(("webhook/page",), "data.source.rule", "landing", SENDER),
    Differs(("webhook/purchase", "webhook/page"), "data.linked_by", "user", "what linked the visitor"),
    Differs(("webhook/invoice_paid",), "data.linked_by", "shop_visit", "what linked the visitor"),
    *(
        Differs(("webhook/purchase",), f"data.identity.{name}", hashed, "a session tells more than an email")
        for name, hashed in test_golden.EVENTS["purchase"].identity["layersync"].items()
        if name != "email"
    ),
    # The SDKs' recordings
    Differs(tuple(f"recorded/{file}/*" for file in RECORDED), "headers.user-agent", USER_AGENT, OWN),
    Differs(("recorded/datalyr/identify", "recorded/analyse/identify"), "@.email", ABSENT, CLEAR),
    Differs(("recorded/datalyr/identify", "recorded/analyse/identify"), "@.name", ABSENT, CLEAR),
    Differs(("recorded/databuddy/identify",), "traits.email", ABSENT, CLEAR),
    Differs(("recorded/databuddy/identify",), "traits.name", ABSENT, CLEAR),
    Differs(("recorded/datalyr/subscription_created",), "anonymousId", "MINTED", RANDOM),
    Differs(("recorded/datalyr/subscription_created",), "@.anonymous_id", "MINTED", RANDOM),
    Differs(("recorded/datalyr/identify",), "eventId", "evt_4", RANDOM),
    Differs(("recorded/datalyr/page",), "eventId", "evt_5", RANDOM),
    Differs(("recorded/datalyr/group",), "eventId", "evt_6", RANDOM),
    Differs(("recorded/datalyr/identify",), "timestamp", "2025-07-01T12:34:59.000Z", OCCURRED),
    Differs(("recorded/datalyr/page",), "timestamp", "2025-07-01T12:35:00.000Z", OCCURRED),
    Differs(("recorded/datalyr/group",), "timestamp", "2025-07-01T12:35:01.000Z", OCCURRED),
    Differs(("recorded/analyse/identify",), "events.0.timestamp", "2025-07-01T12:34:59.000Z", OCCURRED),
    *(
        Differs((f"recorded/layersync/{name}",), path, what, why)
        for name, id, at in (
            ("purchase", "pur_a603f55b50c54570", 1751373296000),
            ("subscription_created", "evt_e7a53ae46b784f8f", 1751373297123),
            ("invoice_paid", "evt_701c5b0ac75b357f", 1751373298000),
        )
        for path, what, why in (
            ("event_id", id, RANDOM),
            ("event_time", at // 1000, OCCURRED),
            ("client_meta.queued_at_ms", at, OCCURRED),
        )
    ),
    Differs(("recorded/layersync/purchase",), "event_source_url", WHERE["url"], "the recording had no page"),
    Differs(("recorded/databuddy/purchase",), "0.eventId", "evt_1Nabc", "by it Databuddy knows a repeated event"),
    Differs(
        ("recorded/databuddy/subscription_created",), "0.eventId", "evt_2", "by it Databuddy knows a repeated event"
    ),
    Differs(("recorded/databuddy/invoice_paid",), "0.eventId", "evt_3", "by it Databuddy knows a repeated event"),
    Differs(("recorded/analyse/purchase",), "events.0.event_name", "checkout_finished", STANDARD),
    Differs(("recorded/analyse/purchase",), "@.payment_type", "one_time", STANDARD),
    Differs(("recorded/analyse/purchase",), "@.amount", 12950, STANDARD),
    Differs(("recorded/analyse/purchase",), "@.checkout_id", "cs_recorded", STANDARD),
    Differs(("recorded/analyse/purchase",), "@.items_count", 2, STANDARD),
)


def excepted(request: dict[str, Any], file: str, case: str) -> dict[str, Any]:
    """Return a golden request with all that is named of it in EXCEPTIONS. Each must make a difference."""
    changed = deepcopy(request)
    for each in EXCEPTIONS:
        if any(fnmatchcase(case, pattern) for pattern in each.where):
            path = each.path.replace("@", PROPERTIES.get(file, ""))
            *parents, last = path.split(".") if path.startswith("headers.") else f"body.{path}".rstrip(".").split(".")
            inner: Any = changed
            for key in parents:
                inner = inner[int(key) if isinstance(inner, list) else key]
            before = inner.get(last, ABSENT)
            after = each.what(before) if callable(each.what) else each.what
            assert before != after, f"{path} is no difference: {each.why}"
            inner[last] = after
            if after is ABSENT:
                del inner[last]
    return changed


def requested(case: str, file: str, name: str, golden: dict[str, Any], id: str) -> Any:
    """Return the request that should be there: a golden one, but for its exceptions, its event's id and the keys."""
    at = urlsplit(golden["url"]) if "url" in golden else None
    server, path = ("more", f"/{file}{at.path}") if at else PLACES.get(f"{file}/{name}") or PLACES[file]
    request = {
        "server": server,
        "method": "POST",
        "path": ("/databuddy" if file == "databuddy" else "") + golden["path"] if "path" in golden else path,
        "headers": {header.lower(): value for header, value in golden["headers"].items()},
        "body": golden["body"],
    }
    if at is not None:
        request["query"] = dict(parse_qsl(at.query))
    told = EVENTS[GROUPS[file]][name].id
    text = msgspec.json.encode(excepted(request, file, case)).decode()
    for before, after in {told: id, **KEYS}.items():
        text = text.replace(f'"{before}"', f'"{after}"')
    return msgspec.json.decode(text.replace(f"_{short(told)}", f"_{short(id)}"))


def short(id: str) -> str:
    """Return an id as LayerSync's event ids have it."""
    return hashlib.sha256(id.encode()).hexdigest()[:16]


def got(wanted: dict[str, Any], requests: list[Sent]) -> Any:
    """Return the one request that went to that place, as far as the golden one tells of it."""
    (sent,) = [each for each in requests if (each.server, each.path) == (wanted["server"], wanted["path"])]
    # A visitor that was made up is named after its event; the golden files say only that there is one.
    body = re.sub(rb"anon_[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f-]{21}", b"MINTED", sent.body)
    document = msgspec.to_builtins(sent) | {"body": msgspec.json.decode(body)}
    document["headers"] = {header: sent.headers.get(header) for header in wanted["headers"]}
    return {key: document[key] for key in wanted}


def in_order(body: object, file: str) -> list[str]:
    """Return where each value stands, but for the properties, which are the caller's in any order."""
    properties = re.compile(rf"\.{PROPERTIES[file]}(\.|$)".replace(".0.", r"\.\d+\."))
    return [path for path in paths(body) if not properties.match(path)]


ON_DISK = [
    (path.stem, name)
    for path in sorted(GOLDEN.glob("*.json"))
    if path.stem not in {"webhook-recorded", "webhook-payments"}
    for name, _ in cases(path.stem)
]
SINGLE = [(file, name) for file, requests in RECORDED.items() for name in requests if name != "batch"]


@pytest.mark.parametrize(("file", "name"), ON_DISK)
def test_a_webhook_causes_the_golden_request(effects: dict[tuple[str, str], Effect], file: str, name: str) -> None:
    assert file in GROUPS, f"say in GROUPS which webhooks {file}.json is about"
    effect = effects[GROUPS[file], name]
    golden: Any = dict(cases(file))[name]
    wanted = requested(f"{file}/{name}", file, name, golden, effect.id)
    sent = got(wanted, effect.requests)
    assert sent == wanted
    if file in RECORDED:
        assert in_order(sent["body"], file) == in_order(wanted["body"], file)


@pytest.mark.parametrize(("file", "name"), SINGLE)
def test_a_webhook_causes_the_request_that_the_sdk_was_recorded_with(
    effects: dict[tuple[str, str], Effect], file: str, name: str
) -> None:
    effect = effects.get(("recorded", name)) or effects["five", name]
    wanted = requested(f"recorded/{file}/{name}", file, name, RECORDED[file][name], effect.id)
    sent = got(wanted, effect.requests)
    assert sent == wanted
    assert in_order(sent["body"], file) == in_order(wanted["body"], file)


def test_no_webhook_and_no_exception_is_about_nothing() -> None:
    covered = {(GROUPS[file], name) for file, name in ON_DISK} | {("recorded", "purchase")}
    assert covered == CASES.keys()
    assert {payment: set(bodies) for payment, bodies in BECOMES.items()} == {
        payment: set(RECORDED) for payment in PAYMENTS
    }
    known = [f"{file}/{name}" for file, name in ON_DISK] + [f"recorded/{file}/{name}" for file, name in SINGLE]
    patterns = {pattern for each in EXCEPTIONS for pattern in each.where}
    assert not [pattern for pattern in patterns if not any(fnmatchcase(case, pattern) for case in known)]


BATCHED = ("purchase", "subscription_created", "invoice_paid", "identify", "page")


class Later(Struct, frozen=True):
    """What a gateway sends that finds events in its store as it starts, their ids, and what payments cause then."""

    ids: dict[str, str]
    together: list[Sent]
    payments: dict[str, Effect]


@pytest.fixture(scope="module")
def later(tmp_path_factory: pytest.TempPathFactory) -> Later:
    with wired(tmp_path_factory.mktemp("later")) as wire:
        with wire.served.up(deliver=False):
            for name in BATCHED:
                case = CASES.get(("recorded", name)) or CASES["five", name]
                wire.link(case)
                wire.cause(case, f"batch-{name}")
        with wire.served.up():
            wire.settled()
            rows = wire.served.rows("SELECT id FROM event ORDER BY webhook")
            ids = {name: str(UUID(bytes=id)) for name, (id,) in zip(BATCHED, rows, strict=True)}
            together = list(wire.requests)
            payments: dict[str, Effect] = {}
            for name, (at, case) in PAYMENTS.items():
                wire.served.ahead += at * 1000 - wire.served.now()
                payments[name] = wire.effect(case, name)
    return Later(ids, together, payments)


@pytest.mark.parametrize("file", [file for file, requests in RECORDED.items() if "batch" in requests])
def test_events_that_are_due_together_go_in_the_batch_that_the_sdk_was_recorded_with(later: Later, file: str) -> None:
    golden = RECORDED[file]["batch"]
    envelope = golden["body"] if isinstance(golden["body"], dict) else None
    together: list[Any] = []
    for name, each in zip(BATCHED, envelope["events"] if envelope else golden["body"], strict=False):
        alone = golden | {"body": {**envelope, "events": [each]} if envelope else each}
        wanted = requested(f"recorded/{file}/{name}", file, name, alone, later.ids[name])
        together += wanted["body"]["events"] if envelope else wanted["body"]
    wanted["body"] = {**envelope, "events": together} if envelope else together
    sent = got(wanted, later.together)
    assert sent == wanted
    assert in_order(sent["body"], file) == in_order(wanted["body"], file)


def test_every_collector_takes_it_at_the_first_try_or_is_not_asked(
    effects: dict[tuple[str, str], Effect], later: Later
) -> None:
    skips = {"not_routed", "no_person", "no_consent"}
    for effect in (*effects.values(), *later.payments.values()):
        for destination, (state, reason, attempts) in effect.deliveries.items():
            taken = state == State.SENT and attempts == 1
            assert taken or (state == State.SKIPPED and reason in skips and attempts == 0), (destination, state, reason)
        assert len(effect.requests) == [state for state, *_ in effect.deliveries.values()].count(State.SENT)


@pytest.mark.parametrize(("payment", "file"), [(payment, file) for payment in PAYMENTS for file in RECORDED])
def test_a_payment_as_its_provider_reports_it_is_told_to_each_product(later: Later, payment: str, file: str) -> None:
    server, path = PLACES[file]
    wanted = {"server": server, "method": "POST", "path": path, "headers": {}, "body": BECOMES[payment][file]}
    sent = got(wanted, later.payments[payment].requests)
    assert sent == wanted
    assert in_order(sent["body"], file) == in_order(wanted["body"], file)
