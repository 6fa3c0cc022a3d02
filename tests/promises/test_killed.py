"""Promise 7: SIGKILL at any instant loses nothing accepted."""

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest
from litestar import Litestar, Request, post
from litestar.params import FromPath

from gateway import demo
from gateway.mappings import bundled, minified, sample
from gateway.server import running
from gateway.signatures import VerifySpec, compile_verification, sign

STRIPE = compile_verification(VerifySpec(scheme="stripe", secrets=demo.STRIPE_SECRET))
ROUNDS = 3
SENDERS = 8


class Collected:
    """What a collector got: for each destination and event, the keys it came under."""

    def __init__(self) -> None:
        self.keys: dict[tuple[str, str], set[str]] = defaultdict(set)
        self.lock = threading.Lock()

    def app(self) -> Litestar:
        @post("/{destination:str}", status_code=200)
        async def collect(destination: FromPath[str], request: Request[object, object, object]) -> None:  # type: ignore[type-var]
            body = msgspec.json.decode(await request.body())
            properties = (
                body["data"]["properties"] if destination == "webhook" else body.get("data", body.get("properties"))
            )
            key = body.get("eventId") or request.headers["idempotency-key"]
            with self.lock:
                self.keys[destination, properties["order_id"]].add(key)

        return Litestar([collect], openapi_config=None, logging_config=None)


@pytest.fixture
def collected() -> Collected:
    return Collected()


@pytest.fixture
def environment(collected: Collected, tmp_path: Path) -> Iterator[dict[str, str]]:
    with running(collected.app()) as collector:
        yield {**os.environ, **demo.environment(tmp_path, collector)}


def payment(number: int) -> tuple[str, bytes]:
    """Return a payment of its own, and the order that its purchase names."""
    body = sample(bundled(), "stripe", "checkout.session.completed")
    assert body is not None
    document = msgspec.json.decode(body)
    session = document["data"]["object"]
    document["id"], session["id"], session["payment_intent"] = f"evt_{number}", f"cs_{number}", f"pi_{number}"
    session["metadata"]["order_id"] = f"order_{number}"
    return f"order_{number}", minified(msgspec.json.encode(document))


def start(environment: dict[str, str]) -> tuple[subprocess.Popen[bytes], str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "gateway", "serve", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=environment, stderr=log)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if httpx.get(f"{url}/readyz").is_success:
                    return process, url
            except httpx.TransportError:
                time.sleep(0.02)
        process.kill()
        process.wait()
        log.seek(0)
        raise AssertionError(f"the gateway did not start: {log.read().decode()}")


async def post_until_dead(url: str, numbers: Iterator[int], accepted: set[str]) -> None:
    """Post payments, from several senders, until the gateway dies; note which got a 2xx."""

    async def sender(client: httpx.AsyncClient) -> None:
        for number in numbers:
            order, body = payment(number)
            try:
                answer = await client.post(
                    f"{url}/webhooks/stripe", content=body, headers=sign(STRIPE, body, time.time())
                )
            except httpx.TransportError:
                return
            if answer.is_success:
                accepted.add(order)

    async with httpx.AsyncClient() as client:
        await asyncio.gather(*(sender(client) for _ in range(SENDERS)))


def wait_for(collected: Collected, orders: set[str]) -> set[tuple[str, str]]:
    """Return which deliveries of these orders are missing once nothing more can be expected."""
    wanted = {(destination, order) for destination in demo.DESTINATIONS for order in orders}
    deadline = time.monotonic() + 40
    while (missing := wanted - collected.keys.keys()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return missing


def test_whatever_got_a_2xx_is_delivered_after_sigkill(environment: dict[str, str], collected: Collected) -> None:
    chance, accepted = random.Random(7), set[str]()
    numbers = iter(range(100_000))
    for _ in range(ROUNDS):
        process, url = start(environment)
        killer = threading.Timer(chance.uniform(0.2, 1.0), process.send_signal, [signal.SIGKILL])
        killer.start()
        asyncio.run(post_until_dead(url, numbers, accepted))
        killer.join()
        process.wait()
    process, _ = start(environment)
    try:
        assert accepted
        assert wait_for(collected, accepted) == set()
        assert [keys for keys in collected.keys.values() if len(keys) > 1] == []
    finally:
        process.terminate()
        assert process.wait(20) == 0


def test_a_stop_drains_and_exits_cleanly(environment: dict[str, str], collected: Collected) -> None:
    process, url = start(environment)
    order, body = payment(1)
    answer = httpx.post(f"{url}/webhooks/stripe", content=body, headers=sign(STRIPE, body, time.time()))
    process.terminate()
    assert answer.is_success
    assert process.wait(20) == 0
    process, _ = start(environment)
    try:
        assert wait_for(collected, {order}) == set()
    finally:
        process.terminate()
        process.wait(20)
