"""Links are kept in parts, by product: the browser's word goes before what was learned, the newer before the older."""

import pytest

from gateway.deliveries import LinkPart
from tests.stores.harness import Harness, Store
from tests.stores.reports import DAY, NOW, accept, key, linked, part, webhook


async def link(store: Store, *parts: LinkPart) -> None:
    for each in parts:
        await store.link([each], NOW)


def direct(value: str, at: int = NOW) -> LinkPart:
    return part("user", value, at)


def learned(value: str, at: int = NOW, by: str = "customer") -> LinkPart:
    return part("user", value, at, by=by)


@pytest.mark.parametrize(
    ("first", "second", "stands"),
    [
        pytest.param(direct("a", NOW - 1), direct("b"), b"b", id="a newer direct link replaces a direct one"),
        pytest.param(direct("a"), direct("b", NOW - 1), b"a", id="an older one does not"),
        pytest.param(direct("a"), learned("b", NOW + 1), b"a", id="a learned one never replaces a direct one"),
        pytest.param(learned("a", NOW + 1), direct("b"), b"b", id="a direct one replaces a learned one, even a newer"),
        pytest.param(learned("a", NOW - 1), learned("b"), b"b", id="a newer one from the same teacher replaces it"),
        pytest.param(learned("a", NOW - 1), learned("b", by="cart"), b"a", id="one from another teacher does not"),
        pytest.param(part("user", "a", ends=NOW), learned("b"), b"b", id="one that has ended makes room for any"),
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
    parts = [part("user", "v", NOW - 7, "nexly"), part("user", "w", NOW, "datalyr", by="cart")]
    await (await harness.open()).link(parts, NOW)
    found = await (await harness.crash()).resolve([key("user")])
    assert sorted(found[key("user")], key=lambda each: each.part, reverse=True) == parts


async def test_a_webhook_teaches_in_the_same_step(store: Store) -> None:
    await accept(store, webhook("a", learned=(part("customer", "v", by="user"),)))
    assert await linked(store, "customer") == {"": b"v"}


async def test_a_duplicate_teaches_nothing(store: Store) -> None:
    await accept(store, webhook("a"), webhook("a", learned=(part("customer", "v", by="user"),)))
    assert await linked(store, "customer") == {}


async def test_a_link_ends(store: Store) -> None:
    await link(store, direct("v"))
    assert await linked(store, "user", NOW + DAY - 1) == {"": b"v"}
    assert await linked(store, "user", NOW + DAY) == {}


async def test_a_link_that_is_seen_again_lasts_longer(store: Store) -> None:
    await link(store, direct("v"))
    await store.link([part("user", "v", NOW + 1, ends=NOW + 2 * DAY)], NOW + 1)
    assert await linked(store, "user", NOW + DAY) == {"": b"v"}


async def test_many_keys_are_resolved_in_one_call(store: Store) -> None:
    await store.link([part(str(number), str(number)) for number in range(300)], NOW)
    found = await store.resolve([key(str(number)) for number in range(0, 600, 2)])
    assert {each: parts[0].sealed for each, parts in found.items()} == {
        key(str(number)): str(number).encode() for number in range(0, 300, 2)
    }
    assert await store.resolve([]) == {}


async def test_a_link_is_seen_as_soon_as_it_is_stored(store: Store) -> None:
    for number in range(20):
        await store.link([direct(str(number), NOW + number)], NOW)
        assert await linked(store, "user") == {"": str(number).encode()}
