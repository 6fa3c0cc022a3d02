"""Signed webhooks as bytes of HTTP, each a payment of its own."""

import json
import time
from collections.abc import Mapping
from typing import Any

from gateway.signatures import VerifySpec, compile_verification, sign
from tests.benchmarks.documents import session
from tests.benchmarks.servers import SECRET

VERIFICATION = compile_verification(VerifySpec(scheme="stripe", secrets=SECRET))


def webhooks(number: int, first: int = 0, document: Any = None) -> list[bytes]:
    """Return signed requests, each a payment of its own: the sample of 5 KB, or another checkout session."""
    document = json.loads(session()) if document is None else document
    requests = []
    for index in range(first, first + number):
        document["id"] = f"evt_{index}"
        document["data"]["object"]["id"] = f"cs_{index}"
        document["data"]["object"]["payment_intent"] = f"pi_{index}"
        body = json.dumps(document, separators=(",", ":")).encode()
        requests.append(_post("/webhooks/stripe", body, sign(VERIFICATION, body, time.time())))
    return requests


def _post(path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """Return the bytes of one request."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
    lines += [f"Content-Length: {len(body)}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
