"""`python -m tests.benchmarks`: what the gateway costs, as ratios within one run on this machine."""

import hmac
import json
import multiprocessing
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Callable
from functools import partial

import jmespath
import msgspec

from gateway.expressions import compile_template
from gateway.functions import MAPPING
from gateway.mappings import bundled, minified, sample
from gateway.signatures import Scheme, VerifySpec, compile_verification, sign, verify
from tests.benchmarks.load import Result, load, post
from tests.benchmarks.servers import SECRET

WEBHOOKS = 20_000
ROUNDS = 3

EXPRESSIONS = {
    "id": "data.object.id",
    "payment": "data.object.payment_intent || data.object.invoice",
    "amount": "data.object.amount_total",
    "subtotal": "data.object.amount_subtotal",
    "tax": "data.object.total_details.amount_tax",
    "shipping": "data.object.total_details.amount_shipping",
    "discount": "data.object.total_details.amount_discount",
    "currency": "data.object.currency",
    "email": "data.object.customer_details.email || data.object.customer_email",
    "name": "data.object.customer_details.name",
    "country": "data.object.customer_details.address.country",
    "customer": "data.object.customer",
    "user": "data.object.client_reference_id || data.object.metadata.user_id",
    "paid": "data.object.payment_status == 'paid'",
    "mode": "data.object.mode",
}


def session() -> bytes:
    """A Stripe session of 5 KB: the sample, with the custom text that makes many sessions longer."""
    body = sample(bundled(), "stripe", "checkout.session.completed")
    assert body is not None
    document = json.loads(body)
    document["data"]["object"]["custom_text"]["submit"] = {"message": "We ship within two days. " * 82}
    return minified(json.dumps(document).encode())


def webhooks(number: int) -> list[bytes]:
    """Signed requests, each a payment of its own."""
    document = json.loads(session())
    verification = compile_verification(VerifySpec(scheme="stripe", secrets=SECRET))
    requests = []
    for index in range(number):
        document["id"] = f"evt_{index}"
        document["data"]["object"]["id"] = f"cs_{index}"
        document["data"]["object"]["payment_intent"] = f"pi_{index}"
        body = json.dumps(document, separators=(",", ":")).encode()
        requests.append(post("/webhooks/stripe", body, sign(verification, body, time.time())))
    return requests


def measure(name: str, requests: list[bytes]) -> Result:
    """Run one server on core 0 and load it from core 1."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.benchmarks.servers", name, str(port), folder]
        process = subprocess.Popen(command)
        try:
            _wait(port)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                pool.apply(load, (port, requests[:500], 1))
                return pool.apply(load, (port, requests[500:], 1))
        finally:
            process.terminate()
            process.wait()


def _wait(port: int) -> None:
    for _ in range(500):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise RuntimeError("the server did not start")


def ingest() -> None:
    requests = webhooks(WEBHOOKS)
    print(f"\nDurable ingest: {len(session()):,} bytes a webhook, two deliveries each, one core, 32 connections")
    print(f"{'':32} webhooks/s   of bare   p99 ms   failures")
    rates: dict[str, list[Result]] = {"handler": [], "asgi": [], "gateway": []}
    for _ in range(ROUNDS):
        for name, results in rates.items():
            results.append(measure(name, requests))
    bare = statistics.median(result.rate for result in rates["handler"])
    titles = {"handler": "bare Litestar handler", "asgi": "bare Litestar @asgi route", "gateway": "gateway, durable"}
    for name, results in rates.items():
        rate, p99 = statistics.median(r.rate for r in results), statistics.median(r.p99 for r in results)
        print(f"{titles[name]:32} {rate:10,.0f} {rate / bare:9.2f} {p99:8.1f} {sum(r.failures for r in results):10}")


def micro(function: Callable[[], object]) -> float:
    """Microseconds of one call: the best of several rounds."""
    timer = timeit.Timer(function)
    number, _ = timer.autorange()
    return min(timer.repeat(5, number)) / number * 1e6


def mapping() -> None:
    body = session()
    document = json.loads(body)
    parsed = {name: jmespath.compile(text) for name, text in EXPRESSIONS.items()}
    compiled = compile_template(EXPRESSIONS, MAPPING)
    decode = msgspec.json.Decoder().decode
    rows = {
        "jmespath, dict in": micro(lambda: {name: each.search(document) for name, each in parsed.items()}),
        "compiled, dict in": micro(lambda: compiled(document)),
        "json + jmespath, bytes in": micro(lambda: [e.search(d) for d in [json.loads(body)] for e in parsed.values()]),
        "msgspec + compiled, bytes in": micro(lambda: compiled(decode(body))),
    }
    print(f"\nMapping: {len(EXPRESSIONS)} expressions over {len(body):,} bytes{'':12} µs   times as fast")
    base = [rows["jmespath, dict in"]] * 2 + [rows["json + jmespath, bytes in"]] * 2
    for (name, took), reference in zip(rows.items(), base, strict=True):
        print(f"{name:50} {took:9.1f} {reference / took:10.1f}")


def verification() -> None:
    body = session()
    key = SECRET.encode()
    now = time.time()
    rows = {"hmac.digest alone": micro(lambda: hmac.digest(key, body, "sha256"))}
    schemes: tuple[Scheme, ...] = ("stripe", "hmac")
    for scheme in schemes:
        header = "x-signature" if scheme == "hmac" else None
        checked = compile_verification(VerifySpec(scheme=scheme, secrets=SECRET, header=header))
        headers = sign(checked, body, now)
        rows[f"verify, scheme {scheme}"] = micro(partial(verify, checked, headers, body, now))
    print(f"\nVerification of {len(body):,} bytes{'':25} µs   of hmac.digest")
    for name, took in rows.items():
        print(f"{name:50} {took:9.1f} {took / rows['hmac.digest alone']:10.1f}")


if __name__ == "__main__":
    mapping()
    verification()
    ingest()
