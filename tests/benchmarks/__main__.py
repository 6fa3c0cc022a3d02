"""`python -m tests.benchmarks [--large]`: what the gateway costs, as ratios within one run on this machine."""

import hmac
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

from gateway.signatures import Scheme, VerifySpec, compile_verification, sign, verify
from tests.benchmarks import answers, delivery, links, mapping, stores
from tests.benchmarks.answers import webhooks
from tests.benchmarks.documents import session
from tests.benchmarks.load import Result, load
from tests.benchmarks.servers import SECRET

WEBHOOKS = 20_000
ROUNDS = 3


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
    verification()
    ingest()
    delivery.main()  # from here on this process is pinned to one core
    mapping.main()
    large = "--large" in sys.argv[1:]
    links.main(large=large)
    stores.main(large=large)
    answers.main(large=large)
