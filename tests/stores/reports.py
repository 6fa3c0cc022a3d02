"""Small webhooks for the stores' tests. Stores see sealed bytes only, so any bytes will do."""

from hashlib import blake2b

from gateway.deliveries import Acceptance, LinkPart, NewClaim, NewDelivery, NewEvent

NOW = 1_800_000_000_000
MINUTE = 60_000
DAY = 86_400_000


def key(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=16).digest()


def webhook(
    id: str,
    *deliveries: NewDelivery,
    at: int = NOW,
    claim: NewClaim | None = None,
    bare: NewClaim | None = None,
    subjects: tuple[bytes, ...] = (),
    learned: tuple[LinkPart, ...] = (),
    account: str = "",
) -> Acceptance:
    """A webhook with one event for these deliveries, or none."""
    event = NewEvent(key(f"event {id}"), f"sealed {id}".encode(), deliveries, claim, subjects)
    return Acceptance(
        key=key(f"{account} {id}"),
        source="stripe",
        account=account,
        type="t",
        id=id,
        occurred_at=at,
        received_at=at,
        test=False,
        mapping="m",
        sealed=b"sealed",
        notes=b"[]",
        events=(event,) if deliveries else (),
        bare_claims=(bare,) if bare else (),
        learned=learned,
        links_expire_at=at + 400 * DAY,
    )


def report(id: str, *keys: str, hold: int = 0, emits: bool = True, at: int = NOW) -> Acceptance:
    """A webhook that reports a payment under some keys, as a purchase or only to tie the keys together."""
    claim = NewClaim(tuple(key(each) for each in keys), "purchase" if emits else None, at + hold if hold else 0)
    if emits:
        return webhook(id, NewDelivery("sink"), at=at, claim=claim)
    return webhook(id, at=at, bare=claim)


def part(subject: str, value: str, at: int = NOW, product: str = "", *, learned: bool = False) -> LinkPart:
    return LinkPart(key(subject), product, value.encode(), at, learned)
