"""The archive: what a store holds, opened and masked, and what may be repaired in it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from datetime import date
from typing import Protocol

import msgspec

from gateway.archive.accuracy import accounts
from gateway.archive.asking import (
    MAX_PAGE,
    MAX_RETRIED,
    Missing,
    Refused,
    Unclear,
    WebhookState,
    moment,
    number_of,
    place_of,
    states_of,
    subjects_of,
)
from gateway.archive.rehearsal import Rehearsal
from gateway.archive.setup import set_up
from gateway.archive.shapes import (
    Accuracy,
    AttemptLine,
    DeadGroups,
    DeadLine,
    DeliveryLine,
    DeliveryPage,
    DeliveryWay,
    Difference,
    Linked,
    LinkLine,
    Planned,
    Replayed,
    Retried,
    Setup,
    WebhookPage,
    WebhookWay,
)
from gateway.archive.showing import (
    cursor,
    event_shown,
    fields_of,
    guard_for,
    notes_of,
    request_shown,
    time_of,
    told,
    webhook_line,
)
from gateway.deliveries import (
    NEVER,
    STANDING,
    Acceptance,
    Attempt,
    Forgotten,
    FoundDelivery,
    FoundWebhook,
    LinkPart,
    Revived,
    StoredDelivery,
    StoredWebhook,
    Wanted,
    WantedDeliveries,
)
from gateway.dry_run import changes
from gateway.events import Event, decode_event
from gateway.identity import PiiGuard, normalise_subject
from gateway.intake import Intake, KeptRequest, UnknownSource, kept_request
from gateway.links import KnownLink, known
from gateway.mappings import Mappings
from gateway.masking import guarded
from gateway.privacy import Privacy
from gateway.sealing import Sealer, SealError
from gateway.sources import MalformedWebhook
from gateway.store.opening import Store
from gateway.translate import Emission, Note, Translation

MAX_ANSWER = 2_000
"""Characters of a collector's answer that are shown."""


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
        before = number_of(after) if after else None
        found, on = await self._store.search(wanted, before=before, limit=min(limit, MAX_PAGE))
        return WebhookPage([webhook_line(each) for each in found], None if on is None else str(on))

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
        return DeliveryPage([self._delivery_line(each) for each in found], cursor(on))

    async def dead(self) -> DeadGroups:
        """Return what is dead, by destination and reason."""
        groups = [DeadLine(*fields_of(each)) for each in await self._store.dead()]
        return DeadGroups(sum(each.number for each in groups), sorted(groups, key=lambda each: -each.number))

    # one webhook

    async def webhook(self, number: int, *, reveal: bool = False) -> WebhookWay:
        """Return all that became of one webhook; with `reveal` also its request as it came. Raises `Missing`."""
        stored = await self._stored(number)
        deliveries = await self._store.deliveries(number)
        kept = kept_request(stored, self._sealer) if stored.sealed is not None else None
        guard = self._guard(stored, kept)
        # What may be large is opened beside the loop.
        request = await asyncio.to_thread(request_shown, kept, guard, reveal=reveal) if kept else None
        line = webhook_line(FoundWebhook(stored, {}))
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
            notes=notes_of(stored),
            events=[event_shown(each, guard, reveal=reveal) for each in self._events(deliveries).values()],
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
        rehearsal = Rehearsal(self._store)
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
        events = changes(
            Translation(tuple(map(Emission, before)), notes=tuple(notes_of(stored))),
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
                now = "nothing" if was is None else told(was.state, was.reason)
                if now != then:
                    planned.append(Planned(event.name, delivery.destination, now, then))
        return Difference(list(events), planned)

    # repairs

    async def retry(self, webhook: int, number: int) -> Retried:
        """Let a dead or parked delivery start again. Raises `Missing` and `Refused`."""
        destination = await self._store.retry(webhook, number, self._clock())
        if destination is None:
            for each in await self._store.deliveries(webhook):
                if each.number == number:
                    raise Refused(f"it is {told(each.state, each.reason)}: only what is dead or parked can be retried")
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
        return Retried(revived.number, cursor(revived.before))

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
        return await accounts(self._store, self._sealer, self._mappings().destinations, day)

    def setup(self, variables: Callable[[str], str | None], problem: str | None = None) -> Setup:
        """Say what is on, and what is missing for the rest."""
        return set_up(self._mappings(), variables, problem)

    # inside

    def _keys(self, subjects: Mapping[str, str]) -> dict[str, bytes]:
        keys: dict[str, bytes] = {}
        for name, value in subjects.items():
            if "\0" in name or (normal := normalise_subject(name, value)) is None:
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
        return guard_for(self._mappings().sources.get(stored.source), kept, stored.received_at)

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
            time_of(found.due_at),
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
            time_of(delivery.due_at),
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
        return AttemptLine(time_of(attempt.at) or "", attempt.took, attempt.status, attempt.outcome, answer)

    def _link_line(self, part: LinkPart) -> LinkLine:
        link: KnownLink = known(part, self._sealer)
        return LinkLine(
            link.product,
            link.visitor_id,
            link.session_id,
            link.click_ids,
            link.learned,
            time_of(link.linked_at) or "",
            time_of(link.expires_at) or "",
        )
