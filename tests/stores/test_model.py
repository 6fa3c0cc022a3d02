"""A store and a model of it (`model.py`) go through the same generated days, crashes included, and never differ."""

import asyncio
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from msgspec import structs

from gateway.deliveries import (
    Acceptance,
    Attempt,
    Lease,
    LinkPart,
    NewClaim,
    NewDelivery,
    NewEvent,
    Place,
    Settlement,
    SkipReason,
    State,
    Wanted,
    WantedDeliveries,
)
from tests.stores.harness import HARNESSES, Harness
from tests.stores.model import Delivery, Model
from tests.stores.reports import DAY, MINUTE, NOW, key, webhook

T = TypeVar("T")

SUBJECTS = ("user", "customer", "cart")
PAYMENT_KEYS = ("pi", "in", "cs", "ch")
DESTINATIONS = ("sink", "other")
SOURCES = ("stripe", "shopify")
OUTCOMES = (State.SENT, State.DEAD, State.SKIPPED, State.DUE, State.PARKED)

WEBHOOKS = (
    Wanted(),
    Wanted(id="id 1"),
    Wanted(type="type 1"),
    Wanted(source="shopify"),
    Wanted(type="type 2", source="stripe"),
    Wanted(subjects=(key("user"), key("cart"))),
    Wanted(since=2 * MINUTE),
    Wanted(states=frozenset({State.DEAD})),
    Wanted(states=frozenset({State.PARKED})),
    Wanted(states=frozenset({State.SENT, State.SKIPPED}), since=MINUTE),
    Wanted(id="id 2", states=frozenset({State.DEAD})),
)
"""What is looked for, in turns. `since` is how long ago."""
DELIVERIES = (
    WantedDeliveries(),
    WantedDeliveries(states=frozenset({State.DEAD})),
    WantedDeliveries(states=frozenset({State.DEAD}), destination="sink", reason="why"),
    WantedDeliveries(states=frozenset({State.PARKED}), destination="sink"),
    WantedDeliveries(destination="other"),
    WantedDeliveries(reason="superseded"),
    WantedDeliveries(states=frozenset({State.WAITING, State.DUE})),
)

some_keys = st.lists(st.sampled_from(PAYMENT_KEYS), min_size=1, max_size=3, unique=True)
some_subjects = st.lists(st.sampled_from(SUBJECTS), max_size=2, unique=True)
some_destinations = st.lists(st.sampled_from(DESTINATIONS), min_size=1, max_size=2, unique=True)
pauses = st.sampled_from([0, 1, MINUTE // 2, 2 * MINUTE])
skips: st.SearchStrategy[SkipReason | None] = st.sampled_from([None, None, None, "no_consent", "not_routed"])
picks = st.integers(0, 10**6)


some_dead = st.builds(
    WantedDeliveries, destination=st.sampled_from([None, *DESTINATIONS]), reason=st.sampled_from([None, "why"])
)


class Drawn(NamedTuple):
    """What an event is made of: payment keys, name, hold, wait for a link, age, lane, object; skip and late by name."""

    keys: list[str]
    name: str
    hold: int
    wait: int
    age: int
    lane: str | None
    state_of: str | None
    to: dict[str, tuple[SkipReason | None, bool]]


@st.composite
def events(draw: st.DrawFn) -> Drawn:
    return Drawn(
        keys=draw(st.one_of(some_keys, st.just([]))),
        name=draw(st.sampled_from(["purchase", "purchase", "purchase", "refund"])),
        hold=draw(pauses),
        wait=draw(pauses),
        age=draw(pauses),
        lane=draw(st.sampled_from([None, None, "ada"])),
        state_of=draw(st.sampled_from([None, None, None, "subscription"])),
        to={each: (draw(skips), draw(st.booleans())) for each in draw(some_destinations)},
    )


@st.composite
def persons(draw: st.DrawFn) -> tuple[list[str], bool, bool]:
    """Draw whom a webhook names, whether nobody linked them, and whether it teaches."""
    return draw(some_subjects), draw(st.booleans()), draw(st.booleans())


class StoreAndModel(RuleBasedStateMachine):
    """Each rule does the same to both and compares the answers; `_agree` compares what they hold."""

    harness_type: ClassVar[type[Harness]]

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.harness = self.harness_type(Path(self.folder.name))
        self.model = Model(returns_leases=self.harness_type.returns_leases)
        self.now = NOW
        self.came = 0
        self.leases: list[Lease] = []
        self.looks = 0

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(coroutine)

    @initialize(
        first=st.lists(st.tuples(st.lists(events(), min_size=1, max_size=2), persons()), min_size=1, max_size=4),
        outcome=st.sampled_from(OUTCOMES),
    )
    def open(self, first: list[tuple[list[Drawn], Any]], outcome: State) -> None:
        """Begin with some webhooks, some of which were tried, as most rules need some."""
        self.store = self.run(self.harness.open())
        for made, who in first:
            self.accept(made, [], [], who)
        self.deliver("sink", outcome)

    def teardown(self) -> None:
        self.run(self.harness.close())
        self.runner.close()
        self.folder.cleanup()

    # what happens

    @rule(
        made=st.lists(events(), max_size=2), ties=st.lists(some_keys, max_size=1), taught=some_subjects, who=persons()
    )
    def accept(self, made: list[Drawn], ties: list[list[str]], taught: list[str], who: Any) -> None:
        self.came += 1
        new = self._webhook(str(self.came), made, ties, taught, who)
        # Several share an id, a type or a source; what makes it this webhook is its key.
        new = structs.replace(
            new, id=f"id {self.came % 4}", type=f"type {self.came % 3}", source=SOURCES[self.came % 2]
        )
        receipt = self.run(self.store.accept(new))
        assert not receipt.duplicate
        assert receipt.webhook not in self.model.webhooks
        assert receipt.due == self.model.accept(receipt.webhook, new)
        self._agree()

    @precondition(lambda self: self.model.webhooks)
    @rule(pick=picks)
    def accept_again(self, pick: int) -> None:
        number, known = self._one(pick)
        receipt = self.run(self.store.accept(structs.replace(known, received_at=self.now)))
        assert (receipt.webhook, receipt.duplicate, receipt.due) == (number, True, frozenset())
        self._agree()

    @precondition(lambda self: self.model.webhooks)
    @rule(pick=picks, made=st.none() | st.lists(events(), max_size=2), who=persons())
    def replay(self, pick: int, made: list[Drawn] | None, who: Any) -> None:
        number, known = self._one(pick)
        new = known if made is None else self._webhook(known.id, made, [], [], who)
        if self.model.webhooks[number].erased:
            with pytest.raises(ValueError, match="has no body any more"):
                self.run(self.store.replay(number, new, self.now))
        else:
            receipt = self.run(self.store.replay(number, new, self.now))
            assert receipt.due == self.model.replay(number, new, self.now)
        self._agree()

    @rule(destination=st.sampled_from(DESTINATIONS), limit=st.integers(1, 3))
    def lease(self, destination: str, limit: int) -> None:
        until = self.now + MINUTE
        leased, next_due = self.run(self.store.lease(destination, limit, self.now, until))
        due = self.model.due(destination, self.now)
        times = [self.model.deliveries[each.webhook, each.number].due_at for each in leased]
        if all(each.lane is None for each in due):  # else it depends on who of a lane was in line before
            assert times == [each.due_at for each in due[:limit]]  # of several due at once any may come first
        assert len(leased) == min(limit, len(due))
        assert {(each.webhook, each.number) for each in leased} <= {(each.webhook, each.number) for each in due}
        assert leased == [self.model.lease(each.webhook, each.number, until) for each in leased]
        bounds = self.model.next_due(destination, self.now, room=len(leased) < limit)
        assert bounds is None if next_due is None else bounds is not None and bounds[0] <= next_due <= bounds[1]
        self.leases += leased
        self._agree()

    @precondition(lambda self: self.leases)
    @rule(pick=picks, outcome=st.sampled_from(OUTCOMES), pause=pauses, tried=st.booleans())
    def settle(self, pick: int, outcome: State, pause: int, tried: bool) -> None:
        lease = self.leases[-1 - pick % min(4, len(self.leases))]  # held, settled or long lost
        attempt = Attempt(self.now, 5, 500, "why", b"answer") if tried else None
        rendered = b"as sent" if outcome in {State.DUE, State.PARKED} else None
        reason = "no_person" if outcome == State.SKIPPED else "why"
        settlement = Settlement(lease, outcome, reason, self.now + pause, attempt, rendered)
        assert self.run(self.store.settle([settlement])) == self.model.settle(settlement)
        self._agree()

    @rule(destination=st.sampled_from(DESTINATIONS), outcome=st.sampled_from(OUTCOMES))
    def deliver(self, destination: str, outcome: State) -> None:
        self.lease(destination, 2)
        for pick in range(min(2, len(self.leases))):
            self.settle(pick, outcome, 0, tried=True)

    @rule(
        subject=st.sampled_from(SUBJECTS),
        product=st.sampled_from(["", "nexly"]),
        age=pauses,
        by=st.sampled_from([None, None, "user", "cart"]),
    )
    def link(self, subject: str, product: str, age: int, by: str | None) -> None:
        ends, taught_by = self.now + 10 * MINUTE, key(by) if by else None
        part = LinkPart(key(subject), product, f"{self.now} {age}".encode(), self.now - age, ends, taught_by)
        assert self.run(self.store.link([part], self.now)) == self.model.link((part,), self.now)
        self._agree()

    @precondition(lambda self: self.model.webhooks)
    @rule(subjects=some_subjects)
    def forget(self, subjects: list[str]) -> None:
        keys = [key(each) for each in subjects]
        assert self.run(self.store.forget(keys)) == self.model.forget(keys)
        self._agree()

    @precondition(lambda self: self.model.deliveries)
    @rule(pick=picks)
    def retry(self, pick: int) -> None:
        place = sorted(self.model.deliveries)[pick % len(self.model.deliveries)]
        assert self.run(self.store.retry(*place, self.now)) == self.model.retry(place, self.now)
        self._agree()

    @rule(wanted=some_dead, limit=st.integers(1, 3))
    def retry_dead(self, wanted: WantedDeliveries, limit: int) -> None:
        self.run(self._retry_dead(wanted, limit))
        self._agree()

    async def _retry_dead(self, wanted: WantedDeliveries, limit: int) -> None:
        dead = self.model.listed(structs.replace(wanted, states=frozenset({State.DEAD})))
        due = {self.model.retry(place, self.now) for place in dead}
        done, told, before = 0, frozenset[str](), None
        while True:
            step = await self.store.retry_dead(wanted, self.now, before=before, limit=limit)
            done, told, before = done + step.number, told | step.due, step.before
            if before is None:
                break
        assert done == len(dead)
        assert told == due

    @rule(pause=st.sampled_from([1, MINUTE // 2, MINUTE, 3 * MINUTE]))
    def time_passes(self, pause: int) -> None:
        self.now += pause

    @precondition(lambda self: self.model.webhooks)
    @rule(long=st.sampled_from([MINUTE, 5 * MINUTE, DAY, 91 * DAY]))
    def purge(self, long: int) -> None:
        self.now += long
        retention = 4 * MINUTE
        assert self.run(self.store.purge(self.now, retention)) == self.model.purge(self.now, retention)
        self.leases = [each for each in self.leases if each.webhook in self.model.webhooks]
        self._agree()

    @rule(cleanly=st.booleans())
    def process_ends(self, cleanly: bool) -> None:
        self.store = self.run(self.harness.open() if cleanly else self.harness.crash())
        self.model.crash()
        self._agree()

    # what must hold

    def _agree(self) -> None:
        """Compare all that can be seen. No delivery is in no state, none in two, as the model can hold neither."""
        self.run(self._compare())

    async def _compare(self) -> None:
        assert await self.store.counts() == self.model.counts()
        assert await self.store.dead() == self.model.dead()
        await self._compare_lists()
        stored = await self.store.webhooks(limit=1000)
        assert [each.webhook for each in stored] == sorted(self.model.webhooks, reverse=True)
        found = await asyncio.gather(*(self.store.deliveries(number) for number in self.model.webhooks))
        for number, deliveries in zip(self.model.webhooks, found, strict=True):
            seen = [(d.number, d.destination, d.event, d.state, d.reason, d.due_at, d.attempts) for d in deliveries]
            assert seen == [_seen(each) for each in sorted(self.model.of(number), key=lambda each: each.number)]
        links = await self.store.resolve([key(subject) for subject in SUBJECTS])
        live = {(part.key, part.part): part for parts in links.values() for part in parts if part.expires_at > self.now}
        assert live == {id: part for id, part in self.model.links.items() if part.expires_at > self.now}
        for subject in map(key, SUBJECTS):
            naming = [number for number, each in self.model.webhooks.items() if subject in each.names]
            assert await self.store.naming([subject]) == sorted(naming, reverse=True)[:50]

    async def _compare_lists(self) -> None:
        """Compare one list, another each time, with pages of another size."""
        self.looks += 1
        turn, kind = divmod(self.looks, 3)
        limit = 1 + turn % 3
        if kind == 0:
            wanted = WEBHOOKS[turn % len(WEBHOOKS)]
            wanted = structs.replace(wanted, since=self.now - wanted.since if wanted.since else 0)
            assert await self._searched(wanted, limit) == self.model.found(wanted)
        elif kind == 1:
            listed = DELIVERIES[turn % len(DELIVERIES)]
            assert await self._listed(listed, limit) == self.model.listed(listed)
        else:
            since = self.now - MINUTE * limit
            found = [(each.webhook, list(each.deliveries)) async for each in self.store.accounted(since, since + DAY)]
            assert found == self.model.accounted(since, since + DAY)

    async def _searched(self, wanted: Wanted, limit: int) -> list[tuple[int, dict[State, int]]]:
        """Go through a list page by page."""
        seen: list[tuple[int, dict[State, int]]] = []
        page, on = await self.store.search(wanted, limit=limit)
        while on is not None:
            seen += [(each.webhook.webhook, each.states) for each in page]
            page, on = await self.store.search(wanted, before=on, limit=limit)
        return seen + [(each.webhook.webhook, each.states) for each in page]

    async def _listed(self, wanted: WantedDeliveries, limit: int) -> list[Place]:
        seen: list[Place] = []
        page, on = await self.store.search_deliveries(wanted, limit=limit)
        while on is not None:
            seen += [(each.webhook, each.number) for each in page]
            page, on = await self.store.search_deliveries(wanted, before=on, limit=limit)
        return seen + [(each.webhook, each.number) for each in page]

    def _one(self, pick: int) -> tuple[int, Acceptance]:
        numbers = sorted(self.model.webhooks)
        number = numbers[pick % len(numbers)]
        return number, self.model.webhooks[number].acceptance

    def _webhook(self, id: str, made: list[Drawn], ties: list[list[str]], taught: list[str], who: Any) -> Acceptance:
        subjects, unlinked, teaches = who
        ends, teacher = self.now + 5 * MINUTE, key("user")
        new = webhook(
            id,
            *(self._event(id, each) for each in made),
            at=self.now,
            bare=tuple(NewClaim(tuple(key(each) for each in keys)) for keys in ties),
            learned=tuple(LinkPart(key(each), "", b"taught", self.now, ends, teacher) for each in taught),
            subjects=tuple(subjects),
        )
        return structs.replace(new, unlinked=bool(subjects) and unlinked, teaches=teaches)

    def _event(self, webhook: str, it: Drawn) -> NewEvent:
        wait_until = self.now + it.wait if it.wait else 0
        lane = key(it.lane) if it.lane else None
        return NewEvent(
            id=key(f"{it.keys[0] if it.keys else webhook} {it.name}"),
            sealed=f"event of {webhook}".encode(),
            deliveries=tuple(NewDelivery(to, skip, wait_until, late, lane) for to, (skip, late) in it.to.items()),
            claim=NewClaim(tuple(key(each) for each in it.keys), it.name, it.hold) if it.keys else None,
            at=self.now - it.age,
            state_of=key(it.state_of) if it.state_of else None,
        )


def _seen(it: Delivery) -> tuple[object, ...]:
    return it.number, it.destination, it.event.sealed, it.state, it.reason, it.due_at, tuple(it.attempts)


@pytest.mark.parametrize("store", HARNESSES)
def test_a_store_does_what_its_model_does(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Indexes are brought up to date at every third webhook, and lists look at few at once.
    for name, value in {"INDEX_EVERY": 3, "LIST_STEP": 2, "SCAN": 4, "SCAN_STEP": 2}.items():
        monkeypatch.setattr(f"gateway.store.sqlite.{name}", value)
        monkeypatch.setattr(f"gateway.store.redis.{name}", value, raising=False)
    budget = settings(
        max_examples=40,
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    )
    machine = type("StoreAndModel", (StoreAndModel,), {"harness_type": HARNESSES[store]})
    run_state_machine_as_test(machine, settings=budget)
