"""A list is as much work however much is stored: counted are the steps of SQLite's machine, no matter of time."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from gateway.deliveries import NewDelivery, Settlement, State, Wanted, WantedDeliveries
from gateway.store import sqlite
from gateway.store.sqlite import INDEX_EVERY, SqliteStore
from tests.stores.harness import FINGERPRINT
from tests.stores.reports import DAY, NOW, event, key, lease, webhook

FEW, MANY = INDEX_EVERY, 4 * INDEX_EVERY
DEAD = frozenset({State.DEAD})

LOOKS: dict[str, Callable[[SqliteStore], Awaitable[object]]] = {
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
    "one": lambda store: store.deliveries(2),
}


async def filled(path: Path, webhooks: int) -> SqliteStore:
    """Return a store in which half of so many webhooks share a type and an id; the others have types of their own."""
    store = SqliteStore.open(path, FINGERPRINT)
    to = (NewDelivery("sink"), NewDelivery("other", "no_consent"))
    made = [
        webhook("same", event(f"{each}", *to), account=f"{each}", type="often", subjects=("ada",), at=NOW + DAY)
        if each % 2
        else webhook(f"{each}", type=f"type {each}", at=NOW + DAY)
        for each in range(webhooks)
    ]
    await asyncio.gather(*(store.accept(each) for each in made))
    leases = await lease(store, NOW + DAY, limit=webhooks)
    await store.settle([Settlement(leased, State.DEAD, "why") for leased in leases])
    return store


async def test_lists_are_as_much_work_however_much_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    def counting(path: Path) -> sqlite3.Connection:
        connection = connect(path)
        connection.set_progress_handler(step, 20)
        return connection

    connect = sqlite._connect
    worked: list[dict[str, int]] = []
    for webhooks in (FEW, MANY):
        store = await filled(tmp_path / f"{webhooks}.db", webhooks)
        monkeypatch.setattr(sqlite, "_connect", counting)
        worked.append({})
        for name, look in LOOKS.items():
            await look(store)
            steps = 0
            assert await look(store)
            worked[-1][name] = steps
        monkeypatch.undo()
        await store.close()
    few, many = worked
    assert {name: many[name] for name in LOOKS if many[name] > 1.5 * few[name] + 2} == {}
