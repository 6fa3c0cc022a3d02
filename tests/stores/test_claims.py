"""A payment counts once, whatever reports it, in any order: claims, holds and unions."""

import asyncio
import itertools

import pytest
from msgspec import structs

from gateway.deliveries import Acceptance, NewClaim, NewDelivery, State
from tests.stores.harness import Harness, Store
from tests.stores.reports import (
    DUE,
    DUPLICATE,
    MINUTE,
    NOW,
    SUPERSEDED,
    accept,
    event,
    key,
    lease,
    report,
    settle,
    states,
    tie,
    webhook,
)

HOLD = 2 * MINUTE
ON_HOLD = (State.WAITING, "hold")


async def emitted(store: Store, now: int = NOW + HOLD + 1) -> int:
    """Lease all that falls due until then: how many purchases go out."""
    return len(await lease(store, now))


@pytest.mark.parametrize("keys", [("pi",), ("pi", "in"), ("in", "pi"), ("cs", "in", "pi")])
async def test_a_second_report_under_any_shared_key_is_a_duplicate(store: Store, keys: tuple[str, ...]) -> None:
    numbers = await accept(store, report("session", "cs", "pi"), report("other", *keys))
    assert await states(store, *numbers) == [DUE, DUPLICATE]


async def test_two_webhooks_that_give_their_event_the_same_id_are_two_reports_of_one_payment(store: Store) -> None:
    numbers = await accept(store, report("completed", "cs"), report("async_payment_succeeded", "cs"))
    assert await states(store, *numbers) == [DUE, DUPLICATE]


async def test_a_held_report_steps_back_for_a_free_one_with_the_same_event_id(store: Store) -> None:
    numbers = await accept(store, report("intent", "pi", hold=HOLD), report("session", "pi", "cs"))
    assert await states(store, *numbers) == [SUPERSEDED, DUE]


async def test_two_rules_of_one_webhook_count_a_payment_once(store: Store) -> None:
    claimed = event("pi", claim=NewClaim((key("pi"),), "purchase"))
    (number,) = await accept(store, webhook("a", claimed, claimed))
    assert await states(store, number) == [DUE, DUPLICATE]
    await settle(store, State.DEAD)
    await store.replay(number, webhook("a", claimed, claimed), NOW)
    assert sorted(await states(store, number)) == [DUE, DUPLICATE]


async def test_concurrent_reports_count_once(store: Store) -> None:
    await asyncio.gather(*(store.accept(report(str(number), "pi")) for number in range(20)))
    assert await emitted(store) == 1


async def test_claims_outlive_the_process(harness: Harness) -> None:
    await accept(await harness.open(), report("a", "pi", "in"))
    store = await harness.crash()
    assert await states(store, *await accept(store, report("b", "in"))) == [DUPLICATE]


async def test_keys_once_claimed_together_are_one_payment(store: Store) -> None:
    numbers = await accept(store, report("a", "1", "2"), report("b", "2", "3"), report("c", "3", "4"), report("d", "4"))
    assert await states(store, *numbers) == [DUE, DUPLICATE, DUPLICATE, DUPLICATE]


@pytest.mark.parametrize("order", list(itertools.permutations([("1", "2"), ("2", "3"), ("3", "4")])))
async def test_bare_claims_tie_keys_together_in_any_order(store: Store, order: tuple[tuple[str, str], ...]) -> None:
    await accept(store, *(tie("-".join(keys), *keys) for keys in order))
    numbers = await accept(store, report("a", "1"), report("b", "4"))
    assert await states(store, *numbers) == [DUE, DUPLICATE]


async def test_a_bare_claim_claims_no_name(store: Store) -> None:
    numbers = await accept(store, tie("tie", "pi", "in"), report("a", "pi"))
    assert await states(store, *numbers) == [DUE]


async def test_another_name_is_another_claim(store: Store) -> None:
    numbers = await accept(store, report("a", "pi"), report("b", "pi", name="refund"))
    assert await states(store, *numbers) == [DUE, DUE]


async def test_other_keys_are_other_payments(store: Store) -> None:
    await accept(store, report("a", "account 1, pi"), report("b", "account 2, pi"))
    assert await emitted(store) == 2


async def test_a_held_report_goes_when_nothing_better_came(store: Store) -> None:
    numbers = await accept(store, report("intent", "pi", hold=HOLD))
    assert await states(store, *numbers) == [ON_HOLD]
    assert await emitted(store, NOW + HOLD - 1) == 0
    assert await emitted(store, NOW + HOLD) == 1


async def test_a_hold_that_has_ended_stands(store: Store) -> None:
    numbers = await accept(store, report("intent", "pi", hold=HOLD), report("session", "cs", "pi", at=NOW + HOLD))
    assert await states(store, *numbers) == [ON_HOLD, DUPLICATE]
    assert await emitted(store) == 1


async def test_what_has_gone_out_stands_though_a_slower_webhook_came_in_before_the_hold_ended(store: Store) -> None:
    await accept(store, report("intent", "pi", hold=HOLD))
    await settle(store, State.SENT, NOW + HOLD)
    numbers = await accept(store, report("session", "cs", "pi", at=NOW + HOLD - 1))
    assert await states(store, *numbers) == [DUPLICATE]


async def test_of_two_held_reports_the_first_stands(store: Store) -> None:
    numbers = await accept(store, report("a", "pi", hold=HOLD), report("b", "in", "pi", hold=HOLD))
    assert await states(store, *numbers) == [ON_HOLD, DUPLICATE]


@pytest.mark.parametrize("first", ["intent", "invoice"])
async def test_of_two_held_reports_the_one_with_the_shorter_hold_stands(store: Store, first: str) -> None:
    reports = {"intent": report("intent", "pi", hold=HOLD), "invoice": report("invoice", "in", "pi", hold=HOLD // 2)}
    (intent,) = await accept(store, reports.pop(first))
    (other,) = await accept(store, *reports.values())
    sure, unsure = (other, intent) if first == "intent" else (intent, other)
    assert await states(store, sure) == [ON_HOLD]
    assert (await states(store, unsure))[0] in (SUPERSEDED, DUPLICATE)
    await accept(store, report("session", "cs", "pi"))
    assert await states(store, sure) == [SUPERSEDED]


async def test_a_tie_of_two_held_reports_leaves_the_one_with_the_shorter_hold(store: Store) -> None:
    held = (report("a", "1", hold=HOLD), report("b", "2", hold=HOLD // 2))
    numbers = await accept(store, *held, tie("tie", "2", "1"))
    assert await states(store, *numbers) == [SUPERSEDED, ON_HOLD]


async def test_a_held_report_after_a_free_one_is_a_duplicate(store: Store) -> None:
    numbers = await accept(store, report("session", "cs", "pi"), report("intent", "pi", hold=HOLD))
    assert await states(store, *numbers) == [DUE, DUPLICATE]


async def test_a_tie_supersedes_the_held_one_of_two_reports(store: Store) -> None:
    numbers = await accept(store, report("intent", "pi", hold=HOLD), report("invoice", "in"), tie("tie", "pi", "in"))
    assert await states(store, *numbers) == [SUPERSEDED, DUE]


async def test_a_tie_of_two_held_reports_leaves_the_first(store: Store) -> None:
    held = (report("a", "1", hold=HOLD), report("b", "2", hold=HOLD))
    numbers = await accept(store, *held, tie("tie", "2", "1"))
    assert await states(store, *numbers) == [ON_HOLD, SUPERSEDED]


async def test_a_tie_leaves_what_is_out_already(store: Store) -> None:
    await accept(store, report("intent", "pi", hold=HOLD))
    await settle(store, State.SENT, NOW + HOLD)
    numbers = await accept(store, report("invoice", "in", at=NOW + HOLD), tie("tie", "pi", "in", at=NOW + HOLD))
    again = await accept(store, report("session", "in", "cs", at=NOW + HOLD))
    assert await states(store, *numbers, *again) == [DUE, DUPLICATE]


async def test_a_superseded_report_is_superseded_everywhere(store: Store) -> None:
    everywhere = (NewDelivery("sink"), NewDelivery("other"), NewDelivery("off", "destination_off"))
    numbers = await accept(store, report("intent", "pi", hold=HOLD, to=everywhere), report("session", "cs", "pi"))
    assert await states(store, *numbers) == [SUPERSEDED, SUPERSEDED, (State.SKIPPED, "destination_off"), DUE]


async def test_a_replayed_report_finds_its_own_claim(store: Store) -> None:
    (number,) = await accept(store, report("session", "cs", "pi"))
    await settle(store, State.DEAD)
    await store.replay(number, report("session", "cs", "pi"), NOW + MINUTE)
    assert await states(store, number) == [DUE]


async def test_a_replayed_duplicate_stays_one(store: Store) -> None:
    session, again = report("completed", "cs"), report("async_payment_succeeded", "cs")
    numbers = await accept(store, session, again)
    await store.replay(numbers[1], again, NOW + MINUTE)
    assert await states(store, *numbers) == [DUE, DUPLICATE]


async def test_a_report_half_replayed_while_on_hold_is_superseded_whole(store: Store) -> None:
    (number,) = await accept(
        store, report("intent", "pi", hold=HOLD, to=(NewDelivery("sink"), NewDelivery("b", "destination_off")))
    )
    await store.replay(number, report("intent", "pi", hold=HOLD, to=(NewDelivery("sink"), NewDelivery("b"))), NOW)
    assert await states(store, number) == [ON_HOLD, ON_HOLD]
    numbers = await accept(store, report("session", "cs", "pi"))
    assert await states(store, number, *numbers) == [SUPERSEDED, SUPERSEDED, DUE]


async def test_a_hold_renewed_by_a_replay_does_not_make_what_was_sent_step_back(store: Store) -> None:
    both = (NewDelivery("sink"), NewDelivery("b"))
    half = (NewDelivery("sink"), NewDelivery("b", "destination_off"))
    (number,) = await accept(store, report("intent", "pi", hold=HOLD, to=half))
    await settle(store, State.SENT, NOW + HOLD)
    await store.replay(number, report("intent", "pi", hold=HOLD, at=NOW + HOLD, to=both), NOW + HOLD)
    numbers = await accept(store, report("session", "cs", "pi", at=NOW + HOLD))
    assert await states(store, *numbers) == [DUPLICATE]


SUBSCRIPTION = (
    report("session", "in", "cs"),
    report("invoice", "in"),
    tie("invoice_payment", "pi", "in"),
    report("intent", "pi", hold=HOLD),
)


@pytest.mark.parametrize("order", list(itertools.permutations(SUBSCRIPTION)), ids=lambda o: "-".join(r.id for r in o))
async def test_a_subscription_payment_counts_once_in_every_order(store: Store, order: tuple[Acceptance, ...]) -> None:
    numbers = await accept(store, *order, *order)  # everything arrives twice
    later = [structs.replace(each, received_at=NOW + MINUTE) for each in order]
    for number, again in zip(numbers, later, strict=False):  # and is replayed
        await store.replay(number, again, NOW + MINUTE)
    assert await emitted(store) == 1
    outcomes = await states(store, *numbers[:4])
    assert len(outcomes) == 3
    assert all(reason in {"duplicate_payment", "superseded"} for state, reason in outcomes if state != State.LEASED)
