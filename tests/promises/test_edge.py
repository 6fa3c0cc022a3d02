"""Promises 1 to 3 and 5 at the edge: what a sender is told, and what is stored by then."""

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest

from gateway.app import create_app
from gateway.mappings import bundled, minified, sample
from gateway.server import running
from gateway.settings import load_settings
from gateway.signatures import VerifySpec, compile_verification, sign

SECRET = "whsec_of_the_tests"
STRIPE = compile_verification(VerifySpec(scheme="stripe", secrets=SECRET))


def body_of(**changes: object) -> bytes:
    body = sample(bundled(), "stripe", "checkout.session.completed")
    assert body is not None
    return minified(msgspec.json.encode(msgspec.json.decode(body) | changes))


def signed(body: bytes, now: float | None = None) -> dict[str, str]:
    return sign(STRIPE, body, time.time() if now is None else now)


class Edge:
    """A gateway that delivers nowhere, and its store as a second reader sees it."""

    def __init__(self, url: str, path: Path) -> None:
        self.url = f"{url}/webhooks/stripe"
        self.path = path

    def post(self, body: bytes, headers: dict[str, str] | None = None) -> httpx.Response:
        return httpx.post(self.url, content=body, headers=signed(body) if headers is None else headers)

    def rows(self, table: str = "webhook") -> int:
        connection = sqlite3.connect(self.path)
        try:
            (number,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
        finally:
            connection.close()
        return int(number)

    def notes(self) -> object:
        connection = sqlite3.connect(self.path)
        try:
            (notes,) = connection.execute("SELECT notes FROM webhook ORDER BY webhook DESC").fetchone()
        finally:
            connection.close()
        return msgspec.json.decode(notes)


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    environment = {
        "GATEWAY_STORE": f"sqlite:///{tmp_path / 'gateway.db'}",
        "GATEWAY_MAX_BODY": "20000",
        "STRIPE_WEBHOOK_SECRET": f"whsec_the_next_one,{SECRET}",
        "DATALYR_API_KEY": "dk",
        "NEXLY_APP_ID": "a",
        "NEXLY_INGEST_KEY": "b",
    }
    with running(create_app(load_settings(environment), deliver=False)) as url:
        yield Edge(url, tmp_path / "gateway.db")


def test_a_2xx_means_that_webhook_and_deliveries_are_on_disk(edge: Edge) -> None:
    answer = edge.post(body_of())
    assert answer.json() == {"id": msgspec.json.decode(body_of())["id"], "duplicate": False, "received": True}
    assert (edge.rows(), edge.rows("delivery")) == (1, 2)


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({}, "missing_signature"),
        ({"stripe-signature": "t=1,v1=00"}, "mismatch"),
        ({"stripe-signature": "nonsense"}, "malformed_signature"),
        (signed(body_of(), time.time() - 400), "timestamp_out_of_tolerance"),
        (signed(body_of(id="evt_other")), "mismatch"),
    ],
)
def test_an_unverified_request_gets_401_and_leaves_nothing(edge: Edge, headers: dict[str, str], reason: str) -> None:
    answer = edge.post(body_of(), headers)
    assert (answer.status_code, answer.json()["reason"]) == (401, reason)
    assert answer.headers["content-type"] == "application/problem+json"
    assert edge.rows() == 0


def test_a_source_without_a_secret_accepts_nothing(edge: Edge) -> None:
    answer = httpx.post(edge.url.replace("stripe", "shopify"), content=b"{}", headers={"x-shopify-hmac-sha256": "x"})
    assert (answer.status_code, answer.json()["reason"]) == (401, "no_secret")


def test_an_unknown_source_gets_404_and_another_method_405(edge: Edge) -> None:
    assert httpx.post(edge.url + "x", content=b"{}").status_code == 404
    assert httpx.get(edge.url).status_code == 405


def test_the_same_webhook_at_once_and_again_makes_one_set_of_deliveries(edge: Edge) -> None:
    body = body_of()

    async def at_once() -> list[bool]:
        async with httpx.AsyncClient() as client:
            posts = (client.post(edge.url, content=body, headers=signed(body)) for _ in range(20))
            return [answer.json()["duplicate"] for answer in await asyncio.gather(*posts)]

    assert sorted([*asyncio.run(at_once()), edge.post(body).json()["duplicate"]]) == [False] + [True] * 20
    assert (edge.rows(), edge.rows("delivery")) == (1, 2)


def test_a_type_that_no_rule_maps_is_kept_with_its_reason(edge: Edge) -> None:
    assert edge.post(body_of(type="some.new.type")).status_code == 200
    assert edge.notes() == [{"skip": "unmapped"}]
    assert edge.rows("delivery") == 0


def test_a_store_that_cannot_write_is_503_and_needs_no_restart(edge: Edge) -> None:
    other = sqlite3.connect(edge.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")  # the store cannot write while somebody holds its file
    answer = edge.post(body_of())
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert httpx.get(edge.url.replace("webhooks/stripe", "readyz")).status_code == 503
    other.execute("ROLLBACK")
    other.close()
    assert edge.post(body_of()).json()["duplicate"] is False
    assert httpx.get(edge.url.replace("webhooks/stripe", "readyz")).status_code == 200


BAD_BODIES = {
    "empty": b"",
    "not json": b"nonsense",
    "an array": b"[]",
    "a number": b"1",
    "null": b"null",
    "invalid utf-8": b'{"id": "\xff"}',
    "too large a number": b'{"id":"evt_1","type":"t","x":1e400}',
    "nested deeply": b'{"id":"evt_1","type":"t","x":' + b"[" * 9000 + b"]" * 9000 + b"}",
    "no id": b'{"type":"t"}',
    "a long id": b'{"id":"' + b"x" * 9000 + b'","type":"t"}',
    "a type with a newline": b'{"id":"evt_1","type":"a\\nb"}',
    "repeated keys": b'{"id":"evt_1","id":"evt_2","type":"t"}',
    "a huge integer": b'{"id":"evt_1","type":"t","created":' + b"9" * 400 + b"}",
    "a lone surrogate": b'{"id":"evt_1","type":"t","x":"\\ud800"}',
    "a nul": b'{"id":"evt_\\u0000","type":"t"}',
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
def test_a_bad_body_gets_a_clear_answer(edge: Edge, body: bytes) -> None:
    answer = edge.post(body)
    assert answer.status_code in {200, 400, 401}
    assert answer.is_success or answer.json()["detail"]


@pytest.mark.parametrize("field", ["client_reference_id", "customer", "currency", "payment_intent", "mode", "id"])
@pytest.mark.parametrize("value", ["\\ud800", "\\u0000", "x" * 5000, "1e400", "{{7*7}}"])
def test_a_hostile_value_in_a_field_is_no_500(edge: Edge, field: str, value: str) -> None:
    document = msgspec.json.decode(body_of())
    document["data"]["object"][field] = "HERE"
    body = msgspec.json.encode(document).replace(b"HERE", value.encode())
    assert edge.post(body).status_code in {200, 400, 401}


def test_a_body_over_the_limit_gets_413_declared_or_chunked(edge: Edge) -> None:
    body = b" " * 20_001
    assert edge.post(body).status_code == 413
    chunked = httpx.post(edge.url, content=(part for part in [b" " * 10_000] * 3), headers=signed(body))
    assert chunked.status_code == 413


def test_a_chunked_body_is_taken_to_the_byte(edge: Edge) -> None:
    body = body_of()
    answer = httpx.post(edge.url, content=(body[i : i + 100] for i in range(0, len(body), 100)), headers=signed(body))
    assert answer.status_code == 200


def test_a_compressed_body_is_refused_with_the_reason(edge: Edge) -> None:
    answer = edge.post(body_of(), signed(body_of()) | {"content-encoding": "gzip"})
    assert (answer.status_code, answer.json()["detail"]) == (400, "the body is gzip-encoded; send it as it is")


def test_a_repeated_signature_header_is_refused(edge: Edge) -> None:
    signature = signed(body_of())["stripe-signature"]
    headers = httpx.Headers([("stripe-signature", signature), ("stripe-signature", signature)])
    answer = httpx.post(edge.url, content=body_of(), headers=headers)
    assert (answer.status_code, answer.json()["reason"]) == (401, "repeated_header")


def test_no_personal_data_is_stored_in_the_clear(edge: Edge) -> None:
    edge.post(body_of())
    stored = b"".join(file.read_bytes() for file in edge.path.parent.glob("gateway.db*")).lower()
    assert len(stored) > 20_000
    for word in (b"ada@example.com", b"12025550143", b"ada example", b"user_42", SECRET.encode()):
        assert word not in stored
