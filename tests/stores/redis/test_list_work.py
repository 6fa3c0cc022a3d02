"""A list asks as much of Redis however much is stored, and whatever ids and types a sender thinks of."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import cast
from uuid import uuid4

from gateway.deliveries import NewDelivery, Settlement, State, Wanted, WantedDeliveries
from gateway.store.redis import RedisStore
from tests.stores.harness import FINGERPRINT
from tests.stores.reports import DAY, NOW, event, key, lease, webhook
from tests.stores.servers import shared

FEW, MANY = 70, 700
DEAD = frozenset({State.DEAD})


LOOKS: dict[str, Callable[[RedisStore], Awaitable[object]]] = {
    "all": lambda store: store.search(Wanted(), limit=20),
    "by id": lambda store: store.search(Wanted(id="same"), limit=20),
    "by type": lambda store: store.search(Wanted(type="often"), limit=20),
    "by source, of many types": lambda store: store.search(Wanted(source="stripe"), limit=20),
    "by subject": lambda store: store.search(Wanted(subjects=(key("ada"),)), limit=20),
    "with dead deliveries": lambda store: store.search(Wanted(states=DEAD), limit=20),
    "deliveries": lambda store: store.search_deliveries(WantedDeliveries(), limit=20),
    "dead deliveries": lambda store: store.search_deliveries(WantedDeliveries(states=DEAD), limit=20),
    "dead": lambda store: store.dead(),
    "counts": lambda store: store.counts(),
    "backlog": lambda store: store.backlog(NOW),
}


async def filled(webhooks: int) -> RedisStore:
    """Return a store with so many webhooks of one type and one id, and as many that are each of a type of its own."""
    store = await RedisStore.open(shared().url, FINGERPRINT, prefix=f"work-{uuid4().hex}", answer_within=30.0)
    to = (NewDelivery("sink"), NewDelivery("other"))
    for each in range(webhooks):
        often = webhook("same", event(f"{each}", *to), account=f"{each}", type="often", subjects=("ada",), at=NOW + DAY)
        await asyncio.gather(store.accept(often), store.accept(webhook(f"{each}", type=f"type {each}", at=NOW + DAY)))
    leases = await lease(store, NOW + DAY, limit=webhooks)
    await store.settle([Settlement(leased, State.DEAD, "why") for leased in leases])
    return store


def commands() -> int:
    """Return how many commands the server has run, those of its functions among them."""
    with shared().client() as client:
        stats = cast("dict[str, dict[str, int]]", client.info("commandstats"))
    return sum(each["calls"] for name, each in stats.items() if name != "cmdstat_info")


async def test_lists_run_as_many_commands_however_much_is_stored() -> None:
    ran: list[dict[str, int]] = []
    for webhooks in (FEW, MANY):
        store = await filled(webhooks)
        ran.append({})
        for name, look in LOOKS.items():
            before = commands()
            assert await look(store)
            ran[-1][name] = commands() - before
        await store.close()
    few, many = ran
    assert many == few


async def test_an_id_that_comes_again_and_again_takes_as_much_room_each_time() -> None:
    store = await filled(FEW)
    with shared().client() as client:
        assert client.hstrlen(store._tags[0] + b":ids", "same") == len("1024")
    await store.close()
