"""What belongs to one lane leaves in order and one after another; an old state after a newer one leaves not at all."""

from msgspec import structs

from gateway.deliveries import NEVER, Acceptance, NewDelivery, Settlement, State
from tests.stores.harness import Harness, Store
from tests.stores.reports import DAY, DUE, MINUTE, NOW, accept, event, key, lease, report, states, webhook

ADA, BOB = key("ada"), key("bob")
STALE = (State.SKIPPED, "stale")


def of(lane: bytes | None, id: str, at: int, *, state_of: bytes | None = None) -> Acceptance:
    made = event(id, NewDelivery("sink", lane=lane))
    return webhook(id, structs.replace(made, at=at, state_of=state_of), at=NOW)


async def sent(store: Store, now: int = NOW) -> list[bytes]:
    """Lease and settle until nothing is due any more; return the events in the order in which they went."""
    order: list[bytes] = []
    while leases := await lease(store, now):
        for each in leases:
            order.append(each.event)
            await store.settle([Settlement(each, State.SENT)])
    return order


async def test_the_event_that_happened_first_goes_first(store: Store) -> None:
    await accept(store, of(ADA, "late", 3), of(ADA, "early", 1), of(ADA, "middle", 2))
    assert await sent(store) == [b"sealed early", b"sealed middle", b"sealed late"]


async def test_one_is_on_its_way_at_a_time(harness: Harness) -> None:
    store = await harness.open()
    await accept(store, of(ADA, "b", 2), of(ADA, "a", 1), of(BOB, "c", 3))
    assert {each.event for each in await lease(store)} == {b"sealed a", b"sealed c"}
    assert await lease(store) == []
    assert [each.event for each in await lease(store, NOW + MINUTE, 1)] in ([b"sealed a"], [b"sealed c"])


async def test_an_earlier_one_that_comes_meanwhile_waits_for_what_is_on_its_way(store: Store) -> None:
    await accept(store, of(ADA, "b", 2))
    (under_way,) = await lease(store)
    await accept(store, of(ADA, "a", 1))
    assert await lease(store) == []
    await store.settle([Settlement(under_way, State.SENT)])
    assert await sent(store) == [b"sealed a"]


async def test_an_earlier_one_goes_first_once_the_lease_of_a_later_one_ran_out(store: Store) -> None:
    await accept(store, of(ADA, "b", 2))
    await lease(store)
    await accept(store, of(ADA, "a", 1))
    assert await sent(store, NOW + MINUTE) == [b"sealed a", b"sealed b"]


async def test_what_waits_for_another_is_not_announced_as_due(store: Store) -> None:
    await accept(store, of(ADA, "a", 1), of(ADA, "b", 2))
    leases, next_due = await store.lease("sink", 5, NOW, NOW + MINUTE)
    assert (len(leases), next_due) == (1, NOW + MINUTE)
    assert await store.lease("sink", 5, NOW, NOW + MINUTE) == ([], NOW + MINUTE)


async def test_a_failed_try_keeps_its_place(store: Store) -> None:
    await accept(store, of(ADA, "a", 1), of(ADA, "b", 2))
    (first,) = await lease(store)
    await store.settle([Settlement(first, State.DUE, "http_500", NOW + DAY)])
    assert await lease(store) == []
    assert await sent(store, NOW + DAY) == [b"sealed a", b"sealed b"]


async def test_the_dead_and_who_waits_for_an_operator_hold_nobody_up(store: Store) -> None:
    await accept(store, of(ADA, "a", 1), of(ADA, "b", 2), of(ADA, "c", 3))
    (first,) = await lease(store)
    await store.settle([Settlement(first, State.DEAD, "http_400")])
    (second,) = await lease(store)
    await store.settle([Settlement(second, State.PARKED, "uncertain", NEVER)])
    assert await sent(store) == [b"sealed c"]


async def test_without_a_lane_nobody_waits(store: Store) -> None:
    await accept(store, of(None, "b", 2), of(None, "a", 1))
    assert len(await lease(store)) == 2


async def test_an_older_state_after_a_newer_one_is_stale(harness: Harness) -> None:
    state = key("sub_1")
    store = await harness.open()
    await accept(store, of(None, "new", 5, state_of=state))
    store = await harness.crash()
    numbers = await accept(
        store,
        of(None, "old", 4, state_of=state),
        of(None, "same moment", 5, state_of=state),
        of(None, "other", 1, state_of=key("sub_2")),
        of(None, "none", 1),
    )
    assert await states(store, *numbers) == [STALE, DUE, DUE, DUE]


async def test_a_state_is_remembered_for_as_long_as_claims_are(store: Store) -> None:
    await accept(store, of(None, "new", NOW + 5, state_of=ADA))
    await store.purge(NOW + 89 * DAY, 30 * DAY)
    assert await states(store, *await accept(store, of(None, "old", NOW, state_of=ADA))) == [STALE]
    await store.purge(NOW + 91 * DAY, 30 * DAY)
    assert await states(store, *await accept(store, of(None, "older", NOW, state_of=ADA))) == [DUE]


async def test_a_payment_counts_before_its_state_does(store: Store) -> None:
    paid = report("a", "pi")
    await accept(store, paid)
    again = report("b", "pi")
    stale = structs.replace(again, events=(structs.replace(again.events[0], at=1, state_of=ADA),))
    assert await states(store, *await accept(store, stale)) == [(State.SKIPPED, "duplicate_payment")]
