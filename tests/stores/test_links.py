"""Links are kept in parts, by product: the browser's word goes before what was learned, the newer before the older."""

import pytest

from gateway.deliveries import LinkPart
from tests.stores.harness import Harness, Store
from tests.stores.reports import DAY, NOW, accept, key, linked, part, webhook


async def link(store: Store, *parts: LinkPart) -> None:
    for each in parts:
        await store.link([each], NOW + DAY, NOW)


def direct(value: str, at: int = NOW) -> LinkPart:
    return part("user", value, at)


def learned(value: str, at: int = NOW) -> LinkPart:
    return part("user", value, at, learned=True)


@pytest.mark.parametrize(
    ("first", "second", "stands"),
    [
        pytest.param(direct("a", NOW - 1), direct("b"), b"b", id="a newer direct link replaces a direct one"),
        pytest.param(direct("a"), direct("b", NOW - 1), b"a", id="an older one does not"),
        pytest.param(direct("a"), learned("b", NOW + 1), b"a", id="a learned one never replaces a direct one"),
        pytest.param(learned("a", NOW + 1), direct("b"), b"b", id="a direct one replaces a learned one, even a newer"),
        pytest.param(learned("a", NOW - 1), learned("b"), b"b", id="a newer learned one replaces a learned one"),
        pytest.param(learned("a"), learned("b", NOW - 1), b"a", id="an older learned one does not"),
    ],
)
async def test_which_link_stands(store: Store, first: LinkPart, second: LinkPart, stands: bytes) -> None:
    await link(store, first, second)
    assert await linked(store, "user") == {"": stands}


async def test_the_parts_of_several_products_add_up(store: Store) -> None:
    await link(store, part("user", "v"), part("user", "d", product="datalyr"), part("user", "n", NOW + 1))
    assert await linked(store, "user") == {"": b"n", "datalyr": b"d"}


async def test_a_part_comes_back_as_it_was_stored(harness: Harness) -> None:
    parts = [part("user", "v", NOW - 7, "nexly"), part("user", "w", NOW, "datalyr", learned=True)]
    await (await harness.open()).link(parts, NOW + DAY, NOW)
    found = await (await harness.crash()).resolve([key("user")], NOW)
    assert sorted(found[key("user")], key=lambda each: each.part, reverse=True) == parts


async def test_a_webhook_teaches_in_the_same_step(store: Store) -> None:
    await accept(store, webhook("a", learned=(part("customer", "v", learned=True),)))
    assert await linked(store, "customer") == {"": b"v"}


async def test_a_duplicate_teaches_nothing(store: Store) -> None:
    await accept(store, webhook("a"), webhook("a", learned=(part("customer", "v", learned=True),)))
    assert await linked(store, "customer") == {}


async def test_a_link_ends(store: Store) -> None:
    await link(store, direct("v"))
    assert await linked(store, "user", NOW + DAY - 1) == {"": b"v"}
    assert await linked(store, "user", NOW + DAY) == {}


async def test_a_link_that_is_seen_again_lasts_longer(store: Store) -> None:
    await link(store, direct("v"))
    await store.link([direct("v", NOW + 1)], NOW + 2 * DAY, NOW + 1)
    assert await linked(store, "user", NOW + DAY) == {"": b"v"}


async def test_links_can_be_forgotten(store: Store) -> None:
    await link(store, direct("v"), part("user", "d", product="datalyr"), part("other", "w"))
    assert await store.forget([key("user"), key("nobody")]) == 2
    assert (await linked(store, "user"), await linked(store, "other")) == ({}, {"": b"w"})


async def test_many_keys_are_resolved_in_one_call(store: Store) -> None:
    await store.link([part(str(number), str(number)) for number in range(300)], NOW + DAY, NOW)
    found = await store.resolve([key(str(number)) for number in range(0, 600, 2)], NOW)
    assert {each: parts[0].sealed for each, parts in found.items()} == {
        key(str(number)): str(number).encode() for number in range(0, 300, 2)
    }
    assert await store.resolve([], NOW) == {}


async def test_a_link_is_seen_as_soon_as_it_is_stored(store: Store) -> None:
    for number in range(20):
        await store.link([direct(str(number), NOW + number)], NOW + DAY, NOW)
        assert await linked(store, "user") == {"": str(number).encode()}
