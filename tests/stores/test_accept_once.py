"""Promise 3: the same webhook, at once or days apart, is accepted once; and what failed has left nothing."""

import asyncio

import pytest
from msgspec import structs

from gateway.deliveries import Acceptance, NewClaim
from tests.stores.harness import Harness, Store
from tests.stores.reports import DAY, DUE, NOW, accept, event, key, lease, linked, part, simple, states, webhook


async def test_the_same_webhook_fifty_times_at_once_is_stored_once(store: Store) -> None:
    receipts = await asyncio.gather(*(store.accept(simple("a")) for _ in range(50)))
    assert sorted(receipt.duplicate for receipt in receipts) == [False] + [True] * 49
    assert len({receipt.webhook for receipt in receipts}) == 1
    assert len(await lease(store)) == 1


async def test_a_duplicate_has_no_work_and_changes_nothing(store: Store) -> None:
    first = await store.accept(simple("a"))
    again = await store.accept(webhook("a", event("other"), event("third"), at=NOW + DAY))
    assert first.due == {"sink"}
    assert again.due == frozenset()
    assert await states(store, first.webhook) == [DUE]


@pytest.mark.parametrize("ends", ["closed", "crashed"])
async def test_a_duplicate_is_known_to_the_next_process(harness: Harness, ends: str) -> None:
    first = await (await harness.open()).accept(simple("a"))
    store = await (harness.open() if ends == "closed" else harness.crash())
    assert (await store.accept(simple("a"))).duplicate
    assert await states(store, first.webhook) == [DUE]


@pytest.mark.parametrize("other", [webhook("a", account="2"), webhook("a", type="u"), webhook("b")])
async def test_another_account_type_or_id_is_another_webhook(store: Store, other: Acceptance) -> None:
    receipts = [await store.accept(each) for each in (webhook("a"), other)]
    assert [receipt.duplicate for receipt in receipts] == [False, False]


async def test_what_could_not_be_stored_has_left_nothing_and_suppresses_nothing(store: Store) -> None:
    claim = NewClaim((key("pi"),), "purchase")
    whole = webhook("a", event("a", claim=claim), learned=(part("user", "v"),))
    beyond = structs.replace(whole, learned=(part("user", "v", 2**70),))  # no store keeps such a time
    with pytest.raises(Exception, match=r"large|range|integer"):
        await store.accept(beyond)
    assert (await store.webhooks(), await store.counts(), await linked(store, "user")) == ([], {}, {})
    assert not (await store.accept(whole)).duplicate
    assert len(await lease(store)) == 1


async def test_a_webhook_without_events_is_kept(store: Store) -> None:
    (number,) = await accept(store, webhook("a"))
    stored = await store.webhook(number)
    assert stored is not None
    assert (stored.id, stored.sealed) == ("a", b"sealed")
    assert await states(store, number) == []


async def test_webhooks_are_listed_newest_first_and_found_by_their_own_id(store: Store) -> None:
    numbers = await accept(store, *(webhook(id) for id in "abc"), webhook("a", type="u"))
    assert [each.webhook for each in await store.webhooks(limit=2)] == numbers[:1:-1]
    assert [each.webhook for each in await store.webhooks(before=numbers[2])] == numbers[1::-1]
    assert await store.find("a") == [numbers[3], numbers[0]]
