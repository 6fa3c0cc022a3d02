"""Past retention nothing of a webhook is left but that it came, and which payments it claimed; later not even that."""

import asyncio

from gateway.deliveries import Settlement, State
from tests.stores.harness import Harness, Store
from tests.stores.reports import (
    DAY,
    DUE,
    DUPLICATE,
    NOW,
    accept,
    key,
    lease,
    linked,
    part,
    report,
    settle,
    simple,
    states,
    tie,
)

KEPT = 30 * DAY
CLAIMS_KEPT = 90 * DAY
EXPIRED_KEPT = 30 * DAY


async def test_bodies_events_deliveries_and_attempts_go(store: Store) -> None:
    (number,) = await accept(store, simple("a"))
    await settle(store, State.DEAD)
    assert await store.purge(NOW + KEPT + 1, KEPT) == 1
    stored = await store.webhook(number)
    assert stored is not None
    assert (stored.sealed, stored.notes) == (None, b"")
    assert (await store.deliveries(number), await store.counts()) == ([], {})


async def test_what_is_younger_stays(store: Store) -> None:
    (number,) = await accept(store, simple("a"))
    assert await store.purge(NOW + KEPT, KEPT) == 0
    assert await states(store, number) == [DUE]


async def test_the_duplicate_key_and_claims_are_known_for_ninety_days(harness: Harness) -> None:
    store = await harness.open()
    await accept(store, report("a", "pi"), tie("tie", "pi", "in"))
    await store.purge(NOW + CLAIMS_KEPT, KEPT)
    store = await harness.crash()
    assert (await store.accept(report("a", "pi"))).duplicate
    late = await accept(store, report("b", "in", at=NOW + CLAIMS_KEPT))
    assert await states(store, *late) == [DUPLICATE]


async def test_after_ninety_days_nothing_is_known(store: Store) -> None:
    await accept(store, report("a", "pi"))
    await store.purge(NOW + CLAIMS_KEPT + 1, KEPT)
    assert await store.webhooks() == []
    receipt = await store.accept(report("a", "pi", at=NOW + CLAIMS_KEPT + 1))
    assert not receipt.duplicate
    assert await states(store, receipt.webhook) == [DUE]


async def test_a_retention_beyond_ninety_days_keeps_claims_as_long(store: Store) -> None:
    await accept(store, report("a", "pi"))
    await store.purge(NOW + 100 * DAY, 200 * DAY)
    assert (await store.accept(report("a", "pi"))).duplicate


async def test_a_purge_takes_as_many_steps_as_it_needs(store: Store) -> None:
    await asyncio.gather(*(store.accept(simple(str(number))) for number in range(1_100)))
    await asyncio.gather(*(store.accept(simple(f"young {number}", NOW + 1)) for number in range(101)))
    assert await store.purge(NOW + KEPT + 1, KEPT) == 1_100
    assert await store.purge(NOW + KEPT + 1, KEPT) == 0
    assert (await store.counts())["sink"].accepted == 101


async def test_a_webhook_that_was_overtaken_is_purged_in_its_turn(store: Store) -> None:
    """Numbers follow the order of commits, which is not quite that of arrival: nothing may slip past for good."""
    young, old = await accept(store, simple("young", NOW + 10), simple("old", NOW))
    await store.purge(NOW + KEPT + 5, KEPT)
    await store.purge(NOW + KEPT + 11, KEPT)
    bodies = [await store.webhook(number) for number in (young, old)]
    assert [each.sealed for each in bodies if each] == [None, None]
    assert await store.counts() == {}


async def test_a_store_that_lay_empty_goes_on_purging(store: Store) -> None:
    await accept(store, *(simple(str(number)) for number in range(5)))
    await store.purge(NOW + 100 * DAY, KEPT)
    (number,) = await accept(store, simple("new", NOW + 100 * DAY))
    await store.purge(NOW + 131 * DAY, KEPT)
    stored = await store.webhook(number)
    assert stored is not None
    assert stored.sealed is None


async def test_a_lease_of_what_was_purged_settles_nothing(store: Store) -> None:
    await accept(store, simple("a"))
    (leased,) = await lease(store, NOW + KEPT)
    await store.purge(NOW + KEPT + 1, KEPT)
    assert await store.settle([Settlement(leased, State.SENT)]) == 0


async def test_links_that_have_ended_go_and_others_stay(store: Store) -> None:
    await store.link([part("user", "v")], NOW)
    await store.link([part("other", "w", ends=NOW + 2 * DAY + EXPIRED_KEPT)], NOW)
    await store.purge(NOW + DAY + EXPIRED_KEPT, KEPT)
    assert await store.resolve([key("user")]) == {}
    assert await linked(store, "other", NOW + DAY) == {"": b"w"}


async def test_a_payment_is_known_as_long_as_the_youngest_key_that_joined_it(store: Store) -> None:
    await accept(store, report("a", "pi"), report("b", "in", at=NOW + 80 * DAY), tie("tie", "pi", "in"))
    await store.purge(NOW + CLAIMS_KEPT + 1, KEPT)
    late = await accept(store, report("c", "pi", at=NOW + CLAIMS_KEPT + 1))
    assert await states(store, *late) == [DUPLICATE]
