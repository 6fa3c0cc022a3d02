"""What operators are shown of a store, and what they may repair: shared by the API, its pages and the command line.

Everything is opened and masked here: no raw personal data leaves unless somebody asks for it to be revealed, which is
written into the audit log by whoever lets them in.
"""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Literal, Protocol

import msgspec
from msgspec import Struct

from gateway.checking import setup as setup_lines
from gateway.clock import now_ms
from gateway.deliveries import (
    NEVER,
    STANDING,
    Acceptance,
    Accounted,
    Attempt,
    DeadGroup,
    Forgotten,
    FoundDelivery,
    FoundWebhook,
    LinkPart,
    Place,
    Receipt,
    Revived,
    State,
    StoredDelivery,
    StoredWebhook,
    Wanted,
    WantedDeliveries,
)
from gateway.destinations import iso
from gateway.documents import duration
from gateway.dry_run import changes, shown
from gateway.events import Event, decode_event
from gateway.expressions import EvaluationError
from gateway.identity import PiiGuard, normalise_subject
from gateway.intake import Intake, KeptRequest, UnknownSource, kept_request
from gateway.links import KnownLink, known
from gateway.mappings import Mappings, load_mappings
from gateway.masking import Folded, guarded, masked_headers
from gateway.money import Money, to_major
from gateway.privacy import Privacy
from gateway.sealing import Sealer, SealError
from gateway.settings import Settings
from gateway.sources import MalformedWebhook, read_verified, scope_of
from gateway.store.opening import Store, open_store
from gateway.translate import Emission, Note, Translation

MAX_PAGE = 200
"""Webhooks or deliveries of one page."""
MAX_RETRIED = 500
"""Deliveries that one call starts again."""
MAX_ACCOUNTED = 20_000
"""Webhooks of a day whose events are opened and summed."""
MAX_ANSWER = 2_000
"""Characters of a collector's answer that are shown."""
_AT_ONCE = 200


class Missing(Exception):
    """There is no such webhook or delivery."""


class Unclear(ValueError):
    """What was asked for cannot be read; the message says what to write."""


class Refused(Exception):
    """It is there, but what was asked cannot be done to it; the message says why."""


StateName = Literal["waiting", "due", "leased", "parked", "sent", "skipped", "dead", "pending"]
WebhookState = Literal["waiting", "due", "leased", "parked", "sent", "skipped", "dead", "pending", "failed"]
PENDING = frozenset({State.WAITING, State.DUE, State.LEASED, State.PARKED})


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


class Files(Protocol):
    """The mappings in force."""

    def __call__(self) -> Mappings:
        """Return them."""
        ...


class Archive:
    """Looks into a store, and repairs."""

    def __init__(
        self,
        store: Store,
        sealer: Sealer,
        mappings: Files,
        intake: Intake,
        privacy: Privacy,
        wake: Callable[[frozenset[str]], None],
        clock: Callable[[], int],
        *,
        forward_tests: bool,
    ) -> None:
        self._store = store
        self._sealer = sealer
        self._mappings = mappings
        self._intake = intake
        self._privacy = privacy
        self._wake = wake
        self._clock = clock
        self._forward_tests = forward_tests

    # lists

    def wanted(
        self,
        *,
        id: str | None = None,
        source: str | None = None,
        type: str | None = None,
        subject: str | None = None,
        since: str | None = None,
        until: str | None = None,
        state: WebhookState | None = None,
    ) -> Wanted:
        """Return what is looked for. Raises `Unclear` for what cannot be read."""
        now = self._clock()
        return Wanted(
            id=id,
            source=source,
            type=type,
            subjects=tuple(self._keys(subjects_of([subject])).values()) if subject else (),
            since=moment(since, now) if since else 0,
            until=moment(until, now) if until else NEVER,
            states=states_of(state) if state != "failed" else frozenset(),
            failed=state == "failed",
        )

    async def webhooks(self, wanted: Wanted, after: str | None = None, limit: int = 50) -> WebhookPage:
        """Return a page of webhooks. Raises `Unclear` for an `after` that is none."""
        before = _number(after) if after else None
        found, on = await self._store.search(wanted, before=before, limit=min(limit, MAX_PAGE))
        return WebhookPage([_webhook_line(each) for each in found], None if on is None else str(on))

    async def each(self, wanted: Wanted) -> AsyncIterator[FoundWebhook]:
        """Yield all webhooks that fit, newest first."""
        before = None
        while True:
            found, before = await self._store.search(wanted, before=before, limit=MAX_PAGE)
            for each in found:
                yield each
            if before is None:
                return

    async def deliveries(self, wanted: WantedDeliveries, after: str | None = None, limit: int = 50) -> DeliveryPage:
        """Return a page of deliveries. Raises `Unclear` for an `after` that is none."""
        before = place_of(after) if after else None
        found, on = await self._store.search_deliveries(wanted, before=before, limit=min(limit, MAX_PAGE))
        return DeliveryPage([self._delivery_line(each) for each in found], _cursor(on))

    async def dead(self) -> DeadGroups:
        """Return what is dead, by destination and reason."""
        groups = [DeadLine(*_fields(each)) for each in await self._store.dead()]
        return DeadGroups(sum(each.number for each in groups), sorted(groups, key=lambda each: -each.number))

    # one webhook

    async def webhook(self, number: int, *, reveal: bool = False) -> WebhookWay:
        """Return all that became of one webhook; with `reveal` also its request as it came. Raises `Missing`."""
        stored = await self._stored(number)
        deliveries = await self._store.deliveries(number)
        kept = kept_request(stored, self._sealer) if stored.sealed is not None else None
        guard = self._guard(stored, kept)
        # What may be large is opened beside the loop.
        request = await asyncio.to_thread(_request_shown, kept, guard, reveal=reveal) if kept else None
        line = _webhook_line(FoundWebhook(stored, {}))
        return WebhookWay(
            webhook=line.webhook,
            source=line.source,
            account=line.account,
            type=line.type,
            id=line.id,
            occurred_at=line.occurred_at,
            received_at=line.received_at,
            test=line.test,
            mapping=line.mapping,
            notes=_notes(stored),
            events=[_event_shown(each, guard, reveal=reveal) for each in self._events(deliveries).values()],
            deliveries=[self._way(each, guard) for each in deliveries],
            request=request,
            revealed=reveal,
        )

    async def replay(self, number: int) -> Replayed:
        """Translate a stored webhook again under the mappings in force. Raises `Missing` and `Refused`."""
        stored = await self._stored(number)
        try:
            receipt = await self._intake.replay(stored)
        except UnknownSource:
            raise Refused(f"no mapping defines the source `{stored.source}` now") from None
        except (MalformedWebhook, ValueError) as error:
            raise Refused(str(error)) from None
        return Replayed(number, sorted(receipt.due))

    async def rehearse(self, number: int) -> Replayed:
        """Say what a replay would change, and change nothing. Raises `Missing` and `Refused`."""
        stored = await self._stored(number)
        rehearsal = _Rehearsal(self._store)
        intake = Intake(
            rehearsal,
            self._sealer,
            self._mappings,
            self._clock,
            lambda _: None,
            forward_tests=self._forward_tests,
        )
        try:
            await intake.replay(stored)
        except UnknownSource:
            raise Refused(f"no mapping defines the source `{stored.source}` now") from None
        except (MalformedWebhook, ValueError) as error:
            raise Refused(str(error)) from None
        assert rehearsal.accepted is not None  # noqa: S101 -- a replay that raises nothing stores something
        guard = self._guard(stored, kept_request(stored, self._sealer))
        deliveries = await self._store.deliveries(number)
        difference = self._difference(stored, deliveries, rehearsal.accepted)
        events = [str(guarded(each, guard)) for each in difference.events]
        due = {each.destination for each in difference.deliveries if each.then == "due"}
        return Replayed(number, sorted(due), Difference(events, difference.deliveries))

    def _difference(self, stored: StoredWebhook, deliveries: Sequence[StoredDelivery], new: Acceptance) -> Difference:
        before = list(self._events(deliveries).values())
        after = [decode_event(self._sealer.open(each.sealed, b"event")) for each in new.events]
        told = changes(
            Translation(tuple(map(Emission, before)), notes=tuple(_notes(stored))),
            Translation(tuple(map(Emission, after)), notes=tuple(msgspec.json.decode(new.notes, type=list[Note]))),
        )
        standing = {(self._event(each).id, each.destination): each for each in deliveries}
        planned: list[Planned] = []
        for event, made in zip(after, new.events, strict=True):
            for delivery in made.deliveries:
                was = standing.get((event.id, delivery.destination))
                if was is not None and was.state in STANDING:
                    continue
                then = f"skipped: {delivery.skip}" if delivery.skip else "waiting" if delivery.wait_until else "due"
                now = "nothing" if was is None else _told(was.state, was.reason)
                if now != then:
                    planned.append(Planned(event.name, delivery.destination, now, then))
        return Difference(list(told), planned)

    # repairs

    async def retry(self, webhook: int, number: int) -> Retried:
        """Let a dead or parked delivery start again. Raises `Missing` and `Refused`."""
        destination = await self._store.retry(webhook, number, self._clock())
        if destination is None:
            for each in await self._store.deliveries(webhook):
                if each.number == number:
                    raise Refused(f"it is {_told(each.state, each.reason)}: only what is dead or parked can be retried")
            raise Missing(f"there is no delivery {number} of webhook {webhook}")
        self._wake(frozenset({destination}))
        return Retried(1, None)

    async def retry_dead(
        self, destination: str | None, reason: str | None, after: str | None = None, limit: int = MAX_RETRIED
    ) -> Retried:
        """Let dead deliveries start again, at most `limit`. Raises `Unclear` for an `after` that is none."""
        wanted = WantedDeliveries(destination=destination, reason=reason)
        before = place_of(after) if after else None
        revived: Revived = await self._store.retry_dead(
            wanted, self._clock(), before=before, limit=min(limit, MAX_RETRIED)
        )
        self._wake(revived.due)
        return Retried(revived.number, _cursor(revived.before))

    # links

    async def links(self, subjects: Mapping[str, str]) -> list[Linked]:
        """Return what subjects are linked to. Raises `Unclear` for a value that is none of its kind."""
        keys = self._keys(subjects)
        found = await self._store.resolve(list(keys.values()))
        return [Linked(name, [self._link_line(each) for each in found.get(key, ())]) for name, key in keys.items()]

    async def forget(self, subjects: Mapping[str, str]) -> Forgotten:
        """Erase these subjects. Raises `Unclear` for a value that is none of its kind."""
        self._keys(subjects)
        return await self._privacy.forget(subjects)

    # numbers

    async def accuracy(self, day: date) -> Accuracy:
        """Account for the payments of a day."""
        since = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)
        tally = _Tally(self._sealer, frozenset(self._mappings().destinations))
        page: list[Accounted] = []
        async for each in self._store.accounted(since, since + 86_400_000):
            if tally.webhooks + len(page) == MAX_ACCOUNTED:
                tally.cut = True
                break
            page.append(each)
            if len(page) == _AT_ONCE:
                await asyncio.to_thread(tally.add, page)
                page = []
        await asyncio.to_thread(tally.add, page)
        return tally.told(day)

    def setup(self, variables: Callable[[str], str | None], problem: str | None = None) -> Setup:
        """Say what is on, and what is missing for the rest."""
        mappings = self._mappings()
        things: list[Thing] = []
        for source in mappings.sources.values():
            on, path = bool(source.verification.keys), f"/webhooks/{source.name}"
            names = re.findall(r"\$\{(\w+)", source.spec.verify.secrets)
            missing = [] if on else [name for name in names if not variables(name)]
            step = None if on else f"set {', '.join(missing) or '`verify.secrets`'}: until then every webhook gets 401"
            lines = list(setup_lines(source, f"https://YOUR-GATEWAY{path}"))
            things.append(Thing("source", source.name, on, missing, path, step, lines))
        for destination in (*mappings.destinations.values(), *mappings.off.values()):
            missing = [name for name in destination.enabled_by if not variables(name)]
            step = f"set {', '.join(missing)}, then replay what came before" if missing else None
            things.append(Thing("destination", destination.name, not missing, missing, None, step, []))
        return Setup(things, problem)

    # inside

    def _keys(self, subjects: Mapping[str, str]) -> dict[str, bytes]:
        keys: dict[str, bytes] = {}
        for name, value in subjects.items():
            if (normal := normalise_subject(name, value)) is None:
                raise Unclear(f"this is no value of `{name[:40]}`")
            keys[name] = self._sealer.subject_key(name, normal)
        return keys

    async def _stored(self, number: int) -> StoredWebhook:
        stored = await self._store.webhook(number)
        if stored is None:
            raise Missing(f"there is no webhook {number}")
        return stored

    def _guard(self, stored: StoredWebhook, kept: KeptRequest | None) -> PiiGuard:
        """Return what finds the person that a webhook speaks of in texts."""
        source = self._mappings().sources.get(stored.source)
        if source is None or kept is None:
            return PiiGuard({})
        try:
            webhook = read_verified(kept.headers, kept.body, source, stored.received_at)
            person = source.person(webhook.document, scope_of(webhook, source))
        except (MalformedWebhook, EvaluationError):
            return PiiGuard({})
        identity = person.get("identity") if isinstance(person, dict) else None
        return PiiGuard({name: text for name, text in (identity or {}).items() if isinstance(text, str)})

    def _event(self, delivery: StoredDelivery | FoundDelivery) -> Event:
        return decode_event(self._sealer.open(delivery.event, b"event"))

    def _events(self, deliveries: Iterable[StoredDelivery]) -> dict[str, Event]:
        events = (self._event(each) for each in deliveries)
        return {event.id: event for event in events}

    def _delivery_line(self, found: FoundDelivery) -> DeliveryLine:
        try:
            event = self._event(found)
            name, id = event.name, event.id
        except (SealError, msgspec.MsgspecError):
            name = id = ""
        return DeliveryLine(
            found.webhook,
            found.number,
            found.destination,
            name,
            id,
            found.state.name.lower(),
            found.reason,
            _time(found.due_at),
            found.attempts,
            found.source,
            found.type,
            found.id,
        )

    def _way(self, delivery: StoredDelivery, guard: PiiGuard) -> DeliveryWay:
        event = self._event(delivery)
        return DeliveryWay(
            delivery.number,
            delivery.destination,
            event.name,
            event.id,
            delivery.state.name.lower(),
            delivery.reason,
            _time(delivery.due_at),
            [self._attempt(each, delivery.destination, guard) for each in delivery.attempts],
        )

    def _attempt(self, attempt: Attempt, destination: str, guard: PiiGuard) -> AttemptLine:
        answer = None
        if attempt.response is not None:
            answer = self._sealer.open(attempt.response, b"response").decode("utf-8", "replace")
            mappings = self._mappings()
            known_as = mappings.destinations.get(destination) or mappings.off.get(destination)
            for secret in known_as.secrets.values() if known_as else ():  # some answers repeat what they were sent
                answer = answer.replace(secret.reveal(), "***") if secret else answer
            answer = "\n".join(str(guarded(line, guard)) for line in answer[:MAX_ANSWER].splitlines())
        return AttemptLine(_time(attempt.at) or "", attempt.took, attempt.status, attempt.outcome, answer)

    def _link_line(self, part: LinkPart) -> LinkLine:
        link: KnownLink = known(part, self._sealer)
        return LinkLine(
            link.product,
            link.visitor_id,
            link.session_id,
            link.click_ids,
            link.learned,
            _time(link.linked_at) or "",
            _time(link.expires_at) or "",
        )


class _Rehearsal:
    """Stands before a store for a replay that is not to happen: reads go through, and what would be stored is kept."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.accepted: Acceptance | None = None

    async def accept(self, acceptance: Acceptance) -> Receipt:
        """Refuse: a rehearsal takes nothing in."""
        raise NotImplementedError

    async def replay(self, webhook: int, acceptance: Acceptance, now: int) -> Receipt:  # noqa: ARG002
        """Keep what would be stored."""
        self.accepted = acceptance
        return Receipt(webhook, duplicate=False)

    async def resolve(self, keys: Sequence[bytes]) -> dict[bytes, list[LinkPart]]:
        """Return what is linked to each of the keys."""
        return await self._store.resolve(keys)

    async def order_of(self, keys: Sequence[bytes]) -> bytes | None:
        """Return what a payment is called."""
        return await self._store.order_of(keys)


class _Line:
    """What became of a source's events at one destination."""

    def __init__(self) -> None:
        self.states: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.late = 0
        self.money: dict[tuple[str, str], Counter[str]] = {}


class _Tally:
    """Adds up what became of webhooks."""

    def __init__(self, sealer: Sealer, destinations: frozenset[str]) -> None:
        self._sealer = sealer
        self._destinations = set(destinations)
        self._sources: dict[str, Counter[str]] = {}
        self._skips: dict[str, Counter[str]] = {}
        self._lines: dict[tuple[str, str], _Line] = {}
        self._seen: dict[str, dict[tuple[str, str], tuple[int, Decimal]]] = {}
        self._sums: dict[tuple[str, str], dict[tuple[str, str], dict[str, Decimal]]] = {}
        self.webhooks = 0
        self.cut = False

    def add(self, page: Sequence[Accounted]) -> None:
        """Add webhooks. Opens their events, so it runs beside the loop."""
        for each in page:
            self._add(each)

    def _add(self, each: Accounted) -> None:
        self.webhooks += 1
        source = self._sources.setdefault(each.source, Counter())
        source["webhooks"] += 1
        source["events"] += len(each.events)
        notes = msgspec.json.decode(each.notes, type=list[Note]) if each.notes else []
        source["failed"] += any(note.error for note in notes)
        self._skips.setdefault(each.source, Counter()).update(note.skip for note in notes if note.skip)
        values = {id: self._value(sealed) for id, sealed in each.events.items()}
        seen = self._seen.setdefault(each.source, {})
        for value in filter(None, values.values()):
            *kind, amount = value
            number, total = seen.get((kind[0], kind[1]), (0, Decimal(0)))
            seen[kind[0], kind[1]] = number + 1, total + amount
        met: set[tuple[bytes, str]] = set()
        for event, destination, state, reason in each.deliveries:
            self._destinations.add(destination)
            line = self._lines.setdefault((each.source, destination), _Line())
            if (event, destination) in met:  # what tells of a late link is no other payment
                line.late += 1
                continue
            met.add((event, destination))
            group = _group(state)
            line.states[group] += 1
            if group == "skipped":
                line.skipped[reason or ""] += 1
            if (found := values.get(event)) is not None:
                sums = self._sums.setdefault((each.source, destination), {}).setdefault(found[:2], {})
                place = f"skipped:{reason or ''}" if group == "skipped" else group
                sums[place] = sums.get(place, Decimal(0)) + found[2]

    def _value(self, sealed: bytes) -> tuple[str, str, Decimal] | None:
        """Return an event's name, currency and amount, if it has one."""
        try:
            event = decode_event(self._sealer.open(sealed, b"event"))
        except (SealError, msgspec.MsgspecError):
            return None
        value = event.properties.get("value")
        return (event.name, value.currency, to_major(value)) if isinstance(value, Money) else None

    def told(self, day: date) -> Accuracy:
        """Return the accounts."""
        sources = [
            SourceAccount(name, each["webhooks"], each["failed"], each["events"], dict(self._skips[name]))
            for name, each in sorted(self._sources.items())
        ]
        destinations = [
            self._told(source, destination)
            for source in sorted(self._sources)
            for destination in sorted(self._destinations)
        ]
        return Accuracy(day.isoformat(), self.webhooks, self.cut, sources, destinations)

    def _told(self, source: str, destination: str) -> DestinationAccount:
        line = self._lines.get((source, destination), _Line())
        events, accepted = self._sources[source]["events"], line.states.total()
        sent, pending, dead = line.states["sent"], line.states["pending"], line.states["dead"]
        whole = accepted == sent + pending + dead + line.skipped.total()
        sums = self._sums.get((source, destination), {})
        return DestinationAccount(
            source=source,
            destination=destination,
            events=events,
            accepted=accepted,
            sent=sent,
            pending=pending,
            dead=dead,
            skipped=dict(line.skipped),
            missing=events - accepted,
            late=line.late,
            balances=whole and events == accepted,
            money=[_sum(kind, seen, sums.get(kind, {})) for kind, seen in sorted(self._seen[source].items())],
        )


def _sum(kind: tuple[str, str], seen: tuple[int, Decimal], sums: Mapping[str, Decimal]) -> Sum:
    number, total = seen
    return Sum(
        event=kind[0],
        currency=kind[1],
        number=number,
        seen=str(total),
        sent=str(sums.get("sent", 0)),
        pending=str(sums.get("pending", 0)),
        dead=str(sums.get("dead", 0)),
        missing=str(total - sum(sums.values())),
        skipped={
            place.removeprefix("skipped:"): str(amount)
            for place, amount in sums.items()
            if place.startswith("skipped:")
        },
    )


def _group(state: State) -> str:
    return "pending" if state < State.SENT else state.name.lower()


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Archive]:
    """Open the archive beside a running gateway.

    Raises `SettingsError`, `StoreMismatch` and `StoreUnavailable`; what needs the mappings raises `MappingErrors`.
    """
    loaded: list[Mappings] = []

    def mappings() -> Mappings:
        if not loaded:
            loaded.append(load_mappings(settings.mappings, settings.environment))
        return loaded[0]

    sealer = Sealer(settings.master_key())
    store = await open_store(settings, sealer, exclusive=False)
    forward_tests = settings.test_events == "forward"

    def nobody(_: frozenset[str]) -> None:
        """The gateway that serves this store looks for work of others by itself."""

    intake = Intake(store, sealer, mappings, now_ms, nobody, forward_tests=forward_tests)
    privacy = Privacy(store, sealer, settings.exports, now_ms)
    try:
        yield Archive(store, sealer, mappings, intake, privacy, nobody, now_ms, forward_tests=forward_tests)
    finally:
        await store.close()


# what people write


def moment(text: str, now: int) -> int:
    """Return a time in ms: a date, a time in ISO 8601 (UTC unless it says otherwise), or how long ago, such as 2h."""
    try:
        return now - duration(text)
    except ValueError:
        pass
    try:
        # A plus sign that nobody escaped in an address comes as a space.
        when = datetime.fromisoformat(re.sub(r" (?=[0-9]{2}:?[0-9]{2}$)", "+", text) if "T" in text else text)
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
        return int((when - _EPOCH) / timedelta(milliseconds=1))
    except (ValueError, OverflowError):
        forms = "2026-10-26, 2026-10-26T09:00:00Z, or 2h for two hours ago"
        raise Unclear(f"`{text[:40]}` is no time: write {forms}") from None


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def subjects_of(pairs: Iterable[str]) -> dict[str, str]:
    """Return subjects by name from texts such as `user:42`. Raises `Unclear`."""
    subjects: dict[str, str] = {}
    for pair in pairs:
        name, colon, value = pair.partition(":")
        if not colon or not name or not value or "\0" in name:
            raise Unclear("write a subject as name:value, such as user:42")
        subjects[name] = value
    return subjects


def states_of(state: WebhookState | None) -> frozenset[State]:
    """Return the states that a word means; none for no word."""
    if state is None:
        return frozenset()
    return PENDING if state == "pending" else frozenset({State[state.upper()]})


def place_of(after: str) -> Place:
    """Return where a list goes on. Raises `Unclear`."""
    webhook, dot, number = after.partition(".")
    if not dot:
        raise Unclear("this `after` is none that a page gave")
    return _number(webhook), _number(number)


def _number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise Unclear("this `after` is none that a page gave")
    return int(text)


# what people are shown


def _cursor(place: Place | None) -> str | None:
    return f"{place[0]}.{place[1]}" if place else None


def _time(at: int) -> str | None:
    return iso(at) if 0 < at < 250_000_000_000_000 else None


def _told(state: State, reason: str | None) -> str:
    return f"{state.name.lower()}: {reason}" if reason else state.name.lower()


def _fields(group: DeadGroup) -> tuple[str, str, int, int, int]:
    return group.destination, group.reason, group.number, group.oldest, group.newest


def _notes(stored: StoredWebhook) -> list[Note]:
    return msgspec.json.decode(stored.notes, type=list[Note]) if stored.notes else []


def _webhook_line(found: FoundWebhook) -> WebhookLine:
    stored = found.webhook
    return WebhookLine(
        webhook=stored.webhook,
        source=stored.source,
        account=stored.account,
        type=stored.type,
        id=stored.id,
        occurred_at=_time(stored.occurred_at) or "",
        received_at=_time(stored.received_at) or "",
        test=stored.test,
        mapping=stored.mapping,
        states={state.name.lower(): number for state, number in sorted(found.states.items())},
        failed=b'"error"' in stored.notes,
    )


def _event_shown(event: Event, guard: PiiGuard, *, reveal: bool) -> dict[str, object]:
    plain: dict[str, object] = msgspec.to_builtins(shown(event), str_keys=True)
    if reveal:
        return plain
    told = guarded(plain, guard)
    assert isinstance(told, dict)  # noqa: S101
    return told


def _request_shown(kept: KeptRequest, guard: PiiGuard, *, reveal: bool) -> RequestShown:
    try:
        document: object = msgspec.json.decode(kept.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        document = kept.body.decode("utf-8", "replace")
    if reveal:
        return RequestShown(kept.headers, document, 0)
    folded = Folded(guard)
    body = folded.masked(document)
    return RequestShown(masked_headers(kept.headers, guard), body, folded.hidden)
