"""However a delivery ended, and however it is erased: nothing of it stays in what lists answer from."""

import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest

from gateway.deliveries import Counts, NewDelivery, Settlement, State, Wanted, WantedDeliveries
from gateway.store.redis import RedisStore
from gateway.store.sqlite import SqliteStore
from tests.stores.harness import Harness, Store
from tests.stores.reports import DAY, MINUTE, NOW, accept, event, key, lease, part, settle, webhook
from tests.stores.servers import shared

LATER = NOW + 100 * DAY


@pytest.fixture(autouse=True)
def _listed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded store lists webhooks in batches: here one by one."""
    monkeypatch.setattr("gateway.store.sqlite.INDEX_EVERY", 1)


async def _retried(store: Store, number: int) -> None:
    await store.retry(number, 0, NOW)


async def _retried_with_all(store: Store, _number: int) -> None:
    await store.retry_dead(WantedDeliveries(), NOW, before=None, limit=10)


async def _replayed(store: Store, number: int) -> None:
    await store.replay(number, webhook("a", event("a"), subjects=("ada",)), NOW)


async def _replayed_to_another(store: Store, number: int) -> None:
    await store.replay(number, webhook("a", event("a", NewDelivery("new"))), NOW)


async def _forgotten(store: Store, _number: int) -> None:
    await store.forget([key("ada")])


async def _account_forgotten(store: Store, _number: int) -> None:
    await store.forget_account("stripe", "")


async def _purged(store: Store, _number: int) -> None:
    await store.purge(NOW + 2 * DAY, DAY)


ENDINGS = (_retried, _retried_with_all, _replayed, _replayed_to_another, _forgotten, _account_forgotten, _purged)
OUTCOMES = (State.PARKED, State.DEAD, State.SENT, State.SKIPPED, State.DUE)


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("ending", ENDINGS)
async def test_lists_say_what_the_deliveries_say(
    store: Store, outcome: State, ending: Callable[[Store, int], Awaitable[None]]
) -> None:
    (number,) = await accept(store, webhook("a", event("a"), subjects=("ada",)))
    await settle(store, outcome, due_at=NOW + MINUTE)
    await store.search(Wanted(id="a"))
    await ending(store, number)
    stored = await store.deliveries(number)
    for state in State:
        wanted = frozenset({state})
        expected = {each.number for each in stored if each.state == state}
        listed, _ = await store.search_deliveries(WantedDeliveries(states=wanted))
        found, _ = await store.search(Wanted(states=wanted))
        assert {each.number for each in listed} == expected
        assert [each.states[state] for each in found] == ([len(expected)] if expected else [])
    assert sum(each.number for each in await store.dead()) == sum(each.state == State.DEAD for each in stored)
    assert sum(each.accepted for each in (await store.counts()).values()) == len(stored)


async def test_what_a_link_wakes_is_skipped_no_more(store: Store) -> None:
    await accept(store, webhook("a", event("a"), subjects=("ada",)))
    (leased,) = await lease(store)
    await store.settle([Settlement(leased, State.SKIPPED, "no_person")])
    assert await store.counts() == {"sink": Counts(accepted=1, sent=0, skipped=1, pending=0, dead=0)}
    await store.link([part("ada", "visitor")], NOW)
    assert await store.counts() == {"sink": Counts(accepted=1, sent=0, skipped=0, pending=1, dead=0)}


async def everything_over(store: Store) -> None:
    """Let each ending come upon each outcome, under one id, and then let time take it all."""
    for ending in ENDINGS[:-1]:
        for outcome in OUTCOMES:
            account = f"{ending.__name__} {outcome}"
            (number,) = await accept(store, webhook("a", event("a"), account=account, subjects=("ada",)))
            await settle(store, outcome, due_at=LATER)
            await ending(store, number)
            for each in (await store.lease("sink", 10, NOW, NOW))[0] + (await store.lease("new", 10, NOW, NOW))[0]:
                await store.retry(each.webhook, each.number, NOW)
            await store.purge(LATER, DAY)


async def test_what_is_over_leaves_nothing(harness: Harness, tmp_path: Path) -> None:
    store = await harness.open()
    await everything_over(store)
    assert await store.search(Wanted()) == ([], None)
    assert (await store.dead(), await store.counts(), await store.backlog(NOW)) == ([], {}, {})
    if isinstance(store, RedisStore):
        with shared().client() as client:
            left = list(client.scan_iter(store._tags[0] + b":*"))
        assert left == [store._tags[0] + b":meta"]
    else:
        assert isinstance(store, SqliteStore)
        with closing(sqlite3.connect(store._path)) as connection:
            for table in ("listed", "tally", "subject", "named", "delivery", "attempt"):
                assert connection.execute(f"SELECT * FROM {table}").fetchall() == []
