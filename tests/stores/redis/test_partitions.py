"""Several partitions are one store: what a webhook needs is together, and what is asked of all is answered by all."""

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from msgspec import structs

from gateway.deliveries import DataRequest, Forgotten, NewDelivery, Settlement, State
from gateway.store.redis import RedisStore
from tests.stores.harness import FINGERPRINT
from tests.stores.reports import (
    DAY,
    DUE,
    DUPLICATE,
    MINUTE,
    NOW,
    accept,
    event,
    key,
    lease,
    linked,
    part,
    report,
    simple,
    states,
    webhook,
)
from tests.stores.servers import shared

ACCOUNTS = tuple(f"account {number}" for number in range(12))


@pytest.fixture
async def store() -> AsyncIterator[RedisStore]:
    store = await RedisStore.open(shared().url, FINGERPRINT, prefix=f"p{uuid4().hex}", partitions=4)
    yield store
    await store.close()


async def one_each(store: RedisStore, at: int = NOW) -> list[int]:
    """Accept a webhook for each account, each a millisecond after the other."""
    made = (webhook(each, event(each), account=each, at=at + n, subjects=("user",)) for n, each in enumerate(ACCOUNTS))
    return await accept(store, *made)


async def test_accounts_are_spread_and_each_stays_in_its_place(store: RedisStore) -> None:
    numbers = await one_each(store)
    assert {number % 1024 for number in numbers} == {0, 1, 2, 3}
    again = await accept(store, *(webhook("other", account=each) for each in ACCOUNTS))
    assert [number % 1024 for number in again] == [number % 1024 for number in numbers]


async def test_all_of_them_are_listed_found_and_counted(store: RedisStore) -> None:
    numbers = await one_each(store)
    first = await store.webhooks(limit=5)
    rest = await store.webhooks(before=first[-1].webhook)
    assert [each.webhook for each in (*first, *rest)] == sorted(numbers, reverse=True)
    assert await store.find(ACCOUNTS[3]) == [numbers[3]]
    assert (await store.counts())["sink"].pending == len(ACCOUNTS)
    stored = await store.webhook(numbers[7])
    assert stored is not None
    assert stored.account == ACCOUNTS[7]


@pytest.mark.parametrize("limit", [1, 3, 5, 100])
async def test_no_more_is_leased_than_asked_and_nothing_is_left_behind(store: RedisStore, limit: int) -> None:
    numbers = await one_each(store)
    leased: list[int] = []
    while taken := await lease(store, NOW + DAY, limit):
        assert len(taken) == min(limit, len(numbers) - len(leased))
        leased += [each.webhook for each in taken]
        assert await store.settle([Settlement(each, State.SENT) for each in taken]) == len(taken)
    assert sorted(leased) == sorted(numbers)


async def test_one_busy_account_gets_all_that_the_others_leave(store: RedisStore) -> None:
    await accept(store, *(simple(str(number)) for number in range(10)))
    assert len(await lease(store, limit=8)) == 8


async def test_the_next_due_time_is_the_first_of_all(store: RedisStore) -> None:
    await one_each(store, NOW + MINUTE)
    assert await store.lease("sink", 100, NOW, NOW + DAY) == ([], NOW + MINUTE)


async def test_a_link_releases_whoever_waits_wherever_it_is(store: RedisStore) -> None:
    waits = NewDelivery("sink", wait_until=NOW + DAY)
    numbers = await accept(
        store, *(webhook(each, event(each, waits), account=each, subjects=("user", each)) for each in ACCOUNTS)
    )
    assert await store.link([part("user", "v")], NOW) == {"sink"}
    assert await states(store, *numbers) == [DUE] * len(ACCOUNTS)
    assert await linked(store, ACCOUNTS[5]) == {"": b"v"}


async def test_claims_names_and_replays_find_their_partition(store: RedisStore) -> None:
    session = structs.replace(report("session", "pi", order=b"name"), account=ACCOUNTS[1])
    numbers = await accept(store, session, structs.replace(report("intent", "pi"), account=ACCOUNTS[1]))
    assert await states(store, *numbers) == [DUE, DUPLICATE]
    assert await store.order_of([key("other"), key("pi")]) == b"name"
    assert (await store.replay(numbers[0], session, NOW)).webhook == numbers[0]


async def test_whoever_is_forgotten_is_forgotten_everywhere(store: RedisStore) -> None:
    numbers = await one_each(store)
    assert await store.naming([key("user")]) == sorted(numbers, reverse=True)
    assert await store.forget([key("user")]) == Forgotten(webhooks=len(ACCOUNTS), pending=len(ACCOUNTS))
    assert await store.naming([key("user")]) == []


async def test_requests_are_told_oldest_first_and_closed_where_they_are(store: RedisStore) -> None:
    numbers = [await store.ask(DataRequest("export", "s", each), NOW + n) for n, each in enumerate(ACCOUNTS)]
    assert [each.number for each in await store.asked()] == numbers
    for number in numbers:
        await store.fulfilled(number, NOW + DAY, "done")
    assert await store.asked() == []


async def test_a_purge_purges_everywhere(store: RedisStore) -> None:
    await one_each(store)
    assert await store.purge(NOW + DAY, DAY // 2) == len(ACCOUNTS)
    await store.purge(NOW + 91 * DAY, DAY)
    assert await store.webhooks() == []


async def test_a_number_of_nobody_is_nothing(store: RedisStore) -> None:
    assert (await store.webhook(1024 + 77), await store.deliveries(1024 + 77)) == (None, [])
    with pytest.raises(ValueError, match="has no body any more"):
        await store.replay(1024 + 77, simple("a"), NOW)
