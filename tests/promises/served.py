"""A gateway that runs on a port, what is posted to it, and its store as a second reader sees it."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec

from gateway.app import create_app
from gateway.mappings import bundled, minified, sample
from gateway.server import running
from gateway.settings import load_settings
from gateway.signatures import VerifySpec, compile_verification, sign

SECRET = "whsec_of_the_tests"
LINK_SECRET = "link_secret_of_the_tests_0123456789abcdef"
STRIPE = compile_verification(VerifySpec(scheme="stripe", secrets=SECRET))


class Served:
    """`ahead` moves the gateway's clock, in ms."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.path = folder / "gateway.db"
        self.url = ""
        self.ahead = 0
        self.environment = {
            "GATEWAY_STORE": f"sqlite:///{self.path}",
            "GATEWAY_LINK_SECRET": LINK_SECRET,
            "STRIPE_WEBHOOK_SECRET": SECRET,
            **environment,
        }

    def now(self) -> int:
        return time.time_ns() // 1_000_000 + self.ahead

    @contextmanager
    def up(self, *, deliver: bool = True, **environment: str) -> Iterator["Served"]:
        """Serve while the block runs; may be done again on the same store."""
        settings = load_settings(self.environment | environment)
        with running(create_app(settings, self.now, deliver=deliver)) as self.url:
            yield self

    def signed(self, body: bytes) -> dict[str, str]:
        return sign(STRIPE, body, self.now() / 1000)

    def post(self, body: bytes, headers: dict[str, str] | None = None, source: str = "stripe") -> httpx.Response:
        headers = self.signed(body) if headers is None else headers
        return httpx.post(f"{self.url}/webhooks/{source}", content=body, headers=headers)

    def link(self, body: object, headers: dict[str, str] | None = None) -> httpx.Response:
        content = body if isinstance(body, bytes) else msgspec.json.encode(body)
        return httpx.post(f"{self.url}/link", content=content, headers=headers or {})

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}")

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(self.path)
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()

    def contents(self) -> dict[str, int]:
        """Return how many rows each table has."""
        names = [name for (name,) in self.rows("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        return {name: self.rows(f"SELECT count(*) FROM {name}")[0][0] for name in names}

    def notes(self) -> object:
        """Return the notes of the newest webhook."""
        return msgspec.json.decode(self.rows("SELECT notes FROM webhook ORDER BY webhook DESC LIMIT 1")[0][0])


def document_of(name: str) -> Any:
    """Return a bundled Stripe sample, to be changed."""
    body = sample(bundled(), "stripe", name)
    assert body is not None
    return msgspec.json.decode(body)


def encoded(document: object) -> bytes:
    return minified(msgspec.json.encode(document))


def payment(number: int) -> bytes:
    """Return a payment of its own: its purchase has the order id `order_{number}`."""
    document = document_of("checkout.session.completed")
    session = document["data"]["object"]
    document["id"], session["id"], session["payment_intent"] = f"evt_{number}", f"cs_{number}", f"pi_{number}"
    session["metadata"]["order_id"] = f"order_{number}"
    return encoded(document)
