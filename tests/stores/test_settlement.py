"""What becomes of a leased delivery, and what is kept of each try."""

import pytest

from gateway.deliveries import Attempt, Settlement, State
from tests.stores.harness import Harness, Store
from tests.stores.reports import MINUTE, NOW, accept, lease, simple, states


@pytest.mark.parametrize("outcome", [State.SENT, State.DEAD, State.SKIPPED, State.DUE, State.PARKED])
async def test_a_settlement_is_durable(harness: Harness, outcome: State) -> None:
    store = await harness.open()
    (number,) = await accept(store, simple("a"))
    (leased,) = await lease(store)
    await store.settle([Settlement(leased, outcome, "why", NOW + MINUTE)])
    assert await states(await harness.crash(), number) == [(outcome, "why")]


async def test_a_failed_try_keeps_what_was_sent_for_the_next(store: Store) -> None:
    await accept(store, simple("a"))
    (leased,) = await lease(store)
    assert (leased.attempts, leased.first_try_at, leased.rendered) == (0, 0, None)
    for number in (1, 2):
        attempt = Attempt(NOW + number * MINUTE, 5, 500, "http_500", b"sealed answer")
        due_at = NOW + (number + 1) * MINUTE
        await store.settle([Settlement(leased, State.DUE, "http_500", due_at, attempt, b"as it was sent")])
        (leased,) = await lease(store, due_at)
    assert (leased.attempts, leased.first_try_at, leased.rendered) == (2, NOW + MINUTE, b"as it was sent")


async def test_attempts_are_kept_in_order_with_their_answers(store: Store) -> None:
    (number,) = await accept(store, simple("a"))
    attempts = tuple(Attempt(NOW + n * MINUTE, n, 500 + n, "again", f"answer {n}".encode()) for n in range(12))
    for attempt in attempts:
        (leased,) = await lease(store, attempt.at)
        await store.settle([Settlement(leased, State.DUE, "again", attempt.at, attempt)])
    (delivery,) = await store.deliveries(number)
    assert delivery.attempts == attempts


async def test_what_was_sent_is_not_kept_once_it_is_settled(store: Store) -> None:
    await accept(store, simple("a"))
    (leased,) = await lease(store)
    await store.settle([Settlement(leased, State.DUE, "again", NOW, Attempt(NOW, 1, 500, "again"), b"bytes")])
    (leased,) = await lease(store)
    await store.settle([Settlement(leased, State.PARKED, "quota", NOW)])
    (leased,) = await lease(store)
    assert leased.rendered is None


async def test_parking_without_a_request_is_no_attempt(store: Store) -> None:
    (number,) = await accept(store, simple("a"))
    (leased,) = await lease(store)
    await store.settle([Settlement(leased, State.PARKED, "breaker", NOW + MINUTE)])
    (leased,) = await lease(store, NOW + MINUTE)
    assert (leased.attempts, leased.first_try_at) == (0, 0)
    assert (await store.deliveries(number))[0].attempts == ()


async def test_an_attempt_of_a_lease_that_was_lost_is_not_recorded(store: Store) -> None:
    (number,) = await accept(store, simple("a"))
    (overslept,) = await lease(store)
    await lease(store, NOW + MINUTE)
    await store.settle([Settlement(overslept, State.SENT, None, 0, Attempt(NOW, 1, 200, "sent"))])
    (delivery,) = await store.deliveries(number)
    assert (delivery.state, delivery.attempts) == (State.LEASED, ())
