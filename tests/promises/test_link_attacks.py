"""Who may link what, under attack: no browser leads another person's payments to itself, and nothing it sends is a 500.

An attacker here has pages of their own, may put anybody's name into what they buy, and sees no secret. Faults are part
of it: races, a store that is down, a clock that is set back, people who are forgotten while they pay.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec
import pytest
from click.testing import CliRunner
from litestar import Litestar, Request, post

from gateway.app import LINKS_PER_MINUTE, create_app
from gateway.browser import LEEWAY, MAX_PARTS, make_token
from gateway.cli import main
from gateway.links import KnownLink
from gateway.mappings import bundled, minified, sample
from gateway.pacing import MAX_CLIENTS, MINUTE, Allowance, client_of
from gateway.sealing import Secret
from gateway.server import running, server
from gateway.settings import load_settings
from gateway.signatures import VerifySpec, compile_verification, sign
from gateway.store.sqlite import MAX_TOLD
from gateway.stored import StoredRequests, replay_stored
from tests.promises.collector import Collector
from tests.promises.served import LINK_SECRET, Served, document_of, encoded, payment

BACKEND = {"authorization": f"Bearer {LINK_SECRET}"}
SHOP = {"origin": "https://shop.example"}
HOUR = 3_600_000
WITHIN = 30.0
EMMY = "emmy.beispiel@example.com"
SHOPIFY = compile_verification(
    VerifySpec(scheme="hmac", secrets="s", header="X-Shopify-Hmac-Sha256", encoding="base64", payload="{body}")
)


class Attacked(Served):
    """A gateway that is spoken to over one connection, as a new TLS context for each request would be what is slow."""

    def __init__(self, folder: Path, **environment: str) -> None:
        super().__init__(
            folder,
            GATEWAY_LINK_ORIGINS="https://shop.example,null",
            GATEWAY_EXPORTS=str(folder / "exports"),
            SHOPIFY_WEBHOOK_SECRET="s",
            **environment,
        )
        self.http: httpx.Client

    @contextmanager
    def up(self, *, deliver: bool = True, **environment: str) -> Iterator["Attacked"]:
        with super().up(deliver=deliver, **environment), httpx.Client(timeout=WITHIN) as self.http:
            yield self

    def post(self, body: bytes, headers: dict[str, str] | None = None, source: str = "stripe") -> httpx.Response:
        headers = self.signed(body) if headers is None else headers
        return self.http.post(f"{self.url}/webhooks/{source}", content=body, headers=headers)

    def link(self, body: object, headers: dict[str, str] | None = None) -> httpx.Response:
        content = body if isinstance(body, bytes) else msgspec.json.encode(body)
        return self.http.post(f"{self.url}/link", content=content, headers=headers or {})

    def forget(self, **subjects: str) -> httpx.Response:
        return self.http.request("DELETE", f"{self.url}/links", json={"subjects": subjects}, headers=BACKEND)

    def said(self, visitor: str, **subjects: str) -> None:
        """Let the backend link these subjects."""
        assert self.link({"visitor_id": visitor, "subjects": subjects}, BACKEND).status_code == 204

    def known(self, name: str, value: str) -> list[KnownLink]:
        with StoredRequests(load_settings(self.environment)) as stored:
            return stored.links({name: value})[name]

    def visitors(self, name: str, value: str) -> dict[str, str | None]:
        """Return what a subject is linked to, by product."""
        return {each.product: each.visitor_id for each in self.known(name, value)}

    def shopify(self, name: str, topic: str, **changed: object) -> httpx.Response:
        body = sample(bundled(), "shopify", name)
        assert body is not None
        document = msgspec.json.decode(body)
        body = minified(msgspec.json.encode(document | changed))
        id = hashlib.sha256(topic.encode() + body).hexdigest()
        shop = {"X-Shopify-Topic": topic, "X-Shopify-Shop-Domain": "demo-shop.myshopify.com", "X-Shopify-Event-Id": id}
        return self.post(body, shop | sign(SHOPIFY, body, 0), "shopify")

    def bodies(self) -> int:
        """Return how many webhooks are kept."""
        return int(self.rows("SELECT count(*) FROM webhook WHERE sealed NOT NULL")[0][0])

    def second_writer(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, isolation_level=None)

    def open_requests(self) -> int:
        return int(self.rows("SELECT count(*) FROM request WHERE done_at = 0")[0][0])


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    attacked = Attacked(tmp_path_factory.mktemp("attacked"))
    with attacked.up(deliver=False):
        yield attacked


@pytest.fixture
def gate(standing: Attacked) -> Attacked:
    """Return the gateway that these tests share, a minute later: nobody's allowance is used up."""
    standing.ahead += 2 * MINUTE
    return standing


@pytest.fixture
def own(tmp_path: Path) -> Attacked:
    """Return a gateway of the test's own, not yet up."""
    return Attacked(tmp_path)


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def attack_link(number: object, visitor: str = "attacker") -> dict[str, object]:
    """Return what a page may link by itself: its own checkout."""
    return {"visitor_id": visitor, "subjects": {"stripe_checkout": f"cs_{number}"}}


# Tokens


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(header: bytes, claims: bytes, key: str = LINK_SECRET) -> str:
    """Sign a token as HS256 does, whatever it says of itself."""
    text = f"{base64url(header)}.{base64url(claims)}"
    return f"{text}.{base64url(hmac.digest(key.encode(), text.encode(), 'sha256'))}"


HS256 = b'{"alg":"HS256"}'
OURS = b'{"sub":"user_42","exp":EXP}'


@pytest.mark.parametrize(
    ("header", "claims"),
    [
        pytest.param(b'{"alg":"RS256"}', OURS, id="RS256 with the secret as its key"),
        pytest.param(b'{"alg":"HS512"}', OURS, id="HS512 by name"),
        pytest.param(b'{"alg":"none"}', OURS, id="none"),
        pytest.param(b'{"alg":"hs256"}', OURS, id="lower case"),
        pytest.param(b'{"alg":["HS256"]}', OURS, id="a list of algorithms"),
        pytest.param(b'{"alg":"HS256","crit":["exp2"],"exp2":1}', OURS, id="an extension that is critical"),
        pytest.param(b'["HS256"]', OURS, id="a header that is a list"),
        pytest.param(b"[" * 2_000, OURS, id="a deep header"),
        pytest.param(HS256, b"[" * 2_000, id="deep claims"),
        pytest.param(HS256, b'"user_42"', id="claims that are text"),
        pytest.param(HS256, b'{"sub":42,"exp":EXP}', id="a number as user"),
        pytest.param(HS256, b'{"sub":["user_42"],"exp":EXP}', id="a list of users"),
        pytest.param(HS256, b'{"sub":{"user":1},"exp":EXP}', id="a map as user"),
        pytest.param(HS256, b'{"sub":null,"exp":EXP}', id="null as user"),
        pytest.param(HS256, b'{"sub":true,"exp":EXP}', id="true as user"),
        pytest.param(HS256, b'{"exp":EXP}', id="no user"),
        pytest.param(HS256, b'{"sub":"user_42"}', id="no end"),
        pytest.param(HS256, b'{"sub":"user_42","exp":NaN}', id="an end that never comes"),
        pytest.param(HS256, b'{"sub":"user_42","exp":1e999}', id="an infinite end"),
        pytest.param(HS256, b'{"sub":"user_42","exp":true}', id="true as end"),
        pytest.param(HS256, b'{"sub":"user_42","exp":"EXP"}', id="text as end"),
        pytest.param(HS256, b'{"sub":"user_42","exp":EXP,"nbf":EXP}', id="not yet"),
        pytest.param(HS256, b'{"sub":"user_42","exp":EXP,"aud":["another"]}', id="foreign audiences"),
        pytest.param(HS256, b'{"sub":"user_42","exp":EXP,"aud":{"gateway":1}}', id="a map of audiences"),
        pytest.param(HS256, b'{"sub":"user_42","exp":EXP,"aud":null}', id="null as audience"),
    ],
)
def test_a_token_that_is_not_wholly_right_is_401(gate: Attacked, header: bytes, claims: bytes) -> None:
    ends = str(gate.now() // 1000 + 3_600).encode()
    token = signed(header, claims.replace(b"EXP", ends))
    assert gate.link({"visitor_id": "attacker", "token": token}, SHOP).status_code == 401


@pytest.mark.parametrize("token", ["", ".", "..", "a.b.c", "é.é.é", "a\x00.b.c", "A" * 10_000, "e30.e30."])
def test_what_is_no_token_is_401(gate: Attacked, token: str) -> None:
    assert gate.link({"visitor_id": "attacker", "token": token}, SHOP).status_code == 401


def test_a_token_cannot_say_where_its_key_is(gate: Attacked) -> None:
    with socket.create_server(("127.0.0.1", 0)) as keys:
        keys.setblocking(False)
        address = f"http://127.0.0.1:{keys.getsockname()[1]}/keys"
        header = {"alg": "HS256", "kid": "../../dev/null", "jku": address, "x5u": address, "jwk": {"k": ""}}
        claims = json.dumps({"sub": "user_42", "exp": gate.now() // 1000 + 60}).encode()
        tokens = [signed(json.dumps(header).encode(), claims, key) for key in ("\0", "attackers", LINK_SECRET)]
        answers = [gate.link({"visitor_id": "v", "token": each}, SHOP).status_code for each in tokens]
        assert answers == [401, 401, 204]
        with pytest.raises(BlockingIOError):
            keys.accept()


def test_a_token_that_was_seen_counts_until_its_end_and_never_after(gate: Attacked) -> None:
    body = {"visitor_id": "v", "token": make_token("user_42", Secret(LINK_SECRET), gate.now() // 1000, 60)}
    assert [gate.link(body, SHOP).status_code for _ in range(2)] == [204, 204]
    gate.ahead += (60 + LEEWAY + 2) * 1000
    assert gate.link(body, SHOP).status_code == 401


def test_a_wrong_secret_costs_the_same_whatever_it_is(gate: Attacked, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def watched(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return compare(one, other)

    monkeypatch.setattr("gateway.sealing.hmac.compare_digest", watched)
    guesses = ["x", LINK_SECRET[:-1], LINK_SECRET + "x", LINK_SECRET[:-1] + "x", "x" * 8_000]
    answers = [gate.link(attack_link(1), {"authorization": f"Bearer {guess}"}).status_code for guess in guesses]
    assert answers == [401] * len(guesses)
    # Digests of one length, from the first byte to the last: neither the length nor the beginning of the secret shows.
    assert len(compared) >= len(guesses)
    assert set(compared) == {(32, 32)}


# Subjects


@pytest.mark.parametrize(
    "subjects",
    [
        b'{"user":"victim"}',
        b'{"user ":"victim"}',
        b'{" user":"victim"}',
        b'{"User":"victim"}',
        b'{"USER":"victim"}',
        b'{"userId":"victim","user_id":"victim"}',
        '{"\N{FULLWIDTH LATIN SMALL LETTER U}ser":"victim"}'.encode(),
        '{"u\N{CYRILLIC SMALL LETTER DZE}er":"victim"}'.encode(),
        b'{"us\\u0065r":"victim"}',
        b'{"user\\u200b":"victim"}',
        b'{"user":"me","user":"victim"}',
        b'{"user":"victim","user":"me"}',
        b'{"user":"me"},"subjects":{"user":"victim"}',
        b'{"user":"victim"},"Subjects":{"user":"me"}',
        b'{"user":{"user":"victim"}}',
        b'{"user":["me","victim"]}',
        b'{"user":" victim"}',
        b'{"user":"me\\u0000victim"}',
        b'{},"user":"victim","user_id":"victim","userId":"victim","sub":"victim"',
    ],
)
@pytest.mark.parametrize("with_token", [True, False], ids=["logged in", "anybody"])
def test_no_spelling_of_a_subject_links_another_user(gate: Attacked, subjects: bytes, with_token: bool) -> None:
    token = make_token("me", Secret(LINK_SECRET), gate.now() // 1000, 60)
    says = b',"token":"' + token.encode() + b'"' if with_token else b""
    answer = gate.link(b'{"visitor_id":"attacker"' + says + b',"subjects":' + subjects + b"}", SHOP)
    assert answer.status_code in {204, 400, 403}
    assert gate.visitors("user", "victim") == {}


@pytest.mark.parametrize("name", ["stripeCustomer", "stripe_customer", "email", "phone", "shopify_customer"])
def test_a_token_of_a_user_links_nothing_else_that_can_be_guessed(gate: Attacked, name: str) -> None:
    token = make_token("me", Secret(LINK_SECRET), gate.now() // 1000, 60)
    gate.link({"visitor_id": "attacker", "token": token, "subjects": {name: "+4930123456@example.com"}}, SHOP)
    assert gate.visitors(name, "+4930123456@example.com") == {}


# Origins


@pytest.mark.parametrize(
    "origin",
    [
        "",
        "https://shop.example/",
        "https://shop.example:443",
        "https://shop.example:8443",
        "https://user@shop.example",
        "https://SHOP.example",
        "https://shop.example.",
        "https://shopXexample",
        "https://evil.shop.example",
        "https://shop.example, https://evil.example",
        "https://evil.example#https://shop.example",
        "Null",
        "*",
    ],
)
def test_an_origin_that_is_not_listed_to_the_letter_may_nothing(gate: Attacked, origin: str) -> None:
    refused = gate.link(attack_link("origin"), {"origin": origin})
    preflight = gate.http.options(
        f"{gate.url}/link", headers={"origin": origin, "access-control-request-method": "POST"}
    )
    assert refused.status_code == 403
    assert not {"access-control-allow-origin"} & (refused.headers.keys() | preflight.headers.keys())


@pytest.mark.parametrize("headers", [SHOP, {"origin": "null"}, {}], ids=["listed", "null, as listed", "no browser"])
def test_whoever_asks_without_a_secret_may_link_only_what_nobody_can_guess(
    gate: Attacked, headers: dict[str, str]
) -> None:
    assert gate.link(attack_link("guessed"), headers).status_code == 204
    assert gate.link({"visitor_id": "attacker", "subjects": {"user": "victim"}}, headers).status_code == 403


@pytest.mark.parametrize(
    ("path", "method", "header"),
    [("link", "POST", "authorization"), ("links", "DELETE", "content-type"), ("link", "PUT", "content-type")],
)
def test_a_page_is_not_offered_what_only_a_backend_needs(gate: Attacked, path: str, method: str, header: str) -> None:
    asked = {**SHOP, "access-control-request-method": method, "access-control-request-headers": header}
    preflight = gate.http.options(f"{gate.url}/{path}", headers=asked)
    assert (preflight.status_code, "access-control-allow-origin" in preflight.headers) == (400, False)


def test_a_listed_page_can_read_why_it_is_refused(gate: Attacked) -> None:
    refused = gate.link({"visitor_id": "v", "subjects": {"user": "42"}}, SHOP)
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (403, SHOP["origin"])


# Bodies


def spoken(gate: Attacked, request: list[bytes]) -> bytes:
    """Send bytes for as long as the gateway takes them; return how its answer begins."""
    where = urlsplit(gate.url)
    with socket.create_connection((where.hostname or "", where.port or 0), WITHIN) as connection:
        try:
            for piece in request:
                connection.sendall(piece)
        except OSError:
            pass  # it has answered and hung up
        return connection.recv(12)


@pytest.mark.parametrize("line", [b"POST /link", b"DELETE /links"])
@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
def test_ten_megabytes_are_413_and_not_waited_for(gate: Attacked, line: bytes, declared: bool) -> None:
    head = line + b" HTTP/1.1\r\nHost: gateway\r\nAuthorization: " + BACKEND["authorization"].encode() + b"\r\n"
    chunk = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
    if declared:
        request = [head + b"Content-Length: 10000000\r\n\r\n"]
    else:
        request = [head + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 3]  # and then nothing: no end is sent
    assert spoken(gate, request) == b"HTTP/1.1 413"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param(b'{"x":' + b"[" * 15_000, 400, id="deep"),
        pytest.param(b'{"subjects":' + b'{"a":' * 3_000, 400, id="deep subjects"),
        pytest.param(json.dumps({str(n): 1 for n in range(100_000)}).encode(), 413, id="many keys"),
        pytest.param(b'{"visitor_id":"v","subjects":{"user":' + b"9" * 10_000 + b"}}", 400, id="a long number"),
        pytest.param(b'{"visitor_id":"v","subjects":{"user":true}}', 400, id="a truth"),
        pytest.param(b'{"visitor_id":"\xff","subjects":{"user":"u"}}', 400, id="no UTF-8"),
        pytest.param(b'{"visitor_id":"\\ud800","subjects":{"user":"u"}}', 400, id="half a character"),
        pytest.param(b'{"visitor_id":"v","subjects":{"\\u0000":"u"}}', 400, id="a name that is a control character"),
        pytest.param(b'{"visitor_id":"v","subjects":{"":"u"}}', 400, id="no name"),
        pytest.param(b'{"visitor_id":"v\\u2028","subjects":{"user":"u"}}', 400, id="a line separator"),
        pytest.param(b'{"visitor_id":"' + b"v" * 10_000 + b'","subjects":{"user":"u"}}', 400, id="a long id"),
        pytest.param(b'{"ids":{"@click":{"visitor_id":"v"}},"subjects":{"user":"u"}}', 400, id="the store's own name"),
        pytest.param(b'{"ids":{"nexly":null},"subjects":{"user":"u"}}', 400, id="null for ids"),
        pytest.param(b'{"ids":[],"subjects":{"user":"u"}}', 400, id="a list of ids"),
        pytest.param(b"", 400, id="nothing"),
        pytest.param(b"null", 400, id="null"),
        pytest.param(b"[]", 400, id="a list"),
        pytest.param(b"\xef\xbb\xbf{}", 400, id="a byte order mark"),
        pytest.param("{}".encode("utf-16"), 400, id="UTF-16"),
    ],
)
def test_what_is_no_link_is_refused_and_never_a_500(gate: Attacked, body: bytes, status: int) -> None:
    assert gate.link(body, BACKEND).status_code == status


def test_names_that_mean_something_elsewhere_mean_nothing_here(gate: Attacked) -> None:
    names = ["__proto__", "constructor", "click", "'; DROP TABLE link; --", "💸", ""]
    body = attack_link("names") | {"ids": {name: {"visitor_id": f"of {name}"} for name in names}}
    del body["visitor_id"]
    assert gate.link(body, SHOP).status_code == 204
    assert gate.visitors("stripe_checkout", "cs_names") == {name: f"of {name}" for name in names}


@pytest.mark.parametrize(
    "type",
    [
        "",
        "text/plain;charset=UTF-8",  # what sendBeacon and fetch say of a text
        "application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/octet-stream",
        "no/type; charset=utf-99",
    ],
)
def test_the_content_type_does_not_matter(gate: Attacked, type: str) -> None:
    assert gate.link(attack_link("types"), {**SHOP, "content-type": type}).status_code == 204


def test_a_page_cannot_fill_a_subject_with_products(gate: Attacked) -> None:
    def answer(page: int) -> int:
        ids = {f"product-{page}-{n}": {"visitor_id": "v"} for n in range(20)}
        return gate.link({"ids": ids, "subjects": {"stripe_checkout": "cs_full"}}, SHOP).status_code

    assert [answer(page) for page in (0, 1, 2, 0)] == [204, 204, 400, 204]
    assert len(gate.visitors("stripe_checkout", "cs_full")) == MAX_PARTS == 40


# Floods


def test_a_flood_from_one_client_is_429_whoever_it_says_it_is(gate: Attacked) -> None:
    answers = [
        gate.link(attack_link("flood"), {**SHOP, "x-forwarded-for": f"10.0.0.{n}", "x-real-ip": f"10.0.1.{n}"})
        for n in range(LINKS_PER_MINUTE + 1)
    ]
    assert {each.status_code for each in answers[:-1]} == {204}
    assert answers[-1].status_code == 429
    assert 0 < int(answers[-1].headers["retry-after"]) <= 60
    gate.ahead += MINUTE
    assert gate.link(attack_link("flood"), SHOP).status_code == 204


@contextmanager
def behind_a_proxy(own: Attacked) -> Iterator[None]:
    """Serve as `gateway serve` does when this machine is a trusted proxy."""
    app = create_app(load_settings(own.environment), own.now, deliver=False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        served = server(app, "127.0.0.1", 0, "127.0.0.1")
        thread = threading.Thread(target=served.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        until(lambda: served.started)
        own.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            with httpx.Client(timeout=WITHIN) as own.http:
                yield
        finally:
            served.should_exit = True
            thread.join(WITHIN)


def test_behind_a_trusted_proxy_clients_are_told_apart_by_what_the_proxy_adds(own: Attacked) -> None:
    with behind_a_proxy(own):

        def answers(forwarded: Callable[[int], str]) -> list[int]:
            numbers = range(LINKS_PER_MINUTE + 1)
            headers = [{**SHOP, "x-forwarded-for": forwarded(n)} for n in numbers]
            return [own.link(attack_link("proxy"), each).status_code for each in headers]

        assert answers(lambda n: f"10.0.0.{n}, 203.0.113.1")[-1] == 429  # the first part is the client's own word
        assert set(answers(lambda n: f"203.0.113.{n + 2}")) == {204}


def test_a_million_addresses_do_not_fill_the_memory() -> None:
    allowance = Allowance(2, lambda: 0)
    for n in range(3 * MAX_CLIENTS):
        assert allowance.take(f"client {n}") == 0
    assert len(allowance) == MAX_CLIENTS
    assert [allowance.take(f"client {n}") for _ in range(2)] == [0, MINUTE]


def test_an_allowance_is_for_a_minute_from_the_first_request_whatever_the_clock_does() -> None:
    now = 1_000_000
    allowance = Allowance(1, lambda: now)
    assert [allowance.take("a"), allowance.take("a")] == [0, MINUTE]
    now += MINUTE - 1
    assert [allowance.take("a"), allowance.take("b")] == [1, 0]
    now += 1
    assert [allowance.take("a"), allowance.take("b")] == [0, MINUTE - 1]
    now -= HOUR  # set back: nobody is locked out for an hour
    assert [allowance.take("a"), allowance.take("a")] == [0, MINUTE]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("", "x" * 10_000, False),
    ],
)
def test_a_network_of_ipv6_is_one_client(one: str, other: str, same: bool) -> None:
    assert (client_of(one) == client_of(other)) is same
    assert len(client_of(other)) <= 64


# Other people's subjects, through payloads

VICTIM = {"email": "@example.com", "user": "_victim", "stripe_customer": "_cus", "stripe_payment": "_pi"}


def checkout(number: str, **names: str) -> bytes:
    """Return a paid checkout of the attacker's, with other people's names in it."""
    document = document_of("checkout.session.completed")
    session = document["data"]["object"]
    document["id"], session["id"], document["livemode"] = f"evt_{number}", f"cs_{number}", "test" not in names
    session["payment_intent"] = names.get("stripe_payment", f"pi_{number}")
    session["customer"] = names.get("stripe_customer")
    session["client_reference_id"] = names.get("user")
    session["customer_details"] = {"email": names["email"]} if "email" in names else None
    session["customer_email"] = None
    session["metadata"] = {"visitor_id": names.get("carried"), "gateway_reference": names.get("reference")}
    return encoded(document)


@pytest.mark.parametrize("late", [False, True], ids=["linked before", "linked late"])
@pytest.mark.parametrize("carried", [{}, {"carried": "anon_attacker"}], ids=["", "with an own visitor id"])
@pytest.mark.parametrize("learned", [False, True], ids=["said", "learned"])
@pytest.mark.parametrize("name", list(VICTIM))
def test_whose_name_stands_in_an_order_is_led_nowhere_else(
    gate: Attacked, name: str, learned: bool, carried: dict[str, str], late: bool
) -> None:
    number = hashlib.sha256(repr((name, learned, carried, late)).encode()).hexdigest()[:12]
    value = f"{number}{VICTIM[name]}"
    if learned:  # from the victim's own order, of which the attacker knows nothing
        gate.said("victim", stripe_checkout=f"cs_{number}_own")
        assert gate.post(checkout(f"{number}_own", **{name: value})).is_success
    else:
        gate.said("victim", **{name: value})
    before = gate.visitors(name, value)
    link = attack_link(number) | {"ids": {product: {"visitor_id": "attacker"} for product in ("nexly", "datalyr")}}
    order = checkout(number, **{name: value}, **carried)
    if late:
        assert gate.post(order).is_success
    assert gate.link(link, SHOP).is_success
    assert gate.post(order).is_success
    gate.post(checkout(f"{number}_again", **{name: value}, **carried))
    assert gate.visitors(name, value) == before == {"": "victim"}


def test_an_order_leads_to_nobody_through_a_chain_of_names(gate: Attacked) -> None:
    gate.said("victim", email="chain@example.com")
    gate.post(checkout("chain_1", stripe_customer="cus_attacker", email="chain@example.com"))
    gate.post(checkout("chain_2", stripe_customer="cus_attacker", user="user_attacker"))
    gate.post(checkout("chain_3", stripe_customer="cus_chain", email="chain@example.com"))
    for number in ("chain_1", "chain_2", "chain_4"):
        gate.link(attack_link(number), SHOP)
    gate.post(checkout("chain_4", stripe_customer="cus_chain", email="chain@example.com"))
    names = {"email": "chain@example.com", "stripe_customer": "cus_chain"}
    assert [gate.visitors(name, value) for name, value in names.items()] == [{"": "victim"}] * 2


def test_a_name_of_ones_own_that_learned_of_somebody_leads_them_nowhere_when_it_is_linked_anew(gate: Attacked) -> None:
    own = "vis_attackers_own_0123456789"
    gate.said("victim", user="user_root")
    gate.post(checkout("root_1", user="user_root", reference=own))  # teaches it the victim's visitor
    gate.post(checkout("root_2", email="root@example.com", reference=own))  # and so the address
    assert gate.visitors("email", "root@example.com") == {"": "victim"}
    gate.link({"visitor_id": "attacker", "subjects": {"stripe_reference": own}}, SHOP)
    gate.post(checkout("root_3", email="root@example.com", reference=own))
    assert gate.visitors("email", "root@example.com") == {"": "victim"}
    gate.said("moved", user="user_root")
    gate.post(checkout("root_4", user="user_root", email="root@example.com"))
    assert gate.visitors("email", "root@example.com") == {"": "moved"}  # whose it is may


def test_more_orders_than_a_link_is_told_of_leave_none_that_leads_elsewhere(gate: Attacked) -> None:
    for n in range(MAX_TOLD + 1):
        assert gate.post(checkout(f"many_{n}", email="many@example.com")).is_success
    gate.said("victim", email="many@example.com")
    gate.link(attack_link("many_0"), SHOP)  # of which the address has not heard
    assert gate.visitors("email", "many@example.com") == {"": "victim"}


def test_what_the_backend_says_goes_before_what_an_attackers_order_taught(gate: Attacked) -> None:
    gate.link(attack_link("first"), SHOP)
    gate.post(checkout("first", email="late@example.com"))
    assert gate.visitors("email", "late@example.com") == {"": "attacker"}  # nobody had said anything of it
    gate.said("victim", email="late@example.com")
    gate.link(attack_link("first"), SHOP)
    gate.post(checkout("first_2", email="late@example.com"))
    gate.post(checkout("first", email="late@example.com"))
    assert gate.visitors("email", "late@example.com") == {"": "victim"}


def test_a_shops_order_with_attributes_of_an_attackers_leads_nobody_elsewhere(gate: Attacked) -> None:
    gate.said("victim", email=EMMY)
    gate.link({"visitor_id": "attacker", "subjects": {"shopify_cart": "attackers_cart"}}, SHOP)
    attributes = [
        {"name": "_datalyr_visitor_id", "value": "anon_attacker"},
        {"name": "_gateway_reference", "value": "vis_attacker_0123456789"},
    ]
    changed = {"id": 1, "cart_token": "attackers_cart", "customer": None, "email": EMMY, "note_attributes": attributes}
    assert gate.shopify("orders.paid", "orders/paid", **changed).is_success
    assert gate.visitors("email", EMMY) == {"": "victim"}


@pytest.mark.parametrize("late", [False, True], ids=["linked before", "linked late"])
def test_a_test_teaches_nothing_about_people(gate: Attacked, late: bool) -> None:
    number, email = f"test_{late}", f"test_{late}@example.com".lower()
    order = checkout(number, test="yes", email=email, **{} if late else {"carried": "anon_attacker"})
    if late:
        assert gate.post(order).is_success
    assert gate.link(attack_link(number), SHOP).is_success
    assert gate.post(order).is_success
    assert gate.visitors("stripe_checkout", f"cs_{number}") == {"": "attacker"}
    assert gate.visitors("email", email) == {}


def test_to_replay_an_old_order_teaches_nothing_again(own: Attacked) -> None:
    with own.up(deliver=False):
        own.link(attack_link("old"), SHOP)
        own.post(checkout("old", email="old@example.com", carried="anon_attacker"))
        own.said("victim", email="old@example.com")
        before = own.visitors("email", "old@example.com")
        assert asyncio.run(replay_stored(load_settings(own.environment), "evt_old")) == 1
        assert own.visitors("email", "old@example.com") == before
        assert before[""] == "victim"


# Faults


def test_two_browsers_race_and_each_product_is_one_browsers_word(gate: Attacked) -> None:
    def browser(who: str) -> None:
        for n in range(25):
            ids = {product: {"visitor_id": f"{who}{n}", "session_id": f"{who}{n}"} for product in ("nexly", "analyse")}
            gate.link({"ids": ids, "subjects": {"user": "raced"}}, BACKEND)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(browser, "ab"))
    parts = gate.known("user", "raced")
    assert {each.product for each in parts} == {"nexly", "analyse"}
    assert all(each.visitor_id == each.session_id and str(each.visitor_id)[1:] == "24" for each in parts)


def test_a_shared_computer_is_everybodys_and_a_user_is_where_they_were_last(gate: Attacked) -> None:
    gate.said("shared", user="parent")
    gate.said("shared", user="child")
    gate.said("phone", user="child")
    assert [gate.visitors("user", name) for name in ("parent", "child")] == [{"": "shared"}, {"": "phone"}]


def test_the_later_link_wins_though_the_clock_was_set_back(gate: Attacked) -> None:
    gate.said("before", user="skewed")
    gate.post(checkout("skewed", user="skewed", stripe_customer="cus_skewed"))
    gate.ahead -= HOUR
    gate.said("after", user="skewed")
    gate.post(checkout("skewed_2", user="skewed", stripe_customer="cus_skewed"))
    gate.ahead += HOUR
    assert gate.visitors("user", "skewed") == gate.visitors("stripe_customer", "cus_skewed") == {"": "after"}


def test_links_and_webhooks_that_storm_in_together_all_arrive(collector: Collector, tmp_path: Path) -> None:
    with running(collector.app()) as url:
        own = Attacked(tmp_path, WEBHOOK_URL=f"{url}/sink", WEBHOOK_SECRET="whsec_dGVzdHMtb25seS1ub3QtYS1zZWNyZXQ=")

        def both(n: int) -> list[int]:
            linked = [own.link(attack_link(n, f"v{n}"), BACKEND).status_code for _ in range(3)]
            return [own.post(payment(n)).status_code, *linked]

        with own.up(), ThreadPoolExecutor(8) as pool:
            assert {status for statuses in pool.map(both, range(40)) for status in statuses} == {200, 204}
            collector.wait_for(40)
            until(lambda: own.rows("SELECT count(*) FROM delivery WHERE state < 10") == [(0,)])
            linked = {n: own.visitors("stripe_checkout", f"cs_{n}") for n in (0, 20, 39)}
    orders = [each["data"]["properties"]["order_id"] for each in collector.wait_for(40)]
    assert sorted(orders) == sorted(f"order_{n}" for n in range(40))
    assert linked == {n: {"": f"v{n}"} for n in (0, 20, 39)}


def test_a_store_that_is_down_is_503_for_links_and_they_may_come_again(own: Attacked) -> None:
    with own.up(deliver=False):
        with closing(own.second_writer()) as other:
            other.execute("BEGIN IMMEDIATE")  # nobody else can write now
            refused = [own.link(attack_link("down"), SHOP), own.forget(user="victim")]
        assert [(each.status_code, each.headers["retry-after"]) for each in refused] == [(503, "5"), (503, "5")]
        assert refused[0].headers["access-control-allow-origin"] == SHOP["origin"]
        assert own.visitors("stripe_checkout", "cs_down") == {}
        assert own.link(attack_link("down"), SHOP).status_code == 204


# Erasure


@contextmanager
def slow_collector() -> Iterator[tuple[str, list[Any], threading.Event]]:
    """Serve a collector that answers when it is told to; yields its address, what it got, and how to tell it."""
    got: list[Any] = []
    answer = threading.Event()

    @post("/sink", status_code=200)
    async def sink(request: Request[Any, Any, Any]) -> str:
        got.append(await request.body())
        await asyncio.to_thread(answer.wait, WITHIN)
        return "taken"

    with running(Litestar([sink], openapi_config=None, logging_config=None)) as url:
        try:
            yield f"{url}/sink", got, answer
        finally:
            answer.set()


def test_who_is_forgotten_while_they_are_delivered_leaves_nothing(tmp_path: Path) -> None:
    with slow_collector() as (url, got, answer):
        own = Attacked(tmp_path, WEBHOOK_URL=url, WEBHOOK_SECRET="whsec_dGVzdHMtb25seS1ub3QtYS1zZWNyZXQ=")
        with own.up():
            own.said("v", user="user_42")
            own.post(payment(1))
            until(lambda: len(got) == 1)
            assert own.forget(user="user_42").json()["pending"] == 1
            answer.set()
            own.post(checkout("other", user="somebody_else"))
            until(lambda: len(got) == 2)
            until(lambda: own.rows("SELECT count(*) FROM delivery WHERE state < 10") == [(0,)])
            left = own.contents()
            assert own.bodies() == 1
    assert (left["event"], left["delivery"], left["attempt"], left["link"]) == (1, 1, 1, 0)


def test_who_is_forgotten_while_they_pay_can_be_forgotten_wholly(own: Attacked) -> None:
    with own.up(deliver=False), ThreadPoolExecutor(4) as pool:
        paid = [pool.submit(own.post, payment(n)) for n in range(40)]
        asked = [pool.submit(own.forget, user="user_42") for _ in range(10)]
        linked = [pool.submit(own.link, {"visitor_id": "v", "subjects": {"user": "user_42"}}, BACKEND)]
        assert {each.result().status_code for each in (*paid, *asked, *linked)} == {200, 204}
        own.forget(user="user_42")
        left = own.contents()
        assert own.bodies() == own.open_requests() == 0
        again = own.forget(user="user_42")
    assert [left[table] for table in ("link", "event", "delivery", "named", "subject")] == [0] * 5
    assert again.json() == {"links": 0, "webhooks": 0, "pending": 0}


def test_a_request_about_data_cannot_be_replayed_and_brings_nobody_back(own: Attacked) -> None:
    with own.up(deliver=False):
        own.shopify("orders.paid", "orders/paid")
        own.shopify("customers.redact", "customers/redact")
        until(lambda: own.open_requests() == 0)
        ids = [id for (id,) in own.rows("SELECT id FROM webhook")]
        replayed = [CliRunner().invoke(main, ["replay", id], env=own.environment) for id in ids]
        assert [each.exit_code for each in replayed] == [1, 1]
        assert all("retention has taken its body" in each.output for each in replayed)
        left = own.contents()
        assert (own.bodies(), left["request"], left["event"], left["link"], left["named"]) == (0, 1, 0, 0, 0)


def test_a_long_history_is_handed_out_whole_one_webhook_a_line(own: Attacked, tmp_path: Path) -> None:
    with own.up(deliver=False):
        for n in range(250):
            pretty = msgspec.json.format(checkout(str(n), email=EMMY), indent=2)  # as Stripe writes it
            assert own.post(pretty).is_success
        own.shopify("customers.data_request", "customers/data_request")
        until(lambda: own.open_requests() == 0)
    (file,) = (tmp_path / "exports").iterdir()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert sorted(each["id"] for each in lines if "body" in each) == sorted(f"evt_{n}" for n in range(250))
    assert all(each["body"]["data"]["object"]["customer_details"]["email"] == EMMY for each in lines)


def test_a_folder_that_cannot_be_written_holds_up_one_request_and_no_other(own: Attacked, tmp_path: Path) -> None:
    exports = tmp_path / "exports"
    exports.write_text("a file where the folder should be")
    with own.up(deliver=False):
        own.shopify("orders.paid", "orders/paid")
        own.shopify("customers.data_request", "customers/data_request")
        own.shopify("shop.redact", "shop/redact")
        until(lambda: own.bodies() == 0)
        until(lambda: own.rows("SELECT kind FROM request WHERE done_at = 0") == [("export",)])
        assert own.get("/readyz").status_code == 200
        exports.unlink()
        own.shopify("customers.data_request", "customers/data_request", shop_id=1)  # calls for a new look
        until(lambda: own.open_requests() == 0)
    assert len(list(exports.iterdir())) == 2
