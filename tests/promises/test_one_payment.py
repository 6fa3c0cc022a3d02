"""Promise 4: one purchase per payment, whatever reports it, how often and in which order."""

import asyncio
import math
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from itertools import permutations, repeat
from pathlib import Path

import pytest

from gateway.deliveries import Settlement, State
from gateway.destinations import plain
from gateway.dry_run import events_of
from gateway.events import Event, decode_event
from gateway.intake import Intake
from gateway.mappings import Mappings, bundled, load_mappings
from gateway.money import Money
from gateway.sealing import Sealer
from gateway.signatures import sign
from gateway.sources import Headers
from gateway.store.sqlite import SqliteStore
from tests.promises.payments import PAYMENTS, Payment, Report, renewal, subscription_checkout

ORDERS, FEWER = 120, 8
START = 1_793_100_000_000
SECOND, HOUR = 1_000, 3_600_000
SETTINGS = {
    "STRIPE_WEBHOOK_SECRET": "whsec_of_the_tests",
    "SHOPIFY_WEBHOOK_SECRET": "shopify_secret_of_the_tests",
    "WEBHOOK_URL": "https://collector.example/sink",
    "WEBHOOK_SECRET": "whsec_dGVzdHMtb25seS1ub3QtYS1zZWNyZXQ=",
}
SEALER = Sealer(bytes(range(32)))
Told = dict[str, object]
Order = Sequence[Report]


@pytest.fixture(scope="module")
def mappings() -> Mappings:
    return load_mappings(bundled(), SETTINGS.get)


class Books:
    """Intake over a store, under a clock that the test moves; what falls due is taken out and counts as sent."""

    def __init__(self, path: Path, mappings: Mappings) -> None:
        self.now = START
        self.mappings = mappings
        self.store = SqliteStore.open(path / "gateway.db", SEALER.fingerprint())
        self._woken: list[frozenset[str]] = []
        self.intake = Intake(
            self.store, SEALER, lambda: mappings, lambda: self.now, self._woken.append, forward_tests=False
        )

    async def receive(self, source: str, account: str, report: Report) -> bool:
        """Take a signed webhook in. Returns whether it was told to be a duplicate."""
        headers, body = report.request(account)
        signed = headers | sign(self.mappings.sources[source].verification, body, self.now / 1000)
        return (await self.intake.receive(source, Headers(signed), body)).receipt.duplicate

    async def deliver(self, source: str, orders: Mapping[str, Order], step: int) -> dict[str, int]:
        """Take each account's webhooks in by their order, `step` ms apart; the accounts go on side by side.

        Returns how many of each account's were told to be duplicates.
        """
        repeated = dict.fromkeys(orders, 0)
        for arrivals in zip(*orders.values(), strict=True):
            self.now += step
            answers = await asyncio.gather(*map(self.receive, repeat(source), orders, arrivals))
            for account, duplicate in zip(orders, answers, strict=True):
                repeated[account] += duplicate
        return repeated

    async def take(self, after: int = HOUR) -> dict[str, list[Told]]:
        """Return, by account, what has fallen due `after` ms from now."""
        self.now += after
        taken: dict[str, list[Told]] = defaultdict(list)
        leases, _ = await self.store.lease("webhook", 100_000, self.now, self.now + HOUR)
        for lease in leases:
            event = decode_event(SEALER.open(lease.event, b"event"))
            taken[event.account].append(told(event))
        await self.store.settle([Settlement(lease, State.SENT) for lease in leases])
        return {account: in_any_order(events) for account, events in taken.items()}

    async def replay(self) -> None:
        """Replay every webhook, the oldest first."""
        for each in reversed(await self.store.webhooks(limit=10_000)):
            stored = await self.store.webhook(each.webhook)
            assert stored is not None
            await self.intake.replay(stored)

    def within_holds(self, payment: Payment, arrivals: int) -> int:
        """Return how many ms apart so many webhooks arrive so that no hold ends meanwhile."""
        holds = [rule.hold for rule in self.mappings.sources[payment.source].rules if rule.hold]
        return (min(holds, default=60 * SECOND) - SECOND) // arrivals


@pytest.fixture
async def books(tmp_path: Path, mappings: Mappings) -> AsyncIterator[Books]:
    books = Books(tmp_path, mappings)
    yield books
    await books.store.close()


@pytest.fixture(params=PAYMENTS)
def payment(request: pytest.FixtureRequest) -> Payment:
    return PAYMENTS[request.param]("1")


@pytest.fixture(params=[name for name, make in PAYMENTS.items() if make("1").told_by])
def paid(request: pytest.FixtureRequest) -> Payment:
    return PAYMENTS[request.param]("1")


def told(event: Event) -> Told:
    """Return what a collector is told, but for the visitor: links are another promise."""
    known = {name: getattr(event, name) for name in ("id", "name", "kind", "at", "user_id", "identity", "context")}
    return known | {"properties": plain(event.properties)}


def in_any_order(events: Iterable[Told]) -> list[Told]:
    return sorted(events, key=repr)


def expected(mappings: Mappings, payment: Payment, account: str, *, by: str | None = None) -> list[Told]:
    """Return what the reports say each by itself, but of the purchase only what the best of them says, or `by`."""
    best = by or next(iter(payment.told_by), None)
    return in_any_order(
        told(event)
        for report in payment.reports
        for event in said(mappings, payment, report, account)
        if event.name != "purchase" or report.type == best
    )


def said(mappings: Mappings, payment: Payment, report: Report, account: str = "acct_1") -> list[Event]:
    translation = events_of(mappings, payment.source, *report.request(account), START)
    return [emission.event for emission in translation.emissions]


def orders_of(reports: Sequence[Report]) -> Sequence[Order]:
    """Return all orders, or as many different ones as are tried."""
    if math.factorial(len(reports)) <= ORDERS:
        return list(permutations(reports))
    draw = random.Random(len(reports))
    chosen = {tuple(draw.sample(range(len(reports)), len(reports))): None for _ in range(2 * ORDERS)}
    return [tuple(reports[place] for place in order) for order in chosen][:ORDERS]


def twice(order: Order, seed: int) -> Order:
    """Return the order with each webhook once more, somewhere after its first arrival."""
    draw, arrivals = random.Random(seed), list(order)
    for report in order:
        first = next(place for place, each in enumerate(arrivals) if each is report)
        arrivals.insert(draw.randint(first + 1, len(arrivals)), report)
    return arrivals


def by_account(orders: Iterable[Order]) -> dict[str, Order]:
    return {f"acct_{number}": order for number, order in enumerate(orders)}


def differing(
    orders: Mapping[str, Order], taken: Mapping[str, list[Told]], wanted: Callable[[str], list[Told]]
) -> dict[str, list[Told]]:
    """Return what was sent of each order that did not give what it should."""
    return {
        " ".join(report.type for report in order): taken.get(account, [])
        for account, order in orders.items()
        if taken.get(account, []) != wanted(account)
    }


def test_the_best_report_says_what_was_paid(mappings: Mappings, paid: Payment) -> None:
    """What the other tests compare with."""
    (purchase,) = (each for each in said(mappings, paid, paid.report(paid.told_by[0])) if each.name == "purchase")
    assert purchase.properties["value"] == Money(paid.value, paid.currency)
    assert purchase.properties["total"] == Money(paid.total, paid.currency)


def test_exactly_the_named_reports_know_of_the_purchase(mappings: Mappings, payment: Payment) -> None:
    """So that no set is quiet because its webhooks are not read."""
    said_by = {report.type: said(mappings, payment, report) for report in payment.reports}
    knowing = {type for type, events in said_by.items() if any(event.name == "purchase" for event in events)}
    assert knowing == set(payment.told_by)


async def test_every_order_gives_one_purchase_of_the_best_report(books: Books, payment: Payment) -> None:
    orders = by_account(twice(order, seed) for seed, order in enumerate(orders_of(payment.reports)))
    repeated = await books.deliver(payment.source, orders, books.within_holds(payment, 2 * len(payment.reports)))
    taken = await books.take()
    assert set(repeated.values()) == {len(payment.reports)}
    assert not differing(orders, taken, lambda account: expected(books.mappings, payment, account))
    counts = {sum(each["name"] == "purchase" for each in taken.get(account, [])) for account in orders}
    assert counts == {int(bool(payment.told_by))}


async def test_reports_that_come_at_the_same_time_give_one_purchase(books: Books, payment: Payment) -> None:
    orders = by_account(twice(order, seed) for seed, order in enumerate(orders_of(payment.reports)[:10]))
    await asyncio.gather(
        *(books.receive(payment.source, account, each) for account, order in orders.items() for each in order)
    )
    taken = await books.take()
    assert not differing(orders, taken, lambda account: expected(books.mappings, payment, account))


async def test_a_better_report_after_the_holds_counts_no_second_time(books: Books, paid: Payment) -> None:
    late = paid.report(paid.told_by[0])
    early = [report for report in paid.reports if report is not late]
    orders = by_account(orders_of(early)[:FEWER])
    await books.deliver(paid.source, orders, books.within_holds(paid, len(early)))
    first = await books.take()
    await books.deliver(paid.source, {account: [late] for account in orders}, SECOND)
    second = await books.take()
    taken = {account: in_any_order(first.get(account, []) + second.get(account, [])) for account in orders}
    best_in_time = paid.told_by[:2][-1]
    assert not differing(orders, taken, lambda account: expected(books.mappings, paid, account, by=best_in_time))


async def test_of_reports_hours_apart_the_first_counts(books: Books, paid: Payment) -> None:
    """What is tied together only after both were sent cannot be known to be one: so the tie comes first here."""
    orders = by_account(
        [order for order in orders_of(paid.reports) if paid.tied_by in {None, order[0].type}][:FEWER],
    )
    taken: dict[str, list[Told]] = defaultdict(list)
    for arrivals in zip(*orders.values(), strict=True):
        await books.deliver(paid.source, {to: [each] for to, each in zip(orders, arrivals, strict=True)}, SECOND)
        for account, events in (await books.take()).items():
            taken[account] = in_any_order(taken[account] + events)

    def wanted(account: str) -> list[Told]:
        first = next(report.type for report in orders[account] if report.type in paid.told_by)
        return expected(books.mappings, paid, account, by=first)

    assert not differing(orders, taken, wanted)


@pytest.mark.parametrize("when", ["held", "sent"])
async def test_replaying_every_webhook_changes_nothing(books: Books, payment: Payment, when: str) -> None:
    orders = by_account(orders_of(payment.reports)[::40])
    await books.deliver(payment.source, orders, books.within_holds(payment, len(payment.reports)))
    before = await books.take() if when == "sent" else {}
    await books.replay()
    after = await books.take()
    assert not (before and after)
    assert not differing(orders, before or after, lambda account: expected(books.mappings, payment, account))


@pytest.mark.parametrize("name", PAYMENTS)
async def test_two_payments_at_once_stay_two(books: Books, name: str) -> None:
    """Of the same person, at the same price, for the same account."""
    await stay_two(books, PAYMENTS[name]("1"), PAYMENTS[name]("2"))


@pytest.mark.parametrize("basil", [False, True])
async def test_the_first_invoice_and_the_renewal_of_a_subscription_stay_two(books: Books, basil: bool) -> None:
    first = subscription_checkout("1", basil=basil)
    await stay_two(books, first, renewal("2", basil=basil, subscription="sub_1"))


async def stay_two(books: Books, one: Payment, other: Payment) -> None:
    reports = [*one.reports, *other.reports]
    orders = by_account(orders_of(reports)[:FEWER])
    await books.deliver(one.source, orders, books.within_holds(one, len(reports)))
    taken = await books.take()

    def wanted(account: str) -> list[Told]:
        return in_any_order(expected(books.mappings, one, account) + expected(books.mappings, other, account))

    assert not differing(orders, taken, wanted)


async def test_the_same_ids_in_two_accounts_are_two_payments(books: Books, payment: Payment) -> None:
    orders = dict.fromkeys(("acct_1", "acct_2"), payment.reports)
    await books.deliver(payment.source, orders, books.within_holds(payment, len(payment.reports)))
    taken = await books.take()
    assert not differing(orders, taken, lambda account: expected(books.mappings, payment, account))
    ids = [event["id"] for events in taken.values() for event in events]
    assert len(set(ids)) == len(ids)
