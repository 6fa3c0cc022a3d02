"""Promise 2: an unverified request touches no store, costs bounded work, and is told why."""

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from gateway.signatures import sign
from tests.promises.served import STRIPE, Served, payment

MINUTES = 60_000


@pytest.fixture
def gateway(served: Served) -> Iterator[Served]:
    with served.up(deliver=False, GATEWAY_MAX_BODY="20000"):
        served.post(payment(0))
        yield served


def test_whatever_is_refused_leaves_every_table_as_it_was(gateway: Served) -> None:
    before, body = gateway.contents(), payment(1)
    old = sign(STRIPE, body, gateway.now() / 1000 - 400)
    answers = [
        gateway.post(body, {}),
        gateway.post(body, {"stripe-signature": "t=1,v1=00"}),
        gateway.post(body, old),
        gateway.post(body, gateway.signed(payment(2))),
        gateway.post(body, source="shopify"),
        gateway.post(b" " * 20_001),
        gateway.post(body, source="nobody"),
        gateway.post(b"no json"),
    ]
    assert [answer.status_code for answer in answers] == [401, 401, 401, 401, 401, 413, 404, 400]
    assert gateway.contents() == before
    for answer in answers:
        problem = answer.json()
        assert answer.headers["content-type"] == "application/problem+json"
        assert problem["status"] == answer.status_code
        assert problem["title"]
        assert problem["detail"]


@pytest.mark.parametrize(("seconds", "status"), [(-299, 200), (299, 200), (-302, 401), (302, 401)])
def test_the_senders_clock_may_differ_by_five_minutes(gateway: Served, seconds: int, status: int) -> None:
    body = payment(1)
    answer = gateway.post(body, sign(STRIPE, body, gateway.now() / 1000 + seconds))
    assert answer.status_code == status
    assert status == 200 or answer.json()["reason"] == "timestamp_out_of_tolerance"


def test_a_body_that_is_declared_too_large_is_refused_unread(gateway: Served) -> None:
    where = urlsplit(gateway.url)
    head = b"POST /webhooks/stripe HTTP/1.1\r\nHost: gateway\r\nContent-Length: 9000000000\r\n\r\n"
    with socket.create_connection((str(where.hostname), int(where.port or 0)), timeout=5) as connection:
        connection.sendall(head)
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_another_method_is_told_which_one_is_taken(gateway: Served) -> None:
    answer = gateway.get("/webhooks/stripe")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    "headers",
    [
        {"stripe-signature": "t=1," + ",".join(["v1=" + "0" * 64] * 700)},
        {"stripe-signature": "t=" + "9" * 5000 + ",v1=00"},
        {"stripe-signature": "\xff\xfe,v1=é".encode("latin-1")},
        {f"x-{number}": "y" * 20 for number in range(500)},
    ],
    ids=["many signatures", "huge timestamp", "latin-1", "many headers"],
)
def test_hostile_headers_are_401(gateway: Served, headers: dict[str, str]) -> None:
    assert gateway.post(payment(1), headers).status_code == 401
