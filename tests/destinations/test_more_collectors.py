"""The strict collectors of other products take what we send, and nothing that differs from it in its form."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import httpx
import msgspec
import pytest
from msgspec import structs

from gateway.deliveries import State
from gateway.delivery import DeliveryLoop
from gateway.destinations import Destination, pack, render, route
from gateway.events import Event, ProductIds, Visitor
from gateway.mappings import bundled, load_mappings
from gateway.sending import HttpSender
from gateway.server import running
from gateway.store.sqlite import SqliteStore
from tests.destinations.more_fakes import BASIC, DOMAIN, KEY, WEBSITE, Collectors
from tests.destinations.test_collectors import SEALER, acceptance, sampled
from tests.destinations.test_more_golden import AT, EVENTS, FILES, cases

NOW = AT + 60_000
Body = Any
Change = Callable[[dict[str, str], Body], object]
FIELDS = ("writeKey", "api_key", "$token")
"""Where a golden request has its key; the collectors here have one key for all."""


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Collectors, str]]:
    fakes = Collectors(NOW)
    with running(fakes.app()) as base:
        yield fakes, base


@pytest.fixture
def url(served: tuple[Collectors, str]) -> str:
    return served[1]


@pytest.fixture
def collectors(served: tuple[Collectors, str]) -> Collectors:
    served[0].kept.clear()
    served[0].answers.clear()
    return served[0]


def settings(url: str) -> dict[str, str]:
    return {
        "SEGMENT_WRITE_KEY": KEY,
        "SEGMENT_HOST": f"{url}/segment",
        "POSTHOG_API_KEY": KEY,
        "POSTHOG_HOST": f"{url}/posthog",
        "MIXPANEL_TOKEN": KEY,
        "MIXPANEL_HOST": f"{url}/mixpanel",
        "AMPLITUDE_API_KEY": KEY,
        "AMPLITUDE_HOST": f"{url}/amplitude",
        "PLAUSIBLE_DOMAIN": DOMAIN,
        "PLAUSIBLE_HOST": f"{url}/plausible",
        "UMAMI_WEBSITE_ID": WEBSITE,
        "UMAMI_HOST": f"{url}/umami",
    }


@functools.cache
def destination_at(url: str, file: str, **changed: str) -> Destination:
    return load_mappings(bundled(), (settings(url) | changed).get).destinations[file]


def golden(file: str, name: str) -> tuple[str, dict[str, str], Body]:
    """Return the path, headers and body of a golden request, with the collectors' key."""
    found: Any = msgspec.json.decode(msgspec.json.encode(dict(cases(file))[name]))
    headers = {key.lower(): value for key, value in found["headers"].items()}
    headers |= {key: value for key, value in {"authorization": BASIC, "x-write-key": KEY}.items() if key in headers}
    for part in [found["body"]] if isinstance(found["body"], dict) else found["body"]:
        part.update({field: KEY for field in FIELDS if field in part})
    path = httpx.URL(found["url"]).raw_path.decode()
    return f"/{file}{path}", {"user-agent": "gateway/1"} | headers, found["body"]


def post(url: str, headers: dict[str, str], body: object) -> int:
    with httpx.Client() as client:
        return client.post(url, headers=headers, content=msgspec.json.encode(body)).status_code


@pytest.mark.parametrize(("file", "name"), [(file, name) for file in FILES for name, _ in cases(file)])
def test_a_golden_request_is_kept(collectors: Collectors, url: str, file: str, name: str) -> None:
    path, headers, body = golden(file, name)
    assert post(url + path, headers, body) in {200, 202}
    assert len(collectors.kept) == 1


def first(body: Body) -> Body:
    """Return the event of a request."""
    if isinstance(body, list):
        return body[0]
    return (body.get("batch") or body.get("events") or [body])[0]


def many(count: int) -> Change:
    return lambda _, body: (body if isinstance(body, list) else body.get("batch") or body["events"]).extend(
        [first(body)] * count
    )


REFUSALS: dict[str, dict[str, tuple[int, Change]]] = {
    "segment": {
        "another key": (401, lambda _, body: body.update(writeKey="other")),
        "no person": (400, lambda _, body: [first(body).pop(key) for key in ("userId", "anonymousId")]),
        "no name": (400, lambda _, body: first(body).pop("event")),
        "a long messageId": (400, lambda _, body: first(body).update(messageId="m" * 100)),
        "a time in ms": (400, lambda _, body: first(body).update(timestamp=AT)),
        "revenue that is text": (400, lambda _, body: first(body)["properties"].update(revenue="110")),
        "no currency": (400, lambda _, body: first(body)["properties"].pop("currency")),
        "products without an id": (400, lambda _, body: first(body)["properties"]["products"][0].pop("product_id")),
        "an unknown field": (400, lambda _, body: first(body).update(user_id="u")),
        "an event of more than 32 KB": (400, lambda _, body: first(body)["properties"].update(x="x" * 32_001)),
        "more than 2,500 events": (400, many(2500)),
    },
    "posthog": {
        "another key": (401, lambda _, body: body.update(api_key="other")),
        "no person": (400, lambda _, body: first(body).pop("distinct_id")),
        "an illegal person": (400, lambda _, body: first(body).update(distinct_id="null")),
        "an id that is no UUID": (400, lambda _, body: first(body).update(uuid="evt_1")),
        "a place to look up": (400, lambda _, body: first(body)["properties"].pop("$geoip_disable")),
        "a value that is text": (400, lambda _, body: first(body)["properties"].update(value="110")),
        "an unknown field": (400, lambda _, body: first(body).update(type="capture")),
    },
    "mixpanel": {
        "no authorization": (401, lambda headers, _: headers.pop("authorization")),
        "a time in text": (400, lambda _, body: first(body)["properties"].update(time="2026-10-26")),
        "a time to come": (400, lambda _, body: first(body)["properties"].update(time=NOW + 3_600_001)),
        "a time before 1971": (400, lambda _, body: first(body)["properties"].update(time=0)),
        "no insert id": (400, lambda _, body: first(body)["properties"].pop("$insert_id")),
        "an insert id with a dot": (400, lambda _, body: first(body)["properties"].update({"$insert_id": "a.b"})),
        "a placeholder for a person": (400, lambda _, body: first(body)["properties"].update(distinct_id="none")),
        "no currency": (400, lambda _, body: first(body)["properties"].pop("currency")),
        "too many properties": (
            400,
            lambda _, body: first(body)["properties"].update({f"p{i}": i for i in range(255)}),
        ),
        "more than 2,000 events": (400, many(2000)),
        "more than 2 MB": (413, lambda _, body: first(body)["properties"].update(x="x" * 2_000_000)),
    },
    "amplitude": {
        "another key": (400, lambda _, body: body.update(api_key="other")),
        "a time in seconds": (400, lambda _, body: first(body).update(time=AT // 1000)),
        "no insert id": (400, lambda _, body: first(body).pop("insert_id")),
        "a placeholder for a person": (400, lambda _, body: first(body).update(user_id="anonymous")),
        "a short id": (400, lambda _, body: (first(body).update(user_id="42"), body.pop("options"))),
        "no person": (400, lambda _, body: [first(body).pop(key) for key in ("user_id", "device_id")]),
        "revenue that is text": (400, lambda _, body: first(body).update(revenue="110")),
        "revenue without a currency": (400, lambda _, body: first(body).pop("currency")),
        "a reserved name": (400, lambda _, body: first(body).update(event_type="[Amplitude] Revenue")),
        "an unknown field": (400, lambda _, body: first(body).update(userId="u")),
        "more than 2,000 events": (413, many(2000)),
    },
    "plausible": {
        "no name": (400, lambda _, body: body.pop("name")),
        "a path for an URL": (400, lambda _, body: body.update(url="/checkout")),
        "a list among the props": (400, lambda _, body: body["props"].update(items=[1])),
        "an amount that is text": (400, lambda _, body: body["revenue"].update(amount="110")),
        "revenue without a currency": (400, lambda _, body: body["revenue"].pop("currency")),
        "too many props": (400, lambda _, body: body["props"].update({f"p{i}": i for i in range(30)})),
        "an unknown field": (400, lambda _, body: body.update(timestamp=AT)),
        "another site": (202, lambda _, body: body.update(domain="other.example")),
        "a client that is a bot": (202, lambda headers, _: headers.update({"user-agent": "gateway/0.1.0"})),
    },
    "umami": {
        "another website": (400, lambda _, body: body["payload"].update(website=WEBSITE[::-1])),
        "a time in ms": (400, lambda _, body: body["payload"].update(timestamp=AT)),
        "a name that is a formula": (400, lambda _, body: body["payload"].update(name="=1")),
        "revenue that is text": (400, lambda _, body: body["payload"]["data"].update(revenue="110")),
        "an unknown type": (400, lambda _, body: body.update(type="pageview")),
        "an unknown field": (400, lambda _, body: body["payload"].update(user="u")),
        "a client that is a bot": (200, lambda headers, _: headers.update({"user-agent": "gateway/0.1.0"})),
    },
}


@pytest.mark.parametrize(("file", "what"), [(file, what) for file in FILES for what in REFUSALS[file]])
def test_a_request_that_differs_in_form_is_not_kept(collectors: Collectors, url: str, file: str, what: str) -> None:
    status, change = REFUSALS[file][what]
    path, headers, body = golden(file, "purchase")
    change(headers, body)
    assert post(url + path, headers, body) == status
    assert not collectors.kept


# Ours, by the real loop


async def deliver(events: list[Event], to: Destination, folder: Path, hours: int = 0) -> list[tuple[State, str | None]]:
    """Send with the real loop, client and store, again each hour for so long; return what became of each event."""
    clock = [NOW]
    store, sender = SqliteStore.open(folder / "gateway.db", SEALER.fingerprint()), HttpSender(to.concurrency)
    receipt = await store.accept(structs.replace(acceptance(events, to), received_at=NOW))
    loop = DeliveryLoop(to.name, lambda: to, store, SEALER, sender, lambda: clock[0], lambda _low, high: high)
    for hour in range(hours + 1):
        clock[0] = NOW + hour * 3_600_000
        while await loop.step():
            pass
    settled = [(each.state, each.reason) for each in await store.deliveries(receipt.webhook)]
    await sender.close()
    await store.close()
    return settled


def all_events() -> list[Event]:
    """Return every event of the bundled samples, of just now, for a person, and one of each kind."""
    visitor = Visitor({"": ProductIds("anon_1", "sess_1")})
    known = [
        structs.replace(each, at=AT, visitor=each.visitor or visitor)
        for each in sampled().values()
        if each.kind == "track"
    ]
    return [*known, *EVENTS.values()]


def fate(event: Event, to: Destination) -> tuple[State, str | None]:
    skip = route(event, to, forward_tests=False) or render(event, to)
    return (State.SKIPPED, skip) if isinstance(skip, str) else (State.SENT, None)


@pytest.mark.parametrize("file", FILES)
async def test_all_that_we_send_is_kept(collectors: Collectors, url: str, file: str, tmp_path: Path) -> None:
    to, events = destination_at(url, file), all_events()
    assert await deliver(events, to, tmp_path) == [fate(event, to) for event in events]
    assert len(collectors.kept) == [fate(event, to)[0] for event in events].count(State.SENT) > 50
    assert len(collectors.answers) <= len(collectors.kept) / (1 if to.max_events == 1 else to.max_events / 2) + 4


@pytest.mark.parametrize("file", ["segment", "posthog", "mixpanel", "amplitude"])
async def test_an_event_that_comes_twice_counts_once(
    collectors: Collectors, url: str, file: str, tmp_path: Path
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        assert await deliver([EVENTS["purchase"]], destination_at(url, file), tmp_path / folder) == [(State.SENT, None)]
    assert len(collectors.answers) == 2
    assert len(collectors.kept) == 1


@pytest.mark.parametrize(
    ("file", "count", "size"), [("segment", 40, 20_000), ("mixpanel", 150, 20_000), ("amplitude", 10, 150_000)]
)
async def test_no_request_is_larger_than_the_collector_takes(
    collectors: Collectors, url: str, file: str, count: int, size: int, tmp_path: Path
) -> None:
    large = [
        structs.replace(EVENTS["refund"], id=str(uuid5(NAMESPACE_OID, str(i))), properties={"x": "x" * size})
        for i in range(count)
    ]
    settled = await deliver(large, destination_at(url, file), tmp_path)
    assert settled == [(State.SENT, None)] * count
    assert len(collectors.kept) == count
    assert collectors.answers == [200] * len(collectors.answers) > [200]


FINE = [structs.replace(EVENTS["refund"], id=f"0b1f5a52-6c1e-5d0a-9a53-0000000000{i}") for i in range(10, 17)]
BAD = {
    "segment": structs.replace(EVENTS["purchase"], properties={"x": "x" * 33_000}),
    "posthog": structs.replace(EVENTS["purchase"], user_id="null"),
    "mixpanel": structs.replace(EVENTS["purchase"], at=NOW + 3_700_000),
    "amplitude": structs.replace(EVENTS["purchase"], user_id="anonymous"),
}


@pytest.mark.parametrize(
    ("file", "requests", "reason"),
    [
        ("segment", 7, "http_400"),  # refused whole: halves until it is alone
        ("posthog", 7, "http_400"),
        ("mixpanel", 1, "http_400: refused"),  # named, and the others kept
        ("amplitude", 2, "http_400: refused"),  # named, and the others go again
    ],
)
async def test_one_bad_event_takes_no_other_with_it(
    collectors: Collectors, url: str, file: str, requests: int, reason: str, tmp_path: Path
) -> None:
    settled = await deliver([*FINE[:3], BAD[file], *FINE[3:]], destination_at(url, file), tmp_path, hours=2)
    assert settled == [(State.SENT, None)] * 3 + [(State.DEAD, reason)] + [(State.SENT, None)] * 4
    assert len(collectors.answers) == requests
    assert sorted(collectors.kept) == sorted(event.id for event in FINE)


async def test_what_umami_takes_for_a_bot_waits_for_a_better_user_agent(
    collectors: Collectors, url: str, tmp_path: Path
) -> None:
    to = destination_at(url, "umami", UMAMI_USER_AGENT="gateway/0.1.0")
    assert await deliver([EVENTS["purchase"]], to, tmp_path) == [(State.PARKED, "http_200")]
    assert not collectors.kept


async def test_plausible_counts_nothing_late(collectors: Collectors, url: str, tmp_path: Path) -> None:
    old = structs.replace(EVENTS["purchase"], at=NOW - 3 * 86_400_000 - 1)
    assert await deliver([old], destination_at(url, "plausible"), tmp_path) == [(State.SKIPPED, "too_old")]
    assert not collectors.answers


@pytest.mark.parametrize("address", ["", "198.51.100.7"])
def test_plausible_is_told_of_the_address_that_is_set(address: str) -> None:
    to = destination_at("http://plausible.example", "plausible", PLAUSIBLE_IP=address)
    assert pack([b"{}"], to, "id", 0).headers.get("X-Forwarded-For", "") == address


@pytest.mark.parametrize("file", ["segment", "posthog", "mixpanel"])
async def test_a_wrong_key_parks_and_loses_nothing(collectors: Collectors, url: str, file: str, tmp_path: Path) -> None:
    wrong = {"SEGMENT_WRITE_KEY": "no", "POSTHOG_API_KEY": "no", "MIXPANEL_TOKEN": "no"}
    to = destination_at(url, file, **wrong)
    assert await deliver([EVENTS["purchase"]], to, tmp_path) == [(State.PARKED, "http_401")]
    assert not collectors.kept
