"""`python -m tests.benchmarks.lists [--large]`: what operators ask of a store that holds few webhooks, or many.

Every list of the console and of the operator API is one or a few of these calls. The stores are filled through their
own `adopt`, at one webhook every 2.5 seconds, so that a million are a month, and an hour holds as many in each store.
One in twelve deliveries is dead, for one of four reasons, one in forty is parked, and one in a thousand is due: so each
page is full in each store.

All sizes are asked in turns within one run, so that the ratios hold on any machine. Told are the median and the 99th
percentile; of a call of few milliseconds the latter is mostly the machine's other work. A million (`--large`) take 3 GB
of disk, then 3 GB of memory, and a quarter of an hour.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from hashlib import blake2b
from pathlib import Path

import uvloop
from msgspec import Struct

from gateway.deliveries import (
    Acceptance,
    Attempt,
    CopiedDelivery,
    CopiedWebhook,
    LinkPart,
    NewEvent,
    State,
    Wanted,
    WantedDeliveries,
)
from gateway.store.opening import Store
from gateway.store.redis import RedisStore
from gateway.store.sqlite import SqliteStore
from tests.stores.servers import Server

SIZES = (1_000, 100_000)
LARGE = 1_000_000
CALLS = 300
PAGE = 20
EVERY = 2_500
"""Milliseconds between two webhooks."""
NOW = 1_800_000_000_000
DAY = 86_400_000
MINUTE = 60_000
FINGERPRINT = b"0123456789abcdef"
DEAD = frozenset({State.DEAD})
PARKED = frozenset({State.PARKED})


class Filled(Struct):
    """A store with so many webhooks. `middle` is the number of one that came halfway."""

    webhooks: int
    store: Store
    middle: int = 0
    took: float = 0.0


def _key(*parts: object) -> bytes:
    return blake2b(repr(parts).encode(), digest_size=16).digest()


def _state(age: int) -> tuple[State, str | None]:
    if age % 12 == 7:
        return State.DEAD, f"http_4{age // 12 % 4:02}"
    if age % 40 == 13:
        return State.PARKED, "http_429"
    if age % 1_000 == 17:
        return State.DUE, None
    return State.SENT, None


def _delivery(number: int, destination: str, age: int) -> CopiedDelivery:
    state, reason = _state(age) if destination == "sink" else (State.SKIPPED, "no_consent")
    came = NOW - age * EVERY
    tried = () if state in {State.DUE, State.SKIPPED} else (Attempt(came, 40, 200, reason or "sent"),)
    return CopiedDelivery(
        number=number,
        event=0,
        destination=destination,
        state=state,
        reason=reason,
        due_at=came if state < State.SENT else 0,
        held_until=0,
        first_try_at=came,
        late=0,
        at=came,
        lane=None,
        rendered=None,
        attempts=tried,
    )


def copied(age: int) -> CopiedWebhook:
    """Return the webhook that so many others came after, as it is in a store."""
    came = NOW - age * EVERY
    return CopiedWebhook(
        Acceptance(
            key=_key("webhook", age),
            source="shopify" if age % 30 == 0 else "stripe",
            account="",
            type="a.rare.type" if age % 50 == 0 else f"type.{age % 20}",
            id=f"evt_{age:024}",
            occurred_at=came,
            received_at=came,
            test=False,
            mapping="0123456789abcdef",
            sealed=bytes(500),
            notes=b"[]",
            events=(NewEvent(_key("event", age), bytes(400), ()),),
            subjects=(_key("person", age % 100), _key("order", age)),
        ),
        (_delivery(0, "sink", age), _delivery(1, "other", age)),
    )


async def fill(filled: Filled) -> None:
    """Put webhooks into an empty store, the oldest first."""
    started = time.perf_counter()
    for start in range(filled.webhooks, 0, -500):
        ages = range(start - 1, max(start - 501, -1), -1)
        await asyncio.gather(*(filled.store.adopt(copied(age)) for age in ages))
    parts = [LinkPart(_key("person", each), "", bytes(130), NOW, NOW + 400 * DAY) for each in range(100)]
    await filled.store.link(parts, NOW)
    (found, _) = await filled.store.search(Wanted(until=NOW - filled.webhooks // 2 * EVERY), limit=1)
    filled.middle = found[0].webhook.webhook
    filled.took = time.perf_counter() - started


Asked = Callable[[Filled, int], Awaitable[object]]
"""Asks a store something for the n-th time, and returns what is never empty."""


def searched(wanted: Wanted, *, middle: bool = False) -> Asked:
    async def asked(filled: Filled, _turn: int) -> object:
        page, _ = await filled.store.search(wanted, before=filled.middle if middle else None, limit=PAGE)
        return page

    return asked


def deliveries(wanted: WantedDeliveries, *, middle: bool = False) -> Asked:
    async def asked(filled: Filled, _turn: int) -> object:
        before = (filled.middle, 0) if middle else None
        page, _ = await filled.store.search_deliveries(wanted, before=before, limit=PAGE)
        return page

    return asked


def _age(filled: Filled, turn: int) -> int:
    return turn * 7_919 % filled.webhooks


async def _by_id(filled: Filled, turn: int) -> object:
    page, _ = await filled.store.search(Wanted(id=f"evt_{_age(filled, turn):024}"), limit=PAGE)
    return page


async def _by_subject(filled: Filled, turn: int) -> object:
    page, _ = await filled.store.search(Wanted(subjects=(_key("order", _age(filled, turn)),)), limit=PAGE)
    return page


async def _by_time(filled: Filled, turn: int) -> object:
    since = NOW - max(100, _age(filled, turn)) * EVERY
    page, _ = await filled.store.search(Wanted(since=since, until=since + 5 * MINUTE), limit=PAGE)
    return page


async def _one(filled: Filled, _turn: int) -> object:
    return await filled.store.webhook(filled.middle), await filled.store.deliveries(filled.middle)


async def _accounted(filled: Filled, _turn: int) -> object:
    return [each async for each in filled.store.accounted(NOW - 10 * MINUTE, NOW)]


async def _linked(filled: Filled, turn: int) -> object:
    return await filled.store.resolve([_key("person", (turn + each) % 100) for each in range(5)])


async def _naming(filled: Filled, turn: int) -> object:
    return await filled.store.naming([_key("order", _age(filled, turn))])


ROWS: dict[str, Asked] = {
    "webhooks: the newest": searched(Wanted()),
    "webhooks: a page halfway": searched(Wanted(), middle=True),
    "webhooks: by id": _by_id,
    "webhooks: by type": searched(Wanted(type="type.3")),
    "webhooks: by a rare type": searched(Wanted(type="a.rare.type")),
    "webhooks: by a rare source": searched(Wanted(source="shopify")),
    "webhooks: by source and type": searched(Wanted(source="stripe", type="type.3"), middle=True),
    "webhooks: by subject": _by_subject,
    "webhooks: of five minutes": _by_time,
    "webhooks: with a dead delivery": searched(Wanted(states=DEAD)),
    "webhooks: with a parked delivery": searched(Wanted(states=PARKED)),
    "webhooks: one, with its deliveries": _one,
    "deliveries: the newest": deliveries(WantedDeliveries()),
    "deliveries: a page halfway": deliveries(WantedDeliveries(), middle=True),
    "deliveries: of a destination": deliveries(WantedDeliveries(destination="sink")),
    "deliveries: dead": deliveries(WantedDeliveries(states=DEAD)),
    "deliveries: dead, of a destination and a reason": deliveries(
        WantedDeliveries(states=DEAD, destination="sink", reason="http_402")
    ),
    "dead letters, by destination and reason": lambda filled, _: filled.store.dead(),
    "counts by destination": lambda filled, _: filled.store.counts(),
    "what waits, by destination": lambda filled, _: filled.store.backlog(NOW),
    "accuracy: of ten minutes": _accounted,
    "links of five subjects": _linked,
    "who names a subject": _naming,
}


async def measure(title: str, stores: Sequence[Filled]) -> None:
    """Print how long each call takes in each of the stores."""
    columns = "".join(f" {each.webhooks:,} webhooks |" for each in stores)
    print(f"\n### {title}\n\n| ms: median, 99th percentile |{columns} ratio |\n|---|" + "---:|" * (len(stores) + 1))
    for row, asked in ROWS.items():
        took: list[list[float]] = [[] for _ in stores]
        for turn in range(-5, CALLS):
            for filled, times in zip(stores, took, strict=True):
                started = time.perf_counter()
                found = await asked(filled, turn)
                if turn >= 0:
                    times.append((time.perf_counter() - started) * 1_000)
                assert found, row
        told = [(sorted(each)[len(each) // 2], sorted(each)[int(len(each) * 0.99)]) for each in took]
        ratios = [last / first for first, last in zip(told[0], told[-1], strict=True)]
        cells = "".join(f" {median:.2f}, {p99:.2f} |" for median, p99 in told)
        print(f"| {row} |{cells} {ratios[0]:.2f}, {ratios[1]:.2f} |", flush=True)
    print(f"\nThe largest was filled in {stores[-1].took:,.0f} s.")


async def _of_sqlite(sizes: Sequence[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        stores = [Filled(each, SqliteStore.open(Path(folder) / f"{each}.db", FINGERPRINT)) for each in sizes]
        for each in stores:
            await fill(each)
        await measure("SQLite", stores)
        for each in stores:
            await each.store.close()


async def _of_redis(sizes: Sequence[int]) -> None:
    server = Server().start()
    try:
        stores = [
            Filled(each, await RedisStore.open(server.url, FINGERPRINT, prefix=f"lists-{each}", answer_within=30.0))
            for each in sizes
        ]
        for each in stores:
            await fill(each)
        await measure("Redis", stores)
        for each in stores:
            await each.store.close()
    finally:
        server.remove()


def main(*, large: bool) -> None:
    print("\n## Lists: what operators ask, by how many webhooks are stored")
    sizes = (SIZES[0], LARGE) if large else SIZES
    uvloop.run(_of_sqlite(sizes))
    uvloop.run(_of_redis(sizes))


if __name__ == "__main__":
    main(large="--large" in sys.argv[1:])
