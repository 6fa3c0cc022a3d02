"""What a payload lacks is fetched after the answer, once, from where the mapping says; and nothing is lost over it."""

import asyncio
import os
import signal
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from msgspec import msgpack, structs

from gateway.archive.accuracy import accounts
from gateway.archive.shapes import Accuracy
from gateway.cli import main
from gateway.destinations import iso
from gateway.documents import MappingErrors
from gateway.intake import kept_request
from gateway.mapping_tests import load_tests, run_test
from gateway.mappings import bundled, load_mappings
from gateway.sealing import Sealer
from gateway.server import running
from gateway.settings import load_settings
from gateway.store.opening import open_store
from tests.promises.collector import Collector
from tests.promises.past import Gateway
from tests.promises.test_killed import start
from tests.promises.test_log_lines import serving
from tests.stores.servers import Server, eventually

API_KEY = "sk_of_the_tests_that_nobody_sees"
SECRET = "shop_secret_of_the_tests"
SHOP = """
source: shop
verify: {scheme: token, header: X-Token, secrets: "${SHOP_SECRET}"}
webhook: {id: id, type: type}
subjects: {user: user, email: fetched('order').email}
fetch:
  order:
    on: order.*
    when: "!plain"
    url: PROVIDER/v1/orders/{id}?expand=lines
    with: {id: order}
    headers: {Authorization: "Bearer ${SHOP_API_KEY}"}
    enabled_by: [SHOP_API_KEY]
rules:
  - on: order.paid
    emit: purchase
    once: order
    properties: {order_id: order, items: "fetched('order').lines[].{item_id: sku}"}
"""
ORDER = {"email": "ada@example.com", "lines": [{"sku": "tea"}, {"sku": "pot"}]}
ITEMS = [{"item_id": "tea"}, {"item_id": "pot"}]
Answer = tuple[int, dict[str, str], bytes]


class Provider:
    """An API that gives `ORDER`, or what `answers_to` has for the id; but first `answers`, whatever is asked.

    It is silent while `open` is not set.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.keys: list[str] = []
        self.answers: deque[Answer] = deque()
        self.answers_to: dict[str, Answer] = {}
        self.open = threading.Event()
        self.open.set()

    def answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"{}") -> None:
        self.answers.append((status, headers or {}, body))

    async def __call__(
        self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        if scope["type"] == "lifespan":
            while True:
                told = (await receive())["type"]
                await send({"type": f"{told}.complete"})
                if told == "lifespan.shutdown":
                    return
        self.asked.append((scope["method"], f"{scope['raw_path'].decode()}?{scope['query_string'].decode()}"))
        self.keys.append(dict(scope["headers"]).get(b"authorization", b"").decode())
        await asyncio.to_thread(self.open.wait, 30)
        order = scope["raw_path"].decode().rpartition("/")[2]
        known = self.answers_to.get(order, (200, {}, msgspec.json.encode(ORDER)))
        status, headers, body = self.answers.popleft() if self.answers else known
        named = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": named})
        await send({"type": "http.response.body", "body": body})


class Shop:
    """A gateway with one source that fetches, its provider, and the collector of its events."""

    def __init__(
        self, gateway: Gateway, provider: Provider, provider_url: str, collector: Collector, sink: str
    ) -> None:
        self.gateway, self.provider, self.collector = gateway, provider, collector
        self.served = gateway.served
        self.folder = gateway.file.parent / "mappings"
        for name, text in {
            "sources/shop.yaml": SHOP.replace("PROVIDER", provider_url),
            "destinations/webhook.yaml": (bundled() / "destinations/webhook.yaml").read_text(),
        }.items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text(text)
        gateway.environment |= {"GATEWAY_MAPPINGS": str(self.folder), "WEBHOOK_URL": f"{sink}/sink"}
        gateway.environment |= {"SHOP_SECRET": SECRET, "SHOP_API_KEY": API_KEY}

    def pay(self, order: object = "ord_1", url: str = "", **changed: object) -> None:
        body = msgspec.json.encode({"id": f"ev_{order}", "type": "order.paid", "order": order, "user": "7", **changed})
        answer = httpx.post(f"{url or self.served.url}/webhooks/shop", content=body, headers={"X-Token": SECRET})
        assert answer.status_code == 200, answer.text

    def purchases(self, number: int = 1) -> list[Any]:
        """Return the properties of that many purchases, and see that none comes twice."""
        found = [each["data"]["properties"] for each in self.collector.wait_for(number)]
        assert len(found) == number
        return sorted(found, key=lambda each: str(each["order_id"]))

    def fetches(self) -> list[tuple[str, str | None]]:
        """Return state and reason of what waits, or waited, for an object."""
        found = [each for each in self.gateway.listed("deliveries") if each["destination"] == "@fetch"]
        return [(each["state"], each["reason"]) for each in found]

    def later(self, done: Callable[[], bool]) -> None:
        """Let the clock run until it is done."""

        def is_done() -> bool:
            self.served.ahead += 5_000
            return done()

        eventually(is_done)

    async def change_kept(self, change: Callable[[Any], Any]) -> None:
        """Keep the request of the only webhook in a changed form, as somebody who crashed after it would leave it."""
        settings = load_settings(self.gateway.environment)
        sealer = Sealer(settings.master_key())
        store = await open_store(settings, sealer)
        (listed,) = await store.webhooks()
        stored = await store.webhook(listed.webhook)
        assert stored is not None
        kept = msgpack.encode(change(kept_request(stored, sealer)))
        assert await store.keep(stored.webhook, sealer.seal(kept, b"webhook"))
        await store.close()

    async def accounted(self) -> Accuracy:
        """Return what became of today's webhooks."""
        settings = load_settings(self.gateway.environment)
        sealer = Sealer(settings.master_key())
        store = await open_store(settings, sealer, exclusive=False)
        try:
            today = datetime.fromtimestamp(self.served.now() / 1000, UTC).date()
            return await accounts(store, sealer, ["webhook"], today)
        finally:
            await store.close()


@pytest.fixture(scope="module")
def redis() -> Iterator[Server]:
    server = Server().start()
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "redis"])
def gateway(request: pytest.FixtureRequest, tmp_path: Path) -> Gateway:
    if request.param == "sqlite":
        return Gateway(tmp_path)
    server: Server = request.getfixturevalue("redis")
    with server.client() as client:
        client.flushall()
    return Gateway(tmp_path, GATEWAY_STORE=server.url, GATEWAY_SECRET_KEY="A" * 43 + "=")


@pytest.fixture
def shop(gateway: Gateway) -> Iterator[Shop]:
    provider, collector = Provider(), Collector()
    with running(provider) as api, running(collector.app()) as sink:
        yield Shop(gateway, provider, api, collector, sink)
        provider.open.set()


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Shop]:
    provider, collector = Provider(), Collector()
    with running(provider) as api, running(collector.app()) as sink:
        yield Shop(Gateway(tmp_path), provider, api, collector, sink)
        provider.open.set()


def test_what_the_payload_lacks_is_fetched_once_with_the_key(shop: Shop) -> None:
    with shop.served.up():
        shop.pay("ord_1")
        assert shop.purchases() == [{"order_id": "ord_1", "items": ITEMS}]
        eventually(lambda: shop.fetches() == [("sent", None)])
    assert shop.provider.asked == [("GET", "/v1/orders/ord_1?expand=lines")]
    assert shop.provider.keys == [f"Bearer {API_KEY}"]


def test_provider_that_does_not_answer_keeps_no_webhook_waiting_for_its_answer(shop: Shop) -> None:
    shop.provider.open.clear()
    with shop.served.up():
        shop.pay("ord_1")
        shop.pay("ord_2", plain=True)
        assert shop.purchases() == [{"order_id": "ord_2"}]
        shop.provider.open.set()
        assert shop.purchases(2)[0] == {"order_id": "ord_1", "items": ITEMS}


def test_without_its_setting_nothing_is_fetched_and_nothing_waits(shop: Shop) -> None:
    with shop.served.up(SHOP_API_KEY=""):
        shop.pay("ord_1")
        assert shop.purchases() == [{"order_id": "ord_1"}]
    assert (shop.provider.asked, shop.fetches()) == ([], [])


def test_same_webhook_twice_is_fetched_once(shop: Shop) -> None:
    with shop.served.up():
        shop.pay("ord_1")
        shop.pay("ord_1")
        shop.purchases()
        eventually(lambda: shop.fetches() == [("sent", None)])
    assert len(shop.provider.asked) == 1


def test_provider_that_fails_is_asked_until_it_answers(shop: Shop) -> None:
    for status in (401, 429, 500, 503):
        shop.provider.answer(status)
    with shop.served.up():
        shop.pay("ord_1")
        shop.later(lambda: len(shop.provider.asked) == 5)
        assert shop.purchases() == [{"order_id": "ord_1", "items": ITEMS}]


def test_retry_after_is_honoured(shop: Shop) -> None:
    shop.provider.answer(429, {"retry-after": "3600"})
    with shop.served.up():
        shop.pay("ord_1")
        eventually(lambda: shop.fetches() == [("due", "http_429")])
        (waiting,) = [each for each in shop.gateway.listed("deliveries") if each["destination"] == "@fetch"]
        assert waiting["due_at"] > iso(shop.served.now() + 3_000_000)
        shop.served.ahead += 3_601_000
        assert shop.purchases() == [{"order_id": "ord_1", "items": ITEMS}]


def test_after_three_days_the_events_are_made_without_the_object(shop: Shop) -> None:
    shop.provider.answers.extend([(500, {}, b"")] * 1000)
    with shop.served.up():
        shop.pay("ord_1")
        eventually(lambda: bool(shop.provider.asked))
        eventually(lambda: shop.fetches() == [("due", "http_500")])
        shop.served.ahead += 3 * 86_400_000
        assert shop.purchases() == [{"order_id": "ord_1"}]
        eventually(lambda: shop.fetches() == [("dead", "fetch failed: order: gave up: http_500")])


REFUSED: dict[str, tuple[Answer, str]] = {
    "gone": ((404, {}, b"{}"), "http_404"),
    "redirect": (
        (302, {"location": "http://169.254.169.254/"}, b""),
        "http_302: a redirect to http://169.254.169.254 is not followed",
    ),
    "large": ((200, {}, b'"' + b"x" * 1_048_576 + b'"'), "the answer is larger than 1,048,576 bytes"),
    "page": ((200, {}, b"<html>"), "the answer is not JSON"),
    "deep": ((200, {}, b"[" * 500_000), "the answer is not JSON"),
}


def test_what_cannot_be_fetched_is_noted_and_the_events_are_made_without_it(shop: Shop) -> None:
    shop.provider.answers_to = {name: answer for name, (answer, _) in REFUSED.items()}
    with shop.served.up():
        for name in REFUSED:
            shop.pay(name)
        assert shop.purchases(len(REFUSED)) == [{"order_id": name} for name in sorted(REFUSED)]
        eventually(lambda: {state for state, _ in shop.fetches()} == {"dead"})
    reasons = [f"fetch failed: order: {reason}" for _, reason in REFUSED.values()]
    assert sorted(str(told) for _, told in shop.fetches()) == sorted(reasons)
    assert all(each["failed"] for each in shop.gateway.listed("webhooks"))
    assert len(shop.provider.asked) == len(REFUSED)


def test_replay_fetches_what_could_not_be_fetched(shop: Shop) -> None:
    shop.provider.answer(404)
    with shop.served.up():
        shop.pay("ord_1")
        shop.purchases()
        eventually(lambda: [state for state, _ in shop.fetches()] == ["dead"])
        assert shop.gateway.run(main, "replay", "ev_ord_1").exit_code == 0
        eventually(lambda: shop.fetches() == [("sent", None)])
    assert len(shop.provider.asked) == 2
    assert len(shop.collector.requests) == 1  # it went out before: nothing counts twice


def test_replay_uses_what_was_fetched(shop: Shop) -> None:
    with shop.served.up():
        shop.pay("ord_1")
        shop.purchases()
        eventually(lambda: shop.fetches() == [("sent", None)])
    file = shop.folder / "sources/shop.yaml"
    more = "  - {on: order.paid, emit: order_created, properties: {order_id: \"fetched('order').lines[0].sku\"}}\n"
    file.write_text(file.read_text() + more)
    with shop.served.up():
        assert shop.gateway.run(main, "replay", "ev_ord_1").exit_code == 0
        assert {"order_id": "tea"} in shop.purchases(2)
    assert len(shop.provider.asked) == 1


def test_id_stays_one_segment_of_the_path(embedded: Shop) -> None:
    paths = {
        "a?b=c#d": "a%3Fb%3Dc%23d",
        "@evil.example": "%40evil.example",
        "//evil.example/x": "%2F%2Fevil.example%2Fx",
        "gid://shop/Order/1": "gid%3A%2F%2Fshop%2FOrder%2F1",
        "a%2e%2e": "a%252e%252e",
        "{id}": "%7Bid%7D",
        "ö": "%C3%B6",
        42: "42",
    }
    with embedded.served.up():
        for order in paths:
            embedded.pay(order)
        embedded.purchases(len(paths))
    assert sorted(embedded.provider.asked) == sorted(
        ("GET", f"/v1/orders/{path}?expand=lines") for path in paths.values()
    )


HOSTILE = ["..", ".", "../customers", "a/../../b", "a\\..\\b", "x" * 257, "a\r\nHost: b", "", True, ["a"], {"a": "b"}]


def test_what_is_no_id_is_not_asked_for_and_noted(embedded: Shop) -> None:
    with embedded.served.up():
        for number, order in enumerate(HOSTILE):
            embedded.pay(order, id=f"ev_{number}")
        embedded.collector.wait_for(len(HOSTILE))
    assert (embedded.provider.asked, embedded.fetches()) == ([], [])
    assert [each["failed"] for each in embedded.gateway.listed("webhooks")] == [True] * len(HOSTILE)


def test_payload_that_names_no_object_waits_for_none(embedded: Shop) -> None:
    with embedded.served.up():
        embedded.pay(None)
        embedded.collector.wait_for(1)
    assert (embedded.provider.asked, embedded.fetches(), embedded.served.notes()) == ([], [], [])


def test_whom_only_the_object_names_is_a_subject(embedded: Shop) -> None:
    with embedded.served.up():
        embedded.pay("ord_1")
        embedded.purchases()
        eventually(lambda: embedded.fetches() == [("sent", None)])
        found = embedded.gateway.run(main, "webhooks", "--subject", "email:ada@example.com", "--json")
    assert [each["id"] for each in msgspec.json.decode(found.stdout)] == ["ev_ord_1"]


def test_who_is_forgotten_meanwhile_is_not_asked_about(shop: Shop) -> None:
    with shop.served.up(deliver=False):
        shop.pay("ord_1")
        shop.pay("ord_2", user="8")
        assert shop.gateway.run(main, "forget", "--subject", "user=7").exit_code == 0
    with shop.served.up():
        assert shop.purchases() == [{"order_id": "ord_2", "items": ITEMS}]
    assert shop.provider.asked == [("GET", "/v1/orders/ord_2?expand=lines")]


def test_who_is_forgotten_while_it_is_fetched_stays_forgotten(shop: Shop) -> None:
    shop.provider.open.clear()
    with shop.served.up():
        shop.pay("ord_1")
        eventually(lambda: len(shop.provider.asked) == 1)
        assert shop.gateway.run(main, "forget", "--subject", "user=7").exit_code == 0
        shop.provider.open.set()
        shop.pay("ord_2", user="8")
        assert shop.purchases() == [{"order_id": "ord_2", "items": ITEMS}]
    assert ("sent", None) in shop.fetches()
    assert len(shop.fetches()) == 1


def test_killed_while_it_fetches_loses_nothing(shop: Shop) -> None:
    shop.provider.open.clear()
    process, url = start({**os.environ, **shop.gateway.environment})
    try:
        shop.pay("ord_1", url)
        eventually(lambda: len(shop.provider.asked) == 1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    shop.provider.open.set()
    shop.served.ahead = 61_000  # whoever it was, its lease is over
    with shop.served.up():
        assert shop.purchases() == [{"order_id": "ord_1", "items": ITEMS}]
        eventually(lambda: shop.fetches() == [("sent", None)])


def test_killed_before_it_fetches_loses_nothing(shop: Shop) -> None:
    with shop.served.up(deliver=False):
        shop.pay("ord_1")
    assert shop.provider.asked == []
    with shop.served.up():
        assert shop.purchases() == [{"order_id": "ord_1", "items": ITEMS}]


def test_killed_between_keeping_and_translating_does_not_ask_again(shop: Shop) -> None:
    with shop.served.up(deliver=False):
        shop.pay("ord_1")
    asyncio.run(shop.change_kept(lambda kept: structs.replace(kept, fetched={"order": msgspec.json.encode(ORDER)})))
    with shop.served.up():
        assert shop.purchases() == [{"order_id": "ord_1", "items": ITEMS}]
        eventually(lambda: shop.fetches() == [("sent", None)])
    assert shop.provider.asked == []


def test_setting_that_is_taken_away_lets_go_of_what_waits(shop: Shop) -> None:
    with shop.served.up(deliver=False):
        shop.pay("ord_1")
    with shop.served.up(SHOP_API_KEY=""):
        assert shop.purchases() == [{"order_id": "ord_1"}]
    assert shop.provider.asked == []


THIN = """
  meter: {on: v1.billing.meter.*, url: "PROVIDER/v1/billing/meters/{id}", with: {id: related_object.id}}
rules:
  - {on: v1.billing.meter.*, emit: meter_failed, properties: {meter: "fetched('meter').lines[0].sku"}}
"""


def test_thin_event_gets_its_object(embedded: Shop) -> None:
    file = embedded.folder / "sources/shop.yaml"
    url = file.read_text().split("url: ")[1].partition("/v1/")[0]
    file.write_text(file.read_text().replace("\nrules:\n", THIN.replace("PROVIDER", url)))
    thin = {"object": "v2.core.event", "type": "v1.billing.meter.no_meter_found"}
    with embedded.served.up():
        embedded.pay(
            "m", **thin, related_object={"id": "mtr_1", "url": "http://169.254.169.254/v1/billing/meters/mtr_1"}
        )
        assert embedded.collector.wait_for(1)[0]["data"]["properties"] == {"meter": "tea"}
    assert embedded.provider.asked == [("GET", "/v1/billing/meters/mtr_1?")]


def test_fetch_is_no_event_of_the_accounts(shop: Shop) -> None:
    shop.provider.answers_to = {"gone": (404, {}, b"{}")}
    with shop.served.up():
        for order in ("ord_1", "gone"):
            shop.pay(order)
        shop.purchases(2)
        eventually(lambda: sorted(state for state, _ in shop.fetches()) == ["dead", "sent"])
        told = asyncio.run(shop.accounted())
    line = next(each for each in told.destinations if each.destination == "webhook")
    assert (line.events, line.accepted, line.balances) == (2, 2, True)
    assert {each.destination for each in told.destinations} == {"webhook"}


def test_two_gateways_fetch_each_object_once(redis: Server, tmp_path: Path) -> None:
    with redis.client() as client:
        client.flushall()
    provider, collector = Provider(), Collector()
    gateway = Gateway(tmp_path, GATEWAY_STORE=redis.url, GATEWAY_SECRET_KEY="A" * 43 + "=")
    other = Gateway(tmp_path, GATEWAY_STORE=redis.url, GATEWAY_SECRET_KEY="A" * 43 + "=")
    with running(provider) as api, running(collector.app()) as sink:
        shop, twin = (Shop(each, provider, api, collector, sink) for each in (gateway, other))
        with shop.served.up(), twin.served.up():
            for number in range(10):
                (shop, twin)[number % 2].pay(f"ord_{number}")
            assert [each["items"] for each in shop.purchases(10)] == [ITEMS] * 10
            eventually(lambda: shop.fetches() == [("sent", None)] * 10)
    assert sorted(provider.asked) == [("GET", f"/v1/orders/ord_{number}?expand=lines") for number in range(10)]


def test_the_key_is_told_to_nobody_else(embedded: Shop, tmp_path: Path) -> None:
    embedded.provider.answer(500, body=API_KEY.encode())
    embedded.provider.answer(404, body=API_KEY.encode())
    with serving(embedded.served, tmp_path / "log"):
        embedded.pay("ord_1")
        embedded.purchases()
        eventually(lambda: [state for state, _ in embedded.fetches()] == ["dead"])
    log = (tmp_path / "log").read_text()
    assert '"event": "fetch_failed"' in log
    assert '"event": "fetch_dead"' in log
    assert API_KEY not in log + str(embedded.served.notes()) + str(embedded.fetches())
    assert API_KEY not in repr(load_mappings(embedded.folder, embedded.gateway.environment.get))


TEST = """
tests:
  - name: its items are those of the order
    payload: {id: e, type: order.paid, order: ord_1}
    fetched: {order: {lines: [{sku: tea}]}}
    expect: [{name: purchase, properties: {items: [{item_id: tea}]}}]
  - name: without the order it has none
    payload: {id: e, type: order.paid, order: ord_1}
    expect: [{name: purchase, properties: {items: null}}]
  - name: what nobody fetches
    payload: {id: e, type: order.paid, order: ord_1}
    fetched: {ordr: {}}
    expect: []
"""


def test_test_of_a_mapping_says_what_is_fetched_and_asks_nobody(embedded: Shop) -> None:
    file = embedded.folder / "tests/shop/items.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(TEST)
    mappings = load_mappings(embedded.folder, embedded.gateway.environment.get)
    results = [asyncio.run(run_test(each, mappings, embedded.folder)) for each in load_tests(embedded.folder, mappings)]
    assert [[each.message for each in result.failures] for result in results] == [[], [], ["`shop` fetches no `ordr`"]]
    assert results[2].failures[0].hint == "did you mean `order`?"
    assert embedded.provider.asked == []


def test_name_that_is_not_fetched_is_a_mistake_of_the_rule(embedded: Shop) -> None:
    file = embedded.folder / "sources/shop.yaml"
    file.write_text(file.read_text().replace("{order_id: order,", "{order_id: fetched('ordr').id,"))
    with pytest.raises(
        MappingErrors, match=r"shop.yaml:18:36: error: nothing is fetched as `ordr`; did you mean `order`"
    ):
        load_mappings(embedded.folder, embedded.gateway.environment.get)
