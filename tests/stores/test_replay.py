"""A replay puts what the mappings make of a webhook now beside what they made of it then; nothing is sent twice."""

import pytest
from msgspec import structs

from gateway.deliveries import Acceptance, NewClaim, NewDelivery, Settlement, State, StoredWebhook
from tests.stores.harness import Store
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
    report,
    settle,
    simple,
    states,
    webhook,
)


@pytest.mark.parametrize("outcome", [State.SENT, State.DUE])
async def test_what_was_sent_or_is_pending_stays_as_it_is(store: Store, outcome: State) -> None:
    (number,) = await accept(store, simple("a"))
    await settle(store, outcome, due_at=NOW + DAY)
    before = await store.deliveries(number)
    receipt = await store.replay(number, simple("a"), NOW + MINUTE)
    assert (await store.deliveries(number), receipt.due) == (before, frozenset())


async def test_what_is_kept_takes_the_requests_place_and_nothing_else(store: Store) -> None:
    (number,) = await accept(store, simple("a"))
    before = await webhook_of(store, number)
    assert await store.keep(number, b"with what was fetched")
    assert await webhook_of(store, number) == structs.replace(before, sealed=b"with what was fetched")
    assert await states(store, number) == [DUE]


async def test_what_was_taken_away_is_not_kept_again(store: Store) -> None:
    (number,) = await accept(store, simple("a"))
    await store.purge(NOW + 31 * DAY, 30 * DAY)
    assert not await store.keep(number, b"with what was fetched")
    assert (await webhook_of(store, number)).sealed is None
    assert not await store.keep(number + 1, b"of nobody")
    assert await store.webhook(number + 1) is None


async def webhook_of(store: Store, number: int) -> StoredWebhook:
    found = await store.webhook(number)
    assert found is not None
    return found


async def test_what_is_parked_starts_again(store: Store) -> None:
    (number,) = await accept(store, simple("a"))
    await settle(store, State.PARKED, due_at=NOW + DAY)
    receipt = await store.replay(number, simple("a"), NOW + MINUTE)
    assert (await states(store, number), receipt.due) == ([DUE], frozenset({"sink"}))


async def test_what_is_leased_stays_with_its_holder(store: Store) -> None:
    (number,) = await accept(store, simple("a"))
    (leased,) = await lease(store)
    await store.replay(number, simple("a"), NOW + 1)
    assert await lease(store, NOW + 1) == []
    assert await store.settle([Settlement(leased, State.SENT)]) == 1


@pytest.mark.parametrize("outcome", [State.DEAD, State.SKIPPED])
async def test_what_died_or_was_skipped_starts_again(store: Store, outcome: State) -> None:
    (number,) = await accept(store, simple("a"))
    await settle(store, outcome)
    receipt = await store.replay(number, simple("a"), NOW + MINUTE)
    assert (receipt.webhook, receipt.duplicate) == (number, False)
    assert receipt.due == {"sink"}
    (delivery,) = await store.deliveries(number)
    assert (delivery.state, delivery.due_at, delivery.attempts) == (State.DUE, NOW + MINUTE, ())


async def test_what_was_skipped_when_it_came_is_sent_when_the_mapping_says_so(store: Store) -> None:
    (number,) = await accept(store, simple("a", skip="destination_off"))
    await store.replay(number, simple("a"), NOW + MINUTE)
    assert await states(store, number) == [DUE]
    assert [each.event for each in await lease(store, NOW + MINUTE)] == [b"sealed a"]


async def test_each_destination_starts_again_by_itself(store: Store) -> None:
    both = webhook("a", event("a", NewDelivery("sink"), NewDelivery("off")))
    (number,) = await accept(store, webhook("a", event("a", NewDelivery("sink"), NewDelivery("off", "not_routed"))))
    await settle(store, State.SENT)
    receipt = await store.replay(number, both, NOW + MINUTE)
    found = {each.destination: each.state for each in await store.deliveries(number)}
    assert found == {"sink": State.SENT, "off": State.DUE}
    assert receipt.due == {"off"}


async def test_new_events_are_added(store: Store) -> None:
    (number,) = await accept(store, simple("a"))
    await store.replay(number, webhook("a", event("a"), event("b")), NOW + MINUTE)
    assert [each.event for each in await store.deliveries(number)] == [b"sealed a", b"sealed b"]


async def test_what_the_mapping_makes_no_more_keeps_its_state(store: Store) -> None:
    (number,) = await accept(store, simple("a"))
    await settle(store, State.DEAD)
    await store.replay(number, webhook("a", event("b")), NOW + MINUTE)
    assert await states(store, number) == [(State.DEAD, "why"), DUE]


async def test_a_replay_takes_the_notes_of_the_mapping_in_force(store: Store) -> None:
    (number,) = await accept(store, webhook("a"))
    await store.replay(number, webhook("a"), NOW)
    stored = await store.webhook(number)
    assert stored is not None
    assert (stored.mapping, stored.notes, stored.sealed) == ("m", b"[]", b"sealed")


async def test_a_lease_from_before_a_replay_settles_nothing_of_it(store: Store) -> None:
    (number,) = await accept(store, simple("a"))
    (leased,) = await lease(store)
    await store.settle([Settlement(leased, State.DEAD)])
    for _ in range(3):
        await store.replay(number, simple("a"), NOW)
        assert await store.settle([Settlement(leased, State.SENT)]) == 0
        (again,) = await lease(store)
        assert await store.settle([Settlement(leased, State.SENT)]) == 0
        await store.settle([Settlement(again, State.DEAD)])


def payments(*ids: str, suffix: str = "") -> Acceptance:
    """One webhook that reports a payment of its own for each id."""
    return webhook("many", *(event(id, claim=NewClaim((key(id + suffix),), "purchase")) for id in ids))


async def test_payments_of_a_replay_are_not_those_of_the_first_time(store: Store) -> None:
    (number,) = await accept(store, payments("a", "b"))
    await store.replay(number, payments("c", "d"), NOW)
    await store.replay(number, payments("e", "a", "c"), NOW)
    assert await states(store, number) == [DUE] * 5
    numbers = await accept(store, *(report(id, id) for id in "abcde"), report("f", "f"))
    assert await states(store, *numbers) == [DUPLICATE] * 5 + [DUE]


async def test_a_webhook_past_retention_is_not_replayed(store: Store) -> None:
    (number,) = await accept(store, simple("a"))
    await store.purge(NOW + DAY + 1, DAY)
    with pytest.raises(
        ValueError, match=f"webhook {number} has no body any more: retention took it, or somebody was forgotten"
    ):
        await store.replay(number, simple("a"), NOW + DAY)
    assert await states(store, number) == []
