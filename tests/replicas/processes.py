"""Gateways as processes of their own over one Redis, and the collector that counts what they deliver."""

import asyncio
import base64
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import httpx
import msgspec
from litestar import Litestar, Request, Response, post
from litestar.params import FromPath

from gateway.deliveries import Counts
from gateway.mappings import bundled
from gateway.sealing import Sealer
from gateway.settings import load_settings
from gateway.store.opening import open_store
from tests.promises.served import LINK_SECRET, SECRET
from tests.stores.servers import free_port

ROOT = Path(__file__).parents[2]
PATIENCE = 90.0
"""Seconds. Several gateways start at once, each with all that it imports, on a machine that has other tests to run."""
KEY = base64.urlsafe_b64encode(b"the key that all replicas share.").decode()
SINKS = ("nexly", "webhook")
"""Two destinations that send the idempotency key as a header."""
ACME_SECRET = "acme_secret_of_the_tests"
ACME = """
source: acme
verify: {scheme: token, header: X-Token, secrets: "${ACME_SECRET}"}
webhook: {id: id, type: type}
subjects: {user: user}
wait_for_link: 1h
rules:
  - on: paid
    emit: purchase
    once: order
    properties: {order_id: order}
"""


class Collector:
    """Counts, for each destination and order, under which keys it came and was taken; may refuse some by chance.

    Requests to the destination `holds` are answered with the status that the test gives to what `asked` returns.
    """

    def __init__(self, refuses: float = 0.0, seed: int = 0) -> None:
        self.came: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        self.taken: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        self.visitors: dict[tuple[str, str], object] = {}
        self.holds = ""
        self._held: queue.Queue[Future[int]] = queue.Queue()
        self.refuses = refuses
        self._chance = random.Random(seed)
        self._lock = threading.Lock()

    def app(self) -> Litestar:
        @post("/{sink:str}", status_code=200)
        async def collect(sink: FromPath[str], request: Request[object, object, object]) -> Response[str]:  # type: ignore[type-var]
            body = msgspec.json.decode(await request.body())
            data = body["data"]
            properties, person = (data["properties"], data) if sink == "webhook" else (data, body["context"])
            place, key = (sink, properties["order_id"]), request.headers["idempotency-key"]
            with self._lock:
                self.came[place][key] += 1
                status = 500 if self._chance.random() < self.refuses else 200
            if sink == self.holds:
                held: Future[int] = Future()
                self._held.put(held)
                status = await asyncio.wrap_future(held)
            with self._lock:
                self.taken[place][key] += status == 200
                self.visitors[place] = person.get("visitor_id")
            return Response("", status_code=status)

        return Litestar([collect], openapi_config=None, logging_config=None)

    async def asked(self) -> "Future[int]":
        """Return the next request that is held, to be answered with a status."""
        return await asyncio.to_thread(self._held.get, timeout=PATIENCE)

    def missing(self, orders: set[str]) -> set[tuple[str, str]]:
        """Return which of the deliveries of these orders have not been taken yet."""
        wanted = {(sink, order) for sink in SINKS for order in orders}
        return {place for place in wanted if place not in self.taken or not self.taken[place].total()}

    def under_several_keys(self) -> list[Counter[str]]:
        return [keys for keys in self.came.values() if len(keys) > 1]

    def repeats(self) -> int:
        """Return how many deliveries were taken again after they had been taken."""
        return sum(max(0, keys.total() - 1) for keys in self.taken.values())


def mappings(folder: Path) -> Path:
    """Write a folder of the few mappings that these tests need: a replica starts the sooner."""
    for name in ("sources/stripe", *(f"destinations/{sink}" for sink in SINKS)):
        file = folder / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(bundled() / f"{name}.yaml", file)
    (folder / "sources" / "acme.yaml").write_text(ACME)
    return folder


def environment(store: str, folder: Path, collector: str) -> dict[str, str]:
    """Return the settings that all replicas share, and nothing that this process was given for other gateways."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("GATEWAY_", "STRIPE_"))}
    return {
        **own,
        "GATEWAY_STORE": store,
        "GATEWAY_SECRET_KEY": KEY,
        "GATEWAY_LINK_SECRET": LINK_SECRET,
        "GATEWAY_MAPPINGS": str(mappings(folder / "mappings")),
        "STRIPE_WEBHOOK_SECRET": SECRET,
        "ACME_SECRET": ACME_SECRET,
        "NEXLY_APP_ID": "app_of_the_tests",
        "NEXLY_INGEST_KEY": "key_of_the_tests",
        "NEXLY_COLLECT_URL": f"{collector}/nexly",
        "WEBHOOK_URL": f"{collector}/webhook",
        "WEBHOOK_SECRET": "whsec_dGVzdHMtb25seS1ub3QtYS1zZWNyZXQ=",
    }


class Gateway:
    """One `gateway serve` or `gateway deliver`."""

    def __init__(self, environment: dict[str, str], log: Path, *words: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        with log.open("wb") as written:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gateway", *words, "--port", str(port)],
                env=environment,
                cwd=ROOT,
                stdout=written,
                stderr=written,
            )
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self._process.kill()
        self._process.wait()

    def log(self) -> str:
        return self._log.read_text()

    def until(self, status: int = 200) -> httpx.Response:
        """Wait until /readyz answers so."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self.log()
            with suppress(httpx.TransportError):
                if (answer := self.http.get("/readyz")).status_code == status:
                    return answer
            time.sleep(0.02)
        raise AssertionError(f"/readyz does not answer {status}: {self.log()}")

    def stop(self) -> int:
        """Ask for a clean stop; return the exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(PATIENCE)

    def ended(self) -> int:
        """Wait until it ends by itself; return the exit code."""
        return self._process.wait(PATIENCE)


@contextmanager
def gateways(environment: dict[str, str], folder: Path, *commands: str) -> Iterator[list[Gateway]]:
    """Run one gateway for each command line, all started at once, until the block ends."""
    running = [
        Gateway(environment, folder / f"{number}.log", *command.split()) for number, command in enumerate(commands)
    ]
    try:
        for each in running:
            each.until()
        yield running
    finally:
        for each in running:
            each.__exit__()


def counts(environment: dict[str, str]) -> dict[str, Counts]:
    """Count the deliveries in the store as an operator's command does."""

    async def count() -> dict[str, Counts]:
        settings = load_settings(environment)
        store = await open_store(settings, Sealer(settings.master_key()), exclusive=False)
        try:
            return await store.counts()
        finally:
            await store.close()

    return asyncio.run(count())
