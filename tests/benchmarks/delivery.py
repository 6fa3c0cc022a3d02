"""`python -m tests.benchmarks.delivery`: how fast a loop empties the store into a local sink, against bare httpx.

The sink runs on core 0, the loop on core 1. The bare loop posts the very bytes that the gateway's loop posts, over a
client of the same settings and with as many requests at a time, and neither reads nor settles anything.
"""

import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import NAMESPACE_OID, uuid5

import uvloop

from gateway.deliveries import Acceptance, NewDelivery, NewEvent
from gateway.delivery import DeliveryLoop
from gateway.destinations import Destination, Request, Response, compile_destination, pack, render
from gateway.documents import parse
from gateway.events import Event, ProductIds, Visitor, encode_event
from gateway.money import money
from gateway.sealing import Sealer
from gateway.sending import HttpSender
from gateway.store.sqlite import SqliteStore
from gateway.translate import event_key

EVENTS = 6_000
ROUNDS = 3
BATCHES = (1, 20, 100)
NOW = 1_800_000_000_000
SEALER = Sealer(b"k" * 32)


FILE = """
destination: sink
enabled_by: [SINK]
endpoint: ${SINK}
secrets: {key: "${KEY}"}
headers: {Authorization: secrets.key}
event:
  id: id
  event_name: name
  anonymous_id: visitor.sink || user_id
  person_id: user_id
  timestamp: at
  properties: "merge(properties, {amount: minor(properties.value)})"
body: {publicKey: secrets.key, events: "events || [event]"}
"""


def destination(url: str, batch: int) -> Destination:
    text = FILE + (f"batch: {{max_events: {batch}, max_bytes: 1000000}}\n" if batch > 1 else "")
    return compile_destination(parse(text, "sink.yaml"), "v", {"SINK": f"{url}/webhooks/sink", "KEY": "k"}.get)


def event(number: int) -> Event:
    return Event(
        id=str(uuid5(NAMESPACE_OID, str(number))),
        name="purchase",
        at=NOW,
        user_id=f"user_{number}",
        visitor=Visitor({"sink": ProductIds(f"anon_{number}", f"sess_{number}")}),
        properties={"order_id": f"order_{number}", "value": money("110.00", "USD"), "currency": "USD"},
        source="stripe",
        webhook_id=f"evt_{number}",
        type="checkout.session.completed",
        rule="checkout paid",
    )


async def accepted(store: SqliteStore) -> None:
    """Put all events into the store, one a webhook."""

    def acceptance(number: int) -> Acceptance:
        made = event(number)
        return Acceptance(
            key=event_key(made.id),
            source="stripe",
            account="",
            type=made.type,
            id=made.webhook_id,
            occurred_at=NOW,
            received_at=NOW,
            test=False,
            mapping="m",
            sealed=b"",
            notes=b"[]",
            events=(NewEvent(event_key(made.id), SEALER.seal(encode_event(made), b"event"), (NewDelivery("sink"),)),),
        )

    for start in range(0, EVENTS, 500):
        await asyncio.gather(*(store.accept(acceptance(number)) for number in range(start, start + 500)))


class Counting:
    """The real sender, which knows when the last event went out."""

    def __init__(self, concurrency: int, requests: int) -> None:
        self._sender = HttpSender(concurrency)
        self._left = requests
        self.failed = 0
        self.done = asyncio.Event()

    async def send(self, request: Request) -> Response:
        response = await self._sender.send(request)
        self.failed += response.status != 200
        self._left -= 1
        if not self._left:
            self.done.set()
        return response

    async def close(self) -> None:
        await self._sender.close()


async def delivered(url: str, batch: int) -> float:
    """Return events a second of the gateway's own loop, with SQLite, sealing, rendering and settling."""
    to = destination(url, batch)
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore.open(Path(folder) / "g.db", SEALER.fingerprint())
        await accepted(store)
        sender = Counting(to.concurrency, -(-EVENTS // batch))
        loop = DeliveryLoop("sink", lambda: to, store, SEALER, sender, lambda: NOW, lambda low, _high: low)
        started = time.perf_counter()
        task = asyncio.create_task(loop.run())
        await sender.done.wait()
        loop.stop()
        await task
        took = time.perf_counter() - started
        assert (await store.counts())["sink"].sent == EVENTS
        assert not sender.failed
        await sender.close()
        await store.close()
    return EVENTS / took


async def posted(url: str, batch: int) -> float:
    """Return events a second of bare httpx, posting the same bytes."""
    to = destination(url, batch)
    rendered = [bytes(each) for number in range(EVENTS) if isinstance(each := render(event(number), to), bytes)]
    requests = iter([pack(rendered[at : at + batch], to, "id", NOW) for at in range(0, EVENTS, batch)])
    sender = HttpSender(to.concurrency)

    async def post() -> None:
        for request in requests:
            assert (await sender.send(request)).status == 200

    started = time.perf_counter()
    await asyncio.gather(*(post() for _ in range(to.concurrency)))
    took = time.perf_counter() - started
    await sender.close()
    return EVENTS / took


@contextmanager
def sink() -> Iterator[str]:
    """Run the bare server on core 0 while the block runs."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "tests.benchmarks.servers", "asgi", str(port), "."])
    try:
        for _ in range(500):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    os.sched_setaffinity(0, {1})
    ways: dict[str, Callable[[str, int], Coroutine[None, None, float]]] = {"bare httpx": posted, "gateway": delivered}
    print("\n| events a request | bare httpx, events/s | gateway, events/s | of bare |\n|---:|---:|---:|---:|")
    with sink() as url:
        for batch in BATCHES:
            rates: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(ROUNDS):
                for name, way in ways.items():
                    rates[name].append(uvloop.run(way(url, batch)))
            bare, ours = (statistics.median(rates[name]) for name in ways)
            print(f"| {batch} | {bare:,.0f} | {ours:,.0f} | {ours / bare:.2f} |")


if __name__ == "__main__":
    main()
