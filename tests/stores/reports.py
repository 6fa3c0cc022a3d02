"""Small webhooks for the stores' tests, and short ways to look at a store. Any bytes will do where sealed ones go."""

from hashlib import blake2b

from gateway.deliveries import (
    Acceptance,
    Attempt,
    Lease,
    LinkPart,
    NewClaim,
    NewDelivery,
    NewEvent,
    Settlement,
    SkipReason,
    State,
)
from tests.stores.harness import Store

NOW = 1_800_000_000_000
MINUTE = 60_000
DAY = 86_400_000
SINK = NewDelivery("sink")
DUPLICATE = (State.SKIPPED, "duplicate_payment")
SUPERSEDED = (State.SKIPPED, "superseded")
DUE = (State.DUE, None)


def key(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=16).digest()


def event(id: str, *deliveries: NewDelivery, claim: NewClaim | None = None) -> NewEvent:
    return NewEvent(key(f"event {id}"), f"sealed {id}".encode(), deliveries or (SINK,), claim)


def webhook(
    id: str,
    *events: NewEvent,
    at: int = NOW,
    bare: tuple[NewClaim, ...] = (),
    learned: tuple[LinkPart, ...] = (),
    subjects: tuple[str, ...] = (),
    account: str = "",
    type: str = "t",
) -> Acceptance:
    """Return a webhook with these events, and the duplicate key that its account, type and id give it.

    With `subjects` it names somebody whom nobody linked.
    """
    return Acceptance(
        key=key(f"{account} {type} {id}"),
        source="stripe",
        account=account,
        type=type,
        id=id,
        occurred_at=at,
        received_at=at,
        test=False,
        mapping="m",
        sealed=b"sealed",
        notes=b"[]",
        events=events,
        bare_claims=bare,
        learned=learned,
        subjects=tuple(key(each) for each in subjects),
        unlinked=bool(subjects),
        teaches=True,
    )


def simple(id: str, at: int = NOW, skip: SkipReason | None = None) -> Acceptance:
    """Return a webhook with one event for one destination."""
    return webhook(id, event(id, NewDelivery("sink", skip)), at=at)


def report(
    id: str,
    *keys: str,
    hold: int = 0,
    name: str = "purchase",
    at: int = NOW,
    to: tuple[NewDelivery, ...] = (SINK,),
    order: bytes | None = None,
) -> Acceptance:
    """Return a webhook that reports a payment under these keys.

    As in translation, the first key and the name make the event's id: several webhooks may agree on one.
    """
    claim = NewClaim(tuple(key(each) for each in keys), name, hold, order)
    return webhook(id, event(f"{keys[0]} {name}", *to, claim=claim), at=at)


def tie(id: str, *keys: str, at: int = NOW) -> Acceptance:
    """Return a webhook that says which keys are one payment, and emits nothing."""
    return webhook(id, at=at, bare=(NewClaim(tuple(key(each) for each in keys)),))


def part(
    subject: str, value: str, at: int = NOW, product: str = "", *, by: str | None = None, ends: int = NOW + DAY
) -> LinkPart:
    """Return a part of a subject's link, learned from the subject `by`."""
    return LinkPart(key(subject), product, value.encode(), at, ends, key(by) if by else None)


async def lease(store: Store, now: int = NOW, limit: int = 100, destination: str = "sink") -> list[Lease]:
    """Lease what is due, for a minute."""
    leases, _ = await store.lease(destination, limit, now, now + MINUTE)
    return leases


async def settle(store: Store, outcome: State, now: int = NOW, due_at: int = 0) -> None:
    """Lease the one delivery that is due, and settle it after one try."""
    (leased,) = await lease(store, now)
    await store.settle([Settlement(leased, outcome, "why", due_at, Attempt(now, 5, 500, "why"))])


async def accept(store: Store, *acceptances: Acceptance) -> list[int]:
    """Accept one after another, and return their numbers."""
    return [(await store.accept(each)).webhook for each in acceptances]


async def states(store: Store, *webhooks: int) -> list[tuple[State, str | None]]:
    """Return state and reason of each delivery of these webhooks."""
    return [(each.state, each.reason) for webhook in webhooks for each in await store.deliveries(webhook)]


async def linked(store: Store, subject: str, now: int = NOW) -> dict[str, bytes]:
    """Return what is linked to a subject at `now`, by product."""
    found = (await store.resolve([key(subject)])).get(key(subject), [])
    return {each.part: each.sealed for each in found if each.expires_at > now}
