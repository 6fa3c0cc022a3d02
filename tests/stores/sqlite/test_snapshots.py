"""A read of several statements sees one moment, whatever others commit in between."""

import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest

from gateway.deliveries import NEVER, NewDelivery, State, Wanted, WantedDeliveries
from gateway.store import sqlite
from gateway.store.sqlite import SqliteStore
from tests.stores.harness import FINGERPRINT
from tests.stores.reports import NOW, accept, event, settle, webhook

ERASED = ("attempt", "delivery", "event", "listed", "webhook")


async def _accounted(store: SqliteStore) -> object:
    return [each async for each in store.accounted(0, NEVER)]


async def _copied(store: SqliteStore) -> object:
    return [each async for each in store.copied()]


LOOKS: dict[str, Callable[[SqliteStore], Awaitable[object]]] = {
    "deliveries": lambda store: store.deliveries(1),
    "search": lambda store: store.search(Wanted(since=NOW)),
    "search by type": lambda store: store.search(Wanted(type="t")),
    "search deliveries": lambda store: store.search_deliveries(WantedDeliveries()),
    "dead": lambda store: store.dead(),
    "counts": lambda store: store.counts(),
    "accounted": _accounted,
    "copied": _copied,
}


def erasing_meanwhile(path: Path, armed: Callable[[], bool]) -> Callable[[Path], sqlite3.Connection]:
    """Return how to connect so that, when armed, another process erases everything after a query's first statement."""
    connect = sqlite._connect

    def connected(path: Path) -> sqlite3.Connection:
        connection, looked = connect(path), 0

        def interfere(statement: str) -> None:
            nonlocal looked
            looked = looked + statement.startswith("SELECT") if armed() and not statement.startswith("BEGIN") else 0
            if looked == 2:
                with closing(connect(path)) as other:
                    for table in ERASED:
                        other.execute(f"DELETE FROM {table}")

        connection.set_trace_callback(interfere)
        return connection

    return connected


@pytest.mark.parametrize("name", LOOKS)
async def test_what_is_erased_during_a_read_is_still_whole_in_it(
    path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    armed = False
    monkeypatch.setattr(sqlite, "_connect", erasing_meanwhile(path, lambda: armed))
    store = SqliteStore.open(path, FINGERPRINT)
    await accept(store, webhook("a", event("a", NewDelivery("sink"), NewDelivery("other"))))
    await settle(store, State.DEAD)
    look = LOOKS[name]
    before = await look(store)
    assert await look(store) == before
    armed = True
    assert await look(store) == before
    armed = False
    assert await look(store) != before
    await store.close()
