"""One payment, whatever reports it, in any order: claims, holds and unions in the store."""

import itertools
from collections.abc import Sequence

import pytest

from gateway.deliveries import Acceptance, Receipt, State
from tests.stores.harness import Store
from tests.stores.reports import MINUTE, NOW, report


async def accept(store: Store, *reports: Acceptance) -> list[Receipt]:
    return [await store.accept(each) for each in reports]


async def states(store: Store, receipts: Sequence[Receipt]) -> list[tuple[State, str | None]]:
    return [(each.state, each.reason) for receipt in receipts for each in await store.deliveries(receipt.webhook)]


async def sent(store: Store, now: int) -> int:
    """Lease everything that is due: how many purchases go out."""
    leases, _ = await store.lease("sink", 100, now, now + MINUTE)
    return len(leases)


async def test_a_second_report_under_any_shared_key_is_a_duplicate(store: Store) -> None:
    receipts = await accept(store, report("session", "cs", "pi"), report("invoice", "in", "pi"))
    assert await states(store, receipts) == [(State.DUE, None), (State.SKIPPED, "duplicate_payment")]


async def test_keys_once_claimed_together_are_one_payment(store: Store) -> None:
    receipts = await accept(store, report("a", "1", "2"), report("b", "2", "3"), report("c", "3", "4"))
    assert await sent(store, NOW) == 1
    assert [reason for _, reason in await states(store, receipts)][1:] == ["duplicate_payment"] * 2


async def test_a_held_report_steps_back_for_a_free_one(store: Store) -> None:
    receipts = await accept(store, report("intent", "pi", hold=2 * MINUTE), report("session", "cs", "pi"))
    assert (await states(store, receipts))[0] == (State.SKIPPED, "superseded")
    assert await sent(store, NOW + 3 * MINUTE) == 1


async def test_a_hold_that_has_ended_stands(store: Store) -> None:
    await accept(store, report("intent", "pi", hold=2 * MINUTE))
    late = await accept(store, report("session", "cs", "pi", at=NOW + 3 * MINUTE))
    assert await states(store, late) == [(State.SKIPPED, "duplicate_payment")]
    assert await sent(store, NOW + 3 * MINUTE) == 1


async def test_other_payments_are_not_touched(store: Store) -> None:
    await accept(store, report("a", "pi_1"), report("b", "pi_2"))
    assert await sent(store, NOW) == 2


SUBSCRIPTION = (
    report("session", "in", "cs"),
    report("invoice", "in"),
    report("tie", "pi", "in", emits=False),
    report("intent", "pi", hold=2 * MINUTE),
)


@pytest.mark.parametrize("order", list(itertools.permutations(SUBSCRIPTION)), ids=lambda o: "-".join(r.id for r in o))
async def test_a_subscription_payment_counts_once_in_every_order(store: Store, order: tuple[Acceptance, ...]) -> None:
    await accept(store, *order, *order)  # everything arrives twice
    assert await sent(store, NOW + 3 * MINUTE) == 1


async def test_a_replay_finds_its_own_claim_and_sends_nothing_twice(store: Store) -> None:
    (receipt,) = await accept(store, report("session", "cs", "pi"))
    await store.replay(receipt.webhook, report("session", "cs", "pi"), NOW + 1)
    assert [state for state, _ in await states(store, [receipt])] == [State.DUE]
    assert await sent(store, NOW + 1) == 1
