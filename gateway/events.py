"""What travels through the gateway: a verified webhook, the events made of it, the visitor they belong to.

Times are milliseconds since 1970 in UTC. Nothing in an `Event` is raw personal data: identity is hashed,
subjects are keyed hashes, and visitor ids are pseudonymous by nature (hashing them would break the link).
"""

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct, convert, msgpack

from gateway.money import Money

Kind = Literal["track", "identify", "group", "page"]
Unlinked = Literal["no_subject", "unknown_subject", "expired"]
"""Why an event has no visitor: its payload names nobody, nobody ever linked who it names, or a link has ended."""


class Webhook(Struct, frozen=True, kw_only=True):
    """One verified request. `document` is what its source reads of the body, which is kept to the byte for replay.

    `fetched` are the objects that its source's `fetch:` got for it, by name.
    """

    source: str
    id: str
    type: str
    account: str
    occurred_at: int
    received_at: int
    test: bool
    headers: Mapping[str, str]
    body: bytes
    document: object
    fetched: Mapping[str, object] = {}


class ProductIds(Struct, frozen=True, omit_defaults=True):
    """How one analytics product knows the browser."""

    visitor_id: str | None = None
    session_id: str | None = None


class Visitor(Struct, frozen=True, omit_defaults=True):
    """A browser visitor, as linked. `ids` is per product; the entry named `""` serves every product without its own.

    `linked_by` is the subject that resolved (or `payload`), `linked_at` when that link was made.
    """

    ids: dict[str, ProductIds] = {}
    click_ids: dict[str, str] = {}
    linked_by: str | None = None
    linked_at: int | None = None


class Event(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One canonical analytics event. `identity` is per normalisation profile; `subjects` is in order of trust.

    `unlinked` is why there is no `visitor`. `late_for` is set on what is made when a link comes too late: the id of the
    event that went out without a visitor.
    """

    id: str
    name: str
    kind: Kind = "track"
    at: int
    user_id: str | None = None
    identity: dict[str, dict[str, str]] = {}
    visitor: Visitor | None = None
    unlinked: Unlinked | None = None
    late_for: str | None = None
    subjects: dict[str, bytes] = {}
    properties: dict[str, object] = {}
    context: dict[str, object] = {}
    test: bool = False
    source: str
    account: str = ""
    webhook_id: str
    type: str
    rule: str


MONEY_TAG = "$"
"""The key that tells money from other maps once it is packed. No property of a payload's may have it."""

_ENCODER = msgpack.Encoder()
_EVENT = msgpack.Decoder(Event)


def encode_event(event: Event) -> bytes:
    """Pack an event for the store; `decode_event` gives it back, its `Money` included."""
    return _ENCODER.encode(event)


def decode_event(data: bytes) -> Event:
    """Unpack what `encode_event` packed. Raises `msgspec.DecodeError` on anything else."""
    event = _EVENT.decode(data)
    for values in (event.properties, event.context):
        for name, value in values.items():
            values[name] = _restore_money(value)
    return event


def _restore_money(value: object) -> object:
    if isinstance(value, dict):
        if MONEY_TAG in value:
            return convert(value, Money)
        return {name: _restore_money(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_restore_money(item) for item in value]
    return value
