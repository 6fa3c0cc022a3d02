"""Deliveries: the states they go through, and what a store is asked to keep. No I/O.

    accepted ─▶ waiting (for a link | on hold) ─▶ due ─▶ leased ─▶ sent
                   │                               ▲        ├─▶ due again (failed, with what was sent)
                   ▼                               └────────┼─▶ parked (breaker, quota, uncertain outcome)
                skipped(reason)                             └─▶ dead(reason) ─▶ due, when replayed

`pending` is waiting + due + leased + parked. A lease that runs out returns the delivery to due by itself: its
`due_at` is the lease's end, and its `fence` has moved on, so whoever held it can no longer settle it.

Bytes in these Structs are sealed (see `sealing`), except keys, which are keyed or cryptographic hashes. Times are
milliseconds since 1970.
"""

from collections.abc import Collection, Mapping
from enum import IntEnum
from typing import Literal

from msgspec import Struct

NEVER = 1 << 62
"""When a delivery is due that waits for somebody to decide."""


class State(IntEnum):
    """States below `SENT` are pending. The numbers are stored: never renumber."""

    WAITING = 1
    DUE = 2
    LEASED = 3
    PARKED = 4
    SENT = 10
    SKIPPED = 11
    DEAD = 12


STANDING = frozenset({State.WAITING, State.DUE, State.LEASED, State.SENT})
"""What a replay leaves as it is: it was sent, or will be. The others start again."""

SkipReason = Literal[
    "unmapped",
    "filtered",
    "test_event",
    "duplicate_payment",
    "superseded",
    "not_routed",
    "no_person",
    "no_consent",
    "pii_leak",
    "too_old",
    "destination_off",
    "stale",
    "thin_event",
]


class NewDelivery(Struct, frozen=True):
    """One event for one destination, as accepted.

    `skip` is set when the reason not to send is known already. `wait_until` is how long it waits for a link
    of one of the webhook's subjects (0: not at all). `late`: should such a link come after the event went out without
    a visitor, the destination is told of it by a delivery of its own. `lane`: no two deliveries of one lane are on
    their way to a destination at once, and of those that are pending the one whose event happened first goes first.
    """

    destination: str
    skip: SkipReason | None = None
    wait_until: int = 0
    late: bool = False
    lane: bytes | None = None


class NewClaim(Struct, frozen=True):
    """The payment that an event (or a rule that emits nothing) speaks of. `name` is the event's, None claims nothing.

    `keys` are one payment from now on. `hold` is how long (ms) the event waits to step back for a surer report, one
    with a shorter hold or none; 0 is the surest. `order` is what later events of the payment call it, sealed.
    """

    keys: tuple[bytes, ...]
    name: str | None = None
    hold: int = 0
    order: bytes | None = None


class NewEvent(Struct, frozen=True):
    """A sealed event with its deliveries. `id` is its UUID as bytes, `at` when it happened.

    `state_of` is the key of an object whose state it tells: it is stale when a newer state was told before.
    """

    id: bytes
    sealed: bytes
    deliveries: tuple[NewDelivery, ...]
    claim: NewClaim | None = None
    at: int = 0
    state_of: bytes | None = None


class LinkPart(Struct, frozen=True):
    """What is known of one subject's browser for one product (`part`), sealed, until `expires_at`.

    `taught_by` is the key of the subject that it goes back to, or None for a link that somebody made; empty when a
    payload carried it. `linked_at` of a learned part is that of the link that it goes back to.
    """

    key: bytes
    part: str
    sealed: bytes
    linked_at: int
    expires_at: int
    taught_by: bytes | None = None


class Acceptance(Struct, frozen=True, kw_only=True):
    """All that one webhook leaves behind, stored in one atomic step or not at all.

    `key` is the duplicate key. `notes` says, as JSON and without personal data, which rules skipped or failed and
    why. `bare_claims` tie payment keys together without an event. `subjects` are the keys of whom it speaks of;
    `unlinked`: none of them leads to a visitor yet, so a link of one of them is news. `teaches`: such a link holds
    for the other subjects too. `request` is what the sender asks about somebody's data;
    of such a webhook no body is kept (`sealed` is None).
    """

    key: bytes
    source: str
    account: str
    type: str
    id: str
    occurred_at: int
    received_at: int
    test: bool
    mapping: str
    sealed: bytes | None
    notes: bytes
    events: tuple[NewEvent, ...] = ()
    bare_claims: tuple[NewClaim, ...] = ()
    learned: tuple[LinkPart, ...] = ()
    subjects: tuple[bytes, ...] = ()
    unlinked: bool = False
    teaches: bool = False
    request: "DataRequest | None" = None


class Receipt(Struct, frozen=True):
    """`webhook` is the store's number for it; `due` are the destinations that have work now."""

    webhook: int
    duplicate: bool
    due: frozenset[str] = frozenset()


class Lease(Struct, frozen=True):
    """A delivery in somebody's hands until the lease ends. `rendered` is what an earlier try sent, if one did.

    `late`: the event has gone out without a visitor; this delivery tells who it was.
    """

    webhook: int
    number: int
    fence: int
    attempts: int
    first_try_at: int
    event: bytes
    rendered: bytes | None
    late: bool = False


class Attempt(Struct, frozen=True):
    """One HTTP request of a delivery. `status` is 0 when none came back; `response` is sealed; `took` is in ms."""

    at: int
    took: int
    status: int
    outcome: str
    response: bytes | None = None


class Settlement(Struct, frozen=True):
    """What becomes of a leased delivery. `rendered` is kept only for a delivery that will be tried again."""

    lease: Lease
    state: State
    reason: str | None = None
    due_at: int = 0
    attempt: Attempt | None = None
    rendered: bytes | None = None


class StoredWebhook(Struct, frozen=True, kw_only=True):
    """A webhook as the archive holds it."""

    webhook: int
    source: str
    account: str
    type: str
    id: str
    occurred_at: int
    received_at: int
    test: bool
    mapping: str
    notes: bytes
    sealed: bytes | None


class StoredDelivery(Struct, frozen=True, kw_only=True):
    """A delivery as the archive holds it, with its attempts, oldest first."""

    webhook: int
    number: int
    destination: str
    event: bytes
    state: State
    reason: str | None
    due_at: int
    attempts: tuple[Attempt, ...]


class Counts(Struct, frozen=True):
    """Deliveries of one destination: `accepted` is always the sum of the other four."""

    accepted: int
    sent: int
    skipped: int
    pending: int
    dead: int

    @classmethod
    def of(cls, states: Mapping[int, int]) -> "Counts":
        """Return what so many deliveries in each state come to."""
        return cls(
            accepted=sum(states.values()),
            sent=states.get(State.SENT, 0),
            skipped=states.get(State.SKIPPED, 0),
            pending=sum(number for state, number in states.items() if state < State.SENT),
            dead=states.get(State.DEAD, 0),
        )


class Backlog(Struct, frozen=True):
    """Pending deliveries of one destination: what is due and in nobody's hands, and what is not due yet.

    What is `waiting` waits for a link, a surer report, its next try, or the answer to the one under way.
    `oldest_due_at` is None when nothing is due, or only what a worker that stopped gave back.
    """

    due: int
    waiting: int
    oldest_due_at: int | None


Privacy = Literal["forget", "forget_account", "export"]
"""That a person's data be erased, or a whole account's, or that a person's be written out."""


class DataRequest(Struct, frozen=True):
    """What somebody asks about a person's (or a shop's) data.

    `keys` are the person's subjects. `forget_account` means all that came from this source and account.
    """

    kind: Privacy
    source: str = ""
    account: str = ""
    keys: tuple[bytes, ...] = ()


class OpenRequest(Struct, frozen=True):
    """A request about data that is to be fulfilled. `number` is the store's for it."""

    number: int
    asked_at: int
    request: DataRequest


class CopiedDelivery(Struct, frozen=True, kw_only=True):
    """All that a store knows of a delivery, for another store.

    `number` is its place among its webhook's deliveries, of which a replay may have taken some away; `event` that of
    its event. `late` is 1 when it wants to hear of a late link, 2 when it tells of one. `at` counts within its lane.
    """

    number: int
    event: int
    destination: str
    state: State
    reason: str | None
    due_at: int
    held_until: int
    first_try_at: int
    late: int
    at: int
    lane: bytes | None
    rendered: bytes | None
    attempts: tuple[Attempt, ...]


class CopiedWebhook(Struct, frozen=True):
    """A webhook with all that became of it, for another store, which gives it a number of its own.

    `came` has its events without deliveries or claims. What is `unlinked` still waits to hear of a link.
    """

    came: Acceptance
    deliveries: tuple[CopiedDelivery, ...]


class CopiedClaim(Struct, frozen=True):
    """A claim for another store. `webhook` is the duplicate key of whose event it is, empty when retention took it."""

    name: str
    event_id: bytes
    webhook: bytes
    event: int
    held_until: int
    hold: int
    order: bytes | None


class CopiedPayment(Struct, frozen=True):
    """A payment for another store: all keys that are one, and its claims.

    `webhook` is the duplicate key of the webhook, of this source and account, that retention counts from.
    """

    webhook: bytes
    source: str
    account: str
    keys: tuple[bytes, ...]
    claims: tuple[CopiedClaim, ...]


class Wanted(Struct, frozen=True, kw_only=True):
    """Which webhooks are looked for: those that fit all that is said. `subjects` are keys, of which one must be named.

    `since` and `until` are when they came, `until` itself apart. `states`: one of its deliveries is in one of them;
    `failed`: one of its rules failed.
    """

    id: str | None = None
    source: str | None = None
    type: str | None = None
    subjects: tuple[bytes, ...] = ()
    since: int = 0
    until: int = NEVER
    states: frozenset[State] = frozenset()
    failed: bool = False

    def fits(self, webhook: StoredWebhook, states: Collection[State]) -> bool:
        """Whether a webhook is one of them, its subjects apart; `states` are those of its deliveries."""
        return (
            self.id in {None, webhook.id}
            and self.source in {None, webhook.source}
            and self.type in {None, webhook.type}
            and self.since <= webhook.received_at < self.until
            and (not self.states or not self.states.isdisjoint(states))
            and (not self.failed or b'"error"' in webhook.notes)
        )


class FoundWebhook(Struct, frozen=True):
    """A webhook of a list, and how many of its deliveries are in which state."""

    webhook: StoredWebhook
    states: dict[State, int]


class WantedDeliveries(Struct, frozen=True, kw_only=True):
    """Which deliveries are looked for: those that fit all that is said."""

    destination: str | None = None
    states: frozenset[State] = frozenset()
    reason: str | None = None

    def fits(self, destination: str, state: State, reason: str | None) -> bool:
        """Whether a delivery is one of them."""
        return (
            self.destination in {None, destination}
            and self.reason in {None, reason}
            and (not self.states or state in self.states)
        )


Place = tuple[int, int]
"""Where a delivery is: its webhook's number, and its own within it."""


class FoundDelivery(Struct, frozen=True, kw_only=True):
    """A delivery of a list. `attempts` is how often it was tried; `source`, `type` and `id` are its webhook's."""

    webhook: int
    number: int
    destination: str
    event: bytes
    state: State
    reason: str | None
    due_at: int
    attempts: int
    source: str
    type: str
    id: str


class DeadGroup(Struct, frozen=True):
    """What died at a destination for one reason: how many deliveries, and the webhooks that they begin and end with."""

    destination: str
    reason: str
    number: int
    oldest: int
    newest: int


class Revived(Struct, frozen=True):
    """What a step of retrying dead deliveries did. `before` is where to go on, None at the end."""

    number: int
    due: frozenset[str]
    before: Place | None


class Accounted(Struct, frozen=True):
    """What became of one webhook: its sealed events by id, and destination, state and reason of each delivery by event.

    A replay may have made an event again: the newest is kept.
    """

    webhook: int
    source: str
    notes: bytes
    events: dict[bytes, bytes]
    deliveries: tuple[tuple[bytes, str, State, str | None], ...]


class Forgotten(Struct, frozen=True):
    """How much was erased: parts of links, webhooks (bodies and events), and deliveries that had not gone out."""

    links: int = 0
    webhooks: int = 0
    pending: int = 0

    def __add__(self, other: "Forgotten") -> "Forgotten":
        return Forgotten(self.links + other.links, self.webhooks + other.webhooks, self.pending + other.pending)


class StoreUnavailable(Exception):
    """The store could not do what was asked, and has changed nothing. Trying again later is safe."""


class StoreMismatch(Exception):
    """The store cannot be used as configured: another key, a newer schema, or another process holds it."""
