"""A delivery may wait for a link of one of its event's subjects: until it comes, and no longer than it was told."""

import pytest

from gateway.deliveries import Acceptance, NewClaim, NewDelivery, State
from tests.stores.harness import Harness, Store
from tests.stores.reports import DAY, DUE, MINUTE, NOW, accept, event, key, lease, part, states, webhook

WAIT = 5 * MINUTE
FOR_LINK = (State.WAITING, "link")
ON_HOLD = (State.WAITING, "hold")


def waiting(id: str = "a", *, hold: int = 0, subjects: tuple[str, ...] = ("user", "customer")) -> Acceptance:
    claim = NewClaim((key(id),), "purchase", hold) if hold else None
    deliveries = (NewDelivery("sink", wait_until=NOW + WAIT), NewDelivery("other", wait_until=NOW + WAIT))
    return webhook(id, event(id, *deliveries, claim=claim), subjects=subjects)


async def link(store: Store, subject: str, now: int = NOW) -> frozenset[str]:
    return await store.link([part(subject, "v", now)], now)


async def test_a_link_for_any_of_its_subjects_releases_a_delivery_at_once(store: Store) -> None:
    receipt = await store.accept(waiting())
    assert (receipt.due, await lease(store)) == (frozenset(), [])
    assert await link(store, "somebody else") == frozenset()
    assert await link(store, "customer") == {"sink", "other"}
    assert await states(store, receipt.webhook) == [DUE, DUE]
    assert len(await lease(store)) == 1


async def test_one_link_releases_all_that_wait_for_it(store: Store) -> None:
    await accept(store, waiting("a"), waiting("b"), waiting("c", subjects=("nobody",)))
    await link(store, "user")
    assert len(await lease(store)) == 2


async def test_a_delivery_is_released_once(store: Store) -> None:
    await accept(store, waiting())
    await link(store, "customer")
    await lease(store)
    assert await link(store, "customer", NOW + 1) == frozenset()
    assert await link(store, "user", NOW + 1) == frozenset()
    assert await lease(store, NOW + 1) == []


async def test_a_delivery_still_waits_after_a_crash(harness: Harness) -> None:
    await accept(await harness.open(), waiting())
    store = await harness.crash()
    assert await lease(store) == []
    assert await link(store, "user") == {"sink", "other"}


async def test_what_a_webhook_teaches_releases_what_waited_for_it(store: Store) -> None:
    (number,) = await accept(store, waiting())
    receipt = await store.accept(webhook("session", learned=(part("customer", "v", by="user"),)))
    assert receipt.due == {"sink", "other"}
    assert await states(store, number) == [DUE, DUE]


async def test_a_link_that_came_after_resolving_and_before_accepting_is_not_waited_for(store: Store) -> None:
    await link(store, "customer")
    receipt = await store.accept(waiting())
    assert receipt.due == {"sink", "other"}
    assert len(await lease(store)) == 1


async def test_a_link_that_has_ended_is_waited_for(store: Store) -> None:
    await store.link([part("user", "v", ends=NOW)], NOW - DAY)
    (number,) = await accept(store, waiting())
    assert await states(store, number) == [FOR_LINK, FOR_LINK]


async def test_after_the_wait_it_goes_without_a_link(store: Store) -> None:
    await accept(store, waiting())
    assert await store.lease("sink", 1, NOW + WAIT - 1, NOW + DAY) == ([], NOW + WAIT)
    assert len(await lease(store, NOW + WAIT)) == 1


@pytest.mark.parametrize(("hold", "reason"), [(WAIT + MINUTE, ON_HOLD), (MINUTE, FOR_LINK)])
async def test_it_waits_for_the_longer_of_hold_and_link(
    store: Store, hold: int, reason: tuple[State, str | None]
) -> None:
    (number,) = await accept(store, waiting(hold=hold))
    assert await states(store, number) == [reason, reason]
    longer = NOW + max(hold, WAIT)
    assert await lease(store, longer - 1) == []
    assert len(await lease(store, longer)) == 1


async def test_a_link_does_not_end_a_hold(store: Store) -> None:
    (number,) = await accept(store, waiting(hold=MINUTE))
    assert await link(store, "user") == frozenset()
    assert await states(store, number) == [ON_HOLD, ON_HOLD]
    assert await lease(store, NOW + MINUTE - 1) == []
    assert len(await lease(store, NOW + MINUTE)) == 1


async def test_a_skipped_delivery_waits_for_nothing(store: Store) -> None:
    skipped = event("a", NewDelivery("sink", "no_consent", NOW + WAIT))
    (number,) = await accept(store, webhook("a", skipped, subjects=("user",)))
    assert await link(store, "user") == frozenset()
    assert await states(store, number) == [(State.SKIPPED, "no_consent")]
