"""`python -m tests.benchmarks delivery`: how fast a loop empties the store into a local sink, against bare httpx.

Loop and sink have a core each. The bare loop posts the very bytes that the gateway's loop posts, over a
client of the same settings and with as many requests at a time, and neither reads nor settles anything.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Coroutine
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
from tests.benchmarks.report import Asked, Cell, Table, asked, show, step
from tests.benchmarks.servers import MEASURED, on_core, sink

ROUNDS = 3
BATCHES = {1: 2_000, 20: 6_000, 100: 12_000}
"""Events a request, and how many are sent in a round."""
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


async def accepted(store: SqliteStore, events: int) -> None:
    """Put events into the store, one a webhook."""

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

    for start in range(0, events, 500):
        numbers = range(start, min(start + 500, events))
        await asyncio.gather(*(store.accept(acceptance(number)) for number in numbers))


Way = Callable[[str, int, int], Coroutine[None, None, float]]
"""Sends so many events to a URL, so many a request; returns events a second."""


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


async def delivered(url: str, batch: int, events: int) -> float:
    """Return events a second of the gateway's own loop, with SQLite, sealing, rendering and settling."""
    to = destination(url, batch)
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore.open(Path(folder) / "g.db", SEALER.fingerprint())
        await accepted(store, events)
        sender = Counting(to.concurrency, -(-events // batch))
        loop = DeliveryLoop("sink", lambda: to, store, SEALER, sender, lambda: NOW, lambda low, _high: low)
        started = time.perf_counter()
        task = asyncio.create_task(loop.run())
        await sender.done.wait()
        loop.stop()
        await task
        took = time.perf_counter() - started
        assert (await store.counts())["sink"].sent == events
        assert not sender.failed
        await sender.close()
        await store.close()
    return events / took


async def posted(url: str, batch: int, events: int) -> float:
    """Return events a second of bare httpx, posting the same bytes."""
    to = destination(url, batch)
    rendered = [bytes(each) for number in range(events) if isinstance(each := render(event(number), to), bytes)]
    requests = iter([pack(rendered[at : at + batch], to, "id", NOW) for at in range(0, events, batch)])
    sender = HttpSender(to.concurrency)

    async def post() -> None:
        for request in requests:
            assert (await sender.send(request)).status == 200

    started = time.perf_counter()
    await asyncio.gather(*(post() for _ in range(to.concurrency)))
    took = time.perf_counter() - started
    await sender.close()
    return events / took


def main(asked: Asked) -> list[Table]:
    """Measure both ways for each size of a batch, in turns."""
    ways: dict[str, Way] = {"bare httpx": posted, "gateway": delivered}
    rounds = 1 if asked.scale == "quick" else ROUNDS
    rows: list[tuple[Cell, ...]] = []
    with sink() as collector, on_core(MEASURED):
        for batch, events in BATCHES.items():
            step(f"{batch} events a request")
            number = 3 * batch if asked.scale == "quick" else events
            rates: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(rounds):
                for name, way in ways.items():
                    rates[name].append(uvloop.run(way(collector.url, batch, number)))
            bare, ours = (statistics.median(rates[name]) for name in ways)
            rows.append((batch, bare, ours, ours / bare))
    columns = ("events a request", "bare httpx, events/s", "gateway, events/s", "of bare")
    return [Table("delivery", "Deliveries, by one core", columns, tuple(rows))]


if __name__ == "__main__":
    show(main(asked()))
