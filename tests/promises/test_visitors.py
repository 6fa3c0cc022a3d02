"""Who may link what, and which visitor a payment lands on."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import jwt
import msgspec
import pytest

from gateway.app import create_app
from gateway.browser import LINKS_MAX_BODY, make_token
from gateway.mappings import bundled, minified, sample
from gateway.sealing import Secret
from gateway.server import running
from gateway.settings import load_settings
from gateway.signatures import VerifySpec, compile_verification, sign
from tests.promises.collector import Collector

STRIPE_SECRET = "whsec_of_the_tests"
LINK_SECRET = "link_secret_of_the_tests_0123456789abcdef"
STRIPE = compile_verification(VerifySpec(scheme="stripe", secrets=STRIPE_SECRET))
BACKEND = {"authorization": f"Bearer {LINK_SECRET}"}
PAGE = {"origin": "https://shop.example"}
YEAR = 365 * 86_400_000
VISITOR = {"visitor_id": "anon_1", "session_id": "sess_1"}


class Clock:
    """The gateway's time: now, and as much later as the test says."""

    def __init__(self) -> None:
        self.ahead = 0

    def __call__(self) -> int:
        return time.time_ns() // 1_000_000 + self.ahead


class Gateway:
    def __init__(self, url: str, clock: Clock, collector: Collector) -> None:
        self.url = url
        self.clock = clock
        self.collector = collector

    def link(self, body: Mapping[str, object], headers: dict[str, str]) -> httpx.Response:
        return httpx.post(f"{self.url}/link", json=body, headers=headers)

    def pay(self, name: str) -> None:
        body = sample(bundled(), "stripe", name)
        assert body is not None
        body = minified(body)
        headers = sign(STRIPE, body, self.clock() / 1000)
        assert httpx.post(f"{self.url}/webhooks/stripe", content=body, headers=headers).is_success

    def visitor_of(self, event: str) -> object:
        (request,) = self.collector.wait_for(1, lambda body: body["type"] == event)
        return request["data"].get("visitor_id")


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    collector, clock = Collector(), Clock()
    with running(collector.app()) as sink:
        environment = {
            "GATEWAY_STORE": f"sqlite:///{tmp_path / 'gateway.db'}",
            "GATEWAY_LINK_SECRET": LINK_SECRET,
            "GATEWAY_LINK_ORIGINS": "https://shop.example",
            "STRIPE_WEBHOOK_SECRET": STRIPE_SECRET,
            "WEBHOOK_URL": f"{sink}/sink",
            "WEBHOOK_SECRET": "whsec_dGVzdHMtb25seS1ub3QtYS1zZWNyZXQ=",
        }
        with running(create_app(load_settings(environment), clock)) as url:
            yield Gateway(url, clock, collector)


def test_a_backend_links_any_subject_and_the_payment_lands_on_its_visitor(gateway: Gateway) -> None:
    assert gateway.link({**VISITOR, "subjects": {"user": "user_42"}}, BACKEND).status_code == 204
    gateway.pay("checkout.session.completed")
    assert gateway.visitor_of("purchase") == "anon_1"


def test_camel_case_is_taken_too(gateway: Gateway) -> None:
    body = {"visitorId": "anon_2", "sessionId": "s", "subjects": {"stripe_customer": "cus_SGatewayAda42"}}
    assert gateway.link(body, BACKEND).status_code == 204
    gateway.pay("checkout.session.completed")
    assert gateway.visitor_of("purchase") == "anon_2"


def test_a_page_with_a_token_links_its_user(gateway: Gateway) -> None:
    token = make_token("user_42", Secret(LINK_SECRET), int(time.time()), 60)
    assert gateway.link({**VISITOR, "token": token}, PAGE).status_code == 204
    gateway.pay("checkout.session.completed")
    assert gateway.visitor_of("purchase") == "anon_1"


def test_a_page_links_what_nobody_can_guess(gateway: Gateway) -> None:
    subjects = {"stripe_checkout": "cs_live_a1GatewaySampleOneTime0001"}
    assert gateway.link({**VISITOR, "subjects": subjects}, PAGE).status_code == 204
    gateway.pay("checkout.session.completed")
    assert gateway.visitor_of("purchase") == "anon_1"


def test_what_a_payment_teaches_resolves_a_renewal_a_year_later(gateway: Gateway) -> None:
    gateway.link({**VISITOR, "subjects": {"user": "user_42"}}, BACKEND)
    gateway.pay("checkout.session.completed")
    gateway.collector.wait_for(1, lambda body: body["type"] == "purchase")
    gateway.clock.ahead = YEAR
    gateway.pay("charge.dispute.created")  # knows the payment intent and nobody
    assert gateway.visitor_of("dispute_opened") == "anon_1"


def test_the_most_trusted_subject_wins(gateway: Gateway) -> None:
    gateway.link({"visitor_id": "of the customer", "subjects": {"stripe_customer": "cus_SGatewayAda42"}}, BACKEND)
    gateway.link({"visitor_id": "of the user", "subjects": {"user": "user_42"}}, BACKEND)
    gateway.pay("checkout.session.completed")
    assert gateway.visitor_of("purchase") == "of the user"


def token_of(claims: dict[str, object], algorithm: str = "HS256", key: str = LINK_SECRET) -> str:
    good = {"sub": "user_42", "exp": int(time.time()) + 3_600}  # made as the tests are collected, minutes before
    return jwt.encode({**good, **claims}, key if algorithm != "none" else "", algorithm)


@pytest.mark.parametrize(
    ("token", "status"),
    [
        (token_of({}), 204),
        (token_of({"aud": "gateway"}), 204),
        (token_of({"aud": "another"}), 401),
        (token_of({"exp": int(time.time()) - 600}), 401),
        (token_of({"exp": int(time.time()) + 90_000}), 401),
        (token_of({"sub": ""}), 401),
        (token_of({}, key="another_secret_0123456789abcdef012345"), 401),
        (token_of({}, algorithm="none"), 401),
        (token_of({}, algorithm="HS512", key=LINK_SECRET + "0123456789abcdef0123456789abcdef"), 401),
        ("not.a.token", 401),
    ],
    ids=["ours", "ours by name", "foreign", "expired", "long-lived", "nobody", "forged", "none", "HS512", "nonsense"],
)
def test_only_a_token_of_ours_that_is_current_counts(gateway: Gateway, token: str, status: int) -> None:
    assert gateway.link({**VISITOR, "token": token}, PAGE).status_code == status


def test_a_token_of_one_user_links_no_other(gateway: Gateway) -> None:
    body = {**VISITOR, "token": token_of({}), "subjects": {"user": "user_7"}}
    assert gateway.link(body, PAGE).status_code == 403


@pytest.mark.parametrize("subject", ["user", "email", "stripe_customer", "stripe_payment"])
def test_a_page_links_nothing_that_can_be_guessed(gateway: Gateway, subject: str) -> None:
    assert gateway.link({**VISITOR, "subjects": {subject: "42"}}, PAGE).status_code == 403


def test_what_no_mapping_reads_costs_no_link(gateway: Gateway) -> None:
    body = {**VISITOR, "subjects": {"stripe_checkout": "cs_live_a1GatewaySampleOneTime0001", "other_cart": "c"}}
    assert gateway.link(body, PAGE).status_code == 204
    assert gateway.link({**VISITOR, "subjects": {"other_cart": "c"}}, PAGE).status_code == 400


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://shop.example", "https://shop.example.evil"])
def test_a_page_of_another_origin_links_nothing(gateway: Gateway, origin: str) -> None:
    body = {**VISITOR, "subjects": {"stripe_checkout": "cs_1"}}
    assert gateway.link(body, {"origin": origin}).status_code == 403
    preflight = httpx.options(
        f"{gateway.url}/link", headers={"origin": origin, "access-control-request-method": "POST"}
    )
    assert "access-control-allow-origin" not in preflight.headers


def test_a_listed_origin_may_ask(gateway: Gateway) -> None:
    headers = {**PAGE, "access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    preflight = httpx.options(f"{gateway.url}/link", headers=headers)
    assert preflight.is_success
    assert preflight.headers["access-control-allow-origin"] == "https://shop.example"


def test_a_wrong_secret_is_401_even_for_what_a_page_may_link(gateway: Gateway) -> None:
    body = {**VISITOR, "subjects": {"stripe_checkout": "cs_1"}}
    assert gateway.link(body, {"authorization": "Bearer wrong"}).status_code == 401


@pytest.mark.parametrize(
    "body",
    [
        {"subjects": {"user": "42"}},
        VISITOR,
        {"visitor_id": "x" * 10_000, "subjects": {"user": "42"}},
        {"visitor_id": "a\nb", "subjects": {"user": "42"}},
        {"visitor_id": "v", "subjects": {"user": "\u0000"}},
        {"visitor_id": 1, "subjects": {"user": "42"}},
        {"ids": {"@click": {"visitor_id": "v"}}, "subjects": {"user": "42"}},
        {"click_ids": {str(number): "x" for number in range(50)}, "subjects": {"user": "42"}},
    ],
    ids=["no ids", "no subject", "long id", "control", "nul", "number", "reserved", "many"],
)
def test_a_malformed_link_is_400(gateway: Gateway, body: dict[str, object]) -> None:
    assert gateway.link(body, BACKEND).status_code == 400


def test_a_body_that_is_too_large_is_413(gateway: Gateway) -> None:
    answer = httpx.post(f"{gateway.url}/link", content=b" " * (LINKS_MAX_BODY + 1), headers=BACKEND)
    assert answer.status_code == 413


def test_a_flood_is_limited_for_pages_and_not_for_the_backend(gateway: Gateway) -> None:
    body = msgspec.json.encode({**VISITOR, "subjects": {"stripe_checkout": "cs_1"}})
    with httpx.Client(base_url=gateway.url) as client:
        pages = [client.post("/link", content=body, headers=PAGE).status_code for _ in range(130)]
        backend = [client.post("/link", content=body, headers=BACKEND).status_code for _ in range(130)]
    assert (pages[0], pages[-1]) == (204, 429)
    assert set(backend) == {204}
