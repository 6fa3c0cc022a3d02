"""Two reports of one payment may give their events the same id: the first key is the same. It still counts once."""

import itertools

import pytest
from msgspec import structs

from gateway.deliveries import Acceptance
from tests.stores.harness import Store
from tests.stores.reports import MINUTE, NOW, key, report


def same_event(acceptance: Acceptance) -> Acceptance:
    (event,) = acceptance.events
    return structs.replace(acceptance, events=(structs.replace(event, id=key("the payment's event")),))


REPORTS = (same_event(report("session", "pi", "cs")), same_event(report("intent", "pi", hold=2 * MINUTE)))


@pytest.mark.parametrize("order", list(itertools.permutations(REPORTS)), ids=["session first", "intent first"])
async def test_it_counts_once_past_the_hold(store: Store, order: tuple[Acceptance, ...]) -> None:
    for each in (*order, *order):
        await store.accept(each)
    leases, _ = await store.lease("sink", 10, NOW + 3 * MINUTE, NOW + 4 * MINUTE)
    assert len(leases) == 1
