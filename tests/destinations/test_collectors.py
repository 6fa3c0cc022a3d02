"""Strict collectors take the SDKs' recorded requests and ours, and nothing that differs from them in its form."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import httpx
import msgspec
import pytest
from msgspec import structs

from gateway.deliveries import Acceptance, NewDelivery, NewEvent, State
from gateway.delivery import USER_AGENT, DeliveryLoop, HttpSender
from gateway.destinations import Destination, route
from gateway.dry_run import events_of
from gateway.events import Event, encode_event
from gateway.mappings import bundled, load_mappings, sample_headers
from gateway.sealing import Sealer, Secret
from gateway.server import running
from gateway.store.sqlite import SqliteStore
from gateway.translate import event_key
from tests.destinations.fakes import API_KEY, APP_ID, INGEST_KEY, Fake
from tests.destinations.test_golden import EVENTS, cases

NOW = 1_800_000_000_000
SEALER = Sealer(b"k" * 32)
PATHS = {"nexly": "/v1/collect", "nexly-cdata": "/v1/collect", "datalyr": "/track"}
SLOTS = {"nexly": "data", "nexly-cdata": "cdata", "datalyr": "data"}
GOLDEN = [(file, name, golden) for file in PATHS for name, golden in cases(file)]

Change = Callable[[dict[str, str], dict[str, Any]], object]


@pytest.fixture(scope="module")
def urls() -> Iterator[dict[str, str]]:
    with running(Fake("data").app()) as first, running(Fake("cdata").app()) as second:
        yield {file: (second if slot == "cdata" else first) + PATHS[file] for file, slot in SLOTS.items()}


def recorded(file: str, name: str) -> tuple[dict[str, str], dict[str, Any]]:
    golden: Any = msgspec.json.decode(msgspec.json.encode(dict(cases(file))[name]))
    return {"user-agent": "node", **golden["headers"]}, golden["body"]


def post(url: str, headers: dict[str, str], body: object) -> int:
    with httpx.Client(headers={"User-Agent": ""}) as client:
        return client.post(url, headers=headers, content=msgspec.json.encode(body)).status_code


@pytest.mark.parametrize(("file", "name"), [(file, name) for file, name, _ in GOLDEN])
def test_a_recorded_request_is_accepted(urls: dict[str, str], file: str, name: str) -> None:
    assert post(urls[file], *recorded(file, name)) == 200


NEXLY: dict[str, tuple[int, Change]] = {
    "no origin": (403, lambda headers, _: headers.pop("origin")),
    "httpx's own user agent": (403, lambda headers, _: headers.update({"user-agent": "python-httpx/0.28.1"})),
    "a beacon's content type": (415, lambda headers, _: headers.update({"content-type": "text/plain"})),
    "another token": (401, lambda _, body: body.update(api_token="nx_other")),
    "an unknown key": (400, lambda _, body: body.update(timestamp="2026-01-01")),
    "an unknown client": (400, lambda _, body: body.update(client="gateway")),
    "an unknown event type": (400, lambda _, body: body.update(event_type="track")),
    "no data": (400, lambda _, body: body.pop("data")),
    "data that is text": (400, lambda _, body: body.update(data="x")),
    "cdata of another version": (400, lambda _, body: body.update(cdata={"a": "b"})),
    "a visitor that is null": (400, lambda _, body: body["context"].update(visitor_id=None)),
    "an unknown key in the context": (400, lambda _, body: body["context"].update(user_id="u")),
    "a path that is no copy": (400, lambda _, body: body.update(path="/other")),
}
DATALYR: dict[str, tuple[int, Change]] = {
    "no key": (401, lambda headers, _: headers.pop("x-api-key")),
    "an unknown key": (400, lambda _, body: body.update(sessionId="s")),
    "no event id": (400, lambda _, body: body.pop("eventId")),
    "an event id that is too long": (400, lambda _, body: body.update(eventId="e" * 257)),
    "a user that is null": (400, lambda _, body: body.update(userId=None)),
    "a time in ms": (400, lambda _, body: body.update(timestamp=1751373296000)),
    "a time without ms": (400, lambda _, body: body.update(timestamp="2025-07-01T12:34:56Z")),
    "a value that is text": (400, lambda _, body: body["properties"].update(value="129.50")),
    "another anonymous id": (400, lambda _, body: body["properties"].update(anonymous_id="anon_2")),
    "another library": (400, lambda _, body: body["context"].update(library="gateway")),
    "an unknown special event": (400, lambda _, body: body.update(event="$purchase")),
}


@pytest.mark.parametrize(
    ("file", "what"), [("nexly", what) for what in NEXLY] + [("datalyr", what) for what in DATALYR]
)
def test_a_request_that_differs_in_form_is_refused(urls: dict[str, str], file: str, what: str) -> None:
    status, change = (NEXLY if file == "nexly" else DATALYR)[what]
    headers, body = recorded(file, "purchase")
    change(headers, body)
    assert post(urls[file], headers, body) == status


def test_an_empty_slot_and_a_full_reserved_one_are_refused(urls: dict[str, str]) -> None:
    headers, body = recorded("nexly-cdata", "purchase")
    assert post(urls["nexly-cdata"], headers, {**body, "cdata": {}}) == 400
    assert post(urls["nexly-cdata"], headers, {**body, "data": {"a": 1}}) == 400


# Ours, by the real loop


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
        "NEXLY_PAYLOAD": SLOTS[file],
        "DATALYR_API_KEY": API_KEY,
        "DATALYR_HOST": f"{url}/track",
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


@pytest.mark.parametrize("file", PATHS)
async def test_all_that_we_send_is_accepted(file: str, tmp_path: Path) -> None:
    fake, events = Fake(SLOTS[file]), list(sampled().values())
    with running(fake.app()) as url:
        to = destination_at(url, file)
        settled = await deliver(events, to, tmp_path)
    wanted = [route(event, to, forward_tests=False) for event in events]
    assert settled == [(State.SKIPPED, skip) if skip else (State.SENT, None) for skip in wanted]
    assert len(fake.kept) == wanted.count(None) > 30


async def test_a_wrong_key_is_dead_with_the_status(tmp_path: Path) -> None:
    with running(Fake().app()) as url:
        to = structs.replace(destination_at(url, "datalyr"), secrets={"api_key": Secret("dk_wrong")})
        settled = await deliver([sampled()["purchase"]], to, tmp_path)
    assert settled == [(State.DEAD, "http_401")]


async def test_nexly_1_0_keeps_the_flat_part_of_a_purchase(tmp_path: Path) -> None:
    fake = Fake("cdata")
    with running(fake.app()) as url:
        await deliver([sampled()["purchase"]], destination_at(url, "nexly-cdata"), tmp_path)
    assert fake.kept[0]["cdata"] == {"order_id": "ORD-1234", "value": 129.5, "currency": "USD", "coupon": "SPRING"}


def test_our_name_is_nobodys_bot() -> None:
    assert USER_AGENT.startswith("gateway/")
