"""What a provider's own list has and the gateway missed comes in, once, however often and from wherever it is read."""

import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.cli.history import reconcile as reconcile_command
from gateway.dry_run import events_of, shown
from gateway.mappings import bundled, sample
from gateway.reconcile import Courtesy, Found, TryLater, Unreconcilable
from gateway.sealing import Secret
from gateway.server import running
from gateway.shopify_orders import ShopifyOrders, payload
from gateway.stripe_events import StripeEvents
from tests.promises.past import Gateway, loaded
from tests.promises.provider_fakes import KEY, SHOP, TOKEN, FakeShopify, FakeStripe, graphql_order, iso
from tests.promises.served import document_of, encoded, payment
from tests.stores.servers import Server

DAY = 86_400
NOW = int(time.time())


def event(number: int, ago: int, **changed: Any) -> Any:
    """Return Stripe's event of a payment of its own, made that many seconds ago."""
    return json.loads(payment(number)) | {"created": NOW - ago} | changed


SETTINGS = {"STRIPE_API_KEY": KEY, "SHOPIFY_SHOP": SHOP, "SHOPIFY_ACCESS_TOKEN": TOKEN}


def told(gateway: Gateway, *words: str) -> str:
    """Return the last line of what `reconcile` says, once it went well."""
    result = gateway.run(reconcile_command, *words)
    assert result.exit_code == 0, result.output
    return str(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def redis() -> Iterator[Server]:
    server = Server().start()
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "redis"])
def gateway(request: pytest.FixtureRequest, tmp_path: Path) -> Gateway:
    if request.param == "sqlite":
        return Gateway(tmp_path, **SETTINGS)
    server: Server = request.getfixturevalue("redis")
    with server.client() as client:
        client.flushall()
    return Gateway(tmp_path, **SETTINGS, GATEWAY_STORE=server.url, GATEWAY_SECRET_KEY="A" * 43 + "=")


@pytest.fixture
def embedded(tmp_path: Path) -> Gateway:
    return Gateway(tmp_path, **SETTINGS)


@contextmanager
def listing(fake: FakeStripe | FakeShopify, gateway: Gateway) -> Iterator[None]:
    """Let the gateway ask the fake."""
    with running(fake.app()) as url:
        gateway.environment["STRIPE_API_BASE" if isinstance(fake, FakeStripe) else "SHOPIFY_API_BASE"] = url
        yield


# Stripe


def test_what_was_missed_comes_once_however_often_the_list_is_read(gateway: Gateway) -> None:
    fake = FakeStripe(event(0, 3 * DAY), event(1, 2 * DAY), event(2, 60))
    gateway.take(encoded(fake.events[1]))
    with listing(fake, gateway):
        assert told(gateway, "stripe") == "2 missed and taken in, 1 known before"
        assert told(gateway, "stripe") == "0 missed and taken in, 3 known before"
    assert gateway.ids() == ["evt_1", "evt_0", "evt_2"]
    assert gateway.purchases() == ["due", "due", "due"]


def test_webhook_that_arrives_meanwhile_or_afterwards_is_not_doubled(embedded: Gateway) -> None:
    served = embedded.served
    fake = FakeStripe(event(0, 3600), event(1, 1800))
    arrived: list[int] = []
    with served.up(deliver=False), listing(fake, embedded):
        fake.before_page = lambda: arrived.append(served.post(encoded(fake.events[0])).status_code)
        assert told(embedded, "stripe") == "1 missed and taken in, 1 known before"
        assert served.post(encoded(fake.events[1])).status_code == 200
    assert set(arrived) == {200}
    assert embedded.ids() == ["evt_0", "evt_1"]
    assert embedded.purchases() == ["due", "due"]


def test_webhooks_of_one_payment_count_once_though_only_one_of_them_was_missed(embedded: Gateway) -> None:
    invoice, paid = document_of("invoice.paid"), document_of("checkout.session.completed.subscription")
    for each in (invoice, paid):
        each["created"] = NOW - 3600
    assert paid["data"]["object"]["invoice"] == invoice["data"]["object"]["id"]
    embedded.take(encoded(paid))
    with listing(FakeStripe(invoice, paid), embedded):
        assert told(embedded, "stripe") == "1 missed and taken in, 1 known before"
    assert embedded.purchases() == ["due", "duplicate_payment"]


def test_what_was_interrupted_goes_on_from_the_time_that_it_tells(embedded: Gateway) -> None:
    fake = FakeStripe(*[event(number, DAY - number * 60) for number in range(250)])

    def fail_next() -> None:
        if "ending_before" in fake.requests[-1][0]:
            fake.answers, fake.before_page = [(400, {})], lambda: None

    fake.before_page = fail_next
    with listing(fake, embedded):
        first = embedded.run(reconcile_command, "stripe", "--since", "30h")
        assert (first.exit_code, first.stdout) == (1, "")
        assert "Stripe answers 400" in first.stderr
        since = first.stderr.split("--since ")[1].strip()
        assert embedded.ids() == [f"evt_{number}" for number in range(len(embedded.ids()))]
        assert 100 <= len(embedded.ids()) < 250
        left = 250 - len(embedded.ids())
        assert told(embedded, "stripe", "--since", since) == f"{left} missed and taken in, 1 known before"
    assert embedded.ids() == [f"evt_{number}" for number in range(250)]


def test_dry_run_compares_by_type_and_currency_and_takes_nothing_in(gateway: Gateway) -> None:
    fake = FakeStripe(event(0, 3600), event(1, 3000), event(2, 60, type="payment_method.attached"))
    refund = document_of("refund.created") | {"created": NOW - 90}
    fake.events.append(refund)
    gateway.take(encoded(fake.events[0]))
    with listing(fake, gateway):
        result = gateway.run(reconcile_command, "stripe", "--dry-run")
    _, *rows = [line.split("\t") for line in result.stdout.splitlines() if "\t" in line]
    assert rows[0] == ["stripe", "checkout.session.completed", "2: 259.00 USD", "1: 129.50 USD", "1: 129.50 USD"]
    assert rows[1][:2] == ["stripe", "refund.created"]
    assert rows[1][3] == rows[1][2].replace("1: ", "0: ").split(":")[0] + ": 0 " + rows[1][2][-3:]
    assert len(rows) == 2
    assert result.stdout.endswith("1 of 3 are in the gateway, 2 are missing\n")
    assert gateway.ids() == ["evt_0"]


def test_connected_account_is_part_of_the_webhook_whether_the_list_says_it_or_not(embedded: Gateway) -> None:
    embedded.take(encoded(event(0, 3600, account="acct_1")))
    fake = FakeStripe(event(0, 3600), event(1, 1800, account="acct_1"))
    with listing(fake, embedded):
        assert told(embedded, "stripe", "--account", "acct_1") == "1 missed and taken in, 1 known before"
    assert {headers["stripe-account"] for _, headers in fake.requests} == {"acct_1"}
    assert [each["account"] for each in embedded.listed("webhooks")] == ["acct_1", "acct_1"]


def test_undelivered_asks_only_for_what_some_endpoint_has_not_taken(embedded: Gateway) -> None:
    fake = FakeStripe(event(0, 3600), event(1, 1800), event(2, 60))
    fake.undelivered = {"evt_1"}
    with listing(fake, embedded):
        told(embedded, "stripe", "--undelivered")
    assert embedded.ids() == ["evt_1"]


def test_type_that_no_rule_mentions_and_what_is_older_is_left_out(embedded: Gateway) -> None:
    fake = FakeStripe(event(0, 8 * DAY), event(1, 60, type="payment_method.attached"))
    with listing(fake, embedded):
        assert told(embedded, "stripe") == "0 missed and taken in, 0 known before"


@pytest.mark.parametrize(
    ("environment", "words", "code", "why"),
    [
        ({"STRIPE_API_KEY": ""}, [], 2, "error: STRIPE_API_KEY is not set: make a restricted key"),
        (
            {"STRIPE_API_KEY": "rk_test_wrong"},
            [],
            1,
            "Stripe refuses the key in STRIPE_API_KEY (401): make a restricted",
        ),
        ({}, ["--since", "31d"], 2, "error: --since 31d: write a time of the last 30 days"),
        ({}, ["--since", "soon"], 2, "error: --since: "),
        ({"STRIPE_API_BASE": "http://collector.example"}, [], 2, "error: STRIPE_API_BASE: write an address with https"),
    ],
)
def test_what_is_wrong_is_said_with_the_name_of_the_setting(
    embedded: Gateway, environment: dict[str, str], words: list[str], code: int, why: str
) -> None:
    with listing(FakeStripe(), embedded):
        embedded.environment.update(environment)
        result = embedded.run(reconcile_command, "stripe", *words)
    assert result.exit_code == code
    assert why in result.stderr
    assert "rk_test_wrong" not in result.output


def test_key_that_may_not_read_events_is_told_apart(embedded: Gateway) -> None:
    fake = FakeStripe()
    fake.answers = [(403, {})]
    with listing(fake, embedded):
        result = embedded.run(reconcile_command, "stripe")
    assert "STRIPE_API_KEY may not read this (403): give it read access to events" in result.stderr


def test_what_cannot_be_read_is_counted_and_keeps_nothing_back(embedded: Gateway) -> None:
    with listing(FakeStripe(event(0, 3600), event(1, 1800, type="x" * 200), event(2, 60)), embedded):
        result = embedded.run(reconcile_command, "stripe")
    assert (result.exit_code, result.stdout) == (1, "2 missed and taken in, 0 known before\n")
    assert result.stderr == "error: 1 cannot be read: check the `webhook:` block of the source's mapping\n"


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = NOW * 1000
        self.slept: list[float] = []

    def __call__(self) -> int:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += int(seconds * 1000)

    def courtesy(self, per_second: float = 10) -> Courtesy:
        return Courtesy(per_second, self, self.sleep, lambda _, longest: longest)


async def read(webhooks: AsyncIterator[Found]) -> list[Found]:
    return [each async for each in webhooks]


async def stripe_events(fake: FakeStripe, clock: Clock, since: int = 7 * DAY) -> list[str]:
    with running(fake.app()) as url:
        provider = StripeEvents(Secret(KEY), clock.courtesy(), clock, base=url)
        try:
            found = await read(provider.webhooks(clock.now - since * 1000, clock.now))
        finally:
            await provider.close()
    return [json.loads(each.body)["id"] for each in found]


async def test_every_page_is_read_oldest_first_also_of_one_second() -> None:
    fake = FakeStripe(*[event(number, DAY - number // 130) for number in range(260)])
    ids = [each["id"] for each in sorted(fake.events, key=lambda each: (each["created"], each["id"]))]
    assert await stripe_events(fake, Clock()) == ids


async def test_event_keeps_every_byte_that_stripe_wrote() -> None:
    fake = FakeStripe(event(0, 60) | {"large": 12345678901234567890123, "exact": 0.1, "text": "é\u2028"})
    clock = Clock()
    with running(fake.app()) as url:
        provider = StripeEvents(Secret(KEY), clock.courtesy(), clock, base=url)
        (found,) = await read(provider.webhooks(clock.now - 3_600_000, clock.now))
        await provider.close()
    assert json.loads(found.body) == fake.events[0]


async def test_pause_that_stripe_asks_for_is_kept() -> None:
    fake, clock = FakeStripe(event(0, 60)), Clock()
    fake.answers = [(429, {"Retry-After": "7"}), (503, {}), (429, {"Retry-After": "11"})]
    assert await stripe_events(fake, clock) == ["evt_0"]
    assert [pause for pause in clock.slept if pause >= 1] == [7, 4, 11]


async def test_stripe_that_stays_busy_is_given_up_with_what_to_do() -> None:
    fake, clock = FakeStripe(event(0, 60)), Clock()
    fake.answers = [(429, {"Retry-After": "1"})] * 8
    with pytest.raises(
        Unreconcilable, match=r"^Stripe asks for fewer requests \(429\), 8 times in a row: run it again"
    ):
        await stripe_events(fake, clock)


async def test_requests_are_at_most_so_many_a_second() -> None:
    clock, times = Clock(), list[int]()
    courtesy = clock.courtesy(per_second=10)

    async def request() -> None:
        times.append(clock.now)

    for _ in range(50):
        await courtesy.ask(request)
    assert max(sum(0 <= each - first < 1000 for each in times) for first in times) <= 20
    assert times[-1] - times[0] >= 3900


async def test_pauses_double_while_a_provider_gives_none() -> None:
    clock = Clock()

    async def request() -> None:
        raise TryLater("away")

    with pytest.raises(Unreconcilable):
        await clock.courtesy().ask(request)
    assert [pause for pause in clock.slept if pause >= 1] == [2, 4, 8, 16, 32, 64, 128]


# Shopify


def order(number: int = 0, **changed: Any) -> Any:
    """Return an order of its own, in the shape of webhooks."""
    body = sample(bundled(), "shopify", "orders.paid")
    assert body is not None
    return json.loads(body) | {"id": 5_000_000_000_000 + number} | changed


def webhook_headers(number: int = 0, topic: str = "orders/paid") -> dict[str, str]:
    return {"X-Shopify-Topic": topic, "X-Shopify-Shop-Domain": SHOP, "X-Shopify-Event-Id": f"event-{number}-{topic}"}


def test_paid_orders_that_were_missed_come_once(gateway: Gateway) -> None:
    gateway.take(encoded(order(0)), "shopify", webhook_headers(0))
    with listing(FakeShopify(graphql_order(order(0)), graphql_order(order(1))), gateway):
        assert told(gateway, "shopify") == "1 missed and taken in, 1 known before"
        assert told(gateway, "shopify") == "0 missed and taken in, 2 known before"
    gateway.take(encoded(order(1)), "shopify", webhook_headers(1))
    assert gateway.purchases() == ["due", "due", "duplicate_payment"]


def test_order_that_only_its_creation_reported_unpaid_is_missed(embedded: Gateway) -> None:
    unpaid = order(0, financial_status="pending")
    embedded.take(encoded(unpaid), "shopify", webhook_headers(0, "orders/create"))
    with listing(FakeShopify(graphql_order(order(0))), embedded):
        assert told(embedded, "shopify") == "1 missed and taken in, 0 known before"
    assert embedded.purchases() == ["due"]


def test_order_paid_at_its_creation_is_not_missed(embedded: Gateway) -> None:
    embedded.take(encoded(order(0)), "shopify", webhook_headers(0, "orders/create"))
    with listing(FakeShopify(graphql_order(order(0))), embedded):
        assert told(embedded, "shopify") == "0 missed and taken in, 1 known before"


def events(document: object) -> list[Any]:
    headers = {name.lower(): value for name, value in webhook_headers().items()}
    found = events_of(loaded(), "shopify", headers, msgspec.json.encode(document))
    return [shown(each.event) for each in found.emissions]


def test_order_makes_the_event_that_its_webhook_makes() -> None:
    (expected,), (found,) = events(order()), events(payload(graphql_order(order())))
    expected["subjects"].remove("shopify_checkout")  # GraphQL does not tell it
    assert found == expected


def test_order_refunded_or_edited_since_makes_the_event_of_the_moment_when_it_was_paid() -> None:
    whole, since = graphql_order(order()), graphql_order(order())
    since["currentTotalPriceSet"]["shopMoney"] = {"amount": "50.0", "currencyCode": "EUR"}
    since["currentTotalTaxSet"]["shopMoney"] = {"amount": "7.0", "currencyCode": "EUR"}
    since["totalRefundedSet"]["shopMoney"] = {"amount": "49.86", "currencyCode": "EUR"}
    since["displayFinancialStatus"] = "PARTIALLY_REFUNDED"
    assert events(payload(since)) == events(payload(whole))


def test_edit_that_was_paid_has_the_key_that_its_webhook_has() -> None:
    edited = order(current_total_price="110.00", current_total_tax="16.70")
    expected, found = events(edited), events(payload(graphql_order(edited)))
    assert [each["id"] for each in found] == [each["id"] for each in expected]
    assert len(found) == 2


def test_order_paid_long_ago_is_no_news_when_it_changes(embedded: Gateway) -> None:
    old, unpaid = graphql_order(order(0)), graphql_order(order(1))
    old["transactions"][0]["processedAt"] = iso(100 * DAY)
    unpaid["displayFinancialStatus"] = "PENDING"
    with listing(FakeShopify(old, unpaid), embedded):
        assert told(embedded, "shopify", "--since", "30d") == "0 missed and taken in, 0 known before"


def test_every_page_of_orders_is_read_also_while_they_change(embedded: Gateway) -> None:
    fake = FakeShopify(*[graphql_order(order(number), 7200 - number) for number in range(60)])
    pages = iter([None, fake.orders[40]])

    def change() -> None:
        if changed := next(pages, None):
            changed["updatedAt"] = iso(0)

    fake.before_page = change
    with listing(fake, embedded):
        result = embedded.run(reconcile_command, "shopify", "--dry-run")
    assert result.stdout.endswith("0 of 60 are in the gateway, 60 are missing\n")
    assert "60: 5991.60 EUR" in result.stdout


async def shopify_orders(fake: FakeShopify, clock: Clock, token: str = TOKEN) -> list[Found]:
    with running(fake.app()) as url:
        provider = ShopifyOrders(SHOP, Secret(token), clock.courtesy(), clock, base=url)
        try:
            return await read(provider.webhooks(clock.now - 7 * DAY * 1000, clock.now))
        finally:
            await provider.close()


async def test_bucket_that_is_empty_is_waited_for() -> None:
    status = {"maximumAvailable": 2000.0, "currentlyAvailable": 100.0, "restoreRate": 100.0}
    cost = {"requestedQueryCost": 600, "actualQueryCost": None, "throttleStatus": status}
    throttled = {
        "errors": [{"message": "Throttled", "extensions": {"code": "THROTTLED"}}],
        "extensions": {"cost": cost},
    }
    fake, clock = FakeShopify(graphql_order(order())), Clock()
    fake.answers = [(200, {}, throttled), (429, {"Retry-After": "3.0"}, {}), (429, {"Retry-After": "9"}, {})]
    assert len(await shopify_orders(fake, clock)) == 1
    assert [pause for pause in clock.slept if pause >= 1] == [5, 4, 9]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ((403, {}, {}), "Shopify refuses the token in SHOPIFY_ACCESS_TOKEN (403): set the Admin API access token"),
        ((404, {}, {}), "no shop demo-shop.myshopify.com, or no API 2026-07 (404): check SHOPIFY_SHOP"),
        ((302, {"Location": "http://169.254.169.254/"}, {}), "Shopify answers 302: check SHOPIFY_SHOP"),
        ((200, {}, {"errors": [{"message": "Access denied for orders field."}]}), "Access denied for orders field."),
        ((200, {}, {"data": {"shop": None, "orders": None}}), "has not the shape of its orders"),
        ((200, {}, {"data": {"shop": "x" * 9_000_000}}), "Shopify's answer is too long"),
    ],
)
async def test_answer_that_is_none_is_told_with_what_to_do(answer: Any, why: str) -> None:
    fake = FakeShopify()
    fake.answers = [answer]
    with pytest.raises(Unreconcilable) as raised:
        await shopify_orders(fake, Clock())
    assert why in str(raised.value)


@pytest.mark.parametrize("shop", ["evil.example", "evil.example/x.myshopify.com", "a@b.myshopify.com", "", "A.B"])
def test_token_goes_to_a_shop_of_shopifys_only(embedded: Gateway, shop: str) -> None:
    result = embedded.run(reconcile_command, "shopify", SHOPIFY_SHOP=shop)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "error: SHOPIFY_SHOP" in result.stderr
