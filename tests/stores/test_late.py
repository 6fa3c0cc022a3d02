"""A link that comes after an event went out without a visitor is told to those who want to hear of it, once."""

import pytest
from msgspec import structs

from gateway.deliveries import Acceptance, Attempt, NewDelivery, Settlement, State
from tests.stores.harness import Harness, Store
from tests.stores.reports import DUE, NOW, accept, event, lease, linked, part, states, webhook

LATE = NewDelivery("sink", late=True)
SENT = (State.SENT, "why")


def unlinked(id: str = "a", *deliveries: NewDelivery, subjects: tuple[str, ...] = ("user",)) -> Acceptance:
    return webhook(id, event(id, *(deliveries or (LATE,))), subjects=subjects)


async def send(store: Store, outcome: State = State.SENT, reason: str = "why") -> None:
    for each in await lease(store):
        await store.settle([Settlement(each, outcome, reason, NOW + 1, Attempt(NOW, 5, 200, reason))])


async def test_what_went_out_is_followed_by_a_late_delivery_of_the_same_event(harness: Harness) -> None:
    store = await harness.open()
    (number,) = await accept(store, unlinked())
    await send(store)
    store = await harness.crash()
    assert await store.link([part("user", "v")], NOW) == {"sink"}
    assert await states(store, number) == [SENT, DUE]
    (late,) = await lease(store)
    assert (late.late, late.event, late.number) == (True, b"sealed a", 1)


async def test_it_is_told_once(store: Store) -> None:
    (number,) = await accept(store, unlinked(subjects=("user", "customer")))
    await send(store)
    await store.link([part("user", "v")], NOW)
    assert await store.link([part("customer", "v"), part("user", "w")], NOW + 1) == frozenset()
    assert await states(store, number) == [SENT, DUE]


async def test_who_does_not_want_to_hear_of_it_does_not(store: Store) -> None:
    (number,) = await accept(store, unlinked("a", NewDelivery("sink")))
    await send(store)
    assert await store.link([part("user", "v")], NOW) == frozenset()
    assert await states(store, number) == [SENT]


async def test_what_has_not_been_tried_goes_out_with_the_visitor_and_needs_no_late_delivery(store: Store) -> None:
    (number,) = await accept(store, unlinked())
    await store.link([part("user", "v")], NOW)
    assert await states(store, number) == [DUE]


@pytest.mark.parametrize("outcome", [State.DUE, State.PARKED, State.DEAD])
async def test_what_may_have_gone_out_counts_as_gone(store: Store, outcome: State) -> None:
    (number,) = await accept(store, unlinked())
    await send(store, outcome)
    assert await store.link([part("user", "v")], NOW) == {"sink"}
    assert await states(store, number) == [(outcome, "why"), DUE]


async def test_what_was_not_taken_for_want_of_a_visitor_is_tried_again(store: Store) -> None:
    (number,) = await accept(store, unlinked())
    await send(store, State.SKIPPED, "no_person")
    assert await store.link([part("user", "v")], NOW) == {"sink"}
    assert await states(store, number) == [DUE]
    (leased,) = await lease(store)
    assert not leased.late


async def test_what_was_skipped_for_another_reason_stays_so(store: Store) -> None:
    (number,) = await accept(
        store, unlinked("a", NewDelivery("sink", "no_consent"), NewDelivery("other", "test_event"))
    )
    assert await store.link([part("user", "v")], NOW) == frozenset()
    assert await states(store, number) == [(State.SKIPPED, "no_consent"), (State.SKIPPED, "test_event")]


async def test_a_destination_for_identities_alone_hears_of_it(store: Store) -> None:
    (number,) = await accept(store, unlinked("a", NewDelivery("sink"), NewDelivery("ids", "not_routed", late=True)))
    await send(store)
    assert await store.link([part("user", "v")], NOW) == {"ids"}
    assert await states(store, number) == [SENT, (State.SKIPPED, "not_routed"), DUE]


async def test_a_payment_that_another_webhook_reported_tells_nothing_late(store: Store) -> None:
    from tests.stores.reports import DUPLICATE, report

    await accept(store, report("session", "pi"))
    await send(store)
    late = structs.replace(report("intent", "pi", to=(LATE,)), subjects=(part("user", "").key,), unlinked=True)
    (number,) = await accept(store, late)
    assert await store.link([part("user", "v")], NOW) == frozenset()
    assert await states(store, number) == [DUPLICATE]


async def test_a_link_is_passed_on_to_all_whom_the_unlinked_webhooks_name(store: Store) -> None:
    session = unlinked("session", subjects=("user", "customer"))
    renewal = unlinked("renewal", subjects=("customer", "invoice"))
    numbers = await accept(store, session, renewal)
    await send(store)
    await store.link([part("user", "v", NOW - 5)], NOW)
    assert await states(store, *numbers) == [SENT, DUE, SENT, DUE]
    found = (await store.resolve([part("invoice", "").key]))[part("invoice", "").key]
    assert [(each.sealed, each.linked_at, each.taught_by) for each in found] == [(b"v", NOW - 5, part("user", "").key)]


async def test_whom_somebody_linked_before_is_not_taught_anew(store: Store) -> None:
    await store.link([part("customer", "own")], NOW)
    await accept(store, unlinked("a", subjects=("user", "customer")))
    await store.link([part("user", "v")], NOW)
    assert await linked(store, "customer") == {"": b"own"}


async def test_a_test_webhook_is_told_but_teaches_nobody(store: Store) -> None:
    test = structs.replace(unlinked("a", subjects=("user", "customer")), teaches=False)
    (number,) = await accept(store, test)
    await send(store)
    assert await store.link([part("user", "v")], NOW) == {"sink"}
    assert await states(store, number) == [SENT, DUE]
    assert await linked(store, "customer") == {}


async def test_a_webhook_that_was_linked_hears_nothing(store: Store) -> None:
    (number,) = await accept(store, structs.replace(unlinked(), unlinked=False))
    await send(store)
    assert await store.link([part("user", "v")], NOW) == frozenset()
    assert await states(store, number) == [SENT]
