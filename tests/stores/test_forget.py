"""What somebody asks about data is done, wholly, and leaves a line that names nobody."""

import pytest
from msgspec import structs

from gateway.deliveries import DataRequest, Forgotten, Settlement, State
from tests.stores.harness import Harness, Store
from tests.stores.reports import DUPLICATE, NOW, accept, key, lease, linked, part, report, states, webhook
from tests.stores.reports import event as event_of

USER = [key("user")]


async def test_links_webhooks_and_what_waits_go(harness: Harness) -> None:
    store = await harness.open()
    await store.link([part("user", "v"), part("user", "d", product="datalyr"), part("other", "w")], NOW)
    mine, theirs = await accept(
        store, webhook("a", event_of("a"), subjects=("user",)), webhook("b", event_of("b"), subjects=("other",))
    )
    assert await store.forget(USER) == Forgotten(links=2, webhooks=1, pending=1)
    store = await harness.crash()
    erased, kept = await store.webhook(mine), await store.webhook(theirs)
    assert erased is not None
    assert kept is not None
    assert (erased.sealed, erased.notes, kept.sealed) == (None, b"", b"sealed")
    assert (await linked(store, "user"), await linked(store, "other")) == ({}, {"": b"w"})
    assert [each.webhook for each in await lease(store)] == [theirs]
    assert await store.naming(USER) == []


async def test_who_is_forgotten_with_one_subject_is_forgotten_with_all(store: Store) -> None:
    await store.link([part("customer", "v", by="user")], NOW)
    await accept(store, webhook("a", subjects=("user", "customer")))
    assert (await store.forget(USER)).links == 1
    assert await linked(store, "customer") == {}


async def test_who_was_named_in_an_order_and_linked_by_somebody_keeps_that_link(store: Store) -> None:
    await store.link([part("email", "their own"), part("phone", "v", by="user")], NOW)
    await accept(store, webhook("a", subjects=("user", "email", "phone")), webhook("b", subjects=("phone",)))
    assert (await store.forget(USER)).links == 0
    assert (await linked(store, "email"), await linked(store, "phone")) == ({"": b"their own"}, {"": b"v"})


async def test_what_is_erased_still_counts_once(store: Store) -> None:
    paid = structs.replace(report("a", "pi"), subjects=(key("user"),))
    (number,) = await accept(store, paid)
    await store.forget(USER)
    assert (await store.accept(paid)).duplicate
    assert await states(store, *await accept(store, report("b", "pi"))) == [DUPLICATE]
    assert await states(store, number) == []


async def test_what_is_being_sent_while_it_is_erased_settles_nothing(store: Store) -> None:
    await accept(store, webhook("a", event_of("a"), subjects=("user",)))
    (leased,) = await lease(store)
    assert (await store.forget(USER)).pending == 1
    assert await store.settle([Settlement(leased, State.SENT)]) == 0


async def test_what_is_erased_cannot_be_replayed(store: Store) -> None:
    first = webhook("a", event_of("a"), subjects=("user",))
    (number,) = await accept(store, first)
    await store.forget(USER)
    with pytest.raises(ValueError, match="has no body any more"):
        await store.replay(number, first, NOW)


async def test_nobody_is_forgotten_twice_or_instead_of_another(store: Store) -> None:
    await accept(store, webhook("a", subjects=("user",)))
    assert await store.forget([key("nobody")]) == Forgotten()
    assert await store.forget([]) == Forgotten()
    assert await store.forget(USER) == Forgotten(webhooks=1)
    assert await store.forget(USER) == Forgotten()


async def test_an_account_goes_whole_and_alone(store: Store) -> None:
    ours = [webhook(str(n), event_of(str(n)), subjects=(f"user {n}",), account="a.example") for n in range(700)]
    await accept(store, *ours, webhook("x", event_of("x"), account="b.example"))
    await store.link([part("user 5", "v"), part("user 900", "w")], NOW)
    assert await store.forget_account("stripe", "a.example") == Forgotten(links=1, webhooks=700, pending=700)
    assert await store.forget_account("shopify", "b.example") == Forgotten()
    assert (await store.counts())["sink"].accepted == 1


async def test_a_request_comes_with_its_webhook_and_outlives_a_crash(harness: Harness) -> None:
    store = await harness.open()
    asks = structs.replace(webhook("a"), sealed=None, request=DataRequest("forget", "stripe", "x", tuple(USER)))
    await accept(store, asks)
    await store.accept(asks)
    store = await harness.crash()
    (asked,) = await store.asked()
    assert (asked.asked_at, asked.request) == (NOW, asks.request)
    await store.fulfilled(asked.number, NOW, "erased")
    assert await store.asked() == []


async def test_requests_are_fulfilled_in_the_order_they_came(store: Store) -> None:
    numbers = [await store.ask(DataRequest("export", "s", str(n), tuple(USER)), NOW + n) for n in range(3)]
    assert [each.number for each in await store.asked()] == numbers


async def test_webhooks_that_name_a_subject_are_found_newest_first(store: Store) -> None:
    numbers = await accept(store, *(webhook(str(n), subjects=("user", f"s{n}")) for n in range(5)), webhook("z"))
    assert await store.naming([*USER, key("s3")], limit=2) == [numbers[4], numbers[3]]
    assert await store.naming(USER, before=numbers[3], limit=2) == [numbers[2], numbers[1]]
    assert await store.naming([key("s3")]) == [numbers[3]]
