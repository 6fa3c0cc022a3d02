"""What operators are shown: one Struct for each thing, as the API, the pages and the commands print it."""

from typing import Literal

from msgspec import Struct

from gateway.translate import Note


class WebhookLine(Struct, frozen=True):
    """A webhook of a list. `states` is how many of its deliveries are in which; `failed`: a rule of its mapping did."""

    webhook: int
    source: str
    account: str
    type: str
    id: str
    occurred_at: str
    received_at: str
    test: bool
    mapping: str
    states: dict[str, int]
    failed: bool


class WebhookPage(Struct, frozen=True):
    """Webhooks, newest first. `after` gets the next page; without one there are no more."""

    webhooks: list[WebhookLine]
    after: str | None


class DeliveryLine(Struct, frozen=True):
    """A delivery of a list. `attempts` is how often it was tried; `source`, `type` and `id` are its webhook's."""

    webhook: int
    number: int
    destination: str
    event: str
    event_id: str
    state: str
    reason: str | None
    due_at: str | None
    attempts: int
    source: str
    type: str
    id: str


class DeliveryPage(Struct, frozen=True):
    """Deliveries, those of the newest webhooks first. `after` gets the next page; without one there are no more."""

    deliveries: list[DeliveryLine]
    after: str | None


class AttemptLine(Struct, frozen=True):
    """One request to a collector. `took` is in ms; `status` is 0 when no answer came."""

    at: str
    took: int
    status: int
    outcome: str
    response: str | None


class DeliveryWay(Struct, frozen=True):
    """A delivery with all its attempts."""

    number: int
    destination: str
    event: str
    event_id: str
    state: str
    reason: str | None
    due_at: str | None
    attempts: list[AttemptLine]


class RequestShown(Struct, frozen=True):
    """The request as it came. `folded` entries of its body are not shown."""

    headers: dict[str, str]
    body: object
    folded: int


class WebhookWay(Struct, frozen=True):
    """All that became of a webhook: which rules skipped or failed, its events, their deliveries and attempts."""

    webhook: int
    source: str
    account: str
    type: str
    id: str
    occurred_at: str
    received_at: str
    test: bool
    mapping: str
    notes: list[Note]
    events: list[dict[str, object]]
    deliveries: list[DeliveryWay]
    request: RequestShown | None
    revealed: bool


class Planned(Struct, frozen=True):
    """What a replay would do with one event at one destination."""

    event: str
    destination: str
    now: str
    then: str


class Difference(Struct, frozen=True):
    """What a replay would change: of the events, and of their deliveries."""

    events: list[str]
    deliveries: list[Planned]


class Replayed(Struct, frozen=True):
    """What a replay did: the destinations that have work now; or, of a dry run, what it would change."""

    webhook: int
    due: list[str]
    difference: Difference | None = None


class Retried(Struct, frozen=True):
    """How many deliveries were started again. `after` goes on with the rest, if there is any."""

    retried: int
    after: str | None


class DeadLine(Struct, frozen=True):
    """Dead deliveries of one destination that died for one reason. `oldest` and `newest` are webhooks."""

    destination: str
    reason: str
    number: int
    oldest: int
    newest: int


class DeadGroups(Struct, frozen=True):
    """All that is dead."""

    number: int
    groups: list[DeadLine]


class LinkLine(Struct, frozen=True):
    """One part of what a subject is linked to."""

    product: str
    visitor_id: str | None
    session_id: str | None
    click_ids: dict[str, str]
    learned: bool
    linked_at: str
    expires_at: str


class Linked(Struct, frozen=True):
    """What a subject is linked to, or was lately."""

    subject: str
    links: list[LinkLine]


class Sum(Struct, frozen=True):
    """Money of one kind of event in one currency, in major units: what was seen, and what became of it."""

    event: str
    currency: str
    number: int
    seen: str
    sent: str
    pending: str
    dead: str
    missing: str
    skipped: dict[str, str]


class SourceAccount(Struct, frozen=True):
    """What came from one source in a day. `failed` webhooks have a rule that failed."""

    source: str
    webhooks: int
    failed: int
    events: int
    skipped: dict[str, int]


class DestinationAccount(Struct, frozen=True):
    """What became of a source's events at one destination. `missing` events came while it was off."""

    source: str
    destination: str
    events: int
    accepted: int
    sent: int
    pending: int
    dead: int
    skipped: dict[str, int]
    missing: int
    late: int
    balances: bool
    money: list[Sum]


class Accuracy(Struct, frozen=True):
    """Whether what arrived is what was paid, in one day (UTC). `cut`: there was more than is counted here."""

    day: str
    webhooks: int
    cut: bool
    sources: list[SourceAccount]
    destinations: list[DestinationAccount]


class Thing(Struct, frozen=True):
    """A source or destination: whether it is on, which settings it lacks, and what to do next."""

    kind: Literal["source", "destination"]
    name: str
    on: bool
    missing: list[str]
    path: str | None
    next_step: str | None
    steps: list[str]


class Setup(Struct, frozen=True):
    """What is configured and what is missing. `problem` is what is wrong with an edit that is not in force."""

    things: list[Thing]
    problem: str | None
