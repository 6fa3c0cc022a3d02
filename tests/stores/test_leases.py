"""A lease hides a delivery, runs out by itself, and fences off whoever overslept."""

import pytest

from gateway.deliveries import NewDelivery, Settlement, State
from tests.stores.harness import Harness, Store
from tests.stores.reports import MINUTE, NOW, accept, event, lease, settle, simple, states, webhook


async def test_a_lease_hides_a_delivery_until_it_runs_out(store: Store) -> None:
    await accept(store, simple("a"))
    assert len(await lease(store)) == 1
    assert await lease(store, NOW + MINUTE - 1) == []
    assert len(await lease(store, NOW + MINUTE)) == 1


@pytest.mark.parametrize("outcome", [State.SENT, State.DEAD, State.DUE, State.PARKED])
async def test_whoever_overslept_cannot_settle_what_another_has_leased(store: Store, outcome: State) -> None:
    await accept(store, simple("a"))
    (first,) = await lease(store)
    (second,) = await lease(store, NOW + MINUTE)
    assert await store.settle([Settlement(first, State.DEAD, "late")]) == 0
    assert await store.settle([Settlement(second, outcome)]) == 1
    assert await store.settle([Settlement(second, State.DEAD, "twice")]) == 0


async def test_a_lease_that_ran_out_may_be_settled_while_nobody_else_took_it(store: Store) -> None:
    (number,) = await accept(store, simple("a"))
    (leased,) = await lease(store)
    assert await lease(store, NOW + MINUTE - 1) == []
    assert await store.settle([Settlement(leased, State.SENT)]) == 1
    assert await states(store, number) == [(State.SENT, None)]


async def test_a_settled_delivery_is_never_leased_again(store: Store) -> None:
    for id, outcome in (("a", State.SENT), ("b", State.DEAD), ("c", State.SKIPPED)):
        await accept(store, simple(id))
        await settle(store, outcome)
    assert await store.lease("sink", 10, NOW + 10**12, NOW + 10**13) == ([], None)


async def test_one_settlement_of_many_fails_alone(store: Store) -> None:
    await accept(store, simple("a"), simple("b"))
    overslept = (await lease(store))[0]
    held = await lease(store, NOW + MINUTE)
    assert await store.settle([Settlement(each, State.SENT) for each in (overslept, *held)]) == 2


async def test_what_fell_due_first_is_leased_first(store: Store) -> None:
    numbers = await accept(store, *(simple(str(at), NOW + at) for at in (3, 1, 2)))
    assert [each.webhook for each in await lease(store, NOW + 3, limit=2)] == [numbers[1], numbers[2]]
    assert [each.webhook for each in await lease(store, NOW + 3)] == [numbers[0]]


async def test_what_is_not_due_yet_is_not_leased(store: Store) -> None:
    await accept(store, simple("a", NOW + 1))
    assert await lease(store) == []
    assert len(await lease(store, NOW + 1)) == 1


async def test_a_delivery_belongs_to_its_destination(store: Store) -> None:
    (number,) = await accept(store, webhook("a", event("a", NewDelivery("sink"), NewDelivery("other"))))
    assert len(await lease(store, destination="other")) == 1
    assert await states(store, number) == [(State.DUE, None), (State.LEASED, None)]
    assert len(await lease(store)) == 1


async def test_the_next_due_time_is_told(store: Store) -> None:
    await accept(store, simple("a"), simple("later", NOW + 7))
    assert (await store.lease("sink", 1, NOW, NOW + MINUTE))[1] == NOW + 7
    assert (await store.lease("sink", 1, NOW + 7, NOW + 2 * MINUTE))[1] == NOW + MINUTE  # when the first lease ends
    assert await store.lease("nobody", 1, NOW, NOW + MINUTE) == ([], None)


@pytest.mark.parametrize("state", [State.DUE, State.PARKED])
async def test_a_delivery_comes_back_when_it_was_told_to(store: Store, state: State) -> None:
    await accept(store, simple("a"))
    await settle(store, state, due_at=NOW + 5 * MINUTE)
    assert await store.lease("sink", 1, NOW, NOW + MINUTE) == ([], NOW + 5 * MINUTE)
    assert len(await lease(store, NOW + 5 * MINUTE)) == 1


@pytest.mark.parametrize("ends", ["closed", "crashed"])
async def test_a_lease_of_a_process_that_ended_is_over_when_it_runs_out_if_not_before(
    harness: Harness, ends: str
) -> None:
    store = await harness.open()
    await accept(store, simple("a"))
    (held,) = await lease(store)
    store = await (harness.open() if ends == "closed" else harness.crash())
    (leased,) = await lease(store, NOW if harness.returns_leases else NOW + MINUTE)
    assert leased.fence > held.fence
    assert await store.settle([Settlement(held, State.SENT)]) == 0
