"""`python -m tests.benchmarks.answers [--large]`: how long a webhook waits for its answer while a destination is dead.

`gateway serve` runs on core 1 with two destinations, a hundred events a request; senders, sinks and Redis share core 0.
Webhooks come at a steady pace, well below what the gateway could take, whether those before them were answered or not;
so what one waits for the others counts. In turns, by a gateway of its own each time:

* both destinations are well;
* one refuses connections;
* one refuses connections, and a backlog waits for it;
* both are well, and a backlog is being delivered as fast as it goes.

The first is what the others are compared with. Of the rounds the median counts.
"""

import asyncio
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import cast
from urllib.request import urlopen

import uvloop
from msgspec import Struct

from gateway.clock import now_ms
from gateway.deliveries import Acceptance, NewDelivery, NewEvent
from gateway.events import encode_event
from gateway.mappings import bundled
from gateway.sealing import Sealer, parse_key
from gateway.signatures import VerifySpec, compile_verification, sign
from gateway.store.opening import Store
from gateway.store.redis import RedisStore
from gateway.store.sqlite import SqliteStore
from gateway.translate import event_key
from tests.benchmarks.delivery import event, sink
from tests.benchmarks.documents import session
from tests.benchmarks.load import post
from tests.benchmarks.servers import SECRET
from tests.benchmarks.stores import APPENDING, filled, redis
from tests.stores.servers import free_port

PER_SECOND = 400
CONNECTIONS = 64
WEBHOOKS = 2_400
WARM_UP = 400
ROUNDS = 3
BACKLOG = 20_000
LARGE = 1_000_000
START_WITHIN = 60.0
KEY = "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s="
DESTINATION = """
destination: {name}
enabled_by: [SINK]
endpoint: {url}/webhooks/sink
event: {{id: id, event_name: name, timestamp: at, properties: "merge(properties, {{amount: minor(properties.value)}})"}}
body: {{events: events}}
batch: {{max_events: 100, max_bytes: 1000000}}
"""


def webhooks(number: int, first: int = 0) -> list[bytes]:
    """Return signed requests, each a payment of its own."""
    document = json.loads(session())
    verification = compile_verification(VerifySpec(scheme="stripe", secrets=SECRET))
    requests = []
    for index in range(first, first + number):
        document["id"] = f"evt_{index}"
        document["data"]["object"]["id"] = f"cs_{index}"
        document["data"]["object"]["payment_intent"] = f"pi_{index}"
        body = json.dumps(document, separators=(",", ":")).encode()
        requests.append(post("/webhooks/stripe", body, sign(verification, body, time.time())))
    return requests


class State(Struct, frozen=True):
    """How things are while webhooks come in."""

    title: str
    dead: bool


STATES = (
    State("both destinations well", dead=False),
    State("one refuses connections", dead=True),
    State("one refuses connections, {backlog} wait for it", dead=True),
    State("both well, {backlog} being delivered", dead=False),
)


class _Run:
    """The connections that are free, the webhooks that wait for one, and how long each took, in seconds."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.free: deque[_Sender] = deque()
        self.waiting: deque[tuple[float, bytes]] = deque()
        self.times: list[float] = []
        self.failed: list[bytes] = []
        self.done = asyncio.Event()


class _Sender(asyncio.Protocol):
    """One kept-alive connection, which takes the next webhook when its answer is there."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._due_at = 0.0
        self._answer = b""
        self._transport: asyncio.WriteTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's own is one in all but name

    def send(self, due_at: float, request: bytes) -> None:
        self._due_at = due_at
        self._answer = b""
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        if not data.endswith(b"}"):  # head and body came apart
            return
        run = self._run
        run.times.append(time.perf_counter() - self._due_at)
        if not self._answer.startswith(b"HTTP/1.1 200"):
            run.failed.append(self._answer)
        if run.waiting:
            self.send(*run.waiting.popleft())
        else:
            run.free.append(self)
        run.left -= 1
        if not run.left:
            run.done.set()


async def paced(port: int, requests: Sequence[bytes]) -> list[float]:
    """Send each request when its time has come; return how long after that each was answered, in ms, in order."""
    run, loop = _Run(len(requests)), asyncio.get_running_loop()
    for _ in range(CONNECTIONS):
        _, sender = await loop.create_connection(lambda: _Sender(run), "127.0.0.1", port)
        run.free.append(sender)
    started = time.perf_counter()
    for number, request in enumerate(requests):
        due_at = started + number / PER_SECOND
        await asyncio.sleep(max(0.0, due_at - time.perf_counter()))
        if run.free:
            run.free.popleft().send(due_at, request)
        else:
            run.waiting.append((due_at, request))
    await asyncio.wait_for(run.done.wait(), 60)
    assert not run.failed, run.failed[0]
    return sorted(each * 1000 for each in run.times)


def _backlog(number: int) -> Acceptance:
    made = event(number)
    sealed = SEALER.seal(encode_event(made), b"event")
    return Acceptance(
        key=event_key(made.id),
        source="stripe",
        account="",
        type=made.type,
        id=made.webhook_id,
        occurred_at=made.at,
        received_at=now_ms(),
        test=False,
        mapping="m",
        sealed=b"",
        notes=b"[]",
        events=(NewEvent(event_key(made.id), sealed, (NewDelivery("second"),)),),
    )


SEALER = Sealer(parse_key(KEY))


async def _fill(address: str, number: int) -> None:
    store: Store
    if address.startswith("sqlite:///"):
        store = SqliteStore.open(Path(address.removeprefix("sqlite:///")), SEALER.fingerprint())
    else:
        store = await RedisStore.open(address, SEALER.fingerprint(), answer_within=30.0)
    await filled(store, number, _backlog, count())
    await store.close()


@contextmanager
def gateway(address: str, folder: Path, first: str, second: str) -> Iterator[int]:
    """Run a gateway on core 1 while the block runs; yields its port."""
    mappings = folder / "mappings"
    (mappings / "destinations").mkdir(parents=True, exist_ok=True)
    (mappings / "sources").mkdir(exist_ok=True)
    shutil.copy(bundled() / "sources" / "stripe.yaml", mappings / "sources")
    for name, url in (("first", first), ("second", second)):
        (mappings / "destinations" / f"{name}.yaml").write_text(DESTINATION.format(name=name, url=url))
    environment = {
        **os.environ,
        "GATEWAY_STORE": address,
        "GATEWAY_SECRET_KEY": KEY,
        "GATEWAY_MAPPINGS": str(mappings),
        "STRIPE_WEBHOOK_SECRET": SECRET,
        "SINK": "on",
    }
    port = free_port()
    command = [sys.executable, "-m", "gateway", "serve", "--port", str(port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    os.sched_setaffinity(process.pid, {1})
    try:
        _wait(f"http://127.0.0.1:{port}/livez", folder / "log")
        yield port
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _wait(url: str, log: Path) -> None:
    deadline = time.monotonic() + START_WITHIN
    while True:
        try:
            urlopen(url).close()
        except OSError:
            if time.monotonic() > deadline:
                raise RuntimeError(log.read_text()) from None
            time.sleep(0.05)
        else:
            return


def measure(address: str, state: State, url: str, first: int) -> float:
    """Return the p99 of one run, in ms. Its webhooks are numbered from `first` on."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        dead = f"http://127.0.0.1:{closed.getsockname()[1]}"
    requests = webhooks(WARM_UP + WEBHOOKS, first)  # only now, as a signature is good for minutes
    second = dead if state.dead else url
    with tempfile.TemporaryDirectory() as folder, gateway(address, Path(folder), url, second) as port:
        uvloop.run(paced(port, requests[:WARM_UP]))
        times = uvloop.run(paced(port, requests[WARM_UP:]))
    return times[int(len(times) * 0.99)]


@contextmanager
def sqlite() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        yield f"sqlite:///{folder}/gateway.db"


@contextmanager
def shared() -> Iterator[str]:
    with redis(*APPENDING, "everysec") as server:
        yield server.url


STORES = {"SQLite": sqlite, "Redis, `appendfsync everysec`": shared}


def main(*, large: bool) -> None:
    backlog = LARGE if large else BACKLOG
    os.sched_setaffinity(0, {0})
    print(f"\n### p99 of the webhook's answer at {PER_SECOND} a second, in ms\n")
    print("| |" + "".join(f" {name} | of well |" for name in STORES) + "\n|---|" + "---:|" * 2 * len(STORES))
    took: dict[tuple[str, State], list[float]] = defaultdict(list)
    with sink() as url:
        for _ in range(1 if large else ROUNDS):
            for name, store in STORES.items():
                for state in STATES[:2]:
                    with store() as address:
                        took[name, state].append(measure(address, state, url, 0))
                with store() as address:
                    uvloop.run(_fill(address, backlog))
                    for number, state in enumerate(STATES[2:]):
                        took[name, state].append(measure(address, state, url, number * (WARM_UP + WEBHOOKS)))
    for state in STATES:
        cells = []
        for name in STORES:
            mine, well = (statistics.median(took[name, each]) for each in (state, STATES[0]))
            cells += [f"{mine:.1f}", f"{mine / well:.2f}"]
        print(f"| {state.title.format(backlog=f'{backlog:,}')} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(large="--large" in sys.argv[1:])
