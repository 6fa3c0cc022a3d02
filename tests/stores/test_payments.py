"""One payment, whatever reports it, in any order: claims, holds and unions in the store."""

import itertools
from collections.abc import AsyncIterator, Sequence
from hashlib import blake2b
from pathlib import Path

import pytest

from gateway.deliveries import Acceptance, NewClaim, NewDelivery, NewEvent, Receipt, State
from gateway.store.sqlite import SqliteStore

NOW = 1_800_000_000_000
MINUTE = 60_000


def key(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=16).digest()


def report(id: str, *keys: str, hold: int = 0, emits: bool = True, at: int = NOW) -> Acceptance:
    """A webhook that reports a payment under some keys, as a purchase or only to tie the keys together."""
    claim = NewClaim(tuple(key(each) for each in keys), "purchase" if emits else None, at + hold if hold else 0)
    event = NewEvent(key(f"event {id}"), b"sealed", (NewDelivery("sink"),), claim)
    return Acceptance(
        key=key(id),
        source="stripe",
        account="",
        type="t",
        id=id,
        occurred_at=at,
        received_at=at,
        test=False,
        mapping="m",
        sealed=b"sealed",
        notes=b"[]",
        events=(event,) if emits else (),
        bare_claims=() if emits else (claim,),
    )


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore.open(tmp_path / "gateway.db", b"fingerprint")
    yield opened
    await opened.close()


async def accept(store: SqliteStore, *reports: Acceptance) -> list[Receipt]:
    return [await store.accept(each) for each in reports]


async def states(store: SqliteStore, receipts: Sequence[Receipt]) -> list[tuple[State, str | None]]:
    return [(each.state, each.reason) for receipt in receipts for each in await store.deliveries(receipt.webhook)]


async def sent(store: SqliteStore, now: int) -> int:
    """Lease everything that is due: how many purchases go out."""
    leases, _ = await store.lease("sink", 100, now, now + MINUTE)
    return len(leases)


async def test_a_second_report_under_any_shared_key_is_a_duplicate(store: SqliteStore) -> None:
    receipts = await accept(store, report("session", "cs", "pi"), report("invoice", "in", "pi"))
    assert await states(store, receipts) == [(State.DUE, None), (State.SKIPPED, "duplicate_payment")]


async def test_keys_once_claimed_together_are_one_payment(store: SqliteStore) -> None:
    receipts = await accept(store, report("a", "1", "2"), report("b", "2", "3"), report("c", "3", "4"))
    assert await sent(store, NOW) == 1
    assert [reason for _, reason in await states(store, receipts)][1:] == ["duplicate_payment"] * 2


async def test_a_held_report_steps_back_for_a_free_one(store: SqliteStore) -> None:
    receipts = await accept(store, report("intent", "pi", hold=2 * MINUTE), report("session", "cs", "pi"))
    assert (await states(store, receipts))[0] == (State.SKIPPED, "superseded")
    assert await sent(store, NOW + 3 * MINUTE) == 1


async def test_a_hold_that_has_ended_stands(store: SqliteStore) -> None:
    await accept(store, report("intent", "pi", hold=2 * MINUTE))
    late = await accept(store, report("session", "cs", "pi", at=NOW + 3 * MINUTE))
    assert await states(store, late) == [(State.SKIPPED, "duplicate_payment")]
    assert await sent(store, NOW + 3 * MINUTE) == 1


async def test_other_payments_are_not_touched(store: SqliteStore) -> None:
    await accept(store, report("a", "pi_1"), report("b", "pi_2"))
    assert await sent(store, NOW) == 2


SUBSCRIPTION = (
    report("session", "in", "cs"),
    report("invoice", "in"),
    report("tie", "pi", "in", emits=False),
    report("intent", "pi", hold=2 * MINUTE),
)


@pytest.mark.parametrize("order", list(itertools.permutations(SUBSCRIPTION)), ids=lambda o: "-".join(r.id for r in o))
async def test_a_subscription_payment_counts_once_in_every_order(
    store: SqliteStore, order: tuple[Acceptance, ...]
) -> None:
    await accept(store, *order, *order)  # everything arrives twice
    assert await sent(store, NOW + 3 * MINUTE) == 1


async def test_a_replay_finds_its_own_claim_and_sends_nothing_twice(store: SqliteStore) -> None:
    (receipt,) = await accept(store, report("session", "cs", "pi"))
    await store.replay(receipt.webhook, report("session", "cs", "pi"), NOW + 1)
    assert [state for state, _ in await states(store, [receipt])] == [State.DUE]
    assert await sent(store, NOW + 1) == 1
