"""Strict platforms take what the real loop sends of every bundled sample; their answers decide as they should."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from msgspec import structs

from gateway.deliveries import State
from gateway.destinations import Destination, Response, judge, route
from gateway.events import Event, ProductIds, Visitor
from gateway.mappings import bundled, load_mappings
from gateway.sealing import Secret
from gateway.server import running
from tests.destinations.ads_fakes import AdsFake
from tests.destinations.fakes import NOW
from tests.destinations.test_ads_golden import ADS, NAMES, destination
from tests.destinations.test_collectors import deliver, sampled
from tests.destinations.test_golden import cases

CLICKS = {"_ga": "GA1.1.1234567890.1700000000", "fbclid": "IwAR2abc", "ttclid": "E.C.P.abc"}
Change = Callable[[dict[str, str], dict[str, Any]], object]
HOSTS = ("GA4_HOST", "META_HOST", "TIKTOK_HOST")


def linked() -> list[Event]:
    """Return every event that the bundled mappings make of the bundled samples, linked to a browser."""
    visitor = Visitor({"": ProductIds("anon_1", "sess_1")}, CLICKS)
    return [structs.replace(each, visitor=visitor) for each in sampled().values()]


def at(url: str, name: str) -> Destination:
    to = load_mappings(bundled(), {**ADS, **dict.fromkeys(HOSTS, url)}.get).destinations[name]
    return structs.replace(to, max_age=0)  # the samples are older than that


def answered(name: str, status: int, body: object) -> State:
    (outcome,) = judge(Response(status, body=msgspec.json.encode(body)), destination(name), 1)
    return outcome.state


@pytest.mark.parametrize("name", NAMES)
async def test_all_that_we_send_is_accepted(name: str, tmp_path: Path) -> None:
    fake, events = AdsFake(), linked()
    with running(fake.app()) as url:
        to = at(url, name)
        settled = await deliver(events, to, tmp_path)
    skips = [route(event, to, forward_tests=False) for event in events]
    assert settled == [(State.SKIPPED, skip) if skip else (State.SENT, None) for skip in skips]
    assert len(fake.kept) == skips.count(None) > 10


@pytest.mark.parametrize("name", NAMES)
async def test_events_of_nobody_known_are_skipped(name: str, tmp_path: Path) -> None:
    events = [structs.replace(each, visitor=None, user_id=None, identity={}) for each in linked()]
    fake = AdsFake()
    with running(fake.app()) as url:
        to = at(url, name)
        settled = await deliver(events, to, tmp_path)
    assert {state for state, _ in settled} == {State.SKIPPED}
    assert {reason for _, reason in settled} - {"not_routed", "test_event"} == {"no_person"}
    assert fake.kept == []


@pytest.mark.parametrize(("name", "days"), [("ga4", 3), ("meta", 7), ("tiktok", 7)])
async def test_events_that_are_too_old_for_a_platform_are_skipped(name: str, days: int, tmp_path: Path) -> None:
    limit = NOW - days * 86_400_000
    events = [each for each in linked() if route(each, destination(name), forward_tests=False) is None]
    fake = AdsFake()
    with running(fake.app()) as url:
        to = structs.replace(at(url, name), max_age=destination(name).max_age)
        old = await deliver([structs.replace(each, at=limit - 1) for each in events], to, tmp_path / "old")
        new = await deliver([structs.replace(each, at=limit + 1) for each in events], to, tmp_path / "new")
    assert set(old) == {(State.SKIPPED, "too_old")}
    assert set(new) == {(State.SENT, None)}


async def test_meta_is_asked_again_when_it_was_not_the_event(tmp_path: Path) -> None:
    fake = AdsFake(failing=[4])  # too many calls: status 400 all the same
    with running(fake.app()) as url:
        settled = await deliver([sampled()["purchase"]], at(url, "meta"), tmp_path)
    assert settled[0][0] == State.DUE


async def test_a_wrong_token_is_tried_again_and_loses_nothing(tmp_path: Path) -> None:
    for name, answer in {"meta": State.DUE, "tiktok": State.DUE}.items():
        folder = tmp_path / name
        folder.mkdir()
        with running(AdsFake().app()) as url:
            to = structs.replace(at(url, name), secrets={"access_token": Secret("wrong")})
            settled = await deliver([sampled()["purchase"]], to, folder)
        assert settled[0][0] == answer


@pytest.mark.parametrize(
    ("code", "subcode", "state"),
    [
        (100, None, State.DEAD),  # invalid parameter
        (100, 2804050, State.DEAD),  # not enough to match by
        (100, 33, State.DUE),  # the pixel is not this token's
        (190, None, State.DUE),  # the token
        (200, None, State.DUE),  # a permission
        (1, None, State.DUE),
        (2, None, State.DUE),
        (4, None, State.DUE),  # too many calls
        (17, None, State.DUE),
        (80004, None, State.DUE),
    ],
)
def test_metas_error_code_decides_and_not_its_status(code: int, subcode: int | None, state: State) -> None:
    error = {"message": "m", "code": code, "fbtrace_id": "A1"} | ({"error_subcode": subcode} if subcode else {})
    assert answered("meta", 400, {"error": error}) == state


@pytest.mark.parametrize(
    ("code", "state"),
    [
        (0, State.SENT),
        (40002, State.DEAD),
        (40001, State.DUE),
        (40100, State.DUE),
        (40105, State.DUE),
        (50000, State.DUE),
    ],
)
def test_tiktoks_code_decides_and_not_its_status(code: int, state: State) -> None:
    assert answered("tiktok", 200, {"code": code, "message": "m", "data": {}}) == state


@pytest.mark.parametrize("name", ["meta", "tiktok"])
@pytest.mark.parametrize("body", [None, {}, [], "OK", {"events_received": 0}])
def test_a_200_that_confirms_nothing_is_no_success(name: str, body: object) -> None:
    assert answered(name, 200, body) != State.SENT


def test_ga4_says_yes_to_everything() -> None:
    assert answered("ga4", 204, None) == State.SENT
    assert answered("ga4", 503, None) == State.DUE


# The fakes themselves


@pytest.fixture(scope="module")
def platforms() -> Iterator[tuple[AdsFake, dict[str, str]]]:
    fake = AdsFake()
    with running(fake.app()) as url:
        yield fake, {name: at(url, name).url for name in NAMES}


def is_taken(platforms: tuple[AdsFake, dict[str, str]], name: str, golden: str, change: Change) -> bool:
    """Send a golden request with a change; return whether it was taken."""
    fake, urls = platforms
    before = len(fake.kept)
    request: Any = msgspec.json.decode(msgspec.json.encode(dict(cases(name))[golden]))
    change(request["headers"], request["body"])
    with httpx.Client() as client:
        client.post(urls[name], headers=request["headers"], content=msgspec.json.encode(request["body"]))
    return len(fake.kept) == before + 1


@pytest.mark.parametrize(("name", "golden"), [(name, golden) for name in NAMES for golden, _ in cases(name)])
def test_a_golden_request_is_accepted(platforms: tuple[AdsFake, dict[str, str]], name: str, golden: str) -> None:
    assert is_taken(platforms, name, golden, lambda _headers, _body: None)


REFUSED: dict[str, tuple[str, Change]] = {
    "ga4: no client": ("ga4", lambda _, body: body.pop("client_id")),
    "ga4: another product's id": ("ga4", lambda _, body: body.update(client_id="anon_1")),
    "ga4: a time in ms": ("ga4", lambda _, body: body.update(timestamp_micros=1751373296000)),
    "ga4: a reserved name": ("ga4", lambda _, body: body["events"][0].update(name="ga_purchase")),
    "ga4: a name with a space": ("ga4", lambda _, body: body["events"][0].update(name="my purchase")),
    "ga4: a nested parameter": ("ga4", lambda _, body: body["events"][0]["params"].update(plan={"id": 1})),
    "ga4: a parameter that is null": ("ga4", lambda _, body: body["events"][0]["params"].update(plan=None)),
    "ga4: a raw email": ("ga4", lambda _, body: body.update(user_data={"sha256_email_address": ["ada@example.com"]})),
    "ga4: a value without currency": ("ga4", lambda _, body: body["events"][0]["params"].pop("currency")),
    "meta: another token": ("meta", lambda _, body: body.update(access_token="x")),
    "meta: a raw email": ("meta", lambda _, body: body["data"][0]["user_data"].update(em=["ada@example.com"])),
    "meta: an unknown key": ("meta", lambda _, body: body["data"][0].update(timestamp=1)),
    "meta: a time in ms": ("meta", lambda _, body: body["data"][0].update(event_time=1751373296000)),
    "meta: an unknown source": ("meta", lambda _, body: body["data"][0].update(action_source="server")),
    "meta: nobody": ("meta", lambda _, body: body["data"][0].update(user_data={"country": ["c" * 64]})),
    "meta: a click id for a cookie": ("meta", lambda _, body: body["data"][0]["user_data"].update(fbc="IwAR2abc")),
    "meta: a value that is text": ("meta", lambda _, body: body["data"][0]["custom_data"].update(value="129.50")),
    "meta: a purchase without currency": ("meta", lambda _, body: body["data"][0]["custom_data"].pop("currency")),
    "tiktok: no token": ("tiktok", lambda headers, _: headers.pop("access-token")),
    "tiktok: another pixel": ("tiktok", lambda _, body: body.update(event_source_id="x")),
    "tiktok: a raw phone": ("tiktok", lambda _, body: body["data"][0]["user"].update(phone="+16505551212")),
    "tiktok: a list of hashes": ("tiktok", lambda _, body: body["data"][0]["user"].update(email=["e" * 64])),
    "tiktok: nobody": ("tiktok", lambda _, body: body["data"][0].update(user={})),
    "tiktok: an item without id": (
        "tiktok",
        lambda _, body: body["data"][0]["properties"]["contents"][0].pop("content_id"),
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_request_that_differs_in_form_is_refused(platforms: tuple[AdsFake, dict[str, str]], what: str) -> None:
    name, change = REFUSED[what]
    assert not is_taken(platforms, name, "purchase", change)
