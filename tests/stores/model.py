"""What a store is, in a few dictionaries: slow, without files, and short enough to be believed."""

from collections import Counter, deque
from dataclasses import dataclass, field

from msgspec import structs

from gateway.deliveries import (
    NEVER,
    STANDING,
    Acceptance,
    Attempt,
    Counts,
    DeadGroup,
    Forgotten,
    Lease,
    LinkPart,
    NewClaim,
    NewEvent,
    Place,
    Settlement,
    State,
    Wanted,
    WantedDeliveries,
)

CLAIMS_FOR = 90 * 86_400_000
EXPIRED_FOR = 30 * 86_400_000
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
    lane: bytes | None = None
    late: int = 0
    """1: wants to hear of a link that comes too late; 2: is what tells of one."""
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
    names: tuple[bytes, ...]
    waits: bool
    erased: bool = False


class Model:
    """Does at once and in memory what a store is asked to do."""

    def __init__(self, *, returns_leases: bool) -> None:
        self.returns_leases = returns_leases
        self.webhooks: dict[int, Webhook] = {}
        self.deliveries: dict[tuple[int, int], Delivery] = {}
        self.payments: list[Payment] = []
        self.links: dict[tuple[bytes, str], LinkPart] = {}
        self.told: dict[bytes, int] = {}
        self._claims = 0

    def known(self, key: bytes) -> int | None:
        return next((number for number, each in self.webhooks.items() if each.acceptance.key == key), None)

    def of(self, webhook: int) -> list[Delivery]:
        return [each for each in self.deliveries.values() if each.webhook == webhook]

    def accept(self, webhook: int, new: Acceptance) -> set[str]:
        self.webhooks[webhook] = Webhook(new, new.subjects, new.unlinked)
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
                events.append(structs.replace(event, deliveries=fresh))
        self.webhooks[webhook].names, self.webhooks[webhook].waits = new.subjects, new.unlinked
        self.webhooks[webhook].acceptance = structs.replace(self.webhooks[webhook].acceptance, teaches=new.teaches)
        return self._store(webhook, new, tuple(events), now, next_number)

    def _store(
        self, webhook: int, new: Acceptance, events: tuple[NewEvent, ...], now: int, number: int = 0
    ) -> set[str]:
        due, began = set(), self._claims
        for claim in new.bare_claims:
            self._unite(claim, webhook, now)
        for event in events:
            taken = event.claim is not None and not self._claim(event.claim, webhook, event, began, now)
            stale = event.state_of is not None and self._is_stale(event.state_of, event.at)
            skip = "duplicate_payment" if taken else "stale" if stale else None
            for each in event.deliveries:
                held = now + event.claim.hold if event.claim and event.claim.hold else 0
                wait = 0 if any(self.resolve(key, now) for key in new.subjects) else each.wait_until
                late = int(each.late and not skip)
                made = Delivery(
                    webhook, number, each.destination, event, State.DUE, None, now, lane=each.lane, late=late
                )
                if each.skip or skip:
                    made.state, made.reason, made.due_at = State.SKIPPED, each.skip or skip, 0
                elif max(held, wait) > now:
                    made.state, made.reason = State.WAITING, "link" if wait > held else "hold"
                    made.due_at, made.held_until = max(held, wait), held
                else:
                    due.add(each.destination)
                self.deliveries[webhook, number] = made
                number += 1
        return due | self.link(new.learned, now)

    def _is_stale(self, key: bytes, at: int) -> bool:
        if self.told.get(key, at) > at:
            return True
        self.told[key] = at
        return False

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
        ready = [each for each in self.pending(destination) if each.due_at <= now and not self._waits(each, now)]
        return sorted(ready, key=lambda each: each.due_at)

    def pending(self, destination: str) -> list[Delivery]:
        return [
            each for each in self.deliveries.values() if each.destination == destination and each.state not in FINAL
        ]

    def _waits(self, it: Delivery, now: int) -> bool:
        """Whether another of its lane is on its way, or goes first."""
        if it.lane is None or _under_way(it, now):
            return False
        return any(
            _under_way(other, now) or _place(other) < _place(it)
            for other in self.pending(it.destination)
            if other is not it and other.lane == it.lane and other.due_at < NEVER
        )

    def next_due(self, destination: str, now: int, *, room: bool) -> tuple[int, int] | None:
        """Return the first time that one falls due, and the first that one falls due which waits for no other.

        When there was room for more, what is due by now waits for another of its lane.
        """
        times = [each.due_at for each in self.pending(destination) if not room or each.due_at > now]
        free = [each.due_at for each in self.pending(destination) if not self._waits(each, now)]
        return (min(times), min(free)) if free else None

    def lease(self, webhook: int, number: int, until: int) -> Lease:
        it = self.deliveries[webhook, number]
        it.state, it.reason, it.due_at, it.fence = State.LEASED, None, until, it.fence + 1
        tries, late = len(it.attempts), it.late == 2
        return Lease(webhook, number, it.fence, tries, it.first_try_at, it.event.sealed, it.rendered, late)

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
            if self.returns_leases and each.state == State.LEASED:
                each.state, each.due_at = State.DUE, 0

    def resolve(self, key: bytes, now: int) -> dict[str, LinkPart]:
        return {part: link for (k, part), link in self.links.items() if k == key and link.expires_at > now}

    def link(self, parts: tuple[LinkPart, ...], now: int) -> set[str]:
        for part in parts:
            known = self.links.get((part.key, part.part))
            if known is None or known.expires_at <= now or _replaces(part, known):
                self.links[part.key, part.part] = part
        released: set[str] = set()
        tell = deque(dict.fromkeys(part.key for part in parts))
        heard: set[bytes] = set()
        while tell:
            key = tell.popleft()
            heard.add(key)
            for number, webhook in sorted(self.webhooks.items(), reverse=True):
                if webhook.waits and key in webhook.names:
                    webhook.waits = False
                    released |= self._release(number, now)
                    if webhook.acceptance.teaches:
                        tell += [each for each in webhook.names if each not in heard and self._teach(key, each, now)]
        return released

    def _teach(self, teacher: bytes, key: bytes, now: int) -> bool:
        if self.resolve(key, now):
            return False
        for part, link in self.resolve(teacher, now).items():
            self.links[key, part] = structs.replace(link, key=key, taught_by=link.taught_by or teacher)
        return True

    def _release(self, webhook: int, now: int) -> set[str]:
        released: set[str] = set()
        for each in sorted(self.of(webhook), key=lambda each: each.number):
            gone = each.state in {State.LEASED, State.PARKED, State.SENT, State.DEAD}
            tried = each.state == State.DUE and each.attempts
            if each.late == 1 and (gone or tried or (each.state, each.reason) == (State.SKIPPED, "not_routed")):
                number = 1 + max(each.number for each in self.of(webhook))
                self.deliveries[webhook, number] = Delivery(
                    webhook, number, each.destination, each.event, State.DUE, None, now, lane=each.lane, late=2
                )
                released.add(each.destination)
            each.late = 0 if each.late == 1 else each.late
        for each in self.of(webhook):
            if each.state == State.WAITING or (each.state, each.reason) == (State.SKIPPED, "no_person"):
                held = each.held_until > now
                each.state, each.reason = (State.WAITING, "hold") if held else (State.DUE, None)
                each.due_at = max(each.held_until, now)
                released |= set() if held else {each.destination}
        return released

    def _erase(self, webhook: int) -> None:
        it = self.webhooks[webhook]
        it.erased, it.names, it.waits = True, (), False
        for each in self.of(webhook):
            del self.deliveries[webhook, each.number]

    def forget(self, keys: list[bytes]) -> Forgotten:
        others: set[bytes] = set()
        webhooks = pending = 0
        for number, webhook in self.webhooks.items():
            if set(keys) & set(webhook.names):
                others |= set(webhook.names)
                pending += sum(each.state not in FINAL for each in self.of(number))
                self._erase(number)
                webhooks += 1
        named = {name for webhook in self.webhooks.values() for name in webhook.names}
        made = {key for (key, _), link in self.links.items() if link.taught_by is None}
        links = [each for each in self.links if each[0] in (others - named - made) | set(keys)]
        for each in links:
            del self.links[each]
        return Forgotten(len(links), webhooks, pending)

    def purge(self, now: int, retention: int) -> int:
        """Webhooks come in the order of a clock that only goes forward."""
        erased = 0
        for number, webhook in list(self.webhooks.items()):
            age = now - webhook.acceptance.received_at
            if age > retention and not webhook.erased:
                erased += 1
                self._erase(number)
            if age > max(retention, CLAIMS_FOR):
                del self.webhooks[number]
                self.payments = [each for each in self.payments if each.born != number]
        self.links = {key: link for key, link in self.links.items() if link.expires_at > now - EXPIRED_FOR}
        self.told = {key: at for key, at in self.told.items() if at >= now - CLAIMS_FOR}
        return erased

    def found(self, wanted: Wanted) -> list[tuple[int, dict[State, int]]]:
        """Return which webhooks fit, newest first, and how many of their deliveries are in which state."""
        return [
            (number, Counter(each.state for each in self.of(number)))
            for number, webhook in sorted(self.webhooks.items(), reverse=True)
            if wanted.id in {None, webhook.acceptance.id}
            and wanted.type in {None, webhook.acceptance.type}
            and wanted.source in {None, webhook.acceptance.source}
            and wanted.since <= webhook.acceptance.received_at < wanted.until
            and (not wanted.subjects or set(wanted.subjects) & set(webhook.names))
            and (not wanted.states or any(each.state in wanted.states for each in self.of(number)))
        ]

    def listed(self, wanted: WantedDeliveries) -> list[Place]:
        """Return which deliveries fit, those of the newest webhooks first."""
        return sorted(
            (
                place
                for place, each in self.deliveries.items()
                if wanted.destination in {None, each.destination}
                and wanted.reason in {None, each.reason}
                and (not wanted.states or each.state in wanted.states)
            ),
            reverse=True,
        )

    def dead(self) -> list[DeadGroup]:
        groups: dict[tuple[str, str], list[int]] = {}
        for each in self.deliveries.values():
            if each.state == State.DEAD:
                groups.setdefault((each.destination, each.reason or ""), []).append(each.webhook)
        return [DeadGroup(*key, len(those), min(those), max(those)) for key, those in sorted(groups.items())]

    def retry(self, place: Place, now: int) -> str | None:
        it = self.deliveries.get(place)
        if it is None or it.state not in {State.DEAD, State.PARKED}:
            return None
        it.state, it.reason, it.due_at, it.held_until, it.first_try_at = State.DUE, None, now, 0, 0
        return it.destination

    def accounted(self, since: int, until: int) -> list[tuple[int, list[tuple[bytes, str, State, str | None]]]]:
        """Return what became of the deliveries of each webhook that came in that time, the first that came first."""
        return [
            (
                number,
                [
                    (each.event.id, each.destination, each.state, each.reason)
                    for each in sorted(self.of(number), key=lambda each: each.number)
                ],
            )
            for number, webhook in sorted(self.webhooks.items())
            if since <= webhook.acceptance.received_at < until
        ]

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


def _replaces(part: LinkPart, known: LinkPart) -> bool:
    if part.taught_by is None:
        return known.taught_by is not None or part.linked_at >= known.linked_at
    return known.taught_by == part.taught_by and part.linked_at >= known.linked_at


def _under_way(it: Delivery, now: int) -> bool:
    return it.state == State.LEASED and it.due_at > now


def _place(it: Delivery) -> tuple[int, int, int]:
    """Return what decides who of a lane goes first."""
    return it.event.at, it.webhook, it.number
