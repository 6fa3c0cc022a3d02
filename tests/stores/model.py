"""What a store is, in a few dictionaries: slow, without files, and short enough to be believed."""

from dataclasses import dataclass, field

from gateway.deliveries import (
    STANDING,
    Acceptance,
    Attempt,
    Counts,
    Lease,
    LinkPart,
    NewClaim,
    NewEvent,
    Settlement,
    State,
)

CLAIMS_FOR = 90 * 86_400_000
FINAL = {State.SENT, State.SKIPPED, State.DEAD}


@dataclass
class Delivery:
    """A delivery; `number` is its place within its webhook."""

    webhook: int
    number: int
    destination: str
    event: NewEvent
    state: State
    reason: str | None
    due_at: int
    held_until: int = 0
    waits_for: set[bytes] = field(default_factory=set)
    fence: int = 0
    attempts: list[Attempt] = field(default_factory=list)
    first_try_at: int = 0
    rendered: bytes | None = None


@dataclass
class Claim:
    webhook: int
    event: bytes
    held_until: int
    hold: int
    order: int
    """Grows with each claim made: tells one made in this pass from one that a replay finds."""


@dataclass
class Payment:
    keys: set[bytes]
    born: int
    """The youngest webhook whose keys joined it: retention counts from there."""
    claims: dict[str, Claim] = field(default_factory=dict)


@dataclass
class Webhook:
    acceptance: Acceptance
    erased: bool = False


class Model:
    """Does at once and in memory what a store is asked to do."""

    def __init__(self) -> None:
        self.webhooks: dict[int, Webhook] = {}
        self.deliveries: dict[tuple[int, int], Delivery] = {}
        self.payments: list[Payment] = []
        self.links: dict[tuple[bytes, str], tuple[LinkPart, int]] = {}
        self._claims = 0

    def known(self, key: bytes) -> int | None:
        return next((number for number, each in self.webhooks.items() if each.acceptance.key == key), None)

    def of(self, webhook: int) -> list[Delivery]:
        return [each for each in self.deliveries.values() if each.webhook == webhook]

    def accept(self, webhook: int, new: Acceptance) -> set[str]:
        self.webhooks[webhook] = Webhook(new)
        return self._store(webhook, new, new.events, new.received_at)

    def replay(self, webhook: int, new: Acceptance, now: int) -> set[str]:
        blocked = {(each.event.id, each.destination) for each in self.of(webhook) if each.state in STANDING}
        events = []
        next_number = 1 + max((each.number for each in self.of(webhook)), default=-1)
        for event in new.events:
            fresh = tuple(each for each in event.deliveries if (event.id, each.destination) not in blocked)
            for each in self.of(webhook):
                if each.event.id == event.id and each.destination in {new.destination for new in fresh}:
                    del self.deliveries[webhook, each.number]
            if fresh:
                events.append(NewEvent(event.id, event.sealed, fresh, event.claim, event.subjects))
        return self._store(webhook, new, tuple(events), now, next_number)

    def _store(
        self, webhook: int, new: Acceptance, events: tuple[NewEvent, ...], now: int, number: int = 0
    ) -> set[str]:
        due, began = set(), self._claims
        for claim in new.bare_claims:
            self._unite(claim, webhook, now)
        for event in events:
            taken = event.claim is not None and not self._claim(event.claim, webhook, event, began, now)
            for each in event.deliveries:
                held = now + event.claim.hold if event.claim and event.claim.hold else 0
                wait = 0 if any(self.resolve(key, now) for key in event.subjects) else each.wait_until
                made = Delivery(webhook, number, each.destination, event, State.DUE, None, now)
                if each.skip or taken:
                    made.state, made.reason, made.due_at = State.SKIPPED, each.skip or "duplicate_payment", 0
                elif max(held, wait) > now:
                    made.state, made.reason = State.WAITING, "link" if wait > held else "hold"
                    made.due_at, made.held_until = max(held, wait), held
                    made.waits_for = set(event.subjects) if each.wait_until > now else set()
                else:
                    due.add(each.destination)
                self.deliveries[webhook, number] = made
                number += 1
        return due | self.link(new.learned, new.links_expire_at, now)

    def _unite(self, claim: NewClaim, webhook: int, now: int) -> Payment:
        found = [each for each in self.payments if each.keys & set(claim.keys)]
        united = Payment(set(claim.keys).union(*(each.keys for each in found)), webhook)
        if found:
            united.born = max(each.born for each in found)
        for payment in found:
            self.payments.remove(payment)
            for name, theirs in payment.claims.items():
                ours = united.claims.get(name, theirs)
                first, second = sorted((ours, theirs), key=lambda e: (self._yields(e, now), e.hold, e.webhook, e.order))
                if second is not first and self._yields(second, now):
                    self._supersede(second)
                united.claims[name] = first
        self.payments.append(united)
        return united

    def _claim(self, claim: NewClaim, webhook: int, event: NewEvent, began: int, now: int) -> bool:
        payment = self._unite(claim, webhook, now)
        assert claim.name is not None
        standing = payment.claims.get(claim.name)
        own = standing and (standing.webhook, standing.event) == (webhook, event.id) and standing.order <= began
        if standing and not own:
            if claim.hold >= standing.hold or not self._yields(standing, now):
                return False
            self._supersede(standing)
        self._claims += 1
        held_until = now + claim.hold if claim.hold else 0
        payment.claims[claim.name] = Claim(webhook, event.id, held_until, claim.hold, self._claims)
        return True

    def _claimed(self, claim: Claim) -> list[Delivery]:
        return [each for each in self.of(claim.webhook) if each.event.id == claim.event]

    def _yields(self, claim: Claim, now: int) -> bool:
        untouched = {State.WAITING, State.SKIPPED}
        return claim.held_until > now and all(each.state in untouched for each in self._claimed(claim))

    def _supersede(self, claim: Claim) -> None:
        for each in self._claimed(claim):
            if each.state == State.WAITING:
                each.state, each.reason, each.due_at = State.SKIPPED, "superseded", 0

    def due(self, destination: str, now: int) -> list[Delivery]:
        """Return what may be leased, the first due first."""
        pending = [each for each in self.deliveries.values() if each.destination == destination]
        ready = [each for each in pending if each.state not in FINAL and each.due_at <= now]
        return sorted(ready, key=lambda each: each.due_at)

    def next_due(self, destination: str) -> int | None:
        every = self.deliveries.values()
        times = [each.due_at for each in every if each.destination == destination and each.state not in FINAL]
        return min(times, default=None)

    def lease(self, webhook: int, number: int, until: int) -> Lease:
        it = self.deliveries[webhook, number]
        it.state, it.reason, it.due_at, it.fence = State.LEASED, None, until, it.fence + 1
        return Lease(webhook, number, it.fence, len(it.attempts), it.first_try_at, it.event.sealed, it.rendered)

    def settle(self, settlement: Settlement) -> int:
        lease, attempt = settlement.lease, settlement.attempt
        it = self.deliveries.get((lease.webhook, lease.number))
        if it is None or it.state != State.LEASED or it.fence != lease.fence:
            return 0
        it.state, it.reason, it.due_at = settlement.state, settlement.reason, settlement.due_at
        it.rendered = settlement.rendered
        if attempt:
            it.attempts.append(attempt)
            it.first_try_at = it.first_try_at or attempt.at
        return 1

    def crash(self) -> None:
        for each in self.deliveries.values():
            if each.state == State.LEASED:
                each.state, each.due_at = State.DUE, 0

    def resolve(self, key: bytes, now: int) -> dict[str, LinkPart]:
        return {part: link for (k, part), (link, ends) in self.links.items() if k == key and ends > now}

    def link(self, parts: tuple[LinkPart, ...], expires_at: int, now: int) -> set[str]:
        released = set()
        for part in parts:
            known = self.links.get((part.key, part.part))
            newer = known is None or part.linked_at >= known[0].linked_at
            if known is None or (known[0].learned, newer) == (part.learned, True) or known[0].learned > part.learned:
                self.links[part.key, part.part] = (part, expires_at)
            for each in self.deliveries.values():
                if part.key in each.waits_for and each.state == State.WAITING:
                    each.waits_for.discard(part.key)
                    held = each.held_until > now
                    each.state, each.reason = (State.WAITING, "hold") if held else (State.DUE, None)
                    each.due_at = max(each.held_until, now)
                    released |= set() if held else {each.destination}
        return released

    def purge(self, now: int, retention: int) -> int:
        """Webhooks come in the order of a clock that only goes forward."""
        erased = 0
        for number, webhook in list(self.webhooks.items()):
            age = now - webhook.acceptance.received_at
            if age > retention and not webhook.erased:
                webhook.erased, erased = True, erased + 1
                for each in self.of(number):
                    del self.deliveries[number, each.number]
            if age > max(retention, CLAIMS_FOR):
                del self.webhooks[number]
                self.payments = [each for each in self.payments if each.born != number]
        self.links = {key: link for key, link in self.links.items() if link[1] > now}
        return erased

    def counts(self) -> dict[str, Counts]:
        found = {}
        for destination in {each.destination for each in self.deliveries.values()}:
            states = [each.state for each in self.deliveries.values() if each.destination == destination]
            final = {state: states.count(state) for state in FINAL}
            found[destination] = Counts(
                accepted=len(states),
                sent=final[State.SENT],
                skipped=final[State.SKIPPED],
                pending=len(states) - sum(final.values()),
                dead=final[State.DEAD],
            )
        return found
