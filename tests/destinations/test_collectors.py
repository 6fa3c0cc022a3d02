"""Strict collectors take the SDKs' recorded requests and ours, and nothing that differs from them in its form."""

import functools
import hashlib
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import httpx
import msgspec
import pytest
from msgspec import structs

from gateway.deliveries import Acceptance, NewDelivery, NewEvent, State
from gateway.delivery import DeliveryLoop
from gateway.destinations import Destination, render, route
from gateway.dry_run import events_of
from gateway.events import Event, encode_event
from gateway.mappings import bundled, load_mappings, sample_headers
from gateway.money import Money
from gateway.sealing import Sealer, Secret
from gateway.sending import USER_AGENT, HttpSender
from gateway.server import running
from gateway.store.sqlite import SqliteStore
from gateway.translate import event_key
from tests.destinations.fakes import (
    API_KEY,
    APP_ID,
    DATABUDDY_KEY,
    HOUR,
    INGEST_KEY,
    LAYERSYNC_SECRET,
    LAYERSYNC_SITE,
    NOW,
    PUBLIC_KEY,
    WEBSITE,
    Fake,
)
from tests.destinations.test_golden import EVENTS, cases, destination

SEALER = Sealer(b"k" * 32)
PATHS = {
    "nexly": "/v1/collect",
    "nexly-cdata": "/v1/collect",
    "datalyr": "/track",
    "databuddy": "/databuddy/track",
    "layersync": "/api/v1/events/browser",
    "analyse": "/v1/batch",
}
GOLDEN = [(file, name) for file in PATHS for name, _ in cases(file)]

Change = Callable[[dict[str, str], Any], object]


def slot(file: str) -> str:
    return "cdata" if file == "nexly-cdata" else "data"


@pytest.fixture(scope="module")
def urls() -> Iterator[dict[str, str]]:
    with running(Fake("data").app()) as first, running(Fake("cdata").app()) as second:
        yield {file: (second if slot(file) == "cdata" else first) + PATHS[file] for file in PATHS}


def recorded(file: str, name: str) -> tuple[dict[str, str], Any]:
    golden: Any = msgspec.json.decode(msgspec.json.encode(dict(cases(file))[name]))
    return {"user-agent": "node", **golden["headers"]}, golden["body"]


@functools.cache
def client() -> httpx.Client:
    return httpx.Client(headers={"User-Agent": ""})


def post(url: str, headers: dict[str, str], body: object) -> tuple[int, str]:
    answer = client().post(url, headers=headers, content=msgspec.json.encode(body))
    return answer.status_code, answer.text


@pytest.mark.parametrize(("file", "name"), GOLDEN)
def test_a_recorded_request_is_accepted(urls: dict[str, str], file: str, name: str) -> None:
    url = urls[file].replace("/databuddy/track", "/databuddy/identify") if name == "identify" else urls[file]
    assert post(url, *recorded(file, name))[0] == 200


# What is refused, with which status, and what for

HTTPX = {"user-agent": "python-httpx/0.28.1"}
BEACON = {"content-type": "text/plain"}
NEXLY: dict[str, tuple[int, str, Change]] = {
    "no origin": (403, "the origin is not on", lambda headers, _: headers.pop("origin")),
    "httpx's own user agent": (403, "a bot", lambda headers, _: headers.update(HTTPX)),
    "a beacon's content type": (415, "not JSON", lambda headers, _: headers.update(BEACON)),
    "another token": (401, "unauthorized", lambda _, body: body.update(api_token="nx_other")),
    "an unknown key": (400, "unknown field `timestamp`", lambda _, body: body.update(timestamp="2026-01-01")),
    "an unknown client": (400, "$.client", lambda _, body: body.update(client="gateway")),
    "an unknown event type": (400, "$.event_type", lambda _, body: body.update(event_type="track")),
    "no data": (400, "required field `data`", lambda _, body: body.pop("data")),
    "data that is text": (400, "$.data", lambda _, body: body.update(data="x")),
    "cdata of another version": (400, "unknown field cdata", lambda _, body: body.update(cdata={"a": "b"})),
    "a visitor that is null": (400, "$.context.visitor_id", lambda _, body: body["context"].update(visitor_id=None)),
    "an unknown key in the context": (400, "field `user_id`", lambda _, body: body["context"].update(user_id="u")),
    "a path that is no copy": (400, "path is a copy", lambda _, body: body.update(path="/other")),
}
DATALYR: dict[str, tuple[int, str, Change]] = {
    "no key": (401, "unauthorized", lambda headers, _: headers.pop("x-api-key")),
    "httpx's own user agent": (403, "a bot", lambda headers, _: headers.update(HTTPX)),
    "an unknown key": (400, "unknown field `sessionId`", lambda _, body: body.update(sessionId="s")),
    "no event id": (400, "required field `eventId`", lambda _, body: body.pop("eventId")),
    "an event id that is too long": (400, "$.eventId", lambda _, body: body.update(eventId="e" * 257)),
    "a user that is null": (400, "$.userId", lambda _, body: body.update(userId=None)),
    "a time in ms": (400, "$.timestamp", lambda _, body: body.update(timestamp=1751373296000)),
    "a time without ms": (400, "$.timestamp", lambda _, body: body.update(timestamp="2025-07-01T12:34:56Z")),
    "a value that is text": (400, "value is a number", lambda _, body: body["properties"].update(value="129.50")),
    "another anonymous id": (400, "is a copy of", lambda _, body: body["properties"].update(anonymous_id="anon_2")),
    "another library": (400, "$.context.library", lambda _, body: body["context"].update(library="gateway")),
    "an unknown special event": (400, "special event", lambda _, body: body.update(event="$purchase")),
}
DATABUDDY: dict[str, tuple[int, str, Change]] = {
    "no key": (401, "no credentials", lambda headers, _: headers.pop("authorization")),
    "httpx's own user agent": (204, "", lambda headers, _: headers.update(HTTPX)),
    "no user agent": (204, "", lambda headers, _: headers.pop("user-agent")),
    "a browser's origin": (403, "origin", lambda headers, _: headers.update(origin="https://shop.example")),
    "an event too many": (400, "1 to 100 events", lambda _, body: body.extend(body * 100)),
    "no event": (400, "1 to 100 events", lambda _, body: body.clear()),
    "a body that is too large": (413, "too large", lambda _, body: body[0].update(name="n" * 1_000_000)),
    "an unknown key": (400, "unknown field `type`", lambda _, body: body[0].update(type="custom")),
    "no event id": (400, "required field `eventId`", lambda _, body: body[0].pop("eventId")),
    "a time in seconds": (400, "accepted range", lambda _, body: body[0].update(timestamp=1751373296)),
    "a time as text": (400, "[0].timestamp", lambda _, body: body[0].update(timestamp="2025-07-01T12:34:56.000Z")),
    "a time in the future": (400, "accepted range", lambda _, body: body[0].update(timestamp=NOW + HOUR + 1)),
    "51 properties": (400, "too many", lambda _, body: body[0].update(properties=dict.fromkeys(map(str, range(51))))),
    "properties of 32 KB": (400, "too large", lambda _, body: body[0].update(properties={"a": "x" * 32_768})),
    "a long property name": (400, "properties", lambda _, body: body[0].update(properties={"k" * 129: 1})),
    "a session with a space": (400, "[0].sessionId", lambda _, body: body[0].update(sessionId="sess 1")),
    "a visitor that is null": (400, "[0].anonymousId", lambda _, body: body[0].update(anonymousId=None)),
    "a long user id": (400, "[0].profileId", lambda _, body: body[0].update(profileId="u" * 129)),
    "another website": (404, "no such website", lambda _, body: body[0].update(websiteId="site_2")),
}
LAYERSYNC: dict[str, tuple[int, str, Change]] = {
    "no key": (401, "unauthorized", lambda headers, _: headers.pop("x-layersync-api-key")),
    "another site": (401, "no such site", lambda headers, _: headers.update({"x-layersync-site-id": "site_2"})),
    "a site in the body alone": (401, "no such site", lambda _, body: body.update(site_id="site_2")),
    "httpx's own user agent": (403, "a bot", lambda headers, _: headers.update(HTTPX)),
    "an unknown key": (400, "unknown field `timestamp`", lambda _, body: body.update(timestamp=1751373296)),
    "a time in ms": (400, "in seconds", lambda _, body: body.update(event_time=1751373296000)),
    "an id without a prefix": (400, "$.event_id", lambda _, body: body.update(event_id="a" * 16)),
    "an id with another prefix": (400, "the prefix", lambda _, body: body.update(event_id="ref_" + "a" * 16)),
    "no url": (400, "`event_source_url`", lambda _, body: body.pop("event_source_url")),
    "a server's action source": (400, "$.action_source", lambda _, body: body.update(action_source="server")),
    "a raw email": (400, "$.user_data.em", lambda _, body: body["user_data"].update(em="ada@example.com")),
    "the hash of nothing": (400, "nothing", lambda _, body: body["user_data"].update(ph=hashlib.sha256().hexdigest())),
    "a user that is null": (400, "$.user_data.external_id", lambda _, body: body["user_data"].update(external_id=None)),
    "a value that is text": (400, "$.value", lambda _, body: body["custom_data"].update(value="129.50")),
    "a value without dot as text": (400, "$.value", lambda _, body: body["custom_data"].update(value="12950")),
    "items": (400, "written as contents", lambda _, body: body["custom_data"].update(items=[])),
    "an email among the properties": (400, "hashed", lambda _, body: body["custom_data"].update(email="a@b.example")),
    "another number of items": (400, "do not agree", lambda _, body: body["custom_data"].update(num_items=3)),
    "a price that is null": (400, "price", lambda _, body: body["custom_data"]["contents"][0].update(item_price=None)),
    "no sdk": (400, "required field `sdk`", lambda _, body: body["client_meta"].pop("sdk")),
}
ANALYSE: dict[str, tuple[int, str, Change]] = {
    "another key": (401, "unauthorized", lambda _, body: body.update(publicKey="pk_live_other")),
    "httpx's own user agent": (403, "a bot", lambda headers, _: headers.update(HTTPX)),
    "a beacon's content type": (415, "not JSON", lambda headers, _: headers.update(BEACON)),
    "no event": (400, "$.events", lambda _, body: body["events"].clear()),
    "an event too many": (400, "$.events", lambda _, body: body["events"].extend(body["events"] * 100)),
    "an unknown key": (400, "unknown field `eventId`", lambda _, body: body["events"][0].update(eventId="e")),
    "no anonymous id": (400, "`anonymous_id`", lambda _, body: body["events"][0].pop("anonymous_id")),
    "a person that is null": (400, "person_id", lambda _, body: body["events"][0].update(person_id=None)),
    "no referrer's domain": (400, "`referrer_domain`", lambda _, body: body["events"][0].pop("referrer_domain")),
    "a time in ms": (400, "timestamp", lambda _, body: body["events"][0].update(timestamp=1751373296000)),
    "an amount in major units": (400, "$.amount", lambda _, body: body["events"][0]["properties"].update(amount=129.5)),
    "no amount": (400, "`amount`", lambda _, body: body["events"][0]["properties"].pop("amount")),
    "a small currency": (400, "$.currency", lambda _, body: body["events"][0]["properties"].update(currency="usd")),
    "no checkout": (400, "`checkout_id`", lambda _, body: body["events"][0]["properties"].pop("checkout_id")),
    "another payment type": (400, "type", lambda _, body: body["events"][0]["properties"].update(payment_type="x")),
    "an unknown reserved event": (400, "reserved", lambda _, body: body["events"][0].update(event_name="$purchase")),
    "an email": (400, "personal data", lambda _, body: body["events"][0]["properties"].update(email="a@b.example")),
}
REFUSED = {"nexly": NEXLY, "datalyr": DATALYR, "databuddy": DATABUDDY, "layersync": LAYERSYNC, "analyse": ANALYSE}


@pytest.mark.parametrize(("file", "what"), [(file, what) for file, table in REFUSED.items() for what in table])
def test_a_request_that_differs_in_form_is_refused(urls: dict[str, str], file: str, what: str) -> None:
    status, why, change = REFUSED[file][what]
    headers, body = recorded(file, "purchase")
    change(headers, body)
    refused = post(urls[file], headers, body)
    assert refused[0] == status
    assert why in refused[1]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"websiteId": None}, "websiteId"),
        ({"profileId": " "}, "profileId"),
        ({"traits": {"tags": ["a"]}}, "traits"),
        ({"traits": dict.fromkeys(map(str, range(51)))}, "traits"),
        ({"traits": {"about": "x" * 2048}}, "traits are too large"),
        ({"name": "identify"}, "unknown field `name`"),
    ],
)
def test_a_profile_that_differs_in_form_is_refused(urls: dict[str, str], change: dict[str, object], why: str) -> None:
    headers, body = recorded("databuddy", "identify")
    refused = post(urls["databuddy"].replace("/track", "/identify"), headers, body | change)
    assert refused[0] == 400
    assert why in refused[1]


@pytest.mark.parametrize(("file", "hours"), [("datalyr", 6), ("databuddy", 24), ("layersync", 168)])
def test_a_repeated_event_counts_once_within_the_collectors_window(file: str, hours: int) -> None:
    clock = [NOW]
    fake = Fake(now=lambda: clock[0])
    with running(fake.app()) as url:
        for waited, counted in ((0, 1), (hours * HOUR - 1, 1), (1, 2)):
            clock[0] += waited
            assert post(url + PATHS[file], *recorded(file, "purchase"))[0] == 200
            assert len(fake.kept) == counted


@pytest.mark.parametrize("file", ["nexly", "analyse"])
def test_a_repeated_event_counts_twice_where_there_is_no_id(file: str) -> None:
    fake = Fake()
    with running(fake.app()) as url:
        for counted in (1, 2):
            post(url + PATHS[file], *recorded(file, "purchase"))
            assert len(fake.kept) == counted


def test_an_empty_slot_and_a_full_reserved_one_are_refused(urls: dict[str, str]) -> None:
    headers, body = recorded("nexly-cdata", "purchase")
    assert post(urls["nexly-cdata"], headers, {**body, "cdata": {}})[0] == 400
    assert post(urls["nexly-cdata"], headers, {**body, "data": {"a": 1}})[0] == 400


# Ours, by the real loop


@functools.cache
def sampled() -> dict[str, Event]:
    """Return every event that the bundled mappings make of the bundled samples, and the recorded ones."""
    mappings = load_mappings(bundled(), lambda _: None)
    found = {name: structs.replace(each, id=str(uuid5(NAMESPACE_OID, each.id))) for name, each in EVENTS.items()}
    for file in sorted((bundled() / "samples").glob("*/*.json")):
        source, body = file.parent.name, file.read_bytes()
        translation = events_of(
            mappings, source, sample_headers(bundled(), source, file.name, body, NOW / 1000), body, NOW
        )
        found |= {emission.event.id: emission.event for emission in translation.emissions}
    return found


def destination_at(url: str, file: str) -> Destination:
    variables = {
        "NEXLY_APP_ID": APP_ID,
        "NEXLY_INGEST_KEY": INGEST_KEY,
        "NEXLY_COLLECT_URL": f"{url}/v1/collect",
        "NEXLY_PAYLOAD": slot(file),
        "DATALYR_API_KEY": API_KEY,
        "DATALYR_HOST": f"{url}/track",
        "DATABUDDY_API_KEY": DATABUDDY_KEY,
        "DATABUDDY_API_URL": f"{url}/databuddy",
        "DATABUDDY_WEBSITE_ID": WEBSITE,
        "LAYERSYNC_SITE_ID": LAYERSYNC_SITE,
        "LAYERSYNC_SECRET": LAYERSYNC_SECRET,
        "LAYERSYNC_API_URL": url,
        "ANALYSE_KEY": PUBLIC_KEY,
        "ANALYSE_HOST": url,
    }
    return load_mappings(bundled(), variables.get).destinations[file.removesuffix("-cdata")]


def acceptance(events: list[Event], to: Destination) -> Acceptance:
    return Acceptance(
        key=b"k" * 16,
        source="stripe",
        account="",
        type="t",
        id="evt_1",
        occurred_at=NOW,
        received_at=NOW,
        test=False,
        mapping="m",
        sealed=b"",
        notes=b"[]",
        events=tuple(
            NewEvent(
                event_key(event.id),
                SEALER.seal(encode_event(event), b"event"),
                (NewDelivery(to.name, route(event, to, forward_tests=False)),),
            )
            for event in events
        ),
    )


async def deliver(events: list[Event], to: Destination, folder: Path) -> list[tuple[State, str | None]]:
    """Send the events with the real loop, client and store; return what became of each."""
    store, sender = SqliteStore.open(folder / "gateway.db", SEALER.fingerprint()), HttpSender(to.concurrency)
    receipt = await store.accept(acceptance(events, to))
    loop = DeliveryLoop(to.name, lambda: to, store, SEALER, sender, lambda: NOW, lambda _low, high: high)
    while await loop.step():
        pass
    settled = [(each.state, each.reason) for each in await store.deliveries(receipt.webhook)]
    await sender.close()
    await store.close()
    return settled


def expected(event: Event, to: Destination) -> tuple[State, str | None]:
    skip = route(event, to, forward_tests=False)
    made = skip or render(event, to)
    return (State.SKIPPED, made) if isinstance(made, str) else (State.SENT, None)


@pytest.mark.parametrize("file", PATHS)
async def test_all_that_we_send_is_accepted(file: str, tmp_path: Path) -> None:
    fake, events = Fake(slot(file)), list(sampled().values())
    with running(fake.app()) as url:
        to = destination_at(url, file)
        settled = await deliver(events, to, tmp_path)
    assert settled == [expected(event, to) for event in events]
    sent = [event for event, (state, _) in zip(events, settled, strict=True) if state == State.SENT]
    assert len(sent) > 30
    if file == "layersync":  # knows a purchase by its order, and some samples are of the same one
        orders = {event.properties.get("order_id") for event in sent if event.name == "purchase"}
        purchases = [each for each in fake.kept if each["event_name"] == "purchase"]
        assert len(purchases) == len(orders) > 20
    else:
        assert len(fake.kept) == len(sent)


@pytest.mark.parametrize("file", ["databuddy", "analyse"])
@pytest.mark.parametrize(("items", "fewest", "most"), [(1, 3, 3), (80, 8, 25)])
async def test_a_batch_keeps_within_the_collectors_limits(
    file: str, items: int, fewest: int, most: int, tmp_path: Path
) -> None:
    fake, item = Fake(), {"item_id": "SKU-" + "9" * 60, "name": "N" * 255, "quantity": 10, "price": 1999.99}
    paid = {"order_id": "ORD-1", "value": Money(Decimal("9.99"), "USD"), "currency": "USD"}
    order = structs.replace(sampled()["purchase"], properties=paid | {"items": [item] * items})
    events = [structs.replace(order, id=str(uuid5(NAMESPACE_OID, str(number)))) for number in range(250)]
    with running(fake.app()) as url:
        await deliver(events, destination_at(url, file), tmp_path)
    assert len(fake.kept) == 250
    assert set(fake.answers) == {200}
    assert fewest <= len(fake.answers) <= most


async def test_a_wrong_key_waits_for_the_right_one(tmp_path: Path) -> None:
    with running(Fake().app()) as url:
        to = structs.replace(destination_at(url, "datalyr"), secrets={"api_key": Secret("dk_wrong")})
        settled = await deliver([sampled()["purchase"]], to, tmp_path)
    assert settled == [(State.PARKED, "http_401")]


async def test_a_quota_that_is_used_up_parks_the_events(tmp_path: Path) -> None:
    fake = Fake()
    fake.quota = 0
    with running(fake.app()) as url:
        settled = await deliver([sampled()["purchase"]], destination_at(url, "databuddy"), tmp_path)
    assert settled == [(State.PARKED, "http_402")]


async def test_a_collector_that_takes_us_for_a_bot_has_not_taken_the_event(tmp_path: Path) -> None:
    fake = Fake()
    with running(fake.app()) as url:
        to = destination_at(url, "databuddy")
        bot = structs.replace(to, headers=lambda *_: {"Authorization": f"Bearer {DATABUDDY_KEY}", "User-Agent": "curl"})
        settled = await deliver([sampled()["purchase"]], bot, tmp_path)
    assert (settled, fake.kept) == ([(State.DEAD, "http_204")], [])


async def test_one_bad_event_does_not_keep_its_batch_from_databuddy(tmp_path: Path) -> None:
    fake = Fake()
    ids = [str(uuid5(NAMESPACE_OID, str(number))) for number in range(6)]
    events = [structs.replace(sampled()["purchase"], id=id) for id in ids]
    events[3] = structs.replace(events[3], at=NOW + 2 * HOUR)
    with running(fake.app()) as url:
        settled = await deliver(events, destination_at(url, "databuddy"), tmp_path)
    assert [each["eventId"] for each in fake.kept] == [*ids[:3], *ids[4:]]
    assert settled == [(State.DEAD, "http_400") if number == 3 else (State.SENT, None) for number in range(6)]


async def test_an_order_of_many_items_fits_into_databuddys_properties(tmp_path: Path) -> None:
    fake, item = Fake(), {"item_id": "SKU-" + "9" * 60, "name": "N" * 255, "quantity": 10, "price": 1999.99}
    order = structs.replace(sampled()["purchase"], properties={"order_id": "ORD-1", "items": [item] * 500})
    with running(fake.app()) as url:
        settled = await deliver([order], destination_at(url, "databuddy"), tmp_path)
    assert settled == [(State.SENT, None)]
    assert len(fake.kept[0]["properties"]["items"]) == 80


async def test_databuddy_learns_who_a_visitor_is(tmp_path: Path) -> None:
    fake = Fake()
    with running(fake.app()) as url:
        to = destination("databuddy-identify", DATABUDDY_API_URL=f"{url}/databuddy")
        settled = await deliver([sampled()["identify"]], to, tmp_path)
    assert settled == [(State.SENT, None)]
    assert fake.kept == [dict(cases("databuddy"))["identify"]["body"]]


async def test_nexly_1_0_keeps_the_flat_part_of_a_purchase(tmp_path: Path) -> None:
    fake = Fake("cdata")
    with running(fake.app()) as url:
        await deliver([sampled()["purchase"]], destination_at(url, "nexly-cdata"), tmp_path)
    assert fake.kept[0]["cdata"] == {"order_id": "ORD-1234", "value": 129.5, "currency": "USD", "coupon": "SPRING"}


def test_our_name_is_nobodys_bot() -> None:
    assert USER_AGENT.startswith("gateway/")
