"""Promise 8: for every destination, accepted is sent, skipped, pending and dead together."""

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.deliveries import Backlog, Counts, NewDelivery, Settlement, State
from tests.stores.harness import HARNESSES, Store
from tests.stores.reports import DAY, MINUTE, NOW, event, simple, webhook

OUTCOMES = (State.SENT, State.DEAD, State.SKIPPED, State.DUE, State.PARKED)
STEPS = st.one_of(
    st.tuples(st.just("accept"), st.sampled_from(["", "skip", "wait"])),
    st.tuples(st.just("settle"), st.sampled_from(OUTCOMES)),
    st.tuples(st.just("replay"), st.integers(0, 5)),
)


async def test_a_store_without_deliveries_counts_nothing(store: Store) -> None:
    await store.accept(webhook("a"))
    assert await store.counts() == {}


async def test_each_state_is_counted_once(store: Store) -> None:
    for number, outcome in enumerate(OUTCOMES):
        await store.accept(simple(str(number)))
        (leased,), _ = await store.lease("sink", 1, NOW, NOW + MINUTE)
        await store.settle([Settlement(leased, outcome, "why", NOW + DAY)])
    assert await store.counts() == {"sink": Counts(accepted=5, sent=1, skipped=1, pending=2, dead=1)}


@pytest.mark.parametrize(("due", "waiting"), [(0, 1), (1, 0), (2, 6), (6, 2), (5, 5)])
async def test_a_backlog_is_what_is_due_and_what_waits(
    store: Store, monkeypatch: pytest.MonkeyPatch, due: int, waiting: int
) -> None:
    monkeypatch.setattr("gateway.store.sqlite.SCAN", 4)  # beyond that what is few is not known at once
    for each in range(due):
        await store.accept(simple(f"due {each}", at=NOW + each))
    for each in range(waiting):
        held = NewDelivery("sink", wait_until=NOW + DAY)
        await store.accept(webhook(f"waiting {each}", event(f"{each}", held), subjects=("ada",)))
    for each in range(3):
        await store.accept(simple(f"skipped {each}", skip="no_consent"))
    assert await store.backlog(NOW + MINUTE) == {"sink": Backlog(due, waiting, NOW if due else None)}


@pytest.mark.parametrize("name", HARNESSES)
@settings(max_examples=15)
@given(steps=st.lists(STEPS, max_size=12))
def test_what_was_accepted_is_always_the_sum_of_its_states(name: str, steps: list[tuple[str, object]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_walk(name, Path(folder), steps))


async def _walk(name: str, folder: Path, steps: list[tuple[str, object]]) -> None:
    harness = HARNESSES[name](folder)
    store = await harness.open()
    accepted = 0
    for number, (step, choice) in enumerate(steps):
        if step == "accept":
            first = NewDelivery("sink", "no_person" if choice == "skip" else None, NOW + MINUTE * (choice == "wait"))
            await store.accept(webhook(str(number), event(str(number), first, NewDelivery("other"))))
            accepted += 1
        elif step == "settle":
            assert isinstance(choice, State)
            leases, _ = await store.lease("sink", 1, NOW, NOW + MINUTE)
            await store.settle([Settlement(each, choice, "why", NOW) for each in leases])
        else:
            for stored in (await store.webhooks())[:1]:
                again = webhook(stored.id, event(stored.id, NewDelivery("sink"), NewDelivery("other")))
                await store.replay(stored.webhook, again, NOW)
        for counts in (await store.counts()).values():
            assert counts.accepted == accepted
            assert counts.accepted == counts.sent + counts.skipped + counts.pending + counts.dead
    await harness.close()
