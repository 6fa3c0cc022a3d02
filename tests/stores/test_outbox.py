"""Accepting once, leasing under a fence, settling, waiting for links, replay and retention: what every store keeps."""

import asyncio

import pytest

from gateway.deliveries import Attempt, Counts, Lease, NewDelivery, Settlement, State
from tests.stores.harness import Harness, Store
from tests.stores.reports import DAY, MINUTE, NOW, key, part, report, webhook

SINK = NewDelivery("sink")


async def lease(store: Store, now: int = NOW, limit: int = 100, destination: str = "sink") -> list[Lease]:
    leases, _ = await store.lease(destination, limit, now, now + MINUTE)
    return leases


async def state(store: Store, number: int) -> list[tuple[State, str | None]]:
    return [(each.state, each.reason) for each in await store.deliveries(number)]


async def test_a_webhook_is_accepted_once_though_it_comes_at_once_and_after_a_restart(harness: Harness) -> None:
    store = await harness.open()
    receipts = await asyncio.gather(*(store.accept(webhook("a", SINK)) for _ in range(50)))
    receipts.append(await (await harness.open()).accept(webhook("a", SINK)))
    assert sorted(receipt.duplicate for receipt in receipts) == [False] + [True] * 50
    assert len({receipt.webhook for receipt in receipts}) == 1


async def test_another_account_is_another_webhook(store: Store) -> None:
    receipts = [await store.accept(webhook("a", SINK, account=account)) for account in ("1", "2")]
    assert [receipt.duplicate for receipt in receipts] == [False, False]


async def test_a_lease_hides_a_delivery_until_it_runs_out(store: Store) -> None:
    await store.accept(webhook("a", SINK))
    assert len(await lease(store)) == 1
    assert await lease(store, NOW + MINUTE - 1) == []
    assert len(await lease(store, NOW + MINUTE)) == 1


async def test_whoever_overslept_cannot_settle_what_another_has_leased(store: Store) -> None:
    await store.accept(webhook("a", SINK))
    (first,) = await lease(store)
    (second,) = await lease(store, NOW + MINUTE)
    assert await store.settle([Settlement(first, State.DEAD, "late")]) == 0
    assert await store.settle([Settlement(second, State.SENT)]) == 1
    assert await store.settle([Settlement(second, State.DEAD, "twice")]) == 0


async def test_a_process_that_died_holds_no_lease(harness: Harness) -> None:
    store = await harness.open()
    await store.accept(webhook("a", SINK))
    await lease(store)
    assert len(await lease(await harness.open())) == 1


async def test_a_delivery_belongs_to_its_destination(store: Store) -> None:
    await store.accept(webhook("a", SINK, NewDelivery("other")))
    assert len(await lease(store, destination="other")) == 1
    assert len(await lease(store)) == 1


async def test_the_next_due_time_is_told(store: Store) -> None:
    await store.accept(webhook("a", SINK))
    (leased,), _ = await store.lease("sink", 1, NOW, NOW + MINUTE)
    await store.settle([Settlement(leased, State.DUE, "http_500", NOW + 5 * MINUTE)])
    assert await store.lease("sink", 1, NOW, NOW + MINUTE) == ([], NOW + 5 * MINUTE)
    assert await store.lease("nobody", 1, NOW, NOW + MINUTE) == ([], None)


async def test_a_failed_try_keeps_what_was_sent_and_its_attempt(store: Store) -> None:
    receipt = await store.accept(webhook("a", SINK))
    for number in (1, 2):
        (leased,) = await lease(store, NOW + number * MINUTE)
        attempt = Attempt(NOW + number * MINUTE, 5, 500, "http_500", b"sealed answer")
        await store.settle([Settlement(leased, State.DUE, "http_500", leased.attempts, attempt, b"as it was sent")])
    (leased,) = await lease(store, NOW + 3 * MINUTE)
    assert (leased.attempts, leased.first_try_at, leased.rendered) == (2, NOW + MINUTE, b"as it was sent")
    (delivery,) = await store.deliveries(receipt.webhook)
    assert [each.at for each in delivery.attempts] == [NOW + MINUTE, NOW + 2 * MINUTE]


async def test_a_delivery_that_waits_for_a_link_goes_when_it_comes(store: Store) -> None:
    waiting = NewDelivery("sink", wait_until=NOW + 5 * MINUTE)
    await store.accept(webhook("a", waiting, subjects=(key("user"), key("customer"))))
    assert await lease(store) == []
    assert await store.link([part("someone else", "v")], NOW + DAY, NOW) == frozenset()
    assert await store.link([part("customer", "v")], NOW + DAY, NOW) == {"sink"}
    assert len(await lease(store)) == 1


async def test_a_link_that_came_just_before_is_not_waited_for(store: Store) -> None:
    await store.link([part("user", "v")], NOW + DAY, NOW)
    await store.accept(webhook("a", NewDelivery("sink", wait_until=NOW + MINUTE), subjects=(key("user"),)))
    assert len(await lease(store)) == 1


async def test_after_the_wait_it_goes_without_a_link(store: Store) -> None:
    await store.accept(webhook("a", NewDelivery("sink", wait_until=NOW + MINUTE), subjects=(key("user"),)))
    assert len(await lease(store, NOW + MINUTE)) == 1


async def values(store: Store, subject: str, now: int = NOW) -> dict[str, bytes]:
    return {each.part: each.sealed for each in (await store.resolve([key(subject)], now)).get(key(subject), [])}


async def test_the_newer_link_wins_and_products_add_up(store: Store) -> None:
    parts = [
        part("user", "old", NOW - 1),
        part("user", "d", product="datalyr"),
        part("user", "new"),
        part("user", "x", 1),
    ]
    for each in parts:
        await store.link([each], NOW + DAY, NOW)
    assert await values(store, "user") == {"": b"new", "datalyr": b"d"}


async def test_a_learned_link_never_takes_the_place_of_a_direct_one(store: Store) -> None:
    await store.link([part("user", "learned", NOW, learned=True)], NOW + DAY, NOW)
    await store.link([part("user", "direct", NOW - 5)], NOW + DAY, NOW)
    await store.link([part("user", "learned later", NOW + 5, learned=True)], NOW + DAY, NOW)
    assert await values(store, "user") == {"": b"direct"}


async def test_a_webhook_teaches_in_the_same_step(store: Store) -> None:
    await store.accept(webhook("a", SINK, learned=(part("customer", "v", learned=True),)))
    assert await values(store, "customer") == {"": b"v"}


async def test_a_link_ends_and_can_be_forgotten(store: Store) -> None:
    await store.link([part("user", "v"), part("other", "w")], NOW + DAY, NOW)
    assert await values(store, "user", NOW + DAY) == {}
    assert await store.forget([key("user")]) == 1
    assert (await values(store, "user"), await values(store, "other")) == ({}, {"": b"w"})


async def settle_as(store: Store, outcome: State) -> None:
    (leased,) = await lease(store)
    await store.settle([Settlement(leased, outcome, "why")])


@pytest.mark.parametrize(("outcome", "after"), [(State.SENT, State.SENT), (State.DEAD, State.DUE)])
async def test_a_replay_starts_again_what_died_and_leaves_what_was_sent(
    store: Store, outcome: State, after: State
) -> None:
    receipt = await store.accept(webhook("a", SINK))
    await settle_as(store, outcome)
    again = await store.replay(receipt.webhook, webhook("a", SINK, at=NOW), NOW + MINUTE)
    assert [each for each, _ in await state(store, receipt.webhook)] == [after]
    assert again.due == ({"sink"} if after == State.DUE else set())


async def test_a_replay_adds_what_a_new_mapping_makes(store: Store) -> None:
    receipt = await store.accept(webhook("a"))
    await store.replay(receipt.webhook, webhook("a", SINK), NOW + MINUTE)
    assert await state(store, receipt.webhook) == [(State.DUE, None)]


async def test_retention_takes_the_body_and_keeps_the_duplicate_check(store: Store) -> None:
    await store.accept(report("a", "pi"))
    await settle_as(store, State.SENT)
    await store.purge(NOW + 31 * DAY, 30 * DAY)
    stored = await store.webhook(1)
    assert stored is not None
    assert stored.sealed is None
    assert (await store.accept(report("a", "pi"))).duplicate
    late = await store.accept(report("b", "pi", at=NOW + 31 * DAY))
    assert await state(store, late.webhook) == [(State.SKIPPED, "duplicate_payment")]


async def test_after_ninety_days_nothing_is_left(store: Store) -> None:
    await store.accept(report("a", "pi"))
    await store.purge(NOW + 91 * DAY, 30 * DAY)
    assert await store.webhooks() == []
    assert not (await store.accept(report("a", "pi"))).duplicate


async def test_what_is_accepted_is_always_the_sum_of_its_states(store: Store) -> None:
    outcomes = [State.SENT, State.DEAD, State.DUE, State.PARKED, State.SKIPPED]
    for number, outcome in enumerate(outcomes):
        await store.accept(webhook(str(number), SINK))
        (leased,) = await lease(store)
        await store.settle([Settlement(leased, outcome, "why", NOW + DAY)])
    assert (await store.counts())["sink"] == Counts(accepted=5, sent=1, skipped=1, pending=2, dead=1)
