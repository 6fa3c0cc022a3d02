"""`python -m tests.benchmarks answers [--large]`: how long a webhook waits for its answer while a destination is dead.

`gateway serve` has a core of its own and two destinations, a hundred events a request; senders, collectors and Redis
share the other. Webhooks come at a steady pace, well below what the gateway could take, whether those before them were
answered or not; so what one waits for the others counts. In turns, by a gateway of its own each time:

* both destinations are well;
* one refuses connections;
* one refuses connections, and a backlog waits for it;
* both are well, and a backlog is being delivered as fast as it goes.

The first is what the others are compared with. Of the rounds the median counts.
"""

import asyncio
import socket
import statistics
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import cast

import uvloop
from msgspec import Struct

from gateway.clock import now_ms
from gateway.deliveries import Acceptance, NewDelivery, NewEvent
from gateway.events import encode_event
from gateway.sealing import Sealer, parse_key
from gateway.store.opening import Store
from gateway.store.redis import RedisStore
from gateway.store.sqlite import SqliteStore
from gateway.translate import event_key
from tests.benchmarks.delivery import event
from tests.benchmarks.payments import webhooks
from tests.benchmarks.report import Asked, Cell, Scale, Table, asked, show, step
from tests.benchmarks.servers import KEY, OTHERS, gateway, on_core, sink
from tests.benchmarks.stores import APPENDING, filled, redis

PER_SECOND = 400
CONNECTIONS = 64
WARM_UP = 400
SEALER = Sealer(parse_key(KEY))


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


async def _fill(address: str, number: int) -> None:
    store: Store
    if address.startswith("sqlite:///"):
        store = SqliteStore.open(Path(address.removeprefix("sqlite:///")), SEALER.fingerprint())
    else:
        store = await RedisStore.open(address, SEALER.fingerprint(), answer_within=30.0)
    await filled(store, number, _backlog, count())
    await store.close()


def measure(address: str, state: State, url: str, number: int, first: int = 0) -> float:
    """Return the p99 of one run of so many webhooks, in ms. They are numbered from `first` on."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        dead = f"http://127.0.0.1:{closed.getsockname()[1]}"
    requests = webhooks(WARM_UP + number, first)  # only now, as a signature is good for minutes
    urls = (url, dead if state.dead else url)
    with tempfile.TemporaryDirectory() as folder, gateway(Path(folder), address, urls) as served:
        uvloop.run(paced(served.port, requests[:WARM_UP]))
        times = uvloop.run(paced(served.port, requests[WARM_UP:]))
    return times[int(len(times) * 0.99)]


@contextmanager
def sqlite() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        yield f"sqlite:///{folder}/gateway.db"


@contextmanager
def shared() -> Iterator[str]:
    with redis(*APPENDING, "everysec", core=OTHERS) as server:
        yield server.url


STORES = {"SQLite": sqlite, "Redis, `appendfsync everysec`": shared}


class Size(Struct, frozen=True):
    """How much is measured."""

    rounds: int
    webhooks: int
    backlog: int
    stores: tuple[str, ...] = tuple(STORES)


SIZES: dict[Scale, Size] = {
    "quick": Size(1, 100, 500, ("SQLite",)),
    "default": Size(3, 1_600, 20_000, ("SQLite",)),
    "large": Size(1, 4_000, 1_000_000),
}


def main(asked: Asked) -> list[Table]:
    """Measure all states in turns; on Redis, too, if much is asked for."""
    size = SIZES[asked.scale]
    took: dict[tuple[str, State], list[float]] = defaultdict(list)
    with sink() as collector, on_core(OTHERS):
        for turn in range(size.rounds):
            for name in size.stores:
                step(f"{name}, round {turn + 1} of {size.rounds}")
                _round(name, size, collector.url, took)
    rows: list[tuple[Cell, ...]] = []
    for state in STATES:
        cells: list[Cell] = []
        for name in size.stores:
            mine, well = (statistics.median(took[name, each]) for each in (state, STATES[0]))
            cells += [mine, mine / well]
        rows.append((state.title.format(backlog=f"{size.backlog:,}"), *cells))
    title = f"p99 of the webhook's answer at {PER_SECOND} a second, in ms"
    columns = ("", *(title for name in size.stores for title in (name, f"{name}: of well")))
    return [Table("answers", title, columns, tuple(rows))]


def _round(name: str, size: Size, url: str, took: dict[tuple[str, State], list[float]]) -> None:
    for state in STATES[:2]:
        with STORES[name]() as address:
            took[name, state].append(measure(address, state, url, size.webhooks))
    with STORES[name]() as address:
        uvloop.run(_fill(address, size.backlog))
        for place, state in enumerate(STATES[2:]):
            first = place * (WARM_UP + size.webhooks)
            took[name, state].append(measure(address, state, url, size.webhooks, first))


if __name__ == "__main__":
    show(main(asked()))
